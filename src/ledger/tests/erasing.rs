//! Erasing at the ledger's door: what an erasure holds for, what is content again, and what can never be erased.
//!
//! Invariants:
//! - every claim is looked at again after a restart, and the state that was kept is the one that a rebuild gives.

use std::{collections::BTreeMap, path::Path};

use super::{
    closed, kinds, opened, sealed, start,
    work::{facts, register, submit, take, wish},
};
use crate::{
    block::{
        Block, Cid, Codec,
        payload::{INLINE_MAX, JSON, Payload, SaltKey, SealedPayload},
    },
    error::Code,
    event::{Role, work::Rhythm},
    ledger::{
        Ask, Command, Ledger, Ruling,
        commit::{node, payload_ref},
        opening,
        work::{CreateSchedule, DeleteSchedule, Made, Wish},
    },
    log::{
        Batch, Log, Reader, Stored,
        home::Home,
        sqlite::{SqliteLog, SqliteReader},
    },
    state,
};

fn erase(payload: &Cid) -> Command {
    Command::Erase { payload: *payload, basis: "asked".to_owned(), actor: node() }
}

fn record(ledger: &Ledger, id: &str, payload: &SealedPayload) {
    assert!(matches!(ledger.submit_blocking(recording(id, payload)), Ok(Ruling::Run(_))));
}

fn recording(id: &str, payload: &SealedPayload) -> Command {
    let Command::Start { mut start, .. } = start(id, None) else { unreachable!("it is a start") };
    start.input = Some(payload_ref(payload, Role::Input));
    Command::Start { start, input: Some(payload.clone()), refused: None }
}

fn reader(dir: &Path) -> SqliteReader {
    SqliteReader::open(&dir.join("log.db")).expect("reads")
}

/// Which blocks of a payload are there with their bytes, the envelope first.
fn there(dir: &Path, payload: &SealedPayload) -> Vec<bool> {
    let reader = reader(dir);
    let blocks = std::iter::once(&payload.envelope).chain(&payload.parts);
    blocks.map(|block| reader.has_bytes(&block.cid()).expect("reads")).collect()
}

/// A payload in parts of the first form: plain content, so that others may share them.
fn in_parts(first: u8, rest: u8) -> SealedPayload {
    let content = [vec![first; INLINE_MAX], vec![rest; INLINE_MAX], vec![rest; 10]].concat();
    let parts: Vec<Block> =
        content.chunks(INLINE_MAX).map(|part| Block::new(Codec::Raw, part.to_vec())).collect();
    let payload = Payload {
        v: 1,
        media: JSON.to_owned(),
        salt: SaltKey::new([1; 32]).commit(JSON, &content).to_vec(),
        data: None,
        parts: Some(parts.iter().map(Block::cid).collect()),
    };
    SealedPayload { envelope: Block::encode(&payload), parts, len: content.len() as u64 }
}

fn tables(dir: &Path) -> BTreeMap<String, String> {
    let state = state::open(&dir.join("state.db")).expect("a state");
    state::digest::tables(&state).expect("digests")
}

/// Closes the log, checks that a rebuild gives the state that was kept, and opens it again.
fn restarted(dir: &Path, ledger: (Ledger, opening::Running)) -> (Ledger, opening::Running) {
    closed(ledger);
    let kept = tables(dir);
    let home = Home::open(dir).expect("a home");
    drop(opening::rebuild(&home, &mut |_| {}).expect("it is derived again"));
    assert_eq!(tables(dir), kept, "a rebuild gives another state");
    opened(dir)
}

