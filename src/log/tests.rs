//! The contract of the log: what every store behind it must do. Each test runs against each implementation.

use std::{ops::ControlFlow, path::Path};

use super::{sqlite::SqliteLog, *};
use crate::{
    block::{
        Codec,
        payload::{JSON, Payload, SaltKey},
    },
    event::{Actor, Body, Fact, Place, body::LogRecovered},
};

type Opened = fn(&Path) -> Box<dyn Log>;

/// Every store there is.
const STORES: &[(&str, Opened)] =
    &[("sqlite", |dir| Box::new(SqliteLog::open(&dir.join("log.db"), true).expect("a new log opens")))];

fn on_every_store(check: impl Fn(Opened, &Path)) {
    for (name, open) in STORES {
        println!("store: {name}");
        let dir = tempfile::tempdir().expect("a directory");
        check(*open, dir.path());
    }
}

fn event(seq: u64, prev: Option<Cid>, cause: Option<Cid>) -> Event {
    let fact = Fact {
        cause,
        refs: Vec::new(),
        actor: Actor { id: "a".into(), role: "system".into(), proof: None },
        subject: "log".into(),
        tool: None,
        payloads: Vec::new(),
        body: Body::LogRecovered(LogRecovered { interrupted: seq, attempts: 0 }),
    };
    let log = Cid::of(Codec::DagCbor, b"genesis");
    Event::seal(fact, Place { log, seq, prev, ts: seq }).expect("a small fact")
}

/// `n` events, each the next of the one before.
fn chain(n: u64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for seq in 0..n {
        events.push(event(seq, events.last().map(Event::cid), None));
    }
    events
}

fn batch(events: &[Event]) -> Batch {
    Batch { events: events.to_vec(), ..Batch::default() }
}

fn read(reader: &dyn Reader) -> Vec<u64> {
    let mut seqs = Vec::new();
    reader
        .events(0, &mut |row| {
            assert_eq!(Cid::of(Codec::DagCbor, row.bytes).digest(), &row.digest);
            seqs.push(row.seq);
            ControlFlow::Continue(())
        })
        .expect("the log reads");
    seqs
}

#[test]
fn events_are_read_back_as_written_after_opening_again() {
    on_every_store(|open, dir| {
        let events = chain(5);
        open(dir).append(None, &batch(&events)).expect("appends");
        let reader = open(dir).reader().expect("reads");
        assert_eq!(read(reader.as_ref()), [0, 1, 2, 3, 4]);
        assert_eq!(reader.event(&events[3].cid()).expect("reads").as_ref(), Some(&events[3]));
        assert_eq!(reader.seq_of(&events[3].cid()).expect("reads"), Some(3));
        assert_eq!(reader.event_at(9).expect("reads"), None);
        let tip = reader.tip().expect("reads").expect("has a last event");
        assert_eq!((tip.seq, tip.cid), (4, events[4].cid()));
    });
}

#[test]
fn an_append_at_another_head_than_expected_is_a_conflict_and_leaves_nothing() {
    on_every_store(|open, dir| {
        let events = chain(3);
        let mut log = open(dir);
        log.append(None, &batch(&events[..1])).expect("appends");
        let refused = log.append(None, &batch(&events[1..]));
        assert!(matches!(refused, Err(LogError::Conflict)), "{refused:?}");
        log.append(Some(events[0].cid()), &batch(&events[1..])).expect("appends");
        assert_eq!(read(log.reader().expect("reads").as_ref()), [0, 1, 2]);
    });
}

