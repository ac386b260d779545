//! The ledger over a real directory: what is answered is there, and bad days are seen at the door.

mod asking;
mod concluding;
mod erasing;
mod heads;
mod keeping;
mod rotating;
mod taking_back;
mod work;

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use super::commit::node;
use super::commit::payload_ref;
use super::fitting::HeadError;
use super::opening;
use super::opening::Birth;
use super::opening::Running;
use super::opening::Settings;
use super::upkeep::Bounds;
use super::*;
use crate::{
    block::payload::{JSON, Payload, SaltKey, tests::plain_parts},
    call::{EndOutcome, Fit, How, Remote},
    error::Code,
    event::{Body, Role, body::CallStarted, peer::RemoteCalled},
    ledger::fitting::OpenError,
    log::{
        Log, Reader,
        home::HomeError,
        sqlite::{SqliteLog, SqliteReader},
    },
    state,
};

fn open(dir: &Path) -> Result<(Ledger, Running), OpenError> {
    open_with(dir, &Settings::default())
}

fn open_with(dir: &Path, settings: &Settings) -> Result<(Ledger, Running), OpenError> {
    let home = Home::open(dir)?;
    let mut seed = 0;
    let mut random = || {
        seed += 1;
        [seed; 32]
    };
    let birth = Birth { owner: "a test", random: &mut random, now_us: 1, step: &mut |_| {} };
    opening::open(&home, settings, birth)
}

fn opened(dir: &Path) -> (Ledger, Running) {
    open(dir).expect("the log opens")
}

fn closed((ledger, running): (Ledger, Running)) {
    drop(ledger);
    running.join();
}

fn sealed(text: &str) -> SealedPayload {
    Payload::seal(&SaltKey::new([1; 32]), JSON, text.as_bytes()).expect("small")
}

/// Somebody with a name of their own.
fn someone() -> Actor {
    Actor { id: "someone".to_owned(), role: "agent".to_owned(), proof: None }
}

fn start(id: &str, key: Option<u8>) -> Command {
    let input = sealed("{}");
    let facts = CallStarted {
        method: "tools/call".into(),
        name: "echo".into(),
        source: "builtin".into(),
        runtime: "builtin".into(),
        rule: "registry".into(),
        runner: "gone".into(),
        key: key.map(|key| vec![key; 16]),
        trace: None,
        input_unchecked: None,
    };
    let start = Start {
        id: id.into(),
        actor: node(),
        tool: None,
        input: Some(payload_ref(&input, Role::Input)),
        facts,
        former_key: None,
        cause: None,
        refs: Vec::new(),
        repeatable: false,
        refusal: None,
    };
    Command::Start { start: Box::new(start), input: Some(input), refused: None }
}

fn end(id: &str) -> Command {
    let output = sealed(r#"{"content":[]}"#);
    let end = End {
        id: id.into(),
        outcome: EndOutcome::Succeeded { input_required: false, fit: Fit::Fits },
        output: Some(payload_ref(&output, Role::Output)),
        took_us: 1,
        remote: Vec::new(),
    };
    Command::End { end, output: Some(output), attempt: None }
}

fn echo(ledger: &Ledger, id: &str, key: Option<u8>) -> Ruling {
    assert!(matches!(ledger.submit_blocking(start(id, key)), Ok(Ruling::Run(_))));
    ledger.submit_blocking(end(id)).expect("the ledger runs")
}

fn kinds(dir: &Path) -> Vec<String> {
    let reader = SqliteReader::open(&dir.join("log.db")).expect("reads");
    let mut kinds = Vec::new();
    let read = |seq| reader.event_at(seq).expect("reads");
    while let Some(event) = read(kinds.len() as u64) {
        kinds.push(event.fields().kind.clone());
    }
    kinds
}

fn digests(dir: &Path) -> std::collections::BTreeMap<String, String> {
    let state = state::open(&dir.join("state.db")).expect("opens");
    state::digest::tables(&state).expect("reads")
}

/// Changes the log's file behind everybody's back.
fn tamper(dir: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(dir.join("log.db")).expect("opens");
    for trigger in ["event_update", "event_delete", "block_update", "block_delete"] {
        connection.execute_batch(&format!("DROP TRIGGER {trigger}")).expect("drops");
    }
    connection.execute_batch(sql).expect("changes the file");
}

#[test]
fn what_is_answered_is_in_the_log_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let Ruling::Done(ended) = echo(&ledger, "c1", None) else { panic!("it ends") };
    assert_eq!(ended.seq, 2);
    let again = ledger.submit_blocking(end("c1")).expect("the ledger runs");
    assert!(matches!(again, Ruling::Denied(refusal) if refusal.code == Code::Conflict));
    closed((ledger, running));
    assert_eq!(kinds(dir.path()), ["log.opened", "call.started", "call.succeeded"]);
}

