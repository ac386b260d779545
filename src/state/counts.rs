//! Counts of durable work: tasks and runs by status, the load of workers, and the minutes of the last day.
//!
//! Invariants:
//! - counts are collected as changes and added when a batch ends, so they do not depend on how events were grouped;
//! - a minute that is a day older than the newest one is dropped, which bounds the table.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, params};

use crate::state::StateError;

/// This many minutes are kept, which is one day.
pub const MINUTES_MAX: u64 = 24 * 60;

/// Holds the changes of the counts that are not written yet.
#[derive(Default)]
pub(in crate::state) struct Counts {
    /// Holds changes by tag, status and priority.
    pub(super) tasks: HashMap<(u64, u8, u64), i64>,
    pub(super) runs: HashMap<u8, i64>,
    /// Holds changes by the number of the worker's word.
    pub(super) workers: HashMap<u64, Load>,
    minutes: BTreeMap<u64, Minute>,
}

#[derive(Default)]
pub(super) struct Load {
    pub(super) running: i64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) execution_ms: u64,
}

#[derive(Default)]
pub(super) struct Minute {
    pub(super) submitted: u64,
    pub(super) started: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) executed: u64,
    pub(super) wait_ms: u64,
    pub(super) execution_ms: u64,
    pub(super) runs_ended: u64,
    pub(super) runs_failed: u64,
}

impl Counts {
    /// Adds the changes to the tables.
    pub(in crate::state) fn write(&mut self, state: &Connection) -> Result<(), StateError> {
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

    pub(super) fn move_run(&mut self, from: u8, to: u8) {
        *self.runs.entry(from).or_default() -= 1;
        *self.runs.entry(to).or_default() += 1;
    }

    pub(super) fn minute(&mut self, minute: u64) -> &mut Minute {
        self.minutes.entry(minute).or_default()
    }
}
