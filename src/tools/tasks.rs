//! The task tools: what callers ask of one piece of work, and what workers say of it.
//!
//! Invariants:
//! - they hold no rule: what may be done to a task, the writer says;
//! - a claim's work is durable before its worker sees it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::Cid,
    engine::TOOL,
    error::{Code, Refusal},
    event::{Body, Event, work::TaskSubmitted},
    ledger::work::{CancelTask, Reprioritise, RetryTask, SubmitTask, Wish, Worked},
    query::{QueryError, View, work::page::TaskFilter},
    router::Invocation,
    task::{POISON, RETRIES_SPENT, Status, Task, WAIT_PREFIX},
    tools::{
        Builtin, again, arguments,
        desk::{
            Desk, Line, Paging, Told, content, invalid, lines, message, output, page, task_as_of, told,
            unexpected, unknown, worker,
        },
        doing::{Asked, Foretells, definition, does},
        reading::{self, time},
    },
    words::number,
};

const LISTER: &str = "task_list";

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("tasks", definition, does);
    vec![
        desk.foretelling("tasks", definition!("task_submit"), does!(submit), Some(SUBMITTING)),
        tool(definition!("task_status"), does!(status)),
        tool(definition!("task_cancel"), does!(cancel)),
        tool(definition!("task_list"), does!(list)),
        tool(definition!("task_priority"), does!(priority)),
        tool(definition!("task_retry"), does!(retry)),
        tool(definition!("task_result"), does!(result)),
    ]
}

/// Checks a task against the catalogue; the writer checks the rest.
pub fn checked(
    desk: &Desk,
    call: &Invocation,
    asked: &reading::Wish,
) -> Result<(TaskSubmitted, Option<Cid>), Refusal> {
    if asked.task_type.starts_with(WAIT_PREFIX) {
        let refusal = invalid(format!("types that begin with `{WAIT_PREFIX}` are the node's own"));
        return Err(refusal.hint("use another task_type, or wait in a workflow step"));
    }
    let tool = asked.task_type.strip_prefix(TOOL);
    if let Some(entry) = desk.offered(&asked.task_type).filter(|entry| !entry.secrets.is_empty()) {
        let value = serde_json::from_str(asked.payload.get()).unwrap_or_default();
        if let Some(refusal) = desk.secret(&entry, &value, "/payload") {
            return Err(refusal.hint(format!("a tool of this node is done as `{TOOL}{}`", asked.task_type)));
        }
    }
    let tool = tool.map(|name| on_offer(desk, call, name, &asked.payload)).transpose()?;
    let repeatable = tool.is_some_and(|(_, repeatable)| repeatable);
    Ok((TaskSubmitted { repeatable, ..asked.facts()? }, tool.map(|(contract, _)| contract)))
}

/// Returns the contract of a task's tool, and whether it may run again. Errors: the input does not fit it.
fn on_offer(desk: &Desk, call: &Invocation, name: &str, input: &RawValue) -> Result<(Cid, bool), Refusal> {
    let entry = desk.offered_to(&call.caller, name).ok_or_else(|| {
        invalid(format!("`task_type` names a tool that is not on offer: `{name}`"))
            .hint("tools_list_tools names the tools on offer")
    })?;
    let value: Value = serde_json::from_str(input.get()).map_err(|_| invalid("`payload` cannot be read"))?;
    entry.check(&value)?;
    if let Some(refusal) = desk.unkept(&entry, &value, "/payload") {
        return Err(refusal);
    }
    Ok((entry.tool.contract, entry.contract.repeatable()))
}

fn submitting(desk: &Desk, call: &Invocation) -> Asked {
    let asked: reading::Wish = arguments(call)?;
    let (facts, tool) = checked(desk, call, &asked)?;
    let input = desk.seal(asked.payload.get())?;
    let metadata = desk.seal_metadata(asked.metadata.as_deref())?;
    let (id, reason) = (asked.task_id.unwrap_or_default(), asked.reason);
    Ok((reason, Wish::SubmitTask(Box::new(SubmitTask { id, facts, tool, input, metadata }))))
}

