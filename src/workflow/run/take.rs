//! Taking over what another run has done: forks, and runs that repeat a run to compare.
//!
//! Invariants:
//! - a fork takes a step only if nothing that comes before it runs again;
//! - a repetition runs for real only what may be repeated, and says of the rest what it would be asked for now.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    CONDITION, Run, StepState,
    decision::DecisionBuilder,
    status::{StepStatus, WorkStatus},
    values::GATHERED_MAX,
};
use crate::{
    error::Code,
    workflow::{
        inputs::weigh,
        run::decision::Taken,
        shape::{Step, WORKFLOW_RUN},
        wrong::Wrong,
    },
};

impl Run {
    /// Tells a fork or rerun what its origin had done when this run was submitted. To be called whenever the run is
    /// loaded, before any later event is folded.
    pub fn take_over(&mut self, old: &Run) {
        let Some(origin) = self.facts.origin.clone() else { return };
        self.taken = match origin.rerun {
            true => self.recorded(old),
            false => self.kept(old, origin.from_step.as_deref()),
        };
    }

    /// Returns the input that a rerun's taken step would get now, as JSON text: its task's, or `{"items": [...]}`
    /// with those of a list. Returns `None` if the record was erased, or the list is over the bound.
    pub(super) fn asked_now(&self, at: usize, answer: &DecisionBuilder<'_>) -> Result<Option<String>, Wrong> {
        let recorded = match self.taken.get(&at) {
            Some(Taken::Output { input, .. }) => input.as_ref(),
            Some(Taken::Gathered { .. } | Taken::Failed { .. }) | None => None,
        };
        let erased = recorded.is_some_and(|input| answer.contents.json(&input.cid).is_none());
        if !self.repeats() || erased || self.inputs.is_null() {
            return Ok(None);
        }
        let (step, inputs) = (&self.plan.steps[at], self.inputs_of(at, "inputs"));
        if step.each.is_none() {
            let mut input = self.resolve(at, &step.action, inputs, None, answer)?;
            if let (WORKFLOW_RUN, Some(origin), Some(fields)) =
                (step.action.as_str(), &self.facts.origin, input.as_object_mut())
            {
                // The child is the one that the other run had.
                fields.entry("workflow_id").or_insert_with(|| json!(format!("{}/{}", origin.run, step.id)));
            }
            return Ok(Some(input.to_string()));
        }
        let source = self.list_source(at, answer)?;
        let mut items = Vec::new();
        let mut left = GATHERED_MAX;
        for item in self.list(at, &source)? {
            let input = self.resolve(at, &step.action, inputs, Some(item), answer)?;
            let Some(rest) = left.checked_sub(weigh(&input)) else { return Ok(None) };
            left = rest;
            items.push(input);
        }
        Ok(Some(json!({ "items": items }).to_string()))
    }

    /// Returns the steps that do not run, because their results are taken from the other run.
    pub fn taken_steps(&self) -> impl Iterator<Item = &str> {
        self.taken.keys().map(|&at| self.plan.steps[at].id.as_str())
    }

    fn recorded(&self, old: &Run) -> BTreeMap<usize, Taken> {
        let steps = self.plan.steps.iter().enumerate().filter(|(_, step)| !step.repeatable);
        let found = steps.filter_map(|(at, step)| {
            let state = &old.steps[old.step(&step.id)?];
            let taken = match state.status {
                StepStatus::Succeeded => taken(state)?,
                StepStatus::Skipped => Taken::Failed { code: Code::FailedPrecondition.as_str().to_owned() },
                status => {
                    Taken::Failed { code: state.reason.clone().unwrap_or_else(|| status.as_str().to_owned()) }
                }
            };
            Some((at, taken))
        });
        found.collect()
    }

    fn kept(&self, old: &Run, from_step: Option<&str>) -> BTreeMap<usize, Taken> {
        let from = from_step.and_then(|id| self.step(id));
        let mut runs: Vec<usize> = (0..self.steps.len()).filter(|&at| !self.same(at, old)).collect();
        if from.is_none() && runs.is_empty() {
            return BTreeMap::new();
        }
        runs.extend(from);
        let stands = |at: &usize| old.step(&self.plan.steps[*at].id).map(|at| &old.steps[at]);
        let undone = (0..self.steps.len()).filter(|at| !stands(at).is_some_and(StepState::stands));
        runs.extend(undone);
        let again = self.with_descendants(runs);
        let kept = (0..self.steps.len()).filter(|at| !again[*at]);
        kept.filter_map(|at| Some((at, taken(stands(&at)?)?))).collect()
    }

    /// Returns whether a step and its inputs are defined as in the other run. The contract of its tool may differ.
    fn same(&self, at: usize, old: &Run) -> bool {
        let plain = |step: &Step| Step { tool: None, ..step.clone() };
        let step = &self.plan.steps[at];
        let inputs = |run: &Run| run.inputs.get("steps").and_then(|steps| steps.get(&step.id)).cloned();
        old.step(&step.id).is_some_and(|other| plain(step) == plain(&old.plan.steps[other]))
            && inputs(self) == inputs(old)
    }

    /// Returns for each step whether it is one of `steps` or depends on one.
    pub(super) fn with_descendants(&self, mut steps: Vec<usize>) -> Vec<bool> {
        let mut reached = vec![false; self.steps.len()];
        while let Some(at) = steps.pop() {
            if !std::mem::replace(&mut reached[at], true) {
                steps.extend(&self.shape.children[at]);
            }
        }
        reached
    }
}

impl StepState {
    /// Returns whether its result still holds: it succeeded and was not compensated, or its condition skipped it.
    pub(super) fn stands(&self) -> bool {
        match self.status {
            StepStatus::Succeeded => self.undo_status() != WorkStatus::Succeeded,
            StepStatus::Skipped => self.reason.as_deref() == Some(CONDITION),
            _ => false,
        }
    }
}

fn taken(state: &StepState) -> Option<Taken> {
    let from = state.ended.filter(|_| state.status == StepStatus::Succeeded)?;
    Some(match state.gathered {
        Some(parts) => Taken::Gathered { parts, output: state.output, from },
        None => Taken::Output { input: state.whole.input, output: state.output, from },
    })
}
