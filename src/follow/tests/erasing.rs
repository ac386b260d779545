//! Erasures in followed logs: what goes here too, what stays whatever they name, and what comes again.
//!
//! Invariant: after every pass the copy verifies, and its state is the one that its log gives.

use std::ops::ControlFlow;

use super::{
    check, content,
    owner::{Owner, once, once_again, once_keeping, temp},
};
use crate::{
    block::{Block, Cid, Codec, payload::Payload},
    event::{Actor, Body, Event, Fact, Position, body::PayloadErased},
    follow::{copy::Followed, store::Store},
    log::{
        Reader, Stored,
        home::Home,
        sqlite::{Copied, SqliteLog, SqliteReader},
    },
    verify::{Checks, Verdict, verify},
};

fn block(home: &Home, cid: &Cid) -> Option<Stored> {
    SqliteReader::open(&home.log_path()).expect("a log").block(cid).expect("read")
}

fn is_there(home: &Home, cid: &Cid) -> bool {
    matches!(block(home, cid), Some(Stored::Present(_)))
}

/// The copy verifies, its state is the one that its log gives, and it has the owner's blocks.
fn agrees(followed: &Home, owner: &Owner) {
    let checks = Checks { derived: true, ..Checks::default() };
    let report = verify(followed, &checks, &mut |_| {});
    assert_eq!(report.verdict, Verdict::Verified, "{report:?}");
    assert_eq!(check(followed, &owner.ledger.about().vkey).verdict, Verdict::Verified);
    assert!(content(followed) == content(&owner.home), "the bytes differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_recorded_again_comes_again() {
    let owner = Owner::new(1);
    let output = owner.calls(None, "secret", 1, true).await[0];
    let [early, late, between] = [temp(), temp(), temp()];
    let [early, late, between] =
        [early.path(), late.path(), between.path()].map(|dir| Home::open(dir).expect("a home"));
    let copy = |home: &Home| Followed::open(home, &owner.log()).expect("held").home().clone();
    once(&owner.server(), &early).await.expect("followed");
    assert!(is_there(&copy(&early), &output));
    owner.erase(output).await;
    once(&owner.server(), &early).await.expect("followed");
    once(&owner.server(), &between).await.expect("followed");
    assert_eq!(block(&copy(&early), &output), Some(Stored::Erased));
    assert!(!is_there(&copy(&between), &output));
    agrees(&copy(&early), &owner);
    agrees(&copy(&between), &owner);

    assert_eq!(owner.calls(None, "secret", 1, true).await, [output]);
    for home in [&early, &between, &late] {
        once(&owner.server(), home).await.expect("followed");
        assert!(is_there(&copy(home), &output), "it did not come again");
        agrees(&copy(home), &owner);
    }
    // Erased and recorded again between two passes, it is there all the while.
    owner.erase(output).await;
    owner.calls(None, "secret", 1, true).await;
    let outcome = once(&owner.server(), &early).await.expect("followed");
    assert_eq!(outcome.lacking, Default::default());
    agrees(&copy(&early), &owner);
    // The last erasure holds.
    owner.erase(output).await;
    for home in [&early, &between, &late] {
        once(&owner.server(), home).await.expect("followed");
        assert!(!is_there(&copy(home), &output));
        agrees(&copy(home), &owner);
        let again = once_again(&owner.server(), home, 0).await.expect("followed");
        assert_eq!(again.lacking, Default::default(), "what was erased is not asked for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_keeps_what_is_erased_has_it_and_still_verifies() {
    let owner = Owner::new(1);
    let output = owner.calls(None, "secret", 1, true).await[0];
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once_keeping(&owner.server(), &home).await.expect("followed");
    owner.erase(output).await;
    once_keeping(&owner.server(), &home).await.expect("followed");
    let followed = Followed::open(&home, &owner.log()).expect("held");
    assert!(is_there(followed.home(), &output));
    assert_eq!(check(followed.home(), &owner.ledger.about().vkey).verdict, Verdict::Verified);
    // Told otherwise, it takes away what it had kept.
    once(&owner.server(), &home).await.expect("followed");
    assert_eq!(block(followed.home(), &output), Some(Stored::Erased));
    agrees(followed.home(), &owner);
}

/// Until the reader ends, the log's files hold what was erased; after it, no more events need come.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_reader_held_up_is_gone_from_the_files_after_the_next_pass() {
    let owner = Owner::new(1);
    let output = owner.calls(None, "secret", 1, false).await[0];
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&owner.server(), &home).await.expect("followed");
    owner.erase(output).await;
    let followed = Followed::open(&home, &owner.log()).expect("held");
    let reader = SqliteReader::open(&followed.home().log_path()).expect("a log");
    let here = tokio::runtime::Handle::current();
    let read = reader.events(0, &mut |_| {
        let passed = tokio::task::block_in_place(|| here.block_on(once(&owner.server(), &home)));
        passed.expect("a reader keeps no pass from its end");
        ControlFlow::Break(())
    });
    read.expect("events");
    drop(reader);
    assert_eq!(block(followed.home(), &output), Some(Stored::Erased));
    once(&owner.server(), &home).await.expect("followed");
    let secret = b"{\"out\":\"secret 0\"}";
    for file in ["log.db", "log.db-wal"] {
        let bytes = std::fs::read(followed.home().dir().join(file)).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|bytes| bytes == secret), "it is still in {file}");
    }
    agrees(followed.home(), &owner);
}