#[test]
fn the_head_of_a_batch_takes_the_place_of_the_one_before_with_its_events_or_not_at_all() {
    on_every_store(|open, dir| {
        let events = chain(3);
        let with = |events: &[Event], head: &str| Batch { head: Some(head.to_owned()), ..batch(events) };
        let mut log = open(dir);
        let reader = log.reader().expect("reads");
        assert_eq!(reader.head().expect("reads"), None);
        log.append(None, &with(&events[..1], "one")).expect("appends");
        assert_eq!(reader.head().expect("reads").as_deref(), Some("one"));
        let refused = log.append(None, &with(&events[1..], "three"));
        assert!(matches!(refused, Err(LogError::Conflict)), "{refused:?}");
        assert_eq!(reader.head().expect("reads").as_deref(), Some("one"));
        log.append(Some(events[0].cid()), &with(&events[1..], "three")).expect("appends");
        assert_eq!(open(dir).reader().expect("reads").head().expect("reads").as_deref(), Some("three"));
    });
}

#[test]
fn appending_twice_is_appending_once() {
    on_every_store(|open, dir| {
        let events = chain(3);
        let mut log = open(dir);
        log.append(None, &batch(&events)).expect("appends");
        log.append(None, &batch(&events)).expect("changes nothing");
        assert_eq!(read(log.reader().expect("reads").as_ref()), [0, 1, 2]);
    });
}

#[test]
fn an_event_whose_cause_is_not_stored_is_refused_with_its_whole_batch() {
    on_every_store(|open, dir| {
        let first = event(0, None, None);
        let unknown = Cid::of(Codec::DagCbor, b"nowhere");
        let orphan = event(1, Some(first.cid()), Some(unknown));
        let mut log = open(dir);
        let refused = log.append(None, &batch(&[first.clone(), orphan]));
        assert!(matches!(refused, Err(LogError::Orphan { .. })), "{refused:?}");
        assert!(read(log.reader().expect("reads").as_ref()).is_empty());
        let child = event(1, Some(first.cid()), Some(first.cid()));
        log.append(None, &batch(&[first, child])).expect("a cause in the same batch is stored");
    });
}

#[test]
fn a_block_is_stored_once_and_erased_for_good() {
    on_every_store(|open, dir| {
        let payload = Payload::seal(&SaltKey::new([1; 32]), JSON, b"{}").expect("small").envelope;
        let stored = Batch { blocks: vec![payload.clone(), payload.clone()], ..Batch::default() };
        let mut log = open(dir);
        log.append(None, &stored).expect("appends");
        let reader = log.reader().expect("reads");
        let number = reader.number_of(&payload.cid()).expect("reads").expect("is stored");
        assert_eq!(reader.block_named(number).expect("reads"), Some(payload.cid()));
        let present = Stored::Present(payload.bytes().to_vec());
        assert_eq!(reader.block(&payload.cid()).expect("reads"), Some(present));

        assert!(log.erase(&payload.cid()).expect("erases"));
        assert!(!log.erase(&payload.cid()).expect("nothing is left to erase"));
        log.append(None, &stored).expect("does not bring it back");
        assert_eq!(reader.block(&payload.cid()).expect("reads"), Some(Stored::Erased));
        assert_eq!(reader.block(&Cid::of(Codec::Raw, b"x")).expect("reads"), None);
    });
}

#[test]
fn sqlite_refuses_to_change_or_remove_what_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let payload = Payload::seal(&SaltKey::new([1; 32]), JSON, b"{}").expect("small").envelope;
    let stored = Batch { blocks: vec![payload], events: chain(2), head: None };
    let path = dir.path().join("log.db");
    SqliteLog::open(&path, true).expect("opens").append(None, &stored).expect("appends");
    let connection = rusqlite::Connection::open(&path).expect("opens");
    for sql in [
        "UPDATE event SET bytes = x'00' WHERE seq = 1",
        "DELETE FROM event WHERE seq = 1",
        "DELETE FROM event",
        "DELETE FROM block",
        "UPDATE block SET bytes = x'00'",
        "UPDATE block SET digest = x'00', bytes = NULL",
    ] {
        let refused = connection.execute_batch(sql).expect_err(sql);
        assert!(refused.to_string().contains("the log only grows"), "{sql}: {refused}");
    }
    connection.execute_batch("UPDATE block SET bytes = NULL").expect("erasing is allowed");
}
