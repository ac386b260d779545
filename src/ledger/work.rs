//! What may be wished of durable work, and what is answered.
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
        work::{Rhythm, TaskSubmitted, WorkerRegistered, WorkflowReplayed},
    },
    ledger::Sealed,
    task::{Status, Task},
    worker::Worker,
    workflow::plan::Plan,
};

/// Tasks handed out by one claim.
pub const CLAIM_MAX: usize = 1000;

/// A wish about durable work: by whom, for which event, and why.
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
    SubmitTask {
        id: String,
        facts: Box<TaskSubmitted>,
        tool: Option<Cid>,
        input: SealedPayload,
        metadata: Option<SealedPayload>,
    },
    /// Take waiting tasks. Where there are none, the answer waits until there are, or until `wait_ms` has passed.
    Claim {
        worker: String,
        max: usize,
        wait_ms: u64,
        hand: Option<Hand>,
    },
    /// Ask how a task stands, and where in the line.
    Look {
        task: String,
    },
    /// Give back what nobody heard was claimed: tasks, and the fences of their claims.
    GiveBack {
        claims: Vec<(String, u64)>,
    },
    /// Ask which of these attempts a worker has no more, or should stop.
    Check {
        worker: String,
        attempts: Vec<(String, u64)>,
    },
    Renew {
        worker: String,
        task: String,
        fence: u64,
        progress: Option<u64>,
        log: Option<SealedPayload>,
    },
    Complete {
        worker: String,
        task: String,
        fence: u64,
        output: SealedPayload,
        claim_next: bool,
    },
    Fail {
        worker: String,
        task: String,
        fence: u64,
        error: SealedPayload,
        code: String,
        retryable: bool,
    },
    CancelTask {
        task: String,
        force: bool,
    },
    Reprioritise {
        task: String,
        priority: u64,
    },
    RetryTask {
        task: String,
        max_retries: Option<u64>,
        timeout_ms: Option<u64>,
    },
    PauseQueue,
    ResumeQueue,
    /// Take some tasks of one status out of the queue or the lists, from a priority and the seq of a submission on.
    ClearQueue {
        status: Status,
        from: (u64, u64),
    },
    RegisterWorker {
        worker: String,
        facts: WorkerRegistered,
        metadata: Option<SealedPayload>,
    },
    UnregisterWorker {
        worker: String,
        graceful: bool,
        timeout_ms: u64,
    },
    SubmitRun(Box<NewRun>),
    CancelRun {
        run: String,
        force: bool,
    },
    /// A new run that takes over what an old one has already done.
    ForkRun {
        run: String,
        new: String,
        from_step: Option<String>,
        overrides: String,
        rerun: bool,
    },
    RescheduleRun {
        run: String,
        from_step: Option<String>,
        priority: Option<u64>,
    },
    Signal {
        run: String,
        signal: String,
        input: SealedPayload,
    },
    /// A comparison was made of a run.
    Replayed {
        run: String,
        facts: WorkflowReplayed,
    },
    CreateSchedule {
        schedule: String,
        rhythm: Rhythm,
        catch_up: bool,
        makes: Box<Made>,
    },
    DeleteSchedule {
        schedule: String,
    },
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

/// What a step requires whose run is carried to a peer. The node's own executor can do it and nobody else: no worker
/// can register a word with this character.
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
    /// From its submission.
    pub deadline_ms: Option<u64>,
    /// The peer that the tools of its steps are called at.
    pub peer: Option<String>,
}

/// The node's own executor, as a worker: what it runs, and in which lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hand {
    pub runner: String,
    /// One claim of each lane waits at a time; a new one takes the place of the old.
    pub lane: String,
    pub capabilities: Arc<BTreeSet<String>>,
    /// Events committed as the process knew when it asked: what this claim is given comes after them.
    pub since: u64,
    /// By task type: how the calls of its tasks start, where they may start with their claims.
    pub openings: Arc<BTreeMap<String, Opening>>,
}

/// How a call of a tool starts, but for its task.
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
    /// The call that does it, where that has started with the claim.
    pub call: Option<Begun>,
    pub run: Option<String>,
    pub step: Option<String>,
    /// The peer that its tool is called at, where it is a step of a run that is carried to one.
    pub peer: Option<String>,
}

/// What was ruled about durable work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Worked {
    /// A task as it stands now.
    Task {
        task: Box<Task>,
        position: Option<u64>,
        replayed: bool,
    },
    Claimed(Vec<Handed>),
    /// The attempts that are over or should stop.
    Checked(Vec<(String, u64)>),
    Renewed {
        lease_until_ms: u64,
        cancel_requested: bool,
    },
    /// An attempt was ended; what the same call claimed next.
    Ended {
        task: Box<Task>,
        next: Vec<Handed>,
    },
    Queue {
        at_ms: u64,
        waiting: u64,
        running: u64,
        cleared: u64,
        /// Where there may be more to clear, by priority and the seq of their submission.
        next: Option<(u64, u64)>,
    },
    Worker {
        worker: Box<Worker>,
        at_ms: u64,
        lease_ms: u64,
        abandoned: u64,
    },
    /// A run as it stands now, and the steps that were cancelled or run again.
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

/// A run as it stands.
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
    /// How a failure is told: its code, and whether another attempt may help.
    pub code: String,
    pub retryable: bool,
    /// Whether the tool may have taken effect: then only what is repeatable is tried again.
    pub unknown: bool,
}
