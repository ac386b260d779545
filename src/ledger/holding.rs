//! The entities that the rules need at once: what runs, what waits, what is connected.
//!
//! Invariants:
//! - whatever the state has not folded yet is here; everything else is loaded when it is needed;
//! - everything here comes back from the log at start.

pub mod agenda;
pub mod calls;
pub mod contents;
pub mod crew;
pub mod peers;
pub mod runs;
pub mod tasks;

use crate::{
    block::Cid,
    ledger::holding::{
        agenda::Agenda, calls::Calls, contents::Contents, crew::Crew, peers::Peers, runs::Runs, tasks::Tasks,
    },
};

/// All that the writer has in memory of the log.
#[derive(Default)]
pub struct Holding {
    pub calls: Calls,
    pub tasks: Tasks,
    pub runs: Runs,
    pub crew: Crew,
    pub peers: Peers,
    pub contents: Contents,
    pub agenda: Agenda,
}

impl Holding {
    /// Removes an erased payload from all of memory.
    pub fn erase(&mut self, payload: &Cid) {
        self.contents.erase(payload);
        self.tasks.erase(payload);
        let lost = self.runs.erase(payload) | self.crew.erase(payload);
        if lost {
            self.contents.lost.insert(*payload);
        }
    }

    /// Returns the names of the processes that hold calls, attempts or connections, each once.
    pub fn runners(&self) -> Vec<String> {
        let mut runners: Vec<String> =
            self.calls.runners().chain(self.tasks.runners()).chain(self.peers.runners()).collect();
        runners.sort_unstable();
        runners.dedup();
        runners
    }

    /// Returns the next moment at which something is due, in milliseconds since the epoch.
    pub fn next_ms(&self) -> Option<u64> {
        [self.agenda.next_ms(), self.tasks.queue.next_ms()].into_iter().flatten().min()
    }

    /// Drops from memory what the state has folded and no rule needs at once. `applied` is the number of folded
    /// events.
    pub fn forget(&mut self, applied: u64) {
        for worker in self.crew.forget(applied) {
            self.tasks.held.remove(&worker);
        }
        self.tasks.forget(applied);
        self.runs.forget(applied);
        self.calls.forget(applied);
    }
}
