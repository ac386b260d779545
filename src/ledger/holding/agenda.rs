//! When each entity is to be looked at.
//!
//! Invariants:
//! - an entry may be out of date: the entity decides whether anything is due.

use std::{cmp::Reverse, collections::BinaryHeap};

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

/// Entities by the time at which they are due, in milliseconds since the epoch.
#[derive(Default)]
pub struct Agenda(BinaryHeap<Reverse<(u64, Due)>>);

impl Agenda {
    pub fn put(&mut self, at_ms: u64, due: Due) {
        self.0.push(Reverse((at_ms, due)));
    }

    /// Takes the first entity that is due at `now_ms`, with its time.
    pub fn take(&mut self, now_ms: u64) -> Option<(u64, Due)> {
        self.0.peek().filter(|Reverse((at_ms, _))| *at_ms <= now_ms)?;
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// Returns the time of the first entry.
    pub fn next_ms(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((at_ms, _))| *at_ms)
    }
}
