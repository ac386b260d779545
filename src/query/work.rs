//! Questions about durable work: what the writer takes up at its start, and what one entity's events are.
//!
//! Invariants:
//! - tasks and runs are named by the seq of their submission, whose event says the rest;
//! - what is answered in bulk is visited row by row and never held whole.

pub mod history;
pub mod alerts;
pub mod page;
pub mod pulse;

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    block::Cid,
    event::Kind,
    log::Reader,
    query::numbers,
    state::{
        self, StateError, subject_key,
        work::{
            EVERY_TASK, QUEUED, RUN_STATUSES, RUN_SUCCEEDED, RUNNING, TASK_STATUSES, WORKER_STATUSES, runs,
        },
    },
};

/// An answer, with the number of events that were folded when it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    pub applied: u64,
    pub what: T,
}

/// A waiting task.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub seq: u64,
    pub order: i64,
    pub ready_ms: u64,
    pub task_type: &'a str,
    /// The capabilities it requires beside its type, sorted, separated by spaces.
    pub requires: &'a str,
    pub concurrency_key: Option<&'a str>,
    pub rate_key: Option<&'a str>,
}

/// A worker, and the outcomes of the tasks it claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub id: String,
    pub status: &'static str,
    pub capabilities: Vec<String>,
    pub max_concurrent: u64,
    pub registered_ms: u64,
    /// When draining ends.
    pub until_ms: Option<u64>,
    /// The seq of the event that set its status.
    pub seq: u64,
    pub load: Load,
}

/// The outcomes of the tasks a worker claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub running: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub execution_ms: u64,
}

/// A schedule that was not deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub id: String,
    /// The seq of the current `schedule.created`, whose payload is what the schedule makes.
    pub created: u64,
    pub cron: Option<String>,
    pub every_ms: Option<u64>,
    /// `task`, `workflow`.
    pub makes: String,
    pub next_ms: u64,
    pub last_ms: Option<u64>,
    /// Ticks that submitted something, that were missed, and that could submit nothing.
    pub fired: u64,
    pub missed: u64,
    pub skipped: u64,
}

/// How many tasks and runs there are by status, in the order of the statuses; cleared tasks are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub tasks: [u64; TASK_STATUSES.len()],
    pub runs: [u64; RUN_STATUSES.len()],
}

impl Counts {
    /// Returns the number of tasks with this status.
    pub fn tasks_of(&self, status: &str) -> u64 {
        TASK_STATUSES.iter().zip(self.tasks).find(|(known, _)| **known == status).map_or(0, |(_, n)| n)
    }
}

/// Returns the seqs of all events of a subject, in order.
pub fn events_of(state: &Connection, subject: &str) -> Result<Vec<u64>, StateError> {
    match first_of(state, subject)? {
        Some(first) => events_from(state, first),
        None => Ok(Vec::new()),
    }
}

/// Returns the seqs of all events of the subject whose first event is at `first`, in order.
pub fn events_from(state: &Connection, first: u64) -> Result<Vec<u64>, StateError> {
    state::events_from(state, first)
}

/// Returns the seqs of all events of a run and of its tasks, in order.
pub fn events_of_run(state: &Connection, workflow_id: &str) -> Result<Vec<u64>, StateError> {
    match run_known(state, workflow_id)? {
        Some(first) => runs::events_of_run(state, first),
        None => Ok(Vec::new()),
    }
}

