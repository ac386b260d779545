//! Workflow runs in memory, and who waits for whom.
//!
//! Invariants:
//! - every run that has not ended is here, and so is a run whose tasks still run;
//! - a run to which something has happened is among those that decide next.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    block::Cid,
    event::Event,
    ledger::holding::{
        agenda::{Agenda, Due},
        contents::Contents,
    },
    workflow::run::Run,
};

#[derive(Default)]
pub struct Runs {
    pub live: HashMap<String, LiveRun>,
    /// Runs to which something has happened since they last decided.
    pub dirty: Vec<String>,
    /// By run: the runs that wait for it.
    pub dependents: HashMap<String, BTreeSet<String>>,
    /// Whether decisions are being carried out.
    pub advancing: bool,
    /// Runs that have nothing left to do. A run may leave memory once the state has folded its last event.
    rested: VecDeque<(u64, String)>,
}

/// A run, and the event that touched it last.
pub struct LiveRun {
    pub run: Run,
    pub last: Cid,
    pub last_seq: u64,
}

impl LiveRun {
    /// Folds an event of the run or of one of its tasks.
    pub fn apply(&mut self, event: &Event) {
        self.run.apply(event);
        (self.last, self.last_seq) = (event.cid(), event.fields().seq);
    }
}

impl Runs {
    /// Tells a run in memory what happened to it or its tasks.
    pub fn tell(&mut self, run: &str, event: &Event) {
        if let Some(live) = self.live.get_mut(run) {
            live.apply(event);
            if live.run.at_rest() {
                self.rested.push_back((live.last_seq, run.to_owned()));
            }
            self.dirty.push(run.to_owned());
        }
    }

    /// Takes a run into memory, with the indexes it belongs to.
    pub fn hold(&mut self, live: LiveRun, agenda: &mut Agenda, contents: &mut Contents) {
        let id = live.run.id.clone();
        if let Some(deadline) = live.run.due_ms() {
            agenda.put(deadline, Due::Run(id.clone()));
        }
        for other in live.run.waits_for() {
            self.dependents.entry(other.to_owned()).or_default().insert(id.clone());
        }
        if live.run.at_rest() {
            self.rested.push_back((live.last_seq, id.clone()));
        }
        if live.run.inputs.is_null() {
            contents.lost.extend(live.run.input.map(|input| input.cid));
        }
        self.live.insert(id, live);
    }

    /// Removes the inputs of runs whose payload is erased; returns whether there were any.
    pub fn erase(&mut self, payload: &Cid) -> bool {
        let mut lost = false;
        for live in self.live.values_mut() {
            if live.run.input.is_some_and(|input| input.cid == *payload) {
                live.run.inputs = Arc::new(Value::Null);
                lost = true;
            }
        }
        lost
    }

    /// Drops the runs that have nothing left to do and that the state has folded.
    pub fn forget(&mut self, applied: u64) {
        while let Some((seq, _)) = self.rested.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.rested.pop_front() else { return };
            if self.live.get(&id).is_some_and(|live| live.run.at_rest() && live.last_seq == seq) {
                self.live.remove(&id);
            }
        }
    }
}
