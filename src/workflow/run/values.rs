//! The values a run reads: what its input says, and what its steps gave.
//!
//! Invariant: nothing is read of a step that has not succeeded, and nothing over the plan's bound.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Run, StepStatus, decide::Answer};
use crate::{
    call::Code,
    event::PayloadRef,
    workflow::{
        inputs::{self, Output, Special, Wrong, weigh},
        plan::Step,
    },
};

/// Bytes of the gathered outputs of a step that runs over a list.
pub(super) const GATHERED_MAX: u64 = 16 * 1024 * 1024;

impl Run {
    /// The list that a step runs over.
    pub(super) fn list(&self, at: usize, answer: &Answer<'_>) -> Result<Value, Wrong> {
        let fields = self.inputs_of(at, "for_each").as_object();
        let Some(Special::From(reference)) = fields.and_then(Special::read) else {
            return Err(Wrong::new(Code::InvalidArgument, "`for_each` names no list"));
        };
        let output = self.output(reference.step, answer)?;
        let list = reference.find(output.value()).ok_or_else(|| reference.nothing())?;
        let (step, pointer) = (reference.step, reference.pointer);
        let Some(items) = list.as_array() else {
            let message = format!("the output of step `{step}` has no list at `{pointer}`");
            return Err(Wrong::new(Code::FailedPrecondition, message));
        };
        let max = self.plan.steps[at].each.unwrap_or(0);
        if items.len() as u64 > max {
            let message = format!(
                "{} elements at `{pointer}` of step `{step}` are over the bound of {max}",
                items.len()
            );
            return Err(Wrong::new(Code::ResourceExhausted, message));
        }
        Ok(list)
    }

    /// Puts the values of earlier steps, and the element, into inputs.
    pub(super) fn resolve(
        &self,
        at: usize,
        action: &str,
        inputs: &Value,
        item: Option<&Value>,
        answer: &Answer<'_>,
    ) -> Result<Value, Wrong> {
        let mut left = self.plan.limits.output_max;
        inputs::replace(inputs, action, "", &mut |special, _| {
            let value = match special {
                Special::From(reference) => {
                    let output = self.output(reference.step, answer)?;
                    reference.find(output.value()).ok_or_else(|| reference.nothing())?
                }
                Special::Item(pointer) => {
                    let found = item.and_then(|item| item.pointer(pointer)).cloned();
                    found.ok_or_else(|| {
                        let message =
                            format!("the element of step `{}` has nothing at `{pointer}`", self.id_of(at));
                        Wrong::new(Code::FailedPrecondition, message)
                    })?
                }
                Special::Malformed(fault) => return Err(Wrong::new(Code::InvalidArgument, fault)),
            };
            left = left.checked_sub(weigh(&value)).ok_or_else(|| {
                let max = self.plan.limits.output_max;
                let message =
                    format!("what step `{}` takes is over the bound of {max} bytes", self.id_of(at));
                Wrong::new(Code::ResourceExhausted, message)
            })?;
            Ok(value)
        })
    }

    /// What a step gave, for another to read.
    pub(super) fn output(&self, id: &str, answer: &Answer<'_>) -> Result<Output, Wrong> {
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
        answer: &Answer<'_>,
    ) -> Result<Output, Wrong> {
        Ok(Output::of(step, self.content(step, output, answer)?))
    }

    fn content(
        &self,
        step: &Step,
        output: Option<PayloadRef>,
        answer: &Answer<'_>,
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

    /// What the run's input says about a step.
    pub(super) fn inputs_of(&self, at: usize, name: &str) -> &Value {
        let steps = self.inputs.get("steps").and_then(Value::as_object);
        let step = steps.and_then(|steps: &Map<String, Value>| steps.get(&self.plan.steps[at].id));
        step.and_then(|step| step.get(name)).unwrap_or(&Value::Null)
    }
}
