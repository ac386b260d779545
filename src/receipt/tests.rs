//! Tests of receipts: valid ones verify, and each single change is refused with its reason.

use std::{collections::HashMap, convert::Infallible};

use serde_bytes::ByteArray;

use super::*;
use crate::{
    block::encode,
    event::{
        Actor, Fact, Fields, Position,
        body::{Body, LogOpened, LogRecovered},
        keeping::LogKeyRotated,
    },
    identity::Signer,
    merkle::{Growing, Tiles, inclusion, node_hash},
};

const ORIGIN: &str = "cairn.example/log1";

struct Stored(HashMap<(u8, u64), Vec<u8>>);

impl Tiles for Stored {
    type Error = Infallible;

    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(&(level, index)).cloned())
    }
}

fn signer(origin: &str) -> Signer {
    Signer::new(origin, [7; 32]).expect("the origin is a key name")
}

fn genesis(origin: &str) -> Vec<u8> {
    encode(&Genesis {
        v: 1,
        origin: origin.to_owned(),
        key: signer(origin).public_key().to_vec(),
        created: 1_700_000_000_000_000,
        nonce: vec![5; 16],
    })
}

/// The receipt of event 5 in a log of 9.
fn receipt() -> Receipt {
    let genesis = genesis(ORIGIN);
    let log = Cid::of(Codec::DagCbor, &genesis);
    let mut events: Vec<Event> = Vec::new();
    let mut growing = Growing::new();
    for seq in 0..9 {
        let fact = Fact {
            cause: None,
            refs: vec![],
            actor: Actor { id: "local".to_owned(), role: "operator".to_owned(), proof: None },
            subject: "log".to_owned(),
            tool: None,
            payloads: vec![],
            body: match seq {
                0 => Body::LogOpened(LogOpened { genesis: log, software: "cairn".to_owned(), salt: None }),
                _ => Body::LogRecovered(LogRecovered { interrupted: seq, attempts: 0 }),
            },
        };
        let place =
            Position { log, seq, prev: events.last().map(Event::cid), ts: 1_700_000_000_000_000 + seq };
        let event = Event::seal(fact, place).expect("the fact keeps the rules");
        growing.push(leaf_hash(&event.cid()));
        events.push(event);
    }
    let tiles = growing.take_changed();
    let stored = Stored(tiles.into_iter().map(|row| ((row.level, row.index), row.hashes)).collect());
    Receipt {
        v: VERSION,
        cid: events[5].cid(),
        event: events[5].bytes().to_vec(),
        genesis,
        index: 5,
        proof: inclusion(&stored, 5, 9).expect("all tiles are stored"),
        checkpoint: signer(ORIGIN).sign_checkpoint(9, &growing.root()),
        rotations: Vec::new(),
    }
}

fn seeded(seed: u8) -> Signer {
    Signer::new(ORIGIN, [seed; 32]).expect("the origin is a key name")
}

/// The receipt of event 5 in a log of 9 whose keys changed at 3, from 7 to 8, and at 6, from 8 to 9.
fn rotated() -> Receipt {
    let genesis = genesis(ORIGIN);
    let log = Cid::of(Codec::DagCbor, &genesis);
    let mut events: Vec<Event> = Vec::new();
    let mut growing = Growing::new();
    for seq in 0..9 {
        let rotation = |from: u8| seeded(from).sign_rotation(&log, seq, seeded(from + 1).verifier());
        let body = match seq {
            3 | 6 => {
                let rotation = rotation(if seq == 3 { 7 } else { 8 });
                Body::LogKeyRotated(LogKeyRotated {
                    key: ByteArray::new(rotation.key),
                    signature: ByteArray::new(rotation.signature),
                })
            }
            _ => Body::LogRecovered(LogRecovered { interrupted: seq, attempts: 0 }),
        };
        let fact = Fact {
            cause: None,
            refs: vec![],
            actor: Actor { id: "local".to_owned(), role: "operator".to_owned(), proof: None },
            subject: "log".to_owned(),
            tool: None,
            payloads: vec![],
            body,
        };
        let place = Position { log, seq, prev: events.last().map(Event::cid), ts: seq };
        let event = Event::seal(fact, place).expect("the fact keeps the rules");
        growing.push(leaf_hash(&event.cid()));
        events.push(event);
    }
    let tiles = growing.take_changed();
    let stored = Stored(tiles.into_iter().map(|row| ((row.level, row.index), row.hashes)).collect());
    let proof = |seq| inclusion(&stored, seq, 9).expect("all tiles are stored");
    let told = |seq: usize| Rotated { event: events[seq].bytes().to_vec(), proof: proof(seq as u64) };
    Receipt {
        v: VERSION,
        cid: events[5].cid(),
        event: events[5].bytes().to_vec(),
        genesis,
        index: 5,
        proof: proof(5),
        checkpoint: seeded(9).sign_checkpoint(9, &growing.root()),
        rotations: vec![told(3), told(6)],
    }
}

