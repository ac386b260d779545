//! What may happen to a task next: each decision answers with events, or says why not.
//!
//! Invariants:
//! - nothing is decided by a clock or by chance: the time is an argument, jitter is drawn from the claim's digest;
//! - once a cancel was asked for, an attempt that ends without success ends the task.

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Body, PayloadRef,
        work::{
            Hold, RetryPolicy, TaskCancelRequested, TaskCancelled, TaskClaimed, TaskCleared, TaskDead,
            TaskFailed, TaskInterrupted, TaskLeaseExpired, TaskRenewed, TaskReprioritised, TaskRetried,
            TaskSucceeded, TaskTimedOut,
        },
    },
    task::{
        Completed, Lease, Moment, POISON, PRIORITY_MAX, RETRIES_SPENT, Settlement, Status, Task, checks,
        order,
    },
};

impl Task {
    /// The claim of a task that stands first in the line. `rate_until_ms` is when its rate key next allows one.
    pub fn claim(
        &self,
        worker: &str,
        runner: Option<&str>,
        rate_until_ms: Option<u64>,
        moment: &Moment,
    ) -> TaskClaimed {
        let Moment { now_ms, limits } = *moment;
        let grown = now_ms.saturating_sub(self.ready_ms) / limits.ageing_ms.max(1);
        TaskClaimed {
            worker: worker.to_owned(),
            runner: runner.map(str::to_owned),
            attempt: self.attempt + 1,
            fence: self.fence + 1,
            lease_until_ms: now_ms.saturating_add(limits.lease_ms),
            effective: self.facts.priority.saturating_add(grown).min(PRIORITY_MAX),
            rate_until_ms,
        }
    }

    /// Prolongs the lease; `progress` over 100 counts as 100.
    pub fn renew(
        &self,
        worker: &str,
        fence: u64,
        progress: Option<u64>,
        moment: &Moment,
    ) -> Result<TaskRenewed, Refusal> {
        self.held_by(worker, fence)?;
        let lease_until_ms = moment.now_ms.saturating_add(moment.limits.lease_ms);
        Ok(TaskRenewed { fence, lease_until_ms, progress: progress.map(|progress| progress.min(100)) })
    }

    /// The success of an attempt, even of one that was asked to cancel.
    pub fn complete(&self, worker: &str, fence: u64, output: &PayloadRef) -> Result<Completed, Refusal> {
        let same = self.status == Status::Succeeded
            && self.has(worker, fence)
            && self.output.is_some_and(|first| first.cid == output.cid);
        if same {
            return Ok(Completed::Known);
        }
        self.held_by(worker, fence)?;
        let facts = TaskSucceeded { fence, attempt: self.attempt, reused: false };
        Ok(Completed::New(Body::TaskSucceeded(facts)))
    }

    /// The failure of an attempt: again later, or the end.
    pub fn fail(
        &self,
        worker: &str,
        fence: u64,
        code: &str,
        retryable: bool,
        moment: &Moment,
    ) -> Result<Vec<Body>, Refusal> {
        let lease = self.held_by(worker, fence)?;
        if self.cancel_requested {
            return Ok(vec![cancelled(true)]);
        }
        let retry_at_ms = self.retry_at_ms(lease, moment).filter(|_| retryable);
        let facts =
            TaskFailed { fence, attempt: self.attempt, code: code.to_owned(), retryable, retry_at_ms };
        Ok(self.or_dead(Body::TaskFailed(facts), retryable && retry_at_ms.is_none()))
    }

    /// What the time says: the lease is over, the attempt takes too long, or what holds the task has come.
    pub fn lapse(&self, moment: &Moment) -> Vec<Body> {
        if self.status != Status::Running || self.due_ms().is_none_or(|due_ms| moment.now_ms < due_ms) {
            return Vec::new();
        }
        let Some(lease) = &self.lease else {
            return vec![self.held_lapse()];
        };
        if self.cancel_requested {
            return vec![cancelled(true)];
        }
        match self.timeout_at_ms(lease.claimed_ms).is_some_and(|timeout_ms| timeout_ms <= lease.until_ms) {
            true => {
                let retry_at_ms = self.retry_at_ms(lease, moment);
                let facts = TaskTimedOut { fence: self.fence, attempt: self.attempt, retry_at_ms };
                self.or_dead(Body::TaskTimedOut(facts), retry_at_ms.is_none())
            }
            false => self.void(lease, moment),
        }
    }

    /// Its worker left: back in the line, as after a lease.
    pub fn release(&self, moment: &Moment) -> Vec<Body> {
        match self.lease.as_ref().filter(|_| self.status == Status::Running) {
            None => Vec::new(),
            Some(_) if self.cancel_requested => vec![cancelled(true)],
            Some(lease) => self.void(lease, moment),
        }
    }

