//! The queue tools: watch, pause, resume and clear what waits.
//!
//! Invariants:
//! - numbers are counted from the log's state, at one seq;
//! - alerts are those that a scrape of the metrics shows.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    clock::now_ms,
    error::Refusal,
    ledger::work::{ClearQueue, Wish, Worked},
    query::work::{
        At, Worker,
        alerts::alerts,
        history::{Minute, QueueStats},
    },
    router::Invocation,
    state::work::{RUN_STATUSES, TASK_STATUSES},
    task::{Moment, Status},
    tools::{
        Builtin, arguments,
        desk::{Desk, LATELY, MINUTE_MS, Told, invalid, told, unexpected},
        doing::{definition, does},
        reading::time,
    },
};

/// Minutes that averages are over, and that a history shows.
const WINDOW: u64 = 60;

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("queue", definition, does);
    vec![
        tool(definition!("queue_stats"), does!(stats)),
        tool(definition!("queue_pause"), does!(pause)),
        tool(definition!("queue_resume"), does!(resume)),
        tool(definition!("queue_clear"), does!(clear)),
    ]
}

#[derive(Deserialize)]
struct AskStats {
    #[serde(default)]
    include_worker_stats: bool,
    #[serde(default)]
    include_historical: bool,
}

/// The queue's counts now, and its last minutes.
struct Look {
    stats: QueueStats,
    /// The last [`WINDOW`] of them in which something happened.
    minutes: Vec<Minute>,
    now_ms: u64,
}

async fn stats(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskStats = arguments(call)?;
    let (now_ms, limits) = (now_ms(), desk.limits);
    let wal = desk.router.ledger().wal().map(Into::into);
    let shown = desk.ask(move |view| {
        let At { applied, what: stats } = view.queue_stats()?;
        let minutes = view.minutes((now_ms / MINUTE_MS).saturating_sub(WINDOW - 1))?.what;
        let look = Look { stats, minutes, now_ms };
        let mut shown = look.shown();
        if asked.include_worker_stats {
            shown["worker_stats"] = view.workers()?.what.iter().map(worker).collect();
        }
        if asked.include_historical {
            shown["historical"] = look.minutes.iter().map(minute).collect();
            shown["alerts"] = json!(alerts(view, &Moment { now_ms, limits }, wal)?);
        }
        shown["seq"] = json!(applied.saturating_sub(1));
        Ok(shown)
    });
    told(&shown.await?)
}

impl Look {
    fn shown(&self) -> Value {
        let counts = &self.stats.counts;
        let named = |names: &[&str], counts: &[u64]| -> Map<String, Value> {
            names.iter().zip(counts).map(|(name, n)| ((*name).to_owned(), json!(n))).collect()
        };
        json!({
            "counts": named(&TASK_STATUSES, &counts.tasks),
            "workflows": named(&RUN_STATUSES, &counts.runs),
            "paused": self.stats.paused.is_some(),
            "average_wait_time_ms": self.average_wait_ms(),
            "average_execution_time_ms": average(self.sum(|minute| minute.execution_ms), self.sum(|minute| minute.executed)),
            "throughput_per_minute": self.throughput(),
            "oldest_queued_ms": self.oldest_ms(),
        })
    }

    fn sum(&self, of: impl Fn(&Minute) -> u64) -> u64 {
        self.minutes.iter().map(of).sum()
    }

    fn average_wait_ms(&self) -> Option<u64> {
        average(self.sum(|minute| minute.wait_ms), self.sum(|minute| minute.started))
    }

    fn oldest_ms(&self) -> Option<u64> {
        self.stats.oldest_queued_ms.map(|at_ms| self.now_ms.saturating_sub(at_ms))
    }

    fn lately(&self, of: impl Fn(&Minute) -> u64) -> u64 {
        let first = (self.now_ms / MINUTE_MS).saturating_sub(LATELY - 1);
        self.minutes.iter().filter(|minute| minute.minute >= first).map(of).sum()
    }

    fn throughput(&self) -> f64 {
        self.lately(|minute| minute.executed) as f64 / LATELY as f64
    }
}

fn average(sum: u64, of: u64) -> Option<u64> {
    sum.checked_div(of)
}

