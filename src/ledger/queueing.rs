//! The writer's part in the queue as a whole: pausing it, and taking tasks out of it.
//!
//! Invariants:
//! - a paused queue hands out nothing, and running work goes on;
//! - what leaves the queue says so by an event of its own.

use std::collections::BTreeSet;

use crate::{
    call::{Code, Refusal},
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

/// Tasks that one command takes out of the queue.
const CLEAR_MAX: u64 = 1000;

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
        Ok(Ok(self.queue_now(0)))
    }

    pub(super) fn clear(
        &mut self,
        status: Option<Status>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if status.is_some_and(|status| matches!(status, Status::Running | Status::Succeeded)) {
            let refusal = "only queued, failed, dead and cancelled tasks can be cleared";
            return Ok(Err(Refusal::new(Code::InvalidArgument, refusal)));
        }
        let status = status.unwrap_or(Status::Queued);
        let mut cleared = 0;
        for id in self.clearable(status)? {
            if !self.load_task(&id)? {
                continue;
            }
            let task = self.task(&id)?;
            let step = task.facts.run.is_some();
            if task.status != status || task.cleared || step || cleared >= CLEAR_MAX {
                continue;
            }
            let bodies = match status {
                Status::Queued => task.cancel(true).unwrap_or_default(),
                Status::Failed | Status::Dead | Status::Cancelled | Status::TimedOut => {
                    task.clear().into_iter().collect()
                }
                Status::Running | Status::Succeeded => Vec::new(),
            };
            cleared += u64::from(!bodies.is_empty());
            let quietly = By { note: None, ..by.clone() };
            self.change_all(&id, bodies, &quietly, draft)?;
        }
        if cleared > 0 {
            let body = Body::QueueCleared(QueueCleared { status: status.as_str().to_owned(), cleared });
            self.sealer.seal(queue_fact(by, body), draft)?;
        }
        Ok(Ok(self.queue_now(cleared)))
    }

    /// Tasks of one status: those the state knows, and those it has not folded yet.
    pub(super) fn clearable(&mut self, status: Status) -> Result<Vec<String>, Fault> {
        let known = query::work::of_status(&self.state, status.as_str(), CLEAR_MAX)?;
        let mut ids = known.into_iter().map(|seq| self.number(seq)).collect::<Result<Vec<_>, _>>()?;
        let unfolded =
            self.holding.tasks.values().filter(|live| live.task.status == status && !live.task.cleared);
        let mut unfolded: Vec<(u64, String)> =
            unfolded.map(|live| (live.task.seq, live.task.id.clone())).collect();
        unfolded.sort_unstable();
        let known: BTreeSet<&String> = ids.iter().collect();
        let more: Vec<String> =
            unfolded.into_iter().map(|(_, id)| id).filter(|id| !known.contains(id)).collect();
        ids.extend(more);
        Ok(ids)
    }

    pub(super) fn queue_now(&self, cleared: u64) -> Worked {
        let running = self.holding.held.values().map(|held| held.len() as u64).sum();
        Worked::Queue { at_ms: self.now_ms(), waiting: self.holding.queue.len() as u64, running, cleared }
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
