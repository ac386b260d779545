//! What each event does to a run.
//!
//! Invariant: a step ends once; what comes for it later changes its task, not its end.

use super::{
    DEPENDENCY, Piece, Run, Signal, Slot, Work,
    status::{Status, StepStatus, WorkStatus},
};
use crate::{
    block::Cid,
    event::{Body, Event, Role, work::Hold},
    workflow::plan::EACH_MAX,
};

/// The ending of a step.
struct Outcome<'a> {
    status: StepStatus,
    reason: Option<String>,
    event: &'a Event,
}

impl Run {
    /// Folds one event: of the run, or of one of its tasks. Others change nothing.
    pub fn apply(&mut self, event: &Event) {
        let subject = &event.fields().subject;
        let known = match subject.strip_prefix("task/") {
            Some(task) => self.slot(task).and_then(|slot| self.apply_task(slot, event)),
            None if subject.strip_prefix("workflow/") == Some(&self.id) => self.apply_own(event),
            None => None,
        };
        if known.is_some() {
            self.last = event.cid();
            self.last_seq = event.fields().seq;
        }
    }

    fn apply_own(&mut self, event: &Event) -> Option<()> {
        match event.body()? {
            Body::WorkflowStarted(_) => {
                self.phase = Status::Running;
                self.started_ms.get_or_insert(event.fields().at_ms());
            }
            Body::WorkflowSucceeded(_) => self.end(Status::Succeeded, event),
            Body::WorkflowFailed(facts) => {
                self.reason = Some(facts.reason);
                self.end(Status::Failed, event);
            }
            Body::WorkflowCancelled(facts) => {
                self.force |= facts.force;
                self.end(Status::Cancelled, event);
            }
            Body::WorkflowTimedOut(_) => self.end(Status::TimedOut, event),
            Body::WorkflowRescheduled(facts) => self.go_on(&facts, event.fields().at_ms()),
            Body::WorkflowSignalled(facts) => {
                let signal = Signal { event: event.cid(), payload: event.fields().pay.first().copied() };
                self.signals.entry(facts.signal).or_default().push_back(signal);
            }
            Body::StepSkipped(facts) => {
                let step = self.step(&facts.step)?;
                self.finish(step, Outcome { status: StepStatus::Skipped, reason: Some(facts.reason), event });
            }
            Body::StepFailed(facts) => {
                let step = self.step(&facts.step)?;
                if self.steps[step].status == StepStatus::Succeeded {
                    self.fail_undo(step, facts.code);
                } else {
                    self.steps[step].output = event.fields().payload(Role::Error);
                    self.asked_for(step, event);
                    self.finish(
                        step,
                        Outcome { status: StepStatus::Failed, reason: Some(facts.code), event },
                    );
                }
            }
            Body::StepGathered(facts) => {
                let step = self.step(&facts.step)?;
                self.met();
                self.steps[step].output = event.fields().payload(Role::Output);
                self.steps[step].gathered = Some(facts.parts);
                self.asked_for(step, event);
                // Gathered without a part of its own: taken over, or a list of none.
                let taken = self.taken.contains_key(&step);
                self.steps[step].whole.reused = taken;
                self.steps[step].whole.reused_from = original(event).filter(|_| taken);
                self.finish(step, Outcome { status: StepStatus::Succeeded, reason: None, event });
            }
            _ => {}
        }
        Some(())
    }

    /// Takes the input of a step without a task from its ending, if that has one.
    fn asked_for(&mut self, step: usize, event: &Event) {
        if let Some(input) = event.fields().payload(Role::Input) {
            self.steps[step].whole.input = Some(input);
        }
    }

    /// Notes that the compensation of a step could not be started.
    fn fail_undo(&mut self, step: usize, code: String) {
        let undo = self.steps[step].undo.get_or_insert_default();
        undo.status = WorkStatus::Failed;
        undo.code = Some(code);
        self.undone(step);
    }

    fn undone(&mut self, step: usize) {
        match self.to_undo.last() {
            Some(last) if *last == step => drop(self.to_undo.pop()),
            _ => self.to_undo.retain(|at| *at != step),
        }
    }

