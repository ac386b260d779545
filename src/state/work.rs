//! The fold of durable work: tasks, workers, runs, the queue, schedules, and what they come to.
//!
//! Invariants:
//! - a row follows the events of its subject; an event of a subject that was never submitted changes nothing;
//! - counts are kept as changes and added up when a batch ends, so how events were grouped leaves no trace;
//! - minutes older than a day before the last one are dropped, so that table is bounded.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;

use crate::{
    block::{Cid, decode},
    event::{
        Body, Event, Role,
        work::{
            Part, Rhythm, ScheduleCreated, TaskClaimed, TaskReprioritised, TaskRetried, TaskSubmitted,
            WorkerRegistered, WorkflowSubmitted,
        },
    },
    log::Stored,
    state::{StateError, fold::Folder, subject_key},
};

/// The statuses of a task; the tables hold the place of each.
pub const TASK_STATUSES: [&str; 7] =
    ["queued", "running", "succeeded", "failed", "dead", "cancelled", "timed_out"];
/// The statuses of a run.
pub const RUN_STATUSES: [&str; 7] =
    ["submitted", "waiting", "running", "succeeded", "failed", "cancelled", "timed_out"];
/// The statuses of a worker.
pub const WORKER_STATUSES: [&str; 3] = ["active", "draining", "offline"];

/// The tag every task is listed under.
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
/// The first status of a run that has ended.
pub(crate) const RUN_SUCCEEDED: u8 = 3;
const RUN_FAILED: u8 = 4;
const RUN_CANCELLED: u8 = 5;
const RUN_TIMED_OUT: u8 = 6;

const WORKER_ACTIVE: u8 = 0;
const WORKER_DRAINING: u8 = 1;
const WORKER_OFFLINE: u8 = 2;

/// Minutes that are kept: a day.
pub const MINUTES_MAX: u64 = 24 * 60;

const MICROS_A_MILLI: u64 = 1_000;
const MICROS_A_MINUTE: u64 = 60_000_000;

/// What the counts have changed by since they were last written.
#[derive(Default)]
pub(super) struct Counts {
    /// By tag, status and priority.
    tasks: HashMap<(u64, u8, u64), i64>,
    runs: HashMap<u8, i64>,
    /// By the word of the worker.
    workers: HashMap<u64, Load>,
    minutes: BTreeMap<u64, Minute>,
}

#[derive(Default)]
struct Load {
    running: i64,
    succeeded: u64,
    failed: u64,
    execution_ms: u64,
}

#[derive(Default)]
struct Minute {
    submitted: u64,
    started: u64,
    succeeded: u64,
    failed: u64,
    executed: u64,
    wait_ms: u64,
    execution_ms: u64,
    runs_ended: u64,
    runs_failed: u64,
}

impl Counts {
    /// Adds the changes to the tables.
    pub(super) fn write(&mut self, state: &Connection) -> Result<(), StateError> {
        let mut tasks = state.prepare_cached(
            "INSERT INTO task_tally (tag, status, priority, n) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (tag, status, priority) DO UPDATE SET n = n + ?4",
        )?;
        for ((tag, status, priority), n) in self.tasks.drain() {
            tasks.execute(params![tag, status, priority, n])?;
        }
        let mut runs = state.prepare_cached(
            "INSERT INTO workflow_tally (status, n) VALUES (?1, ?2)
             ON CONFLICT (status) DO UPDATE SET n = n + ?2",
        )?;
        for (status, n) in self.runs.drain() {
            runs.execute(params![status, n])?;
        }
        let mut workers = state.prepare_cached(
            "INSERT INTO worker_tally (worker, running, succeeded, failed, execution_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (worker) DO UPDATE SET running = running + ?2, succeeded = succeeded + ?3,
             failed = failed + ?4, execution_ms = execution_ms + ?5",
        )?;
        for (worker, load) in self.workers.drain() {
            let Load { running, succeeded, failed, execution_ms } = load;
            workers.execute(params![worker, running, succeeded, failed, execution_ms])?;
        }
        self.write_minutes(state)
    }

