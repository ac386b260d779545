//! Tasks: submitting, changing and loading them.
//!
//! Invariants:
//! - a task changes by its event alone, and its run hears of it in the same commit.

use std::sync::Arc;

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{Actor, Body, PayloadRef, Role, work::TaskSubmitted},
    ledger::{
        Sealed,
        commit::{By, Fault, Stop, payload_ref},
        work::{CancelTask, Check, Look, Reprioritise, RetryTask, SubmitTask, Worked},
        world::{World, text_of},
    },
    query,
    task::{self, FOLLOWED_MAX, Moment, Submitted, Task},
};

/// Returns the refusal of a command about a task that does not exist.
pub(super) fn no_task(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no task `{id}`")).hint("task_list names those there are")
}

/// A task before it is recorded.
pub(super) struct NewTask {
    pub id: String,
    pub facts: TaskSubmitted,
    pub tool: Option<Cid>,
    pub payloads: Vec<PayloadRef>,
    /// The input's text, where it is at hand.
    pub input: Option<Arc<str>>,
}

impl SubmitTask {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { id, facts, tool, input, metadata } = self;
        if facts.handle.is_some() && !world.load_task(&id)? {
            world.may_follow_another(&by.actor)?;
        }
        let input_ref = payload_ref(&input, Role::Input);
        let Some(facts) = world.new_task(&id, facts, &input_ref)? else { return Ok(world.told(&id, true)?) };
        let text: Option<Arc<str>> = text_of(&input).map(Arc::from);
        let mut payloads = vec![input_ref];
        payloads.extend(metadata.as_ref().map(|metadata| payload_ref(metadata, Role::Artifact)));
        world.commit.store(Some(input));
        world.commit.store(metadata);
        world.enter_task(NewTask { id: id.clone(), facts, tool, payloads, input: text }, by)?;
        Ok(world.told(&id, false)?)
    }
}

impl Look {
    pub(super) fn rule(self, world: &mut World) -> Result<Worked, Stop> {
        world.need_task(&self.task)?;
        Ok(world.told(&self.task, false)?)
    }
}

impl Check {
    pub(super) fn rule(self, world: &World) -> Worked {
        let over = |(task, fence): &(String, u64)| {
            let live = world.holding.tasks.live.get(task).map(|live| &live.task);
            !live.is_some_and(|task| {
                let held = task.lease.as_ref().is_some_and(|lease| lease.worker == self.worker);
                held && task.fence == *fence && !task.cancel_requested
            })
        };
        Worked::Checked(self.attempts.iter().filter(|attempt| over(attempt)).cloned().collect())
    }
}

impl CancelTask {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        world.decide_task(&self.task, by, |task, _| task.cancel(self.force))
    }
}

impl Reprioritise {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        world.decide_task(&self.task, by, |task, moment| Ok(vec![task.reprioritise(self.priority, moment)?]))
    }
}

impl RetryTask {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let id = &self.task;
        world.need_task(id)?;
        let task = world.task(id)?;
        if task.facts.run.is_some() {
            let refusal = "this task is a step: its workflow decides whether it runs again";
            let refusal = Refusal::new(Code::FailedPrecondition, refusal);
            return Err(refusal.hint("continue the run with workflow_reschedule").into());
        }
        let body = task.retry(self.max_retries, self.timeout_ms, &world.moment())?;
        let key = task.facts.unique_key.clone();
        if let Some(refusal) = world.key_taken(key.as_ref())? {
            return Err(Refusal { code: Code::Conflict, ..refusal }.into());
        }
        world.change_all(id, vec![body], by)?;
        Ok(world.told(id, false)?)
    }
}

impl World {
    /// Checks a submission; returns the facts to record, or `None` if the same task was submitted before.
    pub(super) fn new_task(
        &mut self,
        id: &str,
        facts: TaskSubmitted,
        input: &PayloadRef,
    ) -> Result<Option<TaskSubmitted>, Stop> {
        self.load_task(id)?;
        let earlier = self.holding.tasks.live.get(id).map(|live| &live.task);
        let waiting = self.holding.tasks.queue.len() as u64;
        let facts = match task::submit(earlier, id, facts, input, waiting, &self.moment())? {
            Submitted::New(facts) => *facts,
            Submitted::Known => return Ok(None),
        };
        match self.key_taken(facts.unique_key.as_ref())? {
            Some(refusal) => Err(refusal.into()),
            None => Ok(Some(facts)),
        }
    }

    /// Refuses another task that a client follows, where clients of this actor follow as many as they may.
    fn may_follow_another(&self, actor: &Actor) -> Result<(), Stop> {
        let live = self.holding.tasks.live.values().map(|live| &live.task);
        let open = live.filter(|task| task.facts.handle.is_some() && !task.status.ended());
        if open.filter(|task| task.actor.id == actor.id).count() < FOLLOWED_MAX {
            return Ok(());
        }
        let message = format!("{FOLLOWED_MAX} tasks that this caller follows have not ended");
        let refusal = Refusal::new(Code::ResourceExhausted, message).retryable();
        Err(refusal.hint("wait until some of them have ended, or cancel them").into())
    }

