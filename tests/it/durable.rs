//! Tasks, the queue, workers and schedules at the door: what is promised of work that waits, runs, fails and ends.

mod failing;
mod node;
mod order;
mod submitting;
mod workers;

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use cairn::event::{Body, work::TaskFailed};
use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp},
    record::{self, until},
    speech::{ask, keyed},
    upstream::{Upstream, serve},
    work::{Caller, Worker, claims_ms, history, ids, kinds},
};

/// Leases short enough to wait for.
const SHORT_LEASES: &str = "[tasks]\nlease_ms = 1000\n";

fn quiet(data: &tempfile::TempDir) -> Server {
    Server::start(data.path(), &[])
}

fn ended_well(server: Server, data: &tempfile::TempDir) {
    assert!(server.stop().success());
    record::check(data.path());
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

/// What a task looks like, without when it was asked.
fn shown(caller: &mut Caller, id: &str) -> Value {
    let mut task = caller.task(id);
    task["seq"] = Value::Null;
    task
}
