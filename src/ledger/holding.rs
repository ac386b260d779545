//! The entities of durable work that the rules need at once: what waits, what runs, what is due.
//!
//! Invariants:
//! - whatever the state has not folded yet is here; what is neither running nor waiting nearby is loaded when it is needed;
//! - everything here comes back from the log at start.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    block::Cid,
    event::{Body, Event},
    ledger::{Ruling, work::Hand},
    peer::Peer,
    queue::{Class, Queue, Waiting},
    schedule::Schedule,
    task::{Status, Task},
    worker::{Presence, Worker},
    workflow::run::Run,
};

/// Waiting tasks kept whole in memory; the others are an entry in the queue's index, and loaded when they are claimed.
const WAITING_KEPT: usize = 16 * 1024;
/// Bytes of input kept beside a waiting task.
const INPUT_KEPT: usize = 4 * 1024;
/// Bytes of step outputs kept for the steps that read them.
const CONTENTS_KEPT: usize = 32 * 1024 * 1024;
/// Bytes of text that are kept parsed: as values they take several times that.
const PARSED_KEPT: usize = 8 * 1024 * 1024;

#[derive(Default)]
pub struct Holding {
    pub tasks: HashMap<String, Live>,
    /// Tasks in memory by the seq of their submission, as the queue names them.
    pub numbers: HashMap<u64, String>,
    pub queue: Queue,
    /// When each entity is to be looked at. An entry may be out of date: the entity decides whether anything is due.
    pub due: BinaryHeap<Reverse<(u64, Due)>>,
    /// Tasks each worker holds.
    pub held: HashMap<String, BTreeSet<String>>,
    /// Live unique keys of tasks in memory.
    pub unique: HashMap<String, String>,
    pub runs: HashMap<String, LiveRun>,
    /// Runs to which something has happened since they last decided.
    pub dirty: Vec<String>,
    /// By run: the runs that wait for it.
    pub dependents: HashMap<String, BTreeSet<String>>,
    pub workers: HashMap<String, Worker>,
    pub schedules: HashMap<String, Timetable>,
    /// Peers that are connected or were heard of lately.
    pub peers: HashMap<String, Peer>,
    pub parked: VecDeque<Parked>,
    /// Committed claims whose answer reached nobody, as task ids with fences.
    pub unheard: Vec<(String, u64)>,
    pub contents: Contents,
    /// Erased inputs of runs and schedules in memory. An input that is recorded again is loaded again.
    pub lost: HashSet<Cid>,
    /// Entities in the order they were touched. An entity may leave memory once the state has folded its last event.
    touched: VecDeque<(u64, String)>,
    /// Runs that have nothing left to do, likewise.
    pub rested: VecDeque<(u64, String)>,
    /// Workers that have left or are lost, likewise.
    pub gone: VecDeque<(u64, String)>,
    /// Whether decisions are being carried out.
    pub advancing: bool,
    /// Whether a task may have become available to a waiting claim.
    pub fresh: bool,
}

/// A task, and its input where that is small.
pub struct Live {
    pub task: Task,
    pub input: Option<Arc<str>>,
}

/// A run, and the event that touched it last.
pub struct LiveRun {
    pub run: Run,
    pub last: Cid,
    pub last_seq: u64,
}

/// A schedule and what it makes. `makes` is `None` while its payload is erased; the schedule does not fire then.
pub struct Timetable {
    pub schedule: Schedule,
    pub makes: Option<super::work::Made>,
}

/// An entity that has something to do at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    Task(String),
    Run(String),
    Worker(String),
    Schedule(String),
    /// The claims that wait.
    Claims,
}

/// A claim that waits for work.
pub struct Parked {
    pub worker: String,
    pub max: usize,
    pub hand: Option<Hand>,
    pub capabilities: Arc<BTreeSet<String>>,
    pub until_ms: u64,
    pub actor: crate::event::Actor,
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

impl Holding {
    /// Takes a task into memory, and into the indexes if it is not in them yet.
    pub fn keep(&mut self, task: Task, input: Option<Arc<str>>) {
        let input = input.filter(|input| input.len() <= INPUT_KEPT);
        self.touched.push_back((task.last_seq, task.id.clone()));
        self.numbers.insert(task.seq, task.id.clone());
        self.tasks.insert(task.id.clone(), Live { task, input });
    }

