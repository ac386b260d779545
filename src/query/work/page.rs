//! Lists of tasks and runs, in the order they were submitted, page by page.
//!
//! Invariants:
//! - pages are cut by the seq of the submission, so they stay as they are while others write;
//! - a list is a merge of ranges that are in order already: no page sorts or reads what it does not show.

use std::{cmp::Reverse, collections::BinaryHeap};

use rusqlite::{OptionalExtension, Row, params, types::FromSql};
use serde::Serialize;

use super::At;
use crate::{
    block::Cid,
    event::{
        Body, Event,
        work::{TaskSubmitted, WorkflowSubmitted},
    },
    query::{QueryError, View, cursor, list::LIMIT_MAX, lookup::corrupt},
    state::work::{EVERY_TASK, RUN_STATUSES, TASK_STATUSES},
};

/// Up to this many tasks are checked one by one for their worker; beyond it the index by worker is used.
const FEW: u64 = 10_000;

/// Which tasks are asked for: those that fit every field that is set. Cleared ones never are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskFilter {
    pub status: Option<String>,
    /// The worker that has the task, or had it last.
    pub worker: Option<String>,
    /// A row must have all of them.
    pub tags: Vec<String>,
    pub priority_min: Option<u64>,
}

/// Which runs are asked for: those that fit every field that is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunFilter {
    pub status: Option<String>,
    /// The peer at which their tools are called.
    pub peer: Option<String>,
    /// A row must have all of them.
    pub tags: Vec<String>,
}

/// Where a page begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum From<'a> {
    Offset(u64),
    Cursor(&'a str),
}

/// Some rows of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    pub rows: Vec<T>,
    /// The number of rows that fit, on this page or not.
    pub total: u64,
    pub next_cursor: Option<String>,
}

/// A task in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRow {
    pub id: String,
    /// The seq of its submission.
    pub seq: u64,
    pub status: &'static str,
    pub priority: u64,
    pub worker: Option<String>,
    pub attempt: u64,
    /// How often it was retried by `task.retried`.
    pub retries: u64,
    pub submitted_ms: u64,
    pub ready_ms: u64,
    /// The start of the last attempt.
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// As it was submitted.
    pub facts: TaskSubmitted,
}

/// A run in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    pub id: String,
    /// The seq of its submission.
    pub seq: u64,
    /// The submitting event.
    pub submitted: Cid,
    /// From its plan.
    pub name: Option<String>,
    pub status: &'static str,
    pub priority: u64,
    /// Steps that succeeded, or that their condition skipped.
    pub done: u64,
    pub submitted_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// As it was submitted.
    pub facts: WorkflowSubmitted,
}

/// A filter as SQL queries that each return seqs in order, and how many rows they have in all.
#[derive(Default)]
struct Sources {
    /// Each with the placeholder `?1` for the first seq that may fit.
    queries: Vec<String>,
    total: u64,
}

impl View {
    /// Returns one page of tasks. `limit` is clamped to 1 to [`LIMIT_MAX`].
    pub fn tasks(
        &self,
        filter: &TaskFilter,
        limit: u64,
        from: From<'_>,
    ) -> Result<At<Page<TaskRow>>, QueryError> {
        self.at(|| {
            let sources = self.task_sources(filter)?;
            self.page(filter, &sources, limit, from, |seq| self.task_row(seq))
        })
    }

    /// Returns one page of runs. `limit` is clamped to 1 to [`LIMIT_MAX`].
    pub fn workflows(
        &self,
        filter: &RunFilter,
        limit: u64,
        from: From<'_>,
    ) -> Result<At<Page<RunRow>>, QueryError> {
        self.at(|| {
            let sources = self.run_sources(filter)?;
            self.page(filter, &sources, limit, from, |seq| self.run_row(seq))
        })
    }

    fn page<T>(
        &self,
        filter: &impl Serialize,
        sources: &Sources,
        limit: u64,
        from: From<'_>,
        row: impl Fn(u64) -> Result<T, QueryError>,
    ) -> Result<Page<T>, QueryError> {
        let limit = limit.clamp(1, LIMIT_MAX);
        let (first, skip) = match from {
            From::Offset(skip) => (0, skip),
            From::Cursor(cursor) => (cursor::open(filter, cursor)?, 0),
        };
        let mut seqs = self.merged(&sources.queries, first, skip, limit + 1)?;
        let next = if seqs.len() as u64 > limit { seqs.pop() } else { None };
        Ok(Page {
            rows: seqs.into_iter().map(row).collect::<Result<_, _>>()?,
            total: sources.total,
            next_cursor: next.map(|seq| cursor::name(filter, seq)),
        })
    }