#[test]
fn a_key_is_remembered_before_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let Ruling::Done(first) = echo(&ledger, "c1", Some(7)) else { panic!("it ends") };
    let expect_first = |ledger: &Ledger, id: &str| {
        let ruling = ledger.submit_blocking(start(id, Some(7))).expect("the ledger runs");
        assert!(
            matches!(&ruling, Ruling::Answered(ending) if ending.event == first.cid && ending.how == How::Succeeded),
            "{ruling:?}"
        );
    };
    expect_first(&ledger, "c2");
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    expect_first(&ledger, "c3");
    closed((ledger, running));
}

#[test]
fn calls_of_a_process_that_ended_are_interrupted_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    for id in ["c1", "c2"] {
        ledger.submit_blocking(start(id, None)).expect("the ledger runs");
    }
    closed((ledger, running));
    closed(opened(dir.path()));
    closed(opened(dir.path()));
    let expected = [
        "log.opened",
        "call.started",
        "call.started",
        "call.interrupted",
        "call.interrupted",
        "log.recovered",
    ];
    assert_eq!(kinds(dir.path()), expected);
}

#[test]
fn calls_of_a_process_that_still_runs_stay_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = Home::open(dir.path()).and_then(|home| home.enrol("gone")).expect("enrols");
    let (ledger, running) = opened(dir.path());
    ledger.submit_blocking(start("c1", None)).expect("the ledger runs");
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    assert!(matches!(ledger.submit_blocking(end("c1")), Ok(Ruling::Done(_))));
    closed((ledger, running));
    drop(mark);
}

#[test]
fn deleting_the_state_changes_no_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    for n in 0..200 {
        echo(&ledger, &format!("{n:032x}"), Some(n as u8));
    }
    closed((ledger, running));
    let before = digests(dir.path());
    fs::remove_file(dir.path().join("state.db")).expect("removes");
    closed(opened(dir.path()));
    assert_eq!(digests(dir.path()), before, "after a plain start");
    fs::write(dir.path().join("state.db"), b"not a database at all").expect("writes");
    closed(opened(dir.path()));
    assert_eq!(digests(dir.path()), before, "after damage");
    let state = rusqlite::Connection::open(dir.path().join("state.db")).expect("opens");
    state.execute_batch("DROP TABLE running").expect("drops");
    drop(state);
    closed(opened(dir.path()));
    assert_eq!(digests(dir.path()), before, "after a table was lost");
    let state = rusqlite::Connection::open(dir.path().join("state.db")).expect("opens");
    state.execute_batch("ALTER TABLE schedule DROP COLUMN missed").expect("alters");
    drop(state);
    closed(opened(dir.path()));
    assert_eq!(digests(dir.path()), before, "after a table of another build");
    opening::rebuild(&Home::open(dir.path()).expect("opens"), &mut |_| {}).expect("rebuilds");
    assert_eq!(digests(dir.path()), before, "after a rebuild");
}

#[test]
fn one_directory_has_one_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = opened(dir.path());
    let Err(OpenError::Home(HomeError::Owned { owner })) = open(dir.path()) else { panic!("it is owned") };
    assert_eq!(owner, "a test");
    closed(first);
    closed(opened(dir.path()));
}

