//! Folds tasks: a row for each, and the lists in which it stands.
//!
//! Invariants:
//! - a task that is not cleared is listed once under each of its tags, with its status and priority;
//! - every attempt that began under a worker is counted once, when it ends.

use std::iter;

use rusqlite::{OptionalExtension, Row, params};

use super::{DEAD, EVERY_TASK, FAILED, Moment, QUEUED, RUNNING, SUCCEEDED, TASK_STATUSES, TIMED_OUT};
use crate::{
    event::{
        Event, Role,
        work::{Part, TaskClaimed, TaskReprioritised, TaskRetried, TaskSubmitted},
    },
    state::{StateError, fold::Folder},
};

/// The part of a task that takes a step back.
const UNDO: u8 = 2;

/// Holds a task as it was before an event.
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

impl Before {
    /// Returns whether the task is a step of a run or one of a step's parts, and not what takes a step back.
    fn is_step(&self) -> bool {
        self.run.is_some() && self.part != UNDO
    }
}

/// Says how an attempt ended.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    Succeeded,
    Failed,
    /// The attempt was taken from its worker, so its outcome is not known.
    Lost,
}

/// Says what becomes of a task.
pub(super) enum Next {
    /// The task is back in the line. If a time is given, it may not run before it.
    Again(Option<u64>),
    Ended(u8),
}

impl Folder {
    pub(super) fn task_submitted(
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
            Part::Undo => UNDO,
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
        self.counts.minute(moment.minute).submitted += 1;
        Ok(())
    }

    pub(super) fn task_claimed(
        &mut self,
        facts: &TaskClaimed,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let worker = self.word(&facts.worker)?;
        self.insert(
            "UPDATE task SET status = ?2, worker = ?3, attempt = ?4, started_ms = ?5 WHERE id = ?1",
            params![id, RUNNING, worker, facts.attempt, moment.ms],
        )?;
        if let Some(until_ms) = facts.rate_until_ms {
            let sql = "INSERT INTO rate (key, until_ms)
                       SELECT rate_key, ?2 FROM task WHERE id = ?1 AND rate_key IS NOT NULL
                       ON CONFLICT (key) DO UPDATE SET until_ms = ?2";
            self.insert(sql, params![id, until_ms])?;
        }
        self.relist(id, &before, (RUNNING, before.priority))?;
        self.counts.workers.entry(worker).or_default().running += 1;
        let minute = self.counts.minute(moment.minute);
        let waited_ms = moment.ms.saturating_sub(before.ready_ms);
        minute.started += 1;
        minute.wait_ms += waited_ms;
        if let Some(metrics) = &self.watcher {
            metrics.work.waited(waited_ms);
        }
        Ok(())
    }

    pub(super) fn task_succeeded(
        &mut self,
        reused: bool,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        self.turn(id, &before, Outcome::Succeeded, &Next::Ended(SUCCEEDED), moment)?;
        if let (Some(run), 0) = (before.run, before.part) {
            self.step_done(run)?;
        }
        let (Some(tool), Some(input), false) = (before.tool, before.input, reused) else {
            return Ok(());
        };
        let sql = "INSERT INTO outcome (tool, input, seq) VALUES (?1, ?2, ?3)
                   ON CONFLICT (tool, input) DO UPDATE SET seq = ?3";
        self.insert(sql, params![tool, input, moment.seq])
    }

    pub(super) fn task_turned(
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

    /// Ends the running attempt, if there is one, and moves the task to its next status.
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
                // The order is the ready time less the worth of the priority, so it moves by as much as the ready time
                // does.
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
                let minute = self.counts.minute(moment.minute);
                match *status {
                    SUCCEEDED => minute.succeeded += 1,
                    FAILED | TIMED_OUT => minute.failed += 1,
                    // A dead task that had already failed was counted then.
                    DEAD if open => minute.failed += 1,
                    _ => {}
                }
                if let Some(metrics) = self.watcher.as_ref().filter(|_| open && before.is_step()) {
                    let took_ms = before.started_ms.map(|started_ms| moment.ms.saturating_sub(started_ms));
                    metrics.work.step_ended(TASK_STATUSES[usize::from(*status)], took_ms);
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
        let minute = self.counts.minute(moment.minute);
        minute.executed += 1;
        minute.execution_ms += took_ms;
    }

    /// Moves a listed task to its present status and priority.
    fn relist(&mut self, id: u64, before: &Before, to: (u8, u64)) -> Result<(), StateError> {
        let from = (before.status, before.priority);
        if before.cleared || from == to {
            return Ok(());
        }
        self.list(id, &before.tags, Some(from), Some(to))
    }

    /// Moves a task from one status and priority to another under each of its tags. None stands for not listed.
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

    pub(super) fn task_reprioritised(
        &mut self,
        facts: &TaskReprioritised,
        id: u64,
    ) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let sql = "UPDATE task SET priority = ?2, ord = ?3 WHERE id = ?1";
        self.insert(sql, params![id, facts.to, facts.order])?;
        self.relist(id, &before, (before.status, facts.to))
    }

    pub(super) fn task_retried(
        &mut self,
        event: &Event,
        facts: &TaskRetried,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some(before) = self.before(id)? else { return Ok(()) };
        let status = waiting(before.held);
        self.insert(
            "UPDATE task SET status = ?2, cleared = 0, attempt = 0, retries = retries + 1, ord = ?3, ready_ms = ?4,
             worker = NULL, started_ms = ?5, ended_ms = NULL WHERE id = ?1",
            params![id, status, facts.order, moment.ms, before.held.then_some(moment.ms)],
        )?;
        let input = event.fields().pay.iter().find(|pay| pay.role == Role::Input);
        if let Some(input) = input.map(|pay| self.block(&pay.cid)).transpose()?.flatten() {
            self.insert("UPDATE task SET input = ?2 WHERE id = ?1", params![id, input])?;
        }
        match before.cleared {
            true => self.list(id, &before.tags, None, Some((status, before.priority))),
            false => self.relist(id, &before, (status, before.priority)),
        }
    }

    pub(super) fn task_cleared(&mut self, id: u64) -> Result<(), StateError> {
        let Some(before) = self.before(id)?.filter(|before| !before.cleared) else { return Ok(()) };
        self.insert("UPDATE task SET cleared = 1 WHERE id = ?1", params![id])?;
        self.list(id, &before.tags, Some((before.status, before.priority)), None)
    }

    fn before(&self, id: u64) -> Result<Option<Before>, StateError> {
        let mut find = self.state.prepare_cached(
            "SELECT status, cleared, held, priority, ready_ms, part, worker, started_ms, run, tool, input, tags
             FROM task WHERE id = ?1",
        )?;
        Ok(find.query_row([id], before).optional()?)
    }
}

/// Returns a type and its requirements as one word. Tasks with the same word can be claimed by the same workers.
fn class(task_type: &str, requires: &[String]) -> String {
    let mut requires: Vec<&str> = requires.iter().map(String::as_str).collect();
    requires.sort_unstable();
    requires.dedup();
    [&[task_type], &requires[..]].concat().join(" ")
}

/// Returns the status of a task that waits. A held task counts as running.
fn waiting(held: bool) -> u8 {
    if held { RUNNING } else { QUEUED }
}

/// Returns the numbers of words as a row stores them.
fn words_text(words: &[u64]) -> String {
    words.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn words_of(text: &str) -> Vec<u64> {
    text.split(' ').filter_map(|word| word.parse().ok()).collect()
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
