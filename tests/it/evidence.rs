//! Archives of whole logs, signed by their own key and out of form: what is right is taken, all else refused.
//!
//! Each is made here, and taken in by the library and by the command line.

use std::{collections::BTreeMap, fs};

use cairn::{
    archive::{
        evidence::Evidence,
        import::{Imported, import},
        writing::Manifest,
    },
    block::{Block, Cid, Codec},
    contract::Contract,
    receipt::Receipt,
};
use ipld_core::ipld::Ipld;
use serde_json::{Value, json};

use crate::{
    harness::{cairn, run, temp},
    minted::{Mint, ORIGIN, Said, envelope, paused, started, succeeded},
};

/// Bytes of a part that is not the last.
const FULL: usize = 262_144;

/// Takes an archive in, by the library and by the command line; gives why it is refused, if it is.
fn taken(name: &str, car: &[u8]) -> Result<Evidence, String> {
    let dir = temp();
    let inside = import(car, &dir.path().join("library"), &mut |_| {});
    let inside = match inside {
        Ok(Imported::Log(_, evidence)) => Ok(evidence),
        Ok(Imported::Run(kept)) => Ok(kept.evidence),
        Err(err) => Err(cairn::error::chain(&err)),
    };
    let file = dir.path().join("archive.car");
    fs::write(&file, car).expect("the directory can be written");
    let mut command = cairn(&["log", "import", "--data"]);
    let data = dir.path().join("outside");
    command.arg(&data).arg(&file);
    let outside = run(command);
    assert_eq!(outside.status.success(), inside.is_ok(), "{name}: {inside:?}, {outside:?}");
    match &inside {
        Ok(evidence) => assert!(outside.stderr.contains(&evidence.to_string()), "{name}: {outside:?}"),
        Err(_) => {
            assert!(matches!(outside.status.code(), Some(20 | 40 | 50)), "{name}: {outside:?}");
            let left = ["library", "outside"].map(|made| dir.path().join(made).exists());
            assert_eq!(left, [false; 2], "{name}: nothing is left of what is refused");
        }
    }
    inside
}

fn refused(name: &str, why: &str, make: impl FnOnce(&mut Mint)) {
    let mut mint = Mint::new();
    make(&mut mint);
    check_refused(name, why, &mint.car());
}

fn check_refused(name: &str, why: &str, car: &[u8]) {
    let said = taken(name, car).expect_err(name);
    assert!(said.contains(why), "{name}: {said}, not {why}");
}

fn accepted(name: &str, make: impl FnOnce(&mut Mint)) {
    let mut mint = Mint::new();
    make(&mut mint);
    let (head, origin) = (mint.events.len() as u64, ORIGIN.to_owned());
    assert_eq!(taken(name, &mint.car()), Ok(Evidence::Verified { head, origin }), "{name}");
}

fn contract() -> Block {
    Contract {
        v: 1,
        name: "t".to_owned(),
        source: "s".to_owned(),
        version: String::new(),
        description: String::new(),
        input: b"{}".to_vec(),
        output: None,
        annotations: None,
        effects: BTreeMap::new(),
        prev: None,
    }
    .seal()
}

fn called(mint: &mut Mint, tool: Option<Cid>) {
    let start = mint.say(started(tool));
    mint.say(succeeded(start, tool));
}

/// Names a payload of `len` bytes.
fn paid(mint: &mut Mint, envelope: Block, len: usize) {
    let cid = mint.block(envelope);
    mint.say(Said { pay: vec![(cid, len as u64)], ..paused() });
}

/// A payload of plain parts, each of a length; no two have the same bytes.
fn in_parts(mint: &mut Mint, lens: &[usize]) {
    let parts = lens.iter().enumerate().map(|(nth, len)| Block::new(Codec::Raw, vec![nth as u8; *len]));
    let parts: Vec<Ipld> = parts.map(|part| Ipld::Link(mint.block(part).into())).collect();
    paid(mint, envelope(&[("parts", Ipld::List(parts))]), lens.iter().sum());
}

fn data(text: &str) -> (&'static str, Ipld) {
    ("data", Ipld::Bytes(text.as_bytes().to_vec()))
}

fn erasing(payload: Cid) -> Said<'static> {
    let body = vec![("payload", Ipld::Link(payload.into())), ("basis", Ipld::String("x".to_owned()))];
    Said { kind: "payload.erased", subject: "log", body, ..paused() }
}

#[test]
fn whole_logs_under_their_head_are_taken() {
    accepted("three pauses", |mint| (0..3).for_each(|_| _ = mint.say(paused())));
    accepted("a call under its contract", |mint| {
        let contract = mint.block(contract());
        called(mint, Some(contract));
    });
    accepted("content in its envelope", |mint| paid(mint, envelope(&[data("abc")]), 3));
    accepted("content in parts", |mint| in_parts(mint, &[FULL, FULL, 1]));
    accepted("erased content, absent", |mint| {
        let payload = envelope(&[data("abc")]).cid();
        mint.say(Said { pay: vec![(payload, 3)], ..paused() });
        mint.say(erasing(payload));
    });
    accepted("content recorded again", |mint| {
        let payload = envelope(&[data("abc")]);
        paid(mint, payload.clone(), 3);
        mint.say(erasing(payload.cid()));
        mint.say(Said { pay: vec![(payload.cid(), 3)], ..paused() });
    });
    accepted("a kind nobody knows", |mint| {
        let body = vec![("any", Ipld::Null)];
        mint.say(Said { kind: "later.kind", subject: "anything", body, ..paused() });
    });
}

