//! Tasks in memory, and the indexes over them: the queue, who holds what, live unique keys, claims that wait.
//!
//! Invariants:
//! - the indexes say what the tasks say: each changes with the task's event;
//! - running tasks are here, and so is whatever the state has not folded yet; other tasks are an entry in the queue at
//!   most, and are loaded when they are claimed.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    block::Cid,
    event::{Actor, Body, Event},
    ledger::{
        Ruling,
        holding::{
            agenda::{Agenda, Due},
            crew::Crew,
        },
        work::Hand,
    },
    queue::{Class, Queue, Waiting},
    task::{Status, Task},
};

/// Waiting tasks kept whole in memory; the others are an entry in the queue's index, and loaded when they are claimed.
const WAITING_KEPT: usize = 16 * 1024;
/// Bytes of input kept beside a waiting task.
const INPUT_KEPT: usize = 4 * 1024;

#[derive(Default)]
pub struct Tasks {
    pub live: HashMap<String, Live>,
    /// Tasks in memory by the seq of their submission, as the queue names them.
    pub numbers: HashMap<u64, String>,
    pub queue: Queue,
    /// Tasks each worker holds.
    pub held: HashMap<String, BTreeSet<String>>,
    /// Live unique keys of tasks in memory.
    pub unique: HashMap<String, String>,
    /// Claims that wait for work, in the order they came.
    pub parked: VecDeque<Parked>,
    /// Committed claims whose answer reached nobody, as task ids with fences.
    pub unheard: Vec<(String, u64)>,
    /// Whether a task may have become available to a waiting claim.
    pub fresh: bool,
    /// Tasks in the order they were touched. A task may leave memory once the state has folded its last event.
    touched: VecDeque<(u64, String)>,
}

/// A task, and its input where that is small.
pub struct Live {
    pub task: Task,
    pub input: Option<Arc<str>>,
}

/// A claim that waits for work.
pub struct Parked {
    pub worker: String,
    pub max: usize,
    pub hand: Option<Hand>,
    pub capabilities: Arc<BTreeSet<String>>,
    pub until_ms: u64,
    pub actor: Actor,
    pub cause: Option<Cid>,
    pub reply: oneshot::Sender<Ruling>,
}

/// What the indexes hold of a task.
#[derive(PartialEq)]
struct Standing {
    waits: Option<(i64, u64)>,
    worker: Option<String>,
    due_ms: Option<u64>,
}

impl Standing {
    fn of(task: &Task) -> Self {
        Self {
            waits: waits(task).then_some((task.facts.order, task.ready_ms)),
            worker: holder(task).map(str::to_owned),
            due_ms: task.due_ms(),
        }
    }
}

/// Returns the worker that holds the lease on a task.
fn holder(task: &Task) -> Option<&str> {
    let lease = task.lease.as_ref().filter(|_| task.status == Status::Running);
    lease.map(|lease| lease.worker.as_str())
}

/// The worker that an event gives a task to.
fn claimant(body: &Body) -> Option<&String> {
    match body {
        Body::TaskClaimed(facts) => Some(&facts.worker),
        _ => None,
    }
}

/// Returns whether a task is in the queue.
fn waits(task: &Task) -> bool {
    task.status == Status::Queued && task.facts.hold.is_none()
}

impl Tasks {
    /// Takes a task into memory, and into the indexes if it is not in them yet.
    pub fn keep(&mut self, task: Task, input: Option<Arc<str>>) {
        let input = input.filter(|input| input.len() <= INPUT_KEPT);
        self.touched.push_back((task.last_seq, task.id.clone()));
        self.numbers.insert(task.seq, task.id.clone());
        self.live.insert(task.id.clone(), Live { task, input });
    }

    /// Takes a new task into memory and into the queue.
    pub fn enter(&mut self, task: Task, input: Option<Arc<str>>, agenda: &mut Agenda, now_ms: u64) {
        self.index(&task, agenda, now_ms);
        if let Some(key) = &task.facts.unique_key {
            self.unique.insert(key.clone(), task.id.clone());
        }
        self.keep(task, input);
    }

