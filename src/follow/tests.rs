//! Following: what a follower takes, refuses and keeps, from honest owners, liars, and streams that break.

mod erasing;
mod lies;
pub mod owner;
mod rotating;
mod streams;

use std::{ops::ControlFlow, os::unix::fs::MetadataExt};

use super::{Refused, serve::What, wire::Reason};
use crate::{
    archive::export::{Format, Scope},
    block::Cid,
    event::{Body, Event, Fact, Position, body::LogRecovered},
    follow::{
        copy::Followed,
        driver::{FollowError, Outcome},
        rules::{Ending, Lacking},
    },
    log::{
        self, Log, Reader, Stored,
        home::Home,
        sqlite::{SqliteLog, SqliteReader},
    },
    query::{View, list::Filter},
    verify::{Checks, Report, Verdict, verify},
};
use owner::{Owner, once, once_again, temp};

/// All events of a log, and all its blocks that are there, in the order of their names.
type Content = (Vec<Vec<u8>>, Vec<(Option<crate::block::Codec>, [u8; 32], Option<Vec<u8>>)>);

pub fn content(home: &Home) -> Content {
    let reader = SqliteReader::open(&home.log_path()).expect("a log");
    let (mut events, mut blocks) = (Vec::new(), Vec::new());
    let mut event = |row: crate::log::EventRow<'_>| {
        events.push(row.bytes.to_vec());
        ControlFlow::Continue(())
    };
    reader.events(0, &mut event).expect("events");
    let mut block = |row: crate::log::BlockRow<'_>| {
        // Who came after an erasure has no row of what was erased.
        blocks.extend(row.bytes.map(|bytes| (row.codec, row.digest, Some(bytes.to_vec()))));
        ControlFlow::Continue(())
    };
    reader.blocks(0, &mut block).expect("blocks");
    blocks.sort_by_key(|(_, digest, _)| *digest);
    (events, blocks)
}

pub fn check(followed: &Home, vkey: &str) -> Report {
    verify(followed, &Checks { key: Some(vkey.to_owned()), ..Checks::default() }, &mut |_| {})
}

pub fn held(home: &Home, log: &Cid) -> u64 {
    Followed::open(home, log).map_or(0, |followed| followed.size().expect("a size"))
}