/// Submits a task in the commit of the call's start. The same commit ends the call only if the task has left the
/// queue: its start need not be estimated then.
const SUBMITTING: Foretells = Foretells {
    wish: submitting,
    tell: |_, worked| match worked {
        Worked::Task { task, .. } if task.status != Status::Queued => {
            Some(submitted(worked, task.started_ms))
        }
        _ => None,
    },
};

async fn submit(desk: &Desk, call: &Invocation) -> Told {
    let worked = SUBMITTING.ask(desk, call).await?;
    let start = match &worked {
        Worked::Task { task, position, .. } if task.status == Status::Queued => {
            desk.start_of(task.ready_ms, position.unwrap_or(0)).await?
        }
        Worked::Task { task, .. } => task.started_ms,
        _ => None,
    };
    submitted(&worked, start)
}

fn submitted(worked: &Worked, start: Option<u64>) -> Told {
    let Worked::Task { task, position, replayed } = worked else { return Err(unexpected().into()) };
    told(&json!({
        "task_id": task.id,
        "status": task.status.as_str(),
        "queue_position": position,
        // When what waits will start depends on work and workers that nobody can foresee.
        "estimated_start_time": start.map(time),
        "assigned_worker": worker(task),
        "replayed": replayed,
    }))
}

#[derive(Deserialize)]
struct AskStatus {
    task_id: String,
    #[serde(default)]
    include_logs: bool,
    #[serde(default)]
    include_metrics: bool,
    #[serde(default, deserialize_with = "number::optional")]
    as_of_seq: Option<u64>,
}

/// A task as `task_status` shows it.
struct Seen {
    task: Task,
    lines: Option<Vec<Line>>,
    metrics: Option<Value>,
    error: Option<Value>,
    seq: u64,
}

async fn status(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskStatus = arguments(call)?;
    let id = asked.task_id.clone();
    let of = id.clone();
    let seen = desk.ask(move |view| {
        let Some((task, events, seq)) = task_as_of(view, &of, asked.as_of_seq)? else {
            return Ok(None);
        };
        let lines = asked.include_logs.then(|| lines(&events, |cid| content(view, cid))).transpose()?;
        let metrics = asked.include_metrics.then(|| metrics(&task, &events));
        let error = error(view, &task, &events)?;
        Ok(Some(Seen { task, lines, metrics, error, seq }))
    });
    let seen = seen.await?.ok_or_else(|| unknown("task", &id, LISTER))?;
    let Seen { task, lines, metrics, error, seq } = seen;
    let queued = task.status == Status::Queued;
    // The line as it stands now says nothing of an earlier one.
    let position = match queued && asked.as_of_seq.is_none() {
        true => desk.position(call, &id).await?,
        false => None,
    };
    let held = task.status == Status::Running;
    let mut shown = json!({
        "task_id": task.id,
        "task_type": task.facts.task_type,
        "status": task.status.as_str(),
        "progress": task.progress,
        "worker_id": worker(&task),
        "attempt": task.attempt,
        "priority": task.facts.priority,
        "tags": task.facts.tags,
        "submitted_at": time(task.submitted_ms),
        "start_time": task.started_ms.map(time),
        "end_time": task.ended_ms.map(time),
        "queue_position": position,
        "not_before": task.facts.not_before_ms.map(time),
        "retry_at": (queued && task.code.is_some()).then(|| time(task.ready_ms)),
        "lease_until": task.lease.as_ref().filter(|_| held).map(|lease| time(lease.until_ms)),
        "cancel_requested": task.cancel_requested,
        "dead_reason": dead_reason(&task),
        "workflow_id": task.facts.run,
        "step_id": task.facts.step,
        "seq": seq,
    });
    if let Some(lines) = lines {
        shown["logs"] = json!(lines);
    }
    if let Some(metrics) = metrics {
        shown["metrics"] = metrics;
    }
    if let Some(error) = error {
        shown["error"] = error;
    }
    told(&shown)
}

fn dead_reason(task: &Task) -> Option<&'static str> {
    (task.status == Status::Dead).then_some(match task.code.as_deref() {
        Some(POISON) => POISON,
        _ => RETRIES_SPENT,
    })
}

