//! Entities that events were about lately, so that the next event of one reads nothing.
//!
//! Invariants:
//! - bounded: what is not asked for while as many others come is forgotten;
//! - what is forgotten is read again from the log, so that forgetting changes no row.

use std::collections::HashMap;

use crate::{schedule::Schedule, task::Task, worker::Worker};

/// Entities of a kind that stay in memory between two batches, and twice as many at most: the tasks of a queue that is
/// full by default.
const RECENT_MAX: usize = 10_000;

/// Entities by their subjects' numbers, in two generations.
pub(in crate::state) struct Recent<T> {
    young: HashMap<u64, T>,
    old: HashMap<u64, T>,
}

/// Where a task is listed under each of its tags: its status as stored, and its priority.
pub(super) type Spot = (u8, u64);

/// A task, and the numbers that its row holds for what it names.
pub(super) struct RecentTask {
    pub(super) task: Task,
    /// Words, blocks and the run's number.
    pub(super) class: u64,
    pub(super) run: Option<u64>,
    pub(super) tool: Option<u64>,
    pub(super) input: Option<u64>,
    /// In order, each once.
    pub(super) tags: Vec<u64>,
    /// Where the tables list it: it is listed elsewhere when its row is written.
    pub(super) listed: Option<Spot>,
    /// Whether its row is still to be written.
    pub(super) changed: bool,
}

/// What the fold of durable work remembers.
#[derive(Default)]
pub(in crate::state) struct Entities {
    pub(super) tasks: Recent<Box<RecentTask>>,
    /// Tasks whose rows are still to be written.
    pub(super) changed: Vec<u64>,
    pub(super) workers: Recent<Worker>,
    /// Each with the seq of the event that created it.
    pub(super) schedules: Recent<(u64, Schedule)>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }
}

impl<T> Recent<T> {
    /// Takes an entity out, to be put back when it has changed.
    pub(super) fn take(&mut self, id: u64) -> Option<T> {
        self.young.remove(&id).or_else(|| self.old.remove(&id))
    }

    pub(super) fn put(&mut self, id: u64, entity: T) {
        self.young.insert(id, entity);
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.young.get_mut(&id).or_else(|| self.old.get_mut(&id))
    }

    /// Forgets the older generation if the younger is full.
    fn age(&mut self) {
        if self.young.len() >= RECENT_MAX {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

impl Entities {
    /// To be called between batches: until its row is written, a task is not forgotten.
    pub(in crate::state) fn age(&mut self) {
        self.tasks.age();
        self.workers.age();
        self.schedules.age();
    }
}