    fn write_minutes(&mut self, state: &Connection) -> Result<(), StateError> {
        let Some(newest) = self.minutes.keys().next_back().copied() else {
            return Ok(());
        };
        let mut insert = state.prepare_cached(
            "INSERT INTO minute (minute, submitted, started, succeeded, failed, executed, wait_ms, execution_ms,
             runs_ended, runs_failed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (minute) DO UPDATE SET submitted = submitted + ?2, started = started + ?3,
             succeeded = succeeded + ?4, failed = failed + ?5, executed = executed + ?6, wait_ms = wait_ms + ?7,
             execution_ms = execution_ms + ?8, runs_ended = runs_ended + ?9, runs_failed = runs_failed + ?10",
        )?;
        for (minute, counts) in std::mem::take(&mut self.minutes) {
            insert.execute(params![
                minute,
                counts.submitted,
                counts.started,
                counts.succeeded,
                counts.failed,
                counts.executed,
                counts.wait_ms,
                counts.execution_ms,
                counts.runs_ended,
                counts.runs_failed,
            ])?;
        }
        let mut drop_old = state.prepare_cached("DELETE FROM minute WHERE minute + ?2 <= ?1")?;
        drop_old.execute(params![newest, MINUTES_MAX])?;
        Ok(())
    }

    fn move_run(&mut self, from: u8, to: u8) {
        *self.runs.entry(from).or_default() -= 1;
        *self.runs.entry(to).or_default() += 1;
    }

    fn minute(&mut self, moment: &Moment) -> &mut Minute {
        self.minutes.entry(moment.minute).or_default()
    }
}

/// When and where in the log an event stands.
struct Moment {
    seq: u64,
    ms: u64,
    minute: u64,
}

/// A task as it stood before an event.
struct Before {
    status: u8,
    cleared: bool,
    held: bool,
    priority: u64,
    ready_ms: u64,
    part: u8,
    worker: Option<u64>,
    started_ms: Option<u64>,
    run: Option<u64>,
    tool: Option<u64>,
    input: Option<u64>,
    tags: Vec<u64>,
}

/// What the tables keep of a plan.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Succeeded,
    Failed,
    /// It was taken from its worker: nothing is known of it.
    Lost,
}

/// What becomes of a task.
enum Next {
    /// It is back in the line; not before a time, if one is given.
    Again(Option<u64>),
    Ended(u8),
}

impl Folder {
    /// What each kind of durable work changes.
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
            Body::TaskLeaseExpired(_) => {
                self.task_turned(subject, Outcome::Lost, &Next::Again(None), &moment)
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
            Body::ScheduleCreated(facts) => self.schedule_created(event, &facts, subject, &moment),
            Body::ScheduleFired(facts) => self.insert(
                "UPDATE schedule SET next_ms = ?2, last_ms = ?3, fired = fired + 1 WHERE id = ?1",
                params![subject, facts.next_ms, facts.at_ms],
            ),
            Body::ScheduleDeleted(_) => {
                self.insert("UPDATE schedule SET deleted = 1 WHERE id = ?1", params![subject])
            }
            // What these say is read from the events themselves, or folded with calls and contracts.
            Body::TaskRenewed(_)
            | Body::TaskCancelRequested(_)
            | Body::QueueCleared(_)
            | Body::WorkflowSignalled(_)
            | Body::WorkflowReplayed(_)
            | Body::StepSkipped(_)
            | Body::StepFailed(_)
            | Body::LogOpened(_)
            | Body::LogRecovered(_)
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

    fn task_submitted(
        &mut self,
        event: &Event,
        facts: TaskSubmitted,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let fields = event.fields();
        let run = facts.run.as_deref().map(|run| self.run_of(run)).transpose()?.flatten();
        let class = self.word(&class(&facts.task_type, &facts.requires))?;
        let input = fields.pay.iter().find(|pay| pay.role == Role::Input);
        let input = input.map(|pay| self.block(&pay.cid)).transpose()?.flatten();
        let tool = fields.tool.map(|cid| self.block(&cid)).transpose()?.flatten();
        let mut tags = facts.tags.iter().map(|tag| self.word(tag)).collect::<Result<Vec<_>, _>>()?;
        tags.sort_unstable();
        tags.dedup();
        let held = facts.hold.is_some();
        let status = waiting(held);
        let part = match facts.part {
            Part::Whole => 0,
            Part::Each { .. } => 1,
            Part::Undo => 2,
        };
        self.insert(
            "INSERT INTO task (id, status, cleared, held, priority, class, ord, ready_ms, attempt, retries, part,
             started_ms, run, tool, input, concurrency_key, rate_key, unique_key, tags)
             VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, 0, 0, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            params![
                id,
                status,
                held,
                facts.priority,
                class,
                facts.order,
                facts.not_before_ms.unwrap_or(0).max(moment.ms),
                part,
                held.then_some(moment.ms),
                run,
                tool,
                input,
                facts.concurrency_key,
                facts.rate_key,
                facts.unique_key,
                (!tags.is_empty()).then(|| words_text(&tags)),
            ],
        )?;
        self.list(id, &tags, None, Some((status, facts.priority)))?;
        self.counts.minute(moment).submitted += 1;
        Ok(())
    }

