//! Matching a decision of the rules with the event that should record it.
//!
//! Invariant: times, and the place a task has in the queue, are outcomes and not compared.

use serde_json::Value;

use super::Verdict;
use crate::{
    block::Cid,
    event::{
        Body, Event, PayloadRef, Role,
        work::{Hold, Part, TaskSubmitted},
    },
    workflow::run::{
        Run,
        decision::{Contents, Decision, Given},
    },
};

/// The subject of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Begin,
    End,
    /// Whether a task runs.
    Run(String),
    Settle(String),
    Cancel(String),
    /// A step that ends without a task.
    Step(String),
}

/// The result of a comparison.
pub enum Found {
    Same,
    /// It cannot be told any more: the content of this payload was erased.
    Erased(Cid),
    Differs {
        verdict: Verdict,
        expected: Option<Cid>,
        actual: Option<Cid>,
        why: String,
    },
}

impl Found {
    pub fn differs(verdict: Verdict, event: &Event, why: impl Into<String>) -> Self {
        let actual = event.fields().pay.first().map(|payload| payload.cid);
        Self::Differs { verdict, expected: None, actual, why: why.into() }
    }
}

impl Key {
    pub fn is_of(&self, decision: &Decision) -> bool {
        let (word, id) = match self {
            Self::Begin => return matches!(decision, Decision::Begin(_)),
            Self::End => return matches!(decision, Decision::End(_)),
            Self::Run(id) => ("run", id),
            Self::Settle(id) => ("settle", id),
            Self::Cancel(id) => ("cancel", id),
            Self::Step(id) => ("step", id),
        };
        name(decision) == Some((word, id))
    }
}

fn name(decision: &Decision) -> Option<(&'static str, &str)> {
    match decision {
        Decision::Submit { task_id, .. }
        | Decision::Retry { task_id, .. }
        | Decision::Child { task_id, .. }
        | Decision::Take { task_id, .. } => Some(("run", task_id)),
        Decision::Settle { task_id, .. } => Some(("settle", task_id)),
        Decision::Cancel { task_id, .. } => Some(("cancel", task_id)),
        Decision::TakeGathered { step, .. }
        | Decision::Skip { step, .. }
        | Decision::Fail { step, .. }
        | Decision::Gather { step, .. } => Some(("step", step)),
        Decision::Begin(_) | Decision::End(_) => None,
    }
}

/// Returns the subject of the decision that an event may record; `None` for events that never record one.
pub fn key(event: &Event, body: &Body) -> Option<Key> {
    let task = || event.fields().subject.strip_prefix("task/").map(str::to_owned);
    match body {
        Body::WorkflowStarted(_) => Some(Key::Begin),
        Body::WorkflowSucceeded(_) | Body::WorkflowFailed(_) | Body::WorkflowTimedOut(_) => Some(Key::End),
        Body::StepSkipped(_) | Body::StepFailed(_) | Body::StepGathered(_) => step_of(body).map(Key::Step),
        Body::TaskSubmitted(_) | Body::TaskRetried(_) => task().map(Key::Run),
        Body::TaskSucceeded(_) => task().map(Key::Settle),
        Body::TaskCancelRequested(_) | Body::TaskCancelled(_) => task().map(Key::Cancel),
        _ => None,
    }
}

/// Returns the step that an event of the run names.
pub fn step_of(body: &Body) -> Option<String> {
    match body {
        Body::StepSkipped(facts) => Some(facts.step.clone()),
        Body::StepFailed(facts) => Some(facts.step.clone()),
        Body::StepGathered(facts) => Some(facts.step.clone()),
        _ => None,
    }
}

/// Returns the step that a decision is about.
pub fn step_decided(decision: &Decision, run: &Run) -> Option<String> {
    match name(decision)? {
        ("step", step) => Some(step.to_owned()),
        (_, task) => {
            run.slot(task).and_then(|slot| run.plan.steps.get(slot.step)).map(|step| step.id.clone())
        }
    }
}