fn minute(minute: &Minute) -> Value {
    json!({
        "minute": time(minute.minute * MINUTE_MS),
        "submitted": minute.submitted,
        "started": minute.started,
        "succeeded": minute.succeeded,
        "failed": minute.failed,
        "workflows_ended": minute.runs_ended,
        "workflows_failed": minute.runs_failed,
        "average_wait_time_ms": average(minute.wait_ms, minute.started),
        "average_execution_time_ms": average(minute.execution_ms, minute.executed),
    })
}

fn worker(worker: &Worker) -> Value {
    json!({
        "worker_id": worker.id,
        "status": standing(worker.status, worker.load.running, worker.max_concurrent),
        "running_tasks": worker.load.running,
        "max_concurrent_tasks": worker.max_concurrent,
        "completed_tasks": worker.load.succeeded,
        "failed_tasks": worker.load.failed,
    })
}

/// Returns a worker's status: its presence, or `busy` or `idle` for an active one.
pub fn standing(presence: &str, running: u64, max: u64) -> &str {
    match presence {
        "active" if running >= max => "busy",
        "active" if running == 0 => "idle",
        other => other,
    }
}

#[derive(Deserialize)]
struct Reason {
    reason: Option<String>,
}

/// The answer to a command about the queue: when it was carried out, and what waited and ran then.
struct Queue {
    at_ms: u64,
    waiting: u64,
    running: u64,
    cleared: u64,
    /// Where to go on clearing.
    next: Option<(u64, u64)>,
}

async fn wish(desk: &Desk, call: &Invocation, reason: Option<&str>, wish: Wish) -> Result<Queue, Refusal> {
    match desk.wish(call, reason, wish).await? {
        Worked::Queue { at_ms, waiting, running, cleared, next } => {
            Ok(Queue { at_ms, waiting, running, cleared, next })
        }
        _ => Err(unexpected()),
    }
}

async fn pause(desk: &Desk, call: &Invocation) -> Told {
    let Reason { reason } = arguments(call)?;
    let queue = wish(desk, call, reason.as_deref(), Wish::PauseQueue).await?;
    told(&json!({
        "status": "paused",
        "paused_at": time(queue.at_ms),
        "reason": reason,
        "queued_tasks": queue.waiting,
        "running_tasks": queue.running,
    }))
}

async fn resume(desk: &Desk, call: &Invocation) -> Told {
    let Reason { reason } = arguments(call)?;
    let queue = wish(desk, call, reason.as_deref(), Wish::ResumeQueue).await?;
    told(&json!({
        "status": "active",
        "resumed_at": time(queue.at_ms),
        "queued_tasks": queue.waiting,
        // The line is always in its order.
        "reordered": false,
    }))
}

#[derive(Deserialize)]
struct Clear {
    status_filter: Option<String>,
    reason: Option<String>,
}

/// Clears all tasks of the statuses, by as many commands as that takes: each is bounded.
async fn clear(desk: &Desk, call: &Invocation) -> Told {
    let Clear { status_filter, reason } = arguments(call)?;
    let status = status_filter.as_deref().map(|text| {
        Status::parse(text).ok_or_else(|| invalid(format!("`status_filter`: `{text}` is no status")))
    });
    // What waits is cancelled last, so that it is still listed as that.
    let all = vec![Status::Failed, Status::Dead, Status::Cancelled, Status::Queued];
    let statuses = status.transpose()?.map_or(all, |status| vec![status]);
    let (mut cleared, mut cleared_ms) = (0, 0);
    for status in &statuses {
        let mut from = Some((0, 0));
        while let Some(first) = from {
            let wished = Wish::ClearQueue(ClearQueue { status: *status, from: first });
            let queue = wish(desk, call, reason.as_deref(), wished).await?;
            cleared += queue.cleared;
            (from, cleared_ms) = (queue.next, queue.at_ms);
        }
    }
    let counts = desk.ask(|view| Ok(view.queue_stats()?.what.counts)).await?;
    told(&json!({
        "cleared_count": cleared,
        "remaining_count": statuses.iter().map(|status| counts.tasks_of(status.as_str())).sum::<u64>(),
        "cleared_at": time(cleared_ms),
    }))
}