    /// Merges the seqs of all `queries` in order, from `first` on, and skips the first `skip` of them.
    fn merged(&self, queries: &[String], first: u64, skip: u64, want: u64) -> Result<Vec<u64>, QueryError> {
        let mut statements: Vec<_> =
            queries.iter().map(|sql| self.state.prepare(sql)).collect::<Result<_, _>>()?;
        let mut ranges = Vec::with_capacity(statements.len());
        let mut heads = BinaryHeap::with_capacity(statements.len());
        for statement in &mut statements {
            let mut rows = statement.query([first])?;
            if let Some(row) = rows.next()? {
                heads.push(Reverse((row.get::<_, u64>(0)?, ranges.len())));
            }
            ranges.push(rows);
        }
        let mut seqs = Vec::new();
        let mut passed = 0;
        while (seqs.len() as u64) < want
            && let Some(Reverse((seq, range))) = heads.pop()
        {
            if passed < skip {
                passed += 1;
            } else {
                seqs.push(seq);
            }
            if let Some(row) = ranges[range].next()? {
                heads.push(Reverse((row.get(0)?, range)));
            }
        }
        Ok(seqs)
    }

    /// Returns the queries for a filter: over its rarest tag, or over the tasks of its worker if no tag is rare.
    fn task_sources(&self, filter: &TaskFilter) -> Result<Sources, QueryError> {
        let status =
            filter.status.as_deref().map(|status| place(&TASK_STATUSES, status, "task")).transpose()?;
        let (Some(tags), Some(worker)) = (self.words(&filter.tags)?, self.words(filter.worker.as_slice())?)
        else {
            return Ok(Sources::default());
        };
        let least = filter.priority_min.unwrap_or(0);
        let mut shortest = (EVERY_TASK, self.task_ranges(EVERY_TASK, status, least)?);
        for tag in &tags {
            let ranges = self.task_ranges(*tag, status, least)?;
            if length(&ranges) <= length(&shortest.1) {
                shortest = (*tag, ranges);
            }
        }
        let (tag, ranges) = shortest;
        let found = length(&ranges);
        let sources = match worker.first() {
            Some(worker) if found > FEW => had_by(*worker, status, least, &tags),
            worker => listed(tag, &ranges, worker.copied(), &tags),
        };
        let counted = worker.is_empty() && tags.iter().all(|known| *known == tag);
        let total = if counted { found } else { self.total(&sources)? };
        let query = |from: &String| format!("SELECT task {from} AND task >= ?1 ORDER BY task");
        Ok(Sources { queries: sources.iter().map(query).collect(), total })
    }

    /// Returns the statuses and priorities of tasks with this tag, and how many tasks have each.
    fn task_ranges(
        &self,
        tag: u64,
        status: Option<usize>,
        least: u64,
    ) -> Result<Vec<(usize, u64, u64)>, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT status, priority, n FROM task_tally
             WHERE tag = ?1 AND priority >= ?2 AND n > 0 AND (?3 IS NULL OR status = ?3)",
        )?;
        let rows = statement
            .query_map(params![tag, least, status], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn run_sources(&self, filter: &RunFilter) -> Result<Sources, QueryError> {
        let status =
            filter.status.as_deref().map(|status| place(&RUN_STATUSES, status, "run")).transpose()?;
        let peer: Vec<String> = filter.peer.iter().cloned().collect();
        let (Some(tags), Some(peer)) = (self.words(&filter.tags)?, self.words(&peer)?) else {
            return Ok(Sources::default());
        };
        let sifted: String = tags
            .iter()
            .map(|tag| {
                format!(
                    " AND EXISTS (SELECT 1 FROM workflow_tag WHERE tag = {tag} AND workflow = workflow.id)"
                )
            })
            .collect();
        let sifted = peer.iter().fold(sifted, |sifted, peer| format!("{sifted} AND peer = {peer}"));
        let status_is = status.map_or_else(String::new, |status| format!(" AND status = {status}"));
        let from = match tags.first() {
            Some(tag) => format!(
                "FROM workflow_tag CROSS JOIN workflow ON workflow.id = workflow_tag.workflow
                 WHERE tag = {tag}{status_is}{sifted}"
            ),
            None => format!("FROM workflow WHERE true{status_is}{sifted}"),
        };
        let total = match tags.is_empty() && peer.is_empty() {
            true => {
                let all = super::counts(&self.state)?.runs;
                status.map_or_else(|| all.iter().sum(), |status| all[status])
            }
            false => self.total(std::slice::from_ref(&from))?,
        };
        let query = format!("SELECT workflow.id {from} AND workflow.id >= ?1 ORDER BY workflow.id");
        Ok(Sources { queries: vec![query], total })
    }

    fn total(&self, driven: &[String]) -> Result<u64, QueryError> {
        let mut total = 0;
        for from in driven {
            total +=
                self.state.query_row(&format!("SELECT count(*) {from}"), [], |row| row.get::<_, u64>(0))?;
        }
        Ok(total)
    }

    /// Returns the numbers of these words; `None` if one of them was never seen.
    fn words(&self, texts: &[String]) -> Result<Option<Vec<u64>>, QueryError> {
        let mut find = self.state.prepare_cached("SELECT id FROM word WHERE text = ?1")?;
        let mut number = |text: &String| find.query_row([text], |row| row.get(0)).optional();
        Ok(texts.iter().map(&mut number).collect::<Result<_, _>>()?)
    }

    fn task_row(&self, seq: u64) -> Result<TaskRow, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT event.bytes, status, priority, word.text, attempt, retries, ready_ms, started_ms, ended_ms
             FROM task JOIN log.event ON event.seq = task.id LEFT JOIN word ON word.id = task.worker
             WHERE task.id = ?1",
        )?;
        let mut rows = statement.query([seq])?;
        let row = rows.next()?.ok_or_else(|| corrupt("a task without its submission"))?;
        let event = submission(row)?;
        let Some(Body::TaskSubmitted(facts)) = event.body() else {
            return Err(corrupt("a task without its submission"));
        };
        Ok(TaskRow {
            id: id_of(&event, "task/"),
            seq,
            status: word_at(&TASK_STATUSES, row, 1)?,
            priority: get(row, 2)?,
            worker: get(row, 3)?,
            attempt: get(row, 4)?,
            retries: get(row, 5)?,
            submitted_ms: event.fields().at_ms(),
            ready_ms: get(row, 6)?,
            started_ms: get(row, 7)?,
            ended_ms: get(row, 8)?,
            facts,
        })
    }

    fn run_row(&self, seq: u64) -> Result<RunRow, QueryError> {
        let mut statement = self.state.prepare_cached(
            "SELECT event.bytes, status, name, priority, min(done, steps), started_ms, ended_ms
             FROM workflow JOIN log.event ON event.seq = workflow.id WHERE workflow.id = ?1",
        )?;
        let mut rows = statement.query([seq])?;
        let row = rows.next()?.ok_or_else(|| corrupt("a run without its submission"))?;
        let event = submission(row)?;
        let Some(Body::WorkflowSubmitted(facts)) = event.body() else {
            return Err(corrupt("a run without its submission"));
        };
        Ok(RunRow {
            id: id_of(&event, "workflow/"),
            seq,
            submitted: event.cid(),
            name: get(row, 2)?,
            status: word_at(&RUN_STATUSES, row, 1)?,
            priority: get(row, 3)?,
            done: get(row, 4)?,
            submitted_ms: event.fields().at_ms(),
            started_ms: get(row, 5)?,
            ended_ms: get(row, 6)?,
            facts,
        })
    }
}