#[test]
fn an_older_copy_of_the_log_is_not_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    closed((ledger, running));
    let copy = fs::read(dir.path().join("log.db")).expect("reads");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c2", None);
    closed((ledger, running));
    fs::write(dir.path().join("log.db"), copy).expect("puts the old one back");
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::Standing(HeadError::RolledBack { signed: 5, found: 3 }))
    ));
}

#[test]
fn a_log_without_its_last_event_is_not_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    closed((ledger, running));
    tamper(dir.path(), "DELETE FROM event WHERE seq = 2");
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::Standing(HeadError::RolledBack { signed: 3, found: 2 }))
    ));
}

#[test]
fn another_history_of_the_same_length_is_not_opened() {
    let (dir, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    closed(opened(dir.path()));
    for file in ["log.db", "keys/log.key", "keys/salt.key"] {
        fs::create_dir_all(other.path().join("keys")).expect("makes a directory");
        fs::copy(dir.path().join(file), other.path().join(file)).expect("copies");
    }
    for (dir, id) in [(&dir, "c1"), (&other, "c2")] {
        let (ledger, running) = opened(dir.path());
        echo(&ledger, id, None);
        closed((ledger, running));
    }
    fs::copy(other.path().join("log.db"), dir.path().join("log.db")).expect("copies");
    assert!(matches!(open(dir.path()), Err(OpenError::Standing(HeadError::Forked { signed: 3 }))));
}

#[test]
fn a_log_is_not_continued_with_another_key() {
    let dir = tempfile::tempdir().expect("a directory");
    closed(opened(dir.path()));
    fs::write(dir.path().join("keys/log.key"), "22".repeat(32)).expect("writes");
    assert!(matches!(open(dir.path()), Err(OpenError::Key)));
}

#[test]
fn a_lost_key_is_missed_and_none_is_made_in_its_place() {
    for name in ["log.key", "salt.key"] {
        let dir = tempfile::tempdir().expect("a directory");
        closed(opened(dir.path()));
        let key = dir.path().join("keys").join(name);
        fs::remove_file(&key).expect("removes");
        let refused = open(dir.path()).err().expect("it is not opened").to_string();
        assert!(refused.contains(name) && refused.contains("missing"), "{refused}");
        assert!(!key.exists());
    }
}

#[test]
fn an_emptied_log_is_not_begun_again_under_its_head() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    closed((ledger, running));
    fs::write(dir.path().join("log.db"), b"").expect("empties");
    let _ = fs::remove_file(dir.path().join("log.db-wal"));
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::Standing(HeadError::RolledBack { signed: 3, found: 0 }))
    ));
}

#[test]
fn a_command_that_cannot_be_recorded_is_refused_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let Command::Start { mut start, input, .. } = start("c1", None) else { unreachable!("it is a start") };
    start.facts.name = "n".repeat(20 * 1024);
    let denied = ledger.submit_blocking(Command::Start { start, input, refused: None });
    assert!(matches!(denied, Ok(Ruling::Denied(refusal)) if refusal.code == Code::InvalidArgument));
    assert!(matches!(echo(&ledger, "c2", None), Ruling::Done(sealed) if sealed.seq == 2));
    closed((ledger, running));
}

#[test]
fn a_failed_commit_stops_the_ledger() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    // Another writer on the same file is what the expected head is there to notice.
    let mut log = SqliteLog::open(&dir.path().join("log.db"), true).expect("opens");
    let tip = log.reader().expect("reads").tip().expect("reads").expect("has events");
    let fact = commit::log_fact(
        node(),
        Body::LogRecovered(crate::event::body::LogRecovered { interrupted: 0, attempts: 0 }),
    );
    let place =
        crate::event::Position { log: ledger.about().log, seq: tip.seq + 1, prev: Some(tip.cid), ts: tip.ts };
    let event = crate::event::Event::seal(fact, place).expect("a small fact");
    log.append(Some(tip.cid), &crate::log::Batch { events: vec![event], ..crate::log::Batch::default() })
        .expect("appends");

    assert_eq!(ledger.submit_blocking(start("c2", None)), Err(Stopped));
    assert_eq!(ledger.submit_blocking(start("c3", None)), Err(Stopped));
    assert!(!ledger.runs());
    closed((ledger, running));
}

