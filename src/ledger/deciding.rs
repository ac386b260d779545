//! Carrying out what runs decide: each decision becomes events, in the commit of what it follows from.
//!
//! Invariants:
//! - after a commit no run has a decision left that its rules would make;
//! - a decision is carried out once: what it brings about is decided on after those it was made with.

use std::{cell::RefCell, sync::Arc};

use serde_json::{Value, json};

use crate::{
    block::Cid,
    error::Code,
    event::{
        Body, PayloadRef, Role,
        work::{Hold, Part, RetryPolicy, StepFailed, StepGathered, StepSkipped, TaskRetried, TaskSubmitted},
    },
    ledger::{
        tasks::By,
        work::{CARRIES, NewRun},
        writer::{Draft, Fault, Writer, payload_ref},
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
    pub writer: &'a Writer,
    pub draft: &'a Draft,
    /// Why a content could not be read; that it was erased is no fault.
    fault: RefCell<Option<Fault>>,
}

impl<'a> Reading<'a> {
    pub fn new(writer: &'a Writer, draft: &'a Draft) -> Self {
        Self { writer, draft, fault: RefCell::default() }
    }

    /// Returns the decision, or the fault if a content it depends on could not be read.
    pub fn sound<T>(self, decided: T) -> Result<T, Fault> {
        self.fault.into_inner().map_or(Ok(decided), Err)
    }
}

impl Contents for Reading<'_> {
    fn is_there(&self, payload: &Cid) -> bool {
        self.writer.is_there(payload, self.draft).unwrap_or_else(|fault| {
            self.fault.replace(Some(fault));
            false
        })
    }

    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        if let Some(value) = self.writer.holding.contents.parsed(payload) {
            return Some(value);
        }
        let text = match self.writer.text(Some(*payload), self.draft) {
            Ok(text) => text?,
            Err(fault) => {
                self.fault.replace(Some(fault));
                return None;
            }
        };
        let value: Arc<Value> = Arc::new(serde_json::from_str(&text).ok()?);
        self.writer.holding.contents.keep_parsed(*payload, value.clone(), text.len());
        Some(value)
    }
}

impl Writer {
    /// Asks every run to which something has happened what it decides, and carries that out, until none decides
    /// anything.
    pub(super) fn advance(&mut self, draft: &mut Draft) -> Result<(), Fault> {
        // What a decision brings about is decided on after the decisions it was made with.
        if self.holding.advancing {
            return Ok(());
        }
        self.holding.advancing = true;
        let advanced = self.settle_runs(draft);
        self.holding.advancing = false;
        advanced
    }