    /// Takes a new task into memory and into the queue.
    pub fn enter(&mut self, task: Task, input: Option<Arc<str>>, now_ms: u64) {
        self.index(&task, now_ms);
        if let Some(key) = &task.facts.unique_key {
            self.unique.insert(key.clone(), task.id.clone());
        }
        self.keep(task, input);
    }

    /// Keeps a claim until there is work for it.
    pub fn park(&mut self, parked: Parked) {
        self.due.push(Reverse((parked.until_ms, Due::Claims)));
        self.parked.push_back(parked);
    }

    /// Puts a task that is in none of them into the indexes it belongs to.
    pub fn index(&mut self, task: &Task, now_ms: u64) {
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
            self.due.push(Reverse((due, Due::Task(task.id.clone()))));
        }
    }

    /// Folds an event of a task and brings the indexes up to date.
    pub fn apply(&mut self, id: &str, body: &Body, event: &Event, now_ms: u64) {
        let Some(live) = self.tasks.get_mut(id) else { return };
        let before = Standing::of(&live.task);
        let class = class(&live.task);
        if before.waits.is_some() {
            self.queue.remove(&waiting(&live.task, &class));
        }
        if let Some(worker) =
            before.worker.as_ref().or(claimant(body)).and_then(|id| self.workers.get_mut(id))
        {
            worker.apply_task(body);
            if worker.running == 0 && matches!(worker.presence, Presence::Draining { .. }) {
                // Its last task has ended: it leaves at the next look.
                self.due.push(Reverse((0, Due::Worker(worker.id.clone()))));
            }
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
            self.due.push(Reverse((due, Due::Task(id.to_owned()))));
        }
        self.touched.push_back((task.last_seq, id.to_owned()));
    }

    /// Takes a worker into memory.
    pub fn hold_worker(&mut self, mut worker: Worker) {
        worker.running = self.held.get(&worker.id).map_or(0, |held| held.len() as u64);
        if matches!(worker.presence, Presence::Lost | Presence::Unregistered) {
            self.gone.push_back((worker.last_seq, worker.id.clone()));
        }
        self.workers.insert(worker.id.clone(), worker);
    }

    /// Removes an erased payload from all of memory.
    pub fn erase(&mut self, payload: &Cid) {
        self.contents.erase(payload);
        for live in self.tasks.values_mut() {
            if live.task.input.is_some_and(|input| input.cid == *payload) {
                live.input = None;
            }
        }
        for live in self.runs.values_mut() {
            if live.run.input.is_some_and(|input| input.cid == *payload) {
                live.run.inputs = Arc::new(Value::Null);
                self.lost.insert(*payload);
            }
        }
        for (id, timetable) in &mut self.schedules {
            if timetable.schedule.input.is_some_and(|input| input.cid == *payload) {
                timetable.makes = None;
                self.lost.insert(*payload);
                tracing::warn!(schedule = id, "what the schedule makes was erased; it does not fire");
            }
        }
    }

    /// Returns how many tasks of its kind stand before a waiting task.
    pub fn position(&self, task: &Task) -> Option<u64> {
        waits(task).then(|| self.queue.position(&waiting(task, &class(task))))
    }

    /// Processes that hold attempts.
    pub fn runners(&self) -> impl Iterator<Item = String> {
        let running = self.tasks.values().filter(|live| live.task.status == Status::Running);
        let linked = self.peers.values().filter_map(|peer| peer.link.as_ref());
        running
            .filter_map(|live| live.task.lease.as_ref().and_then(|lease| lease.runner.clone()))
            .chain(linked.map(|link| link.runner.clone()))
    }

