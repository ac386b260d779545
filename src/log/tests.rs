//! The contract of the log: what every store behind it must do. Each test runs against each implementation.

use std::{ops::ControlFlow, path::Path};

use super::{
    sqlite::{SqliteLog, snapshot::snapshot},
    *,
};
use crate::{
    block::{
        Block, Codec,
        payload::{JSON, Payload, SaltKey},
    },
    event::{Actor, Body, Fact, Position, body::LogRecovered},
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
    Event::seal(fact, Position { log, seq, prev, ts: seq }).expect("a small fact")
}

/// Returns `n` events, each the successor of the one before.
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
fn a_block_is_stored_once_and_may_be_erased_and_recorded_again() {
    on_every_store(|open, dir| {
        let payload = Payload::seal(&SaltKey::new([1; 32]), JSON, b"{}").expect("small").envelope;
        let stored = Batch { blocks: vec![payload.clone(), payload.clone()], ..Batch::default() };
        let mut log = open(dir);
        log.append(None, &stored).expect("appends");
        let reader = log.reader().expect("reads");
        let number = reader.number_of(&payload.cid()).expect("reads").expect("is stored");
        assert_eq!(reader.block_named(number).expect("reads"), Some(payload.cid()));
        let present = Some(Stored::Present(payload.bytes().to_vec()));
        assert_eq!(reader.block(&payload.cid()).expect("reads"), present);

        assert!(log.erase(&[payload.cid()]).expect("erases"));
        assert!(!log.erase(&[payload.cid()]).expect("nothing is left to erase"));
        assert_eq!(reader.block(&payload.cid()).expect("reads"), Some(Stored::Erased));
        assert!(!reader.has_bytes(&payload.cid()).expect("reads"));
        assert_eq!(reader.block(&Cid::of(Codec::Raw, b"x")).expect("reads"), None);

        log.append(None, &stored).expect("it is content again");
        assert_eq!(reader.block(&payload.cid()).expect("reads"), present);
        assert_eq!(reader.number_of(&payload.cid()).expect("reads"), Some(number), "under the same number");
        assert!(reader.has_bytes(&payload.cid()).expect("reads"));
    });
}

#[test]
fn a_block_is_known_by_its_codec_too() {
    on_every_store(|open, dir| {
        let events = chain(1);
        let bytes = Block::encode(&"both").bytes().to_vec();
        for order in [[Codec::DagCbor, Codec::Raw], [Codec::Raw, Codec::DagCbor]] {
            let dir = dir.join(format!("{order:?}"));
            std::fs::create_dir(&dir).expect("a directory");
            let mut log = open(&dir);
            log.append(None, &batch(&events)).expect("appends");
            let blocks = order.map(|codec| Block::new(codec, bytes.clone()));
            let [first, second] = blocks.each_ref().map(Block::cid);
            let [first_alone, both] = [&blocks[..1], &blocks[..]]
                .map(|blocks| Batch { blocks: blocks.to_vec(), ..Batch::default() });
            log.append(Some(events[0].cid()), &first_alone).expect("appends");
            let reader = log.reader().expect("reads");
            let number = |cid: &Cid| reader.number_of(cid).expect("reads");
            let block = |cid: &Cid| reader.block(cid).expect("reads");
            assert_eq!((number(&second), block(&second)), (None, None), "its digest alone is not its name");
            for _ in 0..2 {
                log.append(Some(events[0].cid()), &both).expect("stored once each");
                assert_ne!(number(&first), number(&second));
                for cid in [first, second] {
                    assert_eq!(block(&cid), Some(Stored::Present(bytes.clone())));
                    let named = reader.block_named(number(&cid).expect("is stored")).expect("reads");
                    assert_eq!(named, Some(cid));
                }
                assert!(log.erase(&[second]).expect("erases"));
                assert_eq!(block(&second), Some(Stored::Erased));
                assert_eq!(block(&first), Some(Stored::Present(bytes.clone())), "erased with the other");
            }
            let mut names = Vec::new();
            let walk = &mut |row: BlockRow<'_>| {
                names.push(Cid::from_digest(row.codec.expect("a codec"), row.digest));
                ControlFlow::Continue(())
            };
            reader.blocks(0, walk).expect("reads");
            assert_eq!(names, [first, second]);
            let raw = Cid::from_digest(Codec::Raw, *events[0].cid().digest());
            assert_eq!(reader.seq_of(&raw).expect("reads"), None);
            assert_eq!(reader.event(&raw).expect("reads"), None);
        }
    });
}

