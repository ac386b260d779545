//! Tasks: one piece of work from its submission to its ending, whoever does it.
//!
//! Invariants:
//! - a fence is given once and only grows; only the holder of the latest one can end an attempt;
//! - an ended task starts again only by `task.retried`; after a cancel was asked for, no attempt starts;
//! - `order` is `ready_ms` less one ageing interval a priority, so a line never has to be sorted again;
//! - the same fold is used live, at restart, for the past and for replays.

#[cfg(test)]
pub(crate) mod chance;
mod checks;
mod ruling;

use serde::{Deserialize, Serialize};

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Actor, Body, Event, Fact, PayloadRef, Role,
        work::{Hold, TaskClaimed, TaskFailed, TaskRetried, TaskSubmitted, TaskTimedOut},
    },
    words::words,
};

/// Characters of a name that a user gives: ids, types, keys.
pub const NAME_MAX: usize = 128;
/// The highest priority.
pub const PRIORITY_MAX: u64 = 100;
/// Tags of one task.
pub const TAGS_MAX: usize = 32;
/// Characters of one tag.
pub const TAG_MAX: usize = 64;
/// Capabilities one task requires beside its type.
pub const REQUIRES_MAX: usize = 16;
/// Tasks that one actor's clients follow and that have not ended.
pub const FOLLOWED_MAX: usize = 256;
/// Bytes of a client's capabilities in a task that it follows.
pub const CAPABILITIES_MAX: usize = 1024;
/// Further attempts after a failed one.
pub const RETRIES_MAX: u64 = 1000;
/// The longest pause before an attempt, the longest attempt and the longest wait: a year.
pub const SPAN_MAX_MS: u64 = 366 * 24 * 60 * 60 * 1000;
/// The factor between two pauses, in thousandths: from none to a hundred.
pub const FACTOR_MILLI: std::ops::RangeInclusive<u64> = 1000..=100_000;
/// The last moment that can be named: the end of the year 9999.
pub const MOMENT_MAX_MS: u64 = 253_402_300_799_999;
/// The beginning of the types that the node itself ends.
pub const WAIT_PREFIX: &str = "wait:";

/// What the rules are told of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long a worker may be silent.
    pub lease_ms: u64,
    /// The waiting time that is worth one step of priority.
    pub ageing_ms: u64,
    /// Tasks that may wait.
    pub queue_max: u64,
    /// Attempts that may end without an outcome.
    pub attempts_max: u64,
}

/// When a rule is asked, and under which limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub now_ms: u64,
    pub limits: Limits,
}

words! {
    /// Where a task stands. A task that waits for a time is queued, one that is held is running.
    #[derive(Hash, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Status {
        Queued = "queued",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Dead = "dead",
        Cancelled = "cancelled",
        TimedOut = "timed_out",
    }
}

/// A claim: who has the task, or had it when it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub worker: String,
    /// The process of the node's own executor.
    pub runner: Option<String>,
    pub until_ms: u64,
    /// The event of the claim.
    pub claimed: Cid,
    pub claimed_ms: u64,
}

/// What was asked for at submission and may since have been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSettings {
    pub priority: u64,
    pub max_retries: u64,
    pub timeout_ms: Option<u64>,
}

/// One task, as the log remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: String,
    /// The place of its submission in the log: the second key of its place in the line.
    pub seq: u64,
    pub submitted: Cid,
    pub actor: Actor,
    pub tool: Option<Cid>,
    pub input: Option<PayloadRef>,
    /// As they stand now.
    pub facts: TaskSubmitted,
    pub asked: TaskSettings,
    pub status: Status,
    /// Counted anew by each `task.retried`.
    pub attempt: u64,
    pub fence: u64,
    /// Attempts of these that ended without an outcome.
    pub lapses: u64,
    /// None while it waits.
    pub lease: Option<Lease>,
    /// When it may next run.
    pub ready_ms: u64,
    /// 0 to 100.
    pub progress: u64,
    pub cancel_requested: bool,
    pub cleared: bool,
    /// Of the last failure.
    pub code: Option<String>,
    /// What it gave, or the error of the last failure.
    pub output: Option<PayloadRef>,
    pub reused: bool,
    /// How often it was revived.
    pub retries: u64,
    pub last: Cid,
    pub last_seq: u64,
    pub submitted_ms: u64,
    /// The last claim since it was last revived, or the beginning of what holds it.
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
}

/// What submitting comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    New(Box<TaskSubmitted>),
    /// The same task was accepted before.
    Known,
}

/// What completing comes to.
#[expect(clippy::large_enum_variant, reason = "all but a repeated word is new, and is sealed at once")]
#[derive(Clone, Debug, PartialEq)]
pub enum Completed {
    New(Body),
    /// The same worker completed it with the same output before.
    Known,
}

/// How the node itself ends a task that no worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement<'a> {
    /// What it was held by has come.
    Succeeded,
    /// What it was held by will not come.
    Failed { code: &'a str },
    /// The output of an earlier task stands for its own; it need not run.
    Reused,
}

impl Status {
    pub fn ended(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Dead | Self::Cancelled | Self::TimedOut => true,
        }
    }
}