    /// Nobody heard of the claim under this fence: back in the line, as if there had been none.
    pub fn unheard(&self, fence: u64) -> Option<Body> {
        let lease = self.lease.as_ref().filter(|lease| lease.runner.is_none())?;
        if self.status != Status::Running || self.fence != fence {
            return None;
        }
        let (worker, attempt) = (lease.worker.clone(), self.attempt);
        Some(match self.cancel_requested {
            true => cancelled(true),
            false => Body::TaskLeaseExpired(TaskLeaseExpired { worker, fence, attempt, unheard: true }),
        })
    }

    /// The process of the node's own executor ended: what it did is not known.
    pub fn interrupt(&self, moment: &Moment) -> Vec<Body> {
        match self.lease.as_ref().is_some_and(|lease| lease.runner.is_some()) {
            true => self.release(moment),
            false => Vec::new(),
        }
    }

    /// Nothing, where it is cancelled already.
    pub fn cancel(&self, force: bool) -> Result<Vec<Body>, Refusal> {
        match self.status {
            Status::Cancelled => Ok(Vec::new()),
            Status::Succeeded | Status::Failed | Status::Dead | Status::TimedOut => {
                Err(self
                    .stands("it has ended and cannot be cancelled", "look at its result with task_result"))
            }
            Status::Queued => Ok(vec![cancelled(false)]),
            Status::Running if self.lease.is_none() => Ok(vec![cancelled(false)]),
            Status::Running => {
                let request = Body::TaskCancelRequested(TaskCancelRequested { force });
                Ok(match (force, self.cancel_requested) {
                    (true, _) => vec![request, cancelled(true)],
                    (false, false) => vec![request],
                    (false, true) => Vec::new(),
                })
            }
        }
    }

    /// A new place in the line; of a running task, for its next attempt.
    pub fn reprioritise(&self, priority: u64, moment: &Moment) -> Result<Body, Refusal> {
        checks::priority(priority)?;
        if self.status.ended() {
            return Err(self.stands("it has ended and waits no more", "revive it with task_retry"));
        }
        let order = order(self.ready_ms, priority, moment.limits.ageing_ms);
        Ok(Body::TaskReprioritised(TaskReprioritised { from: self.facts.priority, to: priority, order }))
    }

    /// Revives what ended without success.
    pub fn retry(
        &self,
        max_retries: Option<u64>,
        timeout_ms: Option<u64>,
        moment: &Moment,
    ) -> Result<Body, Refusal> {
        checks::retries(max_retries.unwrap_or(0))?;
        checks::timeout(timeout_ms)?;
        match self.status {
            Status::Queued | Status::Running => {
                return Err(self.stands("it has not ended", "cancel it first, or wait"));
            }
            Status::Succeeded => return Err(self.stands("it needs no retry", "submit a new task")),
            Status::Failed | Status::Dead | Status::Cancelled | Status::TimedOut => {}
        }
        if self.cleared {
            return Err(self.stands("it was cleared from the queue", "submit a new task"));
        }
        let order = order(moment.now_ms, self.facts.priority, moment.limits.ageing_ms);
        Ok(Body::TaskRetried(TaskRetried { hold: None, order, max_retries, timeout_ms }))
    }

    /// Takes it out of the line or the lists; nothing where a worker has it, or it is out already.
    pub fn clear(&self) -> Option<Body> {
        match self.status {
            Status::Queued => Some(cancelled(false)),
            Status::Running => None,
            _ if self.cleared => None,
            Status::Succeeded | Status::Failed | Status::Dead | Status::Cancelled | Status::TimedOut => {
                Some(Body::TaskCleared(TaskCleared {}))
            }
        }
    }

    /// Ends a task that no worker has: one that is held, or one that waits and need not run.
    pub fn settle(&self, how: Settlement<'_>) -> Result<Body, Refusal> {
        let held = self.status == Status::Running && self.lease.is_none();
        let fits = match how {
            Settlement::Succeeded | Settlement::Failed { .. } => held,
            Settlement::Reused => self.status == Status::Queued,
        };
        if !fits {
            return Err(Refusal::new(
                Code::Conflict,
                self.sentence("a worker's word ends it, or it has ended"),
            ));
        }
        let (fence, attempt) = (0, 0);
        Ok(match how {
            Settlement::Succeeded => Body::TaskSucceeded(TaskSucceeded { fence, attempt, reused: false }),
            Settlement::Reused => Body::TaskSucceeded(TaskSucceeded { fence, attempt, reused: true }),
            Settlement::Failed { code } => {
                let (code, retryable, retry_at_ms) = (code.to_owned(), false, None);
                Body::TaskFailed(TaskFailed { fence, attempt, code, retryable, retry_at_ms })
            }
        })
    }

    /// When [`Task::lapse`] next has something to say.
    pub fn due_ms(&self) -> Option<u64> {
        if self.status != Status::Running {
            return None;
        }
        if let Some(lease) = &self.lease {
            let timeout_ms = self.timeout_at_ms(lease.claimed_ms).unwrap_or(u64::MAX);
            return Some(lease.until_ms.min(timeout_ms));
        }
        [self.hold_until_ms(), self.timeout_at_ms(self.ready_ms)].into_iter().flatten().min()
    }