/// Returns a query for each range of a tag, filtered by the worker and the other tags.
fn listed(tag: u64, ranges: &[(usize, u64, u64)], worker: Option<u64>, tags: &[u64]) -> Vec<String> {
    let had = worker.map_or_else(String::new, |worker| {
        format!(" AND (SELECT worker FROM task WHERE id = listed.task) = {worker}")
    });
    let sifted = sifted("listed", tags.iter().filter(|other| **other != tag));
    let from = |(status, priority, _): &(usize, u64, u64)| {
        format!(
            "FROM task_listed AS listed WHERE tag = {tag} AND status = {status} AND priority = {priority}{had}{sifted}"
        )
    };
    ranges.iter().map(from).collect()
}

/// Returns a query for each wanted status over the tasks that a worker has or had last, filtered by priority and
/// tags.
fn had_by(worker: u64, status: Option<usize>, least: u64, tags: &[u64]) -> Vec<String> {
    let sifted = sifted("had", tags.iter());
    let wanted = (0..TASK_STATUSES.len()).filter(|of| status.is_none_or(|status| status == *of));
    let from = |status| {
        format!(
            "FROM (SELECT id AS task, status, priority FROM task WHERE worker = {worker} AND cleared = 0
             AND status = {status} AND priority >= {least}) AS had WHERE true{sifted}"
        )
    };
    wanted.map(from).collect()
}

/// Returns a condition for each tag on the tasks of the table `of`.
fn sifted<'a>(of: &str, tags: impl Iterator<Item = &'a u64>) -> String {
    let has = tags.map(|tag| {
        format!(
            " AND EXISTS (SELECT 1 FROM task_listed AS other WHERE other.tag = {tag}
              AND other.status = {of}.status AND other.priority = {of}.priority AND other.task = {of}.task)"
        )
    });
    has.collect()
}

fn length(ranges: &[(usize, u64, u64)]) -> u64 {
    ranges.iter().map(|(_, _, n)| n).sum()
}

/// Returns the index of a status in `known`.
fn place(known: &[&str], status: &str, of: &str) -> Result<usize, QueryError> {
    known.iter().position(|known| *known == status).ok_or_else(|| {
        QueryError::Invalid(format!(
            "`{status}` is no status of a {of}: expected one of {}",
            known.join(", ")
        ))
    })
}

fn submission(row: &Row<'_>) -> Result<Event, QueryError> {
    Event::open(get(row, 0)?).map_err(|_| corrupt("an event"))
}

fn id_of(event: &Event, prefix: &str) -> String {
    let subject = &event.fields().subject;
    subject.strip_prefix(prefix).unwrap_or(subject).to_owned()
}

fn word_at(words: &[&'static str], row: &Row<'_>, column: usize) -> Result<&'static str, QueryError> {
    let place: usize = get(row, column)?;
    words.get(place).copied().ok_or_else(|| corrupt("a status"))
}

fn get<T: FromSql>(row: &Row<'_>, column: usize) -> Result<T, QueryError> {
    Ok(row.get(column)?)
}