/// Describes a decision in a few words.
pub fn told(decision: &Decision) -> String {
    match decision {
        Decision::Begin(_) => "the run begins".to_owned(),
        Decision::Submit { task_id, .. } | Decision::Child { task_id, .. } => {
            format!("task {task_id} is submitted")
        }
        Decision::Retry { task_id, .. } => format!("task {task_id} runs again"),
        Decision::Take { task_id, .. } => format!("task {task_id} takes its result from another run"),
        Decision::TakeGathered { step, .. } => format!("step {step} takes its result from another run"),
        Decision::Skip { step, reason } => format!("step {step} is skipped ({reason})"),
        Decision::Fail { step, code, .. } => format!("step {step} fails ({code})"),
        Decision::Gather { step, .. } => format!("the parts of step {step} are gathered"),
        Decision::Settle { task_id, .. } => format!("task {task_id} has its signal"),
        Decision::Cancel { task_id, .. } => format!("task {task_id} is cancelled"),
        Decision::End(body) => format!("the run ends ({})", body.kind().as_str()),
    }
}

/// Compares a decision with the event on the same subject.
pub fn compare(decision: &Decision, event: &Event, body: &Body, contents: &dyn Contents) -> Found {
    let input = |why: &str| Found::differs(Verdict::InputDiffers, event, why);
    let output = |why: &str| Found::differs(Verdict::OutputDiffers, event, why);
    match (decision, body) {
        (Decision::Begin(_), Body::WorkflowStarted(_)) | (Decision::Cancel { .. }, _) => Found::Same,
        (Decision::End(decided), recorded) if decided == recorded => Found::Same,
        (Decision::End(decided), _) => output(&format!("the rules end the run with {decided:?}")),
        (Decision::Submit { input: decided, .. }, Body::TaskSubmitted(facts)) => {
            match order_differs(decision, facts, event) {
                Some(what) => input(&format!("the rules give it another {what}")),
                None => text(decided, Role::Input, event, contents),
            }
        }
        (Decision::Child { part, run, definition, .. }, Body::TaskSubmitted(facts)) => {
            match facts.part == *part && facts.hold == Some(Hold::Run { run: run.clone() }) {
                true => value(definition, Role::Input, event, contents),
                false => input("the rules start another run"),
            }
        }
        (Decision::Retry { input: decided, .. }, Body::TaskRetried(_)) => {
            text(decided, Role::Input, event, contents)
        }
        (Decision::Take { input: taken, task_type, tool, .. }, Body::TaskSubmitted(facts)) => {
            match facts.task_type == *task_type && event.fields().tool == *tool && facts.part == Part::Whole {
                true => match taken {
                    Given::Recorded(taken) => taken_over(*taken, Role::Input, event, contents),
                    Given::Resolved(asked) => text(asked, Role::Input, event, contents),
                },
                false => input("the rules take over another task"),
            }
        }
        (Decision::TakeGathered { input: asked, parts, output: taken, .. }, Body::StepGathered(facts)) => {
            match facts.parts == *parts {
                true => match asked.as_ref().map(|asked| text(asked, Role::Input, event, contents)) {
                    None | Some(Found::Same) => taken_over(*taken, Role::Output, event, contents),
                    Some(found) => found,
                },
                false => output("the rules take over another number of parts"),
            }
        }
        (Decision::Gather { output: decided, parts, .. }, Body::StepGathered(facts)) => {
            match facts.parts == *parts {
                true => text(decided, Role::Output, event, contents),
                false => output("the rules gather another number of parts"),
            }
        }
        (Decision::Settle { output: taken, .. }, Body::TaskSucceeded(_)) => {
            taken_over(*taken, Role::Output, event, contents)
        }
        (Decision::Skip { reason, .. }, Body::StepSkipped(facts)) if facts.reason == *reason => Found::Same,
        (Decision::Fail { code, input: asked, .. }, Body::StepFailed(facts)) if facts.code == *code => {
            asked.as_ref().map_or(Found::Same, |asked| text(asked, Role::Input, event, contents))
        }
        (decision, _) => input(&format!("the rules decide otherwise: {}", told(decision))),
    }
}

