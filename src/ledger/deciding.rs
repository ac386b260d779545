//! Carrying out what runs decide: each decision becomes events, in the commit of what it follows from.
//!
//! Invariants:
//! - after a commit no run has a decision left that its rules would make;
//! - a decision is carried out once: what it brings about is decided on after those it was made with.

use std::{cell::RefCell, sync::Arc};

use serde_json::{Value, json};

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Body, PayloadRef, Role,
        work::{Hold, Part, RetryPolicy, StepFailed, StepGathered, StepSkipped, TaskRetried, TaskSubmitted},
    },
    ledger::{
        commit::{By, Fault, Stop, payload_ref},
        tasks::NewTask,
        work::{CARRIES, CancelRun, NewRun, RescheduleRun},
        world::World,
    },
    query,
    task::{self, Settlement},
    workflow::{
        self,
        run::decision::{Contents, Decision, Given},
    },
};

/// Runs inside each other.
const DEPTH_MAX: usize = 16;
/// The type of a task that is held by a run.
const WAIT_RUN: &str = "wait:run";
/// The policy of a step that names none: no retries.
const NO_RETRY: RetryPolicy = RetryPolicy {
    max_retries: 0,
    backoff_ms: 1000,
    factor_milli: 2000,
    max_backoff_ms: 60_000,
    jitter: true,
};

/// Contents of payloads for a run's rules, read from the log and from the commit that is being made.
pub(super) struct Reading<'a> {
    pub world: &'a World,
    /// Why a content could not be read; that it was erased is no fault.
    fault: RefCell<Option<Fault>>,
}

impl<'a> Reading<'a> {
    pub fn new(world: &'a World) -> Self {
        Self { world, fault: RefCell::default() }
    }

    /// Returns the decision, or the fault if a content it depends on could not be read.
    pub fn sound<T>(self, decided: T) -> Result<T, Fault> {
        self.fault.into_inner().map_or(Ok(decided), Err)
    }
}

impl Contents for Reading<'_> {
    fn is_there(&self, payload: &Cid) -> bool {
        self.world.is_there(payload).unwrap_or_else(|fault| {
            self.fault.replace(Some(fault));
            false
        })
    }

    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        if let Some(value) = self.world.holding.contents.parsed(payload) {
            return Some(value);
        }
        let text = match self.world.text(Some(*payload)) {
            Ok(text) => text?,
            Err(fault) => {
                self.fault.replace(Some(fault));
                return None;
            }
        };
        let value: Arc<Value> = Arc::new(serde_json::from_str(&text).ok()?);
        self.world.holding.contents.keep_parsed(*payload, value.clone(), text.len());
        Some(value)
    }
}

impl World {
    /// Asks every run to which something has happened what it decides, and carries that out, until none decides
    /// anything.
    pub(super) fn advance(&mut self) -> Result<(), Stop> {
        // What a decision brings about is decided on after the decisions it was made with.
        if self.holding.runs.advancing {
            return Ok(());
        }
        self.holding.runs.advancing = true;
        let advanced = self.settle_runs();
        self.holding.runs.advancing = false;
        advanced
    }