#[test]
fn blocks_that_are_not_what_they_are_named_as_are_refused() {
    let no_payload = "names it as a payload, and it is none";
    refused("the contract only as a raw block", "the call's contract is missing", |mint| {
        let contract = contract();
        mint.block(Block::new(Codec::Raw, contract.bytes().to_vec()));
        called(mint, Some(contract.cid()));
    });
    refused("a payload for a contract", "the call's contract is not of its form", |mint| {
        let payload = mint.block(envelope(&[data("abc")]));
        called(mint, Some(payload));
    });
    refused("a contract for a payload", no_payload, |mint| paid(mint, contract(), 3));
    refused("the genesis for a payload", no_payload, |mint| {
        let genesis = mint.log();
        mint.say(Said { pay: vec![(genesis, 3)], ..paused() });
    });
    refused("another length", "another length than its event says", |mint| {
        paid(mint, envelope(&[data("abc")]), 4);
    });
    refused("a fifth key", no_payload, |mint| {
        paid(mint, envelope(&[data("abc"), ("x", Ipld::Integer(1))]), 3)
    });
    refused("a null for a key left out", no_payload, |mint| {
        paid(mint, envelope(&[data("abc"), ("parts", Ipld::Null)]), 3);
    });
    refused("a salt of 15 bytes", "salt", |mint| {
        paid(mint, envelope(&[data("abc"), ("salt", Ipld::Bytes(vec![0; 15]))]), 3);
    });
    refused("a version nobody knows", "version", |mint| {
        paid(mint, envelope(&[data("abc"), ("v", Ipld::Integer(9))]), 3);
    });
    refused("neither data nor parts", "neither content nor parts", |mint| paid(mint, envelope(&[]), 0));
    refused("a block nobody names", "nothing in it names", |mint| {
        mint.block(envelope(&[data("abc")]));
    });
    refused("an event of another log", "nothing in it names", |mint| {
        let other = Mint::golden(1).events[0].clone();
        mint.block(other);
    });
    refused("no payload, and no erasure", "the payload is missing", |mint| {
        let payload = envelope(&[data("abc")]).cid();
        mint.say(Said { pay: vec![(payload, 3)], ..paused() });
    });
    refused("erased, named again, and absent", "names it again", |mint| {
        let payload = envelope(&[data("abc")]).cid();
        mint.say(Said { pay: vec![(payload, 3)], ..paused() });
        mint.say(erasing(payload));
        mint.say(Said { pay: vec![(payload, 3)], ..paused() });
    });
}

#[test]
fn parts_that_break_the_format_are_refused() {
    let length = "another length than its place asks for";
    refused("a short part before the last", length, |mint| in_parts(mint, &[5, FULL]));
    refused("one part", "one part alone", |mint| in_parts(mint, &[FULL]));
    refused("an empty part", "another length", |mint| in_parts(mint, &[FULL, 0]));
    refused("a part that is too long", "another length", |mint| in_parts(mint, &[FULL, FULL + 1]));
    refused("a part that is missing", "is missing", |mint| {
        in_parts(mint, &[FULL, 7]);
        mint.blocks.remove(1);
    });
    refused("parts that are not raw", "no raw block", |mint| {
        let parts = vec![Ipld::Link(mint.log().into()); 2];
        paid(mint, envelope(&[("parts", Ipld::List(parts))]), 10);
    });
    refused("a block over 256 KiB", "bound of 262144 bytes", |mint| {
        paid(mint, envelope(&[("data", Ipld::Bytes(vec![0; FULL + 1]))]), FULL + 1);
    });
    for count in [257, 300, 40_000] {
        refused("one block in many places", "over 256", |mint| {
            let part = mint.block(Block::new(Codec::Raw, vec![7; FULL]));
            let parts = vec![Ipld::Link(part.into()); count];
            paid(mint, envelope(&[("parts", Ipld::List(parts))]), 256 * FULL);
        });
    }
}