impl Task {
    /// The task that a `task.submitted` event begins.
    pub fn begun(event: &Event) -> Option<Self> {
        let Some(Body::TaskSubmitted(facts)) = event.body() else {
            return None;
        };
        Self::begun_with(facts, event)
    }

    /// As [`Task::begun`], for who still has the facts that `event` was sealed from.
    pub fn begun_with(facts: TaskSubmitted, event: &Event) -> Option<Self> {
        let fields = event.fields();
        let now_ms = event.fields().at_ms();
        let held = facts.hold.is_some();
        Some(Self {
            id: fields.subject.strip_prefix("task/")?.to_owned(),
            seq: fields.seq,
            submitted: event.cid(),
            actor: fields.actor.clone(),
            tool: fields.tool,
            input: event.fields().payload(Role::Input),
            asked: TaskSettings {
                priority: facts.priority,
                max_retries: facts.retry.max_retries,
                timeout_ms: facts.timeout_ms,
            },
            status: if held { Status::Running } else { Status::Queued },
            attempt: 0,
            fence: 0,
            lapses: 0,
            lease: None,
            ready_ms: facts.not_before_ms.unwrap_or(0).max(now_ms),
            progress: 0,
            cancel_requested: false,
            cleared: false,
            code: None,
            output: None,
            reused: false,
            retries: 0,
            last: event.cid(),
            last_seq: fields.seq,
            submitted_ms: now_ms,
            started_ms: held.then_some(now_ms),
            ended_ms: None,
            facts,
        })
    }

    /// Folds a later event of this task.
    pub fn apply(&mut self, event: &Event) {
        if let Some(body) = event.body() {
            self.apply_body(&body, event);
        }
    }

    /// As [`Task::apply`], for who still has the body that `event` was sealed from.
    pub fn apply_body(&mut self, body: &Body, event: &Event) {
        let now_ms = event.fields().at_ms();
        match body {
            Body::TaskClaimed(facts) => self.claimed(facts, event),
            Body::TaskRenewed(facts) => {
                self.progress = facts.progress.unwrap_or(self.progress);
                if let Some(lease) = &mut self.lease {
                    lease.until_ms = facts.lease_until_ms;
                }
            }
            Body::TaskSucceeded(facts) => {
                self.end(Status::Succeeded, now_ms);
                self.progress = 100;
                self.code = None;
                self.reused = facts.reused;
                self.output = event.fields().payload(Role::Output);
            }
            Body::TaskFailed(TaskFailed { code, retry_at_ms, .. }) => {
                self.output = event.fields().payload(Role::Error);
                self.failed(Status::Failed, code, *retry_at_ms, now_ms);
            }
            Body::TaskTimedOut(TaskTimedOut { retry_at_ms, .. }) => {
                self.output = None;
                self.failed(Status::TimedOut, Code::DeadlineExceeded.as_str(), *retry_at_ms, now_ms);
            }
            Body::TaskLeaseExpired(facts) => {
                match facts.unheard {
                    true => self.attempt = self.attempt.saturating_sub(1),
                    false => self.lapses += 1,
                }
                self.wait();
            }
            Body::TaskInterrupted(facts) => {
                self.lapses += 1;
                match facts.again {
                    true => self.wait(),
                    false => self.failed(Status::Failed, INTERRUPTED, None, now_ms),
                }
            }
            Body::TaskDead(facts) => {
                if facts.reason == POISON {
                    self.code = Some(POISON.to_owned());
                }
                self.end(Status::Dead, now_ms);
            }
            Body::TaskCancelRequested(_) => self.cancel_requested = true,
            Body::TaskCancelled(_) => {
                self.cancel_requested = true;
                self.end(Status::Cancelled, now_ms);
            }
            Body::TaskReprioritised(facts) => {
                self.facts.priority = facts.to;
                self.facts.order = facts.order;
            }
            Body::TaskRetried(facts) => self.retried(facts, event),
            Body::TaskCleared(_) => self.cleared = true,
            // What happens to other entities is not this task's.
            _ => return,
        }
        self.last = event.cid();
        self.last_seq = event.fields().seq;
    }

    fn claimed(&mut self, facts: &TaskClaimed, event: &Event) {
        let claimed_ms = event.fields().at_ms();
        self.status = Status::Running;
        self.attempt = facts.attempt;
        self.fence = facts.fence;
        self.started_ms = Some(claimed_ms);
        self.lease = Some(Lease {
            worker: facts.worker.clone(),
            runner: facts.runner.clone(),
            until_ms: facts.lease_until_ms,
            claimed: event.cid(),
            claimed_ms,
        });
    }

    fn retried(&mut self, facts: &TaskRetried, event: &Event) {
        self.input = event.fields().payload(Role::Input).or(self.input);
        self.facts.hold = facts.hold.clone().or_else(|| self.facts.hold.take());
        self.facts.order = facts.order;
        self.facts.retry.max_retries = facts.max_retries.unwrap_or(self.facts.retry.max_retries);
        self.facts.timeout_ms = facts.timeout_ms.or(self.facts.timeout_ms);
        self.revive(event.fields().at_ms());
    }