    fn settle_runs(&mut self, draft: &mut Draft) -> Result<(), Fault> {
        while let Some(id) = self.holding.dirty.pop() {
            while let Some(live) = self.holding.runs.get(&id) {
                let reading = Reading::new(self, draft);
                let decisions = live.run.decide(&reading, self.now_ms());
                let decisions = reading.sound(decisions)?;
                if decisions.is_empty() {
                    break;
                }
                for decision in decisions {
                    self.carry_out(&id, decision, draft)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn run_due(&mut self, id: &str) {
        if let Some(live) = self.holding.runs.get(id) {
            // A run that went on has another deadline.
            match live.run.due_ms() {
                Some(due) if due > self.now_ms() => {}
                _ => self.holding.dirty.push(id.to_owned()),
            }
        }
    }

    fn carry_out(&mut self, id: &str, decision: Decision, draft: &mut Draft) -> Result<(), Fault> {
        let by = self.by_run(id);
        match decision {
            Decision::Begin(facts) => {
                self.run_event(id, Body::WorkflowStarted(facts), &by, Vec::new(), draft)
            }
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
                self.submit_step(&task_id, facts, tool, &input, &by, draft)
            }
            Decision::Retry { task_id, input, hold, .. } => {
                self.retry_step(&task_id, &input, hold, &by, draft)
            }
            Decision::Child { task_id, step, part, run, definition } => {
                let hold = Some(Hold::Run { run: run.clone() });
                let facts = self.step_facts(id, step, part, WAIT_RUN.to_owned(), hold);
                let input = definition.to_string();
                self.submit_step(&task_id, facts, None, &input, &by, draft)?;
                self.submit_child(&task_id, run, definition, &by, draft)
            }
            Decision::Take { task_id, step, task_type, tool, input, output, from } => {
                let facts = self.step_facts(id, step, Part::Whole, task_type, None);
                let input = match input {
                    Given::Recorded(input) => self.those_there(input, draft)?,
                    Given::Resolved(text) => vec![self.kept(&text, Role::Input, draft)?],
                };
                self.enter_task(&task_id, facts, tool, input, None, &by, draft)?;
                self.reuse(&task_id, output, from, &by, draft)
            }
            Decision::TakeGathered { step, input, parts, output, from } => {
                let body = Body::StepGathered(StepGathered { step, parts });
                let by = By { refs: vec![from], ..by };
                let input = input.map(|text| self.kept(&text, Role::Input, draft)).transpose()?;
                self.run_event(id, body, &by, output.into_iter().chain(input).collect(), draft)
            }
            Decision::Skip { step, reason } => {
                let body = Body::StepSkipped(StepSkipped { step, reason: reason.to_owned() });
                self.run_event(id, body, &by, Vec::new(), draft)
            }
            Decision::Fail { step, code, message, input } => {
                let error = json!({"code": code, "message": message}).to_string();
                let error = self.kept(&error, Role::Error, draft)?;
                let input = input.map(|text| self.kept(&text, Role::Input, draft)).transpose()?;
                let body = Body::StepFailed(StepFailed { step, code });
                self.run_event(id, body, &by, [Some(error), input].into_iter().flatten().collect(), draft)
            }
            Decision::Gather { step, output, parts } => {
                let payload = self.payload(&output)?;
                let output_ref = payload_ref(&payload, Role::Output);
                self.holding.contents.put(output_ref.cid, Arc::from(output));
                draft.store(Some(payload));
                let body = Body::StepGathered(StepGathered { step, parts });
                self.run_event(id, body, &by, vec![output_ref], draft)
            }
            Decision::Settle { task_id, output, signal } => {
                let by = By { refs: vec![signal], ..by };
                if let Some(output) = output
                    && !self.is_there(&output.cid, draft)?
                {
                    return self.settle_without(&task_id, &by, draft);
                }
                self.settle_task(&task_id, Settlement::Succeeded, output, &by, draft)
            }
            Decision::Cancel { task_id, run, force } => {
                if self.load_task(&task_id)?
                    && let Ok(bodies) = self.task(&task_id)?.cancel(force)
                {
                    self.change_all(&task_id, bodies, &by, draft)?;
                }
                // A child that is not in memory has ended, and nothing of it runs.
                if let Some(run) = run.filter(|run| self.holding.runs.contains_key(run)) {
                    // One that has ended otherwise is not cancelled.
                    let _ = self.cancel_run(&run, force, &by, draft)?;
                }
                Ok(())
            }
            Decision::End(body) => self.run_event(id, body, &by, Vec::new(), draft),
        }
    }

    /// Stores text as the payload of an event to come.
    fn kept(&self, text: &str, role: Role, draft: &mut Draft) -> Result<PayloadRef, Fault> {
        let payload = self.payload(text)?;
        let kept = payload_ref(&payload, role);
        draft.store(Some(payload));
        Ok(kept)
    }

    /// Cause and actor of a run's own decisions: its latest event, and its submitter.
    pub(super) fn by_run(&self, id: &str) -> By {
        let live = &self.holding.runs[id];
        By { actor: live.run.actor.clone(), cause: Some(live.last), note: None, refs: Vec::new() }
    }

    /// Returns what a worker must be capable of to run a step that calls this tool.
    fn requires(&self, id: &str, tool: Option<Cid>) -> Vec<String> {
        let peer = self.holding.runs.get(id).and_then(|live| live.run.facts.peer.as_ref());
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
        let priority = self.holding.runs.get(id).map_or(50, |live| live.run.facts.priority);
        TaskSubmitted {
            task_type,
            priority,
            order: task::order(self.now_ms(), priority, self.limits.ageing_ms),
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
        }
    }

    fn submit_step(
        &mut self,
        task_id: &str,
        facts: TaskSubmitted,
        tool: Option<Cid>,
        input: &str,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let reuse = tool.filter(|_| facts.reuse);
        let payload = self.payload(input)?;
        let input_ref = payload_ref(&payload, Role::Input);
        draft.store(Some(payload));
        self.enter_task(task_id, facts, tool, vec![input_ref], Some(Arc::from(input)), by, draft)?;
        let Some(tool) = reuse else { return Ok(()) };
        let Some(seq) = query::work::reusable(&self.state, self.reader.as_ref(), &tool, &input_ref.cid)?
        else {
            return Ok(());
        };
        let Some(earlier) = self.reader.event_at(seq)? else { return Ok(()) };
        let output = earlier.fields().pay.iter().find(|pay| pay.role == Role::Output).copied();
        if let Some(output) = output
            && !self.is_there(&output.cid, draft)?
        {
            // What was erased cannot be used again: the step runs.
            return Ok(());
        }
        self.reuse(task_id, output, earlier.cid(), by, draft)
    }

    /// Ends a task with the output of another, so that it need not run.
    fn reuse(
        &mut self,
        task_id: &str,
        output: Option<PayloadRef>,
        from: Cid,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let by = By { refs: vec![from], ..by.clone() };
        self.settle_task(task_id, Settlement::Reused, output, &by, draft)
    }

    pub(super) fn settle_task(
        &mut self,
        task_id: &str,
        how: Settlement<'_>,
        output: Option<PayloadRef>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        if !self.load_task(task_id)? {
            return Ok(());
        }
        // What has ended in the meantime stays as it ended.
        let Ok(body) = self.task(task_id)?.settle(how) else { return Ok(()) };
        let role = if matches!(how, Settlement::Failed { .. }) { Role::Error } else { Role::Output };
        let output = output.map(|output| PayloadRef { role, ..output });
        self.change(task_id, body, by, output.into_iter().collect(), draft)?;
        Ok(())
    }

    /// Fails a task whose signal came, but whose signal's content was erased before the task took it.
    fn settle_without(&mut self, task_id: &str, by: &By, draft: &mut Draft) -> Result<(), Fault> {
        let code = Code::FailedPrecondition.as_str();
        let error = json!({"code": code, "message": "the content of the signal was erased"}).to_string();
        let error = self.kept(&error, Role::Error, draft)?;
        self.settle_task(task_id, Settlement::Failed { code }, Some(error), by, draft)
    }

    fn retry_step(
        &mut self,
        task_id: &str,
        input: &str,
        hold: Option<Hold>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        if !self.load_task(task_id)? {
            return Ok(());
        }
        let payload = self.payload(input)?;
        let input_ref = payload_ref(&payload, Role::Input);
        draft.store(Some(payload));
        let task = self.task(task_id)?;
        let order = task::order(self.now_ms(), task.facts.priority, self.limits.ageing_ms);
        let body =
            Body::TaskRetried(TaskRetried { order, hold: hold.clone(), max_retries: None, timeout_ms: None });
        self.change(task_id, body, by, vec![input_ref], draft)?;
        if let Some(live) = self.holding.tasks.get_mut(task_id) {
            live.input = Some(Arc::from(input));
        }
        if let Some(Hold::Run { run }) = hold {
            // A child that cannot go on has not failed: its end is told as it stands.
            if self.reschedule_run(&run, None, None, by, draft)?.is_err() {
                self.tell_parent(&run, draft)?;
            }
        }
        Ok(())
    }

    /// Returns how many open runs a run is nested in.
    fn depth(&self, id: &str) -> usize {
        let parent = |id: &str| {
            let parent = self.holding.runs.get(id)?.run.facts.parent.as_deref()?;
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
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        definition["workflow_id"] = json!(run);
        let planned = match self.tools.get() {
            Some(tools) => workflow::plan::plan(&definition, tools.as_ref()).map_err(|faults| {
                faults.iter().map(|fault| format!("{}: {}", fault.place, fault.fault)).collect()
            }),
            None => Err(vec!["this node has no catalogue".to_owned()]),
        };
        let depth = task_id.split_once('#').map_or(0, |(parent, _)| self.depth(parent));
        let refused = match planned {
            Ok(_) if depth >= DEPTH_MAX => vec![format!("workflows are nested deeper than {DEPTH_MAX}")],
            Ok(planned) => {
                let inputs = self.payload(&planned.inputs.to_string())?;
                let new = NewRun {
                    id: run,
                    inputs,
                    priority: planned.priority,
                    tags: planned.tags,
                    dependencies: planned.dependencies,
                    max_parallel: planned.max_parallel,
                    deadline_ms: planned.deadline_ms,
                    peer: planned.peer,
                    plan: planned.plan,
                };
                match self.begin_run(new, None, Some(task_id.to_owned()), by, draft)? {
                    Ok(_) => return Ok(()),
                    Err(refusal) => vec![refusal.message],
                }
            }
            Err(faults) => faults,
        };
        let code = Code::InvalidArgument.as_str();
        let error = self.payload(&json!({"code": code, "message": refused.join("; ")}).to_string())?;
        let error_ref = payload_ref(&error, Role::Error);
        draft.store(Some(error));
        self.settle_task(task_id, Settlement::Failed { code }, Some(error_ref), by, draft)
    }
}
