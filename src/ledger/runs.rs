//! The writer's part in workflow runs: requests to change them, and who is told when they end.
//!
//! Invariants:
//! - a run that was cancelled submits nothing more;
//! - a run's end and what waits for it are one commit.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    block::payload::{PAYLOAD_MAX, SealedPayload},
    error::{Code, Refusal},
    event::{
        Body, PayloadRef, Role,
        work::{Origin, WorkflowSubmitted},
    },
    ledger::{
        commit::{By, Fault, Stop, payload_ref},
        deciding::Reading,
        holding::{agenda::Due, runs::LiveRun},
        loading::load_run,
        work::{CancelRun, ForkRun, NewRun, Replayed, RescheduleRun, RunTold, Signal, Worked},
        world::{World, whole_text},
    },
    task::Settlement,
    workflow::{
        self,
        plan::Plan,
        run::{
            Run,
            status::{Status, StepStatus},
        },
    },
};

/// Runs that have not ended.
const RUNS_MAX: usize = 10_000;
/// Bytes of a run's result that its parent may read.
const RESULT_MAX: usize = 16 * 1024 * 1024;

impl CancelRun {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { run: id, force } = self;
        let run = world.need_run(&id)?;
        let before: Vec<bool> = run.steps.iter().map(|step| step.status.ended()).collect();
        if let Some(body) = run.cancel(force)? {
            world.run_event(&id, body, by, by.noted(Vec::new()))?;
        }
        world.advance()?;
        let run = &world.holding.runs.live[&id].run;
        let steps = run.steps.iter().zip(&run.plan.steps).zip(before);
        let cancelled = steps.filter(|((step, _), before)| !before && step.status == StepStatus::Cancelled);
        let cancelled = cancelled.map(|((_, step), _)| step.id.clone()).collect();
        Ok(world.run_told(&id, false, cancelled))
    }
}

impl ForkRun {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { run: id, new, from_step, overrides, rerun } = self;
        let old = world.need_run(&id)?.clone();
        let no_step =
            |step: &str| Refusal::new(Code::NotFound, format!("workflow `{id}` has no step `{step}`"));
        if let Some(step) = from_step.as_ref().filter(|step| old.step(step).is_none()) {
            return Err(no_step(step).into());
        }
        if rerun && !old.status().ended() {
            let message = format!("workflow `{id}` has not ended: it is {}", old.status().as_str());
            return Err(Refusal::new(Code::FailedPrecondition, message).retryable().into());
        }
        let mut inputs = (*old.inputs).clone();
        let overrides: Map<String, Value> = serde_json::from_str(&overrides).unwrap_or_default();
        for (step, input) in overrides {
            if old.step(&step).is_none() {
                return Err(no_step(&step).into());
            }
            inputs["steps"][&step]["inputs"] = input;
        }
        let inputs = inputs.to_string();
        if inputs.len() > PAYLOAD_MAX {
            let message = format!("inputs of {} bytes are over the bound of {PAYLOAD_MAX}", inputs.len());
            return Err(Refusal::new(Code::ResourceExhausted, message).into());
        }
        let inputs = world.payload(&inputs)?;
        let origin = Origin { run: id, submitted: old.submitted, from_step, rerun };
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
        world.begin_run(new, Some(origin), None, by)
    }
}

impl RescheduleRun {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { run: id, from_step, priority } = self;
        let run = world.need_run(&id)?;
        let again = run.rerun_steps(from_step.as_deref()).into_iter().map(str::to_owned).collect();
        let body = run.reschedule(from_step.as_deref(), priority)?;
        world.run_event(&id, body, by, by.noted(Vec::new()))?;
        world.tell_dependencies(&id)?;
        if let Some(due) = world.holding.runs.live[&id].run.due_ms() {
            world.holding.agenda.put(due, Due::Run(id.clone()));
        }
        world.advance()?;
        Ok(world.run_told(&id, false, again))
    }
}

impl Signal {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { run: id, signal, input } = self;
        let body = world.need_run(&id)?.signal(&signal)?;
        let payloads = by.noted(vec![payload_ref(&input, Role::Input)]);
        world.commit.store(Some(input));
        world.run_event(&id, body, by, payloads)?;
        world.advance()?;
        Ok(world.run_told(&id, false, Vec::new()))
    }
}

impl Replayed {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        world.need_run(&self.run)?;
        world.run_event(&self.run, Body::WorkflowReplayed(self.facts), by, by.noted(Vec::new()))?;
        Ok(world.run_told(&self.run, false, Vec::new()))
    }
}

