//! Folds durable work: tasks, workers, runs, the queue and schedules, and counts of them.
//!
//! Invariants:
//! - a row follows the events of its subject; an event of a task or run that was never submitted adds no row;
//! - no payload is read, and only the name of a plan.

pub mod counts;
mod tasks;

use self::tasks::{Next, Outcome};
use rusqlite::{OptionalExtension, params};
use serde::Deserialize;

use crate::{
    block::{Cid, decode},
    event::{
        Body, Event,
        work::{Rhythm, ScheduleCreated, WorkerRegistered, WorkflowSubmitted},
    },
    log::Stored,
    state::{StateError, fold::Folder, subject_key},
};

/// Lists the statuses of a task. The tables store the index of one.
pub const TASK_STATUSES: [&str; 7] =
    ["queued", "running", "succeeded", "failed", "dead", "cancelled", "timed_out"];
/// Lists the statuses of a run, as [`TASK_STATUSES`] those of a task.
pub const RUN_STATUSES: [&str; 7] =
    ["submitted", "waiting", "running", "succeeded", "failed", "cancelled", "timed_out"];
/// Lists the statuses of a worker, in the same way.
pub const WORKER_STATUSES: [&str; 3] = ["active", "draining", "offline"];

/// Every task is listed under this tag.
pub(crate) const EVERY_TASK: u64 = 0;

pub(crate) const QUEUED: u8 = 0;
pub(crate) const RUNNING: u8 = 1;
const SUCCEEDED: u8 = 2;
const FAILED: u8 = 3;
const DEAD: u8 = 4;
const CANCELLED: u8 = 5;
const TIMED_OUT: u8 = 6;

const RUN_SUBMITTED: u8 = 0;
const RUN_WAITING: u8 = 1;
const RUN_RUNNING: u8 = 2;
/// This status and those after it are of runs that have ended.
pub(crate) const RUN_SUCCEEDED: u8 = 3;
const RUN_FAILED: u8 = 4;
const RUN_CANCELLED: u8 = 5;
const RUN_TIMED_OUT: u8 = 6;

const WORKER_ACTIVE: u8 = 0;
const WORKER_DRAINING: u8 = 1;
const WORKER_OFFLINE: u8 = 2;

const MICROS_A_MILLI: u64 = 1_000;
const MICROS_A_MINUTE: u64 = 60_000_000;

/// Says when an event happened and its seq.
struct Moment {
    seq: u64,
    ms: u64,
    minute: u64,
}

