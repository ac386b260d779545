//! Folds tasks: a row for each, and the lists in which it stands.
//!
//! Invariants:
//! - a task that is not cleared is listed once under each of its tags, with its status and priority;
//! - every attempt that began under a worker is counted once, when it ends.

use std::iter;

use rusqlite::{OptionalExtension, params};

use super::EVERY_TASK;
use super::Moment;
use crate::{
    entity,
    event::{
        Body, Event, PayloadRef,
        work::{Part, TaskSubmitted},
    },
    state::{
        StateError,
        fold::Folder,
        recent::{RecentTask, Spot},
    },
    task::{Status, Task},
};

/// Holds a task as it was before an event.
struct Before {
    status: Status,
    spot: Option<Spot>,
    input: Option<PayloadRef>,
    /// The word of the worker that had it.
    holder: Option<u64>,
    ready_ms: u64,
    started_ms: Option<u64>,
}

impl Folder {
    pub(super) fn task_submitted(
        &mut self,
        event: &Event,
        facts: TaskSubmitted,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some(task) = Task::begun_with(facts, event) else { return Ok(()) };
        let facts = &task.facts;
        let run = facts.run.as_deref().map(|run| self.run_of(run)).transpose()?.flatten();
        let class = self.word(&class(&facts.task_type, &facts.requires))?;
        let tool = task.tool.map(|cid| self.block(&cid)).transpose()?.flatten();
        let input = self.number(task.input)?;
        let mut tags = facts.tags.iter().map(|tag| self.word(tag)).collect::<Result<Vec<_>, _>>()?;
        tags.sort_unstable();
        tags.dedup();
        let kept = RecentTask { task, class, run, tool, input, tags, listed: None, changed: false };
        self.move_task(&kept, None);
        self.counts.minute(moment.minute).submitted += 1;
        self.keep(id, Box::new(kept));
        Ok(())
    }

    /// Folds a later event of a task.
    pub(super) fn task_turned(
        &mut self,
        event: &Event,
        body: &Body,
        id: u64,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let Some(mut kept) = self.task(id, moment.seq)? else { return Ok(()) };
        let before = Before {
            status: kept.task.status,
            spot: spot(&kept.task),
            input: kept.task.input,
            holder: self.holder(&kept.task)?,
            ready_ms: kept.task.ready_ms,
            started_ms: kept.task.started_ms,
        };
        kept.task.apply_body(body, event);
        if kept.task.input != before.input {
            kept.input = self.number(kept.task.input)?;
        }
        self.move_task(&kept, before.spot);
        self.count_attempt(&kept, body, &before, moment)?;
        if kept.task.status.ended() && !before.status.ended() {
            self.task_ended(&kept, moment)?;
        }
        self.keep(id, kept);
        Ok(())
    }

    /// Folds an event of a task that changes nothing in its row, for the sake of the events that do.
    pub(super) fn task_heard(&mut self, event: &Event, body: &Body, id: u64) {
        if let Some(kept) = self.entities.tasks.get_mut(id) {
            kept.task.apply_body(body, event);
        }
    }