    fn task_claimed(&mut self, facts: &TaskClaimed, id: u64, moment: &Moment) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let worker = self.word(&facts.worker)?;
        self.insert(
            "UPDATE task SET status = ?2, worker = ?3, attempt = ?4, started_ms = ?5 WHERE id = ?1",
            params![id, RUNNING, worker, facts.attempt, moment.ms],
        )?;
        if let Some(until_ms) = facts.rate_until_ms {
            let sql = "INSERT INTO rate (key, until_ms) SELECT rate_key, ?2 FROM task WHERE id = ?1 AND rate_key IS NOT NULL
                       ON CONFLICT (key) DO UPDATE SET until_ms = ?2";
            self.insert(sql, params![id, until_ms])?;
        }
        self.relist(id, &before, (RUNNING, before.priority))?;
        self.counts.workers.entry(worker).or_default().running += 1;
        let minute = self.counts.minute(moment);
        minute.started += 1;
        minute.wait_ms += moment.ms.saturating_sub(before.ready_ms);
        Ok(())
    }

    fn task_succeeded(&mut self, reused: bool, id: u64, moment: &Moment) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        self.turn(id, &before, Outcome::Succeeded, &Next::Ended(SUCCEEDED), moment)?;
        if let (Some(run), 0) = (before.run, before.part) {
            self.step_done(run, 1)?;
        }
        let (Some(tool), Some(input), false) = (before.tool, before.input, reused) else {
            return Ok(());
        };
        let sql = "INSERT INTO outcome (tool, input, seq) VALUES (?1, ?2, ?3)
                   ON CONFLICT (tool, input) DO UPDATE SET seq = ?3";
        self.insert(sql, params![tool, input, moment.seq])
    }

    fn task_turned(
        &mut self,
        id: u64,
        outcome: Outcome,
        next: &Next,
        moment: &Moment,
    ) -> Result<(), StateError> {
        match self.before(id)? {
            Some(before) => self.turn(id, &before, outcome, next, moment),
            None => Ok(()),
        }
    }

    /// Ends the attempt under way, if there is one, and puts the task where it goes next.
    fn turn(
        &mut self,
        id: u64,
        before: &Before,
        outcome: Outcome,
        next: &Next,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let open = before.status <= RUNNING;
        if let (RUNNING, Some(worker)) = (before.status, before.worker) {
            self.count_attempt(worker, before, outcome, moment);
        }
        let status = match next {
            Next::Again(at) => {
                // The line is kept by when a task may run, less what its priority is worth: it moves by as much.
                self.insert(
                    "UPDATE task SET status = ?2, worker = NULL, ord = ord + coalesce(?3 - ready_ms, 0),
                     ready_ms = coalesce(?3, ready_ms) WHERE id = ?1",
                    params![id, waiting(before.held), at],
                )?;
                waiting(before.held)
            }
            Next::Ended(status) => {
                let sql = "UPDATE task SET status = ?2, ended_ms = ?3 WHERE id = ?1";
                self.insert(sql, params![id, status, moment.ms])?;
                let minute = self.counts.minute(moment);
                match *status {
                    SUCCEEDED => minute.succeeded += 1,
                    FAILED | TIMED_OUT => minute.failed += 1,
                    // What is dead after it had failed is not counted twice.
                    DEAD if open => minute.failed += 1,
                    _ => {}
                }
                *status
            }
        };
        self.relist(id, before, (status, before.priority))
    }

    fn count_attempt(&mut self, worker: u64, before: &Before, outcome: Outcome, moment: &Moment) {
        let took_ms = moment.ms.saturating_sub(before.started_ms.unwrap_or(moment.ms));
        let load = self.counts.workers.entry(worker).or_default();
        load.running -= 1;
        match outcome {
            Outcome::Succeeded => load.succeeded += 1,
            Outcome::Failed => load.failed += 1,
            Outcome::Lost => return,
        }
        load.execution_ms += took_ms;
        let minute = self.counts.minute(moment);
        minute.executed += 1;
        minute.execution_ms += took_ms;
    }

    /// Moves a task that is listed to where it stands now.
    fn relist(&mut self, id: u64, before: &Before, to: (u8, u64)) -> Result<(), StateError> {
        let from = (before.status, before.priority);
        if before.cleared || from == to {
            return Ok(());
        }
        self.list(id, &before.tags, Some(from), Some(to))
    }

    /// Lists a task under all its tags where it stands now, and no more where it stood.
    fn list(
        &mut self,
        id: u64,
        tags: &[u64],
        from: Option<(u8, u64)>,
        to: Option<(u8, u64)>,
    ) -> Result<(), StateError> {
        for tag in iter::once(EVERY_TASK).chain(tags.iter().copied()) {
            if let Some((status, priority)) = from {
                let sql =
                    "DELETE FROM task_listed WHERE tag = ?1 AND status = ?2 AND priority = ?3 AND task = ?4";
                self.insert(sql, params![tag, status, priority, id])?;
                *self.counts.tasks.entry((tag, status, priority)).or_default() -= 1;
            }
            if let Some((status, priority)) = to {
                let sql = "INSERT INTO task_listed (tag, status, priority, task) VALUES (?1, ?2, ?3, ?4)";
                self.insert(sql, params![tag, status, priority, id])?;
                *self.counts.tasks.entry((tag, status, priority)).or_default() += 1;
            }
        }
        Ok(())
    }

    fn task_reprioritised(&mut self, facts: &TaskReprioritised, id: u64) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let sql = "UPDATE task SET priority = ?2, ord = ?3 WHERE id = ?1";
        self.insert(sql, params![id, facts.to, facts.order])?;
        self.relist(id, &before, (before.status, facts.to))
    }

    fn task_retried(&mut self, facts: &TaskRetried, id: u64, moment: &Moment) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let status = waiting(before.held);
        self.insert(
            "UPDATE task SET status = ?2, cleared = 0, attempt = 0, retries = retries + 1, ord = ?3, ready_ms = ?4,
             worker = NULL, started_ms = ?5, ended_ms = NULL WHERE id = ?1",
            params![id, status, facts.order, moment.ms, before.held.then_some(moment.ms)],
        )?;
        if before.cleared {
            self.list(id, &before.tags, None, Some((status, before.priority)))?;
        } else {
            self.relist(id, &before, (status, before.priority))?;
        }
        match (before.run, before.part, before.status) {
            (Some(run), 0, SUCCEEDED) => self.step_done(run, -1),
            _ => Ok(()),
        }
    }

    fn task_cleared(&mut self, id: u64) -> Result<(), StateError> {
        let Some(before) = self.before(id)?.filter(|before| !before.cleared) else { return Ok(()) };
        self.insert("UPDATE task SET cleared = 1 WHERE id = ?1", params![id])?;
        self.list(id, &before.tags, Some((before.status, before.priority)), None)
    }

    fn run_submitted(&mut self, facts: &WorkflowSubmitted, id: u64) -> Result<(), StateError> {
        let status = if facts.dependencies.is_empty() { RUN_SUBMITTED } else { RUN_WAITING };
        let (plan, name) = (self.block(&facts.plan)?, self.plan_name(&facts.plan)?);
        self.insert(
            "INSERT INTO workflow (id, status, name, priority, plan, steps, done)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
            params![id, status, name, facts.priority, plan, facts.steps],
        )?;
        for tag in &facts.tags {
            let tag = self.word(tag)?;
            let sql = "INSERT OR IGNORE INTO workflow_tag (tag, workflow) VALUES (?1, ?2)";
            self.insert(sql, params![tag, id])?;
        }
        for needs in &facts.dependencies {
            let sql = "INSERT OR IGNORE INTO dependency (needs, workflow)
                       SELECT id, ?2 FROM subject WHERE name = ?1";
            self.insert(sql, params![subject_key(&format!("workflow/{needs}")), id])?;
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
        let Some(before) = self.run_status(id)? else { return Ok(()) };
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
            let minute = self.counts.minute(moment);
            minute.runs_ended += 1;
            minute.runs_failed += u64::from(status == RUN_FAILED || status == RUN_TIMED_OUT);
        }
        Ok(())
    }

    fn plan_name(&self, plan: &Cid) -> Result<Option<String>, StateError> {
        Ok(match self.log.block(plan)? {
            Some(Stored::Present(bytes)) => decode::<Named>(&bytes).ok().map(|plan| plan.name),
            Some(Stored::Erased) | None => None,
        })
    }

    fn run_status(&self, id: u64) -> Result<Option<u8>, StateError> {
        let mut find = self.state.prepare_cached("SELECT status FROM workflow WHERE id = ?1")?;
        Ok(find.query_row([id], |row| row.get(0)).optional()?)
    }

    /// The number of the run a task is of, which waits no longer.
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
            "INSERT INTO schedule (id, name, created, cron, every_ms, makes, next_ms, fired, deleted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0)
             ON CONFLICT (id) DO UPDATE SET created = ?3, cron = ?4, every_ms = ?5, makes = ?6, next_ms = ?7,
             last_ms = NULL, fired = 0, deleted = 0",
            params![id, name, moment.seq, cron, every_ms, facts.makes, facts.next_ms],
        )
    }

    fn before(&self, id: u64) -> Result<Option<Before>, StateError> {
        let mut find = self.state.prepare_cached(
            "SELECT status, cleared, held, priority, ready_ms, part, worker, started_ms, run, tool, input, tags
             FROM task WHERE id = ?1",
        )?;
        Ok(find.query_row([id], before).optional()?)
    }
}

