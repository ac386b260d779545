//! The worker tools: make workers known, see what they do, let them leave.
//!
//! Invariants:
//! - whether a worker is there, the writer decides; here it is told.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    clock::now_ms,
    engine::TOOL,
    entity,
    event::{Body, Event, Kind, work::WorkerRegistered},
    ledger::work::{RegisterWorker, UnregisterWorker, Wish, Worked},
    query::{
        QueryError, View,
        list::{Filter, LIMIT_MAX},
        work::{
            At, Load,
            page::{From, TaskFilter},
        },
    },
    router::Invocation,
    task::{Status, Task},
    tools::{
        Builtin, again, arguments,
        desk::{Desk, Told, seen, task_as_of, told, unexpected, unknown},
        doing::{definition, does},
        queue::standing,
        reading::time,
    },
    words::number,
    worker::{self, Presence, Worker},
};

const LISTER: &str = "queue_stats with include_worker_stats";
const CONCURRENT: u64 = 5;
const LEAVE_MS: u64 = 300_000;
/// Tasks of a worker in one answer: no worker has more at once.
const TASKS_MAX: u64 = worker::CONCURRENT_MAX;
/// Claims that are searched for what a worker had done at an earlier moment.
const CLAIMS_MAX: u64 = 100_000;

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("workers", definition, does);
    vec![
        tool(definition!("worker_register"), does!(register)),
        tool(definition!("worker_unregister"), does!(unregister)),
        tool(definition!("worker_status"), does!(status)),
    ]
}