    /// The task of this number as it stands before the event `seq`; none where none was submitted.
    fn task(&mut self, id: u64, seq: u64) -> Result<Option<Box<RecentTask>>, StateError> {
        if let Some(kept) = self.entities.tasks.take(id) {
            return Ok(Some(kept));
        }
        let numbers = {
            let sql = "SELECT class, run, tool, input, tags FROM task WHERE id = ?1";
            let mut find = self.state.prepare_cached(sql)?;
            let numbers = find.query_row([id], |row| {
                let tags = row.get_ref(4)?.as_str_or_null()?.map_or_else(Vec::new, words_of);
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, tags))
            });
            numbers.optional()?
        };
        let Some((class, run, tool, input, tags)) = numbers else { return Ok(None) };
        let task: Option<Task> = entity::try_folded(self.events_before(id, seq)?, &())?;
        let task = task.ok_or(StateError::Broken { what: "a task's row has no submission in the log" })?;
        let listed = spot(&task);
        Ok(Some(Box::new(RecentTask { task, class, run, tool, input, tags, listed, changed: false })))
    }

    /// Remembers a task whose row is to be written.
    fn keep(&mut self, id: u64, mut kept: Box<RecentTask>) {
        if !std::mem::replace(&mut kept.changed, true) {
            self.entities.changed.push(id);
        }
        self.entities.tasks.put(id, kept);
    }

    /// The word of the worker that has a task.
    fn holder(&mut self, task: &Task) -> Result<Option<u64>, StateError> {
        let lease = task.lease.as_ref().filter(|_| task.status == Status::Running);
        lease.map(|lease| self.word(&lease.worker)).transpose()
    }

    fn number(&self, payload: Option<PayloadRef>) -> Result<Option<u64>, StateError> {
        Ok(payload.map(|payload| self.block(&payload.cid)).transpose()?.flatten())
    }

    /// Counts the attempt that an event begins, and the one that it ends.
    fn count_attempt(
        &mut self,
        kept: &RecentTask,
        body: &Body,
        before: &Before,
        moment: &Moment,
    ) -> Result<(), StateError> {
        let holder = self.holder(&kept.task)?;
        let claimed = if let Body::TaskClaimed(facts) = body { Some(facts) } else { None };
        if let Some(worker) = before.holder.filter(|_| claimed.is_some() || holder.is_none()) {
            let load = self.counts.workers.entry(worker).or_default();
            load.running -= 1;
            let took_ms = moment.ms.saturating_sub(before.started_ms.unwrap_or(moment.ms));
            let outcome = match body {
                Body::TaskSucceeded(_) => Some(&mut load.succeeded),
                Body::TaskFailed(_) | Body::TaskTimedOut(_) => Some(&mut load.failed),
                // It was taken from its worker: nothing is known of it.
                _ => None,
            };
            if let Some(outcome) = outcome {
                *outcome += 1;
                load.execution_ms += took_ms;
                let minute = self.counts.minute(moment.minute);
                minute.executed += 1;
                minute.execution_ms += took_ms;
            }
        }
        let (Some(worker), Some(claimed)) = (holder, claimed) else { return Ok(()) };
        self.counts.workers.entry(worker).or_default().running += 1;
        let waited_ms = moment.ms.saturating_sub(before.ready_ms);
        let minute = self.counts.minute(moment.minute);
        minute.started += 1;
        minute.wait_ms += waited_ms;
        if let Some(metrics) = &self.watcher {
            metrics.work.waited(waited_ms);
        }
        let (Some(key), Some(until_ms)) = (&kept.task.facts.rate_key, claimed.rate_until_ms) else {
            return Ok(());
        };
        let sql = "INSERT INTO rate (key, until_ms) VALUES (?1, ?2)
                   ON CONFLICT (key) DO UPDATE SET until_ms = ?2";
        self.insert(sql, params![key, until_ms])
    }

    /// Counts a task that has just ended, and what that comes to for its run and for later tasks.
    fn task_ended(&mut self, kept: &RecentTask, moment: &Moment) -> Result<(), StateError> {
        let task = &kept.task;
        let minute = self.counts.minute(moment.minute);
        match task.status {
            Status::Succeeded => minute.succeeded += 1,
            Status::Failed | Status::TimedOut | Status::Dead => minute.failed += 1,
            Status::Cancelled | Status::Queued | Status::Running => {}
        }
        let step = kept.run.filter(|_| task.facts.part != Part::Undo);
        if let (Some(metrics), Some(_)) = (&self.watcher, step) {
            let took_ms = task.started_ms.map(|started_ms| moment.ms.saturating_sub(started_ms));
            metrics.work.step_ended(task.status.as_str(), took_ms);
        }
        if task.status != Status::Succeeded {
            return Ok(());
        }
        if let Some(run) = kept.run.filter(|_| task.facts.part == Part::Whole) {
            self.step_done(run)?;
        }
        let (Some(tool), Some(input), false) = (kept.tool, kept.input, task.reused) else {
            return Ok(());
        };
        let sql = "INSERT INTO outcome (tool, input, seq) VALUES (?1, ?2, ?3)
                   ON CONFLICT (tool, input) DO UPDATE SET seq = ?3";
        self.insert(sql, params![tool, input, moment.seq])
    }

    /// Moves the counts of a task's tags from where it stood to where it stands.
    fn move_task(&mut self, kept: &RecentTask, from: Option<Spot>) {
        let to = spot(&kept.task);
        if from == to {
            return;
        }
        for tag in every_tag(&kept.tags) {
            for (spot, by) in [(from, -1), (to, 1)] {
                if let Some((status, priority)) = spot {
                    *self.counts.tasks.entry((tag, status, priority)).or_default() += by;
                }
            }
        }
    }

    /// Writes the rows of the tasks that have changed, and lists them where they stand.
    pub(in crate::state) fn write_tasks(&mut self) -> Result<(), StateError> {
        for id in std::mem::take(&mut self.entities.changed) {
            let Some(mut kept) = self.entities.tasks.take(id) else { continue };
            self.write_task(id, &kept)?;
            let to = spot(&kept.task);
            if kept.listed != to {
                self.list(id, &kept, to)?;
                kept.listed = to;
            }
            kept.changed = false;
            self.entities.tasks.put(id, kept);
        }
        Ok(())
    }

    fn write_task(&mut self, id: u64, kept: &RecentTask) -> Result<(), StateError> {
        let RecentTask { task, class, run, tool, input, tags, .. } = kept;
        let worker = task.lease.as_ref().map(|lease| self.word(&lease.worker)).transpose()?;
        let facts = &task.facts;
        let part = match facts.part {
            Part::Whole => 0,
            Part::Each { .. } => 1,
            Part::Undo => 2,
        };
        self.insert(
            "INSERT INTO task (id, status, cleared, priority, ord, ready_ms, attempt, retries, held, worker, started_ms,
             ended_ms, input, class, part, run, tool, concurrency_key, rate_key, unique_key, tags)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)
             ON CONFLICT (id) DO UPDATE SET status = ?2, cleared = ?3, priority = ?4, ord = ?5, ready_ms = ?6,
             attempt = ?7, retries = ?8, held = ?9, worker = ?10, started_ms = ?11, ended_ms = ?12, input = ?13",
            params![
                id,
                task.status as u8,
                task.cleared,
                facts.priority,
                facts.order,
                task.ready_ms,
                task.attempt,
                task.retries,
                facts.hold.is_some(),
                worker,
                task.started_ms,
                task.ended_ms,
                input,
                class,
                part,
                run,
                tool,
                facts.concurrency_key,
                facts.rate_key,
                facts.unique_key,
                (!tags.is_empty()).then(|| words_text(tags)),
            ],
        )
    }

    fn list(&self, id: u64, kept: &RecentTask, to: Option<Spot>) -> Result<(), StateError> {
        for tag in every_tag(&kept.tags) {
            if let Some((status, priority)) = kept.listed {
                let sql =
                    "DELETE FROM task_listed WHERE tag = ?1 AND status = ?2 AND priority = ?3 AND task = ?4";
                self.insert(sql, params![tag, status, priority, id])?;
            }
            if let Some((status, priority)) = to {
                let sql = "INSERT INTO task_listed (tag, status, priority, task) VALUES (?1, ?2, ?3, ?4)";
                self.insert(sql, params![tag, status, priority, id])?;
            }
        }
        Ok(())
    }
}

/// Where a task is listed; none where it left the lists.
fn spot(task: &Task) -> Option<Spot> {
    (!task.cleared).then_some((task.status as u8, task.facts.priority))
}

fn every_tag(tags: &[u64]) -> impl Iterator<Item = u64> {
    iter::once(EVERY_TASK).chain(tags.iter().copied())
}

/// Returns a type and its requirements as one word. Tasks with the same word can be claimed by the same workers.
fn class(task_type: &str, requires: &[String]) -> String {
    let mut requires: Vec<&str> = requires.iter().map(String::as_str).collect();
    requires.sort_unstable();
    requires.dedup();
    [&[task_type], &requires[..]].concat().join(" ")
}

/// Returns the numbers of words as a row stores them.
fn words_text(words: &[u64]) -> String {
    words.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn words_of(text: &str) -> Vec<u64> {
    text.split(' ').filter_map(|word| word.parse().ok()).collect()
}
