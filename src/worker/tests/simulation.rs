//! Thousands of random histories of tasks, the queue and workers: every rule is asked as the node would ask it.
//!
//! Workers vanish, come back late, complete twice and lie; the clock jumps; nodes restart and put the queue together
//! again from the tasks. A failing history names its seed.

mod promises;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    event::{
        PayloadRef, Role,
        work::{RetryPolicy, TaskSubmitted},
    },
    queue::{Class, Queue, Rate, Rates, Waiting},
    task::{self, Completed, Status as Stands, Submitted, Task, chance::Chance},
};

const HISTORIES: u64 = 2000;
const TURNS: u64 = 100;
/// Rounds in which everything that waits can be done.
const ROUNDS: u64 = 30;
const TYPES: [&str; 3] = ["mail", "sms", "fax"];
const TAGS: [&str; 3] = ["red", "blue", "nightly"];
/// What the contract and the payloads of a history are named by.
pub(crate) const CONTENTS: [&str; 3] = ["contract", "input", "output"];

/// What a worker believes to have.
#[derive(Clone, Debug)]
struct Attempt {
    task: String,
    worker: String,
    fence: u64,
}

struct World {
    seed: u64,
    chance: Chance,
    now_ms: u64,
    seen_ms: u64,
    runner: u64,
    queue: Queue,
    tasks: BTreeMap<String, Task>,
    workers: BTreeMap<String, Worker>,
    /// The log.
    events: Vec<Event>,
    /// Where in the log the events of each task stand.
    log: BTreeMap<String, Vec<usize>>,
    beliefs: Vec<Attempt>,
    /// Tasks whose cancel was answered.
    barred: BTreeSet<String>,
    succeeded: BTreeSet<String>,
    rate_until_ms: BTreeMap<String, u64>,
}

fn class(task: &Task) -> Class {
    Class::new(task.facts.task_type.clone(), task.facts.requires.clone())
}

fn waiting<'a>(task: &'a Task, class: &'a Class) -> Waiting<'a> {
    Waiting {
        seq: task.seq,
        order: task.facts.order,
        ready_ms: task.ready_ms,
        class,
        concurrency_key: task.facts.concurrency_key.as_deref(),
        rate_key: task.facts.rate_key.as_deref(),
    }
}

fn rates() -> Rates {
    Rates { default: None, keys: [("api".to_owned(), Rate { interval_ms: 60, burst: 2 })].into() }
}

