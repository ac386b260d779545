//! Alerts: what an operator should look at, as rules over counts, the last hour's minutes and what waits longest.
//!
//! Invariants:
//! - a rule is a sum compared with a threshold: the same numbers give the same alerts;
//! - every rule is told each time, whether it fires or not, so that a reader knows what is watched;
//! - looking costs the same however long the queue is.

use std::collections::BTreeMap;

use rusqlite::params;
use serde::Serialize;

use super::{Counts, Worker, history::Minute};
use crate::{
    event::Body,
    query::{self, QueryError, View},
    state::{
        peers::PEER_STATUSES,
        work::{EVERY_TASK, QUEUED},
    },
    task::{Limits, Moment},
};

/// Minutes that failures are counted over, the current one included.
const WINDOW_MINUTES: u64 = 60;
/// The least ended runs from which a share of failures is computed, and the least ended tasks.
const RUNS_MIN: u64 = 5;
const TASKS_MIN: u64 = 20;
/// The share of failures above which the alert fires.
const FAILED_SHARE_MAX: f64 = 0.2;
/// The longest that a ready task should wait, in milliseconds.
const WAIT_MAX_MS: u64 = 10 * 60_000;
/// The longest that a reader should keep the log's write-ahead file from restarting, in milliseconds.
const WAL_HELD_MAX_MS: u64 = 10 * 60_000;
/// The share of the queue's bound above which the alert fires: it will soon refuse tasks.
const FILLED_SHARE_MAX: f64 = 0.9;
/// The least peers heard of from which a share of unreachable ones is computed, and the least bootstraps.
const PEERS_MIN: u64 = 5;
const BOOTSTRAPS_MIN: u64 = 2;
/// The share of unreachable peers above which the alert fires.
const UNREACHED_SHARE_MAX: f64 = 0.3;
/// The share of failed bootstraps above which the alert fires.
const UNREADY_SHARE_MAX: f64 = 0.5;

/// Waiting tasks of each priority that are looked at, those submitted first.
const LOOK_MAX: u64 = 100;
/// Bootstraps that are read, the last first.
const BOOTSTRAPS_READ: u64 = 20;
const MINUTE_MS: u64 = 60_000;

/// A rule, and whether it fires.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alert {
    pub name: &'static str,
    pub firing: bool,
    /// The value that was compared; `None` if there is too little data.
    pub value: Option<f64>,
    /// The rule fires above this value.
    pub threshold: f64,
    pub message: String,
}

/// The data that the rules read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The minutes of the last hour in which something happened.
    pub minutes: Vec<Minute>,
    pub counts: Counts,
    /// Each class of waiting tasks, a type with its requirements, and since when its first task has been ready.
    pub ready: Vec<(String, u64)>,
    pub workers: Vec<Worker>,
    pub peers: Peers,
    /// `None` if another process writes the log: that one reports it.
    pub wal: Option<Wal>,
}

/// The state of the log's write-ahead file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wal {
    /// How long a reader has held it.
    pub held_ms: u64,
    /// Whether erased content stays in it until that reader ends.
    pub uncut: bool,
}

/// The counts of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peers {
    /// Peers by status, in the order of the statuses.
    pub standing: [u64; PEER_STATUSES.len()],
    /// Peers heard of in the last hour, and those of them that cannot be reached.
    pub heard: u64,
    pub unreached: u64,
    /// The last bootstraps of the last hour, and those of them that failed.
    pub bootstraps: u64,
    pub unready: u64,
}

/// Evaluates every rule: about the queue, and, if this process writes the log, about its files.
pub fn alerts(view: &View, moment: &Moment, wal: Option<Wal>) -> Result<Vec<Alert>, QueryError> {
    let seen = view.at(|| view.seen(moment.now_ms))?;
    Ok(Seen { wal, ..seen.what }.alerts(moment))
}

impl View {
    pub(super) fn seen(&self, now_ms: u64) -> Result<Seen, QueryError> {
        let first = (now_ms / MINUTE_MS).saturating_sub(WINDOW_MINUTES - 1);
        Ok(Seen {
            minutes: self.minutes_from(first)?,
            counts: super::counts(&self.state)?,
            ready: self.ready(now_ms)?,
            workers: super::workers(&self.state)?,
            peers: self.peers_seen(now_ms)?,
            wal: None,
        })
    }