    fn end(&mut self, status: Status, now_ms: u64) {
        self.status = status;
        self.ended_ms = Some(now_ms);
    }

    /// Back in the line, at the place it had; what is held waits for no worker.
    fn wait(&mut self) {
        self.status = if self.facts.hold.is_some() { Status::Running } else { Status::Queued };
        self.lease = None;
        self.progress = 0;
        self.ended_ms = None;
    }

    fn failed(&mut self, status: Status, code: &str, retry_at_ms: Option<u64>, now_ms: u64) {
        self.code = Some(code.to_owned());
        let Some(retry_at_ms) = retry_at_ms else {
            return self.end(status, now_ms);
        };
        // It joins the line as what became ready then: the difference to its order is its priority's worth.
        let later = signed(retry_at_ms).saturating_sub(signed(self.ready_ms));
        self.facts.order = self.facts.order.saturating_add(later);
        self.ready_ms = retry_at_ms;
        self.wait();
    }

    /// As if it had been submitted now, but for its fence and its history.
    fn revive(&mut self, now_ms: u64) {
        self.wait();
        if let Some(Hold::Signal { until_ms: Some(until_ms), .. }) = &mut self.facts.hold {
            *until_ms = until_ms.saturating_sub(self.ready_ms).saturating_add(now_ms);
        }
        self.started_ms = self.facts.hold.is_some().then_some(now_ms);
        self.ready_ms = now_ms;
        self.attempt = 0;
        self.lapses = 0;
        self.retries += 1;
        self.cancel_requested = false;
        self.cleared = false;
        self.code = None;
        self.output = None;
        self.reused = false;
    }

    /// The fact of `body`. `asked` is the call that asked for it: its cause, unless it ends an attempt, whose
    /// cause is the claim; the call then stands in `refs`.
    pub fn fact(
        &self,
        body: Body,
        actor: Actor,
        asked: Option<Cid>,
        mut refs: Vec<Cid>,
        payloads: Vec<PayloadRef>,
    ) -> Fact {
        let claim = self.lease.as_ref().map(|lease| lease.claimed);
        let cause = match &body {
            Body::TaskSucceeded(_)
            | Body::TaskFailed(_)
            | Body::TaskTimedOut(_)
            | Body::TaskLeaseExpired(_)
            | Body::TaskInterrupted(_)
            | Body::TaskCancelled(_) => claim.or(asked),
            Body::TaskDead(_) => Some(claim.unwrap_or(self.last)),
            _ => asked,
        };
        refs.extend(asked.filter(|asked| Some(*asked) != cause));
        Fact { cause, refs, actor, subject: subject(&self.id), tool: self.tool, payloads, body }
    }
}

/// `task.dead`: attempts ended without an outcome too often.
pub const POISON: &str = "poison";
/// `task.dead`: the last of its retries failed.
pub const RETRIES_SPENT: &str = "retries_spent";
/// The code of an attempt whose process died and that may not run again.
const INTERRUPTED: &str = "interrupted";

/// The subject of a task's events.
pub fn subject(id: &str) -> String {
    format!("task/{id}")
}

/// Whether a user may give this name: 1 to 128 characters of `A-Z a-z 0-9 . _ : / -`.
pub fn name_allowed(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"._:/-".contains(&c);
    !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(allowed)
}

/// Returns the place in the queue of a task that becomes ready at `ready_ms`: lower runs sooner. Ageing is linear, so the
/// place never changes while the task waits, and the queue never has to be sorted again.
pub fn order(ready_ms: u64, priority: u64, ageing_ms: u64) -> i64 {
    signed(ready_ms).saturating_sub(signed(priority.saturating_mul(ageing_ms)))
}

/// Asks whether work may be accepted under `id`. `earlier` is the task of that id, `waiting` how many tasks wait;
/// the order in `facts` is set here. The steps of a run that was accepted are accepted however many wait.
pub fn submit(
    earlier: Option<&Task>,
    id: &str,
    facts: TaskSubmitted,
    input: &PayloadRef,
    waiting: u64,
    moment: &Moment,
) -> Result<Submitted, Refusal> {
    if let Some(earlier) = earlier {
        return match earlier.promises_same(&facts, input) {
            true => Ok(Submitted::Known),
            false => Err(Refusal::new(
                Code::AlreadyExists,
                format!("task {id} was submitted before with other content"),
            )
            .hint("use a new task_id for new content")),
        };
    }
    checks::submission(id, &facts)?;
    let queued = facts.hold.is_none() && facts.run.is_none();
    if queued && waiting >= moment.limits.queue_max {
        return Err(Refusal::new(
            Code::ResourceExhausted,
            format!("the queue is full: {waiting} tasks wait"),
        )
        .retryable()
        .hint("submit it again under the same task_id once tasks have been taken"));
    }
    let ready_ms = facts.not_before_ms.unwrap_or(0).max(moment.now_ms);
    let order = order(ready_ms, facts.priority, moment.limits.ageing_ms);
    Ok(Submitted::New(Box::new(TaskSubmitted { order, ..facts })))
}

/// Moments and spans are far below the bound of `i64`; what is not stands at its end.
fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
