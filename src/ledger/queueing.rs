//! The writer's part in the queue as a whole: pausing it, and taking tasks out of it.
//!
//! Invariants:
//! - a paused queue hands out nothing, and running work goes on;
//! - what leaves the queue says so by an event of its own.

use crate::{
    error::{Code, Refusal},
    event::{
        Body,
        work::{QueueCleared, QueuePaused, QueueResumed},
    },
    ledger::{
        commit::{By, Fault, Stop},
        work::{ClearQueue, Worked},
        world::World,
    },
    query,
    task::Status,
};

/// Tasks that one command looks at, so that it does not hold up other commands for long.
const CLEAR_MAX: usize = 256;

impl ClearQueue {
    /// Clears up to `CLEAR_MAX` tasks of one status that are no steps of a run. The answer says where to go on.
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { status, from } = self;
        if matches!(status, Status::Running | Status::Succeeded) {
            let refusal = "only queued, failed, dead and cancelled tasks can be cleared";
            return Err(Refusal::new(Code::InvalidArgument, refusal).into());
        }
        let found = world.clearable(status, from)?;
        let next = found.get(CLEAR_MAX - 1).map(|(priority, seq)| (*priority, seq + 1));
        let quietly = by.quietly();
        let mut cleared = 0;
        for (_, seq) in found {
            let id = world.number(seq)?;
            let task = world.task(&id)?;
            // The state may not have folded yet what has become of it.
            let Some(body) = task.clear().filter(|_| task.status == status) else { continue };
            world.change(&id, body, &quietly, Vec::new())?;
            cleared += 1;
        }
        if cleared > 0 {
            let body = Body::QueueCleared(QueueCleared { status: status.as_str().to_owned(), cleared });
            world.commit.seal(by.fact("queue".to_owned(), body, by.noted(Vec::new())))?;
        }
        Ok(world.queue_now(cleared, next))
    }
}

impl World {
    /// Pauses or resumes the queue, unless it is so already.
    pub(super) fn pause(&mut self, paused: bool, by: &By) -> Result<Worked, Stop> {
        if self.holding.tasks.queue.paused() != paused {
            let body = match paused {
                true => Body::QueuePaused(QueuePaused {}),
                false => Body::QueueResumed(QueueResumed {}),
            };
            self.commit.seal(by.fact("queue".to_owned(), body, by.noted(Vec::new())))?;
            match paused {
                true => self.holding.tasks.queue.pause(),
                false => self.holding.tasks.queue.resume(),
            }
            self.holding.tasks.fresh = true;
        }
        Ok(self.queue_now(0, None))
    }

    /// Returns the first tasks of one status by priority and age, those not folded yet included.
    fn clearable(&self, status: Status, from: (u64, u64)) -> Result<Vec<(u64, u64)>, Fault> {
        let known = query::work::of_status(&self.state, status.as_str(), from, CLEAR_MAX)?;
        let near = self.holding.tasks.live.values().map(|live| &live.task);
        let near = near.filter(|task| task.status == status && task.facts.run.is_none());
        let near = near.map(|task| (task.facts.priority, task.seq)).filter(|place| *place >= from);
        let mut found: Vec<(u64, u64)> = known.into_iter().chain(near).collect();
        found.sort_unstable();
        found.dedup();
        found.truncate(CLEAR_MAX);
        Ok(found)
    }

    pub(super) fn queue_now(&self, cleared: u64, next: Option<(u64, u64)>) -> Worked {
        let running = self.holding.tasks.held.values().map(|held| held.len() as u64).sum();
        let waiting = self.holding.tasks.queue.len() as u64;
        Worked::Queue { at_ms: self.commit.now_ms(), waiting, running, cleared, next }
    }
}
