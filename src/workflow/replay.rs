//! Replays: a run decided again from what is on record, and two runs compared.
//!
//! Invariants:
//! - a run is decided again by the rules it was decided by, [`Run::decide`], from recorded inputs and outcomes;
//! - contents are compared, not names: the same content has another CID where another key salts it;
//! - content that was erased is neither equal nor different: it is said to be unverifiable, and which payload it was;
//! - a run whose own input was erased is unverifiable wherever a step is asked for by it.

mod match_up;
pub mod diff;

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};

use self::match_up::{Found, Key};
use super::run::{
    Run,
    decision::{Contents, Decision},
};
use crate::{
    block::Cid,
    event::{Body, Event, PayloadRef, Role, work::Hold},
    words::words,
};

words! {
    /// The verdict on a step.
    pub enum Verdict {
        Match = "match",
        /// The rules start it with another input, contract or condition.
        InputDiffers = "input_differs",
        OutputDiffers = "output_differs",
        /// The rules decide something that is not on record.
        Missing = "missing",
        /// The record has something that the rules do not decide.
        Extra = "extra",
        /// Content that the comparison needs was erased.
        Unverifiable = "unverifiable",
    }
}

/// A compared step, with its first difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// `None` for the beginning and the end of the run.
    pub step_id: Option<String>,
    pub verdict: Verdict,
    /// The payload by the rules, or of the call that gave it; `None` if it is no payload.
    pub expected: Option<Cid>,
    /// The payload on record.
    pub actual: Option<Cid>,
    /// The erased payload that makes it unverifiable.
    pub erased: Option<Cid>,
    /// Empty where it matches.
    pub why: String,
}

words! {
    /// The verdict on a run.
    pub enum Outcome {
        Matched = "matched",
        /// Something differs.
        Differs = "differs",
        /// Nothing differs, but erased content keeps part of it from being compared.
        Incomplete = "incomplete",
    }
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were first decided.
    pub steps: Vec<Compared>,
    /// Whether the run has ended. One that has not matches only so far.
    pub complete: bool,
}

impl Verdict {
    fn diverges(self) -> bool {
        !matches!(self, Self::Match | Self::Unverifiable)
    }
}

impl Report {
    /// Returns whether nothing differs; an unverifiable step does not differ.
    pub fn matched(&self) -> bool {
        self.first_divergence().is_none()
    }

    pub fn outcome(&self) -> Outcome {
        let unverifiable = self.steps.iter().any(|step| step.verdict == Verdict::Unverifiable);
        match (self.matched(), unverifiable) {
            (false, _) => Outcome::Differs,
            (true, true) => Outcome::Incomplete,
            (true, false) => Outcome::Matched,
        }
    }

    /// Returns the erased payloads that the comparison needs, each once.
    pub fn erased(&self) -> BTreeSet<Cid> {
        self.steps.iter().filter_map(|step| step.erased).collect()
    }

    /// Returns how many steps could be compared.
    pub fn compared_steps(&self) -> u64 {
        let compared = |step: &&Compared| step.step_id.is_some() && step.verdict != Verdict::Unverifiable;
        self.steps.iter().filter(compared).count() as u64
    }

    pub fn first_divergence(&self) -> Option<&Compared> {
        self.steps.iter().find(|step| step.verdict.diverges())
    }

    /// `{verdict, matched, complete, compared_steps, erased: [...], first_divergence: {step_id, expected, actual, why} |
    /// null, steps: [{step_id, verdict, expected, actual, erased?}]}`.
    pub fn json(&self) -> Value {
        let name = |cid: Option<Cid>| cid.map(|cid| cid.to_string());
        let step = |step: &Compared| {
            let mut told = json!({
                "step_id": step.step_id,
                "verdict": step.verdict.as_str(),
                "expected": name(step.expected),
                "actual": name(step.actual),
            });
            if let Some(erased) = name(step.erased) {
                told["erased"] = erased.into();
            }
            told
        };
        let first = |step: &Compared| {
            json!({
                "step_id": step.step_id,
                "expected": name(step.expected),
                "actual": name(step.actual),
                "why": step.why,
            })
        };
        json!({
            "verdict": self.outcome().as_str(),
            "matched": self.matched(),
            "complete": self.complete,
            "compared_steps": self.compared_steps(),
            "erased": self.erased().iter().map(Cid::to_string).collect::<Vec<_>>(),
            "first_divergence": self.first_divergence().map(first),
            "steps": self.steps.iter().filter(|step| step.step_id.is_some()).map(step).collect::<Vec<_>>(),
        })
    }
}

/// Decides a run again and compares every decision with the record.
///
/// `run` is the run after its submission, with what it takes over. `events` are the later events in order, the run's
/// own and those of its tasks. Endings of calls may be among them: a `task.succeeded` that refers to one must have
/// its output.
pub fn verify(run: Run, events: &[Event], contents: &dyn Contents) -> Report {
    let input = run.input.filter(|_| run.inputs.is_null()).map(|input| input.cid);
    let mut replay = Replay {
        run,
        input_erased: input.filter(|input| !contents.is_there(input)),
        contents: Watched { contents, erased: Cell::new(None) },
        calls: outputs_of_calls(events),
        decided: Vec::new(),
        steps: Vec::new(),
        places: HashMap::new(),
    };
    for event in events {
        replay.event(event);
    }
    replay.miss();
    Report { steps: replay.steps, complete: replay.run.status().ended() }
}