impl World {
    /// Tells a run in memory which of the runs it waits for have ended.
    fn tell_dependencies(&mut self, id: &str) -> Result<(), Fault> {
        let waits: Vec<String> = self
            .holding
            .runs
            .live
            .get(id)
            .into_iter()
            .flat_map(|live| live.run.waits_for())
            .map(str::to_owned)
            .collect();
        for other in waits {
            let ended = self.loaded_run(&other)?.map(Run::status).filter(|status| status.ended());
            match (ended, self.holding.runs.live.get_mut(id)) {
                (Some(status), Some(live)) => {
                    live.run.dependency_ended(&other, status == Status::Succeeded);
                }
                (None, _) => {
                    self.holding.runs.dependents.entry(other).or_default().insert(id.to_owned());
                }
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    pub(super) fn submit_run(&mut self, new: NewRun, by: &By) -> Result<Worked, Stop> {
        self.begin_run(new, None, None, by)
    }

    /// Submits a run, for a step of `parent` or as a fork of `origin` where these are given.
    pub(super) fn begin_run(
        &mut self,
        new: NewRun,
        origin: Option<Origin>,
        parent: Option<String>,
        by: &By,
    ) -> Result<Worked, Stop> {
        let input_ref = payload_ref(&new.inputs, Role::Input);
        let plan = new.plan.block();
        let now_ms = self.commit.now_ms();
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
        if let Some(known) = self.loaded_run(&new.id)? {
            return match is_same(known, &facts, &input_ref, now_ms) {
                true => Ok(self.run_told(&new.id, true, Vec::new())),
                false => {
                    let message = format!("the workflow `{}` was submitted with other content", new.id);
                    let refusal = Refusal::new(Code::AlreadyExists, message);
                    Err(refusal
                        .hint("use another workflow_id, or make a new run of it with workflow_fork")
                        .into())
                }
            };
        }
        if let Some(refusal) = self.runs_full() {
            return Err(refusal.into());
        }
        for other in &facts.dependencies {
            if other == &new.id || !self.load_run(other)? {
                let message = format!("the workflow `{other}`, which must succeed first, does not exist");
                return Err(Refusal::new(Code::NotFound, message).into());
            }
        }
        let inputs = json_of(&new.inputs)?;
        self.commit.batch.blocks.push(plan);
        self.commit.store(Some(new.inputs));
        self.enter_run(&new.id, facts, (Arc::new(new.plan), inputs), &input_ref, by)?;
        self.advance()?;
        Ok(self.run_told(&new.id, false, Vec::new()))
    }

    /// Records a new run with its plan and inputs, and takes it into memory.
    fn enter_run(
        &mut self,
        id: &str,
        facts: WorkflowSubmitted,
        (plan, inputs): (Arc<Plan>, Arc<Value>),
        input: &PayloadRef,
        by: &By,
    ) -> Result<(), Stop> {
        let origin = facts.origin.clone();
        let old = match &origin {
            Some(origin) => self.loaded_run(&origin.run)?.cloned(),
            None => None,
        };
        let mut fact = by.fact(workflow::subject(id), Body::WorkflowSubmitted(facts), by.noted(vec![*input]));
        fact.refs.extend(origin.map(|origin| origin.submitted));
        let event = self.commit.seal(fact)?;
        let (last, last_seq) = (event.cid(), event.fields().seq);
        let run = Run::begun(event, plan, inputs);
        let mut run = run.ok_or(Fault::Broken { what: "a submitted run cannot be read" })?;
        if let Some(old) = old {
            run.take_over(&old);
        }
        self.hold_run(LiveRun { run, last, last_seq });
        self.tell_dependencies(id)?;
        self.holding.runs.dirty.push(id.to_owned());
        Ok(())
    }

    fn hold_run(&mut self, live: LiveRun) {
        self.holding.runs.hold(live, &mut self.holding.agenda, &mut self.holding.contents);
    }

    /// Returns the refusal of another run if as many are open as may be.
    pub(super) fn runs_full(&self) -> Option<Refusal> {
        let message = || format!("{RUNS_MAX} workflows have not ended yet");
        let full = self.holding.runs.live.len() >= RUNS_MAX;
        full.then(|| {
            Refusal::new(Code::ResourceExhausted, message()).retryable().hint("submit it again later")
        })
    }

    /// Records an event of a run in memory. If it ends the run, tells the runs that wait for it, and its parent.
    pub(super) fn run_event(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        payloads: Vec<PayloadRef>,
    ) -> Result<(), Stop> {
        let fact = by.fact(workflow::subject(id), body, payloads);
        let before = self.holding.runs.live.get(id).map(|live| live.run.status());
        let event = self.commit.seal(fact)?;
        self.holding.runs.tell(id, event);
        let now = self.holding.runs.live.get(id).map(|live| live.run.status());
        let ended = now.filter(|now| now.ended() && before.is_some_and(|before| !before.ended()));
        let Some(status) = ended else { return Ok(()) };
        for other in self.holding.runs.dependents.remove(id).unwrap_or_default() {
            if let Some(live) = self.holding.runs.live.get_mut(&other) {
                live.run.dependency_ended(id, status == Status::Succeeded);
                self.holding.runs.dirty.push(other);
            }
        }
        self.tell_parent(id)
    }

    /// Ends the parent's step that waits for this child run, if the run has ended.
    pub(super) fn tell_parent(&mut self, id: &str) -> Result<(), Stop> {
        let Some(live) = self.holding.runs.live.get(id) else { return Ok(()) };
        let status = live.run.status();
        let Some(parent) = live.run.facts.parent.clone().filter(|_| status.ended()) else { return Ok(()) };
        let by = self.by_run(id);
        let mut succeeded = status == Status::Succeeded;
        let reading = Reading::new(self);
        let result = succeeded.then(|| live.run.result(&reading).to_string());
        let result = reading.sound(result)?;
        succeeded &= result.as_ref().is_some_and(|result| result.len() <= RESULT_MAX);
        let text = ended_text(id, status, result);
        let payload = self.payload(&text)?;
        let output = payload_ref(&payload, if succeeded { Role::Output } else { Role::Error });
        self.holding.contents.put(output.cid, Arc::from(text));
        self.commit.store(Some(payload));
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
        self.settle_task(&parent, how, Some(output), &by)
    }

    /// Loads a run into memory. Refuses if there is none of this id.
    fn need_run(&mut self, id: &str) -> Result<&Run, Stop> {
        self.loaded_run(id)?.ok_or_else(|| no_run(id).into())
    }

    /// Loads a run into memory. Returns false if there is none of this id.
    pub(super) fn load_run(&mut self, id: &str) -> Result<bool, Fault> {
        Ok(self.loaded_run(id)?.is_some())
    }

    /// Loads a run into memory and returns it, or `None` if there is none of this id.
    pub(super) fn loaded_run(&mut self, id: &str) -> Result<Option<&Run>, Fault> {
        if !self.holding.runs.live.contains_key(id)
            && let Some(live) = load_run(&self.state, self.reader.as_ref(), id)?
        {
            self.hold_run(live);
        }
        Ok(self.holding.runs.live.get(id).map(|live| &live.run))
    }

    /// Returns the answer that tells a run in memory as it stands.
    pub(super) fn run_told(&self, id: &str, replayed: bool, steps: Vec<String>) -> Worked {
        let run = &self.holding.runs.live[id].run;
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

/// Returns whether a submission is the one that a run was made of.
fn is_same(known: &Run, facts: &WorkflowSubmitted, input: &PayloadRef, now_ms: u64) -> bool {
    // A deadline is counted from the submission that was accepted.
    let relative = |facts: &WorkflowSubmitted, from: u64| facts.deadline_ms.map(|at| at.saturating_sub(from));
    let without_deadline = WorkflowSubmitted { deadline_ms: None, ..facts.clone() };
    without_deadline
        == WorkflowSubmitted { deadline_ms: None, priority: facts.priority, ..known.facts.clone() }
        && relative(facts, now_ms) == relative(&known.facts, known.submitted_ms)
        && known.input.map(|input| input.cid) == Some(input.cid)
}

/// Returns what a parent's step is told of a child run that has ended: its result, or an error.
fn ended_text(id: &str, status: Status, result: Option<String>) -> String {
    let (code, message) = match result {
        Some(result) if result.len() <= RESULT_MAX => return result,
        Some(result) => (
            Code::ResourceExhausted,
            format!("the result of {} bytes is over the bound of {RESULT_MAX}", result.len()),
        ),
        None => (Code::FailedPrecondition, format!("the workflow `{id}` ended as {}", status.as_str())),
    };
    json!({"code": code.as_str(), "message": message}).to_string()
}

fn json_of(payload: &SealedPayload) -> Result<Arc<Value>, Fault> {
    let value = whole_text(payload).and_then(|text| serde_json::from_str(&text).ok());
    value.map(Arc::new).ok_or(Fault::Broken { what: "a run's inputs are not json" })
}

fn no_run(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no workflow `{id}`")).hint("workflow_list names those there are")
}
