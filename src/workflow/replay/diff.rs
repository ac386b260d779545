//! Two runs side by side.
//!
//! Invariant: a step is compared with the step of the same name, whatever else the runs have.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Compared, Report, Verdict, match_up};
use crate::{
    block::Cid,
    event::PayloadRef,
    words::words,
    workflow::{
        graph::Graph,
        run::{Run, StepState, Work, decision::Contents, status::StepStatus},
    },
};

words! {
    /// Whether two steps agree in one respect.
    pub enum Likeness {
        Same = "same",
        Different = "different",
        /// Content was erased, so it cannot be told.
        Unknown = "unknown",
    }
}

/// A step of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    pub status: &'static str,
    pub contract: Option<Cid>,
    pub input: Option<Cid>,
    pub output: Option<Cid>,
    pub duration_ms: Option<u64>,
}

/// A step of either run, or of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub step_id: String,
    pub contract: Likeness,
    pub input: Likeness,
    pub output: Likeness,
    pub status: Likeness,
    /// The erased payload, if something is unknown for lack of it.
    pub erased: Option<Cid>,
    pub left: Option<Side>,
    pub right: Option<Side>,
}

/// Two runs compared: the left one's steps in topological order, then those that only the right one has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    pub steps: Vec<Pair>,
    /// Whether both runs have ended.
    pub complete: bool,
}

/// Compares two runs step by step.
pub fn diff(left: &Run, right: &Run, contents: &dyn Contents) -> Diff {
    let ids = |run: &Run| -> Vec<String> {
        let order = Graph::of(run).order();
        order.into_iter().map(|at| run.plan.steps[at].id.clone()).collect()
    };
    let mut all = ids(left);
    let known: HashSet<String> = all.iter().cloned().collect();
    all.extend(ids(right).into_iter().filter(|id| !known.contains(id)));
    let steps = all.into_iter().map(|id| pair(id, left, right, contents)).collect();
    Diff { steps, complete: left.status().ended() && right.status().ended() }
}

fn pair(step_id: String, left: &Run, right: &Run, contents: &dyn Contents) -> Pair {
    let (Some(one), Some(other)) = (left.step(&step_id), right.step(&step_id)) else {
        let side = |run: &Run| run.step(&step_id).map(|at| side(run, at));
        let differ = Likeness::Different;
        let (left, right) = (side(left), side(right));
        return Pair {
            step_id,
            contract: differ,
            input: differ,
            output: differ,
            status: differ,
            erased: None,
            left,
            right,
        };
    };
    let contract = |run: &Run, at: usize| {
        let step = &run.plan.steps[at];
        (step.action.clone(), step.tool)
    };
    let mut pair = Pair {
        contract: match contract(left, one) == contract(right, other) {
            true => Likeness::Same,
            false => Likeness::Different,
        },
        input: inputs_alike(&left.steps[one], &right.steps[other], contents),
        output: alike(&output(&left.steps[one]), &output(&right.steps[other]), contents),
        status: ends_alike(&left.steps[one], &right.steps[other]),
        erased: None,
        left: Some(side(left, one)),
        right: Some(side(right, other)),
        step_id,
    };
    if [pair.input, pair.output].contains(&Likeness::Unknown) {
        let held = [&left.steps[one], &right.steps[other]].into_iter().flat_map(payloads);
        pair.erased = held.map(|payload| payload.cid).find(|cid| !contents.is_there(cid));
    }
    pair
}

/// Returns the inputs of a step and of its parts, and its output.
fn payloads(state: &StepState) -> impl Iterator<Item = PayloadRef> {
    let asked = std::iter::once(&state.whole).chain(&state.parts).filter_map(|work: &Work| work.input);
    asked.chain(output(state).into_iter().flatten())
}

fn side(run: &Run, at: usize) -> Side {
    let state = &run.steps[at];
    Side {
        status: state.status.as_str(),
        contract: run.plan.steps[at].tool,
        input: state.whole.input.map(|input| input.cid),
        output: state.output.map(|output| output.cid),
        duration_ms: state.started_ms.zip(state.ended_ms).map(|(start, end)| end.saturating_sub(start)),
    }
}

/// Returns a step's output. The error of a failed step does not count, because its text may differ each time.
fn output(state: &StepState) -> [Option<PayloadRef>; 1] {
    [state.output.filter(|_| state.status == StepStatus::Succeeded)]
}

/// Compares the endings of two steps. A step that fails because another run's record says so counts as failing alike.
fn ends_alike(left: &StepState, right: &StepState) -> Likeness {
    let bad = |state: &StepState| {
        matches!(state.status, StepStatus::Failed | StepStatus::TimedOut | StepStatus::Cancelled)
    };
    let by_record = (left.from_record() || right.from_record()) && bad(left) && bad(right);
    let same = left.status == right.status && (!bad(left) || left.reason == right.reason);
    if by_record || same { Likeness::Same } else { Likeness::Different }
}

/// Compares the inputs of two steps.
fn inputs_alike(left: &StepState, right: &StepState, contents: &dyn Contents) -> Likeness {
    let inputs = |state: &StepState| -> Vec<Option<PayloadRef>> {
        std::iter::once(&state.whole).chain(&state.parts).map(|work: &Work| work.input).collect()
    };
    let (of_left, of_right) = (inputs(left), inputs(right));
    match (of_left.as_slice(), of_right.as_slice()) {
        // A list that was taken from a record has its inputs in one payload, or in none.
        ([None, parts @ ..], [list]) if !parts.is_empty() && right.from_record() => {
            list_alike(parts, list.as_ref(), contents)
        }
        ([list], [None, parts @ ..]) if !parts.is_empty() && left.from_record() => {
            list_alike(parts, list.as_ref(), contents)
        }
        (left, right) => alike(left, right, contents),
    }
}

