//! What workers call: they claim tasks, say that they go on, and end their attempts.
//!
//! Invariants:
//! - a claim's work is durable before its worker sees it;
//! - a call with an old fence changes nothing.

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    ledger::work::{self, Handed, Wish, Worked},
    router::Invocation,
    task::Status,
    tools::{
        Builtin, arguments,
        denied::Denied,
        desk::{Desk, Given, Told, invalid, told, unexpected},
        doing::{Asked, Foretells, definition, does},
        reading::time,
    },
};

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let asking = |definition, does, foretells| desk.foretelling("tasks", definition, does, Some(foretells));
    vec![
        asking(definition!("task_claim"), does!(claim), CLAIM),
        asking(definition!("task_heartbeat"), does!(HEARTBEAT.done), HEARTBEAT),
        asking(definition!("task_complete"), does!(COMPLETE.done), COMPLETE),
        asking(definition!("task_fail"), does!(FAIL.done), FAIL),
    ]
}

/// Claims waiting tasks in the commit of the call's start. Only if there are none does a second claim wait.
const CLAIM: Foretells = Foretells { wish: claiming, tell: claimed };
const HEARTBEAT: Foretells = Foretells { wish: renewing, tell: renewed };
const COMPLETE: Foretells = Foretells { wish: completing, tell: completed };
const FAIL: Foretells = Foretells { wish: failing, tell: failed };

#[derive(Deserialize)]
struct Claim {
    worker_id: String,
    #[serde(default = "one")]
    max_tasks: usize,
    #[serde(default)]
    wait_ms: u64,
    reason: Option<String>,
}

fn one() -> usize {
    1
}

#[derive(Serialize)]
struct Claimed<'a> {
    tasks: Vec<Given<'a>>,
}

fn claiming(_: &Desk, call: &Invocation) -> Asked {
    let Claim { worker_id: worker, max_tasks: max, reason, .. } = arguments(call)?;
    Ok((reason, Wish::Claim(work::Claim { worker, max, wait_ms: 0, hand: None })))
}

/// Returns the answer, or `None` if nothing was claimed and the caller is willing to wait.
fn claimed(call: &Invocation, worked: &Worked) -> Option<Told> {
    let Worked::Claimed(handed) = worked else { return None };
    let waits = handed.is_empty() && arguments::<Claim>(call).is_ok_and(|asked| asked.wait_ms > 0);
    (!waits).then(|| given(handed))
}

fn given(handed: &[Handed]) -> Told {
    told(&Claimed { tasks: handed.iter().map(Given::from).collect() })
}

async fn claim(desk: &Desk, call: &Invocation) -> Told {
    let worked = CLAIM.ask(desk, call).await?;
    if let Some(told) = claimed(call, &worked) {
        return told;
    }
    let Claim { worker_id: worker, max_tasks: max, wait_ms, reason } = arguments(call)?;
    let wish = Wish::Claim(work::Claim { worker, max, wait_ms, hand: None });
    match desk.wish(call, reason.as_deref(), wish).await? {
        Worked::Claimed(handed) => given(&handed),
        _ => Err(unexpected().into()),
    }
}

/// The arguments that name an attempt: its worker, task and fence.
#[derive(Deserialize)]
struct Attempt {
    worker_id: String,
    task_id: String,
    fence: u64,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Beat {
    progress: Option<u64>,
    log: Option<String>,
}

fn renewing(desk: &Desk, call: &Invocation) -> Asked {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Beat { progress, log } = arguments(call)?;
    let log = log.map(|log| desk.seal_text(&log)).transpose()?;
    Ok((reason, Wish::Renew(work::Renew { worker, task, fence, progress, log })))
}

fn renewed(call: &Invocation, worked: &Worked) -> Option<Told> {
    let Worked::Renewed { lease_until_ms, cancel_requested } = worked else { return None };
    let told = |Attempt { task_id: task, .. }| {
        told(&json!({
            "task_id": task,
            "lease_until": time(*lease_until_ms),
            "cancel_requested": cancel_requested,
        }))
    };
    Some(arguments(call).map_err(Denied::from).and_then(told))
}

#[derive(Deserialize)]
struct Outcome {
    output: Box<RawValue>,
}

#[derive(Deserialize)]
struct Next {
    #[serde(default)]
    claim_next: bool,
}

#[derive(Serialize)]
struct Completed<'a> {
    task_id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<Vec<Given<'a>>>,
}

fn completing(desk: &Desk, call: &Invocation) -> Asked {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Outcome { output } = arguments(call)?;
    let Next { claim_next } = arguments(call)?;
    let output = desk.seal(output.get())?;
    Ok((reason, Wish::Complete(work::Complete { worker, task, fence, output, claim_next })))
}

fn completed(call: &Invocation, worked: &Worked) -> Option<Told> {
    let Worked::Ended { task, next } = worked else { return None };
    let claim_next = arguments::<Next>(call).is_ok_and(|asked| asked.claim_next);
    Some(told(&Completed {
        task_id: &task.id,
        status: task.status.as_str(),
        tasks: claim_next.then(|| next.iter().map(Given::from).collect()),
    }))
}

#[derive(Deserialize)]
struct Failing {
    error: Box<RawValue>,
}

#[derive(Deserialize)]
struct Failed {
    code: String,
    #[serde(default = "yes")]
    retryable: bool,
}

fn failing(desk: &Desk, call: &Invocation) -> Asked {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Failing { error } = arguments(call)?;
    let Failed { code, retryable } = serde_json::from_str(error.get())
        .map_err(|err| invalid(format!("invalid input at /error: {err}")))?;
    let error = desk.seal(error.get())?;
    Ok((reason, Wish::Fail(work::Fail { worker, task, fence, error, code, retryable })))
}

fn failed(_: &Invocation, worked: &Worked) -> Option<Told> {
    let Worked::Ended { task, .. } = worked else { return None };
    let again = task.status == Status::Queued;
    Some(told(&json!({
        "task_id": task.id,
        "status": task.status.as_str(),
        "retry_at": again.then(|| time(task.ready_ms)),
    })))
}

fn yes() -> bool {
    true
}
