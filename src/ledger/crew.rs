//! Workers: registering, leaving, and signs of life.
//!
//! Invariants:
//! - what a worker held when it left or was lost is back in the queue in the same commit;
//! - a command that is refused is no sign of life: nothing is recorded of it.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    error::{Code, Refusal},
    event::{Body, PayloadRef, Role},
    ledger::{
        claims::worked,
        commit::{By, Fault, Stop, node, payload_ref},
        holding::{agenda::Due, tasks::Parked},
        work::{RegisterWorker, UnregisterWorker, Worked},
        world::World,
    },
    worker::{self, Presence, Registered, Worker},
};

/// Workers that have registered and not left.
const WORKERS_MAX: usize = 10_000;

impl RegisterWorker {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { worker: id, facts, metadata } = self;
        world.room_in_crew(&id)?;
        world.load_worker(&id)?;
        match worker::register(world.holding.crew.workers.get(&id), &id, &by.actor, facts)? {
            Registered::Known => {}
            Registered::New(facts) => {
                let artifact = metadata.as_ref().map(|metadata| payload_ref(metadata, Role::Artifact));
                let mut payloads = by.noted(Vec::new());
                payloads.extend(artifact);
                world.commit.store(metadata);
                world.crew_event(&id, Body::WorkerRegistered(facts), by, payloads)?;
            }
        }
        world.hear(&id, None, by)?;
        Ok(world.worker_told(&id, 0))
    }
}

impl UnregisterWorker {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { worker: id, graceful, timeout_ms } = self;
        world.load_worker(&id)?;
        let worker = world.holding.crew.workers.get(&id).ok_or_else(|| no_worker(&id))?;
        let bodies = match graceful {
            true => worker.drain(&by.actor, timeout_ms, &world.moment())?,
            false => worker.unregister(&by.actor)?,
        };
        for body in bodies {
            world.crew_event(&id, body, by, by.noted(Vec::new()))?;
        }
        // Whoever registers under this name next has claims of their own.
        world.end_waits(|parked| parked.worker == id);
        let abandoned = match world.holding.crew.workers[&id].presence {
            Presence::Unregistered => world.release_all(&id, by)?,
            Presence::Registered | Presence::Draining { .. } | Presence::Lost => 0,
        };
        Ok(world.worker_told(&id, abandoned))
    }
}

impl World {
    /// Admits a command of a worker: the caller must have registered it. Returns the event that says that the worker
    /// is back, if it was lost. Nothing is recorded yet: the command may still be refused.
    pub(super) fn admit(&mut self, id: &str, by: &By) -> Result<Option<Body>, Stop> {
        // The node's own workers are the node.
        if by.actor == node() && id.starts_with(worker::NODE_PREFIX) {
            return Ok(None);
        }
        self.room_in_crew(id)?;
        self.load_worker(id)?;
        let worker = self.holding.crew.workers.get(id).ok_or_else(|| no_worker(id))?;
        Ok(worker.called_by(&by.actor)?)
    }

    /// Takes a command of a worker as a sign of life, and records that the worker is back if it was lost.
    pub(super) fn hear(&mut self, id: &str, back: Option<Body>, by: &By) -> Result<(), Stop> {
        let owner = self.holding.crew.workers.get(id).map(|worker| worker.actor.clone());
        if let (Some(body), Some(actor)) = (back, owner) {
            // Whoever called, it is the worker that is back, and it stays its owner's.
            self.crew_event(id, body, &By { actor, ..by.clone() }, Vec::new())?;
        }
        let now_ms = self.commit.now_ms();
        if let Some(worker) = self.holding.crew.workers.get_mut(id) {
            worker.heard(now_ms);
        }
        Ok(())
    }

    /// Refuses a new worker if there are as many as may be.
    fn room_in_crew(&self, id: &str) -> Result<(), Stop> {
        let workers = &self.holding.crew.workers;
        if workers.len() < WORKERS_MAX || workers.contains_key(id) {
            return Ok(());
        }
        let message = format!("{WORKERS_MAX} workers are registered already");
        let refusal = Refusal::new(Code::ResourceExhausted, message).retryable();
        Err(refusal.hint("unregister those that are not needed, and try again").into())
    }