/// Reads only the name from a plan.
#[derive(Deserialize)]
struct Named {
    name: String,
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
            Body::TaskRetried(facts) => self.task_retried(&facts, subject, &moment),
            Body::TaskCleared(_) => self.task_cleared(subject),
            Body::QueuePaused(_) => self.insert("UPDATE queue SET paused = ?1", params![moment.seq]),
            Body::QueueResumed(_) => self.insert("UPDATE queue SET paused = NULL", &[]),
            Body::WorkerRegistered(facts) => self.worker_registered(event, &facts, subject, &moment),
            Body::WorkerDraining(facts) => {
                self.worker_turned(subject, WORKER_DRAINING, Some(facts.until_ms), &moment)
            }
            Body::WorkerUnregistered(_) | Body::WorkerLost(_) => {
                self.worker_turned(subject, WORKER_OFFLINE, None, &moment)
            }
            Body::WorkflowSubmitted(facts) => self.run_submitted(&facts, subject),
            Body::WorkflowStarted(_) => self.run_turned(subject, RUN_RUNNING, None, &moment),
            Body::WorkflowSucceeded(_) => self.run_turned(subject, RUN_SUCCEEDED, None, &moment),
            Body::WorkflowFailed(_) => self.run_turned(subject, RUN_FAILED, None, &moment),
            Body::WorkflowCancelled(_) => self.run_turned(subject, RUN_CANCELLED, None, &moment),
            Body::WorkflowTimedOut(_) => self.run_turned(subject, RUN_TIMED_OUT, None, &moment),
            Body::WorkflowRescheduled(facts) => {
                self.run_turned(subject, RUN_RUNNING, facts.priority, &moment)
            }
            Body::StepSkipped(facts) if facts.reason == "condition" => self.step_done(subject, 1),
            Body::StepGathered(_) => self.step_done(subject, 1),
            Body::StepFailed(_) => {
                if let Some(metrics) = &self.watcher {
                    metrics.work.step_ended(TASK_STATUSES[usize::from(FAILED)], None);
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

    fn run_submitted(&mut self, facts: &WorkflowSubmitted, id: u64) -> Result<(), StateError> {
        let status = if facts.dependencies.is_empty() { RUN_SUBMITTED } else { RUN_WAITING };
        let (plan, name) = (self.block(&facts.plan)?, self.plan_name(&facts.plan)?);
        let peer = facts.peer.as_ref().map(|peer| self.word(peer)).transpose()?;
        self.insert(
            "INSERT INTO workflow (id, status, name, priority, plan, steps, done, peer)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7)",
            params![id, status, name, facts.priority, plan, facts.steps, peer],
        )?;
        for tag in &facts.tags {
            let tag = self.word(tag)?;
            let sql = "INSERT OR IGNORE INTO workflow_tag (tag, workflow) VALUES (?1, ?2)";
            self.insert(sql, params![tag, id])?;
        }
        *self.counts.runs.entry(status).or_default() += 1;
        Ok(())
    }

    fn run_turned(
        &mut self,
        id: u64,
        status: u8,
        priority: Option<u64>,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some((before, started_ms)) = self.run_stands(id)? else { return Ok(()) };
        let ended = status >= RUN_SUCCEEDED;
        self.insert(
            "UPDATE workflow SET status = ?2, priority = coalesce(?3, priority), ended_ms = ?4,
             started_ms = coalesce(started_ms, ?5) WHERE id = ?1",
            params![
                id,
                status,
                priority,
                ended.then_some(moment.ms),
                (status == RUN_RUNNING).then_some(moment.ms)
            ],
        )?;
        self.counts.move_run(before, status);
        if ended {
            let minute = self.counts.minute(moment.minute);
            minute.runs_ended += 1;
            minute.runs_failed += u64::from(status == RUN_FAILED || status == RUN_TIMED_OUT);
            if let (Some(metrics), Some(started_ms)) = (&self.watcher, started_ms) {
                let took_ms = moment.ms.saturating_sub(started_ms);
                metrics.work.run_ended(RUN_STATUSES[usize::from(status)], took_ms);
            }
        }
        Ok(())
    }

    fn plan_name(&self, plan: &Cid) -> Result<Option<String>, StateError> {
        Ok(match self.log.block(plan)? {
            Some(Stored::Present(bytes)) => decode::<Named>(&bytes).ok().map(|plan| plan.name),
            Some(Stored::Erased) | None => None,
        })
    }

    /// Returns the status of a run, and when it started.
    fn run_stands(&self, id: u64) -> Result<Option<(u8, Option<u64>)>, StateError> {
        let mut find = self.state.prepare_cached("SELECT status, started_ms FROM workflow WHERE id = ?1")?;
        Ok(find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    }

    /// Returns the number of a task's run. A run that waited for others waits no longer once it has a task.
    fn run_of(&mut self, run: &str) -> Result<Option<u64>, StateError> {
        let found: Option<(u64, u8)> = {
            let mut find = self.state.prepare_cached(
                "SELECT workflow.id, workflow.status FROM subject JOIN workflow ON workflow.id = subject.id
                 WHERE subject.name = ?1",
            )?;
            let key = subject_key(&format!("workflow/{run}"));
            find.query_row([key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?
        };
        if let Some((id, RUN_WAITING)) = found {
            self.insert("UPDATE workflow SET status = ?2 WHERE id = ?1", params![id, RUN_SUBMITTED])?;
            self.counts.move_run(RUN_WAITING, RUN_SUBMITTED);
        }
        Ok(found.map(|(id, _)| id))
    }

    fn step_done(&self, run: u64, by: i64) -> Result<(), StateError> {
        self.insert("UPDATE workflow SET done = done + ?2 WHERE id = ?1", params![run, by])
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
            params![id, name, WORKER_ACTIVE, capabilities, facts.max_concurrent, moment.ms, moment.seq],
        )
    }

    fn worker_turned(
        &mut self,
        id: u64,
        status: u8,
        until_ms: Option<u64>,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let sql = "UPDATE worker SET status = ?2, until_ms = ?3, seq = ?4 WHERE id = ?1";
        self.insert(sql, params![id, status, until_ms, moment.seq])
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

fn name_in<'a>(event: &'a Event, prefix: &str) -> &'a str {
    let subject = &event.fields().subject;
    subject.strip_prefix(prefix).unwrap_or(subject)
}