/// A type and what it requires, as one word: tasks of the same class are taken by the same workers.
fn class(task_type: &str, requires: &[String]) -> String {
    let mut requires: Vec<&str> = requires.iter().map(String::as_str).collect();
    requires.sort_unstable();
    requires.dedup();
    [&[task_type], &requires[..]].concat().join(" ")
}

/// The status of a task that waits: what is held counts as running.
fn waiting(held: bool) -> u8 {
    if held { RUNNING } else { QUEUED }
}

/// Words by number, as a row keeps them.
fn words_text(words: &[u64]) -> String {
    words.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn words_of(text: &str) -> Vec<u64> {
    text.split(' ').filter_map(|word| word.parse().ok()).collect()
}

fn name_in<'a>(event: &'a Event, prefix: &str) -> &'a str {
    let subject = &event.fields().subject;
    subject.strip_prefix(prefix).unwrap_or(subject)
}

fn before(row: &Row<'_>) -> rusqlite::Result<Before> {
    Ok(Before {
        status: row.get(0)?,
        cleared: row.get(1)?,
        held: row.get(2)?,
        priority: row.get(3)?,
        ready_ms: row.get(4)?,
        part: row.get(5)?,
        worker: row.get(6)?,
        started_ms: row.get(7)?,
        run: row.get(8)?,
        tool: row.get(9)?,
        input: row.get(10)?,
        tags: row.get_ref(11)?.as_str_or_null()?.map_or_else(Vec::new, words_of),
    })
}
