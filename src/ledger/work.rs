//! Commands about durable work, and their answers.
//!
//! Invariants:
//! - every wish is one commit with all that follows from it: a step's end and the steps it frees become true together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    block::{Cid, payload::SealedPayload},
    event::{
        Actor,
        body::CallStarted,
        work::{Handle, Rhythm, TaskSubmitted, WorkerRegistered, WorkflowReplayed},
    },
    ledger::Sealed,
    task::{Status, Task},
    worker::Worker,
    workflow::plan::Plan,
};

/// Tasks handed out by one claim.
pub const CLAIM_MAX: usize = 1000;

/// A command about durable work, with its actor, cause and reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    pub wish: Wish,
    pub actor: Actor,
    /// The call that asks.
    pub cause: Option<Cid>,
    /// The reason given, as a payload.
    pub note: Option<SealedPayload>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Wish {
    SubmitTask(Box<SubmitTask>),
    Claim(Claim),
    Look(Look),
    GiveBack(GiveBack),
    Check(Check),
    Renew(Renew),
    Complete(Complete),
    Fail(Fail),
    CancelTask(CancelTask),
    Reprioritise(Reprioritise),
    RetryTask(RetryTask),
    PauseQueue,
    ResumeQueue,
    ClearQueue(ClearQueue),
    RegisterWorker(RegisterWorker),
    UnregisterWorker(UnregisterWorker),
    SubmitRun(Box<NewRun>),
    CancelRun(CancelRun),
    ForkRun(ForkRun),
    RescheduleRun(RescheduleRun),
    Signal(Signal),
    Replayed(Replayed),
    CreateSchedule(CreateSchedule),
    DeleteSchedule(DeleteSchedule),
}

/// Puts a new task in the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubmitTask {
    pub id: String,
    pub facts: TaskSubmitted,
    pub tool: Option<Cid>,
    pub input: SealedPayload,
    pub metadata: Option<SealedPayload>,
}

/// Takes waiting tasks. Where there are none, the answer waits until there are, or until `wait_ms` has passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    pub worker: String,
    pub max: usize,
    pub wait_ms: u64,
    pub hand: Option<Hand>,
}

/// Asks for a task's status and its place in the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    pub task: String,
}

/// Gives back claims whose answer reached nobody, as task ids with fences.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GiveBack {
    pub claims: Vec<(String, u64)>,
}

/// Asks which of these attempts the worker has lost or should stop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    pub worker: String,
    pub attempts: Vec<(String, u64)>,
}

/// Extends the lease on an attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renew {
    pub worker: String,
    pub task: String,
    pub fence: u64,
    pub progress: Option<u64>,
    pub log: Option<SealedPayload>,
}

/// Ends an attempt with its output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Complete {
    pub worker: String,
    pub task: String,
    pub fence: u64,
    pub output: SealedPayload,
    /// Whether the worker claims another task with the same command.
    pub claim_next: bool,
}

/// Ends an attempt with an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fail {
    pub worker: String,
    pub task: String,
    pub fence: u64,
    pub error: SealedPayload,
    pub code: String,
    pub retryable: bool,
}

/// Cancels a task. With `force`, a running attempt does not end first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelTask {
    pub task: String,
    pub force: bool,
}

/// Gives a waiting task another priority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reprioritise {
    pub task: String,
    pub priority: u64,
}

/// Puts a task that has failed back in the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RetryTask {
    pub task: String,
    pub max_retries: Option<u64>,
    pub timeout_ms: Option<u64>,
}

/// Clears some tasks of one status, starting at a priority and the seq of a submission.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClearQueue {
    pub status: Status,
    pub from: (u64, u64),
}

/// Registers a worker, or registers it again with other facts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterWorker {
    pub worker: String,
    pub facts: WorkerRegistered,
    pub metadata: Option<SealedPayload>,
}

/// Takes a worker out. With `graceful`, it leaves once its tasks have ended, at the latest after `timeout_ms`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnregisterWorker {
    pub worker: String,
    pub graceful: bool,
    pub timeout_ms: u64,
}

/// Cancels a run. With `force`, running steps do not end first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelRun {
    pub run: String,
    pub force: bool,
}

/// Submits a new run that takes over what an old one has already done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForkRun {
    pub run: String,
    pub new: String,
    pub from_step: Option<String>,
    /// New inputs by step, as JSON.
    pub overrides: String,
    /// Whether every step runs again.
    pub rerun: bool,
}

/// Continues a run that has failed, or gives it another priority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RescheduleRun {
    pub run: String,
    pub from_step: Option<String>,
    pub priority: Option<u64>,
}

/// Gives a run the content that one of its steps waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signal {
    pub run: String,
    pub signal: String,
    pub input: SealedPayload,
}