    /// Drops from memory up to `count` unconnected peers that the state has folded, those heard of longest ago first.
    pub fn leave_peers(&mut self, count: usize, applied: u64) {
        let left = self.peers.values().filter(|peer| peer.link.is_none() && peer.last_seq < applied);
        let mut left: Vec<(u64, String)> = left.map(|peer| (peer.last_seq, peer.id.clone())).collect();
        left.sort_unstable();
        for (_, id) in left.into_iter().take(count) {
            self.peers.remove(&id);
        }
    }

    /// The next moment at which something is due.
    pub fn next_ms(&self) -> Option<u64> {
        let due = self.due.peek().map(|Reverse((at, _))| *at);
        [due, self.queue.next_ms()].into_iter().flatten().min()
    }

    /// Drops from memory what the state has folded and no rule needs at once.
    pub fn forget(&mut self, applied: u64) {
        while let Some((seq, _)) = self.touched.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.touched.pop_front() else { return };
            let Some(live) = self.tasks.get(&id) else { continue };
            // A later event of the same task stands further back in the line.
            if live.task.last_seq != seq {
                continue;
            }
            let near = waits(&live.task) && self.tasks.len() <= WAITING_KEPT;
            if live.task.status == Status::Running || near {
                continue;
            }
            let Some(live) = self.tasks.remove(&id) else { continue };
            self.numbers.remove(&live.task.seq);
            if let Some(key) = &live.task.facts.unique_key
                && self.unique.get(key) == Some(&id)
            {
                self.unique.remove(key);
            }
        }
        while let Some((seq, _)) = self.gone.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.gone.pop_front() else { return };
            // What it held was released when it went.
            if self.workers.get(&id).is_some_and(|worker| worker.last_seq == seq) {
                self.workers.remove(&id);
                self.held.remove(&id);
            }
        }
        while let Some((seq, _)) = self.rested.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.rested.pop_front() else { return };
            if self.runs.get(&id).is_some_and(|live| live.run.at_rest() && live.last_seq == seq) {
                self.runs.remove(&id);
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

/// A bounded cache of the contents that steps may read; the oldest go first.
#[derive(Default)]
pub struct Contents {
    texts: HashMap<Cid, Arc<str>>,
    order: VecDeque<Cid>,
    bytes: usize,
    parsed: RefCell<Parsed>,
}

/// A bounded cache of parsed contents, with the bytes of text they came from.
#[derive(Default)]
struct Parsed {
    values: HashMap<Cid, Arc<Value>>,
    bytes: usize,
}

impl Contents {
    pub fn get(&self, payload: &Cid) -> Option<Arc<str>> {
        self.texts.get(payload).cloned()
    }

    /// Returns the parsed content of a payload, if it is in the cache.
    pub fn parsed(&self, payload: &Cid) -> Option<Arc<Value>> {
        self.parsed.borrow().values.get(payload).cloned()
    }

    /// Caches the value that a text of `len` bytes was parsed to.
    pub fn keep_parsed(&self, payload: Cid, value: Arc<Value>, len: usize) {
        let mut parsed = self.parsed.borrow_mut();
        if parsed.bytes + len > PARSED_KEPT {
            *parsed = Parsed::default();
        }
        if len <= PARSED_KEPT && parsed.values.insert(payload, value).is_none() {
            parsed.bytes += len;
        }
    }

    /// Removes an erased content.
    fn erase(&mut self, payload: &Cid) {
        if let Some(text) = self.texts.remove(payload) {
            self.bytes -= text.len();
            self.order.retain(|kept| kept != payload);
        }
        // How long its text was is not known any more.
        self.parsed = RefCell::default();
    }

    pub fn put(&mut self, payload: Cid, text: Arc<str>) {
        if text.len() > CONTENTS_KEPT / 4 || self.texts.contains_key(&payload) {
            return;
        }
        self.bytes += text.len();
        self.order.push_back(payload);
        self.texts.insert(payload, text);
        while self.bytes > CONTENTS_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.texts.remove(&oldest).map_or(0, |text| text.len());
        }
    }
}