/// Returns the last failure of a task that did not succeed.
fn error(view: &View, task: &Task, events: &[Event]) -> Result<Option<Value>, QueryError> {
    let Some(code) = task.code.as_ref().filter(|_| task.status != Status::Succeeded) else { return Ok(None) };
    let said = match &task.output {
        Some(error) => content(view, &error.cid)?,
        None => None,
    };
    let message = said.map(|said| message(&said)).unwrap_or_default();
    let retryable = events.iter().rev().find_map(|event| match event.body()? {
        Body::TaskFailed(facts) => Some(facts.retryable),
        Body::TaskTimedOut(_) => Some(true),
        Body::TaskInterrupted(facts) => Some(facts.again),
        Body::TaskDead(facts) if facts.reason == POISON => Some(false),
        _ => None,
    });
    Ok(Some(json!({"code": code, "message": message, "retryable": retryable.unwrap_or(false)})))
}

/// The sums over a task's history.
struct Times {
    attempts: u64,
    /// Attempts that ended without an outcome.
    lapses: u64,
    /// Time it waited for its attempts while it could have run.
    waited_ms: u64,
    /// Time of all ended attempts. Of a held task, the time until what it waited for came.
    worked_ms: u64,
}

impl Times {
    fn of(task: &Task, events: &[Event]) -> Self {
        let mut times = Self { attempts: 0, lapses: 0, waited_ms: 0, worked_ms: 0 };
        let mut ready_ms = Some(task.submitted_ms);
        let mut begun_ms = None;
        for event in events {
            let at_ms = event.fields().at_ms();
            let retry_at_ms = match event.body() {
                Some(Body::TaskSubmitted(facts)) => {
                    begun_ms = facts.hold.is_some().then_some(at_ms);
                    ready_ms = Some(facts.not_before_ms.unwrap_or(0).max(at_ms));
                    continue;
                }
                Some(Body::TaskClaimed(_)) => {
                    times.attempts += 1;
                    times.waited_ms += ready_ms.take().map_or(0, |ready_ms| at_ms.saturating_sub(ready_ms));
                    begun_ms = Some(at_ms);
                    continue;
                }
                Some(Body::TaskLeaseExpired(_) | Body::TaskInterrupted(_)) => {
                    times.lapses += 1;
                    None
                }
                Some(Body::TaskFailed(facts)) => facts.retry_at_ms,
                Some(Body::TaskTimedOut(facts)) => facts.retry_at_ms,
                Some(Body::TaskSucceeded(_) | Body::TaskCancelled(_) | Body::TaskRetried(_)) => None,
                Some(_) | None => continue,
            };
            times.worked_ms += begun_ms.take().map_or(0, |begun_ms| at_ms.saturating_sub(begun_ms));
            ready_ms = Some(retry_at_ms.unwrap_or(at_ms));
        }
        times
    }
}

fn metrics(task: &Task, events: &[Event]) -> Value {
    let Times { attempts, lapses, waited_ms, worked_ms } = Times::of(task, events);
    json!({
        "queue_wait_ms": waited_ms,
        "execution_time_ms": worked_ms,
        "attempts": attempts,
        "lapses": lapses,
        "retry_count": task.retries,
    })
}

#[derive(Deserialize)]
struct Cancel {
    task_id: String,
    reason: Option<String>,
    #[serde(default)]
    force: bool,
}