#[test]
fn content_recorded_after_its_erasure_is_content_until_it_is_erased_again() {
    for payload in [sealed(r#"{"x":"nightly"}"#), in_parts(b'a', b'x')] {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let mut running = opened(dir);
        let cid = payload.envelope.cid();
        let blocks = 1 + payload.parts.len();
        record(&running.0, "c1", &payload);
        for round in 0..2 {
            assert!(matches!(running.0.submit_blocking(erase(&cid)), Ok(Ruling::Done(_))));
            assert_eq!(running.0.submit_blocking(erase(&cid)), Ok(Ruling::Unchanged));
            assert_eq!(there(dir, &payload), vec![false; blocks], "round {round}");
            running = restarted(dir, running);
            assert_eq!(there(dir, &payload), vec![false; blocks], "round {round}");
            assert_eq!(running.0.submit_blocking(erase(&cid)), Ok(Ruling::Unchanged));
            record(&running.0, &format!("again{round}"), &payload);
            assert_eq!(there(dir, &payload), vec![true; blocks], "round {round}");
            running = restarted(dir, running);
            assert_eq!(there(dir, &payload), vec![true; blocks], "a start erased it again, round {round}");
        }
        closed(running);
    }
}

#[test]
fn what_is_recorded_and_erased_close_together_stands_as_the_last_of_it_left_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let mut running = opened(dir);
    for round in 0..12 {
        let payload = match round % 2 {
            0 => sealed(&format!("{{\"round\":{round}}}")),
            _ => in_parts(round, round + 100),
        };
        let cid = payload.envelope.cid();
        let id = |n: usize| format!("c{round}n{n}");
        // Sent without waiting, so that most of it is one commit; whatever the commits are, the order is this.
        let orders = [
            (vec![recording(&id(0), &payload), erase(&cid), recording(&id(1), &payload)], true),
            (vec![erase(&cid), recording(&id(2), &payload), erase(&cid)], false),
            (vec![recording(&id(3), &payload), recording(&id(4), &payload), erase(&cid)], false),
            (vec![recording(&id(5), &payload), erase(&cid), erase(&cid), recording(&id(6), &payload)], true),
        ];
        for (commands, left) in orders {
            let sent: Vec<_> = commands
                .into_iter()
                .map(|command| {
                    let (reply, ruling) = tokio::sync::oneshot::channel();
                    let ask = Ask::Rule { command, reply, again: false };
                    running.0.inbox.blocking_send(ask).expect("the ledger runs");
                    ruling
                })
                .collect();
            for ruling in sent {
                let ruled = ruling.blocking_recv().expect("the ledger runs");
                assert!(matches!(ruled, Ruling::Run(_) | Ruling::Done(_) | Ruling::Unchanged), "{ruled:?}");
            }
            assert!(there(dir, &payload).into_iter().all(|there| there == left), "round {round}");
        }
        if round % 4 == 3 {
            running = restarted(dir, running);
            assert!(there(dir, &payload).into_iter().all(|there| there), "round {round}");
        }
    }
    closed(running);
}

#[test]
fn a_part_goes_with_the_last_payload_that_holds_it_and_comes_back_with_any() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let mut running = opened(dir);
    let (one, other) = (in_parts(b'a', b'x'), in_parts(b'b', b'x'));
    record(&running.0, "c1", &one);
    record(&running.0, "c2", &other);
    assert!(matches!(running.0.submit_blocking(erase(&one.envelope.cid())), Ok(Ruling::Done(_))));
    assert_eq!(there(dir, &one), [false, false, true, true]);
    assert_eq!(there(dir, &other), [true; 4]);
    assert!(matches!(running.0.submit_blocking(erase(&other.envelope.cid())), Ok(Ruling::Done(_))));
    assert_eq!(there(dir, &other), [false; 4]);
    record(&running.0, "c3", &other);
    running = restarted(dir, running);
    assert_eq!(there(dir, &other), [true; 4]);
    assert_eq!(there(dir, &one), [false, false, true, true], "what only the erased one holds stays erased");
    closed(running);
}