#[test]
fn a_receipt_across_rotations_verifies_with_every_key_of_the_log_and_with_no_other() {
    let json = rotated().to_json().to_string();
    let read = Receipt::read(json.as_bytes()).expect("our own form");
    assert_eq!(read, rotated());
    for seed in [7, 8, 9] {
        assert!(read.verify(seeded(seed).verifier()).is_ok(), "{seed}");
    }
    assert!(matches!(read.verify(seeded(10).verifier()), Err(ReceiptError::Key)));
    // Whoever knows the last key needs no rotations that lead to it.
    let bare = Receipt { rotations: Vec::new(), ..rotated() };
    assert!(bare.verify(seeded(9).verifier()).is_ok());
    assert!(bare.verify(seeded(7).verifier()).is_err());
    assert!(!bare.to_json().as_object().expect("an object").contains_key("rotations"));
}

#[test]
fn every_broken_link_of_the_keys_is_found() {
    fn check(spoil: impl FnOnce(&mut Receipt)) {
        let mut receipt = rotated();
        spoil(&mut receipt);
        let verified = receipt.verify(seeded(7).verifier());
        assert!(verified.is_err(), "{verified:?}");
    }
    check(|r| r.rotations.swap(0, 1));
    check(|r| {
        r.rotations.remove(0);
    });
    check(|r| {
        r.rotations.remove(1);
    });
    check(|r| r.rotations.push(r.rotations[1].clone()));
    check(|r| r.rotations[0].proof[0][0] ^= 1);
    check(|r| r.rotations[1].proof.clear());
    check(|r| r.rotations[0].event = r.event.clone());
    check(|r| {
        let last = r.rotations[1].event.len() - 1;
        r.rotations[1].event[last] ^= 1;
    });
    // A former key cannot sign a head of this size, whoever has it.
    let head = open_checkpoint(&rotated().checkpoint, seeded(9).verifier()).expect("our own head");
    let root = head.root;
    for seed in [7, 8] {
        check(|r| r.checkpoint = seeded(seed).sign_checkpoint(9, &root));
    }
}

#[test]
fn a_receipt_survives_json_and_proves_its_event() {
    let json = receipt().to_json().to_string();
    let read = Receipt::read(json.as_bytes()).expect("our own form");
    assert_eq!(read, receipt());
    let verified = read.verify(signer(ORIGIN).verifier()).expect("an honest receipt");
    assert_eq!((verified.origin.as_str(), verified.size, verified.seq), (ORIGIN, 9, 5));
    assert_eq!(verified.event.cid(), receipt().cid);
}

#[test]
fn every_broken_link_of_the_chain_is_found() {
    fn check(spoil: impl FnOnce(&mut Receipt), expected: &str) {
        let mut receipt = receipt();
        spoil(&mut receipt);
        let err = receipt.verify(signer(ORIGIN).verifier()).expect_err(expected);
        assert!(err.to_string().contains(expected), "{err} for {expected}");
    }
    check(|r| r.v = 2, "version 2");
    check(|r| r.cid = Cid::of(Codec::DagCbor, b"other"), "cid does not name");
    check(|r| r.cid = Cid::from_digest(Codec::Raw, *r.cid.digest()), "cid does not name");
    check(|r| r.event.push(0), "event cannot be read");
    check(|r| r.index = 4, "number 5 of its log, not 4");
    check(|r| r.genesis[9] ^= 1, "another log");
    check(|r| r.checkpoint = r.checkpoint.replace("\n9\n", "\n8\n"), "not a signed head");
    check(|r| r.proof[1][0] ^= 1, "inclusion proof");
    check(|r| r.proof.truncate(1), "inclusion proof");
    let smaller = signer(ORIGIN).sign_checkpoint(5, &[0; 32]);
    check(|r| r.checkpoint = smaller, "inclusion proof");
    let elsewhere = signer("cairn.example/log2");
    let head = elsewhere.sign_checkpoint(9, &[0; 32]);
    let moved = Receipt { checkpoint: head, ..receipt() };
    let err = moved.verify(elsewhere.verifier()).expect_err("another origin");
    assert!(matches!(err, ReceiptError::Origin { .. }));
}

