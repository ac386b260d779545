//! Runs: one workflow's life, folded from its own events and those of its tasks.
//!
//! Invariants:
//! - folding the same events gives the same run, and [`Run::decide`] changes nothing: live, after a restart and in a
//!   replay the same state gives the same decisions;
//! - steps are counted by index in the plan's order; what is asked about one step costs no walk over all.

pub mod decision;
pub mod status;
mod change;
mod fold;
mod told;
mod values;
pub mod decide;
pub mod take;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use self::status::Status;
use self::status::StepStatus;
use self::status::WorkStatus;
use super::plan::Plan;
use crate::{
    block::Cid,
    event::{
        Actor, Body, Event, PayloadRef, Role,
        work::{Hold, Part, WorkflowSubmitted},
    },
    workflow::{run::decision::Taken, shape::Step},
};

/// A task of the run, as far as the run needs to know it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    pub status: WorkStatus,
    /// Its `task.submitted`; `None` until it is submitted.
    pub submitted: Option<Cid>,
    pub attempt: u64,
    pub submitted_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    pub input: Option<PayloadRef>,
    pub output: Option<PayloadRef>,
    pub reused: bool,
    /// The ending of the original task, if its result was reused.
    pub reused_from: Option<Cid>,
    /// Why it failed.
    pub code: Option<String>,
    pub hold: Option<Hold>,
    pub cancel_requested: bool,
    /// The seq of the event that queued it.
    since: u64,
}

/// A step of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct StepState {
    pub status: StepStatus,
    /// Why it was skipped, failed or cancelled, as a short code.
    pub reason: Option<String>,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// Its output, or the error of its task.
    pub output: Option<PayloadRef>,
    /// The event that ended it.
    pub ended: Option<Cid>,
    pub whole: Work,
    /// The tasks of a step that runs over a list, by index.
    pub parts: Vec<Work>,
    pub undo: Option<Box<Work>>,
    ended_seq: u64,
    /// Its place among the steps to be decided.
    turn: Option<u64>,
    /// The number of dependencies that are not done.
    missing: usize,
    /// Whether any dependency will never be done.
    doomed: bool,
    /// How many parts it gathered.
    gathered: Option<u64>,
    /// Counts since the step was last opened: parts that began, those of them that are open, and those that failed.
    begun_parts: usize,
    open_parts: usize,
    failed_parts: usize,
    width: Width,
}

/// A cache for the length of the list that a step runs over. It follows from the run's events, so it does not count
/// when runs are compared.
#[derive(Clone, Debug, Default)]
struct Width(OnceLock<usize>);

impl PartialEq for Width {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A task's place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub step: usize,
    pub piece: Piece,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Piece {
    Whole,
    Each(usize),
    Undo,
}

/// A signal that no step has taken yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    pub event: Cid,
    pub payload: Option<PayloadRef>,
}

/// A run of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub id: String,
    pub seq: u64,
    /// The event that submitted it.
    pub submitted: Cid,
    pub actor: Actor,
    /// As submitted, with the current priority.
    pub facts: WorkflowSubmitted,
    pub plan: Arc<Plan>,
    pub inputs: Arc<Value>,
    pub input: Option<PayloadRef>,
    pub steps: Vec<StepState>,
    pub submitted_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// The current deadline.
    pub deadline_ms: Option<u64>,
    /// The step that failed first.
    pub failed: Option<usize>,
    /// Why it failed, as a short code.
    pub reason: Option<String>,
    pub last: Cid,
    pub last_seq: u64,
    phase: Status,
    /// Whether its cancel also cancels running tasks.
    force: bool,
    shape: Arc<Shape>,
    /// The runs it waits for. `None` until a run has ended, then whether it succeeded.
    dependencies: BTreeMap<String, Option<bool>>,
    /// Steps to be decided, in the order in which they became ready.
    line: BTreeSet<(u64, usize)>,
    turns: u64,
    /// Steps that run over a list and have begun.
    wide: BTreeSet<usize>,
    /// Tasks that no worker has: queued or held.
    idle: BTreeSet<Slot>,
    running: BTreeSet<Slot>,
    /// Tasks that count towards `max_parallel`.
    busy: u64,
    /// Steps that have not ended.
    open: usize,
    /// Parts of all steps that run over lists.
    parts: usize,
    /// Whether any task was ever started.
    touched: bool,
    /// Succeeded steps that can be compensated, the latest last.
    to_undo: Vec<usize>,
    signals: BTreeMap<String, VecDeque<Signal>>,
    /// Tasks held for a signal, the longest waiting first.
    awaited: BTreeMap<String, BTreeSet<(u64, Slot)>>,
    taken: BTreeMap<usize, Taken>,
}