/// Returns the field in which a task's submission differs from the decision.
fn order_differs(decision: &Decision, facts: &TaskSubmitted, event: &Event) -> Option<&'static str> {
    let Decision::Submit { step, part, task_type, tool, hold, retry, timeout_ms, repeatable, reuse, .. } =
        decision
    else {
        return None;
    };
    let differ = [
        (facts.task_type != *task_type, "type"),
        (event.fields().tool != *tool, "contract"),
        (facts.step.as_deref() != Some(step) || facts.part != *part, "place"),
        (facts.hold != *hold, "hold"),
        (retry.is_some_and(|retry| facts.retry != retry), "retry policy"),
        (facts.timeout_ms != *timeout_ms, "timeout"),
        (facts.repeatable != *repeatable || facts.reuse != *reuse, "leave to repeat or reuse"),
    ];
    differ.iter().find(|(differs, _)| *differs).map(|(_, what)| *what)
}

/// Compares JSON text with a payload's content.
fn text(decided: &str, role: Role, event: &Event, contents: &dyn Contents) -> Found {
    match serde_json::from_str(decided) {
        Ok(decided) => value(&decided, role, event, contents),
        Err(_) => Found::differs(verdict(role), event, "the rules give no json"),
    }
}

fn value(decided: &Value, role: Role, event: &Event, contents: &dyn Contents) -> Found {
    let Some(recorded) = event.fields().payload(role) else {
        return Found::differs(verdict(role), event, "there is no payload on record");
    };
    match contents.json(&recorded.cid) {
        None => Found::Erased(recorded.cid),
        Some(recorded) => match difference(decided, &recorded) {
            None => Found::Same,
            Some(place) => {
                let place = if place.is_empty() { "as a whole".to_owned() } else { format!("at {place}") };
                Found::differs(verdict(role), event, format!("the content differs {place}"))
            }
        },
    }
}

/// Compares a payload that was taken over with that of the event.
fn taken_over(taken: Option<PayloadRef>, role: Role, event: &Event, contents: &dyn Contents) -> Found {
    let recorded = event.fields().payload(role);
    let same = match (taken, recorded) {
        (Some(taken), Some(recorded)) => same(&taken.cid, &recorded.cid, contents),
        // What was erased is not named again.
        (Some(taken), None) if !contents.is_there(&taken.cid) => Err(taken.cid),
        (taken, recorded) => Ok(taken.is_none() && recorded.is_none()),
    };
    match same {
        Ok(true) => Found::Same,
        Ok(false) => Found::Differs {
            verdict: verdict(role),
            expected: taken.map(|taken| taken.cid),
            actual: recorded.map(|recorded| recorded.cid),
            why: "the payload that it takes is another".to_owned(),
        },
        Err(erased) => Found::Erased(erased),
    }
}

fn verdict(role: Role) -> Verdict {
    match role {
        Role::Input => Verdict::InputDiffers,
        Role::Output | Role::Error | Role::Log | Role::Artifact | Role::Note => Verdict::OutputDiffers,
    }
}

/// Returns whether two payloads have the same content. Errors: the payload of which the content was erased.
pub fn same(one: &Cid, other: &Cid, contents: &dyn Contents) -> Result<bool, Cid> {
    if one == other {
        return Ok(true);
    }
    let content = |payload: &Cid| contents.json(payload).ok_or(*payload);
    Ok(content(one)? == content(other)?)
}

/// Returns the first place at which two values differ, as a JSON pointer; `None` if they are equal.
pub fn difference(one: &Value, other: &Value) -> Option<String> {
    if one == other {
        return None;
    }
    let at =
        |name: &str, inner: String| Some(format!("/{}{inner}", name.replace('~', "~0").replace('/', "~1")));
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys().filter(|key| !one.contains_key(*key)));
            keys.filter(|key| one.get(*key) != other.get(*key)).find_map(|key| {
                match (one.get(key), other.get(key)) {
                    (Some(one), Some(other)) => at(key, difference(one, other)?),
                    _ => at(key, String::new()),
                }
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            let pairs = one.iter().zip(other).enumerate();
            let inside = pairs
                .into_iter()
                .find_map(|(index, (one, other))| at(&index.to_string(), difference(one, other)?));
            inside.or_else(|| at(&one.len().min(other.len()).to_string(), String::new()))
        }
        _ => Some(String::new()),
    }
}