/// Records that a run was compared with its record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replayed {
    pub run: String,
    pub facts: WorkflowReplayed,
}

/// Creates a schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateSchedule {
    pub schedule: String,
    pub rhythm: Rhythm,
    pub catch_up: bool,
    pub makes: Box<Made>,
}

/// Deletes a schedule.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteSchedule {
    pub schedule: String,
}

/// What a schedule makes at each of its ticks, as it was checked when the schedule was made.
#[expect(clippy::large_enum_variant, reason = "there are few schedules, and most make tasks")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Made {
    Task {
        facts: TaskSubmitted,
        tool: Option<Cid>,
        /// JSON.
        input: String,
    },
    Workflow {
        plan: Plan,
        /// The inputs of every step, as JSON.
        inputs: String,
        priority: u64,
        tags: Vec<String>,
        max_parallel: Option<u64>,
        deadline_ms: Option<u64>,
    },
}

/// The capability that a step requires if its run's tools are called at a peer. Only the node's own executor has it:
/// no worker can register a word with this character.
pub const CARRIES: &str = "@peer";

/// A run as it was checked against the catalogue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewRun {
    pub id: String,
    pub plan: Plan,
    /// The inputs of every step, as JSON.
    pub inputs: SealedPayload,
    pub priority: u64,
    pub tags: Vec<String>,
    pub dependencies: Vec<String>,
    pub max_parallel: Option<u64>,
    /// Counted from its submission.
    pub deadline_ms: Option<u64>,
    /// The peer that the tools of its steps are called at.
    pub peer: Option<String>,
}

/// The node's own executor as a claimant: its process, the lane, and the task types it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hand {
    pub runner: String,
    /// At most one claim of a lane waits; a new one replaces the old.
    pub lane: String,
    pub capabilities: Arc<BTreeSet<String>>,
    /// The committed events that the process knew of when it asked: every task this claim is given was claimed after
    /// them.
    pub since: u64,
    /// By task type, how the call of a task starts, for types whose calls may start in the commit of their claim.
    pub openings: Arc<BTreeMap<String, Opening>>,
}

/// What the start of a tool's call records, apart from its task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    pub tool: Cid,
    pub facts: CallStarted,
    pub repeatable: bool,
}

/// A call that has started: its id, and the event.
pub type Begun = (String, Sealed);

/// A task as it is handed to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handed {
    pub task: String,
    pub task_type: String,
    pub actor: Actor,
    /// The input's content; none where it was erased.
    pub input: Option<String>,
    pub attempt: u64,
    pub fence: u64,
    pub lease_until_ms: u64,
    pub timeout_ms: Option<u64>,
    pub claimed: Sealed,
    /// The call that runs it, if it started in the commit of the claim.
    pub call: Option<Begun>,
    pub run: Option<String>,
    pub step: Option<String>,
    /// The peer at which its tool is called, if its run names one.
    pub peer: Option<String>,
    /// What a client that follows it was told, and how it can be asked.
    #[serde(default)]
    pub handle: Option<Handle>,
}

/// The answers to commands about durable work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Worked {
    /// A task as it stands now.
    Task {
        task: Box<Task>,
        position: Option<u64>,
        replayed: bool,
    },
    Claimed(Vec<Handed>),
    /// The attempts that the worker has lost or should stop.
    Checked(Vec<(String, u64)>),
    Renewed {
        lease_until_ms: u64,
        cancel_requested: bool,
    },
    /// An attempt has ended; `next` is what the same call claimed.
    Ended {
        task: Box<Task>,
        next: Vec<Handed>,
    },
    Queue {
        at_ms: u64,
        waiting: u64,
        running: u64,
        cleared: u64,
        /// Where to go on clearing, as a priority and the seq of a submission.
        next: Option<(u64, u64)>,
    },
    Worker {
        worker: Box<Worker>,
        at_ms: u64,
        lease_ms: u64,
        abandoned: u64,
    },
    /// A run's status, and the steps that were cancelled or will run again.
    Run {
        run: RunTold,
        replayed: bool,
        steps: Vec<String>,
    },
    Schedule {
        schedule: String,
        next_ms: Option<u64>,
        replayed: bool,
    },
}

/// A run's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTold {
    pub id: String,
    pub status: String,
    /// The plan.
    pub definition: Cid,
    /// The event that submitted it.
    pub submitted: Cid,
    pub submitted_ms: u64,
}

/// The attempt a call was made for: it ends with the call, in the same commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub worker: String,
    pub task: String,
    pub fence: u64,
    /// The failure's code, used if the call did not succeed.
    pub code: String,
    pub retryable: bool,
    /// Whether the tool may have taken effect. If so, only a repeatable task gets another attempt.
    pub unknown: bool,
}
