//! What a run asks for next, by where it stands.
//!
//! Invariants:
//! - deciding changes nothing: the writer seals what is decided, folds it, and asks again until nothing is left;
//! - a run that has ended asks only for its open tasks to be cancelled.

use serde_json::{Value, json};

use super::{
    CONDITION, Piece, Run, Slot, UPSTREAM,
    decision::{Contents, DECISIONS_MAX, Decision, DecisionBuilder},
    status::WorkStatus,
    values::GATHERED_MAX,
};
use crate::{
    block::payload::PAYLOAD_MAX,
    error::Code,
    event::{
        Body,
        work::{Hold, WorkflowFailed, WorkflowStarted, WorkflowSucceeded, WorkflowTimedOut},
    },
    workflow::{
        inputs::{Output, Reference, when},
        plan,
        run::decision::{Given, Taken},
        shape::{WAIT_SIGNAL, WAIT_TIME, WORKFLOW_RUN},
        wrong::Wrong,
    },
};

/// List elements of all steps of one run: a run keeps some 300 bytes of each.
const PARTS_MAX: usize = 100_000;

impl Run {
    /// Returns what is to be done now. To be asked again after each answer is sealed and applied, until it is empty.
    pub fn decide(&self, contents: &dyn Contents, now_ms: u64) -> Vec<Decision> {
        if self.phase.ended() {
            return self.stop();
        }
        if self.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) {
            return vec![Decision::End(Body::WorkflowTimedOut(WorkflowTimedOut {}))];
        }
        if self.dependencies.values().any(|ended| *ended == Some(false)) {
            let failed = WorkflowFailed { step: None, reason: "dependency_failed".into() };
            return vec![Decision::End(Body::WorkflowFailed(failed))];
        }
        if self.dependencies.values().any(Option::is_none) {
            return Vec::new();
        }
        let free = self.facts.max_parallel.map_or(u64::MAX, |max| max.saturating_sub(self.busy));
        let mut answer = DecisionBuilder { contents, now_ms, free, decisions: Vec::new() };
        if self.touched && self.started_ms.is_none() {
            answer.decisions.push(Decision::Begin(WorkflowStarted {}));
        }
        self.settle(&mut answer);
        for &at in &self.wide {
            self.try_step(at, &mut answer, Self::spread);
        }
        for &(_, at) in &self.line {
            if answer.full() {
                break;
            }
            self.try_step(at, &mut answer, Self::start);
        }
        if self.open == 0 {
            self.finish_up(&mut answer);
        }
        answer.decisions.into_iter().map(|decision| decision.within(PAYLOAD_MAX)).collect()
    }

    /// Cancels the tasks that have not started, and with force the running ones.
    fn stop(&self) -> Vec<Decision> {
        let running = self.running.iter().filter(|_| self.force);
        let slots = self.idle.iter().chain(running);
        let cancel = slots.filter_map(|&slot| {
            let run = match &self.work(slot)?.hold {
                Some(Hold::Run { run }) => Some(run.clone()),
                Some(Hold::Signal { .. } | Hold::Time { .. }) | None => None,
            };
            Some(Decision::Cancel { task_id: self.task_id(slot), run, force: self.force })
        });
        cancel.take(DECISIONS_MAX).collect()
    }

    /// Gives signals to the tasks that wait for them, the first to the one that has waited longest.
    fn settle(&self, answer: &mut DecisionBuilder<'_>) {
        let met = self.signals.iter().filter_map(|(name, sent)| Some((sent, self.awaited.get(name)?)));
        for (sent, waiting) in met {
            let pairs = sent.iter().zip(waiting).map(|(signal, (_, slot))| Decision::Settle {
                task_id: self.task_id(*slot),
                output: signal.payload,
                signal: signal.event,
            });
            answer.decisions.extend(pairs);
        }
    }

    /// Decides about one step. If its inputs cannot be resolved, it fails.
    fn try_step(
        &self,
        at: usize,
        answer: &mut DecisionBuilder<'_>,
        decide: impl Fn(&Self, usize, &mut DecisionBuilder<'_>) -> Result<(), Wrong>,
    ) {
        if let Err(wrong) = decide(self, at, answer) {
            answer.decisions.push(self.fail(at, wrong));
        }
    }

    fn fail(&self, at: usize, wrong: Wrong) -> Decision {
        Decision::Fail {
            step: self.id_of(at),
            code: wrong.code.as_str().into(),
            message: wrong.message,
            input: None,
        }
    }

    /// Decides about a step whose dependencies are done, or never will be.
    fn start(&self, at: usize, answer: &mut DecisionBuilder<'_>) -> Result<(), Wrong> {
        let step = &self.plan.steps[at];
        if self.steps[at].doomed {
            answer.decisions.push(Decision::Skip { step: step.id.clone(), reason: UPSTREAM });
            return Ok(());
        }
        let taken = self.taken.get(&at);
        // A fork has what its conditions read unchanged; a repetition decides them again.
        let asked = step.when && (taken.is_none() || self.repeats());
        if asked && !self.holds(at, answer)? {
            answer.decisions.push(Decision::Skip { step: step.id.clone(), reason: CONDITION });
            return Ok(());
        }
        if let Some(taken) = taken {
            if taken.output().is_some_and(|output| !answer.contents.is_there(&output.cid)) {
                let message = format!("the output that step `{}` takes from another run was erased", step.id);
                return Err(Wrong::new(Code::FailedPrecondition, message));
            }
            let asked = self.asked_now(at, answer)?;
            answer.decisions.push(self.take(at, taken, asked));
            return Ok(());
        }
        if step.each.is_some() {
            return self.spread(at, answer);
        }
        let input = self.resolve(at, &step.action, self.inputs_of(at, "inputs"), None, answer)?;
        let decision = self.submit(Slot { step: at, piece: Piece::Whole }, input, answer.now_ms)?;
        answer.decisions.push(decision);
        answer.free -= 1;
        Ok(())
    }

    fn take(&self, at: usize, taken: &Taken, asked: Option<String>) -> Decision {
        let step = self.plan.steps[at].id.clone();
        match *taken {
            Taken::Output { input, output, from } => Decision::Take {
                task_id: self.task_id(Slot { step: at, piece: Piece::Whole }),
                step,
                task_type: self.plan.steps[at].task_type.clone(),
                tool: self.plan.steps[at].tool,
                input: asked.map_or(Given::Recorded(input), Given::Resolved),
                output,
                from,
            },
            Taken::Gathered { parts, output, from } => {
                Decision::TakeGathered { step, input: asked, parts, output, from }
            }
            Taken::Failed { ref code } => Decision::Fail {
                message: format!("the run that this one repeats has no result for step `{step}`"),
                step,
                code: code.clone(),
                input: asked,
            },
        }
    }

    fn holds(&self, at: usize, answer: &DecisionBuilder<'_>) -> Result<bool, Wrong> {
        when::holds(self.inputs_of(at, "when"), &|reference: Reference<'_>| {
            let output = self.output(reference.step, answer)?;
            Ok(reference.find(output.value()).cloned())
        })
    }

    /// Decides about a step that runs over a list: starts more parts, or gathers their outputs.
    fn spread(&self, at: usize, answer: &mut DecisionBuilder<'_>) -> Result<(), Wrong> {
        let state = &self.steps[at];
        let all_begun = state.width.0.get() == Some(&state.begun_parts);
        if state.open_parts > 0 && (state.failed_parts > 0 || all_begun || answer.full()) {
            return Ok(());
        }
        if state.failed_parts > 0 {
            return Err(self.part_failed(at));
        }
        let source = self.list_source(at, answer)?;
        let items = self.list(at, &source)?;
        if state.begun_parts == 0 && self.parts + items.len() > PARTS_MAX {
            let message = format!("the lists of this workflow have more than {PARTS_MAX} elements together");
            return Err(Wrong::new(Code::ResourceExhausted, message));
        }
        state.width.0.get_or_init(|| items.len());
        let succeeded = |part: &super::Work| part.status == WorkStatus::Succeeded;
        if state.parts.len() >= items.len() && state.parts.iter().take(items.len()).all(succeeded) {
            answer.decisions.push(self.gather(at, items.len(), answer)?);
            return Ok(());
        }
        match self.more_parts(at, items, answer) {
            // The step fails when the parts that run have ended.
            Err(_) if state.open_parts > 0 => Ok(()),
            Err(wrong) => Err(wrong),
            Ok(parts) => {
                answer.free -= parts.len() as u64;
                answer.decisions.extend(parts);
                Ok(())
            }
        }
    }

    /// Returns the parts that may start now. If the inputs of one cannot be resolved, none starts.
    fn more_parts(
        &self,
        at: usize,
        items: &[Value],
        answer: &DecisionBuilder<'_>,
    ) -> Result<Vec<Decision>, Wrong> {
        let (step, parts) = (&self.plan.steps[at], &self.steps[at].parts);
        let room = DECISIONS_MAX.saturating_sub(answer.decisions.len());
        let room = room.min(usize::try_from(answer.free).unwrap_or(usize::MAX));
        let begun = |index: &usize| parts.get(*index).is_some_and(|part| part.status != WorkStatus::None);
        let next = (0..items.len()).filter(|index| !begun(index)).take(room);
        next.map(|index| {
            let inputs = self.inputs_of(at, "inputs");
            let input = self.resolve(at, &step.action, inputs, Some(&items[index]), answer)?;
            self.submit(Slot { step: at, piece: Piece::Each(index) }, input, answer.now_ms)
        })
        .collect()
    }

    fn part_failed(&self, at: usize) -> Wrong {
        let failed =
            |status| matches!(status, WorkStatus::Failed | WorkStatus::Cancelled | WorkStatus::TimedOut);
        let part = self.steps[at].parts.iter().enumerate().find(|(_, part)| failed(part.status));
        let (index, code) = part.map_or((0, ""), |(index, part)| (index, part.code.as_deref().unwrap_or("")));
        Wrong::new(Code::FailedPrecondition, format!("element {index} failed: {code}"))
    }

    fn gather(&self, at: usize, count: usize, answer: &DecisionBuilder<'_>) -> Result<Decision, Wrong> {
        let (step, parts) = (&self.plan.steps[at], &self.steps[at].parts[..count]);
        let len: u64 = parts.iter().filter_map(|part| part.output).map(|output| output.len).sum();
        if len > GATHERED_MAX {
            let message = format!("outputs of {len} bytes are over the bound of {GATHERED_MAX}");
            return Err(Wrong::new(Code::ResourceExhausted, message));
        }
        let outputs = parts.iter().map(|part| self.read(step, part.output, answer));
        let outputs: Vec<Output> = outputs.collect::<Result<_, _>>()?;
        let items: Vec<&Value> = outputs.iter().map(Output::value).collect();
        let output = json!({ "items": items }).to_string();
        Ok(Decision::Gather { step: step.id.clone(), output, parts: count as u64 })
    }

    /// Ends the run, after compensating what can be compensated.
    fn finish_up(&self, answer: &mut DecisionBuilder<'_>) {
        let Some(failed) = self.failed else {
            return answer.decisions.push(Decision::End(Body::WorkflowSucceeded(WorkflowSucceeded {})));
        };
        let Some(&at) = self.to_undo.last() else {
            let failed = WorkflowFailed { step: Some(self.id_of(failed)), reason: "step_failed".into() };
            return answer.decisions.push(Decision::End(Body::WorkflowFailed(failed)));
        };
        if self.steps[at].undo_status() == WorkStatus::None {
            self.try_step(at, answer, Self::undo);
        }
    }

    fn undo(&self, at: usize, answer: &mut DecisionBuilder<'_>) -> Result<(), Wrong> {
        let inputs = self.inputs_of(at, "compensate").get("inputs").unwrap_or(&Value::Null);
        let action = self.plan.steps[at].compensate.as_ref().map_or("", |undo| undo.action.as_str());
        let input = self.resolve(at, action, inputs, None, answer)?;
        let decision = self.submit(Slot { step: at, piece: Piece::Undo }, input, answer.now_ms)?;
        answer.decisions.push(decision);
        Ok(())
    }

    /// Decides to submit a task, or to retry one that was there before.
    fn submit(&self, slot: Slot, input: Value, now_ms: u64) -> Result<Decision, Wrong> {
        let step = &self.plan.steps[slot.step];
        let (task_id, part) = (self.task_id(slot), slot.piece.part());
        let known = self.work(slot).is_some();
        let undo = step.compensate.as_ref().filter(|_| slot.piece == Piece::Undo);
        let hold = match (undo, step.action.as_str()) {
            (None, WAIT_SIGNAL | WAIT_TIME) => Some(plan::hold(&step.action, &input, now_ms)?),
            (None, WORKFLOW_RUN) => {
                let run = self.child_id(slot, &input);
                if !known {
                    let (step, mut definition) = (step.id.clone(), input);
                    if let Some(fields) = definition.as_object_mut() {
                        fields.insert("workflow_id".into(), run.clone().into());
                    }
                    return Ok(Decision::Child { task_id, step, part, run, definition });
                }
                Some(Hold::Run { run })
            }
            _ => None,
        };
        let input = input.to_string();
        if known {
            return Ok(Decision::Retry { task_id, step: step.id.clone(), part, input, hold });
        }
        let (task_type, tool, repeatable) = match undo {
            Some(undo) => (&undo.task_type, undo.tool, undo.repeatable),
            None => (&step.task_type, step.tool, step.repeatable),
        };
        Ok(Decision::Submit {
            task_id,
            step: step.id.clone(),
            part,
            task_type: task_type.clone(),
            tool,
            input,
            hold,
            retry: step.retry,
            timeout_ms: step.timeout_ms,
            repeatable,
            reuse: step.reuse && undo.is_none() && !self.repeats(),
        })
    }

    /// Returns whether the run is a rerun, made to be compared with its original.
    pub(super) fn repeats(&self) -> bool {
        self.facts.origin.as_ref().is_some_and(|origin| origin.rerun)
    }

    fn child_id(&self, slot: Slot, definition: &Value) -> String {
        let given = definition.get("workflow_id").and_then(Value::as_str);
        let own = || match slot.piece {
            Piece::Each(index) => format!("{}/{}/{index}", self.id, self.id_of(slot.step)),
            Piece::Whole | Piece::Undo => format!("{}/{}", self.id, self.id_of(slot.step)),
        };
        given.map_or_else(own, str::to_owned)
    }

    pub(super) fn id_of(&self, at: usize) -> String {
        self.plan.steps[at].id.clone()
    }
}