fn forked(ended: Result<Outcome, FollowError>) -> Box<super::evidence::Evidence> {
    match ended.expect("an outcome").ending {
        Ending::Forked(evidence) => evidence,
        other => panic!("{other:?} is no fork"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_followers_have_the_owners_bytes_and_go_on_where_they_were() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "first", 150, true).await;
    let (one, two) = (temp(), temp());
    let homes = [one.path(), two.path()].map(|dir| Home::open(dir).expect("a home"));
    for home in &homes {
        let outcome = once(&owner.server(), home).await.expect("an honest log is followed");
        assert_eq!((outcome.ending, outcome.before, outcome.held), (Ending::Current, 0, owner.head().size));
    }
    owner.publish("other").await;
    owner.calls(Some(tool), "second", 20, false).await;
    for home in &homes {
        let before = held(home, &owner.log());
        let outcome = once(&owner.server(), home).await.expect("it goes on");
        assert_eq!((outcome.before, outcome.held), (before, owner.head().size));
        let again = once(&owner.server(), home).await.expect("nothing is new");
        assert_eq!((again.before, again.ending), (again.held, Ending::Current));
        let followed = Followed::list(home).expect("a list").remove(0);
        assert!(content(followed.home()) == content(&owner.home), "the bytes differ");
        let report = check(followed.home(), &owner.ledger.about().vkey);
        assert_eq!(report.verdict, Verdict::Verified, "{:?}", report.faults);
        let view = View::open(followed.home()).expect("a view");
        let subject = Filter { kind: Some("call.succeeded".into()), ..Filter::default() };
        assert_eq!(view.count(&subject).expect("a count"), 170);
        let shown = followed.shown().expect("a summary");
        assert_eq!(shown["size"], owner.head().size);
        assert_eq!(shown["signed"], owner.head().size);
        assert_eq!(shown["status"], "kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_owner_erases_is_erased_here_too() {
    let owner = Owner::new(1);
    let outputs = owner.calls(None, "secret", 5, true).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&owner.server(), &home).await.expect("followed");
    let followed = Followed::open(&home, &owner.log()).expect("held");
    let block =
        |cid| SqliteReader::open(&followed.home().log_path()).expect("a log").block(cid).expect("read");
    assert!(matches!(block(&outputs[0]), Some(Stored::Present(_))));
    owner.erase(outputs[0]).await;
    owner.erase(outputs[1]).await;
    once(&owner.server(), &home).await.expect("followed");
    assert_eq!(block(&outputs[0]), Some(Stored::Erased));
    assert!(content(followed.home()) == content(&owner.home), "parts are erased with their payload");
    assert_eq!(check(followed.home(), &owner.ledger.about().vkey).verdict, Verdict::Verified);
    let file = std::fs::read(followed.home().log_path()).expect("the log's file");
    let secret = b"{\"out\":\"secret 1\"}";
    assert!(!file.windows(secret.len()).any(|bytes| bytes == secret), "the bytes are still in the file");

    // Whoever comes later is told that it was erased, and why its bytes are missing.
    let late = temp();
    let late = Home::open(late.path()).expect("a home");
    let outcome = once(&owner.server(), &late).await.expect("followed");
    assert_eq!(outcome.lacking.erased, 2);
    let followed = Followed::open(&late, &owner.log()).expect("held");
    assert_eq!(check(followed.home(), &owner.ledger.about().vkey).verdict, Verdict::Verified);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_says_who_reads_what() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "call", 3, false).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let denied = once(&owner.server_where(|_| false), &home).await;
    assert!(matches!(denied, Err(FollowError::Refused(Refused::Declined(Reason::Denied)))), "{denied:?}");
    assert_eq!(held(&home, &owner.log()), 0);
    let outcome = once(&owner.server_where(|what| what == What::Events), &home).await.expect("followed");
    assert_eq!((outcome.held, outcome.lacking.withheld), (owner.head().size, 6));
    let followed = Followed::open(&home, &owner.log()).expect("held");
    let checks = Checks { payloads: false, ..Checks::default() };
    assert_eq!(verify(followed.home(), &checks, &mut |_| {}).verdict, Verdict::Verified);
    assert_eq!(View::open(followed.home()).expect("a view").contracts().expect("contracts").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_withheld_is_asked_for_again() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    let outputs = owner.calls(Some(tool), "call", 3, true).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let events_only = owner.server_where(|what| what == What::Events);
    once(&events_only, &home).await.expect("followed");
    let followed = Followed::open(&home, &owner.log()).expect("held");
    owner.erase(outputs[1]).await;
    let outcome = once_again(&events_only, &home, 0).await.expect("followed");
    assert_eq!((outcome.lacking.withheld, outcome.again), (5, None), "the erased one is not asked for");
    let outcome = once(&owner.server(), &home).await.expect("followed");
    assert_eq!(outcome.lacking, Lacking::default(), "nothing is asked for twice unless told to");
    assert_ne!(content(followed.home()), content(&owner.home));
    let report = check(followed.home(), &owner.ledger.about().vkey);
    assert_eq!((report.verdict, report.faults_total), (Verdict::Incomplete, 5), "{report:?}");
    assert!(report.faults.iter().all(|fault| fault.fault.contains("its owner withholds it")), "{report:?}");
    let view = View::open(followed.home()).expect("a view");
    let whole = Scope::Range { from: None, to: None };
    let selected = view.select(&whole, Format::Car, &owner.head()).expect("something is selected");
    view.export(&selected, Format::Car, &mut Vec::new()).expect("what is held can be exported");

    let state = || std::fs::metadata(followed.home().state_path()).expect("a state").ino();
    let before = state();
    let outcome = once_again(&owner.server(), &home, 0).await.expect("followed");
    assert_eq!((outcome.lacking.withheld, outcome.again), (0, None));
    assert_eq!(state(), before, "the log is read all the while: its state is not made anew");
    assert_eq!(content(followed.home()), content(&owner.home), "the owner's bytes, to the last");
    let view = View::open(followed.home()).expect("a view");
    assert_eq!(view.holders(&outputs[0], 10).expect("holders").len(), 1, "the state knows of them too");
    let report = verify(followed.home(), &Checks { derived: true, ..Checks::default() }, &mut |_| {});
    assert_eq!(report.verdict, Verdict::Verified, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_late_payloads_come_in_rounds_and_what_is_held_takes_none() {
    let owner = Owner::new(1);
    owner.calls(None, "call", 700, false).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&owner.server_where(|what| what == What::Events), &home).await.expect("followed");
    let first = once_again(&owner.server(), &home, 0).await.expect("followed");
    let from = first.again.expect("not all at once");
    let rest = once_again(&owner.server(), &home, from).await.expect("followed");
    assert_eq!(rest.again, None);
    let followed = Followed::open(&home, &owner.log()).expect("held");
    assert_eq!(content(followed.home()), content(&owner.home));
    let report = verify(followed.home(), &Checks { derived: true, ..Checks::default() }, &mut |_| {});
    assert_eq!(report.verdict, Verdict::Verified, "{report:?}");
    assert_eq!(once_again(&owner.server(), &home, 0).await.expect("followed").again, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_proven_and_ends_the_following() {
    let owner = Owner::new(1);
    owner.calls(None, "common", 10, false).await;
    let (left, right) = owner.twin();
    left.calls(None, "left", 5, false).await;
    for (more, reverse) in [(5, false), (4, false), (0, true)] {
        right.calls(None, "right", more, false).await;
        let (first, second) = if reverse { (&right, &left) } else { (&left, &right) };
        let dir = temp();
        let home = Home::open(dir.path()).expect("a home");
        once(&first.server(), &home).await.expect("followed");
        let size = held(&home, &first.log());
        let evidence = forked(once(&second.server(), &home).await);
        let sizes = evidence.check().expect("it proves itself");
        assert_eq!((sizes.held, sizes.told), (first.head().size, second.head().size));
        assert_eq!(held(&home, &first.log()), size, "nothing of the other branch is kept");
        let ended = once(&first.server(), &home).await;
        assert!(matches!(ended, Err(FollowError::Quarantined(_))), "{ended:?}");
        let followed = Followed::open(&home, &first.log()).expect("held");
        assert_eq!(followed.evidence().expect("read"), Some(*evidence.clone()));
        assert!(followed.lift().expect("lifted"));
        assert_eq!(once(&first.server(), &home).await.expect("followed again").ending, Ending::Current);
        let mut agreeing = *evidence;
        agreeing.told.clone_from(&agreeing.held);
        assert!(agreeing.check().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_head_is_no_fork() {
    let owner = Owner::new(1);
    owner.calls(None, "common", 10, false).await;
    let (ahead, behind) = owner.twin();
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    // Opening again may add the same events to both, or none.
    once(&behind.server(), &home).await.expect("followed");
    let told = behind.head().size;
    drop(ahead);
    let older = behind.server();
    let stopped = behind.stop();
    let newer = Owner::reopen(stopped, 1);
    newer.calls(None, "more", 5, false).await;
    once(&newer.server(), &home).await.expect("followed");
    let outcome = once(&older, &home).await.expect("an outcome");
    assert_eq!(outcome.ending, Ending::Behind { told });
    let outcome = once_again(&older, &home, 3).await.expect("an outcome");
    assert_eq!((outcome.ending, outcome.again), (Ending::Behind { told }, Some(3)), "it is asked for later");
    assert_eq!(outcome.held, newer.head().size);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_behind_the_head_of_a_copy_is_told_and_not_followed_on() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "first", 3, true).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    once(&owner.server(), &home).await.expect("an honest log is followed");
    let followed = Followed::open(&home, &owner.log()).expect("a copy");
    // An event of the owner's own that stands elsewhere: well formed, and not under the head at this place.
    let path = followed.home().log_path();
    let reader = SqliteReader::open(&path).expect("reads");
    let tip = reader.tip().expect("reads").expect("events");
    let last = reader.event_at(tip.seq).expect("reads").expect("an event");
    let place = Position { log: last.fields().log, seq: tip.seq + 1, prev: Some(tip.cid), ts: tip.ts };
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: last.fields().actor.clone(),
        subject: "log".to_owned(),
        tool: None,
        payloads: Vec::new(),
        body: Body::LogRecovered(LogRecovered { interrupted: 1, attempts: 0 }),
    };
    let forged = Event::seal(fact, place).expect("a small event");
    let batch = log::Batch { events: vec![forged], ..log::Batch::default() };
    SqliteLog::open(&path, true).expect("opens").append(Some(tip.cid), &batch).expect("appends");

    let report = check(followed.home(), &owner.ledger.about().vkey);
    assert_eq!(report.verdict, Verdict::Invalid, "{report:?}");
    let refused = once(&owner.server(), &home).await;
    assert!(matches!(refused, Err(FollowError::Refused(Refused::Root { .. }))), "{refused:?}");
    owner.calls(Some(tool), "second", 3, true).await;
    let refused = once(&owner.server(), &home).await;
    // What comes next does not follow what was put there; where nothing comes, the head is not over it.
    let unlinked = matches!(refused, Err(FollowError::Refused(Refused::Link { .. } | Refused::Root { .. })));
    assert!(unlinked, "{refused:?}");
}
