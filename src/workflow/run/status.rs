//! How runs, steps and tasks stand: closed lists, by name.
//!
//! Invariant: what has ended is never in the line, held or running.

use crate::words::words;

words! {
    /// How a run stands.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Status {
        Submitted = "submitted",
        /// It waits for other runs.
        Waiting = "waiting",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
        TimedOut = "timed_out",
    }
}

words! {
    /// How a step stands.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum StepStatus {
        Pending = "pending",
        /// All dependencies are done: it waits for a worker, or for its turn.
        Ready = "ready",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Skipped = "skipped",
        Cancelled = "cancelled",
        TimedOut = "timed_out",
    }
}

/// How a task of the run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkStatus {
    /// Not submitted, or to be run again.
    #[default]
    None,
    Queued,
    Held,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    TimedOut,
}

impl Status {
    pub fn ended(self) -> bool {
        match self {
            Self::Submitted | Self::Waiting | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut => true,
        }
    }
}

impl StepStatus {
    pub fn ended(self) -> bool {
        match self {
            Self::Pending | Self::Ready | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Skipped | Self::Cancelled | Self::TimedOut => true,
        }
    }
}

impl WorkStatus {
    /// Returns whether the task was submitted and has not ended.
    pub fn open(self) -> bool {
        matches!(self, Self::Queued | Self::Held | Self::Running)
    }
}
