//! The writer's part in workflow runs: requests to change them, and who is told when they end.
//!
//! Invariants:
//! - a run that was cancelled submits nothing more;
//! - a run's end and what waits for it are one commit.

use std::{cmp::Reverse, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    block::payload::{PAYLOAD_MAX, SealedPayload},
    error::{Code, Refusal},
    event::{
        Body, Event, Fact, PayloadRef, Role,
        work::{Origin, WorkflowReplayed, WorkflowSubmitted},
    },
    ledger::{
        deciding::Reading,
        holding::{Due, Holding, LiveRun},
        loading::load_run,
        tasks::By,
        work::{NewRun, RunTold, Worked},
        writer::{Draft, Fault, Writer, payload_ref},
    },
    task::Settlement,
    workflow::{self, plan::Plan, run::Run},
};

/// Runs that have not ended.
const RUNS_MAX: usize = 10_000;
/// Bytes of a run's result that its parent may read.
const RESULT_MAX: usize = 16 * 1024 * 1024;

impl LiveRun {
    pub fn apply(&mut self, event: &Event) {
        self.run.apply(event);
        (self.last, self.last_seq) = (event.cid(), event.fields().seq);
    }
}

impl Holding {
    /// Tells a run in memory what happened to it or its tasks.
    pub fn tell_run(&mut self, run: &str, event: &Event) {
        if let Some(live) = self.runs.get_mut(run) {
            live.apply(event);
            if live.run.at_rest() {
                self.rested.push_back((live.last_seq, run.to_owned()));
            }
            self.dirty.push(run.to_owned());
        }
    }

    /// Takes a run into memory, with the indexes it belongs to.
    pub fn hold_run(&mut self, live: LiveRun) {
        let id = live.run.id.clone();
        if let Some(deadline) = live.run.due_ms() {
            self.due.push(Reverse((deadline, Due::Run(id.clone()))));
        }
        for other in live.run.waits_for() {
            self.dependents.entry(other.to_owned()).or_default().insert(id.clone());
        }
        if live.run.at_rest() {
            self.rested.push_back((live.last_seq, id.clone()));
        }
        if live.run.inputs.is_null() {
            self.lost.extend(live.run.input.map(|input| input.cid));
        }
        self.runs.insert(id, live);
    }
}

