//! What time brings about: leases, timers, deadlines, ticks of schedules, and processes that have ended.
//!
//! Invariants:
//! - one commit looks at a bounded number of due entities; those that are left are due at once again;
//! - what a process held when it ended is back in the queue in the same commit.

use crate::{
    ledger::{
        commit::{By, Stop, node},
        holding::{agenda::Due, tasks::Live},
        world::World,
    },
    task,
};

/// Due entities that one commit looks at.
const DUE_MAX: usize = 1024;
/// Ticks of schedules that fire in one commit, so that making up for a long absence holds nothing else up.
const TICKS_MAX: usize = 16;

impl World {
    /// Lets up to `DUE_MAX` due entities act.
    pub(super) fn tick(&mut self) -> Result<(), Stop> {
        let now_ms = self.commit.now_ms();
        let by = By::new(node());
        let (mut ticks, mut later) = (0, Vec::new());
        for _ in 0..DUE_MAX {
            let Some((at_ms, due)) = self.holding.agenda.take(now_ms) else { break };
            match due {
                Due::Schedule(_) if ticks == TICKS_MAX => later.push((at_ms, due)),
                Due::Schedule(id) => {
                    ticks += 1;
                    self.schedule_due(&id, &by)?;
                }
                Due::Claims => self.end_waits(|parked| parked.until_ms <= now_ms),
                Due::Task(id) => self.task_due(&id, &by)?,
                Due::Run(id) => self.run_due(&id),
                Due::Worker(id) => self.worker_due(&id, &by)?,
            }
        }
        // These are due at once again, in a commit of their own.
        for (at_ms, due) in later {
            self.holding.agenda.put(at_ms, due);
        }
        self.holding.tasks.queue.wake(now_ms);
        self.holding.tasks.fresh = true;
        self.advance()
    }

    /// Ends an attempt whose lease or time is over, and lets a task start whose time has come.
    fn task_due(&mut self, id: &str, by: &By) -> Result<(), Stop> {
        // Tasks that are not in memory neither run nor are held.
        let Some(live) = self.holding.tasks.live.get(id) else { return Ok(()) };
        // Nothing, where the time has moved: the later one has an entry of its own.
        let bodies = live.task.lapse(&self.moment());
        self.change_all(id, bodies, by)
    }

    /// Ends as interrupted the attempts of processes that have ended; returns how many.
    pub(super) fn interrupt(&mut self, runners: &[String]) -> Result<u64, Stop> {
        let of_runner = |live: &&Live| {
            let lease = live.task.lease.as_ref().filter(|_| live.task.status == task::Status::Running);
            lease.and_then(|lease| lease.runner.as_ref()).is_some_and(|runner| runners.contains(runner))
        };
        let lost = self.holding.tasks.live.values().filter(of_runner);
        let mut lost: Vec<(u64, String)> = lost.map(|live| (live.task.seq, live.task.id.clone())).collect();
        // The map has no order of its own; the log must not depend on chance.
        lost.sort_unstable();
        // Claims that wait for a process that has ended are answered to nobody.
        self.holding
            .tasks
            .parked
            .retain(|parked| !parked.hand.as_ref().is_some_and(|hand| runners.contains(&hand.runner)));
        let by = By::new(node());
        for (_, id) in &lost {
            let moment = self.moment();
            let bodies = self.task(id)?.interrupt(&moment);
            self.change_all(id, bodies, &by)?;
        }
        self.advance()?;
        Ok(lost.len() as u64)
    }
}
