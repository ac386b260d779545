//! What may be asked of a run: to stop, to go on, to take a signal.
//!
//! Invariants:
//! - a rule answers with the fact that is to be recorded, or says why not;
//! - a run that goes on keeps what has succeeded and was not taken back.

use std::collections::BTreeSet;

use super::{
    Run, Width, Work,
    status::{Status, StepStatus, WorkStatus},
};
use crate::{
    error::{Code, Refusal},
    event::{
        Body,
        work::{WorkflowCancelled, WorkflowRescheduled, WorkflowSignalled},
    },
    workflow::{
        plan::{NAME_MAX, PRIORITY},
        shape::WAIT_SIGNAL,
    },
};

/// Signals that no step has taken yet.
const SIGNALS_MAX: usize = 1_000;
/// Names of signals that a refusal lists.
const NAMES_MAX: usize = 20;

impl Run {
    /// Decides to cancel the run; `None` if it is cancelled already.
    pub fn cancel(&self, force: bool) -> Result<Option<Body>, Refusal> {
        let more = force && !self.force && !(self.running.is_empty() && self.idle.is_empty());
        match self.phase {
            Status::Submitted | Status::Waiting | Status::Running => {}
            Status::Cancelled if more => {}
            Status::Cancelled => return Ok(None),
            Status::Succeeded | Status::Failed | Status::TimedOut => return Err(self.has_ended("cancelled")),
        }
        Ok(Some(Body::WorkflowCancelled(WorkflowCancelled { force })))
    }