    fn apply_task(&mut self, slot: Slot, event: &Event) -> Option<()> {
        let now_ms = event.fields().at_ms();
        let to = match event.body()? {
            Body::TaskSubmitted(facts) => {
                self.met();
                self.begin(slot, event, facts.hold)?
            }
            Body::TaskRetried(facts) => self.begin_again(slot, event, facts.hold)?,
            Body::TaskClaimed(facts) => {
                let work = self.work_mut(slot)?;
                work.attempt = facts.attempt;
                work.started_ms.get_or_insert(now_ms);
                WorkStatus::Running
            }
            Body::TaskSucceeded(facts) => self.succeeded(slot, event, facts.reused)?,
            Body::TaskFailed(facts) => {
                self.failed(slot, event, facts.code, facts.retry_at_ms.is_some(), WorkStatus::Failed)?
            }
            Body::TaskTimedOut(facts) => self.failed(
                slot,
                event,
                "timed_out".into(),
                facts.retry_at_ms.is_some(),
                WorkStatus::TimedOut,
            )?,
            Body::TaskLeaseExpired(_) => WorkStatus::Queued,
            Body::TaskInterrupted(facts) => {
                self.failed(slot, event, "interrupted".into(), facts.again, WorkStatus::Failed)?
            }
            Body::TaskDead(facts) => {
                let work = self.work_mut(slot)?;
                if !work.status.open() {
                    return Some(());
                }
                work.code = Some(facts.reason);
                WorkStatus::Failed
            }
            Body::TaskCancelRequested(_) => {
                self.work_mut(slot)?.cancel_requested = true;
                return Some(());
            }
            Body::TaskCancelled(_) => {
                self.work_mut(slot)?.code = Some("cancelled".into());
                WorkStatus::Cancelled
            }
            _ => return Some(()),
        };
        self.turn_to(slot, to, event);
        Some(())
    }

    /// Folds a submission. Returns the task's status.
    fn begin(&mut self, slot: Slot, event: &Event, hold: Option<Hold>) -> Option<WorkStatus> {
        let work = self.work_mut(slot)?;
        let to = waiting(hold.as_ref());
        *work = Work {
            submitted: Some(event.cid()),
            submitted_ms: event.fields().at_ms(),
            input: event.fields().payload(Role::Input),
            hold,
            since: event.fields().seq,
            ..Work::default()
        };
        Some(to)
    }

    /// Folds a retry, which keeps what it does not say anew. Returns the task's status.
    fn begin_again(&mut self, slot: Slot, event: &Event, hold: Option<Hold>) -> Option<WorkStatus> {
        let input = event.fields().payload(Role::Input);
        let work = self.work_mut(slot)?;
        let hold = hold.or_else(|| work.hold.take());
        let to = waiting(hold.as_ref());
        *work = Work {
            status: work.status,
            submitted: work.submitted,
            submitted_ms: work.submitted_ms,
            input: input.or(work.input),
            hold,
            since: event.fields().seq,
            ..Work::default()
        };
        Some(to)
    }

    /// Folds a success, which uses up the signal that the task waited for.
    fn succeeded(&mut self, slot: Slot, event: &Event, reused: bool) -> Option<WorkStatus> {
        let work = self.work_mut(slot)?;
        work.output = event.fields().payload(Role::Output);
        work.reused = reused;
        work.reused_from = original(event).filter(|_| reused);
        work.code = None;
        if let Some(Hold::Signal { name, .. }) = work.hold.clone() {
            self.consume(&name);
        }
        Some(WorkStatus::Succeeded)
    }

    /// Folds an attempt that did not succeed. Returns the task's status: queued again, or ended.
    fn failed(
        &mut self,
        slot: Slot,
        event: &Event,
        code: String,
        again: bool,
        end: WorkStatus,
    ) -> Option<WorkStatus> {
        let work = self.work_mut(slot)?;
        work.code = Some(code);
        if !again {
            work.output = event.fields().payload(Role::Error);
        }
        Some(if again { WorkStatus::Queued } else { end })
    }

    /// Notes that all runs it waits for have succeeded, which the first submitted task shows.
    fn met(&mut self) {
        self.dependencies.values_mut().for_each(|ended| *ended = Some(true));
    }

    fn consume(&mut self, signal: &str) {
        if let Some(waiting) = self.signals.get_mut(signal) {
            waiting.pop_front();
            if waiting.is_empty() {
                self.signals.remove(signal);
            }
        }
    }

