//! The writer's part in workers, schedules, and what time brings about.
//!
//! Invariants:
//! - what a worker held when it left, was lost, or when its process ended is back in the line in the same commit;
//! - a tick of a schedule is one commit with what it makes.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    block::{
        encode,
        payload::{Payload, SealedPayload},
    },
    error::{Code, Refusal},
    event::{
        Body, Fact, PayloadRef, Role,
        work::{Rhythm, ScheduleCreated, ScheduleFired, WorkerRegistered},
    },
    ledger::{
        holding::{Due, Timetable},
        tasks::{By, worked},
        work::{Made, NewRun, Worked},
        writer::{Draft, Fault, Writer, node, payload_ref},
    },
    query,
    schedule::{self, Created, Schedule},
    task::{self, Submitted},
    worker::{self, Presence, Registered, Worker},
};

/// Due entities that one commit looks at.
const DUE_MAX: usize = 1024;
/// Ticks of schedules that fire in one commit, so that making up for a long absence holds nothing else up.
const TICKS_MAX: usize = 16;
/// Workers that have registered and not left.
const WORKERS_MAX: usize = 10_000;
/// Schedules that are not deleted.
const SCHEDULES_MAX: usize = 1000;
/// The media type of what a schedule makes.
const DAG_CBOR: &str = "application/vnd.ipld.dag-cbor";