#[test]
fn what_no_event_holds_as_a_payload_is_not_erased_whatever_it_looks_like() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let alike = sealed("looks like a payload").envelope;
    let large = in_parts(b'a', b'x');
    closed(opened(dir));
    let mut log = SqliteLog::open(&dir.join("log.db"), true).expect("opens");
    let tip = log.reader().and_then(|reader| reader.tip()).expect("reads").map(|tip| tip.cid);
    let planted = Batch { blocks: vec![alike.clone()], ..Batch::default() };
    log.append(tip, &planted).expect("appends");
    drop(log);
    let (ledger, running) = opened(dir);
    record(&ledger, "c1", &large);
    let code = |cid: &Cid| match ledger.submit_blocking(erase(cid)) {
        Ok(Ruling::Denied(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let event = reader(dir).event_at(1).expect("reads").expect("an event").cid();
    let part = large.parts[0].cid();
    let raw = Cid::from_digest(Codec::Raw, *large.envelope.cid().digest());
    assert_eq!(code(&alike.cid()), Code::FailedPrecondition);
    assert_eq!(code(&part), Code::FailedPrecondition);
    assert_eq!([code(&event), code(&raw)], [Code::FailedPrecondition, Code::NotFound]);
    // One whose event cannot be sealed erases nothing.
    let basis = "b".repeat(20_000);
    let wish = Command::Erase { payload: large.envelope.cid(), basis, actor: node() };
    assert!(matches!(ledger.submit_blocking(wish), Ok(Ruling::Denied(_))));
    assert_eq!(there(dir, &large), [true; 4]);
    assert!(matches!(ledger.submit_blocking(erase(&large.envelope.cid())), Ok(Ruling::Done(_))));
    assert_eq!(code(&part), Code::NotFound, "an erased part is as unknown as any");
    assert!(reader(dir).has_bytes(&alike.cid()).expect("reads"));
    closed((ledger, running));
}

#[test]
fn a_waiting_task_has_its_input_back_when_it_is_recorded_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let (ledger, running) = opened(dir);
    register(&ledger, "w");
    submit(&ledger, "a", facts("a")).expect("submits");
    let payload = sealed("{}").envelope.cid();
    assert!(matches!(ledger.submit_blocking(erase(&payload)), Ok(Ruling::Done(_))));
    submit(&ledger, "b", facts("a")).expect("submits");
    closed((ledger, running));
    let (ledger, running) = opened(dir);
    register(&ledger, "w");
    for id in ["a", "b"] {
        let handed = take(&ledger);
        assert_eq!((handed.task.as_str(), handed.input.as_deref()), (id, Some("{}")));
    }
    closed((ledger, running));
}

#[test]
fn a_schedule_fires_again_when_what_it_makes_is_recorded_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let create = |ledger: &Ledger, schedule: &str, ms| {
        let makes = Made::Task { facts: facts("a"), tool: None, input: r#"{"x":1}"#.to_owned() };
        let (schedule, makes) = (schedule.to_owned(), Box::new(makes));
        let rhythm = Rhythm::Every { ms };
        let wished =
            wish(ledger, Wish::CreateSchedule(CreateSchedule { schedule, rhythm, catch_up: false, makes }));
        wished.expect("it is created");
    };
    let (ledger, running) = opened(dir);
    create(&ledger, "often", 100);
    let created = reader(dir).event_at(1).expect("reads").expect("it is on record");
    let what = created.fields().pay[0].cid;
    assert!(matches!(ledger.submit_blocking(erase(&what)), Ok(Ruling::Done(_))));
    closed((ledger, running));
    let (ledger, running) = opened(dir);
    let fired = |dir: &Path| kinds(dir).iter().filter(|kind| *kind == "schedule.fired").count();
    let before = fired(dir);
    create(&ledger, "rarely", 3_600_000);
    while fired(dir) <= before {
        std::thread::yield_now();
    }
    // Created again with its content erased, it is created with its content.
    assert!(matches!(ledger.submit_blocking(erase(&what)), Ok(Ruling::Done(_))));
    create(&ledger, "rarely", 3_600_000);
    assert_eq!(
        reader(dir).block(&what).map(|stored| matches!(stored, Some(Stored::Present(_)))).ok(),
        Some(true)
    );
    wish(&ledger, Wish::DeleteSchedule(DeleteSchedule { schedule: "often".to_owned() }))
        .expect("it is there");
    closed((ledger, running));
}
