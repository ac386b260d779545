//! What a run tells those that wait for it.
//!
//! Invariants:
//! - content that was erased is told as null, never left out.

use serde_json::{Map, Value};

use super::{Run, decision::Contents};
use crate::workflow::inputs::Output;

impl Run {
    /// Returns whether the run has ended and none of its tasks is open.
    pub fn at_rest(&self) -> bool {
        self.phase.ended() && self.running.is_empty() && self.idle.is_empty()
    }

    /// Returns the outputs of the steps that no other depends on, by step; null for an absent or erased one.
    pub fn result(&self, contents: &dyn Contents) -> Value {
        let told = self.sinks().map(|at| {
            let output = self.steps[at].output.and_then(|output| contents.json(&output.cid));
            let step = &self.plan.steps[at];
            let value = output.map(|json| Output::of(step, json).value().clone());
            (step.id.clone(), value.unwrap_or_default())
        });
        Value::Object(told.collect::<Map<_, _>>())
    }
}