/// Adds events to a copy that erase these names, one each, and carries the erasures out.
fn erase_in_copy(follower: &Home, followed: &Followed, names: &[Cid]) {
    let path = followed.home().log_path();
    let tip = SqliteReader::open(&path).and_then(|reader| reader.tip()).expect("read").expect("events");
    let mut prev = tip.cid;
    let events = (tip.seq + 1..).zip(names).map(|(seq, payload)| {
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: Actor { id: "owner".into(), role: "operator".into(), proof: None },
            subject: "log".into(),
            tool: None,
            payloads: Vec::new(),
            body: Body::PayloadErased(PayloadErased { payload: *payload, basis: "test".into() }),
        };
        let place = Position { log: followed.log, seq, prev: Some(prev), ts: tip.ts };
        let event = Event::seal(fact, place).expect("a small fact");
        prev = event.cid();
        Copied { seq, cid: event.cid(), ts: tip.ts, bytes: event.bytes().to_vec() }
    });
    let events: Vec<Copied> = events.collect();
    SqliteLog::open(&path, false).and_then(|mut log| log.copy(&[], &events)).expect("kept");
    let mut store = Store::open(follower, &followed.log).expect("nobody follows it");
    store.fold().and_then(|()| store.erase()).expect("carried out");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_takes_nothing_but_payloads_whatever_it_names() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    let outputs = owner.calls(Some(tool), "call", 3, true).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&owner.server(), &home).await.expect("followed");
    let followed = Followed::open(&home, &owner.log()).expect("held");
    let copy = followed.home();
    let reader = SqliteReader::open(&copy.log_path()).expect("a log");
    let Some(Stored::Present(large)) = block(copy, &outputs[0]) else { panic!("it is held") };
    let part = crate::block::decode::<Payload>(&large).ok().and_then(|payload| payload.parts);
    let part = part.expect("it is large")[0];
    let event = reader.event_at(2).expect("read").expect("an event").cid();
    let raw = Cid::from_digest(Codec::Raw, *outputs[1].digest());
    let unknown = Block::encode(&"nowhere").cid();
    let before = content(copy);
    erase_in_copy(&home, &followed, &[owner.log(), tool, event, part, raw, unknown]);
    let (events, blocks) = content(copy);
    assert!(events.starts_with(&before.0), "events were changed");
    assert!(blocks == before.1, "a block was erased that is no payload");
    assert!(followed.genesis().expect("read").is_some());

    erase_in_copy(&home, &followed, &[outputs[1], outputs[0]]);
    for (cid, left) in [(outputs[0], false), (outputs[1], false), (part, false), (outputs[2], true)] {
        assert_eq!(is_there(copy, &cid), left, "{cid}");
    }
}
