//! How runs, steps and tasks stand: closed lists, by name.
//!
//! Invariant: what has ended is never in the line, held or running.

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    Submitted,
    /// It waits for other runs.
    Waiting,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    TimedOut,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepStatus {
    Pending,
    /// All dependencies are done: it waits for a worker, or for its turn.
    Ready,
    Running,
    Succeeded,
    Failed,
    Skipped,
    Cancelled,
    TimedOut,
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
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }

    pub fn ended(self) -> bool {
        match self {
            Self::Submitted | Self::Waiting | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut => true,
        }
    }
}

impl StepStatus {
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Ready,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
        Self::TimedOut,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }

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
