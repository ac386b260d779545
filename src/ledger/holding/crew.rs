//! Workers and schedules in memory.
//!
//! Invariants:
//! - every worker that is registered is here, and every schedule that is not deleted;
//! - a worker that has left stays until the state has folded that it left.

use std::collections::{HashMap, VecDeque};

use crate::{
    block::Cid,
    event::Body,
    ledger::{
        holding::agenda::{Agenda, Due},
        work::Made,
    },
    schedule::Schedule,
    worker::{Presence, Worker},
};

#[derive(Default)]
pub struct Crew {
    pub workers: HashMap<String, Worker>,
    pub schedules: HashMap<String, Timetable>,
    /// Workers that have left or are lost, by the seq of their last event.
    pub gone: VecDeque<(u64, String)>,
}

/// A schedule and what it makes. `makes` is `None` while its payload is erased; the schedule does not fire then.
pub struct Timetable {
    pub schedule: Schedule,
    pub makes: Option<Made>,
}

impl Crew {
    /// Takes a worker into memory. `running` is the number of tasks it holds.
    pub fn hold(&mut self, mut worker: Worker, running: u64) {
        worker.running = running;
        if matches!(worker.presence, Presence::Lost | Presence::Unregistered) {
            self.gone.push_back((worker.last_seq, worker.id.clone()));
        }
        self.workers.insert(worker.id.clone(), worker);
    }

    /// Tells a worker in memory what happened to one of its tasks.
    pub fn apply_task(&mut self, worker: &str, body: &Body, agenda: &mut Agenda) {
        let Some(worker) = self.workers.get_mut(worker) else { return };
        worker.apply_task(body);
        if worker.running == 0 && matches!(worker.presence, Presence::Draining { .. }) {
            // Its last task has ended: it leaves at the next look.
            agenda.put(0, Due::Worker(worker.id.clone()));
        }
    }

    /// Removes what schedules make whose payload is erased; returns whether there were any.
    pub fn erase(&mut self, payload: &Cid) -> bool {
        let mut lost = false;
        for (id, timetable) in &mut self.schedules {
            if timetable.schedule.input.is_some_and(|input| input.cid == *payload) {
                timetable.makes = None;
                lost = true;
                tracing::warn!(schedule = id, "what the schedule makes was erased; it does not fire");
            }
        }
        lost
    }

    /// Drops the workers that have left and that the state has folded; returns their ids.
    pub fn forget(&mut self, applied: u64) -> Vec<String> {
        let mut left = Vec::new();
        while let Some((seq, _)) = self.gone.front()
            && *seq < applied
        {
            let Some((seq, id)) = self.gone.pop_front() else { return left };
            // What it held was released when it went.
            if self.workers.get(&id).is_some_and(|worker| worker.last_seq == seq) {
                self.workers.remove(&id);
                left.push(id);
            }
        }
        left
    }
}