    fn work_mut(&mut self, slot: Slot) -> Option<&mut Work> {
        let step = self.steps.get_mut(slot.step)?;
        match slot.piece {
            Piece::Whole => Some(&mut step.whole),
            Piece::Each(index) if index >= EACH_MAX as usize => None,
            Piece::Each(index) => {
                if step.parts.len() <= index {
                    self.parts += index + 1 - step.parts.len();
                    step.parts.resize_with(index + 1, Work::default);
                }
                step.parts.get_mut(index)
            }
            Piece::Undo => Some(step.undo.get_or_insert_default()),
        }
    }

    /// Moves a task to another status, and its step with it.
    fn turn_to(&mut self, slot: Slot, to: WorkStatus, event: &Event) {
        let Some(work) = self.work_mut(slot) else { return };
        let from = work.status;
        let was_busy = work.busy();
        work.status = to;
        let is_busy = work.busy();
        if !to.open() {
            work.ended_ms = Some(event.fields().at_ms());
        }
        let signal = match &work.hold {
            Some(Hold::Signal { name, .. }) => Some(name.clone()),
            Some(Hold::Time { .. } | Hold::Run { .. }) | None => None,
        };
        let since = work.since;
        self.busy = self.busy + u64::from(is_busy) - u64::from(was_busy);
        match from {
            WorkStatus::Queued | WorkStatus::Held => self.idle.remove(&slot),
            _ => self.running.remove(&slot),
        };
        match to {
            WorkStatus::Queued | WorkStatus::Held => self.idle.insert(slot),
            WorkStatus::Running => self.running.insert(slot),
            _ => false,
        };
        self.touched |= matches!(to, WorkStatus::Held | WorkStatus::Running);
        if let Some(signal) = signal {
            self.wait_for(slot, signal, since, to == WorkStatus::Held);
        }
        match slot.piece {
            Piece::Whole => self.step_follows(slot.step, to, event),
            Piece::Each(_) => self.part_follows(slot.step, from, to, event),
            Piece::Undo if !to.open() => self.undone(slot.step),
            Piece::Undo => {}
        }
    }

    fn wait_for(&mut self, slot: Slot, signal: String, since: u64, waits: bool) {
        let line = self.awaited.entry(signal.clone()).or_default();
        match waits {
            true => line.insert((since, slot)),
            false => line.remove(&(since, slot)),
        };
        if line.is_empty() {
            self.awaited.remove(&signal);
        }
    }

    fn step_follows(&mut self, at: usize, to: WorkStatus, event: &Event) {
        let status = match to {
            WorkStatus::None | WorkStatus::Queued => StepStatus::Ready,
            WorkStatus::Held | WorkStatus::Running => StepStatus::Running,
            WorkStatus::Succeeded => StepStatus::Succeeded,
            WorkStatus::Failed => StepStatus::Failed,
            WorkStatus::Cancelled => StepStatus::Cancelled,
            WorkStatus::TimedOut => StepStatus::TimedOut,
        };
        if status.ended() {
            let work = &self.steps[at].whole;
            let (output, reason) = (work.output, work.code.clone());
            self.steps[at].output = output;
            return self.finish(at, Outcome { status, reason, event });
        }
        self.go(at, status, event);
    }

    fn part_follows(&mut self, at: usize, from: WorkStatus, to: WorkStatus, event: &Event) {
        let step = &mut self.steps[at];
        step.open_parts = step.open_parts + usize::from(to.open()) - usize::from(from.open());
        let failed =
            |status| matches!(status, WorkStatus::Failed | WorkStatus::Cancelled | WorkStatus::TimedOut);
        step.failed_parts = step.failed_parts + usize::from(failed(to)) - usize::from(failed(from));
        step.begun_parts += usize::from(from == WorkStatus::None);
        let none_open = step.open_parts == 0;
        let status = match to {
            WorkStatus::Held | WorkStatus::Running => StepStatus::Running,
            _ if step.status == StepStatus::Pending => StepStatus::Ready,
            _ => step.status,
        };
        if self.phase.ended() {
            if none_open {
                let reason = Some(self.phase.as_str().to_owned());
                self.finish(at, Outcome { status: StepStatus::Cancelled, reason, event });
            }
            return;
        }
        self.wide.insert(at);
        self.go(at, status, event);
    }

