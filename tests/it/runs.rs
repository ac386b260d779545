//! Workflows at the door: what flows between steps, what may stop them, and that what happened can be told again.

mod again;
mod children;
mod lists;
mod stopping;
mod values;
mod waiting;

use std::{collections::BTreeSet, fs, time::Duration};

use cairn::event::{Body, Event, work::Part};
use serde_json::{Value, json};

use crate::{
    harness::{Server, temp},
    record::{self, until},
    upstream::{Upstream, configure, serve},
    work::{Caller, Worker, ids, kinds, put, stand},
};

fn quiet(data: &tempfile::TempDir) -> Server {
    Server::start(data.path(), &[])
}

fn ended_well(server: Server, data: &tempfile::TempDir) -> Vec<Event> {
    assert!(server.stop().success());
    let events = record::check(data.path());
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
    events
}

/// A step; `more` are further fields.
fn step(id: &str, action: &str, more: Value) -> Value {
    let mut step = json!({"step_id": id, "action": action});
    put(&mut step, more);
    step
}

/// A step of a worker that follows others.
fn after(id: &str, depends_on: &[&str]) -> Value {
    step(id, "worker:a", json!({"depends_on": depends_on}))
}

fn from(step: &str, pointer: &str) -> Value {
    json!({"$from": step, "pointer": pointer})
}

/// Runs the replay of `mode=verify` on a run, which must match in every step.
fn replays(caller: &mut Caller, run: &str) -> Value {
    let told = caller.tell("workflow_replay", json!({"workflow_id": run}));
    assert_eq!(told["matched"], true, "{told}");
    assert_eq!(told["first_divergence"], Value::Null, "{told}");
    told
}

/// The tasks of steps in the order in which they were claimed.
fn claimed(events: &[Event]) -> Vec<String> {
    let claims = events.iter().filter(|event| record::kind(event) == "task.claimed");
    claims.filter_map(|event| event.fields().subject.strip_prefix("task/").map(str::to_owned)).collect()
}

/// Looks until `seen` gives something, for longer than other tests wait.
fn until_within<T>(within: Duration, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + within;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(std::time::Instant::now() < deadline, "not within {within:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
