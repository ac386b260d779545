//! The queue: which tasks wait, and which of them a worker gets next.
//!
//! Invariants:
//! - derived, never written: it is put together from the waiting tasks at start, and thrown away;
//! - every line is ordered by (order, seq), so what a worker gets is the first of all it may take;
//! - a concurrency key that is taken, or a rate key that is closed, lets none of its tasks stand in a line;
//! - a waiting task costs about twenty bytes, a hundred more with a key, and a key that waits about four hundred.

mod keys;
mod sorted;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use self::{
    keys::{Gates, Keys},
    sorted::Sorted,
};

/// What a worker must be able to do for a task: two tasks of one class can be done by the same workers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    pub task_type: String,
    /// Ascending.
    pub requires: Vec<String>,
}

/// A waiting task, as its entity tells it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub seq: u64,
    pub order: i64,
    /// When it may next run.
    pub ready_ms: u64,
    pub class: &'a Class,
    pub concurrency_key: Option<&'a str>,
    pub rate_key: Option<&'a str>,
}

/// A task that left the queue for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub seq: u64,
    /// When its rate key next allows one, where that is bounded.
    pub rate_until_ms: Option<u64>,
}

/// How often tasks of one rate key may start: `burst` at once, then one an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub interval_ms: u64,
    pub burst: u64,
}

/// The rates of keys; a key without one is not bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Of the keys that are not named.
    pub default: Option<Rate>,
    pub keys: BTreeMap<String, Rate>,
}

/// The waiting tasks, in memory.
#[derive(Debug, Default)]
pub struct Queue {
    /// By index; an index is used again once its class is empty.
    lines: Vec<ClassLine>,
    vacant: Vec<u32>,
    index: HashMap<Class, u32>,
    by_type: HashMap<String, Vec<u32>>,
    /// The keys of the tasks that have any.
    keyed: HashMap<u64, Keys>,
    gates: Gates,
    /// Tasks whose time has not come.
    later: Sorted<Later>,
    len: usize,
    paused: bool,
}

/// A place in a line: lower runs sooner.
type Place = (i64, u64);

/// The tasks of one class whose time has come.
#[derive(Debug, Default)]
struct ClassLine {
    class: Option<Class>,
    free: Sorted<Place>,
    /// All that have keys.
    keyed: Sorted<Place>,
    /// The first of each of their lines that is open: these can be taken.
    heads: Sorted<Place>,
    /// Waiting tasks of the class, those for later among them.
    len: usize,
}

/// A task for later; everything but its keys, which stand in `keyed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Later {
    ready_ms: u64,
    seq: u64,
    order: i64,
    class: u32,
}

impl Class {
    pub fn new(task_type: impl Into<String>, requires: impl IntoIterator<Item = String>) -> Self {
        let requires: BTreeSet<String> = requires.into_iter().collect();
        Self { task_type: task_type.into(), requires: requires.into_iter().collect() }
    }

    fn suits(&self, capabilities: &BTreeSet<String>) -> bool {
        self.requires.iter().all(|word| capabilities.contains(word))
    }
}

impl Queue {
    pub fn new(rates: Rates) -> Self {
        Self { gates: Gates::new(rates), ..Self::default() }
    }

    /// Puts a task in its line. Rows in their order fill the lines fastest.
    pub fn put(&mut self, task: Waiting<'_>, now_ms: u64) {
        let class = self.enter(task.class);
        if let Some(keys) = self.gates.keys(&task) {
            self.keyed.insert(task.seq, keys);
        }
        match task.ready_ms > now_ms {
            true => {
                let Waiting { seq, order, ready_ms, .. } = task;
                self.later.insert(Later { ready_ms, seq, order, class });
            }
            false => self.line_up(class, (task.order, task.seq)),
        }
    }

    /// Takes a task out, where it waits: the same data that it was put in with.
    pub fn remove(&mut self, task: &Waiting<'_>) -> bool {
        let Some(&class) = self.index.get(task.class) else {
            return false;
        };
        let Waiting { seq, order, ready_ms, .. } = *task;
        if self.later.remove(&Later { ready_ms, seq, order, class }) {
            self.keyed.remove(&seq);
        } else {
            let line = &mut self.lines[class as usize];
            let place = (order, seq);
            if line.keyed.remove(&place) {
                if let Some(keys) = self.keyed.remove(&seq) {
                    self.gates.leave(&mut self.lines, class, &keys, place);
                }
            } else if !line.free.remove(&place) {
                return false;
            }
        }
        self.leave(class);
        true
    }

    /// Takes the first task that a worker of these capabilities can do. Its concurrency key is taken with it, until
    /// [`Queue::freed`]. Nothing while the queue is paused.
    pub fn take(&mut self, capabilities: &BTreeSet<String>, now_ms: u64) -> Option<Taken> {
        if self.paused {
            return None;
        }
        self.wake(now_ms);
        let (place, class) = self.first(capabilities)?;
        let line = &mut self.lines[class as usize];
        let mut taken = Taken { seq: place.1, rate_until_ms: None };
        if !line.free.remove(&place) {
            line.keyed.remove(&place);
            if let Some(keys) = self.keyed.remove(&place.1) {
                taken.rate_until_ms = self.gates.pass(&keys, now_ms);
                self.gates.leave(&mut self.lines, class, &keys, place);
            }
        }
        self.leave(class);
        Some(taken)
    }