    /// Records a new task and takes it into the queue.
    pub(super) fn enter_task(&mut self, new: NewTask, by: &By) -> Result<(), Stop> {
        let NewTask { id, facts, tool, payloads, input } = new;
        let now_ms = self.commit.now_ms();
        let body = Body::TaskSubmitted(facts.clone());
        let fact = by.fact(task::subject(&id), body, by.noted(payloads));
        let run = facts.run.clone();
        let event = self.commit.seal(crate::event::Fact { tool, ..fact })?;
        let task = Task::begun_with(facts, event)
            .ok_or(Fault::Broken { what: "a submitted task cannot be read" })?;
        self.holding.tasks.enter(task, input, &mut self.holding.agenda, now_ms);
        if let Some(run) = run {
            self.holding.runs.tell(&run, event);
        }
        Ok(())
    }

    /// Carries out a decision about one task that depends on nothing but the task.
    fn decide_task(
        &mut self,
        id: &str,
        by: &By,
        decide: impl FnOnce(&Task, &Moment) -> Result<Vec<Body>, Refusal>,
    ) -> Result<Worked, Stop> {
        self.need_task(id)?;
        let bodies = decide(self.task(id)?, &self.moment())?;
        self.change_all(id, bodies, by)?;
        Ok(self.told(id, false)?)
    }

    /// Records what happened to a task in memory, one event after another. The first carries the reason.
    pub(super) fn change_all(&mut self, id: &str, bodies: Vec<Body>, by: &By) -> Result<(), Stop> {
        let quietly = by.quietly();
        for (n, body) in bodies.into_iter().enumerate() {
            let note = by.note.filter(|_| n == 0);
            self.change(id, body, &quietly, note.into_iter().collect())?;
        }
        Ok(())
    }

    /// Records what happened to a task in memory, and tells its run.
    pub(super) fn change(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        payloads: Vec<PayloadRef>,
    ) -> Result<Sealed, Stop> {
        let task = self.task(id)?;
        let fact = task.fact(body, by.actor.clone(), by.cause, by.refs.clone(), by.noted(payloads));
        let run = task.facts.run.clone();
        let body = fact.body.clone();
        let event = self.commit.seal(fact)?;
        self.holding.tasks.apply(id, &body, event, &mut self.holding.crew, &mut self.holding.agenda);
        if let Some(run) = run {
            self.holding.runs.tell(&run, event);
        }
        Ok(event.into())
    }

    /// Returns a task that is in memory.
    pub(super) fn task(&self, id: &str) -> Result<&Task, Fault> {
        let live = self.holding.tasks.live.get(id);
        live.map(|live| &live.task).ok_or(Fault::Broken { what: "a task is not in memory" })
    }

    /// Loads a task into memory. Refuses if there is none of this id.
    pub(super) fn need_task(&mut self, id: &str) -> Result<(), Stop> {
        match self.load_task(id)? {
            true => Ok(()),
            false => Err(no_task(id).into()),
        }
    }

    /// Loads a task into memory. Returns false if there is none of this id.
    pub(super) fn load_task(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.tasks.live.contains_key(id) {
            return Ok(true);
        }
        let Some(task) = self.folded_from_log::<Task>(id)? else { return Ok(false) };
        self.holding.tasks.keep(task, None);
        Ok(true)
    }

    /// Loads the task that was submitted at `seq` and returns its id.
    pub(super) fn number(&mut self, seq: u64) -> Result<String, Fault> {
        if let Some(id) = self.holding.tasks.numbers.get(&seq) {
            return Ok(id.clone());
        }
        let event = self.reader.event_at(seq)?;
        let id = event.as_ref().and_then(Task::begun).map(|task| task.id);
        let id = id.ok_or(Fault::Broken { what: "the queue names a task that is not in the log" })?;
        match self.load_task(&id)? {
            true => Ok(id),
            false => Err(Fault::Broken { what: "the queue names a task that the state does not have" }),
        }
    }

    /// Returns the task with this unique key that has not ended, if there is one.
    fn holder_of(&mut self, key: &str) -> Result<Option<String>, Fault> {
        let id = match self.holding.tasks.unique.get(key) {
            Some(id) => Some(id.clone()),
            None => match query::work::live_unique(&self.state, key)? {
                Some(seq) => Some(self.number(seq)?),
                None => None,
            },
        };
        let Some(id) = id else { return Ok(None) };
        let live = self.load_task(&id)? && !self.task(&id)?.status.ended();
        Ok(live.then_some(id))
    }

    /// Returns the refusal of a task if another with the same unique key has not ended.
    fn key_taken(&mut self, key: Option<&String>) -> Result<Option<Refusal>, Fault> {
        let Some(key) = key else { return Ok(None) };
        let Some(holder) = self.holder_of(key)? else { return Ok(None) };
        let message = format!("the unique key `{key}` is held by the task `{holder}`, which has not ended");
        let refusal = Refusal::new(Code::AlreadyExists, message);
        Ok(Some(refusal.hint("wait for that task, or use another key")))
    }

    /// Returns the answer that tells a task in memory as it stands.
    pub(super) fn told(&self, id: &str, replayed: bool) -> Result<Worked, Fault> {
        let task = self.task(id)?.clone();
        let position = self.holding.tasks.position(&task);
        Ok(Worked::Task { task: Box::new(task), position, replayed })
    }
}
