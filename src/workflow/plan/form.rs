//! The form of a plan block: its keys, and the bounds of `schemas/plan.json`.
//!
//! Invariant: every plan that was ever written is of this form, so a narrower bound needs a new version.

use std::ops::RangeInclusive;

use ipld_core::ipld::Ipld;
use serde::Deserialize;

use super::{EACH_MAX, NAME_MAX, Plan, STEPS_MAX};
use crate::{
    block::{decode, decode_ipld},
    workflow::shape::Step,
};

/// The characters of a name.
const NAME: RangeInclusive<usize> = 1..=NAME_MAX;
/// These keys of a step are left out where they do not hold.
const FLAGS: [&str; 3] = ["when", "reuse", "repeatable"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    v: u64,
    name: String,
    steps: Vec<Step>,
    #[serde(rename = "limits")]
    _limits: Limits,
}

/// The bounds of a plan's runs, which a plan need not set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default, rename = "output_max")]
    _output_max: Option<u64>,
}

impl Plan {
    /// Returns whether these bytes are a plan. Absent keys must be left out: none is null, and no flag is false.
    pub fn is_block(bytes: &[u8]) -> bool {
        decode::<Form>(bytes).is_ok_and(|form| form.fits())
            && decode_ipld(bytes).is_ok_and(|ipld| !ipld.iter().any(stands_for_absent))
    }
}

impl Form {
    fn fits(&self) -> bool {
        self.v == 1
            && is_name(&self.name)
            && (1..=STEPS_MAX).contains(&self.steps.len())
            && self.steps.iter().all(step_fits)
    }
}

fn step_fits(step: &Step) -> bool {
    let undone = step.compensate.as_ref();
    is_name(&step.id)
        && !step.action.is_empty()
        && !step.task_type.is_empty()
        && step.depends_on.iter().all(|name| is_name(name))
        && step.timeout_ms.is_none_or(|ms| ms >= 1)
        && step.each.is_none_or(|each| (1..=EACH_MAX).contains(&each))
        && undone.is_none_or(|undo| !undo.action.is_empty() && !undo.task_type.is_empty())
}

fn is_name(text: &str) -> bool {
    NAME.contains(&text.chars().count())
}

/// Returns whether a value is null, or a map with a flag that is false.
fn stands_for_absent(value: &Ipld) -> bool {
    match value {
        Ipld::Null => true,
        Ipld::Map(map) => FLAGS.iter().any(|flag| map.get(*flag) == Some(&Ipld::Bool(false))),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