    fn peers_seen(&self, now_ms: u64) -> Result<Peers, QueryError> {
        let since_ms = now_ms.saturating_sub(WINDOW_MINUTES * MINUTE_MS);
        let standing = query::peers::counts(&self.state)?;
        let mut lately = self.state.prepare_cached(
            "SELECT count(*), coalesce(sum(status = 2), 0) FROM peer WHERE last_seen_ms >= ?1",
        )?;
        let (heard, unreached) = lately.query_row([since_ms], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut seen = Peers { standing, heard, unreached, ..Peers::default() };
        let mut last = self.state.prepare_cached(
            "SELECT seq FROM entry WHERE kind = (SELECT id FROM word WHERE text = 'bootstrap.finished')
             ORDER BY seq DESC LIMIT ?1",
        )?;
        for seq in last.query_map([BOOTSTRAPS_READ], |row| row.get(0))? {
            let Some(event) = self.log.event_at(seq?)? else { continue };
            if event.fields().at_ms() < since_ms {
                break;
            }
            if let Some(Body::BootstrapFinished(facts)) = event.body() {
                seen.bootstraps += 1;
                seen.unready += u64::from(!facts.ready);
            }
        }
        Ok(seen)
    }

    /// Returns the classes among the oldest waiting tasks. A class that nobody takes ends up there, because all
    /// others leave the queue.
    fn ready(&self, now_ms: u64) -> Result<Vec<(String, u64)>, QueryError> {
        let mut first = self.state.prepare_cached(
            "SELECT class, min(ready_ms)
             FROM (SELECT task AS id FROM task_listed WHERE tag = ?1 AND status = ?2 AND priority = ?3 ORDER BY 1 LIMIT ?4)
               AS first CROSS JOIN task ON task.id = first.id
             WHERE ready_ms <= ?5 GROUP BY class",
        )?;
        let mut since: BTreeMap<u64, u64> = BTreeMap::new();
        let mut priorities = self
            .state
            .prepare_cached("SELECT priority FROM task_tally WHERE tag = ?1 AND status = ?2 AND n > 0")?;
        for priority in priorities.query_map(params![EVERY_TASK, QUEUED], |row| row.get::<_, u64>(0))? {
            let mut rows = first.query(params![EVERY_TASK, QUEUED, priority?, LOOK_MAX, now_ms])?;
            while let Some(row) = rows.next()? {
                let (class, ready_ms): (u64, u64) = (row.get(0)?, row.get(1)?);
                since.entry(class).and_modify(|since| *since = ready_ms.min(*since)).or_insert(ready_ms);
            }
        }
        let mut word = self.state.prepare_cached("SELECT text FROM word WHERE id = ?1")?;
        let named =
            since.into_iter().map(|(class, since)| Ok((word.query_row([class], |row| row.get(0))?, since)));
        named.collect()
    }
}

impl Seen {
    pub fn alerts(&self, moment: &Moment) -> Vec<Alert> {
        vec![
            self.workflow_failures(),
            self.task_failures(),
            self.queue_wait(moment.now_ms),
            self.dead_letters(),
            self.no_worker(),
            self.queue_full(&moment.limits),
            self.discovery_failures(),
            self.bootstrap_failures(),
            self.wal_held(),
        ]
    }

    /// Returns how long the task that has been ready longest has waited.
    pub fn longest_wait_ms(&self, now_ms: u64) -> Option<u64> {
        self.ready.iter().map(|(_, since)| now_ms.saturating_sub(*since)).max()
    }

    fn workflow_failures(&self) -> Alert {
        let (failed, ended) = (self.sum(|minute| minute.runs_failed), self.sum(|minute| minute.runs_ended));
        let message = format!("{failed} of {ended} workflows that ended in the last hour failed");
        alert("workflow_failures", share(failed, ended, RUNS_MIN), FAILED_SHARE_MAX, message)
    }