/// Makes a log as the first release wrote it, with an erased payload and a raw part.
fn first_release(path: &Path, blocks: &[(&Block, bool)]) {
    let connection = rusqlite::Connection::open(path).expect("opens");
    connection.execute_batch(include_str!("../../migrations/log/01-log.sql")).expect("the first tables");
    connection.pragma_update(None, "user_version", 1).expect("says which");
    for (block, erased) in blocks {
        let bytes = (!erased).then(|| block.bytes());
        let sql = "INSERT INTO block (digest, codec, bytes) VALUES (?1, ?2, ?3)";
        let cid = block.cid();
        let row = rusqlite::params![cid.digest(), cid.codec() as u8, bytes];
        connection.execute(sql, row).expect("a row");
    }
}

#[test]
fn a_log_of_the_first_release_takes_content_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.db");
    let envelope = Block::encode(&"envelope");
    let [raw, cbor] = [Codec::Raw, Codec::DagCbor].map(|codec| Block::new(codec, b"\x61x".to_vec()));
    first_release(&path, &[(&envelope, true), (&raw, false)]);
    let mut log = SqliteLog::open(&path, true).expect("opens");
    let again = Batch { blocks: vec![envelope.clone(), cbor.clone()], ..Batch::default() };
    log.append(None, &again).expect("appends");
    let reader = log.reader().expect("reads");
    for block in [&envelope, &raw, &cbor] {
        let stored = reader.block(&block.cid()).expect("reads");
        assert_eq!(stored, Some(Stored::Present(block.bytes().to_vec())));
    }
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
        "UPDATE block SET codec = 85, bytes = NULL",
    ] {
        let refused = connection.execute_batch(sql).expect_err(sql);
        assert!(refused.to_string().contains("the log only grows"), "{sql}: {refused}");
    }
    connection.execute_batch("UPDATE block SET bytes = NULL").expect("erasing is allowed");
}

/// Runs `meanwhile` while a reader holds a snapshot of the log.
fn held(reader: &dyn Reader, meanwhile: impl FnOnce()) {
    let mut meanwhile = Some(meanwhile);
    reader
        .events(0, &mut |_| {
            meanwhile.take().expect("the walk ends after the first event")();
            ControlFlow::Break(())
        })
        .expect("the log reads");
}