/// The plan's graph by index.
#[derive(Debug, PartialEq)]
struct Shape {
    ids: HashMap<String, usize>,
    parents: Vec<Vec<usize>>,
    children: Vec<Vec<usize>>,
}

impl Work {
    /// Returns whether it counts towards `max_parallel`: a task that only waits for a signal or a time does not.
    fn busy(&self) -> bool {
        self.status.open() && !matches!(self.hold, Some(Hold::Signal { .. } | Hold::Time { .. }))
    }
}

impl StepState {
    fn new() -> Self {
        Self {
            status: StepStatus::Pending,
            reason: None,
            started_ms: None,
            ended_ms: None,
            output: None,
            ended: None,
            whole: Work::default(),
            parts: Vec::new(),
            undo: None,
            ended_seq: 0,
            turn: None,
            missing: 0,
            doomed: false,
            gathered: None,
            begun_parts: 0,
            open_parts: 0,
            failed_parts: 0,
            width: Width::default(),
        }
    }

    /// Returns whether steps that depend on it may start.
    pub fn done(&self) -> bool {
        match self.status {
            StepStatus::Succeeded => true,
            StepStatus::Skipped => self.reason.as_deref() == Some(CONDITION),
            _ => false,
        }
    }

    /// Returns whether it ended without a task, by the record of another run.
    pub fn from_record(&self) -> bool {
        let by_failing = self.status == StepStatus::Failed && self.whole.input.is_some();
        self.whole.submitted.is_none() && (self.whole.reused || by_failing)
    }

    fn undo_status(&self) -> WorkStatus {
        self.undo.as_ref().map_or(WorkStatus::None, |undo| undo.status)
    }

    /// Returns whether its effect stands and can be compensated. What another run did, this one does not compensate.
    fn can_undo(&self, step: &Step) -> bool {
        step.compensate.is_some() && self.status == StepStatus::Succeeded && !self.whole.reused
    }

    fn has_open_task(&self) -> bool {
        self.whole.status.open() || self.open_parts > 0
    }
}

/// Why steps are skipped.
pub const CONDITION: &str = "condition";
pub const UPSTREAM: &str = "upstream";
pub const DEPENDENCY: &str = "dependency";

impl Piece {
    pub fn part(self) -> Part {
        match self {
            Self::Whole => Part::Whole,
            Self::Each(index) => Part::Each { index: index as u64 },
            Self::Undo => Part::Undo,
        }
    }
}

impl Shape {
    fn of(plan: &Plan) -> Self {
        let ids: HashMap<String, usize> =
            plan.steps.iter().enumerate().map(|(at, step)| (step.id.clone(), at)).collect();
        let mut children = vec![Vec::new(); plan.steps.len()];
        let mut parents = vec![Vec::new(); plan.steps.len()];
        for (at, step) in plan.steps.iter().enumerate() {
            for &parent in step.depends_on.iter().filter_map(|name| ids.get(name)) {
                parents[at].push(parent);
                children[parent].push(at);
            }
        }
        Self { ids, parents, children }
    }
}

impl Run {
    /// Returns the run that `event` submits, with its plan and inputs; `None` if it submits no run.
    pub fn begun(event: &Event, plan: Arc<Plan>, inputs: Arc<Value>) -> Option<Self> {
        let Some(Body::WorkflowSubmitted(facts)) = event.body() else { return None };
        let fields = event.fields();
        let mut run = Self {
            id: fields.subject.strip_prefix("workflow/")?.to_owned(),
            seq: fields.seq,
            submitted: event.cid(),
            actor: fields.actor.clone(),
            input: event.fields().payload(Role::Input),
            steps: vec![StepState::new(); plan.steps.len()],
            submitted_ms: fields.at_ms(),
            started_ms: None,
            ended_ms: None,
            deadline_ms: facts.deadline_ms,
            failed: None,
            reason: None,
            last: event.cid(),
            last_seq: fields.seq,
            phase: Status::Submitted,
            force: false,
            shape: Arc::new(Shape::of(&plan)),
            dependencies: facts.dependencies.iter().map(|id| (id.clone(), None)).collect(),
            line: BTreeSet::new(),
            turns: 0,
            wide: BTreeSet::new(),
            idle: BTreeSet::new(),
            running: BTreeSet::new(),
            busy: 0,
            open: 0,
            parts: 0,
            touched: false,
            to_undo: Vec::new(),
            signals: BTreeMap::new(),
            awaited: BTreeMap::new(),
            taken: BTreeMap::new(),
            facts,
            plan,
            inputs,
        };
        run.line_up();
        Some(run)
    }

