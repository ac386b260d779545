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
        tasks::By,
        work::Worked,
        writer::{Draft, Fault, Writer},
    },
    query,
    task::Status,
};

/// Tasks that one command looks at, so that it does not hold up other commands for long.
const CLEAR_MAX: usize = 256;

impl Writer {
    pub(super) fn pause(
        &mut self,
        paused: bool,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if self.holding.queue.paused() != paused {
            let body = match paused {
                true => Body::QueuePaused(QueuePaused {}),
                false => Body::QueueResumed(QueueResumed {}),
            };
            self.sealer.seal(queue_fact(by, body), draft)?;
            match paused {
                true => self.holding.queue.pause(),
                false => self.holding.queue.resume(),
            }
            self.holding.fresh = true;
        }
        Ok(Ok(self.queue_now(0, None)))
    }

    /// Clears up to `CLEAR_MAX` tasks of one status that are no steps of a run. The answer says where to go on.
    pub(super) fn clear(
        &mut self,
        status: Status,
        from: (u64, u64),
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if matches!(status, Status::Running | Status::Succeeded) {
            let refusal = "only queued, failed, dead and cancelled tasks can be cleared";
            return Ok(Err(Refusal::new(Code::InvalidArgument, refusal)));
        }
        let found = self.clearable(status, from)?;
        let next = found.get(CLEAR_MAX - 1).map(|(priority, seq)| (*priority, seq + 1));
        let quietly = By { note: None, ..by.clone() };
        let mut cleared = 0;
        for (_, seq) in found {
            let id = self.number(seq)?;
            let task = self.task(&id)?;
            // The state may not have folded yet what has become of it.
            let Some(body) = task.clear().filter(|_| task.status == status) else { continue };
            self.change(&id, body, &quietly, Vec::new(), draft)?;
            cleared += 1;
        }
        if cleared > 0 {
            let body = Body::QueueCleared(QueueCleared { status: status.as_str().to_owned(), cleared });
            self.sealer.seal(queue_fact(by, body), draft)?;
        }
        Ok(Ok(self.queue_now(cleared, next)))
    }

    /// Returns the first tasks of one status by priority and age, those not folded yet included.
    fn clearable(&self, status: Status, from: (u64, u64)) -> Result<Vec<(u64, u64)>, Fault> {
        let known = query::work::of_status(&self.state, status.as_str(), from, CLEAR_MAX)?;
        let near = self.holding.tasks.values().map(|live| &live.task);
        let near = near.filter(|task| task.status == status && task.facts.run.is_none());
        let near = near.map(|task| (task.facts.priority, task.seq)).filter(|place| *place >= from);
        let mut found: Vec<(u64, u64)> = known.into_iter().chain(near).collect();
        found.sort_unstable();
        found.dedup();
        found.truncate(CLEAR_MAX);
        Ok(found)
    }

    pub(super) fn queue_now(&self, cleared: u64, next: Option<(u64, u64)>) -> Worked {
        let running = self.holding.held.values().map(|held| held.len() as u64).sum();
        let waiting = self.holding.queue.len() as u64;
        Worked::Queue { at_ms: self.now_ms(), waiting, running, cleared, next }
    }
}

fn queue_fact(by: &By, body: Body) -> crate::event::Fact {
    crate::event::Fact {
        cause: by.cause,
        refs: Vec::new(),
        actor: by.actor.clone(),
        subject: "queue".to_owned(),
        tool: None,
        payloads: by.note.into_iter().collect(),
        body,
    }
}
