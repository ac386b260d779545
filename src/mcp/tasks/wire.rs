//! The form of tasks on the wire, of both eras.
//!
//! Invariants:
//! - in sessions a result that says it is an error fails its task; in revision 2026-07-28 only a JSON-RPC error does;
//! - a result stands in a task as its source wrote it.

use std::fmt::Write;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::{
    block::{Cid, splice},
    mcp::era::Era,
    router::{Record, RpcError, handles::Question},
    task::Task,
};

/// Milliseconds after which clients are to look again.
const POLL_MS: u64 = 500;

/// How a task ended.
pub enum Ending {
    Result(Box<RawValue>),
    Error(RpcError),
    Cancelled,
}

/// A task as its client sees it.
pub struct Seen {
    /// The task whose id the client has.
    pub task: Task,
    pub ttl_ms: u64,
    /// The task that goes on from it, or itself.
    pub last: Task,
    pub questions: Vec<Question>,
    /// `None` if it has not ended.
    pub ending: Option<Ending>,
}

impl Seen {
    /// Returns the word of its status.
    pub fn status(&self, era: Era) -> &'static str {
        match &self.ending {
            None if self.questions.is_empty() => "working",
            None => "input_required",
            Some(Ending::Cancelled) => "cancelled",
            Some(Ending::Error(_)) => "failed",
            Some(Ending::Result(result)) if era == Era::Session && is_error(result) => "failed",
            Some(Ending::Result(_)) => "completed",
        }
    }
}

/// Returns the result that names a new task.
pub fn created(task: &Task, era: Era) -> String {
    let ttl_ms = task.facts.handle.as_ref().map_or(0, |handle| handle.ttl_ms);
    let told = members(&task.id, "working", (task.submitted_ms, task.submitted_ms), ttl_ms, era);
    match era {
        Era::Session => format!(r#"{{"task":{{{told}}}}}"#),
        Era::Stateless => format!(r#"{{"resultType":"task",{told}}}"#),
    }
}

/// Returns a task as a JSON object; in revision 2026-07-28 with what it asks, or what came of it.
pub fn said(seen: &Seen, era: Era) -> String {
    let Seen { task, last, .. } = seen;
    let updated = last.ended_ms.or(last.started_ms).unwrap_or(last.submitted_ms).max(task.submitted_ms);
    let mut out =
        format!("{{{}", members(&task.id, seen.status(era), (task.submitted_ms, updated), seen.ttl_ms, era));
    if let Some(Ending::Error(error)) = &seen.ending {
        out.extend([r#","statusMessage":"#, &splice::quoted(&error.message)]);
    }
    match &seen.ending {
        _ if era == Era::Session => {}
        Some(Ending::Result(result)) => out.extend([r#","result":"#, result.get()]),
        Some(Ending::Error(error)) => {
            let message = splice::quoted(&error.message);
            let _ = write!(out, r#","error":{{"code":{},"message":{message}"#, error.code);
            if let Some(data) = &error.data {
                let _ = write!(out, r#","data":{data}"#);
            }
            out.push('}');
        }
        Some(Ending::Cancelled) => {}
        None if seen.questions.is_empty() => {}
        None => {
            let asked = seen.questions.iter().map(|Question { key, method, params }| {
                let (key, method) = (splice::quoted(key), splice::quoted(method));
                format!(r#"{key}:{{"method":{method},"params":{params}}}"#)
            });
            let _ = write!(out, r#","inputRequests":{{{}}}"#, asked.collect::<Vec<_>>().join(","));
        }
    }
    out.push('}');
    out
}

/// Returns one page of a list.
pub fn listed(tasks: &[String], next: Option<&str>) -> String {
    let next = next.map(|next| format!(r#","nextCursor":{}"#, splice::quoted(next))).unwrap_or_default();
    format!(r#"{{"tasks":[{}]{next}}}"#, tasks.join(","))
}

/// Returns where the last event of a task stands.
pub fn record(task: &Task, log: Cid) -> Record {
    Record {
        event: task.last,
        contract: task.tool,
        input: task.input.map(|input| input.cid),
        output: task.output.map(|output| output.cid),
        seq: task.last_seq,
        log,
        replayed: false,
        cancelled: false,
        own: false,
    }
}

fn members(id: &str, status: &str, (made_ms, updated_ms): (u64, u64), ttl_ms: u64, era: Era) -> String {
    let (ttl, poll) = match era {
        Era::Session => ("ttl", "pollInterval"),
        Era::Stateless => ("ttlMs", "pollIntervalMs"),
    };
    let (id, made, updated) = (splice::quoted(id), time(made_ms), time(updated_ms));
    format!(
        r#""taskId":{id},"status":"{status}","createdAt":"{made}","lastUpdatedAt":"{updated}","{ttl}":{ttl_ms},"{poll}":{POLL_MS}"#
    )
}

fn is_error(result: &RawValue) -> bool {
    splice::member(result, "isError").ok().flatten().is_some_and(|claim| claim.get() == "true")
}

fn time(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", moment.unwrap_or(Timestamp::MAX))
}