/// Compares the inputs of a list's parts, as far as they began, with those in `{"items": [...]}`.
fn list_alike(parts: &[Option<PayloadRef>], list: Option<&PayloadRef>, contents: &dyn Contents) -> Likeness {
    let list = list.and_then(|list| contents.json(&list.cid));
    let Some(items) = list.as_ref().and_then(|list| list.get("items")?.as_array()) else {
        return Likeness::Unknown;
    };
    if parts.len() > items.len() {
        return Likeness::Different;
    }
    let mut likeness = Likeness::Same;
    for (part, item) in parts.iter().zip(items) {
        match part.map(|part| contents.json(&part.cid)) {
            Some(Some(part)) if *part != *item => return Likeness::Different,
            Some(None) => likeness = Likeness::Unknown,
            Some(Some(_)) | None => {}
        }
    }
    likeness
}

/// Compares the contents of payloads one by one.
fn alike(left: &[Option<PayloadRef>], right: &[Option<PayloadRef>], contents: &dyn Contents) -> Likeness {
    if left.len() != right.len() {
        return Likeness::Different;
    }
    let mut likeness = Likeness::Same;
    for pair in left.iter().zip(right) {
        let same = match pair {
            (Some(left), Some(right)) => match_up::same(&left.cid, &right.cid, contents),
            (left, right) => Ok(left.is_none() && right.is_none()),
        };
        match same {
            Ok(true) => {}
            Ok(false) => return Likeness::Different,
            Err(_) => likeness = Likeness::Unknown,
        }
    }
    likeness
}

impl Pair {
    /// Returns the first respect in which the steps differ, with the payloads or contracts that show it.
    pub(super) fn differs(&self) -> Option<(&'static str, Option<Cid>, Option<Cid>)> {
        let (left, right) = match (&self.left, &self.right) {
            (Some(left), Some(right)) => (left, right),
            (None, _) => return Some(("the left run lacks the step", None, None)),
            (_, None) => return Some(("the right run lacks the step", None, None)),
        };
        let found = [
            (self.contract == Likeness::Different, "contract", left.contract, right.contract),
            (self.input == Likeness::Different, "input", left.input, right.input),
            (self.output == Likeness::Different, "output", left.output, right.output),
            (self.status == Likeness::Different, "status", None, None),
        ];
        let first = found.into_iter().find(|(differs, ..)| *differs);
        first.map(|(_, why, left, right)| (why, left, right))
    }

    fn compared(&self) -> Compared {
        let (why, expected, actual) = self.differs().unwrap_or(("", None, None));
        let verdict = match (&self.left, &self.right) {
            (None, _) => Verdict::Extra,
            (_, None) => Verdict::Missing,
            _ if [self.contract, self.input].contains(&Likeness::Different) => Verdict::InputDiffers,
            _ if !why.is_empty() => Verdict::OutputDiffers,
            _ if [self.input, self.output].contains(&Likeness::Unknown) => Verdict::Unverifiable,
            _ => Verdict::Match,
        };
        let step_id = Some(self.step_id.clone());
        let erased = self.erased.filter(|_| verdict == Verdict::Unverifiable);
        Compared { step_id, verdict, expected, actual, erased, why: why.to_owned() }
    }
}

impl Diff {
    pub fn matched(&self) -> bool {
        self.steps.iter().all(|step| step.differs().is_none())
    }

    /// Returns the first step that differs, why, and what shows it on either side.
    pub fn first_divergence(&self) -> Option<(&str, &'static str, Option<Cid>, Option<Cid>)> {
        self.steps.iter().find_map(|step| {
            let (why, left, right) = step.differs()?;
            Some((step.step_id.as_str(), why, left, right))
        })
    }

    /// Returns the comparison in the form of a replay's report: the right run is a rerun of the left one.
    pub fn report(&self) -> Report {
        let steps = self.steps.iter().map(Pair::compared).collect();
        Report { steps, complete: self.complete }
    }

    /// Returns how many steps both runs have.
    pub fn compared_steps(&self) -> u64 {
        self.steps.iter().filter(|step| step.left.is_some() && step.right.is_some()).count() as u64
    }

    /// `{matched, compared_steps, steps: [{step_id, contract, input, output, left, right}], first_divergence:
    /// {step_id, left, right, why} | null}`.
    pub fn json(&self) -> Value {
        let name = |cid: Option<Cid>| cid.map(|cid| cid.to_string());
        let side = |side: &Side| {
            json!({
                "status": side.status,
                "contract": name(side.contract),
                "input": name(side.input),
                "output": name(side.output),
                "duration_ms": side.duration_ms,
            })
        };
        let step = |step: &Pair| {
            json!({
                "step_id": step.step_id,
                "contract": step.contract.as_str(),
                "input": step.input.as_str(),
                "output": step.output.as_str(),
                "left": step.left.as_ref().map(side),
                "right": step.right.as_ref().map(side),
            })
        };
        let first = self.first_divergence().map(|(step_id, why, left, right)| {
            json!({"step_id": step_id, "left": name(left), "right": name(right), "why": why})
        });
        json!({
            "matched": self.matched(),
            "compared_steps": self.compared_steps(),
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
            "first_divergence": first,
        })
    }
}