    fn task_failures(&self) -> Alert {
        let failed = self.sum(|minute| minute.failed);
        let ended = failed + self.sum(|minute| minute.succeeded);
        let message = format!("{failed} of {ended} tasks that ended in the last hour failed");
        alert("task_failures", share(failed, ended, TASKS_MIN), FAILED_SHARE_MAX, message)
    }

    fn queue_wait(&self, now_ms: u64) -> Alert {
        let waits = self.longest_wait_ms(now_ms);
        let message = match waits {
            Some(ms) => format!("the oldest task that may run has waited for {} s", ms / 1000),
            None => "no task waits".to_owned(),
        };
        alert("queue_wait", waits.map(|ms| ms as f64), WAIT_MAX_MS as f64, message)
    }

    fn dead_letters(&self) -> Alert {
        let dead = self.counts.tasks_of("dead");
        let message = format!("{dead} tasks are dead; task_list tells which, task_retry revives them");
        alert("dead_letters", Some(dead as f64), 0.0, message)
    }

    fn no_worker(&self) -> Alert {
        let unserved: Vec<&str> =
            self.ready.iter().map(|(class, _)| class.as_str()).filter(|class| !self.served(class)).collect();
        let message = match unserved.first() {
            Some(class) => format!("types wait that no worker takes, `{class}` among them"),
            None => "every type that waits has a worker".to_owned(),
        };
        alert("no_worker", Some(unserved.len() as f64), 0.0, message)
    }

    fn queue_full(&self, limits: &Limits) -> Alert {
        let (queued, max) = (self.counts.tasks_of("queued"), limits.queue_max);
        let message = format!("{queued} tasks wait; beyond {max} none is accepted");
        alert("queue_full", share(queued, max, 1), FILLED_SHARE_MAX, message)
    }

    fn discovery_failures(&self) -> Alert {
        let Peers { heard, unreached, .. } = self.peers;
        let message = format!("{unreached} of {heard} peers heard of in the last hour cannot be reached");
        alert("discovery_failures", share(unreached, heard, PEERS_MIN), UNREACHED_SHARE_MAX, message)
    }

    fn bootstrap_failures(&self) -> Alert {
        let Peers { bootstraps, unready, .. } = self.peers;
        let message = format!("{unready} of {bootstraps} bootstraps in the last hour came to no network");
        alert("bootstrap_failures", share(unready, bootstraps, BOOTSTRAPS_MIN), UNREADY_SHARE_MAX, message)
    }

    fn wal_held(&self) -> Alert {
        let message = match self.wal {
            None => "another process writes the log, and tells of its files".to_owned(),
            Some(Wal { held_ms: 0, .. }) => "no reader holds the log's write-ahead file".to_owned(),
            Some(Wal { held_ms, uncut }) => format!(
                "a reader has held log.db-wal for {} s, which grows until it ends{}; end it: an export, a backup, or \
                 another program that looks at log.db",
                held_ms / 1000,
                if uncut { " and holds erased content" } else { "" }
            ),
        };
        let held = self.wal.map(|wal| wal.held_ms as f64);
        alert("wal_held", held, WAL_HELD_MAX_MS as f64, message)
    }

    /// Returns whether any worker takes tasks of this class.
    fn served(&self, class: &str) -> bool {
        // The node runs its tools itself.
        if class.starts_with("tool:") && !class.contains(' ') {
            return true;
        }
        let takes = |worker: &Worker| {
            class.split(' ').all(|word| worker.capabilities.iter().any(|capability| capability == word))
        };
        self.workers.iter().any(|worker| worker.status == "active" && takes(worker))
    }

    fn sum(&self, of: impl Fn(&Minute) -> u64) -> u64 {
        self.minutes.iter().map(of).sum()
    }
}

fn alert(name: &'static str, value: Option<f64>, threshold: f64, message: String) -> Alert {
    Alert { name, firing: value.is_some_and(|value| value > threshold), value, threshold, message }
}

/// Returns the share `part / of`; `None` if `of` is under `min`.
fn share(part: u64, of: u64, min: u64) -> Option<f64> {
    (of >= min).then(|| part as f64 / of as f64)
}

#[cfg(test)]
mod tests;