/// Returns whether a file of the directory contains these bytes.
fn anywhere(dir: &Path, bytes: &[u8]) -> bool {
    let files = std::fs::read_dir(dir).expect("a directory");
    files.into_iter().any(|file| {
        let file = std::fs::read(file.expect("a file").path()).expect("it can be read");
        file.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[test]
fn upkeep_begins_the_write_ahead_file_anew_once_no_reader_holds_it() {
    on_every_store(|open, dir| {
        let events = chain(3);
        let mut log = open(dir);
        let mut upkeep = log.upkeep().expect("another connection opens");
        log.append(None, &batch(&events[..1])).expect("appends");
        let woken = upkeep.wait(Duration::ZERO, Duration::ZERO);
        assert!(woken.committed && !woken.ended, "{woken:?}");
        assert!(!upkeep.wait(Duration::ZERO, Duration::ZERO).committed);
        let before = upkeep.look().expect("looks");
        assert!(before.pages > 0 && before.folded == 0 && before.bytes > 0, "{before:?}");
        let after = upkeep.fold().expect("folds");
        assert_eq!((after.pages, after.folded), (before.pages, before.pages));

        let reader = log.reader().expect("reads");
        held(reader.as_ref(), || {
            log.append(Some(events[0].cid()), &batch(&events[1..2])).expect("a reader holds up no writer");
            let ahead = upkeep.fold().expect("folds");
            assert!(ahead.folded < ahead.pages, "{ahead:?}");
            assert!(!upkeep.restart(Duration::ZERO).expect("waits for nobody"));
        });
        let before = upkeep.look().expect("looks");
        assert!(upkeep.restart(Duration::ZERO).expect("restarts"));
        log.append(Some(events[1].cid()), &batch(&events[2..])).expect("appends");
        let after = upkeep.look().expect("looks");
        assert!(after.pages <= before.pages && after.bytes == before.bytes, "{before:?} {after:?}");
        assert_eq!(read(reader.as_ref()), [0, 1, 2]);
        drop(log);
        assert!(upkeep.wait(Duration::MAX, Duration::MAX).ended);
    });
}

#[test]
fn what_was_erased_under_a_reader_is_cut_off_once_it_ends() {
    on_every_store(|open, dir| {
        let secret = [b"a secret of some length ", &[7; 64][..]].concat();
        let block = Block::new(Codec::Raw, secret.clone());
        let mut log = open(dir);
        let mut upkeep = log.upkeep().expect("another connection opens");
        log.append(None, &Batch { blocks: vec![block.clone()], events: chain(1), ..Batch::default() })
            .expect("appends");
        assert!(anywhere(dir, &secret));
        let reader = log.reader().expect("reads");
        held(reader.as_ref(), || {
            assert!(log.erase(&[block.cid()]).expect("a reader holds up no erasure"));
            assert!(anywhere(dir, &secret));
            assert!(upkeep.wait(Duration::ZERO, Duration::MAX).uncut);
            assert!(!upkeep.restart(Duration::ZERO).expect("waits for nobody"));
        });
        assert!(upkeep.wait(Duration::ZERO, Duration::MAX).uncut);
        assert!(upkeep.restart(Duration::ZERO).expect("restarts"));
        assert!(!upkeep.wait(Duration::ZERO, Duration::ZERO).uncut);
        assert!(!anywhere(dir, &secret));
    });
}

#[test]
fn what_was_erased_before_a_crash_is_cut_off_after_it() {
    let (dir, crashed) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
    let secret = [b"a secret of some length ", &[7; 64][..]].concat();
    let block = Block::new(Codec::Raw, secret.clone());
    let mut log = SqliteLog::open(&dir.path().join("log.db"), true).expect("opens");
    log.append(None, &Batch { blocks: vec![block.clone()], events: chain(1), ..Batch::default() })
        .expect("appends");
    let reader = log.reader().expect("reads");
    held(reader.as_ref(), || {
        log.erase(&[block.cid()]).expect("erases");
        // These are the files that a process leaves behind if it is killed here.
        for name in ["log.db", "log.db-wal"] {
            std::fs::copy(dir.path().join(name), crashed.path().join(name)).expect("copies");
        }
    });
    assert!(anywhere(crashed.path(), &secret));
    let mut log = SqliteLog::open(&crashed.path().join("log.db"), true).expect("opens");
    let mut upkeep = log.upkeep().expect("another connection opens");
    assert!(upkeep.wait(Duration::ZERO, Duration::MAX).uncut);
    assert!(upkeep.restart(Duration::ZERO).expect("restarts"));
    assert!(!anywhere(crashed.path(), &secret));
}

#[test]
fn a_snapshot_is_of_one_moment_whatever_is_written_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log.db");
    let mut log = SqliteLog::open(&path, false).expect("opens");
    let events = chain(200);
    // The blocks are more than one step copies.
    let block = |n: usize| Block::new(Codec::Raw, [&n.to_be_bytes()[..], &[1; 256 * 1024]].concat());
    let blocks = (0..100).map(block).collect();
    log.append(None, &Batch { blocks, events: events[..100].to_vec(), ..Batch::default() }).expect("appends");
    let (copy, mut next) = (dir.path().join("copy.db"), 100);
    snapshot(&path, &copy, &mut |_, _| {
        let more =
            Batch { blocks: vec![block(next)], events: vec![events[next].clone()], ..Batch::default() };
        log.append(Some(events[next - 1].cid()), &more).expect("a snapshot holds up no writer");
        next += 1;
    })
    .expect("copies");
    assert!(next > 101, "it took one step: nothing was written meanwhile");
    let reader = sqlite::SqliteReader::open(&copy).expect("opens");
    assert_eq!(read(&reader).len(), 100);
    assert_eq!(
        reader.block(&block(99).cid()).expect("reads"),
        Some(Stored::Present(block(99).bytes().to_vec()))
    );
    assert_eq!(reader.block(&block(100).cid()).expect("reads"), None);
    drop(reader);
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).expect("a directory").flatten().collect();
    names.retain(|name| name.file_name().to_string_lossy().starts_with("copy"));
    assert_eq!(names.len(), 1, "a copy is one file: {names:?}");
    assert!(snapshot(&path, &copy, &mut |_, _| ()).is_err(), "what is there is not written over");
}
