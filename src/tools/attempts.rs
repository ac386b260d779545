//! What workers call: they claim tasks, say that they go on, and end their attempts.
//!
//! Invariants:
//! - a claim's work is durable before its worker sees it;
//! - a call with an old fence changes nothing.

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::{
    call::Refusal,
    ledger::work::{Wish, Worked},
    router::Invocation,
    task::Status,
    tools::{
        Builtin, arguments,
        reading::time,
        work::{Desk, Foretells, Given, Told, invalid, told, unexpected},
    },
};

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("tasks", definition, does);
    let asking =
        |definition, does, foretells: Foretells| desk.foretelling("tasks", definition, does, Some(foretells));
    vec![
        tool(include_str!("../../schemas/tools/task_claim.json"), |desk, call| {
            Box::pin(async move { claim(&desk, &call).await })
        }),
        asking(
            include_str!("../../schemas/tools/task_heartbeat.json"),
            |desk, call| Box::pin(async move { heartbeat(&desk, &call).await }),
            renewing,
        ),
        asking(
            include_str!("../../schemas/tools/task_complete.json"),
            |desk, call| Box::pin(async move { complete(&desk, &call).await }),
            completing,
        ),
        asking(
            include_str!("../../schemas/tools/task_fail.json"),
            |desk, call| Box::pin(async move { fail(&desk, &call).await }),
            failing,
        ),
    ]
}

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
struct Claimed {
    tasks: Vec<Given>,
}

async fn claim(desk: &Desk, call: &Invocation) -> Told {
    let Claim { worker_id: worker, max_tasks: max, wait_ms, reason } = arguments(call)?;
    let wish = Wish::Claim { worker, max, wait_ms, hand: None };
    let Worked::Claimed(handed) = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&Claimed { tasks: handed.into_iter().map(Given::from).collect() })
}

/// What a worker says of an attempt: whose, of which task, under which fence.
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

fn renewing(desk: &Desk, call: &Invocation) -> Result<(Option<String>, Wish), Refusal> {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Beat { progress, log } = arguments(call)?;
    let log = log.map(|log| desk.seal_text(&log)).transpose()?;
    Ok((reason, Wish::Renew { worker, task, fence, progress, log }))
}

async fn heartbeat(desk: &Desk, call: &Invocation) -> Told {
    let Attempt { task_id: task, .. } = arguments(call)?;
    let (reason, wish) = renewing(desk, call)?;
    let Worked::Renewed { lease_until_ms, cancel_requested } =
        desk.wish(call, reason.as_deref(), wish).await?
    else {
        return Err(unexpected().into());
    };
    told(&json!({
        "task_id": task,
        "lease_until": time(lease_until_ms),
        "cancel_requested": cancel_requested,
    }))
}

#[derive(Deserialize)]
struct Outcome {
    output: Box<RawValue>,
    #[serde(default)]
    claim_next: bool,
}

#[derive(Serialize)]
struct Completed {
    task_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<Vec<Given>>,
}

fn completing(desk: &Desk, call: &Invocation) -> Result<(Option<String>, Wish), Refusal> {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Outcome { output, claim_next } = arguments(call)?;
    let output = desk.seal(output.get())?;
    Ok((reason, Wish::Complete { worker, task, fence, output, claim_next }))
}

async fn complete(desk: &Desk, call: &Invocation) -> Told {
    let Outcome { claim_next, .. } = arguments(call)?;
    let (reason, wish) = completing(desk, call)?;
    let Worked::Ended { task, next } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&Completed {
        task_id: task.id,
        status: task.status.as_str(),
        tasks: claim_next.then(|| next.into_iter().map(Given::from).collect()),
    })
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

fn failing(desk: &Desk, call: &Invocation) -> Result<(Option<String>, Wish), Refusal> {
    let Attempt { worker_id: worker, task_id: task, fence, reason } = arguments(call)?;
    let Failing { error } = arguments(call)?;
    let Failed { code, retryable } = serde_json::from_str(error.get())
        .map_err(|err| invalid(format!("invalid input at /error: {err}")))?;
    let error = desk.seal(error.get())?;
    Ok((reason, Wish::Fail { worker, task, fence, error, code, retryable }))
}

async fn fail(desk: &Desk, call: &Invocation) -> Told {
    let (reason, wish) = failing(desk, call)?;
    let Worked::Ended { task, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    let again = task.status == Status::Queued;
    told(&json!({
        "task_id": task.id,
        "status": task.status.as_str(),
        "retry_at": again.then(|| time(task.ready_ms)),
    }))
}

fn yes() -> bool {
    true
}