impl Writer {
    /// Tells a run in memory which of the runs it waits for have ended.
    fn tell_dependencies(&mut self, id: &str) -> Result<(), Fault> {
        let waits: Vec<String> = self
            .holding
            .runs
            .get(id)
            .into_iter()
            .flat_map(|live| live.run.waits_for())
            .map(str::to_owned)
            .collect();
        for other in waits {
            let ended = self.loaded_run(&other)?.map(Run::status).filter(|status| status.ended());
            match (ended, self.holding.runs.get_mut(id)) {
                (Some(status), Some(live)) => {
                    live.run.dependency_ended(&other, status == workflow::run::status::Status::Succeeded);
                }
                (None, _) => {
                    self.holding.dependents.entry(other).or_default().insert(id.to_owned());
                }
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    pub(super) fn submit_run(
        &mut self,
        new: NewRun,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        self.begin_run(new, None, None, by, draft)
    }

    pub(super) fn begin_run(
        &mut self,
        new: NewRun,
        origin: Option<Origin>,
        parent: Option<String>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let input_ref = payload_ref(&new.inputs, Role::Input);
        let plan = new.plan.block();
        let now_ms = self.now_ms();
        let facts = WorkflowSubmitted {
            plan: plan.cid(),
            steps: new.plan.steps.len() as u64,
            priority: new.priority,
            tags: new.tags,
            dependencies: new.dependencies,
            max_parallel: new.max_parallel,
            deadline_ms: new.deadline_ms.map(|deadline_ms| now_ms.saturating_add(deadline_ms)),
            origin,
            parent,
            peer: new.peer,
        };
        if self.load_run(&new.id)? {
            let known = &self.holding.runs[&new.id].run;
            // A deadline is counted from the submission that was accepted.
            let relative =
                |facts: &WorkflowSubmitted, from: u64| facts.deadline_ms.map(|at| at.saturating_sub(from));
            let same = WorkflowSubmitted { deadline_ms: None, ..facts.clone() }
                == WorkflowSubmitted { deadline_ms: None, priority: facts.priority, ..known.facts.clone() }
                && relative(&facts, now_ms) == relative(&known.facts, known.submitted_ms)
                && known.input.map(|input| input.cid) == Some(input_ref.cid);
            return Ok(match same {
                true => Ok(self.run_told(&new.id, true, Vec::new())),
                false => {
                    let message = format!("the workflow `{}` was submitted with other content", new.id);
                    Err(Refusal::new(Code::AlreadyExists, message)
                        .hint("use another workflow_id, or make a new run of it with workflow_fork"))
                }
            });
        }
        if let Some(refusal) = self.runs_full() {
            return Ok(Err(refusal));
        }
        for other in &facts.dependencies {
            if other == &new.id || !self.load_run(other)? {
                let message = format!("the workflow `{other}`, which must succeed first, does not exist");
                return Ok(Err(Refusal::new(Code::NotFound, message)));
            }
        }
        let old = match &facts.origin {
            Some(origin) => self.loaded_run(&origin.run)?.cloned(),
            None => None,
        };
        let inputs = self.json_of(&new.inputs)?;
        draft.batch.blocks.push(plan);
        draft.store(Some(new.inputs));
        let mut payloads = vec![input_ref];
        payloads.extend(by.note);
        let mut refs = by.refs.clone();
        refs.extend(facts.origin.as_ref().map(|origin| origin.submitted));
        let fact = Fact {
            cause: by.cause,
            refs,
            actor: by.actor.clone(),
            subject: workflow::subject(&new.id),
            tool: None,
            payloads,
            body: Body::WorkflowSubmitted(facts),
        };
        let event = self.sealer.seal(fact, draft)?;
        let (last, last_seq) = (event.cid(), event.fields().seq);
        let run = Run::begun(event, Arc::new(new.plan), inputs);
        let mut run = run.ok_or(Fault::Broken { what: "a submitted run cannot be read" })?;
        if let Some(old) = old {
            run.take_over(&old);
        }
        self.holding.hold_run(LiveRun { run, last, last_seq });
        self.tell_dependencies(&new.id)?;
        self.holding.dirty.push(new.id.clone());
        self.advance(draft)?;
        Ok(Ok(self.run_told(&new.id, false, Vec::new())))
    }

    /// Returns the refusal of another run if as many are open as may be.
    pub(super) fn runs_full(&self) -> Option<Refusal> {
        let message = || format!("{RUNS_MAX} workflows have not ended yet");
        let full = self.holding.runs.len() >= RUNS_MAX;
        full.then(|| {
            Refusal::new(Code::ResourceExhausted, message()).retryable().hint("submit it again later")
        })
    }

    pub(super) fn cancel_run(
        &mut self,
        id: &str,
        force: bool,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_run(id)? {
            return Ok(Err(no_run(id)));
        }
        let run = &self.holding.runs[id].run;
        let before: Vec<bool> = run.steps.iter().map(|step| step.status.ended()).collect();
        match run.cancel(force) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(None) => {}
            Ok(Some(body)) => self.run_event(id, body, by, by.note.into_iter().collect(), draft)?,
        }
        self.advance(draft)?;
        let run = &self.holding.runs[id].run;
        let steps = run.steps.iter().zip(&run.plan.steps).zip(before);
        let cancelled = steps.filter(|((step, _), before)| {
            !before && step.status == workflow::run::status::StepStatus::Cancelled
        });
        let cancelled = cancelled.map(|((_, step), _)| step.id.clone()).collect();
        Ok(Ok(self.run_told(id, false, cancelled)))
    }

    #[expect(clippy::too_many_arguments, reason = "what a fork is made of, once")]
    pub(super) fn fork_run(
        &mut self,
        id: &str,
        new: String,
        from_step: Option<String>,
        overrides: &str,
        rerun: bool,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_run(id)? {
            return Ok(Err(no_run(id)));
        }
        let old = self.holding.runs[id].run.clone();
        if let Some(step) = from_step.as_ref().filter(|step| old.step(step).is_none()) {
            return Ok(Err(Refusal::new(Code::NotFound, format!("workflow `{id}` has no step `{step}`"))));
        }
        if rerun && !old.status().ended() {
            let message = format!("workflow `{id}` has not ended: it is {}", old.status().as_str());
            return Ok(Err(Refusal::new(Code::FailedPrecondition, message).retryable()));
        }
        let mut inputs = (*old.inputs).clone();
        let overrides: Map<String, Value> = serde_json::from_str(overrides).unwrap_or_default();
        for (step, input) in overrides {
            if old.step(&step).is_none() {
                return Ok(Err(Refusal::new(
                    Code::NotFound,
                    format!("workflow `{id}` has no step `{step}`"),
                )));
            }
            inputs["steps"][&step]["inputs"] = input;
        }
        let inputs = inputs.to_string();
        if inputs.len() > PAYLOAD_MAX {
            let message = format!("inputs of {} bytes are over the bound of {PAYLOAD_MAX}", inputs.len());
            return Ok(Err(Refusal::new(Code::ResourceExhausted, message)));
        }
        let inputs = self.payload(&inputs)?;
        let origin = Origin { run: id.to_owned(), submitted: old.submitted, from_step, rerun };
        let deadline_ms = old.facts.deadline_ms.map(|at| at.saturating_sub(old.submitted_ms));
        let new = NewRun {
            id: new,
            plan: Plan::clone(&old.plan),
            inputs,
            priority: old.facts.priority,
            tags: old.facts.tags.clone(),
            dependencies: Vec::new(),
            max_parallel: old.facts.max_parallel,
            deadline_ms,
            peer: old.facts.peer.clone(),
        };
        self.begin_run(new, Some(origin), None, by, draft)
    }

    pub(super) fn reschedule_run(
        &mut self,
        id: &str,
        from_step: Option<String>,
        priority: Option<u64>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_run(id)? {
            return Ok(Err(no_run(id)));
        }
        let run = &self.holding.runs[id].run;
        let again: Vec<String> =
            run.rerun_steps(from_step.as_deref()).into_iter().map(str::to_owned).collect();
        match run.reschedule(from_step.as_deref(), priority) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(body) => self.run_event(id, body, by, by.note.into_iter().collect(), draft)?,
        }
        self.tell_dependencies(id)?;
        if let Some(due) = self.holding.runs[id].run.due_ms() {
            self.holding.due.push(Reverse((due, Due::Run(id.to_owned()))));
        }
        self.advance(draft)?;
        Ok(Ok(self.run_told(id, false, again)))
    }

    pub(super) fn signal(
        &mut self,
        id: &str,
        signal: &str,
        input: SealedPayload,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_run(id)? {
            return Ok(Err(no_run(id)));
        }
        let body = match self.holding.runs[id].run.signal(signal) {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut payloads = vec![payload_ref(&input, Role::Input)];
        payloads.extend(by.note);
        draft.store(Some(input));
        self.run_event(id, body, by, payloads, draft)?;
        self.advance(draft)?;
        Ok(Ok(self.run_told(id, false, Vec::new())))
    }

    pub(super) fn replayed(
        &mut self,
        id: &str,
        facts: WorkflowReplayed,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_run(id)? {
            return Ok(Err(no_run(id)));
        }
        self.run_event(id, Body::WorkflowReplayed(facts), by, by.note.into_iter().collect(), draft)?;
        Ok(Ok(self.run_told(id, false, Vec::new())))
    }

    /// Records an event of a run in memory. If it ends the run, tells the runs that wait for it, and its parent.
    pub(super) fn run_event(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        payloads: Vec<PayloadRef>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let fact = Fact {
            cause: by.cause,
            refs: by.refs.clone(),
            actor: by.actor.clone(),
            subject: workflow::subject(id),
            tool: None,
            payloads,
            body,
        };
        let before = self.holding.runs.get(id).map(|live| live.run.status());
        let event = self.sealer.seal(fact, draft)?;
        self.holding.tell_run(id, event);
        let now = self.holding.runs.get(id).map(|live| live.run.status());
        let ended = now.filter(|now| now.ended() && before.is_some_and(|before| !before.ended()));
        let Some(status) = ended else { return Ok(()) };
        for other in self.holding.dependents.remove(id).unwrap_or_default() {
            if let Some(live) = self.holding.runs.get_mut(&other) {
                live.run.dependency_ended(id, status == workflow::run::status::Status::Succeeded);
                self.holding.dirty.push(other);
            }
        }
        self.tell_parent(id, draft)
    }

    /// Ends the parent's step that waits for this child run, if the run has ended.
    pub(super) fn tell_parent(&mut self, id: &str, draft: &mut Draft) -> Result<(), Fault> {
        let Some(live) = self.holding.runs.get(id) else { return Ok(()) };
        let status = live.run.status();
        let Some(parent) = live.run.facts.parent.clone().filter(|_| status.ended()) else { return Ok(()) };
        let by = self.by_run(id);
        let mut succeeded = status == workflow::run::status::Status::Succeeded;
        let reading = Reading::new(self, draft);
        let result = succeeded.then(|| live.run.result(&reading).to_string());
        let result = reading.sound(result)?;
        let text = match result {
            Some(result) if result.len() <= RESULT_MAX => result,
            Some(result) => {
                succeeded = false;
                let message =
                    format!("the result of {} bytes is over the bound of {RESULT_MAX}", result.len());
                json!({"code": Code::ResourceExhausted.as_str(), "message": message}).to_string()
            }
            None => {
                let message = format!("the workflow `{id}` ended as {}", status.as_str());
                json!({"code": Code::FailedPrecondition.as_str(), "message": message}).to_string()
            }
        };
        let payload = self.payload(&text)?;
        let output = payload_ref(&payload, if succeeded { Role::Output } else { Role::Error });
        self.holding.contents.put(output.cid, Arc::from(text));
        draft.store(Some(payload));
        let code = Code::FailedPrecondition.as_str();
        let how = if succeeded { Settlement::Succeeded } else { Settlement::Failed { code } };
        let run = match self.load_task(&parent)? {
            true => self.task(&parent)?.facts.run.clone(),
            false => None,
        };
        // The parent's run hears of its task only where it is in memory.
        if let Some(run) = run {
            self.load_run(&run)?;
        }
        self.settle_task(&parent, how, Some(output), &by, draft)
    }

    /// Loads a run into memory. Returns false if there is none of this id.
    pub(super) fn load_run(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.runs.contains_key(id) {
            return Ok(true);
        }
        match load_run(&self.state, self.reader.as_ref(), id)? {
            Some(live) => {
                self.holding.hold_run(live);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    pub(super) fn loaded_run(&mut self, id: &str) -> Result<Option<&Run>, Fault> {
        self.load_run(id)?;
        Ok(self.holding.runs.get(id).map(|live| &live.run))
    }

    fn json_of(&self, payload: &SealedPayload) -> Result<Arc<Value>, Fault> {
        let text = super::memory::whole_text(payload);
        let value = text.and_then(|text| serde_json::from_str(&text).ok());
        value.map(Arc::new).ok_or(Fault::Broken { what: "a run's inputs are not json" })
    }

    pub(super) fn run_told(&self, id: &str, replayed: bool, steps: Vec<String>) -> Worked {
        let run = &self.holding.runs[id].run;
        let told = RunTold {
            id: id.to_owned(),
            status: run.status().as_str().to_owned(),
            definition: run.facts.plan,
            submitted: run.submitted,
            submitted_ms: run.submitted_ms,
        };
        Worked::Run { run: told, replayed, steps }
    }
}

fn no_run(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no workflow `{id}`")).hint("workflow_list names those there are")
}