struct Replay<'a> {
    run: Run,
    /// The run's own input, if its content was erased. The rules cannot make any step's input then.
    input_erased: Option<Cid>,
    contents: Watched<'a>,
    /// The outputs of calls, by their endings.
    calls: HashMap<Cid, PayloadRef>,
    /// Decisions of the rules that the record has not shown yet, the first one last.
    decided: Vec<Decision>,
    steps: Vec<Compared>,
    places: HashMap<Option<String>, usize>,
}

/// Contents that remember the first erased one that was asked for.
struct Watched<'a> {
    contents: &'a dyn Contents,
    erased: Cell<Option<Cid>>,
}

impl Watched<'_> {
    fn miss(&self, payload: &Cid) {
        self.erased.set(self.erased.get().or(Some(*payload)));
    }
}

impl Contents for Watched<'_> {
    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        let json = self.contents.json(payload);
        if json.is_none() {
            self.miss(payload);
        }
        json
    }

    fn is_there(&self, payload: &Cid) -> bool {
        let there = self.contents.is_there(payload);
        if !there {
            self.miss(payload);
        }
        there
    }
}

impl Replay<'_> {
    fn event(&mut self, event: &Event) {
        let fields = event.fields();
        let task = fields.subject.strip_prefix("task/").and_then(|task| self.run.slot(task));
        if task.is_none() && fields.subject != super::subject(&self.run.id) {
            return;
        }
        let Some(body) = event.body() else { return };
        if turns(&body) {
            self.miss();
        }
        let step = match task {
            Some(slot) => self.run.plan.steps.get(slot.step).map(|step| step.id.clone()),
            None => match_up::step_of(&body),
        };
        match match_up::key(event, &body) {
            Some(key) if self.decides(&body, event) => self.decision(event, &body, &key, step),
            Some(_) | None if matches!(body, Body::TaskSucceeded(_)) => self.outcome(event, step),
            Some(_) | None => {}
        }
        self.run.apply(event);
    }

    /// Returns whether an event is a decision of the rules, and not a caller's or a worker's doing.
    fn decides(&mut self, body: &Body, event: &Event) -> bool {
        let slot = event.fields().subject.strip_prefix("task/").and_then(|task| self.run.slot(task));
        match body {
            // A task that waits for a signal has it from the rules, and from nobody else.
            Body::TaskSucceeded(_) => {
                let hold = slot.and_then(|slot| self.run.work(slot)).and_then(|work| work.hold.as_ref());
                matches!(hold, Some(Hold::Signal { .. }))
            }
            // Whoever has a task run again by hand gives it no input.
            Body::TaskRetried(_) => event.fields().payload(Role::Input).is_some(),
            Body::TaskCancelRequested(_) | Body::TaskCancelled(_) => {
                let key = match_up::key(event, body);
                key.is_some_and(|key| self.find(event, &key).is_some())
            }
            _ => true,
        }
    }

    /// Returns the index in `decided` of the decision about this key. If there is none, the rules are asked first.
    fn find(&mut self, event: &Event, key: &Key) -> Option<usize> {
        let place = |decided: &[Decision]| decided.iter().rposition(|decision| key.is_of(decision));
        if let Some(place) = place(&self.decided) {
            return Some(place);
        }
        self.know_dependencies(event);
        self.decide(event.fields().at_ms());
        place(&self.decided)
    }

    fn decide(&mut self, now_ms: u64) {
        self.contents.erased.set(self.input_erased);
        self.decided = self.run.decide(&self.contents, now_ms);
        self.decided.reverse();
    }

    /// Concludes from this event how the runs that this one waits for have ended. They are not on this record.
    fn know_dependencies(&mut self, event: &Event) {
        let failed = match event.body() {
            Some(Body::WorkflowFailed(facts)) => facts.step.is_none() && facts.reason == "dependency_failed",
            Some(Body::WorkflowTimedOut(_)) => return,
            _ => false,
        };
        let waits: Vec<String> = self.run.waits_for().map(str::to_owned).collect();
        for (number, id) in waits.iter().enumerate() {
            self.run.dependency_ended(id, !(failed && number == 0));
        }
    }

    /// Compares a decision on record with that of the rules.
    fn decision(&mut self, event: &Event, body: &Body, key: &Key, step: Option<String>) {
        let found = match self.find(event, key) {
            Some(place) => {
                let decision = self.decided.remove(place);
                let unknown = self.unknown(&decision);
                match (match_up::compare(&decision, event, body, &self.contents), unknown) {
                    (Found::Differs { .. }, Some(erased)) => Found::Erased(erased),
                    (found, _) => found,
                }
            }
            None => match self.could_not_tell(step.as_deref()) {
                Some(erased) => Found::Erased(erased),
                None => Found::differs(Verdict::Extra, event, self.instead(step.as_deref())),
            },
        };
        self.note(step, found);
    }

    /// Returns the erased payload for which this decision may differ from the original one.
    fn unknown(&self, decision: &Decision) -> Option<Cid> {
        match decision {
            // A step whose inputs cannot be made out fails.
            Decision::Fail { .. } => self.contents.erased.get(),
            // What would be asked for instead follows from the run's own input.
            Decision::Take { .. } | Decision::TakeGathered { .. } => self.input_erased,
            _ => None,
        }
    }

    /// Returns what the rules decide about a step instead of what is on record.
    fn instead(&self, step: Option<&str>) -> String {
        let of = |decision: &&Decision| match_up::step_decided(decision, &self.run).as_deref() == step;
        match self.decided.iter().find(of) {
            Some(decision) => format!("the rules decide otherwise: {}", match_up::told(decision)),
            None => "the rules do not decide this".to_owned(),
        }
    }

    /// Returns the erased payload for lack of which the rules now fail this step, and drops that decision.
    fn could_not_tell(&mut self, step: Option<&str>) -> Option<Cid> {
        let failed = |decision: &Decision| matches!(decision, Decision::Fail { step: failed, .. } if step == Some(failed));
        let erased = self.contents.erased.get()?;
        let place = self.decided.iter().rposition(failed)?;
        self.decided.remove(place);
        Some(erased)
    }

    /// Compares the output of a task with the output of its call.
    fn outcome(&mut self, event: &Event, step: Option<String>) {
        let given = event.fields().refs.iter().find_map(|cid| self.calls.get(cid).copied());
        let Some(given) = given else { return };
        let recorded = event.fields().payload(Role::Output).map(|output| output.cid);
        let same = match recorded {
            Some(recorded) => match_up::same(&given.cid, &recorded, &self.contents),
            None => Ok(false),
        };
        let found = match same {
            Ok(true) => Found::Same,
            Err(erased) => Found::Erased(erased),
            Ok(false) => Found::Differs {
                verdict: Verdict::OutputDiffers,
                expected: Some(given.cid),
                actual: recorded,
                why: "the output is not what its call gave".to_owned(),
            },
        };
        self.note(step, found);
    }

    /// Notes the decisions that the record does not show, before an event changes what the rules decide.
    fn miss(&mut self) {
        // At no time: whether a deadline has passed is the clock's to say.
        self.decide(0);
        for decision in std::mem::take(&mut self.decided).into_iter().rev() {
            let step = match_up::step_decided(&decision, &self.run);
            let found = match (&decision, self.contents.erased.get()) {
                (Decision::Fail { .. }, Some(erased)) => Found::Erased(erased),
                // What was erased before it was taken is handed to nobody.
                (Decision::Settle { output: Some(output), .. }, _)
                    if !self.contents.is_there(&output.cid) =>
                {
                    Found::Erased(output.cid)
                }
                _ => Found::Differs {
                    verdict: Verdict::Missing,
                    expected: None,
                    actual: None,
                    why: format!("the rules decide: {}; that is not on record", match_up::told(&decision)),
                },
            };
            self.note(step, found);
        }
    }

    fn note(&mut self, step_id: Option<String>, found: Found) {
        let same = Compared {
            step_id: step_id.clone(),
            verdict: Verdict::Match,
            expected: None,
            actual: None,
            erased: None,
            why: String::new(),
        };
        let compared = match found {
            Found::Same => same,
            Found::Erased(erased) => Compared {
                verdict: Verdict::Unverifiable,
                erased: Some(erased),
                why: "content was erased".to_owned(),
                ..same
            },
            Found::Differs { verdict, expected, actual, why } => {
                Compared { verdict, expected, actual, why, ..same }
            }
        };
        match self.places.get(&step_id) {
            Some(&place) => {
                let known = &mut self.steps[place];
                let worse = match known.verdict {
                    Verdict::Match => true,
                    Verdict::Unverifiable => compared.verdict.diverges(),
                    _ => false,
                };
                if worse {
                    *known = compared;
                }
            }
            None => {
                self.places.insert(step_id, self.steps.len());
                self.steps.push(compared);
            }
        }
    }
}

/// Returns whether an event changes what the rules decide although no step has ended.
fn turns(body: &Body) -> bool {
    matches!(body, Body::WorkflowCancelled(_) | Body::WorkflowTimedOut(_) | Body::WorkflowRescheduled(_))
}

/// Returns the outputs of calls, and of tasks and lists whose results may be taken over, by their endings.
fn outputs_of_calls(events: &[Event]) -> HashMap<Cid, PayloadRef> {
    let given = |event: &&Event| {
        matches!(event.fields().kind.as_str(), "call.succeeded" | "task.succeeded" | "step.gathered")
    };
    let output = |event: &Event| Some((event.cid(), event.fields().payload(Role::Output)?));
    events.iter().filter(given).filter_map(output).collect()
}

#[cfg(test)]
mod tests;
