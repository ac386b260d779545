//! The part of the golden log about the log itself.
//!
//! Invariant: the bytes of a released kind never change.

use std::collections::BTreeMap;

use ipld_core::{ipld, ipld::Ipld};
use serde_bytes::ByteArray;

use super::{START_US, SaltKey, Story, next_signer, signer};
use crate::{
    block::{Cid, Codec, encode},
    event::{
        Actor, Body, Event, Kind, Position,
        body::LogOpened,
        keeping::{
            AccessRead, AccessRefused, ConfigApplied, LogKeyRotated, LogSalted, LogTakenOver, Reason,
            TokenAdded, TokenRevoked, rotation,
        },
    },
    identity::rotation::Keys,
};

/// The first event of a log that records which key salts its payloads.
const OPENED_WITH_SALT: &str = "ad6176016274731b0006474846204000636c6f67d82a582500017112202d1376dd035e6b7c7bb0cb535f476068f0a0174a93df78f0865a501d09ec2b426370617980637365710064626f6479a36473616c7450d7cfcb30214d525707c03b36585891de6767656e65736973d82a582500017112202d1376dd035e6b7c7bb0cb535f476068f0a0174a93df78f0865a501d09ec2b4268736f6674776172656b636169726e20302e312e30646b696e646a6c6f672e6f70656e65646470726576f664726566738064746f6f6cf6656163746f72a362696465636169726e64726f6c656673797374656d6570726f6f66f6656361757365f6677375626a656374636c6f67";

impl Story {
    pub(super) fn keeping(&mut self) {
        let seq = self.events.len() as u64;
        self.add("log", Body::LogTakenOver(LogTakenOver { from_seq: seq - 2, events: 2 }));
        let commitment = ByteArray::new(SaltKey::new([9; 32]).commitment_for(&self.log));
        self.add("log", Body::LogSalted(LogSalted { commitment }));
        let token = "token/mfrggzdf";
        let added = TokenAdded {
            token: "mfrggzdf".into(),
            name: "alice".into(),
            scopes: vec!["mcp:call".into(), "audit:read".into()],
            expires: Some(1_798_761_600),
        };
        self.add(token, Body::TokenAdded(added.clone()));
        self.add(
            "token/mfrggzdg",
            Body::TokenAdded(TokenAdded { token: "mfrggzdg".into(), expires: None, ..added }),
        );
        self.add(token, Body::TokenRevoked(TokenRevoked { token: "mfrggzdf".into() }));
        self.counted();
        self.configured();
        let seq = self.events.len() as u64;
        let rotation = signer().sign_rotation(&self.log, seq, next_signer().verifier());
        let (key, signature) = (ByteArray::new(rotation.key), ByteArray::new(rotation.signature));
        self.add("log", Body::LogKeyRotated(LogKeyRotated { key, signature }));
    }

    fn counted(&mut self) {
        let by = |id: &str, role: &str| Actor { id: id.into(), role: role.into(), proof: None };
        let minute = START_US / 60_000_000;
        let mut fact = self.fact("log", Body::AccessRead(AccessRead { reads: 12, minute }));
        fact.actor = by("alice", "client");
        self.seal(fact);
        let refused = AccessRefused { refusals: 3, minute, reason: Reason::Invalid };
        let mut fact = self.fact("log", Body::AccessRefused(refused));
        fact.actor = by("unknown", "anonymous");
        self.seal(fact);
    }

    fn configured(&mut self) {
        let settings: BTreeMap<String, String> = [("auth.mode", "static"), ("capture.default", "redacted")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let digest = ByteArray::new(*Cid::of(Codec::DagCbor, &encode(&settings)).digest());
        let applied = ConfigApplied { settings: settings.clone(), digest, omitted: 0 };
        self.add("config/serve", Body::ConfigApplied(applied));
        let applied = ConfigApplied { settings, digest, omitted: 2 };
        self.add("config/stdio", Body::ConfigApplied(applied));
    }
}

#[test]
fn the_golden_log_changes_its_key_where_it_says_so() {
    let story = Story::tell();
    let mut keys = Keys::new(story.log, signer().verifier().clone());
    let rotation = story.events.iter().find_map(rotation).expect("every kind is told");
    let seq = rotation.seq;
    keys.rotate(&rotation).expect("signed by the key before");
    assert_eq!(keys.at(seq), signer().verifier());
    assert_eq!(keys.at(seq + 1), next_signer().verifier());
}

#[test]
fn a_log_that_names_its_salt_key_begins_with_these_bytes() {
    let story = Story::tell();
    let salt = SaltKey::new([9; 32]).commitment_for(&story.log);
    let opened =
        LogOpened { genesis: story.log, software: "cairn 0.1.0".into(), salt: Some(ByteArray::new(salt)) };
    let place = Position { log: story.log, seq: 0, prev: None, ts: START_US };
    let event = Event::seal(story.fact("log", Body::LogOpened(opened)), place).expect("a golden fact");
    assert_eq!(data_encoding::HEXLOWER.encode(event.bytes()), OPENED_WITH_SALT);
    assert_eq!(event.body().map(|body| body.kind()), Some(Kind::LogOpened));
}

/// Bytes of another length, or text in their place, must not parse as facts of the kind.
#[test]
fn keys_and_commitments_have_their_length() {
    let bytes = |n: usize| Ipld::Bytes(vec![1; n]);
    for (kind, body, whole) in [
        ("log.salted", ipld!({"commitment": bytes(16)}), true),
        ("log.salted", ipld!({"commitment": bytes(15)}), false),
        ("log.salted", ipld!({"commitment": "0123456789abcdef"}), false),
        ("log.key_rotated", ipld!({"key": bytes(32), "signature": bytes(64)}), true),
        ("log.key_rotated", ipld!({"key": bytes(33), "signature": bytes(64)}), false),
        ("log.key_rotated", ipld!({"key": bytes(32), "signature": bytes(63)}), false),
        ("log.opened", ipld!({"genesis": cid(), "software": "x", "salt": bytes(16)}), true),
        ("log.opened", ipld!({"genesis": cid(), "software": "x", "salt": bytes(17)}), false),
    ] {
        let Ipld::Map(map) = body else { panic!("a body is a map") };
        assert_eq!(Body::read(kind, &map).is_some(), whole, "{kind} {map:?}");
    }
}

fn cid() -> Ipld {
    Ipld::Link(Cid::from_digest(Codec::DagCbor, [1; 32]).into())
}
