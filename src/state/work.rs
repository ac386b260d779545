//! Folds durable work: tasks, workers, runs, the queue and schedules, and counts of them.
//!
//! Invariants:
//! - a row follows the events of its subject; an event of a subject that was never submitted changes nothing;
//! - no payload is read.

mod tasks;

pub mod counts;
pub mod runs;

use rusqlite::params;

use self::tasks::{Next, Outcome};
use crate::{
    event::{
        Body, Event,
        work::{Rhythm, ScheduleCreated, WorkerRegistered},
    },
    state::{StateError, fold::Folder},
    task,
    worker::{self, Presence},
    workflow::run::{CONDITION, status as run},
};

/// Makes the names of statuses from the list of them: the tables hold the place of each.
macro_rules! names {
    ($all:expr) => {{
        let mut names = [""; $all.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = $all[at].as_str();
            at += 1;
        }
        names
    }};
}

/// The statuses of a task, each at the number it is stored as.
pub const TASK_STATUSES: [&str; task::Status::ALL.len()] = names!(task::Status::ALL);
/// The statuses of a run, each at the number it is stored as.
pub const RUN_STATUSES: [&str; run::Status::ALL.len()] = names!(run::Status::ALL);
/// The statuses of a worker, each at the number it is stored as. Whether it is busy is told by its tasks.
pub const WORKER_STATUSES: [&str; WORKERS_SHOWN.len()] = names!(WORKERS_SHOWN);
const WORKERS_SHOWN: [worker::Status; 3] =
    [worker::Status::Active, worker::Status::Draining, worker::Status::Offline];

/// Every task is listed under this tag.
pub(crate) const EVERY_TASK: u64 = 0;

pub(crate) const QUEUED: u8 = task::Status::Queued as u8;
pub(crate) const RUNNING: u8 = task::Status::Running as u8;
const SUCCEEDED: u8 = task::Status::Succeeded as u8;
const FAILED: u8 = task::Status::Failed as u8;
const DEAD: u8 = task::Status::Dead as u8;
const CANCELLED: u8 = task::Status::Cancelled as u8;
const TIMED_OUT: u8 = task::Status::TimedOut as u8;
/// The first status of a run that has ended.
pub(crate) const RUN_SUCCEEDED: u8 = run::Status::Succeeded as u8;

const MICROS_A_MILLI: u64 = 1_000;
const MICROS_A_MINUTE: u64 = 60_000_000;

/// Says when an event happened and its seq.
struct Moment {
    seq: u64,
    ms: u64,
    minute: u64,
}