    fn settle_runs(&mut self) -> Result<(), Stop> {
        while let Some(id) = self.holding.runs.dirty.pop() {
            while let Some(live) = self.holding.runs.live.get(&id) {
                let reading = Reading::new(self);
                let decisions = live.run.decide(&reading, self.commit.now_ms());
                let decisions = reading.sound(decisions)?;
                if decisions.is_empty() {
                    break;
                }
                for decision in decisions {
                    self.carry_out(&id, decision)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn run_due(&mut self, id: &str) {
        if let Some(live) = self.holding.runs.live.get(id) {
            // A run that went on has another deadline.
            match live.run.due_ms() {
                Some(due) if due > self.commit.now_ms() => {}
                _ => self.holding.runs.dirty.push(id.to_owned()),
            }
        }
    }

    /// Records what a run has decided, with all that follows from it.
    #[expect(clippy::too_many_lines, reason = "a case for each decision, so that a new one is not forgotten")]
    fn carry_out(&mut self, id: &str, decision: Decision) -> Result<(), Stop> {
        let by = self.by_run(id);
        match decision {
            Decision::Begin(facts) => self.run_event(id, Body::WorkflowStarted(facts), &by, Vec::new()),
            Decision::Submit {
                task_id,
                step,
                part,
                task_type,
                tool,
                input,
                hold,
                retry,
                timeout_ms,
                repeatable,
                reuse,
            } => {
                let facts = TaskSubmitted {
                    retry: retry.unwrap_or(NO_RETRY),
                    timeout_ms,
                    repeatable,
                    reuse,
                    requires: self.requires(id, tool),
                    ..self.step_facts(id, step, part, task_type, hold)
                };
                self.submit_step(task_id, facts, tool, &input, &by)
            }
            Decision::Retry { task_id, input, hold, .. } => self.retry_step(&task_id, &input, hold, &by),
            Decision::Child { task_id, step, part, run, definition } => {
                let hold = Some(Hold::Run { run: run.clone() });
                let facts = self.step_facts(id, step, part, WAIT_RUN.to_owned(), hold);
                let input = definition.to_string();
                self.submit_step(task_id.clone(), facts, None, &input, &by)?;
                self.submit_child(&task_id, run, definition, &by)
            }
            Decision::Take { task_id, step, task_type, tool, input, output, from } => {
                let facts = self.step_facts(id, step, Part::Whole, task_type, None);
                let payloads = self.taken_input(input)?;
                let new = NewTask { id: task_id.clone(), facts, tool, payloads, input: None };
                self.enter_task(new, &by)?;
                self.reuse(&task_id, output, from, &by)
            }
            Decision::TakeGathered { step, input, parts, output, from } => {
                let body = Body::StepGathered(StepGathered { step, parts });
                let by = By { refs: vec![from], ..by };
                let input = input.map(|text| self.kept(&text, Role::Input)).transpose()?;
                self.run_event(id, body, &by, output.into_iter().chain(input).collect())
            }
            Decision::Skip { step, reason } => {
                let body = Body::StepSkipped(StepSkipped { step, reason: reason.to_owned() });
                self.run_event(id, body, &by, Vec::new())
            }
            Decision::Fail { step, code, message, input } => {
                let error = json!({"code": code, "message": message}).to_string();
                let mut payloads = vec![self.kept(&error, Role::Error)?];
                payloads.extend(input.map(|text| self.kept(&text, Role::Input)).transpose()?);
                self.run_event(id, Body::StepFailed(StepFailed { step, code }), &by, payloads)
            }
            Decision::Gather { step, output, parts } => {
                let output_ref = self.kept(&output, Role::Output)?;
                self.holding.contents.put(output_ref.cid, Arc::from(output));
                let body = Body::StepGathered(StepGathered { step, parts });
                self.run_event(id, body, &by, vec![output_ref])
            }
            Decision::Settle { task_id, output, signal } => {
                self.settle_with(&task_id, output, &By { refs: vec![signal], ..by })
            }
            Decision::Cancel { task_id, run, force } => self.cancel_step(&task_id, run, force, &by),
            Decision::End(body) => self.run_event(id, body, &by, Vec::new()),
        }
    }

    /// Returns the payloads of a step's input that is taken over from another run.
    fn taken_input(&mut self, input: Given) -> Result<Vec<PayloadRef>, Fault> {
        match input {
            Given::Recorded(input) => self.those_there(input),
            Given::Resolved(text) => Ok(vec![self.kept(&text, Role::Input)?]),
        }
    }

    /// Ends a task with the content of the signal that it waited for.
    fn settle_with(&mut self, task_id: &str, output: Option<PayloadRef>, by: &By) -> Result<(), Stop> {
        if let Some(output) = output
            && !self.is_there(&output.cid)?
        {
            return self.settle_without(task_id, by);
        }
        self.settle_task(task_id, Settlement::Succeeded, output, by)
    }

    /// Cancels the task of a step, and the child run that the task waits for.
    fn cancel_step(&mut self, task_id: &str, run: Option<String>, force: bool, by: &By) -> Result<(), Stop> {
        if self.load_task(task_id)?
            && let Ok(bodies) = self.task(task_id)?.cancel(force)
        {
            self.change_all(task_id, bodies, by)?;
        }
        // A child that is not in memory has ended, and nothing of it runs.
        if let Some(run) = run.filter(|run| self.holding.runs.live.contains_key(run))
            && let Err(stop) = (CancelRun { run, force }).rule(self, by)
        {
            // One that has ended otherwise is not cancelled.
            stop.refusal()?;
        }
        Ok(())
    }

    /// Stores text as the payload of an event to come.
    fn kept(&mut self, text: &str, role: Role) -> Result<PayloadRef, Fault> {
        let payload = self.payload(text)?;
        let kept = payload_ref(&payload, role);
        self.commit.store(Some(payload));
        Ok(kept)
    }

    /// Cause and actor of a run's own decisions: its latest event, and its submitter.
    pub(super) fn by_run(&self, id: &str) -> By {
        let live = &self.holding.runs.live[id];
        By { cause: Some(live.last), ..By::new(live.run.actor.clone()) }
    }

    /// Returns what a worker must be capable of to run a step that calls this tool.
    fn requires(&self, id: &str, tool: Option<Cid>) -> Vec<String> {
        let peer = self.holding.runs.live.get(id).and_then(|live| live.run.facts.peer.as_ref());
        peer.filter(|_| tool.is_some()).map(|_| CARRIES.to_owned()).into_iter().collect()
    }

    fn step_facts(
        &self,
        id: &str,
        step: String,
        part: Part,
        task_type: String,
        hold: Option<Hold>,
    ) -> TaskSubmitted {
        let priority = self.holding.runs.live.get(id).map_or(50, |live| live.run.facts.priority);
        TaskSubmitted {
            task_type,
            priority,
            order: task::order(self.commit.now_ms(), priority, self.limits.ageing_ms),
            not_before_ms: None,
            timeout_ms: None,
            retry: NO_RETRY,
            tags: Vec::new(),
            requires: Vec::new(),
            unique_key: None,
            concurrency_key: None,
            rate_key: None,
            run: Some(id.to_owned()),
            step: Some(step),
            part,
            hold,
            repeatable: false,
            reuse: false,
            handle: None,
        }
    }

    /// Submits the task of a step, and ends it at once if an earlier output may be used again.
    fn submit_step(
        &mut self,
        task_id: String,
        facts: TaskSubmitted,
        tool: Option<Cid>,
        input: &str,
        by: &By,
    ) -> Result<(), Stop> {
        let reuse = tool.filter(|_| facts.reuse);
        let input_ref = self.kept(input, Role::Input)?;
        let new = NewTask {
            id: task_id.clone(),
            facts,
            tool,
            payloads: vec![input_ref],
            input: Some(Arc::from(input)),
        };
        self.enter_task(new, by)?;
        let Some(tool) = reuse else { return Ok(()) };
        let Some(seq) = query::work::reusable(&self.state, self.reader.as_ref(), &tool, &input_ref.cid)?
        else {
            return Ok(());
        };
        let Some(earlier) = self.reader.event_at(seq)? else { return Ok(()) };
        let output = earlier.fields().payload(Role::Output);
        if let Some(output) = output
            && !self.is_there(&output.cid)?
        {
            // What was erased cannot be used again: the step runs.
            return Ok(());
        }
        self.reuse(&task_id, output, earlier.cid(), by)
    }

    /// Ends a task with the output of another, so that it need not run.
    fn reuse(&mut self, task_id: &str, output: Option<PayloadRef>, from: Cid, by: &By) -> Result<(), Stop> {
        let by = By { refs: vec![from], ..by.clone() };
        self.settle_task(task_id, Settlement::Reused, output, &by)
    }

    pub(super) fn settle_task(
        &mut self,
        task_id: &str,
        how: Settlement<'_>,
        output: Option<PayloadRef>,
        by: &By,
    ) -> Result<(), Stop> {
        if !self.load_task(task_id)? {
            return Ok(());
        }
        // What has ended in the meantime stays as it ended.
        let Ok(body) = self.task(task_id)?.settle(how) else { return Ok(()) };
        let role = if matches!(how, Settlement::Failed { .. }) { Role::Error } else { Role::Output };
        let output = output.map(|output| PayloadRef { role, ..output });
        self.change(task_id, body, by, output.into_iter().collect())?;
        Ok(())
    }

    /// Fails a task whose signal came, but whose signal's content was erased before the task took it.
    fn settle_without(&mut self, task_id: &str, by: &By) -> Result<(), Stop> {
        let code = Code::FailedPrecondition.as_str();
        let error = json!({"code": code, "message": "the content of the signal was erased"}).to_string();
        let error = self.kept(&error, Role::Error)?;
        self.settle_task(task_id, Settlement::Failed { code }, Some(error), by)
    }

    fn retry_step(&mut self, task_id: &str, input: &str, hold: Option<Hold>, by: &By) -> Result<(), Stop> {
        if !self.load_task(task_id)? {
            return Ok(());
        }
        let input_ref = self.kept(input, Role::Input)?;
        let task = self.task(task_id)?;
        let order = task::order(self.commit.now_ms(), task.facts.priority, self.limits.ageing_ms);
        let body =
            Body::TaskRetried(TaskRetried { order, hold: hold.clone(), max_retries: None, timeout_ms: None });
        self.change(task_id, body, by, vec![input_ref])?;
        if let Some(live) = self.holding.tasks.live.get_mut(task_id) {
            live.input = Some(Arc::from(input));
        }
        if let Some(Hold::Run { run }) = hold {
            // A child that cannot go on has not failed: its end is told as it stands.
            let again = RescheduleRun { run: run.clone(), from_step: None, priority: None };
            if let Err(stop) = again.rule(self, by) {
                stop.refusal()?;
                self.tell_parent(&run)?;
            }
        }
        Ok(())
    }

    /// Returns how many open runs a run is nested in.
    fn depth(&self, id: &str) -> usize {
        let parent = |id: &str| {
            let parent = self.holding.runs.live.get(id)?.run.facts.parent.as_deref()?;
            parent.split_once('#').map(|(run, _)| run)
        };
        std::iter::successors(parent(id), |id| parent(id)).take(DEPTH_MAX + 1).count()
    }

    /// Submits the child run that a step waits for. If its definition does not hold, the step fails.
    fn submit_child(
        &mut self,
        task_id: &str,
        run: String,
        mut definition: Value,
        by: &By,
    ) -> Result<(), Stop> {
        definition["workflow_id"] = json!(run);
        let begun = match self.planned_child(task_id, run, &definition) {
            Ok(new) => self.begin_run(new, None, Some(task_id.to_owned()), by),
            Err(stop) => Err(stop),
        };
        let Err(stop) = begun else { return Ok(()) };
        let code = Code::InvalidArgument.as_str();
        let message = stop.refusal()?.message;
        let error = self.kept(&json!({"code": code, "message": message}).to_string(), Role::Error)?;
        self.settle_task(task_id, Settlement::Failed { code }, Some(error), by)
    }

    /// Checks the definition of a child run and returns the run to submit.
    fn planned_child(&self, task_id: &str, run: String, definition: &Value) -> Result<NewRun, Stop> {
        let refuse = |message: String| Stop::Refused(Refusal::new(Code::InvalidArgument, message));
        let tools = self.tools.get().ok_or_else(|| refuse("this node has no catalogue".to_owned()))?;
        let planned = workflow::plan::plan(definition, tools.as_ref()).map_err(|faults| {
            let faults = faults.iter().map(|fault| format!("{}: {}", fault.place, fault.fault));
            refuse(faults.collect::<Vec<_>>().join("; "))
        })?;
        if task_id.split_once('#').map_or(0, |(parent, _)| self.depth(parent)) >= DEPTH_MAX {
            return Err(refuse(format!("workflows are nested deeper than {DEPTH_MAX}")));
        }
        Ok(NewRun {
            id: run,
            inputs: self.payload(&planned.inputs.to_string())?,
            priority: planned.priority,
            tags: planned.tags,
            dependencies: planned.dependencies,
            max_parallel: planned.max_parallel,
            deadline_ms: planned.deadline_ms,
            peer: planned.peer,
            plan: planned.plan,
        })
    }
}
