//! A plan and its inputs as the definition they were made from.
//!
//! Invariant: planning what is restored gives the same plan, as long as the tools are the same.

use serde_json::{Map, Value, json};

use super::Plan;
use crate::{event::work::RetryPolicy, workflow::shape::Step};

impl Plan {
    /// Returns the definition, with the inputs of the steps in `overrides` replaced. Fields of the run itself (id,
    /// priority, bounds) are left to the caller.
    pub fn definition(&self, inputs: &Value, overrides: &Map<String, Value>) -> Value {
        let none = Value::Null;
        let steps = self.steps.iter().map(|step| {
            let parts = inputs.get("steps").and_then(|steps| steps.get(&step.id)).unwrap_or(&none);
            let mut restored = restore(step, parts);
            if let Some(inputs) = overrides.get(&step.id) {
                restored["inputs"] = inputs.clone();
            }
            restored
        });
        let steps: Vec<Value> = steps.collect();
        json!({ "name": self.name, "steps": steps, "metadata": inputs.get("metadata") })
    }
}

fn restore(step: &Step, parts: &Value) -> Value {
    let mut restored = json!({
        "step_id": step.id,
        "action": step.action,
        "inputs": parts.get("inputs"),
        "depends_on": step.depends_on,
        "when": parts.get("when"),
        "timeout_ms": step.timeout_ms,
        "retry": step.retry.as_ref().map(retry),
        "reuse": step.reuse,
        "repeatable": step.repeatable,
    });
    if let (Some(max), Some(list)) = (step.each, parts.get("for_each")) {
        restored["for_each"] = list.clone();
        restored["for_each"]["max"] = max.into();
    }
    if let Some(undo) = &step.compensate {
        let inputs = parts.get("compensate").and_then(|undo| undo.get("inputs"));
        restored["compensate"] = json!({ "action": undo.action, "inputs": inputs });
    }
    restored
}

fn retry(policy: &RetryPolicy) -> Value {
    json!({
        "max_retries": policy.max_retries,
        "backoff_ms": policy.backoff_ms,
        "backoff_factor": policy.factor_milli as f64 / 1_000.0,
        "max_backoff_ms": policy.max_backoff_ms,
        "jitter": policy.jitter,
    })
}
