//! The facts of durable work: tasks, the queue, workers, workflows and schedules.
//!
//! Invariants:
//! - times are milliseconds since the epoch, decided once and recorded, so that a replay need not decide them again;
//! - what is left out of the map stands for its default, and is never written.

use serde::{Deserialize, Serialize};

use crate::block::Cid;

/// How failed attempts are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    pub max_retries: u64,
    pub backoff_ms: u64,
    /// The factor between two pauses, in thousandths.
    pub factor_milli: u64,
    pub max_backoff_ms: u64,
    pub jitter: bool,
}

/// What a task waits for that no worker does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Hold {
    /// A signal of this name, until a time if one is given.
    Signal { name: String, until_ms: Option<u64> },
    /// A moment.
    Time { until_ms: u64 },
    /// The end of another run.
    Run { run: String },
}

/// Which part of its step a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Part {
    /// The step itself.
    #[default]
    Whole,
    /// One element of the list the step runs over.
    Each { index: u64 },
    /// What takes the step back.
    Undo,
}

/// Work was accepted; it waits for a worker, or for what it is held by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSubmitted {
    /// `tool:<name>` for a tool of the catalogue, `wait:...` for what the node itself ends, else a worker's word.
    pub task_type: String,
    pub priority: u64,
    /// Its place in the line: lower runs sooner. The time it may first run, less one ageing interval a priority.
    pub order: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// The time one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    pub retry: RetryPolicy,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Capabilities a worker needs beside the type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_key: Option<String>,
    /// The workflow run this is a step of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub part: Part,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Whether an attempt whose process died may run again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeatable: bool,
    /// Whether the result of an earlier task of the same contract and input may stand for its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
}

/// A worker took the task, until its lease ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskClaimed {
    pub worker: String,
    /// The process of the node's own executor: its claims are void when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// From 1; starts again with `task.retried`.
    pub attempt: u64,
    /// Grows with every claim of the task, for ever.
    pub fence: u64,
    pub lease_until_ms: u64,
    /// The priority it had grown to.
    pub effective: u64,
    /// When its rate key next allows a claim, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_until_ms: Option<u64>,
}

/// The worker said that it goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRenewed {
    pub fence: u64,
    pub lease_until_ms: u64,
    /// 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSucceeded {
    /// 0 where no worker had it: a reused result, a signal, a moment.
    pub fence: u64,
    pub attempt: u64,
    /// True when the output is that of an earlier task, which `refs` names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
}

/// An attempt failed. Without `retry_at_ms` it was the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFailed {
    pub fence: u64,
    pub attempt: u64,
    pub code: String,
    pub retryable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<u64>,
}

/// An attempt took longer than it may. Without `retry_at_ms` it was the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskTimedOut {
    pub fence: u64,
    pub attempt: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<u64>,
}

/// A worker was silent until its lease ended; the task is back in the line, or dead by the next event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskLeaseExpired {
    pub worker: String,
    pub fence: u64,
    pub attempt: u64,
    /// Whether nobody heard of the claim: whoever asked had gone. The attempt does not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unheard: bool,
}

/// The process that ran the attempt ended; what it did is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskInterrupted {
    pub runner: String,
    pub fence: u64,
    pub attempt: u64,
    /// Whether it is back in the line: only where its contract or its step allows that.
    pub again: bool,
}

/// The task will not run again unless somebody asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDead {
    /// `retries_spent`, or `poison`: attempts that ended without an outcome.
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCancelRequested {
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCancelled {
    /// Whether a worker had it: what it did may need cleaning up.
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskReprioritised {
    pub from: u64,
    pub to: u64,
    pub order: i64,
}

/// An ended task is back in the line, with its attempts counted anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRetried {
    pub order: i64,
    /// What it waits for now, where no worker does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// An ended task left the lists; its history stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCleared {}

/// Nothing new starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuePaused {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueResumed {}

/// Tasks left the queue, each by its own event before this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueCleared {
    pub status: String,
    pub cleared: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerRegistered {
    /// Task types it takes, and other words tasks may require.
    pub capabilities: Vec<String>,
    pub max_concurrent: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

/// The worker takes nothing new and leaves when its work is done, at the latest at `until_ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerDraining {
    pub until_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerUnregistered {
    /// Tasks it still held, which are back in the line.
    pub abandoned: u64,
}

/// The worker was not heard of for too long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLost {
    pub last_heard_ms: u64,
}

/// Which run a run was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub run: String,
    /// The submission of that run.
    pub submitted: Cid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<String>,
    /// Whether repeatable tools run again to be compared with what they gave before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rerun: bool,
}

/// A run was accepted: its structure is the plan, its inputs a payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowSubmitted {
    pub plan: Cid,
    pub steps: u64,
    pub priority: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Runs that must succeed first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u64>,
    /// When the run must have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// The run this was forked or run again from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The task of the run that this is a child of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The peer that the tools of its steps are called at, and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The first step was taken by a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowStarted {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowSucceeded {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowFailed {
    /// The step that failed first, where a step did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// `step_failed`, `dependency_failed`.
    pub reason: String,
}

/// No step starts any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowCancelled {
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowTimedOut {}

/// An ended run goes on: with the steps that have not succeeded, or from a step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowRescheduled {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u64>,
}

/// Somebody sent a signal to the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowSignalled {
    pub signal: String,
}

/// A run was decided again, or run again, and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowReplayed {
    /// `verify`, `rerun`.
    pub mode: String,
    pub matched: bool,
    pub compared: u64,
    /// The new run of a rerun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The first step that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
}

/// A step will not run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSkipped {
    pub step: String,
    /// `condition`: its own said no; `upstream`: a step it needs failed.
    pub reason: String,
}

/// A step could not be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepFailed {
    pub step: String,
    pub code: String,
}

/// Every part of a step that runs over a list has succeeded; the payload holds their outputs in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepGathered {
    pub step: String,
    pub parts: u64,
}

/// When a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rhythm {
    /// A cron expression in UTC.
    Cron {
        line: String,
    },
    Every {
        ms: u64,
    },
}

/// What a schedule makes at each tick is its payload: a task or a workflow, as it would be submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleCreated {
    pub rhythm: Rhythm,
    /// `task`, `workflow`.
    pub makes: String,
    pub catch_up: bool,
    pub next_ms: u64,
}

/// A tick of a schedule, which fires once: `at_ms` names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleFired {
    pub at_ms: u64,
    pub next_ms: u64,
    /// Ticks before this one that were missed and are not made up for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub missed: u64,
    /// Whether nothing was made at this tick: what would have been submitted was refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleDeleted {}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