    fn hold_until_ms(&self) -> Option<u64> {
        match self.facts.hold.as_ref()? {
            Hold::Time { until_ms } => Some(*until_ms),
            Hold::Signal { until_ms, .. } => *until_ms,
            Hold::Run { .. } => None,
        }
    }

    fn timeout_at_ms(&self, from_ms: u64) -> Option<u64> {
        self.facts.timeout_ms.map(|timeout_ms| from_ms.saturating_add(timeout_ms))
    }

    /// The end of a wait whose time has come.
    fn held_lapse(&self) -> Body {
        let come = match self.facts.hold {
            Some(Hold::Time { until_ms }) => Some(until_ms) == self.due_ms(),
            Some(Hold::Signal { .. } | Hold::Run { .. }) | None => false,
        };
        match come {
            true => Body::TaskSucceeded(TaskSucceeded { fence: 0, attempt: 0, reused: false }),
            false => Body::TaskTimedOut(TaskTimedOut { fence: 0, attempt: 0, retry_at_ms: None }),
        }
    }

    /// An attempt that ended without an outcome. The node's own may have had an effect: it runs again only where
    /// that is allowed. A worker was told the terms of its lease.
    fn void(&self, lease: &Lease, moment: &Moment) -> Vec<Body> {
        let (fence, attempt) = (self.fence, self.attempt);
        let poison = self.lapses + 1 >= moment.limits.attempts_max;
        let (ended, dead) = match &lease.runner {
            Some(runner) => {
                let again = self.facts.repeatable && !poison;
                let facts = TaskInterrupted { runner: runner.clone(), fence, attempt, again };
                (Body::TaskInterrupted(facts), self.facts.repeatable && poison)
            }
            None => {
                let facts = TaskLeaseExpired { worker: lease.worker.clone(), fence, attempt, unheard: false };
                (Body::TaskLeaseExpired(facts), poison)
            }
        };
        let dead = dead.then(|| Body::TaskDead(TaskDead { reason: POISON.to_owned() }));
        [Some(ended), dead].into_iter().flatten().collect()
    }

    /// `ended`, and that the task is dead where the last of its retries is spent by it.
    fn or_dead(&self, ended: Body, last: bool) -> Vec<Body> {
        let spent = last && self.facts.retry.max_retries > 0;
        let dead = spent.then(|| Body::TaskDead(TaskDead { reason: RETRIES_SPENT.to_owned() }));
        [Some(ended), dead].into_iter().flatten().collect()
    }

    /// When the attempt that fails now is repeated; none where it was the last.
    fn retry_at_ms(&self, lease: &Lease, moment: &Moment) -> Option<u64> {
        let failures = self.attempt.saturating_sub(self.lapses);
        let pause_ms = pause_ms(&self.facts.retry, failures, &lease.claimed);
        (failures <= self.facts.retry.max_retries).then(|| moment.now_ms.saturating_add(pause_ms))
    }

    fn has(&self, worker: &str, fence: u64) -> bool {
        self.fence == fence && self.lease.as_ref().is_some_and(|lease| lease.worker == worker)
    }

    /// The lease of the attempt that a worker speaks of, where it is still its own.
    fn held_by(&self, worker: &str, fence: u64) -> Result<&Lease, Refusal> {
        let running = self.status == Status::Running && self.has(worker, fence);
        self.lease.as_ref().filter(|_| running).ok_or_else(|| {
            let why = format!("worker {worker} does not hold it under fence {fence}");
            Refusal::new(Code::Conflict, self.sentence(&why)).hint("stop this attempt and claim other work")
        })
    }

    fn stands(&self, why: &str, hint: &str) -> Refusal {
        Refusal::new(Code::FailedPrecondition, self.sentence(why)).hint(hint)
    }

    fn sentence(&self, why: &str) -> String {
        format!("task {} is {}: {why}", self.id, self.status.as_str())
    }
}

/// The pause after the `failures`th failure, with jitter from half of it to the whole.
fn pause_ms(retry: &RetryPolicy, failures: u64, claimed: &Cid) -> u64 {
    let mut pause_ms = retry.backoff_ms.min(retry.max_backoff_ms);
    for _ in 1..failures {
        if pause_ms >= retry.max_backoff_ms {
            break;
        }
        pause_ms = (pause_ms.saturating_mul(retry.factor_milli) / 1000).min(retry.max_backoff_ms);
    }
    if !retry.jitter {
        return pause_ms;
    }
    let half = pause_ms / 2;
    let drawn = claimed.digest().iter().take(8).fold(0, |drawn: u64, byte| drawn << 8 | u64::from(*byte));
    half + drawn % (pause_ms - half + 1)
}

fn cancelled(running: bool) -> Body {
    Body::TaskCancelled(TaskCancelled { running })
}