/// Returns the seqs of the events caused by the one at `seq`, in order.
pub fn caused_by(state: &Connection, seq: u64) -> Result<Vec<u64>, StateError> {
    let mut statement = state.prepare_cached("SELECT child FROM edge WHERE parent = ?1 ORDER BY child")?;
    let rows = statement.query_map([seq], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the seqs of the starts and endings of calls made for a run's tasks, and of the calls made by those calls.
pub fn calls_of_run(state: &Connection, workflow_id: &str) -> Result<Vec<u64>, StateError> {
    let Some(first) = run_known(state, workflow_id)? else { return Ok(Vec::new()) };
    let kinds = Kind::ALL.iter().map(|kind| kind.as_str()).filter(|kind| kind.starts_with("call."));
    let kinds: Vec<String> = kinds.map(|kind| format!("'{kind}'")).collect();
    let sql = format!(
        "WITH RECURSIVE
         kinds (id) AS MATERIALIZED (SELECT id FROM word WHERE text IN ({})),
         made (seq) AS (
           SELECT edge.child FROM task CROSS JOIN entry AS turn ON turn.subject = task.id AND turn.subject <> turn.seq
             CROSS JOIN edge ON edge.parent = turn.seq
             WHERE task.run = ?1 AND (SELECT kind FROM entry WHERE seq = edge.child) IN kinds
           UNION
           SELECT edge.child FROM made CROSS JOIN edge ON edge.parent = made.seq
             WHERE (SELECT kind FROM entry WHERE seq = edge.child) IN kinds)
         SELECT seq FROM made ORDER BY seq",
        kinds.join(",")
    );
    let mut statement = state.prepare_cached(&sql)?;
    let rows = statement.query_map([first], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the seq of a subject's first event.
pub fn first_of(state: &Connection, subject: &str) -> Result<Option<u64>, StateError> {
    let mut statement = state.prepare_cached("SELECT id FROM subject WHERE name = ?1")?;
    Ok(statement.query_row([subject_key(subject)], |row| row.get(0)).optional()?)
}

/// Returns the seq of a run's submission.
pub fn run_known(state: &Connection, id: &str) -> Result<Option<u64>, StateError> {
    first_of(state, &format!("workflow/{id}"))
}

/// Visits every waiting task, sorted by class, order and seq.
pub fn waiting_tasks(state: &Connection, visit: &mut dyn FnMut(Waiting<'_>)) -> Result<(), StateError> {
    let mut statement = state.prepare_cached(
        "SELECT class, ord, id, ready_ms, concurrency_key, rate_key
         FROM task_listed CROSS JOIN task ON task.id = task_listed.task
         WHERE tag = ?1 AND task_listed.status = ?2 ORDER BY class, ord, id",
    )?;
    let mut word = state.prepare_cached("SELECT text FROM word WHERE id = ?1")?;
    let mut rows = statement.query(params![EVERY_TASK, QUEUED])?;
    let mut class: (Option<u64>, String) = (None, String::new());
    while let Some(row) = rows.next()? {
        let number: u64 = row.get(0)?;
        if class.0 != Some(number) {
            class = (Some(number), word.query_row([number], |row| row.get(0))?);
        }
        let (task_type, requires) = class.1.split_once(' ').unwrap_or((&class.1, ""));
        visit(Waiting {
            seq: row.get(2)?,
            order: row.get(1)?,
            ready_ms: row.get(3)?,
            task_type,
            requires,
            concurrency_key: row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)?,
            rate_key: row.get_ref(5)?.as_str_or_null().map_err(rusqlite::Error::from)?,
        });
    }
    Ok(())
}

/// Returns the claimed and the held tasks, by the seq of their submission.
pub fn running_tasks(state: &Connection) -> Result<Vec<u64>, StateError> {
    let sql =
        format!("SELECT task FROM task_listed WHERE tag = {EVERY_TASK} AND status = {RUNNING} ORDER BY task");
    numbers(state, &sql)
}

/// Returns when each rate key next allows a claim.
pub fn rates(state: &Connection) -> Result<Vec<(String, u64)>, StateError> {
    let mut statement = state.prepare_cached("SELECT key, until_ms FROM rate ORDER BY key")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the first tasks of one status at or after `from`, by priority and seq of submission, without steps of runs
/// and cleared tasks.
pub fn of_status(
    state: &Connection,
    status: &str,
    from: (u64, u64),
    max: usize,
) -> Result<Vec<(u64, u64)>, StateError> {
    let status = TASK_STATUSES.iter().position(|known| *known == status);
    let mut statement = state.prepare_cached(
        "SELECT task_listed.priority, task FROM task_listed CROSS JOIN task ON task.id = task_listed.task
         WHERE tag = ?1 AND task_listed.status = ?2 AND (task_listed.priority, task) >= (?3, ?4)
         AND run IS NULL ORDER BY task_listed.priority, task LIMIT ?5",
    )?;
    let rows = statement
        .query_map(params![EVERY_TASK, status, from.0, from.1, max], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the runs that have not ended, by the seq of their submission.
pub fn open_runs(state: &Connection) -> Result<Vec<u64>, StateError> {
    numbers(state, &format!("SELECT id FROM workflow WHERE status < {RUN_SUCCEEDED} ORDER BY id"))
}

/// Returns the task with this unique key that has not ended.
pub fn live_unique(state: &Connection, key: &str) -> Result<Option<u64>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT id FROM task WHERE unique_key = ?1 AND status < 2 AND cleared = 0 ORDER BY id LIMIT 1",
    )?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

/// Returns the last `task.succeeded` of this contract and input that did not itself reuse a result.
pub fn reusable(
    state: &Connection,
    log: &dyn Reader,
    contract: &Cid,
    input: &Cid,
) -> Result<Option<u64>, StateError> {
    let (Some(tool), Some(input)) = (log.number_of(contract)?, log.number_of(input)?) else {
        return Ok(None);
    };
    let mut statement = state.prepare_cached("SELECT seq FROM outcome WHERE tool = ?1 AND input = ?2")?;
    Ok(statement.query_row([tool, input], |row| row.get(0)).optional()?)
}

/// Returns the seq of the `queue.paused` that is in force.
pub fn paused(state: &Connection) -> Result<Option<u64>, StateError> {
    Ok(state.prepare_cached("SELECT paused FROM queue")?.query_row([], |row| row.get(0))?)
}

pub fn counts(state: &Connection) -> Result<Counts, StateError> {
    let mut counts = Counts::default();
    let fill = |sql: &str, into: &mut [u64]| -> Result<(), StateError> {
        let mut statement = state.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let status: usize = row.get(0)?;
            if let Some(n) = into.get_mut(status) {
                *n += row.get::<_, u64>(1)?;
            }
        }
        Ok(())
    };
    fill(&format!("SELECT status, n FROM task_tally WHERE tag = {EVERY_TASK}"), &mut counts.tasks)?;
    fill("SELECT status, n FROM workflow_tally", &mut counts.runs)?;
    Ok(counts)
}

/// Returns every worker that ever registered, in order of registration.
pub fn workers(state: &Connection) -> Result<Vec<Worker>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT word.text, status, capabilities, max_concurrent, registered_ms, until_ms, seq,
         coalesce(running, 0), coalesce(succeeded, 0), coalesce(failed, 0), coalesce(execution_ms, 0)
         FROM worker JOIN word ON word.id = worker.name
         LEFT JOIN worker_tally ON worker_tally.worker = worker.name ORDER BY worker.id",
    )?;
    let rows = statement.query_map([], |row| {
        let capabilities: String = row.get(2)?;
        Ok(Worker {
            id: row.get(0)?,
            status: WORKER_STATUSES.get(row.get::<_, usize>(1)?).copied().unwrap_or_default(),
            capabilities: serde_json::from_str(&capabilities).unwrap_or_default(),
            max_concurrent: row.get(3)?,
            registered_ms: row.get(4)?,
            until_ms: row.get(5)?,
            seq: row.get(6)?,
            load: Load {
                running: row.get(7)?,
                succeeded: row.get(8)?,
                failed: row.get(9)?,
                execution_ms: row.get(10)?,
            },
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the outcomes of the tasks a worker claimed, whether it registered or not.
pub fn load_of(state: &Connection, worker: &str) -> Result<Load, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT running, succeeded, failed, execution_ms FROM worker_tally
         JOIN word ON word.id = worker_tally.worker WHERE word.text = ?1",
    )?;
    let load = statement.query_row([worker], |row| {
        Ok(Load {
            running: row.get(0)?,
            succeeded: row.get(1)?,
            failed: row.get(2)?,
            execution_ms: row.get(3)?,
        })
    });
    Ok(load.optional()?.unwrap_or_default())
}

/// Returns every schedule that is not deleted, in the order of creation.
pub fn schedules(state: &Connection) -> Result<Vec<Schedule>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT word.text, created, cron, every_ms, makes, next_ms, last_ms, fired, missed, skipped
         FROM schedule
         JOIN word ON word.id = schedule.name WHERE deleted = 0 ORDER BY schedule.id",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Schedule {
            id: row.get(0)?,
            created: row.get(1)?,
            cron: row.get(2)?,
            every_ms: row.get(3)?,
            makes: row.get(4)?,
            next_ms: row.get(5)?,
            last_ms: row.get(6)?,
            fired: row.get(7)?,
            missed: row.get(8)?,
            skipped: row.get(9)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