    pub fn status(&self) -> Status {
        let waits = || self.dependencies.values().any(Option::is_none);
        if self.phase == Status::Submitted && waits() { Status::Waiting } else { self.phase }
    }

    /// Returns the percentage of steps that are done; a cancelled or failed step is not.
    pub fn progress(&self) -> u64 {
        let done = self.steps.iter().filter(|step| step.done()).count();
        (done * 100 / self.steps.len().max(1)) as u64
    }

    /// Returns the ids of the steps that are running.
    pub fn current_steps(&self) -> Vec<&str> {
        let steps: BTreeSet<usize> = self.running.iter().chain(&self.idle).map(|slot| slot.step).collect();
        let running = steps.into_iter().filter(|&at| self.steps[at].status == StepStatus::Running);
        running.map(|at| self.plan.steps[at].id.as_str()).collect()
    }

    /// Returns the number of steps by status.
    pub fn counts(&self) -> BTreeMap<StepStatus, usize> {
        let mut counts = BTreeMap::new();
        self.steps.iter().for_each(|step| *counts.entry(step.status).or_default() += 1);
        counts
    }

    /// Returns the index of a step in the plan.
    pub fn step(&self, id: &str) -> Option<usize> {
        self.shape.ids.get(id).copied()
    }

    /// Returns the steps that no other depends on; their outputs are the run's result.
    pub fn sinks(&self) -> impl Iterator<Item = usize> {
        (0..self.steps.len()).filter(|&at| self.shape.children[at].is_empty())
    }

    /// Returns the id of a task of this run.
    pub fn task_id(&self, slot: Slot) -> String {
        let (run, step) = (&self.id, &self.plan.steps[slot.step].id);
        match slot.piece {
            Piece::Whole => format!("{run}#{step}"),
            Piece::Each(index) => format!("{run}#{step}#{index}"),
            Piece::Undo => format!("{run}#{step}#undo"),
        }
    }

    /// Returns the tasks that have not ended.
    #[cfg(test)]
    pub fn open_tasks(&self) -> impl Iterator<Item = Slot> {
        self.idle.iter().chain(&self.running).copied()
    }

    /// Returns the place of a task by its id; `None` for a task of another run.
    pub fn slot(&self, task_id: &str) -> Option<Slot> {
        let rest = task_id.strip_prefix(self.id.as_str())?.strip_prefix('#')?;
        let (id, piece) = match rest.split_once('#') {
            None => (rest, Piece::Whole),
            Some((id, "undo")) => (id, Piece::Undo),
            Some((id, index)) => (id, Piece::Each(index.parse().ok()?)),
        };
        Some(Slot { step: self.step(id)?, piece })
    }

    /// Returns a task of the run; `None` if there never was one.
    pub fn work(&self, slot: Slot) -> Option<&Work> {
        let step = self.steps.get(slot.step)?;
        let work = match slot.piece {
            Piece::Whole => Some(&step.whole),
            Piece::Each(index) => step.parts.get(index),
            Piece::Undo => step.undo.as_deref(),
        };
        work.filter(|work| work.submitted.is_some())
    }

    /// Returns when `decide` has a decision without a further event.
    pub fn due_ms(&self) -> Option<u64> {
        self.deadline_ms.filter(|_| !self.phase.ended())
    }

    /// Returns the runs it waits for that have not ended.
    pub fn waits_for(&self) -> impl Iterator<Item = &str> {
        self.dependencies.iter().filter(|(_, ended)| ended.is_none()).map(|(id, _)| id.as_str())
    }

    /// Tells the run that one it waits for has ended. To be called again after a restart.
    pub fn dependency_ended(&mut self, id: &str, succeeded: bool) {
        if let Some(ended) = self.dependencies.get_mut(id) {
            *ended = Some(succeeded);
        }
    }
}