#[test]
fn erasing_keeps_the_name_and_survives_a_crash_between_record_and_deed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    echo(&ledger, "c1", None);
    let payload = sealed("{}").envelope;
    let erase = Command::Erase { payload: payload.cid(), basis: "secret".into(), actor: node() };
    assert!(matches!(ledger.submit_blocking(erase.clone()), Ok(Ruling::Done(_))));
    assert_eq!(ledger.submit_blocking(erase), Ok(Ruling::Unchanged));
    closed((ledger, running));
    // What a crash before the deed leaves: the record, and the bytes.
    let connection = rusqlite::Connection::open(dir.path().join("log.db")).expect("opens");
    connection.execute_batch("DROP TRIGGER block_update").expect("drops");
    let sql = "UPDATE block SET bytes = ?2 WHERE digest = ?1";
    connection.execute(sql, rusqlite::params![payload.cid().digest(), payload.bytes()]).expect("puts back");
    drop(connection);
    closed(opened(dir.path()));
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    assert_eq!(reader.block(&payload.cid()).expect("reads"), Some(crate::log::Stored::Erased));
}

#[test]
fn erasing_leaves_the_parts_that_another_payload_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let large = |media: &str| plain_parts(media, &vec![b'x'; 600 * 1024]);
    let (erased, kept) = (large(JSON), large("text/plain"));
    assert_eq!(erased.parts[0].cid(), kept.parts[0].cid(), "the same content in the same parts");
    for (id, payload) in [("c1", &erased), ("c2", &kept)] {
        let Command::Start { mut start, .. } = start(id, None) else { unreachable!("it is a start") };
        start.input = Some(payload_ref(payload, Role::Input));
        let command = Command::Start { start, input: Some(payload.clone()), refused: None };
        assert!(matches!(ledger.submit_blocking(command), Ok(Ruling::Run(_))));
    }
    let erase = |payload: &SealedPayload| Command::Erase {
        payload: payload.envelope.cid(),
        basis: "secret".into(),
        actor: node(),
    };
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    let part = |payload: &SealedPayload| reader.block(&payload.parts[0].cid()).expect("reads");
    assert!(matches!(ledger.submit_blocking(erase(&erased)), Ok(Ruling::Done(_))));
    assert!(matches!(part(&kept), Some(crate::log::Stored::Present(_))));
    assert!(matches!(ledger.submit_blocking(erase(&kept)), Ok(Ruling::Done(_))));
    assert_eq!(part(&kept), Some(crate::log::Stored::Erased));
    closed((ledger, running));
}

#[test]
fn what_is_no_payload_cannot_be_erased() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let erase = |payload| Command::Erase { payload, basis: "x".into(), actor: node() };
    let genesis = ledger.about().log;
    let denied = ledger.submit_blocking(erase(genesis)).expect("the ledger runs");
    assert!(matches!(denied, Ruling::Denied(refusal) if refusal.code == Code::FailedPrecondition));
    let unknown = sealed("never stored").envelope.cid();
    let denied = ledger.submit_blocking(erase(unknown)).expect("the ledger runs");
    assert!(matches!(denied, Ruling::Denied(refusal) if refusal.code == Code::NotFound));
    closed((ledger, running));
}

#[test]
fn an_adopted_contract_is_known_by_its_name_here_after_a_restart() {
    let definition = serde_json::json!({"name": "add", "inputSchema": {"type": "object"}});
    let definition = serde_json::value::to_raw_value(&definition).expect("json is json");
    let theirs =
        crate::contract::Contract::of_definition("builtin", "2", &definition).expect("a whole definition");
    let cid = theirs.seal().cid();
    let adopt = || Command::Adopt { contract: theirs.clone(), name: "peers_add".into(), actor: node() };
    let retain = |source: &str| Command::Retain { source: source.into(), names: Vec::new(), actor: node() };
    let dir = tempfile::tempdir().expect("a directory");
    for new in [true, false] {
        let (ledger, running) = opened(dir.path());
        let ruling = ledger.submit_blocking(adopt()).expect("the ledger runs");
        assert!(matches!(ruling, Ruling::Published { cid: known, new: is, .. } if known == cid && is == new));
        closed((ledger, running));
    }
    let (ledger, running) = opened(dir.path());
    assert_eq!(ledger.submit_blocking(retain("builtin")), Ok(Ruling::Unchanged));
    assert!(matches!(ledger.submit_blocking(retain("peers")), Ok(Ruling::Done(_))));
    closed((ledger, running));
    assert_eq!(kinds(dir.path()), ["log.opened", "contract.published", "contract.retired"]);
}

