//! The fold of runs: a row each, moved along by the run's own events and by the endings of its steps.
//!
//! Invariants:
//! - of a plan only its name is read;
//! - a run waits for others until the first of its tasks is there.

use rusqlite::{OptionalExtension, params};
use serde::Deserialize;

use super::Moment;
use crate::{
    block::{Cid, decode},
    event::work::WorkflowSubmitted,
    log::Stored,
    state::{StateError, fold::Folder, subject_key},
    workflow::run::status::Status,
};

const SUBMITTED: u8 = Status::Submitted as u8;
const WAITING: u8 = Status::Waiting as u8;

/// What the tables keep of a plan.
#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Folder {
    pub(super) fn run_submitted(&mut self, facts: &WorkflowSubmitted, id: u64) -> Result<(), StateError> {
        let status = if facts.dependencies.is_empty() { SUBMITTED } else { WAITING };
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

    pub(super) fn run_turned(
        &mut self,
        id: u64,
        status: Status,
        priority: Option<u64>,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some((before, started_ms)) = self.run_stands(id)? else { return Ok(()) };
        let number = status as u8;
        self.insert(
            "UPDATE workflow SET status = ?2, priority = coalesce(?3, priority), ended_ms = ?4,
             started_ms = coalesce(started_ms, ?5) WHERE id = ?1",
            params![
                id,
                number,
                priority,
                status.ended().then_some(moment.ms),
                (status == Status::Running).then_some(moment.ms)
            ],
        )?;
        self.counts.move_run(before, number);
        if status.ended() {
            let minute = self.counts.minute(moment.minute);
            minute.runs_ended += 1;
            minute.runs_failed += u64::from(matches!(status, Status::Failed | Status::TimedOut));
            if let (Some(metrics), Some(started_ms)) = (&self.watcher, started_ms) {
                let took_ms = moment.ms.saturating_sub(started_ms);
                metrics.work.run_ended(status.as_str(), took_ms);
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

    /// A run's status, and when it started.
    fn run_stands(&self, id: u64) -> Result<Option<(u8, Option<u64>)>, StateError> {
        let mut find = self.state.prepare_cached("SELECT status, started_ms FROM workflow WHERE id = ?1")?;
        Ok(find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    }

    /// The number of the run a task is of, which waits no longer.
    pub(super) fn run_of(&mut self, run: &str) -> Result<Option<u64>, StateError> {
        let found: Option<(u64, u8)> = {
            let mut find = self.state.prepare_cached(
                "SELECT workflow.id, workflow.status FROM subject JOIN workflow ON workflow.id = subject.id
                 WHERE subject.name = ?1",
            )?;
            let key = subject_key(&format!("workflow/{run}"));
            find.query_row([key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?
        };
        if let Some((id, WAITING)) = found {
            self.insert("UPDATE workflow SET status = ?2 WHERE id = ?1", params![id, SUBMITTED])?;
            self.counts.move_run(WAITING, SUBMITTED);
        }
        Ok(found.map(|(id, _)| id))
    }

    pub(super) fn step_done(&self, run: u64, by: i64) -> Result<(), StateError> {
        self.insert("UPDATE workflow SET done = done + ?2 WHERE id = ?1", params![run, by])
    }
}
