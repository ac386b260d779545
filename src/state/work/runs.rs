//! The fold of runs: a row each, moved along by the run's own events and by the endings of its steps.
//!
//! Invariants:
//! - a run waits for others until the first of its tasks is there, or a step is gathered without one;
//! - the ending of a run is counted once;
//! - of a plan only its name is read, until the run goes on: which steps run again follows from its graph.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;

use super::Moment;
use crate::{
    block::{Cid, decode},
    entity,
    event::{Body, Event, work::WorkflowSubmitted},
    log::Stored,
    state::{StateError, fold::Folder, subject_key},
    workflow::{
        plan::Plan,
        run::{Run, status::Status},
    },
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

    pub(super) fn run_turned(&mut self, id: u64, status: Status, moment: &Moment) -> Result<(), StateError> {
        let Some((before, started_ms)) = self.run_stands(id)? else { return Ok(()) };
        let number = status as u8;
        if before == number {
            // Cancelled once more, with force: it has ended.
            return Ok(());
        }
        self.insert(
            "UPDATE workflow SET status = ?2, ended_ms = ?3, started_ms = coalesce(started_ms, ?4) WHERE id = ?1",
            params![
                id,
                number,
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
            self.run_waits_no_more(id)?;
        }
        Ok(found.map(|(id, _)| id))
    }

    fn run_waits_no_more(&mut self, id: u64) -> Result<(), StateError> {
        self.insert("UPDATE workflow SET status = ?2 WHERE id = ?1", params![id, SUBMITTED])?;
        self.counts.move_run(WAITING, SUBMITTED);
        Ok(())
    }

    pub(super) fn step_done(&self, run: u64) -> Result<(), StateError> {
        self.insert("UPDATE workflow SET done = done + 1 WHERE id = ?1", params![run])
    }

    pub(super) fn step_gathered(&mut self, run: u64) -> Result<(), StateError> {
        if let Some((WAITING, _)) = self.run_stands(run)? {
            self.run_waits_no_more(run)?;
        }
        self.step_done(run)
    }

    /// Puts a run that goes on where its rules put it.
    pub(super) fn run_rescheduled(&mut self, id: u64) -> Result<(), StateError> {
        // The run is told of its tasks by their rows.
        self.write_tasks()?;
        let (Some((before, _)), Some(run)) = (self.run_stands(id)?, self.run(id)?) else {
            return Ok(());
        };
        let status = run.status() as u8;
        let done = run.steps.iter().filter(|step| step.done()).count();
        self.insert(
            "UPDATE workflow SET status = ?2, priority = ?3, done = ?4, started_ms = ?5, ended_ms = ?6 WHERE id = ?1",
            params![id, status, run.facts.priority, done, run.started_ms, run.ended_ms],
        )?;
        self.counts.move_run(before, status);
        Ok(())
    }

    /// The run as the events so far leave it, without its inputs, which decide nothing about where it stands; none
    /// where its plan cannot be read.
    fn run(&self, id: u64) -> Result<Option<Run>, StateError> {
        let seqs = events_of_run(&self.state, id)?.into_iter();
        let events = seqs.filter_map(|seq| self.log.event_at(seq).transpose());
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let plan = events.first().map(|first| self.plan(first)).transpose()?.flatten();
        Ok(plan.and_then(|plan| entity::folded(&events, &(Arc::new(plan), Arc::default()))))
    }

    fn plan(&self, event: &Event) -> Result<Option<Plan>, StateError> {
        let Some(Body::WorkflowSubmitted(facts)) = event.body() else { return Ok(None) };
        Ok(match self.log.block(&facts.plan)? {
            Some(Stored::Present(bytes)) => decode(&bytes).ok(),
            Some(Stored::Erased) | None => None,
        })
    }
}

/// Returns the seqs of all events of the run that was submitted at `first`, and of its tasks, in order.
pub fn events_of_run(state: &Connection, first: u64) -> Result<Vec<u64>, StateError> {
    let sql = "SELECT ?1
               UNION ALL SELECT seq FROM entry WHERE subject = ?1 AND subject <> seq
               UNION ALL SELECT id FROM task WHERE run = ?1
               UNION ALL SELECT entry.seq FROM task CROSS JOIN entry
                         ON entry.subject = task.id AND entry.subject <> entry.seq WHERE task.run = ?1
               ORDER BY 1";
    let mut statement = state.prepare_cached(sql)?;
    let rows = statement.query_map([first], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