    /// A concurrency key is taken by a task that runs already: told at start.
    pub fn held(&mut self, concurrency_key: &str) {
        self.gates.hold(&mut self.lines, concurrency_key);
    }

    /// The task that had a concurrency key runs no more.
    pub fn freed(&mut self, concurrency_key: &str) {
        self.gates.free(&mut self.lines, concurrency_key);
    }

    /// What an earlier claim recorded of its rate key: told at start.
    pub fn charged(&mut self, rate_key: &str, rate_until_ms: u64, now_ms: u64) {
        self.gates.charged(&mut self.lines, rate_key, rate_until_ms, now_ms);
    }

    /// Lines up what has become ready, and opens what was closed until now.
    pub fn wake(&mut self, now_ms: u64) {
        self.gates.wake(&mut self.lines, now_ms);
        while let Some(task) = self.later.first().filter(|task| task.ready_ms <= now_ms) {
            self.later.remove(&task);
            self.line_up(task.class, (task.order, task.seq));
        }
    }

    /// When [`Queue::wake`] next has something to do.
    pub fn next_ms(&self) -> Option<u64> {
        let later = self.later.first().map(|task| task.ready_ms);
        [later, self.gates.next_ms()].into_iter().flatten().min()
    }

    /// How many tasks of its class stand before a task, whether they have keys or not.
    pub fn position(&self, task: &Waiting<'_>) -> u64 {
        let line = self.index.get(task.class).map(|class| &self.lines[*class as usize]);
        let place = (task.order, task.seq);
        line.map_or(0, |line| line.free.rank(&place) + line.keyed.rank(&place)) as u64
    }

    /// Waiting tasks, those for later among them.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn pause(&mut self) {
        self.paused = true;
    }

    pub fn resume(&mut self) {
        self.paused = false;
    }

    pub fn paused(&self) -> bool {
        self.paused
    }

    /// The first place of all classes that these capabilities suit. Looks up the fewer: capabilities or types.
    fn first(&self, capabilities: &BTreeSet<String>) -> Option<(Place, u32)> {
        let best = |classes: &Vec<u32>| {
            let suited = classes.iter().filter_map(|&class| {
                let line = &self.lines[class as usize];
                let suits = line.class.as_ref().is_some_and(|class| class.suits(capabilities));
                line.first().filter(|_| suits).map(|place| (place, class))
            });
            suited.min()
        };
        match capabilities.len() <= self.by_type.len() {
            true => capabilities.iter().filter_map(|word| self.by_type.get(word)).filter_map(best).min(),
            false => {
                let types = self.by_type.iter().filter(|(word, _)| capabilities.contains(*word));
                types.filter_map(|(_, classes)| best(classes)).min()
            }
        }
    }

    fn line_up(&mut self, class: u32, place: Place) {
        let line = &mut self.lines[class as usize];
        match self.keyed.get(&place.1) {
            None => {
                line.free.insert(place);
            }
            Some(keys) => {
                line.keyed.insert(place);
                self.gates.join(&mut self.lines, class, keys, place);
            }
        }
    }

    /// One more task of a class.
    fn enter(&mut self, class: &Class) -> u32 {
        self.len += 1;
        if let Some(&at) = self.index.get(class) {
            self.lines[at as usize].len += 1;
            return at;
        }
        let line = ClassLine { class: Some(class.clone()), len: 1, ..ClassLine::default() };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.lines[at as usize] = line;
                at
            }
            None => {
                self.lines.push(line);
                u32::try_from(self.lines.len() - 1)
                    .expect("each class has a task, and memory ends before 2^32")
            }
        };
        self.index.insert(class.clone(), at);
        self.by_type.entry(class.task_type.clone()).or_default().push(at);
        at
    }

    /// One task less of a class, which is forgotten with its last.
    fn leave(&mut self, at: u32) {
        self.len -= 1;
        let line = &mut self.lines[at as usize];
        line.len -= 1;
        if line.len > 0 {
            return;
        }
        let Some(class) = std::mem::take(line).class else {
            return;
        };
        self.index.remove(&class);
        self.vacant.push(at);
        if let Some(classes) = self.by_type.get_mut(&class.task_type) {
            classes.retain(|other| *other != at);
            if classes.is_empty() {
                self.by_type.remove(&class.task_type);
            }
        }
    }
}

impl ClassLine {
    fn first(&self) -> Option<Place> {
        [self.free.first(), self.heads.first()].into_iter().flatten().min()
    }
}

impl Rates {
    /// The rate of one key; an interval of nothing bounds nothing.
    fn of(&self, key: &str) -> Option<Rate> {
        self.keys.get(key).copied().or(self.default).filter(|rate| rate.interval_ms > 0)
    }
}

#[cfg(test)]
mod tests;
