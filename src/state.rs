//! The state: tables in `state.db` that are folded from the log and answer questions.
//!
//! Invariants:
//! - the state is a fold of the log and of nothing else: the same events give the same rows, byte for byte;
//! - it is never ahead of the log, and behind it only between a commit and its fold;
//! - the fold reads events, the numbers of blocks and the names of plans, and never the content of a payload.

pub mod counts;
pub mod digest;
pub mod peers;
pub mod recent;
pub mod fold;
pub mod work;

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rusqlite_migration::{M, Migrations};

use crate::{
    block::{Cid, Codec, Sha256Digest},
    log::{LogError, Reader, still::uri},
    merkle,
};

const MIGRATIONS: &[M<'_>] = &[M::up(include_str!("../migrations/state/01-state.sql"))];

/// SQLite's checkpoint runs once the write-ahead file has this many pages. They are 4 MiB, so the disk, which the log
/// shares, is never busy with them for long.
const WAL_PAGES: u32 = 512;
/// The write-ahead file keeps at most this many bytes when it begins anew.
const WAL_KEPT_BYTES: i64 = 64 * 1024 * 1024;
/// The folding connection has a page cache of this many KiB.
const FOLD_CACHE_KIB: i64 = 16 * 1024;
/// Each reading connection has a page cache of this many KiB.
const READER_CACHE_KIB: i64 = 4 * 1024;
/// A reader waits this long while the state is opened or recovered. In WAL mode a fold never blocks it.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Each connection keeps this many statements prepared.
const STATEMENTS_MAX: usize = 128;

/// Says why the state could not be read or folded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the derived state cannot be read or written")]
    Store(#[from] rusqlite::Error),
    #[error("the derived state's tables cannot be made")]
    Migration(#[from] rusqlite_migration::Error),
    #[error("the log behind the state cannot be read")]
    Log(#[from] LogError),
    #[error(
        "state.db was written by a newer cairn: its tables are of version {found}, and this program knows version {known}; use that program, or derive it again with `cairn rebuild`"
    )]
    Newer { found: u64, known: u64 },
    #[error("the derived state does not fit the log: {what}; run `cairn rebuild`")]
    Broken { what: &'static str },
}

/// Says how far the state has been folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Counts the folded events, and so is the next seq to fold.
    pub applied: u64,
    /// The last folded event.
    pub last: Option<Cid>,
}

/// A connection to the state's tables.
pub type Database = Connection;

/// Opens the state for folding, and creates it if there is none.
pub fn open(path: &Path) -> Result<Database, StateError> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "page_size", 8192)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // With this setting, SQLite does not fsync at a commit. What a power cut loses is folded again from the log.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    connection.pragma_update(None, "cache_size", -FOLD_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Migrations::from_slice(MIGRATIONS).to_latest(&mut connection)?;
    Ok(connection)
}

/// Returns whether the tables are exactly those that this build creates.
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

/// Opens the state for reading, with the log attached as `log`.
pub fn open_reader(state: &Path, log: &Path) -> Result<Connection, StateError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(state), flags)?;
    connection.busy_timeout(BUSY_MAX)?;
    let (found, known) =
        (connection.pragma_query_value(None, "user_version", |row| row.get(0))?, MIGRATIONS.len() as u64);
    if found > known {
        return Err(StateError::Newer { found, known });
    }
    connection.execute("ATTACH DATABASE ?1 AS log", [uri(log)])?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Returns whether there are tables. A process that dies while it creates the file leaves one without tables.
pub fn begun(connection: &Connection) -> Result<bool, StateError> {
    Ok(connection.query_row("SELECT EXISTS (SELECT 1 FROM main.sqlite_schema)", [], |row| row.get(0))?)
}

pub fn progress(connection: &Connection) -> Result<Progress, StateError> {
    let mut statement = connection.prepare_cached("SELECT applied, last FROM progress")?;
    let (applied, last): (u64, Option<Sha256Digest>) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Progress { applied, last: last.map(|digest| Cid::from_digest(Codec::DagCbor, digest)) })
}

/// Returns the erasures that hold: each payload with the seq of its erasure, by rising seq.
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

/// Returns the seqs of all events of the subject whose first event is at `first`, in order.
pub fn events_from(connection: &Connection, first: u64) -> Result<Vec<u64>, StateError> {
    let sql = "SELECT ?1 UNION ALL SELECT seq FROM entry WHERE subject = ?1 AND subject <> seq ORDER BY 1";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([first], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds rows to `holds` for blocks, by their numbers in the log, that were stored after the events naming them were
/// folded.
///
/// The rows are those that the fold would have made with the blocks there. The caller must hold the directory's lock.
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

/// Reads the tree's tiles: those of level 0 from the digests in the log, and higher ones from the state.
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

/// Returns the id of a tile's row.
fn tile_id(level: u8, index: u64) -> u64 {
    u64::from(level) << 48 | index
}

/// Returns a subject as it is stored: `call/<32 hex>` in 17 bytes, any other as its text.
pub fn subject_key(subject: &str) -> Vec<u8> {
    let id = subject.strip_prefix("call/").filter(|id| id.len() == 32);
    match id.and_then(|id| data_encoding::HEXLOWER.decode(id.as_bytes()).ok()) {
        Some(id) => [&[0], &id[..]].concat(),
        None => subject.as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests;
