//! Questions about the log and what is derived from it. A question reads, and never writes.
//!
//! Invariants:
//! - a question sees whole commits, and nothing the state has not folded yet;
//! - what is answered has been hashed: bytes that do not have their name are a fault, never an answer.

mod cursor;
pub mod erasure;
pub mod keeping;
pub mod naming;
pub mod shown;
pub mod lookup;
pub mod list;
pub mod proof;
pub mod beside;
pub mod source;
pub mod summary;
pub mod tail;
pub mod work;
pub mod peers;
pub mod walk;

use std::{
    collections::HashSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    block::{
        Cid, Codec, decode,
        payload::{Payload, join},
    },
    error::Code,
    log::{LogError, Reader, home::Home, sqlite::SqliteReader},
    state::{self, StateError, StoredTiles, subject_key},
    words::number,
};

/// Connections kept open between questions; each has some MiB of page cache.
const IDLE_MAX: usize = 4;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not in this log")]
    NotFound(String),
    /// The payload's content was erased by the event `by`, and no event after it has recorded the payload again.
    #[error(
        "the content of {cid} was erased by event {by} at seq {seq}, for all that was recorded before; its name and every proof stay valid"
    )]
    Erased { cid: Cid, by: Cid, seq: u64 },
    /// The answer would be over a bound.
    #[error("{0}")]
    TooMuch(String),
    #[error("the log or its state cannot be read")]
    Fault(#[source] StateError),
}

impl QueryError {
    /// The code callers are answered with.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::Erased { .. } => Code::FailedPrecondition,
            Self::TooMuch(_) => Code::ResourceExhausted,
            Self::Fault(_) => Code::Internal,
        }
    }
}

impl From<LogError> for QueryError {
    fn from(err: LogError) -> Self {
        Self::from(StateError::from(err))
    }
}

impl From<rusqlite::Error> for QueryError {
    fn from(err: rusqlite::Error) -> Self {
        Self::from(StateError::from(err))
    }
}

impl From<StateError> for QueryError {
    fn from(err: StateError) -> Self {
        // Only a number of the question itself can be one that the store does not hold.
        let store = match &err {
            StateError::Store(store) => Some(store),
            StateError::Log(LogError::Store(store)) => store.downcast_ref(),
            StateError::Log(_)
            | StateError::Migration(_)
            | StateError::Newer { .. }
            | StateError::Broken { .. } => None,
        };
        match store {
            Some(rusqlite::Error::ToSqlConversionFailure(_)) => {
                Self::Invalid(format!("a number is too large: expected {}", number::EXPECTED))
            }
            _ => Self::Fault(err),
        }
    }
}

/// A reading connection to the log and its state, which questions are asked of.
pub struct View {
    /// The state, with the log's tables beside it as `log`.
    pub(crate) state: Connection,
    pub(crate) log: Box<dyn Reader>,
    /// The data directory of the log.
    directory: PathBuf,
}

impl View {
    pub fn open(home: &Home) -> Result<Self, QueryError> {
        Self::of_files(&home.state_path(), &home.log_path())
    }

    /// Returns the tree as far as it is folded.
    pub(crate) fn tiles(&self) -> StoredTiles<'_> {
        StoredTiles { state: &self.state, log: self.log.as_ref() }
    }

    /// Opens the log of `home` with a state that was derived elsewhere.
    pub fn beside(home: &Home, state: &Path) -> Result<Self, QueryError> {
        Self::of_files(state, &home.log_path())
    }

    fn of_files(state: &Path, log: &Path) -> Result<Self, QueryError> {
        let directory = log.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self {
            state: state::open_reader(state, log)?,
            log: Box::new(SqliteReader::open(log)?),
            directory,
        })
    }

    /// The data directory of the log.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns whether the state exists.
    pub fn begun(&self) -> Result<bool, QueryError> {
        Ok(state::begun(&self.state)?)
    }

    /// Returns how many events the state has folded; questions see exactly these.
    pub fn applied(&self) -> Result<u64, QueryError> {
        Ok(state::progress(&self.state)?.applied)
    }
}

/// A pool of views. The caller bounds how many questions are asked at once.
pub struct Readers {
    home: Home,
    idle: Mutex<Vec<View>>,
}

impl Readers {
    pub fn new(home: Home) -> Self {
        Self { home, idle: Mutex::new(Vec::new()) }
    }

    /// Asks `question` on this thread.
    pub fn ask<T>(&self, question: impl FnOnce(&View) -> Result<T, QueryError>) -> Result<T, QueryError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let view = match kept {
            Some(view) => view,
            None => View::open(&self.home)?,
        };
        let answer = question(&view);
        // After a fault the files may have been replaced: the next question opens them anew.
        if !matches!(answer, Err(QueryError::Fault(_))) {
            let mut idle = idle();
            if idle.len() < IDLE_MAX {
                idle.push(view);
            }
        }
        answer
    }

    /// Opens a view for a long question; it does not return to the pool.
    pub fn view(&self) -> Result<View, QueryError> {
        View::open(&self.home)
    }

    pub fn home(&self) -> &Home {
        &self.home
    }
}

