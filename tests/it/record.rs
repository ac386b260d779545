//! The log as a data directory holds it, read without the server, and the claims that hold for every log.

#![allow(dead_code, reason = "each file of tests uses its own part")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use cairn::{
    block::Cid,
    event::{Body, Event, body::Failure},
    log::{Reader, Stored, home::Home, sqlite::SqliteReader},
    state,
};
use serde_json::Value;

use crate::harness::{cairn, run};

/// How long something that must happen may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until `seen` gives something; fails after [`PATIENCE`].
pub fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

fn home(data: &Path) -> Home {
    Home::existing(data).expect("the directory holds a log")
}

fn reader(data: &Path) -> SqliteReader {
    SqliteReader::open(&home(data).log_path()).expect("the log can be read")
}

/// Every event in order, read from the file.
pub fn events(data: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    let walked = reader(data).events(0, &mut |row| {
        let event = Event::open(row.bytes.to_vec()).expect("every row is an event");
        assert_eq!(event.cid().digest(), &row.digest, "row {}", row.seq);
        assert_eq!(event.fields().seq, row.seq);
        events.push(event);
        ControlFlow::Continue(())
    });
    walked.expect("the log can be walked");
    events
}

pub fn kind(event: &Event) -> &str {
    &event.fields().kind
}

/// The endings of calls to `name`, in order.
pub fn endings(events: &[Event], name: &str) -> Vec<Event> {
    let named = |event: &&Event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == name);
    let started: Vec<Cid> = events.iter().filter(named).map(Event::cid).collect();
    let ends = |event: &&Event| {
        !["call.asked", "call.answered"].contains(&kind(event))
            && event.fields().cause.is_some_and(|cause| started.contains(&cause))
    };
    events.iter().filter(ends).cloned().collect()
}

/// Waits until a call to `name` has ended, and gives its ending.
pub fn ended(data: &Path, name: &str) -> Event {
    until(&format!("an ending of {name}"), || endings(&events(data), name).pop())
}

/// How the calls to `name` ended, by kind.
pub fn kinds(data: &Path, name: &str) -> Vec<String> {
    endings(&events(data), name).iter().map(|event| kind(event).to_owned()).collect()
}

/// How a failed call failed.
pub fn failure(ending: &Event) -> Failure {
    match ending.body() {
        Some(Body::CallFailed(facts)) => facts.failure,
        other => panic!("not a failure: {other:?}"),
    }
}

/// The content of a payload.
pub fn content(data: &Path, payload: &Cid) -> String {
    let content = cairn::query::content(&home(data), payload).expect("the log can be read");
    String::from_utf8(content.expect("the payload is kept")).expect("payloads here are text")
}

/// Checks what holds for every log at rest: one chain, every payload there, one ending for every start.
pub fn check(data: &Path) -> Vec<Event> {
    let events = events(data);
    let log = reader(data);
    let mut endings: HashMap<Cid, usize> = HashMap::new();
    for (seq, event) in events.iter().enumerate() {
        let fields = event.fields();
        assert_eq!(fields.seq, seq as u64, "the sequence has no gap");
        let prev = seq.checked_sub(1).map(|prev| events[prev].cid());
        assert_eq!(fields.prev, prev, "event {seq} names the one before it");
        for pay in &fields.pay {
            let block = log.block(&pay.cid).expect("blocks can be read");
            assert!(matches!(block, Some(Stored::Present(_))), "event {seq} lacks its payload");
        }
        match event.body() {
            Some(Body::CallStarted(_)) => {
                endings.insert(event.cid(), 0);
            }
            Some(
                Body::CallSucceeded(_)
                | Body::CallFailed(_)
                | Body::CallRefused(_)
                | Body::CallCancelled(_)
                | Body::CallInterrupted(_),
            ) => {
                let cause = fields.cause.expect("an ending names its start");
                let ended = endings.get_mut(&cause);
                *ended.expect("a start comes before its ending") += 1;
            }
            _ => {}
        }
    }
    for (started, ended) in &endings {
        assert_eq!(*ended, 1, "endings of the call started by {started}");
    }
    events
}

/// Runs `cairn log verify` on the files, the state too; gives its exit code and report.
pub fn verify(data: &Path) -> (Option<i32>, Value) {
    let mut command = cairn(&["log", "verify", "--state", "--json", "--data"]);
    command.arg(data);
    let ran = run(command);
    let report = serde_json::from_str(&ran.stdout);
    let report = report.unwrap_or_else(|err| panic!("{err}: {} {}", ran.stdout, ran.stderr));
    (ran.status.code(), report)
}

/// The digest of every table of the state. The server must not be running.
pub fn digests(data: &Path) -> BTreeMap<String, String> {
    let home = home(data);
    let state = state::open_reader(&home.state_path(), &home.log_path()).expect("there is a state");
    state::digest::tables(&state).expect("the state can be read")
}

/// Removes the state, with what SQLite keeps beside it.
pub fn forget_state(data: &Path) {
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        match fs::remove_file(data.join(file)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => panic!("{file}: {err}"),
            _ => {}
        }
    }
}