    /// Decides to accept a signal, for a step that waits for it or will.
    pub fn signal(&self, signal: &str) -> Result<Body, Refusal> {
        if signal.is_empty() || signal.len() > NAME_MAX {
            let message = format!("a signal's name has 1 to {NAME_MAX} bytes");
            return Err(Refusal::new(Code::InvalidArgument, message));
        }
        if self.phase.ended() {
            return Err(self.has_ended("signalled"));
        }
        let names = self.signal_names();
        if names.as_ref().is_some_and(|names| !names.contains(signal)) {
            let names: Vec<String> =
                names.into_iter().flatten().take(NAMES_MAX).map(|name| format!("`{name}`")).collect();
            let waits = match names.is_empty() {
                true => "for no signal".to_owned(),
                false => format!("only for {}", names.join(", ")),
            };
            let message = format!("no step of workflow `{}` waits for `{signal}`: it waits {waits}", self.id);
            return Err(Refusal::new(Code::FailedPrecondition, message));
        }
        if self.signals.values().map(std::collections::VecDeque::len).sum::<usize>() >= SIGNALS_MAX {
            let message = format!("{SIGNALS_MAX} signals wait for a step of this workflow already");
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        Ok(Body::WorkflowSignalled(WorkflowSignalled { signal: signal.to_owned() }))
    }

    /// Returns the signals its steps wait for; `None` if that is known only once they run.
    fn signal_names(&self) -> Option<BTreeSet<&str>> {
        let waiting = (0..self.steps.len()).filter(|&at| self.plan.steps[at].action == WAIT_SIGNAL);
        waiting.map(|at| self.inputs_of(at, "inputs").get("signal")?.as_str()).collect()
    }

    /// Decides to continue an ended run, with the steps that have not succeeded and those from `from_step` on.
    pub fn reschedule(&self, from_step: Option<&str>, priority: Option<u64>) -> Result<Body, Refusal> {
        if let Some(id) = from_step.filter(|id| self.step(id).is_none()) {
            return Err(self.no_step(id));
        }
        if priority.is_some_and(|priority| !PRIORITY.contains(&priority)) {
            return Err(Refusal::new(
                Code::InvalidArgument,
                "`priority` must be a whole number from 0 to 100",
            ));
        }
        let refuse = |message: String| Err(Refusal::new(Code::FailedPrecondition, message));
        match self.phase {
            Status::Failed | Status::Cancelled | Status::TimedOut => {}
            Status::Succeeded if from_step.is_some() => {}
            Status::Submitted | Status::Waiting | Status::Running | Status::Succeeded => {
                return refuse(format!(
                    "workflow `{}` is {}: only one that has failed, timed out or was cancelled goes on",
                    self.id,
                    self.status().as_str()
                ));
            }
        }
        if !self.running.is_empty() || !self.idle.is_empty() {
            return refuse(format!("tasks of workflow `{}` are still running", self.id));
        }
        Ok(Body::WorkflowRescheduled(WorkflowRescheduled {
            from_step: from_step.map(str::to_owned),
            priority,
        }))
    }

    /// Returns the ids of the steps that run again if the run is rescheduled.
    pub fn rerun_steps(&self, from_step: Option<&str>) -> Vec<&str> {
        let again = self.again(from_step);
        let steps = self.plan.steps.iter().zip(again).filter(|(_, again)| *again);
        steps.map(|(step, _)| step.id.as_str()).collect()
    }

    fn again(&self, from_step: Option<&str>) -> Vec<bool> {
        let mut again: Vec<usize> = (0..self.steps.len()).filter(|&at| !self.steps[at].stands()).collect();
        again.extend(from_step.and_then(|id| self.step(id)));
        self.with_descendants(again)
    }

    /// Opens the steps that run again.
    pub(super) fn go_on(&mut self, facts: &WorkflowRescheduled, now_ms: u64) {
        let again = self.again(facts.from_step.as_deref());
        let changed = (0..self.steps.len()).filter(|&at| {
            // A list step that failed keeps the parts that succeeded, unless what it runs over may change.
            self.steps[at].undo_status() == WorkStatus::Succeeded
                || self.step_is(at, facts.from_step.as_deref())
        });
        let mut fresh = self.with_descendants(changed.collect());
        let failed = (0..self.steps.len()).filter(|&at| again[at]);
        let below: Vec<usize> = failed.flat_map(|at| self.shape.children[at].iter().copied()).collect();
        self.with_descendants(below).iter().zip(&mut fresh).for_each(|(below, fresh)| *fresh |= below);
        for at in (0..self.steps.len()).filter(|&at| again[at]) {
            self.open_again(at, fresh[at]);
            self.taken.remove(&at);
        }
        for step in &mut self.steps {
            step.undo.iter_mut().for_each(|undo| **undo = undo.again());
        }
        self.phase = if self.started_ms.is_some() { Status::Running } else { Status::Submitted };
        if self.phase == Status::Submitted {
            self.dependencies.values_mut().for_each(|ended| *ended = ended.filter(|succeeded| *succeeded));
        }
        if let Some(priority) = facts.priority {
            self.facts.priority = priority;
        }
        let allowed_ms =
            self.facts.deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(self.submitted_ms));
        self.deadline_ms = allowed_ms.map(|allowed_ms| now_ms.saturating_add(allowed_ms));
        self.force = false;
        self.failed = None;
        self.reason = None;
        self.ended_ms = None;
        self.line_up();
    }

    fn step_is(&self, at: usize, id: Option<&str>) -> bool {
        id == Some(&self.plan.steps[at].id)
    }

    fn open_again(&mut self, at: usize, fresh: bool) {
        let step = &mut self.steps[at];
        step.status = StepStatus::Pending;
        step.reason = None;
        step.output = None;
        step.ended = None;
        step.ended_ms = None;
        step.started_ms = None;
        step.whole = step.whole.again();
        step.gathered = None;
        step.failed_parts = 0;
        step.width = Width::default();
        for part in step.parts.iter_mut().filter(|part| fresh || part.status != WorkStatus::Succeeded) {
            *part = part.again();
        }
        step.begun_parts = step.parts.iter().filter(|part| part.status != WorkStatus::None).count();
    }

    fn no_step(&self, id: &str) -> Refusal {
        Refusal::new(Code::NotFound, format!("workflow `{}` has no step `{id}`", self.id))
    }

    fn has_ended(&self, wish: &str) -> Refusal {
        let message = format!("workflow `{}` cannot be {wish}: it is {}", self.id, self.phase.as_str());
        Refusal::new(Code::FailedPrecondition, message)
    }
}

impl Work {
    /// Returns an ended task as it is before it is retried: only its submission is left.
    fn again(&self) -> Self {
        Self {
            submitted: self.submitted,
            submitted_ms: self.submitted_ms,
            input: self.input,
            hold: self.hold.clone(),
            ..Self::default()
        }
    }
}