async fn cancel(desk: &Desk, call: &Invocation) -> Told {
    let Cancel { task_id: task, reason, force } = arguments(call)?;
    let wish = Wish::CancelTask(CancelTask { task, force });
    let Worked::Task { task, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    let cancelled = task.status == Status::Cancelled;
    told(&json!({
        "task_id": task.id,
        "status": task.status.as_str(),
        "cancelled_at": task.ended_ms.filter(|_| cancelled).map(time),
        // What a worker was doing may have to be taken back.
        "cleanup_required": cancelled && task.lease.is_some(),
    }))
}

#[derive(Deserialize)]
struct List {
    status_filter: Option<String>,
    worker_filter: Option<String>,
    #[serde(default)]
    tag_filter: Vec<String>,
    priority_min: Option<u64>,
}

async fn list(desk: &Desk, call: &Invocation) -> Told {
    let asked: List = arguments(call)?;
    let paging: Paging = arguments(call)?;
    let filter = TaskFilter {
        status: asked.status_filter,
        worker: asked.worker_filter,
        tags: asked.tag_filter,
        priority_min: asked.priority_min,
    };
    let listed = desk.ask(move |view| view.tasks(&filter, paging.limit(), paging.from())).await?;
    told(&page("tasks", listed, |row| {
        json!({
            "task_id": row.id,
            "task_type": row.facts.task_type,
            "status": row.status,
            "priority": row.priority,
            "tags": row.facts.tags,
            "worker_id": row.worker,
            "attempt": row.attempt,
            "submitted_at": time(row.submitted_ms),
            "start_time": row.started_ms.map(time),
            "end_time": row.ended_ms.map(time),
        })
    }))
}

#[derive(Deserialize)]
struct Prioritise {
    task_id: String,
    new_priority: u64,
    reason: Option<String>,
}

async fn priority(desk: &Desk, call: &Invocation) -> Told {
    let Prioritise { task_id, new_priority, reason } = arguments(call)?;
    let wish = Wish::Reprioritise(Reprioritise { task: task_id, priority: new_priority });
    let Worked::Task { task, position, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    let last = task.last;
    let changed = desk.ask(move |view| Ok(view.event(&last)?.and_then(|event| event.body()))).await?;
    let old_priority = match changed {
        Some(Body::TaskReprioritised(facts)) => facts.from,
        Some(_) | None => new_priority,
    };
    told(&json!({
        "task_id": task.id,
        "old_priority": old_priority,
        "new_priority": task.facts.priority,
        "new_queue_position": position,
    }))
}

#[derive(Deserialize)]
struct Retry {
    task_id: String,
    #[serde(default)]
    retry_config: RetryConfig,
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct RetryConfig {
    max_retries: Option<u64>,
    timeout_ms: Option<u64>,
}

async fn retry(desk: &Desk, call: &Invocation) -> Told {
    let Retry { task_id: task, retry_config: RetryConfig { max_retries, timeout_ms }, reason } =
        arguments(call)?;
    again::task(desk, call, &task).await?;
    let wish = Wish::RetryTask(RetryTask { task, max_retries, timeout_ms });
    let Worked::Task { task, position, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({
        "task_id": task.id,
        "status": task.status.as_str(),
        "retry_count": task.retries,
        "queue_position": position,
    }))
}

#[derive(Deserialize)]
struct AskResult {
    task_id: String,
    #[serde(default = "yes")]
    include_output: bool,
    #[serde(default)]
    include_logs: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize)]
struct Gave {
    task_id: String,
    status: &'static str,
    result: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Vec<Line>>,
    execution_time_ms: u64,
    seq: u64,
}

async fn result(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskResult = arguments(call)?;
    let id = asked.task_id.clone();
    let gave = desk.ask(move |view| {
        let Some((task, events, seq)) = task_as_of(view, &asked.task_id, None)? else { return Ok(None) };
        let wanted = asked.include_output && task.status.ended();
        let output = wanted.then(|| output(view, &task)).transpose()?.flatten();
        let logs = asked.include_logs.then(|| lines(&events, |cid| content(view, cid))).transpose()?;
        let error = error(view, &task, &events)?;
        let gave = Gave {
            task_id: task.id.clone(),
            status: task.status.as_str(),
            result: json!({
                "output": task.output.map(|output| output.cid.to_string()),
                "size": task.output.map(|output| output.len),
                "attempts": task.attempt,
                "reused": task.reused,
                "error": error,
            }),
            output,
            logs,
            execution_time_ms: Times::of(&task, &events).worked_ms,
            seq,
        };
        Ok(Some((gave, task.status)))
    });
    let (gave, status) = gave.await?.ok_or_else(|| unknown("task", &id, LISTER))?;
    if !status.ended() {
        let message = format!("task {id} has not ended: it is {}", status.as_str());
        return Err(Refusal::new(Code::FailedPrecondition, message)
            .retryable()
            .hint("follow it with task_status")
            .into());
    }
    told(&gave)
}