#[derive(Deserialize)]
struct Register {
    worker_id: String,
    capabilities: Vec<String>,
    max_concurrent_tasks: Option<u64>,
    #[serde(default)]
    resource_limits: Resources,
    metadata: Option<Box<RawValue>>,
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Resources {
    cpu_cores: Option<f64>,
    memory_mb: Option<u64>,
}

async fn register(desk: &Desk, call: &Invocation) -> Told {
    let asked: Register = arguments(call)?;
    // Tasks for a tool hold what the tool is called with.
    let tools = asked.capabilities.iter().filter_map(|capability| capability.strip_prefix(TOOL));
    tools.into_iter().try_for_each(|tool| again::seen(desk, call, tool))?;
    let facts = WorkerRegistered {
        capabilities: asked.capabilities,
        max_concurrent: asked.max_concurrent_tasks.unwrap_or(CONCURRENT),
        // The schema bounds the cores.
        cpu_milli: asked.resource_limits.cpu_cores.map(|cores| (cores * 1000.0).round() as u64),
        memory_mb: asked.resource_limits.memory_mb,
    };
    let metadata = desk.seal_metadata(asked.metadata.as_deref())?;
    let wish = Wish::RegisterWorker(RegisterWorker { worker: asked.worker_id, facts, metadata });
    let Worked::Worker { worker, lease_ms, .. } = desk.wish(call, asked.reason.as_deref(), wish).await?
    else {
        return Err(unexpected().into());
    };
    told(&json!({
        "worker_id": worker.id,
        "status": worker.status().as_str(),
        "registered_at": time(worker.registered_ms),
        "lease_ms": lease_ms,
        "assigned_peers": [],
    }))
}

#[derive(Deserialize)]
struct Unregister {
    worker_id: String,
    #[serde(default = "yes")]
    graceful: bool,
    timeout_ms: Option<u64>,
    reason: Option<String>,
}

fn yes() -> bool {
    true
}

async fn unregister(desk: &Desk, call: &Invocation) -> Told {
    let Unregister { worker_id: worker, graceful, timeout_ms, reason } = arguments(call)?;
    let wish = Wish::UnregisterWorker(UnregisterWorker {
        worker,
        graceful,
        timeout_ms: timeout_ms.unwrap_or(LEAVE_MS),
    });
    let Worked::Worker { worker, at_ms, abandoned, .. } = desk.wish(call, reason.as_deref(), wish).await?
    else {
        return Err(unexpected().into());
    };
    let left = worker.presence == Presence::Unregistered;
    let id = worker.id.clone();
    let load = desk.ask(move |view| view.worker_load(&id)).await?.what;
    told(&json!({
        "worker_id": worker.id,
        "status": worker.status().as_str(),
        "unregistered_at": left.then(|| time(at_ms)),
        "completed_tasks": load.succeeded,
        "abandoned_tasks": abandoned,
    }))
}

#[derive(Deserialize)]
struct AskStatus {
    worker_id: String,
    #[serde(default)]
    include_tasks: bool,
    #[serde(default)]
    include_metrics: bool,
    #[serde(default, deserialize_with = "number::optional")]
    as_of_seq: Option<u64>,
}

async fn status(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskStatus = arguments(call)?;
    let id = asked.worker_id.clone();
    let shown = desk.ask(move |view| {
        let At { applied, what: events } = view.load(&worker::subject(&asked.worker_id), asked.as_of_seq)?;
        let seq = seen(applied, asked.as_of_seq)?;
        let Some(worker) = entity::folded::<Worker>(&events, &()) else { return Ok(None) };
        let (load, held) = match asked.as_of_seq {
            None if asked.include_tasks => (view.worker_load(&worker.id)?.what, held(view, &worker.id)?),
            None => (view.worker_load(&worker.id)?.what, Vec::new()),
            Some(as_of) => past(view, &worker.id, as_of)?,
        };
        let presence = worker.presence.status().as_str();
        let mut shown = json!({
            "worker_id": worker.id,
            "status": standing(presence, load.running, worker.facts.max_concurrent),
            "running_tasks": load.running,
            "completed_tasks": load.succeeded,
            "failed_tasks": load.failed,
            "capabilities": worker.facts.capabilities,
            "max_concurrent_tasks": worker.facts.max_concurrent,
            "registered_at": time(worker.registered_ms),
            "seq": seq,
        });
        if asked.include_tasks {
            shown["tasks"] = held.iter().filter_map(task).collect();
        }
        if asked.include_metrics {
            let here = !matches!(worker.presence, Presence::Lost | Presence::Unregistered);
            shown["metrics"] = metrics(&load, here.then_some(worker.registered_ms));
        }
        Ok(Some(shown))
    });
    told(&shown.await?.ok_or_else(|| unknown("worker", &id, LISTER))?)
}

fn metrics(load: &Load, since_ms: Option<u64>) -> Value {
    let ended = load.succeeded + load.failed;
    json!({
        "average_execution_time_ms": load.execution_ms.checked_div(ended),
        "execution_time_ms": load.execution_ms,
        "success_rate": (ended > 0).then(|| load.succeeded as f64 / ended as f64),
        "uptime_ms": since_ms.map(|since_ms| now_ms().saturating_sub(since_ms)),
    })
}

/// Returns the tasks a worker has now.
fn held(view: &View, id: &str) -> Result<Vec<Task>, QueryError> {
    let filter = TaskFilter {
        status: Some(Status::Running.as_str().to_owned()),
        worker: Some(id.to_owned()),
        ..TaskFilter::default()
    };
    let rows = view.tasks(&filter, TASKS_MAX, From::Offset(0))?.what.rows;
    let tasks = rows.iter().map(|row| Ok(task_as_of(view, &row.id, None)?.map(|(task, _, _)| task)));
    tasks.filter_map(Result::transpose).collect()
}

/// Returns a worker's load and tasks after the event `as_of`, from its claims, of which there may be many.
fn past(view: &View, id: &str, as_of: u64) -> Result<(Load, Vec<Task>), QueryError> {
    let claims = Filter {
        kind: Some(Kind::TaskClaimed.as_str().to_owned()),
        to_seq: Some(as_of),
        ..Filter::default()
    };
    if view.count(&claims)? > CLAIMS_MAX {
        let message = format!("there are more than {CLAIMS_MAX} claims before that moment");
        return Err(QueryError::TooMuch(message));
    }
    let mut tasks = BTreeSet::new();
    let mut cursor = None;
    loop {
        let page = view.list(&claims, LIMIT_MAX, cursor.as_deref())?;
        for event in &page.events {
            let by = matches!(event.body(), Some(Body::TaskClaimed(facts)) if facts.worker == id);
            tasks.extend(event.fields().subject.strip_prefix("task/").filter(|_| by).map(str::to_owned));
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let mut load = Load::default();
    let mut held = Vec::new();
    for task in tasks {
        let Some((task, events, _)) = task_as_of(view, &task, Some(as_of))? else { continue };
        add_attempts(&mut load, id, &events);
        let has =
            task.status == Status::Running && task.lease.as_ref().is_some_and(|lease| lease.worker == id);
        held.extend(has.then_some(task));
    }
    load.running = held.len() as u64;
    Ok((load, held))
}

/// Adds the outcomes of a worker's attempts at one task.
fn add_attempts(load: &mut Load, id: &str, events: &[Event]) {
    let mut claimed_ms = None;
    for event in events {
        let at_ms = event.fields().at_ms();
        let outcome = match event.body() {
            Some(Body::TaskClaimed(facts)) => {
                claimed_ms = (facts.worker == id).then_some(at_ms);
                continue;
            }
            Some(Body::TaskSucceeded(_)) => Some(true),
            Some(Body::TaskFailed(_) | Body::TaskTimedOut(_)) => Some(false),
            Some(Body::TaskLeaseExpired(_) | Body::TaskInterrupted(_) | Body::TaskCancelled(_)) => None,
            Some(_) | None => continue,
        };
        if let (Some(claimed_ms), Some(succeeded)) = (claimed_ms.take(), outcome) {
            load.succeeded += u64::from(succeeded);
            load.failed += u64::from(!succeeded);
            load.execution_ms += at_ms.saturating_sub(claimed_ms);
        }
    }
}

fn task(task: &Task) -> Option<Value> {
    let lease = task.lease.as_ref()?;
    Some(json!({
        "task_id": task.id,
        "task_type": task.facts.task_type,
        "attempt": task.attempt,
        "fence": task.fence,
        "start_time": time(lease.claimed_ms),
        "lease_until": time(lease.until_ms),
        "progress": task.progress,
    }))
}