/// Returns the receipt of an event that was changed so, in a log of 9 whose other events are as in [`receipt`].
fn receipt_of(change: impl FnOnce(&mut Fields)) -> Receipt {
    let good = receipt();
    let mut fields = Event::open(good.event).expect("an event").fields().clone();
    change(&mut fields);
    let event = encode(&fields);
    let cid = Cid::of(Codec::DagCbor, &event);
    // The tree is one of which the event is the only leaf that is known.
    let leaf = leaf_hash(&cid);
    let [first, second, third, fourth] = [[1; 32], [2; 32], [3; 32], [4; 32]];
    let four = node_hash(&node_hash(&first, &leaf), &second);
    let root = node_hash(&node_hash(&third, &four), &fourth);
    Receipt {
        cid,
        event,
        proof: vec![first, second, third, fourth],
        checkpoint: signer(ORIGIN).sign_checkpoint(9, &root),
        ..receipt()
    }
}

#[test]
fn an_event_of_a_receipt_keeps_the_rules_of_one_event() {
    let verify = |change: &dyn Fn(&mut Fields)| {
        let verified = receipt_of(change).verify(signer(ORIGIN).verifier());
        verified.map(|_| ()).map_err(|err| err.to_string())
    };
    assert_eq!(verify(&|_| {}), Ok(()));
    let unknown = |fields: &mut Fields| {
        (fields.v, fields.kind, fields.subject) = (2, "later.kind".to_owned(), "anything".to_owned());
    };
    assert_eq!(verify(&unknown), Ok(()));
    let ending = |fields: &mut Fields| {
        (fields.kind, fields.subject) = ("call.succeeded".to_owned(), "call/1".to_owned());
        fields.body = [("took_us".to_owned(), ipld_core::ipld::Ipld::Integer(1))].into();
    };
    for v in [1, 2] {
        let refused = verify(&|fields: &mut Fields| {
            ending(fields);
            fields.v = v;
        });
        assert!(refused.is_err_and(|err| err.contains("names no start")), "{v}");
        let rotated = verify(&|fields: &mut Fields| {
            (fields.v, fields.kind) = (v, "log.key_rotated".to_owned());
            fields.body.clear();
        });
        assert!(rotated.is_err_and(|err| err.contains("breaks a rule")), "{v}");
    }
    let cause = Cid::of(Codec::DagCbor, b"a start");
    let with_cause = |fields: &mut Fields| {
        ending(fields);
        fields.cause = Some(cause);
    };
    assert_eq!(verify(&with_cause), Ok(()), "whether it is one is not seen from here");
}

#[test]
fn numbers_of_a_receipt_are_digits_alone() {
    let first = Receipt { index: 0, ..receipt() };
    let text = first.to_json().to_string();
    assert!(Receipt::read(text.as_bytes()).is_ok());
    for other in ["-0", "0.0", "0e0", "-1", "00", "18446744073709551616", "\"0\""] {
        let changed = text.replace("\"index\":0", &format!("\"index\":{other}"));
        assert_ne!(changed, text);
        assert!(Receipt::read(changed.as_bytes()).is_err(), "{other}");
    }
}

#[test]
fn what_is_not_a_receipt_is_refused() {
    let good = receipt().to_json();
    for (key, value) in [
        ("cid", "bafy".into()),
        ("event", "*".into()),
        ("proof", serde_json::json!(["AA=="])),
        ("index", (-1).into()),
        ("more", 1.into()),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(Receipt::read(bad.to_string().as_bytes()).is_err(), "{key}");
    }
    let text = good.to_string();
    for (key, value) in good.as_object().expect("a receipt is an object") {
        let twice = text.replacen('{', &format!("{{\"{key}\":{value},"), 1);
        assert!(matches!(Receipt::read(twice.as_bytes()), Err(ReceiptError::Text(_))), "{twice}");
        let mut without = good.clone();
        without.as_object_mut().expect("a receipt is an object").remove(key);
        assert!(Receipt::read(without.to_string().as_bytes()).is_err(), "{key}");
    }
    assert!(Receipt::read(format!("{text} {{}}").as_bytes()).is_err());
}