fn pay(text: &str, role: Role) -> PayloadRef {
    PayloadRef { cid: cid(text), len: 1, role }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            chance: Chance::seeded(seed),
            now_ms: 10_000,
            seen_ms: 10_000,
            runner: 0,
            queue: Queue::new(rates()),
            tasks: BTreeMap::new(),
            workers: BTreeMap::new(),
            events: Vec::new(),
            log: BTreeMap::new(),
            beliefs: Vec::new(),
            barred: BTreeSet::new(),
            succeeded: BTreeSet::new(),
            rate_until_ms: BTreeMap::new(),
        };
        for (id, capabilities) in [("w0", &TYPES[..2]), ("w1", &TYPES[1..]), ("w2", &["mail", "gpu"])] {
            world.register(id, &ada(), capabilities);
        }
        world.start_node();
        world
    }

    fn moment(&self) -> Moment {
        let limits = Limits { queue_max: 30, ..LIMITS };
        Moment { now_ms: self.now_ms, limits }
    }

    fn place(&self) -> Position {
        let (seq, prev) = (self.events.len() as u64, self.events.last().map(Event::cid));
        Position { log: cid("genesis"), seq, prev, ts: self.now_ms * 1000 }
    }

    fn register(&mut self, id: &str, actor: &Actor, capabilities: &[&str]) {
        let registered = register(self.workers.get(id), id, actor, facts(capabilities, 3));
        if let Ok(Registered::New(facts)) = registered {
            self.commit_worker(id, actor, Body::WorkerRegistered(facts));
        }
    }

    fn commit_worker(&mut self, id: &str, actor: &Actor, body: Body) {
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: actor.clone(),
            subject: subject(id),
            tool: None,
            payloads: Vec::new(),
            body,
        };
        let event = Event::seal(fact, self.place()).expect("a small fact");
        match self.workers.get_mut(id) {
            Some(worker) => worker.apply(&event),
            None => {
                self.workers.extend(Worker::begun(&event).map(|worker| (id.to_owned(), worker)));
            }
        }
        self.events.push(event);
    }

    /// Records what a rule answered, and lets the queue and the worker follow.
    fn commit(&mut self, id: &str, bodies: Vec<Body>) {
        for body in bodies {
            let place = self.place();
            let task = self.tasks.get_mut(id).expect("rules answer for tasks that there are");
            let before = task.clone();
            let payloads = match &body {
                Body::TaskSucceeded(_) => vec![pay("output", Role::Output)],
                _ => Vec::new(),
            };
            let event = Event::seal(task.fact(body.clone(), ada(), None, Vec::new(), payloads), place);
            let event = event.expect("a small fact");
            task.apply_body(&body, &event);
            let after = task.clone();
            self.log.entry(id.to_owned()).or_default().push(self.events.len());
            self.events.push(event);
            self.follow(&before, &after, &body);
            self.check(&before, &after, &body);
        }
    }

    fn follow(&mut self, before: &Task, after: &Task, body: &Body) {
        let holder = before.lease.as_ref().or(after.lease.as_ref());
        if let Some(worker) = holder.and_then(|lease| self.workers.get_mut(&lease.worker)) {
            worker.apply_task(body);
        }
        let class = class(after);
        if before.status == Stands::Queued {
            self.queue.remove(&waiting(before, &class));
        }
        if before.status == Stands::Running && after.status != Stands::Running {
            after.facts.concurrency_key.iter().for_each(|key| self.queue.freed(key));
        }
        if after.status == Stands::Queued {
            self.queue.put(waiting(after, &class), self.now_ms);
        }
    }

    fn submit(&mut self) {
        let id = format!("t{}", self.chance.below(40));
        let chance = &mut self.chance;
        let task_type = TYPES[chance.below(3) as usize];
        let retry = RetryPolicy {
            max_retries: chance.below(3),
            backoff_ms: chance.below(50),
            factor_milli: 2000,
            max_backoff_ms: 100,
            jitter: chance.one_in(2),
        };
        let facts = TaskSubmitted {
            priority: chance.below(101),
            not_before_ms: chance.one_in(5).then(|| self.now_ms + chance.below(300)),
            timeout_ms: chance.one_in(4).then(|| 1 + chance.below(150)),
            retry,
            tags: TAGS.into_iter().filter(|_| chance.one_in(4)).map(str::to_owned).collect(),
            requires: if chance.one_in(6) { vec!["gpu".into()] } else { Vec::new() },
            unique_key: chance.one_in(4).then(|| format!("only {id}")),
            concurrency_key: chance.one_in(3).then(|| ["a", "b"][chance.below(2) as usize].to_owned()),
            rate_key: chance.one_in(4).then(|| "api".to_owned()),
            repeatable: chance.one_in(2),
            ..TaskSubmitted::plain(task_type)
        };
        let tool = chance.one_in(2).then(|| cid("contract"));
        let (waiting_now, moment) = (self.queue.len() as u64, self.moment());
        let input = pay("input", Role::Input);
        let Ok(Submitted::New(facts)) =
            task::submit(self.tasks.get(&id), &id, facts, &input, waiting_now, &moment)
        else {
            return;
        };
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: ada(),
            subject: task::subject(&id),
            tool,
            payloads: vec![input],
            body: Body::TaskSubmitted(*facts),
        };
        let event = Event::seal(fact, self.place()).expect("a small fact");
        let task = Task::begun(&event).expect("it begins a task");
        let class = class(&task);
        self.queue.put(waiting(&task, &class), self.now_ms);
        self.tasks.insert(id.clone(), task);
        self.log.insert(id, vec![self.events.len()]);
        self.events.push(event);
    }

    fn claim(&mut self, id: &str, wanted: u64) {
        let worker = &self.workers[id];
        let actor = worker.actor.clone();
        let Ok(back) = worker.called_by(&actor) else {
            return;
        };
        back.into_iter().for_each(|body| self.commit_worker(id, &actor, body));
        let now_ms = self.now_ms;
        self.workers.get_mut(id).expect("it was there").heard(now_ms);
        let worker = &self.workers[id];
        let capabilities: BTreeSet<String> = worker.facts.capabilities.iter().cloned().collect();
        let runner = id.strip_prefix(NODE_PREFIX).map(str::to_owned);
        for _ in 0..worker.may_take(wanted) {
            let Some(taken) = self.queue.take(&capabilities, now_ms) else {
                return;
            };
            let task = self.tasks.values().find(|task| task.seq == taken.seq).expect("the queue lists tasks");
            self.check_first(task, &capabilities);
            let (task_id, fence) = (task.id.clone(), task.fence + 1);
            if let (Some(key), Some(until_ms)) = (&task.facts.rate_key, taken.rate_until_ms) {
                self.rate_until_ms.insert(key.clone(), until_ms);
            }
            let claim = task.claim(id, runner.as_deref(), taken.rate_until_ms, &self.moment());
            self.commit(&task_id, vec![Body::TaskClaimed(claim)]);
            self.beliefs.push(Attempt { task: task_id, worker: id.to_owned(), fence });
        }
    }

    /// A worker says something about what it believes to have, or about what it makes up.
    fn speak(&mut self) {
        let Some(mut said) = self.chance.pick(&self.beliefs).cloned() else {
            return;
        };
        if self.chance.one_in(10) {
            said.fence += self.chance.below(3);
            said.worker = format!("w{}", self.chance.below(3));
        }
        let (task, moment) = (&self.tasks[&said.task], self.moment());
        let told = match self.chance.below(4) {
            0 => task
                .renew(&said.worker, said.fence, None, &moment)
                .map(|facts| vec![Body::TaskRenewed(facts)]),
            1 => {
                let retryable = !self.chance.one_in(4);
                task.fail(&said.worker, said.fence, "unavailable", retryable, &moment)
            }
            _ => task.complete(&said.worker, said.fence, &pay("output", Role::Output)).map(|completed| {
                match completed {
                    Completed::New(body) => vec![body],
                    Completed::Known => Vec::new(),
                }
            }),
        };
        let holds =
            task.lease.as_ref().is_some_and(|lease| lease.worker == said.worker) && task.fence == said.fence;
        assert!(told.is_err() || holds, "seed {}: {said:?} does not hold it", self.seed);
        self.commit(&said.task, told.unwrap_or_default());
    }

    /// Somebody changes a task.
    fn change(&mut self) {
        let ids: Vec<String> = self.tasks.keys().cloned().collect();
        let Some(id) = self.chance.pick(&ids).cloned() else {
            return;
        };
        let (task, moment) = (&self.tasks[&id], self.moment());
        let told = match self.chance.below(7) {
            0..=1 => {
                let told = task.cancel(self.chance.one_in(2));
                self.barred.extend(told.is_ok().then(|| id.clone()));
                told
            }
            2 => task.reprioritise(self.chance.below(101), &moment).map(|body| vec![body]),
            3 => Ok(task.clear().into_iter().collect()),
            4 => Ok(task.unheard(task.fence).into_iter().collect()),
            _ => task.retry(None, None, &moment).map(|body| vec![body]),
        };
        self.commit(&id, told.unwrap_or_default());
    }

    /// What the time says: of leases, attempts and workers.
    fn tick(&mut self) {
        let moment = self.moment();
        let lapses: Vec<_> = self.tasks.iter().map(|(id, task)| (id.clone(), task.lapse(&moment))).collect();
        lapses.into_iter().for_each(|(id, bodies)| self.commit(&id, bodies));
        let ids: Vec<String> = self.workers.keys().cloned().collect();
        for id in ids {
            let worker = &self.workers[&id];
            let actor = worker.actor.clone();
            match (worker.drained(&moment), worker.lost(&moment)) {
                (Some(left), _) => self.leave(&id, &actor, vec![left]),
                (None, lost) => lost.into_iter().for_each(|body| self.commit_worker(&id, &actor, body)),
            }
        }
    }

    fn leave(&mut self, id: &str, actor: &Actor, bodies: Vec<Body>) {
        for body in bodies {
            let gone = matches!(body, Body::WorkerUnregistered(_));
            self.commit_worker(id, actor, body);
            if gone {
                self.each_held_by(id, |task, moment| task.release(moment));
                assert_eq!(self.workers[id].running, 0, "seed {}: {id} has left", self.seed);
            }
        }
    }

    fn each_held_by(&mut self, worker: &str, rule: impl Fn(&Task, &Moment) -> Vec<Body>) {
        let moment = self.moment();
        let held = self.tasks.iter().filter(|(_, task)| {
            task.status == Stands::Running && task.lease.as_ref().is_some_and(|lease| lease.worker == worker)
        });
        let told: Vec<_> = held.map(|(id, task)| (id.clone(), rule(task, &moment))).collect();
        told.into_iter().for_each(|(id, bodies)| self.commit(&id, bodies));
    }

    fn start_node(&mut self) {
        self.runner += 1;
        let id = format!("{NODE_PREFIX}r{}", self.runner);
        self.register(&id, &actor("cairn", "system"), &["mail", "sms", "fax", "gpu", "x", "y"]);
    }

    /// The process ends; the next one folds the log, voids what this one ran, and fills its queue.
    fn restart(&mut self) {
        for (id, places) in &self.log {
            let mut events = places.iter().map(|at| &self.events[*at]);
            let task = events.next().and_then(Task::begun);
            let mut task = task.expect("a task has a submission");
            events.for_each(|event| task.apply(event));
            assert_eq!(task, self.tasks[id], "seed {}: the fold is what was live", self.seed);
        }
        let old = format!("{NODE_PREFIX}r{}", self.runner);
        self.queue = Queue::new(rates());
        let mut tasks: Vec<&Task> = self.tasks.values().collect();
        tasks.sort_by_key(|task| (task.facts.order, task.seq));
        for task in tasks {
            match (task.status, &task.facts.concurrency_key) {
                (Stands::Queued, _) => self.queue.put(waiting(task, &class(task)), self.now_ms),
                (Stands::Running, Some(key)) => self.queue.held(key),
                _ => {}
            }
        }
        for (key, until_ms) in &self.rate_until_ms {
            self.queue.charged(key, *until_ms, self.now_ms);
        }
        let now_ms = self.now_ms;
        self.workers.values_mut().for_each(|worker| worker.heard(now_ms));
        self.each_held_by(&old, |task, moment| task.interrupt(moment));
        let system = actor("cairn", "system");
        let left = self.workers[&old].unregister(&system).expect("the node may send its own away");
        self.leave(&old, &system, left);
        self.start_node();
    }

    fn turn(&mut self) {
        let ids: Vec<String> = self.workers.keys().cloned().collect();
        let id = self.chance.pick(&ids).cloned().expect("there are workers");
        match self.chance.below(24) {
            0..=5 => self.submit(),
            6..=11 => self.claim(&id, 2),
            12..=16 => self.speak(),
            17..=18 => self.change(),
            19..=20 => self.pass(),
            21 => self.tick(),
            22 if self.chance.one_in(3) => self.restart(),
            22 => match self.queue.paused() {
                true => self.queue.resume(),
                false => self.queue.pause(),
            },
            _ => {
                let (actor, moment) = (self.workers[&id].actor.clone(), self.moment());
                let told = self.workers[&id].drain(&actor, 100, &moment);
                self.leave(&id, &actor, told.expect("it is its own actor"));
                let client = id.starts_with('w') && self.chance.one_in(2);
                client.then(|| self.register(&id, &actor, &TYPES));
            }
        }
    }

    /// Time passes, in steps or leaps, now and then backwards.
    fn pass(&mut self) {
        self.now_ms = match self.chance.below(8) {
            0 => self.now_ms + self.chance.below(2000),
            1 => self.now_ms - self.chance.below(500),
            _ => self.now_ms + self.chance.below(60),
        };
        self.seen_ms = self.seen_ms.max(self.now_ms);
    }

    /// Everybody goes on until nothing is left: no task is lost.
    fn finish(&mut self) {
        self.restart();
        self.queue.resume();
        self.now_ms = self.seen_ms;
        let node = format!("{NODE_PREFIX}r{}", self.runner);
        for _ in 0..ROUNDS {
            self.now_ms += 1000;
            self.seen_ms = self.now_ms;
            self.tick();
            self.claim(&node, 3);
            let mine = self.tasks.values().filter(|task| task.status == Stands::Running);
            let mine: Vec<_> = mine.map(|task| (task.id.clone(), task.fence)).collect();
            for (id, fence) in mine {
                let completed = self.tasks[&id].complete(&node, fence, &pay("output", Role::Output));
                if let Ok(Completed::New(body)) = completed {
                    self.commit(&id, vec![body]);
                }
            }
        }
        let left: Vec<_> = self.tasks.values().filter(|task| !task.status.ended()).collect();
        assert!(left.is_empty(), "seed {}: {left:?}", self.seed);
        assert!(self.queue.is_empty(), "seed {}", self.seed);
        assert_eq!(self.queue.next_ms().filter(|ms| *ms <= self.now_ms), None, "seed {}", self.seed);
    }
}

/// The events of one history, from the first of its log on.
pub(crate) fn history(seed: u64, turns: u64) -> Vec<Event> {
    let mut world = World::new(seed);
    (0..turns).for_each(|_| world.turn());
    world.finish();
    world.events
}

#[test]
fn no_history_breaks_a_promise() {
    let mut ends = BTreeMap::<&str, u64>::new();
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        (0..TURNS).for_each(|_| world.turn());
        world.finish();
        world.tasks.values().for_each(|task| *ends.entry(task.status.as_str()).or_default() += 1);
    }
    let missing = Stands::ALL.iter().filter(|status| status.ended() && !ends.contains_key(status.as_str()));
    assert_eq!(missing.count(), 0, "histories reach every ending: {ends:?}");
}
