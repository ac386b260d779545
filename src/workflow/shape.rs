//! The shape of a step: what a plan holds of it, and the words of actions that are no tools.
//!
//! Invariant: nothing that users wrote into inputs stands in it.

use serde::{Deserialize, Serialize};

use crate::{block::Cid, event::work::RetryPolicy};

pub const WAIT_SIGNAL: &str = "wait:signal";
pub const WAIT_TIME: &str = "wait:time";
pub const WORKFLOW_RUN: &str = "workflow:run";
pub const WAIT_RUN: &str = "wait:run";

/// The prefix of actions that are a worker's task.
pub const WORKER: &str = "worker:";

/// One step, without its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub id: String,
    /// As it was given: a tool, `worker:<type>`, `wait:signal`, `wait:time`, `workflow:run`.
    pub action: String,
    /// The type of the step's tasks.
    pub task_type: String,
    /// The contract of its tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Cid>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether it has a condition.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub when: bool,
    /// The most elements of the list it runs over, if it runs over one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<Undo>,
    /// Whether an earlier result of the same contract and input may be reused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
    /// Whether it may run again after an attempt whose outcome is unknown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeatable: bool,
}

/// The compensation of a step: what takes it back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    pub action: String,
    pub task_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Cid>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeatable: bool,
}