/// Returns the parts of a payload; `None` if the block is no payload.
pub fn payload_parts(block: &[u8]) -> Option<Vec<Cid>> {
    let payload: Payload = decode(block).ok()?;
    Some(payload.parts.unwrap_or_default())
}

/// Returns those of `parts` that payloads outside `gone` hold too. In old logs parts have no salt, so equal content
/// shares them.
///
/// Reads every block; payloads in parts are rare, and so is erasing one.
pub fn shared_parts(log: &dyn Reader, gone: &[Cid], parts: &[Cid]) -> Result<HashSet<Cid>, LogError> {
    let mut shared = HashSet::new();
    if parts.is_empty() {
        return Ok(shared);
    }
    let parts: HashSet<&Cid> = parts.iter().collect();
    log.blocks(0, &mut |row| {
        let other = row.codec == Some(Codec::DagCbor)
            && !gone.contains(&Cid::from_digest(Codec::DagCbor, row.digest));
        if let Some(bytes) = row.bytes.filter(|_| other)
            && let Some(held) = payload_parts(bytes)
        {
            shared.extend(held.into_iter().filter(|part| parts.contains(part)));
        }
        ControlFlow::Continue(())
    })?;
    Ok(shared)
}

/// Returns the content of a payload, joined from its parts; `None` if it is erased or no payload.
pub fn content(home: &Home, payload: &Cid) -> Result<Option<Vec<u8>>, LogError> {
    let log = SqliteReader::open(&home.log_path())?;
    join(payload, |cid| log.bytes(cid))
}

/// The seqs of a call's start, and of its ending if it has one.
pub type CallSeqs = (u64, Option<u64>);

/// SQL for the ending of the call that began at `?`: the child of its start with the same subject that neither asks nor
/// answers.
const ENDED: &str = "(SELECT edge.child FROM edge JOIN entry ON entry.seq = edge.child
                      WHERE edge.parent = call AND entry.subject = call
                      AND entry.kind NOT IN
                          (SELECT id FROM word WHERE text IN ('call.asked', 'call.answered')))";

/// Returns the latest call with an idempotency key.
pub fn keyed_call(
    state: &Connection,
    actor: &str,
    name: &str,
    key: &[u8],
) -> Result<Option<CallSeqs>, StateError> {
    let sql = format!(
        "SELECT call, {ENDED} FROM call_key
         JOIN word AS actor ON actor.id = call_key.actor AND actor.text = ?1
         JOIN word AS name ON name.id = call_key.name AND name.text = ?2
         WHERE call_key.key = ?3"
    );
    let mut statement = state.prepare_cached(&sql)?;
    Ok(statement.query_row(params![actor, name, key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Returns the seq of the latest question that committed to this request state.
pub fn asked_with(state: &Connection, request_state: &[u8; 16]) -> Result<Option<u64>, StateError> {
    let mut statement = state.prepare_cached("SELECT seq FROM asked WHERE state = ?1")?;
    Ok(statement.query_row([request_state], |row| row.get(0)).optional()?)
}

/// Returns the call with this id.
pub fn call_of(state: &Connection, id: &str) -> Result<Option<CallSeqs>, StateError> {
    let sql = format!("SELECT call, {ENDED} FROM (SELECT id AS call FROM subject WHERE name = ?1)");
    let mut statement = state.prepare_cached(&sql)?;
    let key = subject_key(&crate::call::subject(id));
    Ok(statement.query_row([key], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Returns the seq of the ending of the call that began at `started`.
pub fn ending_of(state: &Connection, started: u64) -> Result<Option<u64>, StateError> {
    let sql = format!("SELECT {ENDED} FROM (SELECT ?1 AS call)");
    Ok(state.prepare_cached(&sql)?.query_row([started], |row| row.get(0))?)
}

/// Returns the seqs of the starts of calls without an ending.
pub fn open_calls(state: &Connection) -> Result<Vec<u64>, StateError> {
    numbers(state, "SELECT id FROM running ORDER BY id")
}

/// A tool's current contract.
pub struct Current {
    /// Source and name as its publication says; an adopted contract itself names neither.
    pub source: String,
    pub name: String,
    /// The row number of the contract's block.
    pub block: u64,
    pub offered: bool,
}

/// Returns the current contract of every tool, in the order of publication.
pub fn current_contracts(state: &Connection) -> Result<Vec<Current>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT source.text, name.text, block, offered FROM contract
         JOIN word source ON source.id = contract.source JOIN word name ON name.id = contract.name
         ORDER BY seq",
    )?;
    let rows = statement.query_map([], |row| {
        let (source, name) = (row.get(0)?, row.get(1)?);
        Ok(Current { source, name, block: row.get(2)?, offered: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn numbers(state: &Connection, sql: &str) -> Result<Vec<u64>, StateError> {
    let mut statement = state.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