    /// Notes that a step has a task, so there is nothing to decide about it.
    fn go(&mut self, at: usize, status: StepStatus, event: &Event) {
        self.unline(at);
        let step = &mut self.steps[at];
        if step.status.ended() {
            // Somebody had its task run again: the step is open again, and so is the count.
            step.ended = None;
            step.ended_ms = None;
            step.reason = None;
            self.open += 1;
            if self.failed == Some(at) {
                self.failed = None;
            }
        }
        let step = &mut self.steps[at];
        step.status = status;
        if status == StepStatus::Running {
            step.started_ms.get_or_insert(event.fields().at_ms());
        }
    }

    fn finish(&mut self, at: usize, outcome: Outcome<'_>) {
        if self.steps[at].status.ended() {
            return;
        }
        self.unline(at);
        self.wide.remove(&at);
        self.open -= 1;
        let step = &mut self.steps[at];
        step.status = outcome.status;
        step.reason = outcome.reason;
        step.ended = Some(outcome.event.cid());
        step.ended_ms = Some(outcome.event.fields().at_ms());
        step.ended_seq = outcome.event.fields().seq;
        let bad = matches!(step.status, StepStatus::Failed | StepStatus::Cancelled | StepStatus::TimedOut);
        if self.phase.ended() {
            return;
        }
        if bad {
            self.failed.get_or_insert(at);
        }
        if self.steps[at].can_undo(&self.plan.steps[at]) {
            self.to_undo.push(at);
        }
        let shape = self.shape.clone();
        let done = self.steps[at].done();
        for &child in &shape.children[at] {
            self.steps[child].missing -= usize::from(done);
            self.steps[child].doomed |= !done;
            self.line_up_one(child);
        }
    }

    /// Puts a step in the line if there is something to decide about it.
    fn line_up_one(&mut self, at: usize) {
        let step = &mut self.steps[at];
        if step.status != StepStatus::Pending || step.missing > 0 && !step.doomed {
            return;
        }
        if !step.doomed {
            step.status = StepStatus::Ready;
        }
        if step.turn.is_some() {
            return;
        }
        step.turn = Some(self.turns);
        self.line.insert((self.turns, at));
        self.turns += 1;
    }

    fn unline(&mut self, at: usize) {
        if let Some(turn) = self.steps[at].turn.take() {
            self.line.remove(&(turn, at));
        }
    }

    /// Rebuilds the set of steps to be decided from the steps' status.
    pub(super) fn line_up(&mut self) {
        let shape = self.shape.clone();
        self.line.clear();
        self.turns = 0;
        self.wide.clear();
        self.open = self.steps.iter().filter(|step| !step.status.ended()).count();
        for at in 0..self.steps.len() {
            let parents = &shape.parents[at];
            self.steps[at].turn = None;
            self.steps[at].missing = parents.iter().filter(|&&parent| !self.steps[parent].done()).count();
            let ended = |&parent: &usize| self.steps[parent].status.ended() && !self.steps[parent].done();
            self.steps[at].doomed = parents.iter().any(ended);
            self.line_up_one(at);
        }
        let mut undo: Vec<usize> =
            (0..self.steps.len()).filter(|&at| self.steps[at].can_undo(&self.plan.steps[at])).collect();
        undo.sort_by_key(|&at| self.steps[at].ended_seq);
        self.to_undo = undo;
    }

    /// Ends the run: steps without an open task are skipped or cancelled.
    fn end(&mut self, status: Status, event: &Event) {
        self.phase = status;
        self.ended_ms.get_or_insert(event.fields().at_ms());
        let (step_status, reason) = match status {
            Status::Failed => (StepStatus::Skipped, DEPENDENCY),
            _ => (StepStatus::Cancelled, status.as_str()),
        };
        for at in 0..self.steps.len() {
            if !self.steps[at].status.ended() && !self.steps[at].has_open_task() {
                let reason = Some(reason.to_owned());
                self.finish(at, Outcome { status: step_status, reason, event });
            }
        }
    }
}

/// Returns the status of a task that has not been claimed.
fn waiting(hold: Option<&Hold>) -> WorkStatus {
    match hold {
        Some(_) => WorkStatus::Held,
        None => WorkStatus::Queued,
    }
}

/// Returns the event whose result this one takes over.
fn original(event: &Event) -> Option<Cid> {
    event.fields().refs.first().copied()
}
