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
    log::home::Home,
    receipt::Receipt,
};
use ipld_core::ipld::Ipld;
use serde_json::{Value, json};

use crate::{
    harness::{cairn, run, temp},
    minted::{Mint, ORIGIN, Said, archive, envelope, paused, started, succeeded},
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
    promise().seal()
}

fn promise() -> Contract {
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
}

/// Names a plan of one step that was changed so.
fn planned(mint: &mut Mint, step: &[(&str, Ipld)]) {
    let text = |text: &str| Ipld::String(text.to_owned());
    let map = |entries: &[(&str, Ipld)]| {
        Ipld::Map(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
    };
    let whole = [&[("id", text("a")), ("action", text("x")), ("task_type", text("y"))][..], step].concat();
    let steps = Ipld::List(vec![map(&whole)]);
    let plan = [("v", Ipld::Integer(1)), ("name", text("p")), ("steps", steps), ("limits", map(&[]))];
    let plan = mint.block(Block::encode(&map(&plan)));
    submitted(mint, plan);
}

fn submitted(mint: &mut Mint, plan: Cid) {
    let one = Ipld::Integer(1);
    let body = vec![("plan", Ipld::Link(plan.into())), ("steps", one.clone()), ("priority", one)];
    mint.say(Said { kind: "workflow.submitted", subject: "workflow/x", body, ..paused() });
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
fn what_is_no_payload_is_refused_as_one_whatever_was_erased() {
    let none = "names it as a payload, and it is none";
    let paying = |payload: Cid| Said { pay: vec![(payload, 3)], ..paused() };
    let gone = || envelope(&[data("abc")]).cid();
    refused("an event for a payload", none, |mint| {
        let event = mint.events[0].cid();
        mint.say(paying(event));
    });
    refused("an event for a payload, erased", none, |mint| {
        let event = mint.events[0].cid();
        mint.say(paying(event));
        mint.say(erasing(event));
    });
    refused("a raw block for a payload, erased", none, |mint| {
        let raw = Cid::of(Codec::Raw, b"abc");
        mint.say(paying(raw));
        mint.say(erasing(raw));
    });
    refused("the contract before another for a payload, erased", none, |mint| {
        let after = mint.block(Contract { prev: Some(gone()), ..promise() }.seal());
        mint.say(paying(gone()));
        called(mint, Some(after));
        mint.say(erasing(gone()));
    });
    refused("content that its erasure names itself", "names it again", |mint| {
        mint.say(paying(gone()));
        mint.say(Said { pay: vec![(gone(), 3)], ..erasing(gone()) });
    });
    refused("content that its erasure alone names", "erases what no earlier event names", |mint| {
        let payload = mint.block(envelope(&[data("abc")]));
        mint.say(Said { pay: vec![(payload, 3)], ..erasing(payload) });
    });
    refused("erased content of two lengths", "another length of this payload", |mint| {
        mint.say(paying(gone()));
        mint.say(Said { pay: vec![(gone(), 4)], ..paused() });
        mint.say(erasing(gone()));
    });
}

#[test]
fn an_event_is_neither_a_contract_nor_a_plan() {
    let none = "the call's contract is not of its form";
    refused("an event for a contract", none, |mint| {
        let event = mint.events[0].cid();
        called(mint, Some(event));
    });
    refused("an event for the contract before another", none, |mint| {
        let contract = Contract { prev: Some(mint.events[0].cid()), ..promise() };
        let contract = mint.block(contract.seal());
        called(mint, Some(contract));
    });
    refused("an event for a plan's tool", none, |mint| {
        let event = mint.events[0].cid();
        planned(mint, &[("tool", Ipld::Link(event.into()))]);
    });
    refused("an event for a plan", "the run's plan is not of its form", |mint| {
        let event = mint.events[0].cid();
        submitted(mint, event);
    });
    accepted("the contract of another log before one of this", |mint| {
        let before = Contract { name: "other".to_owned(), ..promise() }.seal().cid();
        let contract = mint.block(Contract { prev: Some(before), ..promise() }.seal());
        called(mint, Some(contract));
    });
}

#[test]
fn contracts_and_plans_out_of_their_bounds_are_refused() {
    let no_contract = "the call's contract is not of its form";
    let no_plan = "the run's plan is not of its form";
    for (name, source) in [("", "s"), ("t", "")] {
        let bad = || Contract { name: name.to_owned(), source: source.to_owned(), ..promise() }.seal();
        refused("a contract without a name or a source", no_contract, |mint| {
            let contract = mint.block(bad());
            called(mint, Some(contract));
        });
        refused("such a contract for a plan's tool", no_contract, |mint| {
            let contract = mint.block(bad());
            planned(mint, &[("tool", Ipld::Link(contract.into()))]);
        });
    }
    accepted("a plan of one step", |mint| planned(mint, &[]));
    for (key, value) in [
        ("id", Ipld::String(String::new())),
        ("id", Ipld::String("x".repeat(129))),
        ("timeout_ms", Ipld::Integer(0)),
        ("each", Ipld::Integer(10_001)),
        ("when", Ipld::Bool(false)),
    ] {
        refused(key, no_plan, |mint| planned(mint, &[(key, value)]));
    }
}

#[test]
fn an_event_is_no_block_in_the_record_of_a_run_either() {
    let later = || Said { kind: "later.kind", subject: "workflow/x", ..paused() };
    let record = |make: &dyn Fn(&mut Mint, Cid)| {
        let mut mint = Mint::new();
        let event = mint.say(later());
        make(&mut mint, event);
        archive(&mint.run("x"))
    };
    let whole = record(&|mint, _| planned(mint, &[]));
    assert!(matches!(taken("a run", &whole), Ok(Evidence::Verified { head: 3, .. })));
    let tool = record(&|mint, event| planned(mint, &[("tool", Ipld::Link(event.into()))]));
    check_refused("an event for a plan's tool", "names it as a contract, and it is none", &tool);
    let paid = record(&|mint, event| {
        planned(mint, &[]);
        mint.say(Said { pay: vec![(event, 3)], ..later() });
    });
    check_refused("an event for a payload", "it names as a payload what is none", &paid);
    let unbounded = record(&|mint, _| planned(mint, &[("each", Ipld::Integer(0))]));
    check_refused("a plan out of its bounds", "it is no event, and nothing before it names it", &unbounded);
}

/// The line of a signature of another key.
fn foreign(name: &str) -> String {
    format!("\u{2014} {name} AAAAAAA=\n")
}

#[test]
fn a_head_of_every_size_that_a_head_may_have_is_taken_and_kept() {
    let mut mint = Mint::new();
    mint.say(paused());
    let with = |more: &str| {
        let checkpoint = mint.head(2) + more;
        mint.car_of(&Manifest { checkpoint, ..mint.manifest() })
    };
    let room = 16_384 - mint.head(2).len() - foreign("").len();
    for (name, more) in [
        ("over 1,024 bytes", foreign(&"n".repeat(1024))),
        ("16,384 bytes", foreign(&"n".repeat(room))),
        ("16 signatures", foreign("n").repeat(15)),
    ] {
        let car = with(&more);
        assert!(matches!(taken(name, &car), Ok(Evidence::Verified { head: 2, .. })), "{name}");
        let dir = temp();
        import(&car[..], dir.path(), &mut |_| {}).expect("it was taken");
        let heads = Home::existing(dir.path()).expect("a log").signed_heads().expect("heads");
        assert_eq!(heads, [mint.head(2) + &more], "{name}");
        let mut verify = cairn(&["log", "verify", "--data"]);
        verify.arg(dir.path());
        run(verify).succeeded();
    }
    let none = "its checkpoint is no signed head";
    check_refused("16,385 bytes", none, &with(&foreign(&"n".repeat(room + 1))));
    check_refused("17 signatures", none, &with(&foreign("n").repeat(16)));
    check_refused("a line that is no signature", none, &with("no signature\n"));
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
