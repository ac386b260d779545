//! Derived state: tables that answer questions, folded from the log into `state.db`.
//!
//! Invariants:
//! - a fold of the log and nothing else: folding the same events gives the same rows, byte for byte;
//! - never ahead of the log; behind it only between a commit and its fold;
//! - projections read bodies, subjects, causes and contracts, never a payload's content.

pub mod digest;
pub mod fold;
pub mod peers;
pub mod work;

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rusqlite_migration::{M, Migrations};

use crate::{
    block::{Cid, Codec, Sha256Digest},
    log::{LogError, Reader},
    merkle,
};

const MIGRATIONS: &[M<'_>] = &[M::up(include_str!("../migrations/state/01-state.sql"))];

/// Pages in the write-ahead file before they are folded back: 4 MiB, so that the disk, which is the log's too, is never
/// busy with them for long.
const WAL_PAGES: u32 = 512;
/// Bytes that stay allotted to that file once it begins anew.
const WAL_KEPT_BYTES: i64 = 64 * 1024 * 1024;
/// KiB of page cache of the folding connection.
const FOLD_CACHE_KIB: i64 = 16 * 1024;
/// KiB of page cache of each reading connection.
const READER_CACHE_KIB: i64 = 4 * 1024;
/// How long a reader waits while the state is being opened or recovered; folds never hold it up.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Statements each connection keeps prepared.
const STATEMENTS_MAX: usize = 128;

/// Why the state could not be read or folded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the derived state cannot be read or written")]
    Store(#[from] rusqlite::Error),
    #[error("the derived state's tables cannot be made")]
    Migration(#[from] rusqlite_migration::Error),
    #[error("the log behind the state cannot be read")]
    Log(#[from] LogError),
    #[error("the derived state does not fit the log: {what}; run `cairn rebuild`")]
    Broken { what: &'static str },
}

/// How far the state has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Events folded; the next seq to fold.
    pub applied: u64,
    /// The last folded event.
    pub last: Option<Cid>,
}

/// A connection to the state's tables.
pub type Database = Connection;

/// Opens the state for folding, making it where there is none.
pub fn open(path: &Path) -> Result<Database, StateError> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "page_size", 8192)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // No fsync at a commit: what a power cut loses is folded again from the log.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    connection.pragma_update(None, "cache_size", -FOLD_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Migrations::from_slice(MIGRATIONS).to_latest(&mut connection)?;
    Ok(connection)
}

/// Whether the tables are those of this build's state.
pub fn whole(connection: &Connection) -> bool {
    let tables = |connection: &Connection| -> Result<Vec<(String, String)>, StateError> {
        let mut statement = connection.prepare(
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    };
    let made = || -> Result<Vec<(String, String)>, StateError> {
        let mut fresh = Connection::open_in_memory()?;
        Migrations::from_slice(MIGRATIONS).to_latest(&mut fresh)?;
        tables(&fresh)
    };
    matches!((tables(connection), made()), (Ok(found), Ok(made)) if found == made)
}

/// Opens the state for questions, with the log's tables beside it as `log`.
pub fn open_reader(state: &Path, log: &Path) -> Result<Connection, StateError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(state, flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    connection.execute("ATTACH DATABASE ?1 AS log", [log.to_string_lossy()])?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Whether there are tables: a process that ends while it makes the file leaves one without any.
pub fn begun(connection: &Connection) -> Result<bool, StateError> {
    Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM main.sqlite_schema)", [], |row| row.get(0))?)
}

pub fn progress(connection: &Connection) -> Result<Progress, StateError> {
    let mut statement = connection.prepare_cached("SELECT applied, last FROM progress")?;
    let (applied, last): (u64, Option<Sha256Digest>) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Progress { applied, last: last.map(|digest| Cid::from_digest(Codec::DagCbor, digest)) })
}

/// The erasures that hold: the payload each names, and its seq.
pub fn erasures(connection: &Connection) -> Result<Vec<(Cid, u64)>, StateError> {
    let mut statement = connection.prepare_cached("SELECT cid, seq FROM erased ORDER BY seq, cid")?;
    let mut rows = statement.query([])?;
    let mut erasures = Vec::new();
    while let Some(row) = rows.next()? {
        let cid: Vec<u8> = row.get(0)?;
        let cid =
            Cid::from_bytes(&cid).map_err(|_| StateError::Broken { what: "an erasure names no cid" })?;
        erasures.push((cid, row.get(1)?));
    }
    Ok(erasures)
}

/// Adds what events hold: blocks, by their numbers in the log, that came after the events were folded.
///
/// The rows are those that a fold makes which finds the blocks. For whoever holds the lock.
pub fn hold(state: &mut Database, held: &[(u64, u64)]) -> Result<(), StateError> {
    let applied = progress(state)?.applied;
    let commit = state.transaction()?;
    {
        let mut insert = commit.prepare_cached("INSERT OR IGNORE INTO holds (block, seq) VALUES (?1, ?2)")?;
        for (block, seq) in held.iter().filter(|(_, seq)| *seq < applied) {
            insert.execute([block, seq])?;
        }
    }
    Ok(commit.commit()?)
}

/// The tree's tiles: those above level 0 from the state, those at it from the log's own digests.
pub struct StoredTiles<'a> {
    pub state: &'a Connection,
    pub log: &'a dyn Reader,
}

impl merkle::Tiles for StoredTiles<'_> {
    type Error = StateError;

    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, StateError> {
        if level > 0 {
            let mut statement = self.state.prepare_cached("SELECT hashes FROM tile WHERE id = ?1")?;
            return Ok(statement.query_row([tile_id(level, index)], |row| row.get(0)).optional()?);
        }
        let width = merkle::TILE_WIDTH as u64;
        let cids = self.log.cids(index * width, (index + 1) * width)?;
        Ok((!cids.is_empty()).then(|| cids.iter().flat_map(merkle::leaf_hash).collect()))
    }
}

/// The row a tile stands in.
fn tile_id(level: u8, index: u64) -> u64 {
    u64::from(level) << 48 | index
}

/// A subject as stored: `call/<32 hex>` in 17 bytes, anything else as it is.
pub fn subject_key(subject: &str) -> Vec<u8> {
    let id = subject.strip_prefix("call/").filter(|id| id.len() == 32);
    match id.and_then(|id| data_encoding::HEXLOWER.decode(id.as_bytes()).ok()) {
        Some(id) => [&[0], &id[..]].concat(),
        None => subject.as_bytes().to_vec(),
    }
}
