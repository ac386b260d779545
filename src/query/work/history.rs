//! The history of one entity, and of the queue minute by minute.
//!
//! Invariant: a history up to a seq is what it was when the log ended there.

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::{At, Counts, Load, Schedule, Worker};
use crate::{
    event::Event,
    query::{QueryError, View, lookup::corrupt},
    state::work::{EVERY_TASK, QUEUED},
};

/// The queue's counts now.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueStats {
    pub counts: Counts,
    /// The `queue.paused` that is in force.
    pub paused: Option<Event>,
    /// When the oldest waiting task was submitted.
    pub oldest_queued_ms: Option<u64>,
}

/// What happened in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Minute {
    /// Since the epoch.
    pub minute: u64,
    pub submitted: u64,
    pub started: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Attempts that ended with an outcome, of which `execution_ms` is the sum.
    pub executed: u64,
    /// The sum over `started`.
    pub wait_ms: u64,
    pub execution_ms: u64,
    pub runs_ended: u64,
    pub runs_failed: u64,
}

impl View {
    /// Returns the events of a subject, up to and with `as_of` if given; empty if it was unknown then.
    pub fn load(&self, subject: &str, as_of: Option<u64>) -> Result<At<Vec<Event>>, QueryError> {
        self.at(|| self.events_at(super::events_of(&self.state, subject)?, as_of))
    }

    /// Returns the events of a run and of its tasks, in order, up to and with `as_of` if given.
    pub fn load_run(&self, workflow_id: &str, as_of: Option<u64>) -> Result<At<Vec<Event>>, QueryError> {
        self.at(|| self.events_at(super::events_of_run(&self.state, workflow_id)?, as_of))
    }

    pub fn queue_stats(&self) -> Result<At<QueueStats>, QueryError> {
        self.at(|| {
            let paused = super::paused(&self.state)?;
            Ok(QueueStats {
                counts: super::counts(&self.state)?,
                paused: paused.map(|seq| self.event_of(seq)).transpose()?,
                oldest_queued_ms: self.oldest_queued()?,
            })
        })
    }

    /// Returns the minutes from `from` on in which something happened, at most those of the last day.
    pub fn minutes(&self, from: u64) -> Result<At<Vec<Minute>>, QueryError> {
        self.at(|| self.minutes_from(from))
    }

    pub fn workers(&self) -> Result<At<Vec<Worker>>, QueryError> {
        self.at(|| Ok(super::workers(&self.state)?))
    }

    /// Returns the outcomes of the tasks a worker claimed, whether it registered or not.
    pub fn worker_load(&self, worker: &str) -> Result<At<Load>, QueryError> {
        self.at(|| Ok(super::load_of(&self.state, worker)?))
    }

    pub fn schedules(&self) -> Result<At<Vec<Schedule>>, QueryError> {
        self.at(|| Ok(super::schedules(&self.state)?))
    }

    /// Asks within one reading transaction, so that everything in the answer is read at one seq.
    pub(in crate::query) fn at<T>(
        &self,
        ask: impl FnOnce() -> Result<T, QueryError>,
    ) -> Result<At<T>, QueryError> {
        let _moment = self.state.unchecked_transaction()?;
        Ok(At { applied: self.applied()?, what: ask()? })
    }

    fn events_at(&self, seqs: Vec<u64>, as_of: Option<u64>) -> Result<Vec<Event>, QueryError> {
        let known = seqs.into_iter().take_while(|seq| as_of.is_none_or(|as_of| *seq <= as_of));
        known.map(|seq| self.event_of(seq)).collect()
    }

    pub(super) fn minutes_from(&self, from: u64) -> Result<Vec<Minute>, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT minute, submitted, started, succeeded, failed, executed, wait_ms, execution_ms, runs_ended,
             runs_failed FROM minute WHERE minute >= ?1 ORDER BY minute",
        )?;
        let rows = statement.query_map([from], |row| {
            Ok(Minute {
                minute: row.get(0)?,
                submitted: row.get(1)?,
                started: row.get(2)?,
                succeeded: row.get(3)?,
                failed: row.get(4)?,
                executed: row.get(5)?,
                wait_ms: row.get(6)?,
                execution_ms: row.get(7)?,
                runs_ended: row.get(8)?,
                runs_failed: row.get(9)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn event_of(&self, seq: u64) -> Result<Event, QueryError> {
        self.log.event_at(seq)?.ok_or_else(|| corrupt("an entry without its event"))
    }

    /// Returns when the oldest waiting task was submitted: the first task of a priority is its oldest.
    fn oldest_queued(&self) -> Result<Option<u64>, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT ts / 1000 FROM entry WHERE seq =
               (SELECT min((SELECT min(task) FROM task_listed
                            WHERE tag = ?1 AND status = ?2 AND priority = task_tally.priority))
                FROM task_tally WHERE tag = ?1 AND status = ?2 AND n > 0)",
        )?;
        Ok(statement.query_row(params![EVERY_TASK, QUEUED], |row| row.get(0)).optional()?)
    }
}