#[test]
fn what_was_tried_at_peers_is_told_before_the_call_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let theirs = Cid::of(crate::block::Codec::DagCbor, b"their ending");
    let called = |attempt, ok| Remote {
        facts: RemoteCalled {
            peer: "p1".into(),
            contract: theirs,
            ok,
            code: None,
            took_us: 7,
            rule: "best".into(),
            attempt,
        },
        refs: vec![theirs],
    };
    let Command::Start { start, input, refused } = start("c1", None) else { panic!("it is") };
    let start = Start { refs: vec![theirs; 9], ..*start };
    let start = Command::Start { start: Box::new(start), input, refused };
    assert!(matches!(ledger.submit_blocking(start), Ok(Ruling::Run(_))));
    let Command::End { end, output, attempt } = end("c1") else { panic!("it is") };
    let end = End { remote: vec![called(1, false), called(2, true)], ..end };
    let Ok(Ruling::Done(ended)) = ledger.submit_blocking(Command::End { end, output, attempt }) else {
        panic!("it ends")
    };
    assert_eq!(ended.seq, 4);
    closed((ledger, running));
    let told = ["log.opened", "call.started", "remote.called", "remote.called", "call.succeeded"];
    assert_eq!(kinds(dir.path()), told);
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    let event = |seq| reader.event_at(seq).expect("reads").expect("there is one");
    assert_eq!(event(1).fields().refs, [theirs]);
    for seq in [2, 3] {
        let tried = event(seq);
        assert_eq!((tried.fields().cause, &tried.fields().refs[..]), (Some(event(1).cid()), &[theirs][..]));
        assert_eq!(tried.fields().subject, "peer/p1");
    }
    let state = state::open(&dir.path().join("state.db")).expect("opens");
    let peer = crate::query::peers::peer(&state, "p1").expect("reads").expect("it is known");
    assert_eq!((peer.counters.calls, peer.counters.calls_failed, peer.call_us), (2, 1, Some(7)));
}

/// Looks until it holds; the threads that make it so need no more than a moment.
fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_reader_that_holds_the_log_is_told_of_and_holds_up_neither_calls_nor_erasures() {
    let dir = tempfile::tempdir().expect("a directory");
    let moment = Duration::from_millis(1);
    let upkeep = Bounds { gather: moment, idle: moment, retry: moment, ..Bounds::default() };
    let (ledger, running) =
        open_with(dir.path(), &Settings { upkeep, ..Settings::default() }).expect("the log opens");
    echo(&ledger, "c1", None);
    let held = || ledger.wal().expect("this process has the log");
    let payload = sealed("{}").envelope;
    let reader = SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    let walked = reader.events(0, &mut |_| {
        let begun = Instant::now();
        let command = Command::Erase { payload: payload.cid(), basis: "secret".into(), actor: node() };
        assert!(matches!(ledger.submit_blocking(command), Ok(Ruling::Done(_))));
        echo(&ledger, "c2", None);
        assert!(begun.elapsed() < Duration::from_secs(4), "a commit waited for a reader");
        until("the reader is told of", || held().held_since.is_some() && held().uncut);
        let since = held().held_since;
        until("the same reader is one", || held().held() > moment);
        assert_eq!(held().held_since, since);
        ControlFlow::Break(())
    });
    walked.expect("the log reads");
    until("the reader is forgotten", || held().held_since.is_none() && !held().uncut);
    closed((ledger, running));
}