    /// Keeps a claim until there is work for it.
    pub fn park(&mut self, parked: Parked, agenda: &mut Agenda) {
        agenda.put(parked.until_ms, Due::Claims);
        self.parked.push_back(parked);
    }

    /// Puts a task that is in none of them into the indexes it belongs to.
    pub fn index(&mut self, task: &Task, agenda: &mut Agenda, now_ms: u64) {
        if waits(task) {
            let class = class(task);
            self.queue.put(waiting(task, &class), now_ms);
            self.fresh = true;
        }
        if let Some(worker) = holder(task) {
            self.held.entry(worker.to_owned()).or_default().insert(task.id.clone());
            if let Some(key) = &task.facts.concurrency_key {
                self.queue.held(key);
            }
        }
        if let Some(due) = task.due_ms() {
            agenda.put(due, Due::Task(task.id.clone()));
        }
    }

    /// Folds an event of a task and brings the indexes up to date.
    pub fn apply(&mut self, id: &str, body: &Body, event: &Event, crew: &mut Crew, agenda: &mut Agenda) {
        let now_ms = event.fields().at_ms();
        let Some(live) = self.live.get_mut(id) else { return };
        let before = Standing::of(&live.task);
        let class = class(&live.task);
        if before.waits.is_some() {
            self.queue.remove(&waiting(&live.task, &class));
        }
        if let Some(worker) = before.worker.as_ref().or(claimant(body)) {
            crew.apply_task(worker, body, agenda);
        }
        live.task.apply_body(body, event);
        if let (Body::TaskRetried(_), Some(key)) = (body, &live.task.facts.unique_key) {
            self.unique.insert(key.clone(), id.to_owned());
        }
        let after = Standing::of(&live.task);
        let task = &live.task;
        if before.worker != after.worker {
            if let Some(worker) = before.worker {
                if let Some(held) = self.held.get_mut(&worker) {
                    held.remove(id);
                }
                if let Some(key) = &task.facts.concurrency_key {
                    self.queue.freed(key);
                }
                self.fresh = true;
            }
            if let Some(worker) = &after.worker {
                self.held.entry(worker.clone()).or_default().insert(id.to_owned());
            }
        }
        if after.waits.is_some() {
            self.queue.put(waiting(task, &class), now_ms);
            self.fresh = true;
        }
        if let Some(due) = after.due_ms.filter(|_| before.due_ms != after.due_ms) {
            agenda.put(due, Due::Task(id.to_owned()));
        }
        self.touched.push_back((task.last_seq, id.to_owned()));
    }

    /// Removes the input that was kept of an erased payload.
    pub fn erase(&mut self, payload: &Cid) {
        for live in self.live.values_mut() {
            if live.task.input.is_some_and(|input| input.cid == *payload) {
                live.input = None;
            }
        }
    }

    /// Returns how many tasks of its kind stand before a waiting task.
    pub fn position(&self, task: &Task) -> Option<u64> {
        waits(task).then(|| self.queue.position(&waiting(task, &class(task))))
    }

    /// Returns the processes that hold attempts, one name for each attempt.
    pub fn runners(&self) -> impl Iterator<Item = String> {
        let running = self.live.values().filter(|live| live.task.status == Status::Running);
        running.filter_map(|live| live.task.lease.as_ref().and_then(|lease| lease.runner.clone()))
    }

    /// Drops the tasks that the state has folded, save those that run and a bounded number of those that wait.
    pub fn forget(&mut self, applied: u64) {
        while let Some((seq, _)) = self.touched.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.touched.pop_front() else { return };
            let Some(live) = self.live.get(&id) else { continue };
            // A later event of the same task stands further back in the line.
            if live.task.last_seq != seq {
                continue;
            }
            let near = waits(&live.task) && self.live.len() <= WAITING_KEPT;
            if live.task.status == Status::Running || near {
                continue;
            }
            let Some(live) = self.live.remove(&id) else { continue };
            self.numbers.remove(&live.task.seq);
            if let Some(key) = &live.task.facts.unique_key
                && self.unique.get(key) == Some(&id)
            {
                self.unique.remove(key);
            }
        }
    }
}

fn class(task: &Task) -> Class {
    Class::new(task.facts.task_type.clone(), task.facts.requires.iter().cloned())
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
