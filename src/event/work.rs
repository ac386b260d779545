//! Facts about durable work: tasks, the queue, workers, workflows and schedules.
//!
//! Invariants:
//! - fields that end in `_ms` and name a moment count milliseconds since the Unix epoch; such a moment is decided once
//!   and recorded, so a replay reads it;
//! - a key that is left out of the map stands for its default, and the default is never written.

use serde::{Deserialize, Serialize};

use crate::block::Cid;

/// Says how failed attempts are repeated.
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

#[cfg(test)]
impl RetryPolicy {
    pub(crate) const NEVER: Self =
        Self { max_retries: 0, backoff_ms: 0, factor_milli: 1_000, max_backoff_ms: 0, jitter: false };
}

/// Says what a task waits for that no worker ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Hold {
    /// The task waits for a signal of this name, and until a time if one is given.
    Signal { name: String, until_ms: Option<u64> },
    /// The task waits until a time.
    Time { until_ms: u64 },
    /// The task waits for the end of another run.
    Run { run: String },
}

/// Says which part of its step a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Part {
    /// The task is the whole step.
    #[default]
    Whole,
    /// The task is one element of the list that the step runs over.
    Each { index: u64 },
    /// The task takes the step back.
    Undo,
}

/// Says that a task stands for a request of an MCP client, which follows it by its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handle {
    /// How long the client was told that it may follow the task, from its submission.
    pub ttl_ms: u64,
    /// The capabilities by which the client can be asked something, as JSON with its keys in order; left out if there
    /// are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<String>,
}

/// A task was accepted. It waits for a worker, or for its hold to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSubmitted {
    /// `tool:<name>` for a tool of the catalogue, `wait:...` for a task that the node itself ends, else a type that a
    /// worker registered for.
    pub task_type: String,
    pub priority: u64,
    /// The task's place in the line, where lower runs sooner: the time at which it may first run, less one ageing
    /// interval for each priority.
    pub order: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    /// Limits the time of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    pub retry: RetryPolicy,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Lists the capabilities that a worker needs besides the type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_key: Option<String>,
    /// Names the workflow run of which this is a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub part: Part,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Says whether an attempt whose process died may run again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeatable: bool,
    /// Says whether the result of an earlier task with the same contract and input may be used instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
    /// Set for a task that stands for a request of an MCP client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
}

/// A worker claimed the task until its lease ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskClaimed {
    pub worker: String,
    /// Identifies the process, if the node's own worker claimed the task. Once that process has ended, the claim is
    /// void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Counts attempts from 1, and begins again after a `task.retried`.
    pub attempt: u64,
    /// Grows with every claim of the task and never begins again, so a late worker is recognised.
    pub fence: u64,
    pub lease_until_ms: u64,
    /// The priority to which the task had aged.
    pub effective: u64,
    /// The time from which its rate key allows the next claim, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_until_ms: Option<u64>,
}

/// The worker reported that it goes on, which extends its lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRenewed {
    pub fence: u64,
    pub lease_until_ms: u64,
    /// A percentage from 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSucceeded {
    /// Is 0 if no worker ended the task: a reused result, a signal or a time did.
    pub fence: u64,
    pub attempt: u64,
    /// Says whether the output is that of an earlier task, which `refs` names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reused: bool,
}

/// An attempt failed. Without `retry_at_ms` it was the last one.
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

/// An attempt exceeded its time limit. Without `retry_at_ms` it was the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskTimedOut {
    pub fence: u64,
    pub attempt: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<u64>,
}

/// A worker was silent until its lease ended. The task is back in the line, unless the next event ends it as dead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskLeaseExpired {
    pub worker: String,
    pub fence: u64,
    pub attempt: u64,
    /// Says whether the answer to the claim reached nobody, because the caller had gone. Such an attempt does not
    /// count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unheard: bool,
}

/// The process that ran the attempt ended. What the attempt did is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskInterrupted {
    pub runner: String,
    pub fence: u64,
    pub attempt: u64,
    /// Says whether the task is back in the line. That needs a contract or a step that allows it.
    pub again: bool,
}

/// The task will not run again unless somebody asks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDead {
    /// `retries_spent`, or `poison` if too many attempts ended without an outcome.
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
    /// Says whether a worker had the task, so that what it did may need cleaning up.
    pub running: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskReprioritised {
    pub from: u64,
    pub to: u64,
    pub order: i64,
}

/// An ended task is back in the line, and its attempts are counted anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRetried {
    pub order: i64,
    /// Says what it waits for now, if no worker does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// An ended task left the lists. Its history stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskCleared {}

/// No new attempt starts until the queue is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuePaused {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueResumed {}

/// Tasks left the queue. Each of them has an event of its own before this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueCleared {
    pub status: String,
    pub cleared: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerRegistered {
    /// Lists the task types that the worker takes, and other words that tasks may require.
    pub capabilities: Vec<String>,
    pub max_concurrent: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
}

/// The worker takes no new tasks. It leaves when its work is done, at the latest at `until_ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerDraining {
    pub until_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerUnregistered {
    /// Counts the tasks that it still held, which are back in the line.
    pub abandoned: u64,
}

/// The worker sent no sign of life for too long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerLost {
    pub last_heard_ms: u64,
}

/// Names the run from which another run was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub run: String,
    /// The submission event of that run.
    pub submitted: Cid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<String>,
    /// Says whether repeatable tools run again, so that their results can be compared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rerun: bool,
}

/// A run was accepted. Its structure is the plan, and its inputs are a payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowSubmitted {
    pub plan: Cid,
    pub steps: u64,
    pub priority: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Lists the runs that must succeed first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u64>,
    /// The time by which the run must have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Names the run from which this one was forked or run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Names the task whose child this run is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Names the peer at which alone the tools of its steps are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// A worker claimed the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowStarted {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowSucceeded {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowFailed {
    /// Names the step that failed first, if a step did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// `step_failed` or `dependency_failed`.
    pub reason: String,
}

/// No step of the run starts any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowCancelled {
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowTimedOut {}

/// An ended run goes on, with the steps that have not succeeded or from a given step on.
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

/// A run was decided or run again, and the results were compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowReplayed {
    /// `verify` or `rerun`.
    pub mode: String,
    pub matched: bool,
    pub compared: u64,
    /// Names the new run of a `rerun`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Names the first step that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
}

/// A step will not run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSkipped {
    pub step: String,
    /// `condition` if its own condition was false, `upstream` if a step that it needs failed.
    pub reason: String,
}

/// A step could not be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepFailed {
    pub step: String,
    pub code: String,
}

/// Every part of a step over a list has succeeded. The payload holds their outputs in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepGathered {
    pub step: String,
    pub parts: u64,
}

/// Says when a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rhythm {
    /// A cron expression, read in UTC.
    Cron {
        line: String,
    },
    Every {
        ms: u64,
    },
}

/// A schedule was created. Its payload is what it submits at each tick: a task or a workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleCreated {
    pub rhythm: Rhythm,
    /// `task` or `workflow`.
    pub makes: String,
    pub catch_up: bool,
    pub next_ms: u64,
}

/// A schedule fired. `at_ms` names the tick, and each tick fires once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleFired {
    pub at_ms: u64,
    pub next_ms: u64,
    /// Counts the ticks before this one that were missed and will not be made up for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub missed: u64,
    /// Says whether the submission was refused, so that this tick made nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleDeleted {}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
