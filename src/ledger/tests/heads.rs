//! The head a log must stand under: what is refused, and how an operator goes on.
//!
//! Invariant: nothing here has the log's key but the node itself and its operator.

use super::*;
use crate::{
    event::{Event, Position, body::LogRecovered},
    ledger::fitting::HeadError,
    ledger::heads::{TakenOver, take_over},
    log::{Batch, Log},
};

/// A log of three events, closed.
fn closed_log() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    closed((ledger, running));
    dir
}

/// Puts `count` well-formed events behind the last one, as somebody who has the file and no key can.
fn forge(dir: &Path, count: u64) {
    let mut log = SqliteLog::open(&dir.join("log.db"), true).expect("opens");
    for _ in 0..count {
        let tip = log.reader().expect("reads").tip().expect("reads").expect("has events");
        let last = log.reader().expect("reads").event_at(tip.seq).expect("reads").expect("an event");
        let fact = commit::log_fact(node(), Body::LogRecovered(LogRecovered { interrupted: 9, attempts: 0 }));
        let place = Position { log: last.fields().log, seq: tip.seq + 1, prev: Some(tip.cid), ts: tip.ts };
        let event = Event::seal(fact, place).expect("a small fact");
        let batch = Batch { events: vec![event], ..Batch::default() };
        log.append(Some(tip.cid), &batch).expect("appends");
    }
}

fn refused(dir: &Path) -> HeadError {
    match open(dir) {
        Err(OpenError::Standing(refused)) => refused,
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn take(dir: &Path) -> Option<TakenOver> {
    let home = Home::open(dir).expect("opens");
    let mut folder = opening::rebuild(&home, &mut |_| {}).expect("rebuilds");
    take_over(&home, &mut folder).expect("it is signed")
}

#[test]
fn events_that_no_head_covers_are_refused_and_not_signed() {
    for count in [1, 2] {
        let dir = closed_log();
        let heads = fs::read(dir.path().join("head")).expect("reads");
        forge(dir.path(), count);
        for _ in 0..2 {
            assert_eq!(refused(dir.path()), HeadError::Unsigned { signed: 3, found: 3 + count });
        }
        assert_eq!(fs::read(dir.path().join("head")).expect("reads"), heads, "nothing was signed");
    }
    let message = HeadError::Unsigned { signed: 3, found: 5 }.to_string();
    assert!(message.contains("events 3 to 4 stand under no signed head"), "{message}");
    assert!(message.contains("rebuild --sign"), "{message}");
}

#[test]
fn what_an_operator_takes_over_is_on_record() {
    let dir = closed_log();
    forge(dir.path(), 2);
    assert_eq!(take(dir.path()), Some(TakenOver { from_seq: 3, events: 2 }));
    assert_eq!(kinds(dir.path())[5], "log.taken_over");
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    let event = reader.event_at(5).expect("reads").expect("an event");
    assert_eq!(event.fields().actor, commit::operator());
    let Some(Body::LogTakenOver(facts)) = event.body() else { panic!("it is readable") };
    assert_eq!((facts.from_seq, facts.events), (3, 2));
    closed(opened(dir.path()));
    assert_eq!(take(dir.path()), None, "what stands under its head is not taken over");
    closed(opened(dir.path()));
}

#[test]
fn a_log_without_a_readable_head_is_opened_only_once_it_is_taken_over() {
    let dir = closed_log();
    tamper(dir.path(), "DELETE FROM head");
    for head in [&b""[..], &[0; 2048], &[0xa5; 2048]] {
        fs::write(dir.path().join("head"), head).expect("writes");
        assert_eq!(refused(dir.path()), HeadError::Headless { found: 3 }, "{} bytes", head.len());
    }
    assert_eq!(take(dir.path()), Some(TakenOver { from_seq: 0, events: 3 }));
    closed(opened(dir.path()));
}

#[test]
fn either_of_the_two_heads_is_enough() {
    let dir = closed_log();
    fs::remove_file(dir.path().join("head")).expect("removes");
    closed(opened(dir.path()));
    // What a log from before heads stood in it looks like.
    tamper(dir.path(), "DROP TABLE head; PRAGMA user_version = 1");
    closed(opened(dir.path()));
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    assert!(reader.head().expect("reads").is_some_and(|note| note.lines().nth(1) == Some("3")));
}

#[test]
fn a_head_in_the_log_is_over_its_last_commit_though_the_file_is_behind() {
    let dir = closed_log();
    let behind = fs::read(dir.path().join("head")).expect("reads");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c2", None);
    closed((ledger, running));
    // What a kill between the commit and the fold leaves.
    fs::write(dir.path().join("head"), behind).expect("writes");
    closed(opened(dir.path()));
}

#[test]
fn a_head_of_another_history_beside_the_log_is_a_fork_however_old_it_is() {
    let dir = closed_log();
    let other = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(other.path().join("keys")).expect("makes a directory");
    for file in ["log.db", "head", "keys/log.key", "keys/salt.key"] {
        fs::copy(dir.path().join(file), other.path().join(file)).expect("copies");
    }
    for (dir, ids) in [(&dir, &["c2", "c3"][..]), (&other, &["c4"])] {
        let (ledger, running) = opened(dir.path());
        for id in ids {
            echo(&ledger, id, None);
        }
        closed((ledger, running));
    }
    fs::copy(other.path().join("head"), dir.path().join("head")).expect("copies");
    assert_eq!(refused(dir.path()), HeadError::Forked { signed: 5 });
}
