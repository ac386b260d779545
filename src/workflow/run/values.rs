//! The values a run reads: what its input says, and what its steps gave.
//!
//! Invariant: nothing is read of a step that has not succeeded, and nothing over the plan's bound.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Run, decision::DecisionBuilder, status::StepStatus};
use crate::{
    error::Code,
    event::PayloadRef,
    workflow::{
        inputs::{self, Output, Reference, Special, weigh},
        shape::Step,
        wrong::Wrong,
    },
};

/// Bytes of the gathered outputs of a step that runs over a list.
pub(super) const GATHERED_MAX: u64 = 16 * 1024 * 1024;

impl Run {
    /// Returns the output that contains the list a step runs over.
    pub(super) fn list_source(&self, at: usize, answer: &DecisionBuilder<'_>) -> Result<Output, Wrong> {
        let reference = self.list_reference(at)?;
        match self.stand_in(&reference) {
            Some(default) => Ok(Output::Made(default.clone())),
            None => self.output(reference.step, answer),
        }
    }

    /// Returns the list that a step runs over.
    pub(super) fn list<'v>(&'v self, at: usize, source: &'v Output) -> Result<&'v [Value], Wrong> {
        let reference = self.list_reference(at)?;
        let list = self.stand_in(&reference).or_else(|| reference.find(source.value()));
        let list = list.ok_or_else(|| reference.nothing())?;
        let (step, pointer) = (reference.step, reference.pointer);
        let items = list.as_array().ok_or_else(|| {
            let message = format!("the output of step `{step}` has no list at `{pointer}`");
            Wrong::new(Code::FailedPrecondition, message)
        })?;
        let (len, max) = (items.len() as u64, self.plan.steps[at].each.unwrap_or(0));
        if len > max {
            let message =
                format!("{len} elements at `{pointer}` of step `{step}` are over the bound of {max}");
            return Err(Wrong::new(Code::ResourceExhausted, message));
        }
        Ok(items)
    }

    fn list_reference(&self, at: usize) -> Result<Reference<'_>, Wrong> {
        match self.inputs_of(at, "for_each").as_object().and_then(Special::read) {
            Some(Special::From(reference)) => Ok(reference),
            _ => Err(Wrong::new(Code::FailedPrecondition, "what the step runs over was erased")),
        }
    }

    /// Resolves inputs: replaces references by values of earlier steps and of the list element.
    pub(super) fn resolve(
        &self,
        at: usize,
        action: &str,
        inputs: &Value,
        item: Option<&Value>,
        answer: &DecisionBuilder<'_>,
    ) -> Result<Value, Wrong> {
        if inputs.is_null() {
            let message = format!("the inputs of step `{}` were erased", self.id_of(at));
            return Err(Wrong::new(Code::FailedPrecondition, message));
        }
        let max = self.plan.limits.output_max;
        let mut left = max;
        let mut copy = |value: &Value| {
            left = left.checked_sub(weigh(value)).ok_or_else(|| {
                let message =
                    format!("what step `{}` takes is over the bound of {max} bytes", self.id_of(at));
                Wrong::new(Code::ResourceExhausted, message)
            })?;
            Ok(value.clone())
        };
        inputs::replace(inputs, action, "", &mut |special, _| match special {
            Special::From(reference) => {
                if let Some(default) = self.stand_in(&reference) {
                    return copy(default);
                }
                let output = self.output(reference.step, answer)?;
                copy(reference.find(output.value()).ok_or_else(|| reference.nothing())?)
            }
            Special::Item(pointer) => copy(item.and_then(|item| item.pointer(pointer)).ok_or_else(|| {
                let message = format!("the element of step `{}` has nothing at `{pointer}`", self.id_of(at));
                Wrong::new(Code::FailedPrecondition, message)
            })?),
            Special::Malformed(fault) => Err(Wrong::new(Code::InvalidArgument, fault)),
        })
    }

    /// Returns the default of a reference to a skipped step.
    fn stand_in<'v>(&self, reference: &Reference<'v>) -> Option<&'v Value> {
        let at = self.step(reference.step)?;
        reference.default.filter(|_| self.steps[at].status == StepStatus::Skipped)
    }

    /// Returns a step's output, for another step to read.
    pub(super) fn output(&self, id: &str, answer: &DecisionBuilder<'_>) -> Result<Output, Wrong> {
        let at = self.step(id).filter(|&at| self.steps[at].status == StepStatus::Succeeded);
        let at = at.ok_or_else(|| {
            Wrong::new(
                Code::FailedPrecondition,
                format!("step `{id}` did not run, so it has no output to read"),
            )
        })?;
        let (step, state) = (&self.plan.steps[at], &self.steps[at]);
        match step.each {
            None => self.read(step, state.output, answer),
            Some(_) => self.content(step, state.output, answer).map(Output::Itself),
        }
    }

    pub(super) fn read(
        &self,
        step: &Step,
        output: Option<PayloadRef>,
        answer: &DecisionBuilder<'_>,
    ) -> Result<Output, Wrong> {
        Ok(Output::of(step, self.content(step, output, answer)?))
    }

    fn content(
        &self,
        step: &Step,
        output: Option<PayloadRef>,
        answer: &DecisionBuilder<'_>,
    ) -> Result<Arc<Value>, Wrong> {
        let Some(output) = output else { return Ok(Arc::new(Value::Null)) };
        let max = if step.each.is_some() { GATHERED_MAX } else { self.plan.limits.output_max };
        if output.len > max {
            let message = format!(
                "the output of step `{}` of {} bytes is over the bound of {max}",
                step.id, output.len
            );
            return Err(Wrong::new(Code::ResourceExhausted, message));
        }
        answer.contents.json(&output.cid).ok_or_else(|| {
            Wrong::new(Code::FailedPrecondition, format!("the output of step `{}` was erased", step.id))
        })
    }

    /// Returns a field of a step in the run's input.
    pub(super) fn inputs_of(&self, at: usize, name: &str) -> &Value {
        let steps = self.inputs.get("steps").and_then(Value::as_object);
        let step = steps.and_then(|steps: &Map<String, Value>| steps.get(&self.plan.steps[at].id));
        step.and_then(|step| step.get(name)).unwrap_or(&Value::Null)
    }
}