    /// Answers the claims among those that wait which are to wait no longer: they get nothing.
    pub(super) fn end_waits(&mut self, over: impl Fn(&Parked) -> bool) {
        let parked = std::mem::take(&mut self.holding.tasks.parked);
        let (over, waiting): (VecDeque<_>, _) = parked.into_iter().partition(over);
        self.holding.tasks.parked = waiting;
        let empty = || worked(Worked::Claimed(Vec::new()));
        self.commit.replies.extend(over.into_iter().map(|parked| (parked.reply, empty())));
    }

    /// Loads a worker into memory, also one that has left. Returns false if none of this id ever registered.
    fn load_worker(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.crew.workers.contains_key(id) {
            return Ok(true);
        }
        let Some(worker) = self.folded_from_log::<Worker>(id)? else { return Ok(false) };
        let running = self.holding.tasks.held.get(id).map_or(0, |held| held.len() as u64);
        self.holding.crew.hold(worker, running);
        Ok(true)
    }

    /// Returns the capabilities that a worker registered with.
    pub(super) fn capabilities(&self, id: &str) -> Arc<BTreeSet<String>> {
        let words = self.holding.crew.workers.get(id).map(|worker| worker.facts.capabilities.iter().cloned());
        Arc::new(words.into_iter().flatten().collect())
    }

    fn worker_told(&self, id: &str, abandoned: u64) -> Worked {
        Worked::Worker {
            worker: Box::new(self.holding.crew.workers[id].clone()),
            at_ms: self.commit.now_ms(),
            lease_ms: self.limits.lease_ms,
            abandoned,
        }
    }

    /// Puts back in the queue the tasks that a worker holds; returns how many.
    fn release_all(&mut self, id: &str, by: &By) -> Result<u64, Stop> {
        let held: Vec<String> = self.holding.tasks.held.get(id).into_iter().flatten().cloned().collect();
        let quietly = by.quietly();
        for task in &held {
            let moment = self.moment();
            let bodies =
                self.holding.tasks.live.get(task).map(|live| live.task.release(&moment)).unwrap_or_default();
            self.change_all(task, bodies, &quietly)?;
        }
        Ok(held.len() as u64)
    }

    fn crew_event(&mut self, id: &str, body: Body, by: &By, payloads: Vec<PayloadRef>) -> Result<(), Stop> {
        let event = self.commit.seal(by.fact(worker::subject(id), body, payloads))?;
        let crew = &mut self.holding.crew;
        match crew.workers.get_mut(id) {
            Some(worker) => worker.apply(event),
            None => {
                let worker = Worker::begun(event).ok_or(Fault::Broken { what: "a worker cannot be read" })?;
                crew.workers.insert(id.to_owned(), worker);
            }
        }
        let worker = &crew.workers[id];
        match worker.due_ms(&self.limits) {
            Some(due) => self.holding.agenda.put(due, Due::Worker(id.to_owned())),
            None => crew.gone.push_back((worker.last_seq, id.to_owned())),
        }
        Ok(())
    }

    /// Lets a worker leave whose work is done, or be lost if nothing was heard of it.
    pub(super) fn worker_due(&mut self, id: &str, by: &By) -> Result<(), Stop> {
        let moment = self.moment();
        let waits =
            self.holding.tasks.parked.iter().any(|parked| parked.worker == id && !parked.reply.is_closed());
        let Some(worker) = self.holding.crew.workers.get_mut(id) else { return Ok(()) };
        if waits {
            // A claim that waits is a sign of life.
            worker.heard(moment.now_ms);
        }
        if let Some(body) = worker.drained(&moment).or_else(|| worker.lost(&moment)) {
            self.crew_event(id, body, by, Vec::new())?;
            self.release_all(id, by)?;
        } else if let Some(due) = worker.due_ms(&self.limits) {
            self.holding.agenda.put(due.max(moment.now_ms + 1), Due::Worker(id.to_owned()));
        }
        Ok(())
    }
}

fn no_worker(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no worker `{id}` is registered"))
        .hint("register it with worker_register")
}