impl Folder {
    /// Folds what an event of durable work changes.
    pub(super) fn remember_work(
        &mut self,
        event: &Event,
        body: Body,
        subject: u64,
    ) -> Result<(), StateError> {
        let fields = event.fields();
        let (ms, minute) = (fields.ts / MICROS_A_MILLI, fields.ts / MICROS_A_MINUTE);
        let moment = Moment { seq: fields.seq, ms, minute };
        match body {
            Body::TaskSubmitted(facts) => self.task_submitted(event, facts, subject, &moment),
            Body::TaskClaimed(facts) => self.task_claimed(&facts, subject, &moment),
            Body::TaskSucceeded(facts) => self.task_succeeded(facts.reused, subject, &moment),
            Body::TaskFailed(facts) => {
                let next = facts.retry_at_ms.map_or(Next::Ended(FAILED), |at| Next::Again(Some(at)));
                self.task_turned(subject, Outcome::Failed, &next, &moment)
            }
            Body::TaskTimedOut(facts) => {
                let next = facts.retry_at_ms.map_or(Next::Ended(TIMED_OUT), |at| Next::Again(Some(at)));
                self.task_turned(subject, Outcome::Failed, &next, &moment)
            }
            Body::TaskLeaseExpired(facts) => {
                self.task_turned(subject, Outcome::Lost, &Next::Again(None), &moment)?;
                let sql = "UPDATE task SET attempt = attempt - ?2 WHERE id = ?1";
                self.insert(sql, params![subject, facts.unheard])
            }
            Body::TaskInterrupted(facts) => {
                let next = if facts.again { Next::Again(None) } else { Next::Ended(FAILED) };
                self.task_turned(subject, Outcome::Lost, &next, &moment)
            }
            Body::TaskDead(_) => self.task_turned(subject, Outcome::Lost, &Next::Ended(DEAD), &moment),
            Body::TaskCancelled(_) => {
                self.task_turned(subject, Outcome::Lost, &Next::Ended(CANCELLED), &moment)
            }
            Body::TaskReprioritised(facts) => self.task_reprioritised(&facts, subject),
            Body::TaskRetried(facts) => self.task_retried(event, &facts, subject, &moment),
            Body::TaskCleared(_) => self.task_cleared(subject),
            Body::QueuePaused(_) => self.insert("UPDATE queue SET paused = ?1", params![moment.seq]),
            Body::QueueResumed(_) => self.insert("UPDATE queue SET paused = NULL", &[]),
            Body::WorkerRegistered(facts) => self.worker_registered(event, &facts, subject, &moment),
            Body::WorkerDraining(facts) => {
                self.worker_turned(subject, Presence::Draining { until_ms: facts.until_ms }, &moment)
            }
            Body::WorkerUnregistered(_) => self.worker_turned(subject, Presence::Unregistered, &moment),
            Body::WorkerLost(_) => self.worker_turned(subject, Presence::Lost, &moment),
            Body::WorkflowSubmitted(facts) => self.run_submitted(&facts, subject),
            Body::WorkflowStarted(_) => self.run_turned(subject, run::Status::Running, &moment),
            Body::WorkflowSucceeded(_) => self.run_turned(subject, run::Status::Succeeded, &moment),
            Body::WorkflowFailed(_) => self.run_turned(subject, run::Status::Failed, &moment),
            Body::WorkflowCancelled(_) => self.run_turned(subject, run::Status::Cancelled, &moment),
            Body::WorkflowTimedOut(_) => self.run_turned(subject, run::Status::TimedOut, &moment),
            Body::WorkflowRescheduled(_) => self.run_rescheduled(subject),
            Body::StepSkipped(facts) if facts.reason == CONDITION => self.step_done(subject),
            Body::StepGathered(_) => self.step_gathered(subject),
            Body::StepFailed(_) => {
                if let Some(metrics) = &self.watcher {
                    metrics.work.step_ended(task::Status::Failed.as_str(), None);
                }
                Ok(())
            }
            Body::ScheduleCreated(facts) => self.schedule_created(event, &facts, subject, &moment),
            Body::ScheduleFired(facts) => self.insert(
                "UPDATE schedule SET next_ms = ?2, last_ms = ?3, fired = fired + ?4, missed = missed + ?5,
                 skipped = skipped + ?6 WHERE id = ?1",
                params![subject, facts.next_ms, facts.at_ms, !facts.skipped, facts.missed, facts.skipped],
            ),
            Body::ScheduleDeleted(_) => {
                self.insert("UPDATE schedule SET deleted = 1 WHERE id = ?1", params![subject])
            }
            // These are read from the events themselves, or folded with calls and contracts.
            Body::TaskRenewed(_)
            | Body::TaskCancelRequested(_)
            | Body::QueueCleared(_)
            | Body::WorkflowSignalled(_)
            | Body::WorkflowReplayed(_)
            | Body::StepSkipped(_)
            | Body::LogOpened(_)
            | Body::LogRecovered(_)
            | Body::LogTakenOver(_)
            | Body::LogSalted(_)
            | Body::LogKeyRotated(_)
            | Body::TokenAdded(_)
            | Body::TokenRevoked(_)
            | Body::AccessRead(_)
            | Body::AccessRefused(_)
            | Body::ConfigApplied(_)
            | Body::PeerDiscovered(_)
            | Body::PeerConnected(_)
            | Body::PeerDisconnected(_)
            | Body::PeerUnreachable(_)
            | Body::PeerMeasured(_)
            | Body::PeerForked(_)
            | Body::PeerReleased(_)
            | Body::BootstrapStarted(_)
            | Body::BootstrapFinished(_)
            | Body::RemoteCalled(_)
            | Body::LogFollowed(_)
            | Body::AccessExported(_)
            | Body::ContractPublished(_)
            | Body::ContractRetired(_)
            | Body::CallStarted(_)
            | Body::CallSucceeded(_)
            | Body::CallFailed(_)
            | Body::CallRefused(_)
            | Body::CallInterrupted(_)
            | Body::CallCancelled(_)
            | Body::PayloadErased(_) => Ok(()),
        }
    }

    fn worker_registered(
        &mut self,
        event: &Event,
        facts: &WorkerRegistered,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let name = self.word(name_in(event, "worker/"))?;
        let capabilities = serde_json::Value::from(facts.capabilities.clone()).to_string();
        self.insert(
            "INSERT INTO worker (id, name, status, capabilities, max_concurrent, registered_ms, until_ms, seq)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, ?7)
             ON CONFLICT (id) DO UPDATE SET status = ?3, capabilities = ?4, max_concurrent = ?5,
             registered_ms = ?6, until_ms = NULL, seq = ?7",
            params![id, name, stored(Presence::Registered), capabilities, facts.max_concurrent, moment.ms, moment.seq],
        )
    }

    fn worker_turned(&mut self, id: u64, presence: Presence, moment: &Moment) -> Result<(), StateError> {
        let until_ms = match presence {
            Presence::Draining { until_ms } => Some(until_ms),
            Presence::Registered | Presence::Lost | Presence::Unregistered => None,
        };
        let sql = "UPDATE worker SET status = ?2, until_ms = ?3, seq = ?4 WHERE id = ?1";
        self.insert(sql, params![id, stored(presence), until_ms, moment.seq])
    }

    fn schedule_created(
        &mut self,
        event: &Event,
        facts: &ScheduleCreated,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let name = self.word(name_in(event, "schedule/"))?;
        let (cron, every_ms) = match &facts.rhythm {
            Rhythm::Cron { line } => (Some(line), None),
            Rhythm::Every { ms } => (None, Some(ms)),
        };
        self.insert(
            "INSERT INTO schedule (id, name, created, cron, every_ms, makes, next_ms, fired, missed, skipped, deleted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, 0, 0)
             ON CONFLICT (id) DO UPDATE SET created = ?3, cron = ?4, every_ms = ?5, makes = ?6, next_ms = ?7,
             last_ms = NULL, fired = 0, missed = 0, skipped = 0, deleted = 0",
            params![id, name, moment.seq, cron, every_ms, facts.makes, facts.next_ms],
        )
    }
}

/// The number that where a worker stands is stored as.
fn stored(presence: Presence) -> Option<usize> {
    WORKERS_SHOWN.iter().position(|shown| *shown == presence.status())
}

fn name_in<'a>(event: &'a Event, prefix: &str) -> &'a str {
    let subject = &event.fields().subject;
    subject.strip_prefix(prefix).unwrap_or(subject)
}