#[test]
fn events_that_break_the_rules_of_their_kind_are_refused() {
    let nothing = "erases what no earlier event names as a payload";
    let schema = "not what the schema of its kind says";
    refused("an empty body", schema, |mint| _ = mint.say(Said { body: vec![], ..started(None) }));
    refused("a fact too many", schema, |mint| {
        mint.say(Said { body: vec![("more", Ipld::Null)], ..paused() });
    });
    refused("a subject of another kind", "the subject is not of its kind", |mint| {
        mint.say(Said { subject: "log", ..paused() });
    });
    refused("an ending under another subject", "under another subject or contract", |mint| {
        let start = mint.say(started(None));
        mint.say(Said { subject: "call/2", ..succeeded(start, None) });
    });
    refused("an ending under a contract", "under another subject or contract", |mint| {
        let contract = mint.block(contract());
        let start = mint.say(started(None));
        mint.say(succeeded(start, Some(contract)));
    });
    refused("two endings", "ends a call that is not open", |mint| {
        let start = mint.say(started(None));
        mint.say(succeeded(start, None));
        mint.say(succeeded(start, None));
    });
    refused("the genesis erased", nothing, |mint| _ = mint.say(erasing(mint.log())));
    refused("an event erased", nothing, |mint| _ = mint.say(erasing(mint.events[0].cid())));
    refused("a contract erased", nothing, |mint| {
        let contract = mint.block(contract());
        called(mint, Some(contract));
        mint.say(erasing(contract));
    });
    refused("what nobody knows erased", nothing, |mint| _ = mint.say(erasing(contract().cid())));
    refused("a payload erased before it is named", nothing, |mint| {
        let payload = envelope(&[data("abc")]);
        mint.say(erasing(payload.cid()));
        paid(mint, payload, 3);
    });
    refused("a part erased", nothing, |mint| {
        in_parts(mint, &[FULL, 7]);
        let part = mint.blocks[1].cid();
        mint.say(erasing(part));
    });
    refused("the log opened twice", "log.opened stands behind the first event", |mint| mint.open(mint.log()));
    let mut signed_short = Mint::new();
    (0..3).for_each(|_| _ = signed_short.say(paused()));
    let short = Manifest { checkpoint: signed_short.head(1), ..signed_short.manifest() };
    check_refused("a head over the first event", "stand under no signed head", &signed_short.car_of(&short));
    let mut other = Mint::empty();
    other.open(contract().cid());
    check_refused("another genesis", "log.opened names another genesis", &other.car());
    let mut none = Mint::empty();
    none.say(paused());
    check_refused("no log.opened", "the first event is not log.opened", &none.car());
}

#[test]
fn manifests_of_other_forms_are_refused() {
    let mut mint = Mint::new();
    mint.say(paused());
    let manifest = |change: &dyn Fn(&mut BTreeMap<String, Ipld>)| {
        let map = ipld_core::serde::to_ipld(mint.manifest()).expect("a manifest is ipld");
        let Ipld::Map(mut map) = map else { panic!("a manifest is a map") };
        change(&mut map);
        mint.car_of(&Ipld::Map(map))
    };
    let none = "its root is no manifest";
    for v in [0, 2, 3] {
        let car = manifest(&|map| drop(map.insert("v".to_owned(), Ipld::Integer(v))));
        check_refused("another version", none, &car);
    }
    check_refused("one key more", none, &manifest(&|map| drop(map.insert("x".to_owned(), Ipld::Null))));
    check_refused("a null", none, &manifest(&|map| drop(map.insert("subject".to_owned(), Ipld::Null))));
    for key in ["v", "log", "from", "to", "count", "checkpoint"] {
        check_refused("one key less", none, &manifest(&|map| drop(map.remove(key))));
    }
    let other = Mint::golden(2).head(2);
    let car = manifest(&|map| drop(map.insert("checkpoint".to_owned(), Ipld::String(other.clone()))));
    assert!(taken("the head of another log", &car).is_err());
}

#[test]
fn a_receipt_that_says_something_twice_is_refused() {
    let mint = Mint::golden(5);
    let hash = |seq: usize| cairn::merkle::leaf_hash(&mint.events[seq].cid());
    let node = cairn::merkle::node_hash;
    let proof = [hash(2), node(&hash(0), &hash(1)), hash(4)];
    let bytes = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let receipt = json!({
        "v": 1,
        "cid": mint.events[3].cid().to_string(),
        "event": bytes(mint.events[3].bytes()),
        "genesis": bytes(mint.genesis.bytes()),
        "index": 3,
        "proof": proof.iter().map(|hash| bytes(hash)).collect::<Vec<_>>(),
        "checkpoint": mint.head(5),
    });
    let dir = temp();
    let verified = |text: &str| {
        let inside = Receipt::read(text.as_bytes())
            .is_ok_and(|receipt| receipt.verify(mint.signer.verifier()).is_ok());
        let file = dir.path().join("receipt.json");
        fs::write(&file, text).expect("the directory can be written");
        let mut command = cairn(&["receipt", "verify"]);
        command.arg(&file).args(["--key", &mint.signer.vkey()]);
        assert_eq!(run(command).status.success(), inside, "{text}");
        inside
    };
    let good = receipt.to_string();
    assert!(verified(&good));
    for (key, value) in receipt.as_object().expect("a receipt is an object") {
        let twice = good.replacen('{', &format!("{{{}:{value},", Value::String(key.clone())), 1);
        assert!(!verified(&twice), "{key} stands twice");
    }
    assert!(!verified(&good.replacen('{', "{\"more\":1,", 1)));
}