impl Writer {
    pub(super) fn register(
        &mut self,
        id: &str,
        facts: WorkerRegistered,
        metadata: Option<SealedPayload>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Some(refusal) = self.crew_full(id) {
            return Ok(Err(refusal));
        }
        self.load_worker(id)?;
        match worker::register(self.holding.workers.get(id), id, &by.actor, facts) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Registered::Known) => {}
            Ok(Registered::New(facts)) => {
                let mut payloads: Vec<PayloadRef> = by.note.into_iter().collect();
                payloads.extend(metadata.as_ref().map(|metadata| payload_ref(metadata, Role::Artifact)));
                draft.store(metadata);
                self.crew_event(id, Body::WorkerRegistered(facts), by, payloads, draft)?;
            }
        }
        self.hear(id);
        Ok(Ok(self.worker_told(id, 0)))
    }

    pub(super) fn unregister(
        &mut self,
        id: &str,
        graceful: bool,
        timeout_ms: u64,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let moment = self.moment();
        self.load_worker(id)?;
        let Some(worker) = self.holding.workers.get(id) else { return Ok(Err(no_worker(id))) };
        let decided = match graceful {
            true => worker.drain(&by.actor, timeout_ms, &moment),
            false => worker.unregister(&by.actor),
        };
        let bodies = match decided {
            Ok(bodies) => bodies,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for body in bodies {
            self.crew_event(id, body, by, by.note.into_iter().collect(), draft)?;
        }
        // Whoever registers under this name next has claims of their own.
        let (left, parked): (VecDeque<_>, _) =
            std::mem::take(&mut self.holding.parked).into_iter().partition(|parked| parked.worker == id);
        self.holding.parked = parked;
        let empty = || worked(Worked::Claimed(Vec::new()));
        draft.replies.extend(left.into_iter().map(|parked| (parked.reply, empty())));
        let abandoned = match self.holding.workers[id].presence {
            Presence::Unregistered => self.release_all(id, by, draft)?,
            Presence::Registered | Presence::Draining { .. } | Presence::Lost => 0,
        };
        Ok(Ok(self.worker_told(id, abandoned)))
    }

    /// Records a sign of life, after checking that the caller registered this worker.
    pub(super) fn heard(
        &mut self,
        id: &str,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<(), Refusal>, Fault> {
        // The node's own workers are the node.
        if by.actor == node() && id.starts_with(worker::NODE_PREFIX) {
            return Ok(Ok(()));
        }
        if let Some(refusal) = self.crew_full(id) {
            return Ok(Err(refusal));
        }
        self.load_worker(id)?;
        let Some(worker) = self.holding.workers.get(id) else { return Ok(Err(no_worker(id))) };
        match worker.called_by(&by.actor) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(None) => {}
            Ok(Some(body)) => {
                // Whoever called, it is the worker that is back, and it stays its owner's.
                let by = By { actor: worker.actor.clone(), ..by.clone() };
                self.crew_event(id, body, &by, Vec::new(), draft)?;
            }
        }
        self.hear(id);
        Ok(Ok(()))
    }

    /// Returns the refusal of a new worker if there are as many as may be.
    fn crew_full(&self, id: &str) -> Option<Refusal> {
        let workers = &self.holding.workers;
        let message = || format!("{WORKERS_MAX} workers are registered already");
        (workers.len() >= WORKERS_MAX && !workers.contains_key(id)).then(|| {
            Refusal::new(Code::ResourceExhausted, message())
                .retryable()
                .hint("unregister those that are not needed, and try again")
        })
    }

    /// Loads a worker into memory, also one that has left. Returns false if none of this id ever registered.
    fn load_worker(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.workers.contains_key(id) {
            return Ok(true);
        }
        let mut worker: Option<Worker> = None;
        for seq in query::work::events_of(&self.state, &worker::subject(id))? {
            let Some(event) = self.reader.event_at(seq)? else { continue };
            match &mut worker {
                None => worker = Worker::begun(&event),
                Some(worker) => worker.apply(&event),
            }
        }
        let Some(worker) = worker else { return Ok(false) };
        self.holding.hold_worker(worker);
        Ok(true)
    }

    /// Returns the capabilities that a worker registered with.
    pub(super) fn capabilities(&self, id: &str) -> Arc<BTreeSet<String>> {
        let words = self.holding.workers.get(id).map(|worker| worker.facts.capabilities.iter().cloned());
        Arc::new(words.into_iter().flatten().collect())
    }

    fn hear(&mut self, id: &str) {
        let now_ms = self.now_ms();
        if let Some(worker) = self.holding.workers.get_mut(id) {
            worker.heard(now_ms);
        }
    }

    fn worker_told(&self, id: &str, abandoned: u64) -> Worked {
        Worked::Worker {
            worker: Box::new(self.holding.workers[id].clone()),
            at_ms: self.now_ms(),
            lease_ms: self.limits.lease_ms,
            abandoned,
        }
    }

    /// Puts back in the line the tasks that a worker holds; returns how many.
    fn release_all(&mut self, id: &str, by: &By, draft: &mut Draft) -> Result<u64, Fault> {
        let held: Vec<String> = self.holding.held.get(id).into_iter().flatten().cloned().collect();
        let quietly = By { note: None, ..by.clone() };
        for task in &held {
            let moment = self.moment();
            let bodies =
                self.holding.tasks.get(task).map(|live| live.task.release(&moment)).unwrap_or_default();
            self.change_all(task, bodies, &quietly, draft)?;
        }
        Ok(held.len() as u64)
    }

    fn crew_event(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        payloads: Vec<PayloadRef>,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let fact = Fact {
            cause: by.cause,
            refs: Vec::new(),
            actor: by.actor.clone(),
            subject: worker::subject(id),
            tool: None,
            payloads,
            body,
        };
        let event = self.sealer.seal(fact, draft)?;
        match self.holding.workers.get_mut(id) {
            Some(worker) => worker.apply(event),
            None => {
                let worker = Worker::begun(event).ok_or(Fault::Broken { what: "a worker cannot be read" })?;
                self.holding.workers.insert(id.to_owned(), worker);
            }
        }
        let worker = &self.holding.workers[id];
        match worker.due_ms(&self.limits) {
            Some(due) => self.holding.due.push(Reverse((due, Due::Worker(id.to_owned())))),
            None => self.holding.gone.push_back((worker.last_seq, id.to_owned())),
        }
        Ok(())
    }

    /// Ends as interrupted the attempts of processes that have ended; returns how many.
    pub(super) fn interrupt(&mut self, runners: &[String], draft: &mut Draft) -> Result<u64, Fault> {
        let of_runner = |live: &&super::holding::Live| {
            let lease = live.task.lease.as_ref().filter(|_| live.task.status == task::Status::Running);
            lease.and_then(|lease| lease.runner.as_ref()).is_some_and(|runner| runners.contains(runner))
        };
        let lost = self.holding.tasks.values().filter(of_runner);
        let mut lost: Vec<(u64, String)> = lost.map(|live| (live.task.seq, live.task.id.clone())).collect();
        // The map has no order of its own; the log must not depend on chance.
        lost.sort_unstable();
        // Claims that wait for a process that has ended are answered to nobody.
        self.holding
            .parked
            .retain(|parked| !parked.hand.as_ref().is_some_and(|hand| runners.contains(&hand.runner)));
        let by = By { actor: node(), cause: None, note: None, refs: Vec::new() };
        for (_, id) in &lost {
            let moment = self.moment();
            let bodies = self.task(id)?.interrupt(&moment);
            self.change_all(id, bodies, &by, draft)?;
        }
        self.advance(draft)?;
        Ok(lost.len() as u64)
    }

    /// Lets up to `DUE_MAX` due entities act.
    pub(super) fn tick(&mut self, draft: &mut Draft) -> Result<(), Fault> {
        let now_ms = self.now_ms();
        let by = By { actor: node(), cause: None, note: None, refs: Vec::new() };
        let (mut ticks, mut later, mut claims) = (0, Vec::new(), false);
        for _ in 0..DUE_MAX {
            let due = self.holding.due.peek().filter(|Reverse((at, _))| *at <= now_ms);
            if due.is_none() {
                break;
            }
            let Some(Reverse((at, due))) = self.holding.due.pop() else { break };
            if matches!(due, Due::Schedule(_)) {
                ticks += 1;
                if ticks > TICKS_MAX {
                    later.push(Reverse((at, due)));
                    continue;
                }
            }
            match due {
                Due::Claims => claims = true,
                Due::Task(id) => self.task_due(&id, &by, draft)?,
                Due::Run(id) => self.run_due(&id),
                Due::Worker(id) => self.worker_due(&id, &by, draft)?,
                Due::Schedule(id) => self.schedule_due(&id, &by, draft)?,
            }
        }
        if claims {
            self.claims_due(now_ms, draft);
        }
        // These are due at once again, in a commit of their own.
        self.holding.due.extend(later);
        self.holding.queue.wake(now_ms);
        self.holding.fresh = true;
        self.advance(draft)
    }

    /// Answers the claims that have waited long enough.
    fn claims_due(&mut self, now_ms: u64, draft: &mut Draft) {
        let parked = std::mem::take(&mut self.holding.parked);
        let (over, waiting): (VecDeque<_>, _) =
            parked.into_iter().partition(|parked| parked.until_ms <= now_ms);
        self.holding.parked = waiting;
        let empty = || worked(Worked::Claimed(Vec::new()));
        draft.replies.extend(over.into_iter().map(|parked| (parked.reply, empty())));
    }

    fn task_due(&mut self, id: &str, by: &By, draft: &mut Draft) -> Result<(), Fault> {
        let moment = self.moment();
        // Tasks that are not in memory neither run nor are held.
        let Some(live) = self.holding.tasks.get(id) else { return Ok(()) };
        // Nothing, where the time has moved: the later one has an entry of its own.
        let bodies = live.task.lapse(&moment);
        self.change_all(id, bodies, by, draft)
    }

    fn worker_due(&mut self, id: &str, by: &By, draft: &mut Draft) -> Result<(), Fault> {
        let moment = self.moment();
        let waits = self.holding.parked.iter().any(|parked| parked.worker == id && !parked.reply.is_closed());
        let Some(worker) = self.holding.workers.get_mut(id) else { return Ok(()) };
        if waits {
            // A claim that waits is a sign of life.
            worker.heard(moment.now_ms);
        }
        if let Some(body) = worker.drained(&moment).or_else(|| worker.lost(&moment)) {
            self.crew_event(id, body, by, Vec::new(), draft)?;
            self.release_all(id, by, draft)?;
        } else if let Some(due) = worker.due_ms(&self.limits) {
            self.holding.due.push(Reverse((due.max(moment.now_ms + 1), Due::Worker(id.to_owned()))));
        }
        Ok(())
    }

    pub(super) fn create_schedule(
        &mut self,
        id: String,
        rhythm: Rhythm,
        catch_up: bool,
        makes: Made,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let moment = self.moment();
        let kind = match &makes {
            Made::Task { .. } => "task",
            Made::Workflow { .. } => "workflow",
        };
        let Ok(what) = Payload::seal(&self.salt, DAG_CBOR, &encode(&makes)) else {
            let refusal = "what the schedule makes is over the bound of a payload";
            return Ok(Err(Refusal::new(Code::ResourceExhausted, refusal)));
        };
        let what_ref = payload_ref(&what, Role::Input);
        let facts = ScheduleCreated { rhythm, makes: kind.to_owned(), catch_up, next_ms: 0 };
        // One whose content was erased is created anew, with its content.
        let known = self.holding.schedules.get(&id).filter(|known| known.makes.is_some());
        let known = known.map(|timetable| &timetable.schedule);
        let facts = match schedule::create(known, &id, facts, &what_ref, &moment) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Created::Known) => {
                let next_ms = known.map(|known| known.next_ms);
                return Ok(Ok(Worked::Schedule { schedule: id, next_ms, replayed: true }));
            }
            Ok(Created::New(facts)) => facts,
        };
        if self.holding.schedules.len() >= SCHEDULES_MAX {
            let refusal = format!("there are {SCHEDULES_MAX} schedules already");
            return Ok(Err(
                Refusal::new(Code::ResourceExhausted, refusal).hint("delete those that are not needed")
            ));
        }
        let mut payloads = vec![what_ref];
        payloads.extend(by.note);
        draft.store(Some(what));
        let fact = schedule_fact(&id, by, payloads, Body::ScheduleCreated(facts));
        let event = self.sealer.seal(fact, draft)?;
        let schedule = Schedule::begun(event).ok_or(Fault::Broken { what: "a schedule cannot be read" })?;
        let next_ms = schedule.next_ms;
        self.holding.due.push(Reverse((next_ms, Due::Schedule(id.clone()))));
        self.holding.schedules.insert(id.clone(), Timetable { schedule, makes: Some(makes) });
        Ok(Ok(Worked::Schedule { schedule: id, next_ms: Some(next_ms), replayed: false }))
    }

    pub(super) fn delete_schedule(
        &mut self,
        id: &str,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let Some(timetable) = self.holding.schedules.remove(id) else {
            let refusal = Refusal::new(Code::NotFound, format!("no schedule `{id}`"));
            return Ok(Err(refusal.hint("schedule_list names those there are")));
        };
        if let Some(body) = timetable.schedule.delete() {
            let fact = schedule_fact(id, by, by.note.into_iter().collect(), body);
            self.sealer.seal(fact, draft)?;
        }
        Ok(Ok(Worked::Schedule { schedule: id.to_owned(), next_ms: None, replayed: false }))
    }

    /// Fires one tick of a schedule. Ticks that were missed come one at a time, each due like anything else.
    fn schedule_due(&mut self, id: &str, by: &By, draft: &mut Draft) -> Result<(), Fault> {
        let moment = self.moment();
        let Some(timetable) = self.holding.schedules.get(id) else { return Ok(()) };
        // It is looked at again when its content is recorded again.
        let Some(makes) = timetable.makes.clone() else { return Ok(()) };
        if let Some(facts) = timetable.schedule.fire(&moment) {
            let tick = timetable.schedule.tick_id(facts.at_ms);
            // What it makes is asked for by who made the schedule.
            let actor = timetable.schedule.actor.clone();
            let refused = self.tick_refused(&tick, &makes)?;
            if let Some(refusal) = &refused {
                tracing::warn!(tick, reason = refusal.message, "a schedule's tick makes nothing");
            }
            let facts = ScheduleFired { skipped: refused.is_some(), ..facts };
            let fact = schedule_fact(id, by, Vec::new(), Body::ScheduleFired(facts));
            let event = self.sealer.seal(fact, draft)?;
            let fired = event.cid();
            if let Some(timetable) = self.holding.schedules.get_mut(id) {
                timetable.schedule.apply(event);
            }
            if refused.is_none() {
                let by = By { actor, cause: Some(fired), ..by.clone() };
                self.make(&tick, makes, &by, draft)?;
            }
        }
        if let Some(due) = self.holding.schedules.get(id).and_then(|timetable| timetable.schedule.due_ms()) {
            self.holding.due.push(Reverse((due, Due::Schedule(id.to_owned()))));
        }
        Ok(())
    }

    /// Returns why the task or run of a tick may not be submitted, as far as that can be known before.
    fn tick_refused(&mut self, id: &str, makes: &Made) -> Result<Option<Refusal>, Fault> {
        match makes {
            Made::Task { facts, input, .. } => {
                let input_ref = payload_ref(&self.payload(input)?, Role::Input);
                self.load_task(id)?;
                let earlier = self.holding.tasks.get(id).map(|live| &live.task);
                let waiting = self.holding.queue.len() as u64;
                match task::submit(earlier, id, facts.clone(), &input_ref, waiting, &self.moment()) {
                    Ok(Submitted::Known) => Ok(None),
                    Ok(Submitted::New(facts)) => Ok(self.unique(facts.unique_key.as_ref())?.err()),
                    Err(refusal) => Ok(Some(refusal)),
                }
            }
            Made::Workflow { .. } => Ok(self.runs_full()),
        }
    }

    /// Submits what a schedule makes at a tick.
    fn make(&mut self, id: &str, makes: Made, by: &By, draft: &mut Draft) -> Result<(), Fault> {
        let made = match makes {
            Made::Task { facts, tool, input } => {
                let input = self.payload(&input)?;
                self.submit_task(id.to_owned(), facts, tool, input, None, by, draft)?
            }
            Made::Workflow { plan, inputs, priority, tags, max_parallel, deadline_ms } => {
                let new = NewRun {
                    id: id.to_owned(),
                    inputs: self.payload(&inputs)?,
                    plan,
                    priority,
                    tags,
                    dependencies: Vec::new(),
                    max_parallel,
                    deadline_ms,
                    peer: None,
                };
                self.submit_run(new, by, draft)?
            }
        };
        if let Err(refusal) = made {
            tracing::warn!(id, reason = refusal.message, "a schedule's tick could not be submitted");
        }
        Ok(())
    }
}

fn no_worker(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no worker `{id}` is registered"))
        .hint("register it with worker_register")
}

fn schedule_fact(id: &str, by: &By, payloads: Vec<PayloadRef>, body: Body) -> Fact {
    Fact {
        cause: by.cause,
        refs: Vec::new(),
        actor: by.actor.clone(),
        subject: schedule::subject(id),
        tool: None,
        payloads,
        body,
    }
}
