//! The log in one SQLite file, `log.db`: the embedded default.
//!
//! Invariants:
//! - WAL with `synchronous=FULL`, unless `fsync` is off: a commit that returned survives a power cut;
//! - the write-ahead file is kept small by a connection of its own, if upkeep was asked for;
//! - triggers in the file refuse to update or delete rows, whoever opens it. Only a block's bytes may go, and come
//!   back.

pub mod blocks;
pub mod snapshot;
mod upkeep;

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior::Immediate, params,
};
use rusqlite_migration::{M, Migrations};

use self::upkeep::{Bell, Keeper, checkpoint, wal_of};
use crate::{
    block::{Block, Cid, Codec, Sha256Digest},
    event::Event,
    log::{
        Batch, BlockRow, EventRow, Log, LogError, Reader, Stored, Tip, Upkeep,
        still::{Reading, reading, uri},
    },
};

const MIGRATIONS: &[M<'_>] = &[
    M::up(include_str!("../../migrations/log/01-log.sql")),
    M::up(include_str!("../../migrations/log/02-head.sql")),
    M::up(include_str!("../../migrations/log/03-again.sql")),
];

/// Pages in the write-ahead file from which on the writer folds them back, if there is no upkeep.
const WAL_PAGES: u32 = 4_000;
/// The same with upkeep: 256 MiB, so that the writer helps only if it is about to outrun that.
const WAL_PAGES_HELP: u32 = 32 * 1024;
/// Bytes that stay allocated to the write-ahead file when it is restarted. It is overwritten in place up to there,
/// which is faster than growing it.
const WAL_KEPT_BYTES: i64 = 64 * 1024 * 1024;
/// Events remembered as appended lately.
const RECENT_MAX: usize = 16 * 1024;
/// KiB of page cache of the writing connection.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// KiB of page cache of each reading connection.
const READER_CACHE_KIB: i64 = 4 * 1024;
/// How long a reader waits while the log is being opened or recovered; commits never hold it up.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// How long a commit waits for the write lock, which upkeep has for some milliseconds. If the disk keeps it for
/// longer, it is broken, and the commit fails.
const COMMIT_BUSY_MAX: Duration = Duration::from_secs(60);
/// How long closing the log waits for readers: they lose nothing when the write-ahead file stays.
const CLOSE_BUSY_MAX: Duration = Duration::from_secs(1);

pub struct SqliteLog {
    connection: Connection,
    /// The database's file, once upkeep forces it to disk. Closing any descriptor of a file takes away this process's
    /// locks on it (POSIX), so this one, which outlives the connection, keeps upkeep's end from doing so.
    file: Option<Arc<File>>,
    path: PathBuf,
    fsync: bool,
    /// Wakes upkeep, and knows whether erased content is still in the write-ahead file.
    bell: Arc<Bell>,
    /// The last event. It is cached because this is the only writer; a second one would violate the keys of its rows.
    tip: Option<Tip>,
    /// Events appended lately: an event with one of them as its cause needs no look-up.
    recent: HashSet<Cid>,
}

impl SqliteLog {
    /// Opens the log at `path`, and creates it if there is none. With `fsync` off (benchmarks), a power cut loses
    /// commits.
    pub fn open(path: &Path, fsync: bool) -> Result<Self, LogError> {
        // The write-ahead file that a crash left may hold content that was erased.
        let left = std::fs::metadata(wal_of(path)).is_ok_and(|file| file.len() > 0);
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(COMMIT_BUSY_MAX)?;
        check_version(&connection)?;
        connection.pragma_update(None, "page_size", 8192)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", if fsync { "full" } else { "off" })?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
        connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        connection.pragma_update(None, "secure_delete", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Migrations::from_slice(MIGRATIONS)
            .to_latest(&mut connection)
            .map_err(|err| LogError::Store(Box::new(err)))?;
        let tip = tip(&connection)?;
        let bell = Arc::new(Bell::default());
        bell.uncut(left);
        Ok(Self { connection, file: None, path: path.to_owned(), fsync, bell, tip, recent: HashSet::new() })
    }

    /// Truncates the write-ahead file, if no reader holds it: erased content is in it until then.
    ///
    /// Waits for readers no longer than `patience`. If one holds the file, upkeep truncates it later, or the next copy
    /// does.
    fn cut(&self, patience: Duration) -> Result<(), LogError> {
        self.bell.uncut(true);
        self.connection.busy_timeout(patience)?;
        let cut = checkpoint(&self.connection, "truncate");
        self.connection.busy_timeout(COMMIT_BUSY_MAX)?;
        if let (false, _) = cut? {
            self.bell.uncut(false);
        }
        Ok(())
    }

    /// Returns the events of a batch that are not stored yet.
    fn fresh<'a>(&self, batch: &'a Batch) -> Result<Vec<&'a Event>, LogError> {
        let next = self.tip.map_or(0, |tip| tip.seq + 1);
        let mut fresh = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            if event.fields().seq >= next {
                fresh.push(event);
            } else if seq_of(&self.connection, &event.cid())? != Some(event.fields().seq) {
                return Err(LogError::Conflict);
            }
        }
        Ok(fresh)
    }
}

/// An event of another's log, checked by whoever copies it.
#[derive(Clone, Debug)]
pub struct Copied {
    pub seq: u64,
    pub cid: Cid,
    /// Microseconds since the epoch.
    pub ts: u64,
    pub bytes: Vec<u8>,
}

impl SqliteLog {
    /// Appends events of another's log, with blocks, durably: all or nothing.
    ///
    /// The caller must have checked that the events follow the last one here, and each one's CID and cause.
    pub fn copy(&mut self, blocks: &[Block], events: &[Copied]) -> Result<(), LogError> {
        let commit = self.connection.transaction_with_behavior(Immediate)?;
        blocks.iter().try_for_each(|block| blocks::put(&commit, block))?;
        {
            let mut insert =
                commit.prepare_cached("INSERT INTO event (seq, digest, bytes) VALUES (?1, ?2, ?3)")?;
            for event in events {
                insert.execute(params![event.seq, event.cid.digest(), event.bytes])?;
            }
        }
        // A crash before this line leaves nothing of it; after it, all.
        commit.commit()?;
        if let Some(last) = events.last() {
            self.tip = Some(Tip { seq: last.seq, cid: last.cid, ts: last.ts });
        }
        // Content that was erased while a reader held the write-ahead file is cut off here, since a copy has no upkeep.
        if self.bell.is_uncut() {
            self.cut(Duration::ZERO)?;
        }
        Ok(())
    }

    /// Truncates the write-ahead file if erased content may be in it, and waits for readers up to 5 s. For logs without
    /// upkeep, whose writer nobody waits for.
    pub fn cut_left(&self) -> Result<(), LogError> {
        match self.bell.is_uncut() {
            true => self.cut(BUSY_MAX),
            false => Ok(()),
        }
    }
}

impl Log for SqliteLog {
    fn append(&mut self, expected: Option<Cid>, batch: &Batch) -> Result<(), LogError> {
        let fresh = self.fresh(batch)?;
        if self.tip.map(|tip| tip.cid) != expected && !fresh.is_empty() {
            return Err(LogError::Conflict);
        }
        let commit = self.connection.transaction_with_behavior(Immediate)?;
        batch.blocks.iter().try_for_each(|block| blocks::put(&commit, block))?;
        {
            let mut insert =
                commit.prepare_cached("INSERT INTO event (seq, digest, bytes) VALUES (?1, ?2, ?3)")?;
            for event in &fresh {
                if let Some(cause) = event.fields().cause
                    && !self.recent.contains(&cause)
                    && seq_of(&commit, &cause)?.is_none()
                {
                    return Err(LogError::Orphan { cid: event.cid() });
                }
                insert.execute(params![event.fields().seq, event.cid().digest(), event.bytes()])?;
            }
            put_head(&commit, batch.head.as_deref())?;
        }
        // A crash before this line leaves nothing of the batch; after it, all of it: no event without its head.
        commit.commit()?;
        if self.recent.len() > RECENT_MAX {
            self.recent.clear();
        }
        self.recent.extend(fresh.iter().map(|event| event.cid()));
        self.tip = fresh.last().map_or(self.tip, |event| Some(tip_of(event)));
        self.bell.committed();
        Ok(())
    }

    fn erase(&mut self, cids: &[Cid]) -> Result<bool, LogError> {
        if cids.is_empty() {
            return Ok(false);
        }
        let commit = self.connection.transaction_with_behavior(Immediate)?;
        let cleared = blocks::clear(&commit, cids)?;
        // A crash before this line leaves all the bytes, and the record that says they are to go.
        commit.commit()?;
        // A crash before this leaves the old bytes in the write-ahead file; the next opening of the log knows it.
        self.cut(Duration::ZERO)?;
        Ok(cleared > 0)
    }

    fn upkeep(&mut self) -> Result<Box<dyn Upkeep>, LogError> {
        let file = OpenOptions::new().write(true).open(&self.path);
        let file = Arc::new(file.map_err(|err| LogError::Store(Box::new(err)))?);
        let keeper = Keeper::open(&self.path, self.bell.clone(), file.clone(), self.fsync)?;
        self.file = Some(file);
        self.connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_HELP)?;
        Ok(Box::new(keeper))
    }

    fn reader(&self) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(SqliteReader::open(&self.path)?))
    }
}

impl Drop for SqliteLog {
    /// Folds the write-ahead log back, so that a copy of a stopped node's `log.db` is the whole log.
    fn drop(&mut self) {
        let folded = self
            .connection
            .busy_timeout(CLOSE_BUSY_MAX)
            .map_err(LogError::from)
            .and_then(|()| checkpoint(&self.connection, "truncate"));
        match folded {
            Ok((false, _)) => {}
            Ok((true, _)) => {
                tracing::warn!("a reader holds the log's write-ahead file, which stays beside log.db")
            }
            Err(err) => tracing::warn!(%err, "the log's write-ahead file stays beside log.db"),
        }
        self.bell.end();
    }
}

/// Opens a reading connection, which takes no lock that could hold up the writer.
pub struct SqliteReader {
    connection: Connection,
    path: PathBuf,
}

impl SqliteReader {
    pub fn open(path: &Path) -> Result<Self, LogError> {
        if reading(path) == Reading::Behind {
            return Err(LogError::Behind);
        }
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri(path), flags)?;
        connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
        connection.busy_timeout(BUSY_MAX)?;
        check_version(&connection)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Begins a reading transaction that lasts until this reader is dropped.
    pub fn freeze(&self) -> Result<(), LogError> {
        self.connection.execute_batch("BEGIN")?;
        // A transaction begins with its first reading.
        self.head().map(|_| ())
    }
}

impl Reader for SqliteReader {
    fn tip(&self) -> Result<Option<Tip>, LogError> {
        tip(&self.connection)
    }

    fn head(&self) -> Result<Option<String>, LogError> {
        let known = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'head'";
        if self.connection.prepare_cached(known)?.query_row([], |row| row.get::<_, u64>(0))? == 0 {
            // The log was not opened for writing since the migration that added the table.
            return Ok(None);
        }
        let mut statement = self.connection.prepare_cached("SELECT note FROM head")?;
        Ok(statement.query_row([], |row| row.get(0)).optional()?)
    }

    fn event(&self, cid: &Cid) -> Result<Option<Event>, LogError> {
        if cid.codec() != Codec::DagCbor {
            return Ok(None);
        }
        let sql = "SELECT bytes FROM event WHERE digest = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let bytes = statement.query_row([cid.digest()], |row| row.get(0)).optional()?;
        bytes.map(|bytes| open_as(bytes, Some(cid))).transpose()
    }

    fn event_at(&self, seq: u64) -> Result<Option<Event>, LogError> {
        event_at(&self.connection, seq)
    }

    fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError> {
        seq_of(&self.connection, cid)
    }

    fn cids(&self, from: u64, to: u64) -> Result<Vec<Cid>, LogError> {
        let sql = "SELECT digest FROM event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([from, to], |row| digest(row, 0))?;
        rows.map(|digest| Ok(Cid::from_digest(Codec::DagCbor, digest?))).collect()
    }

    fn events(
        &self,
        from: u64,
        visit: &mut dyn FnMut(EventRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        let sql = "SELECT seq, digest, bytes FROM event WHERE seq >= ?1 ORDER BY seq";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([from])?;
        while let Some(row) = rows.next()? {
            let visited = EventRow { seq: row.get(0)?, digest: digest(row, 1)?, bytes: blob(row, 2)? };
            if visit(visited).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn block(&self, cid: &Cid) -> Result<Option<Stored>, LogError> {
        blocks::stored(&self.connection, cid)
    }

    fn has_bytes(&self, cid: &Cid) -> Result<bool, LogError> {
        blocks::has_bytes(&self.connection, cid)
    }

    fn number_of(&self, cid: &Cid) -> Result<Option<u64>, LogError> {
        blocks::number_of(&self.connection, cid)
    }

    fn block_named(&self, number: u64) -> Result<Option<Cid>, LogError> {
        let mut statement =
            self.connection.prepare_cached("SELECT digest, codec FROM block WHERE id = ?1")?;
        let found: Option<(Sha256Digest, u64)> =
            statement.query_row([number], |row| Ok((blocks::digest(row, 0)?, row.get(1)?))).optional()?;
        let Some((digest, codec)) = found else {
            return Ok(None);
        };
        let codec = Codec::from_code(codec).ok_or(LogError::Corrupt { what: "a block of unknown codec" })?;
        Ok(Some(Cid::from_digest(codec, digest)))
    }

    fn blocks(
        &self,
        from: u64,
        visit: &mut dyn FnMut(BlockRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        let sql = "SELECT id, codec, digest, bytes FROM block WHERE id >= ?1 ORDER BY id";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([from])?;
        while let Some(row) = rows.next()? {
            let visited = BlockRow {
                number: row.get(0)?,
                codec: Codec::from_code(row.get(1)?),
                digest: blocks::digest(row, 2)?,
                bytes: row.get_ref(3)?.as_blob_or_null().map_err(rusqlite::Error::from)?,
            };
            if visit(visited).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, LogError> {
        let on_disk = |path: &Path| std::fs::metadata(path).map(|file| file.len()).unwrap_or(0);
        Ok(on_disk(&self.path) + on_disk(&wal_of(&self.path)))
    }
}

impl From<rusqlite::Error> for LogError {
    fn from(err: rusqlite::Error) -> Self {
        match err.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Self::Corrupt { what: "sqlite says the file is damaged" }
            }
            // The key exists already: somebody else wrote a row that this was to write.
            Some(ErrorCode::ConstraintViolation) => Self::Conflict,
            _ => Self::Store(Box::new(err)),
        }
    }
}

/// Refuses a log whose tables are of a later version than this program knows.
fn check_version(connection: &Connection) -> Result<(), LogError> {
    let found: u64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match found > MIGRATIONS.len() as u64 {
        true => Err(LogError::Newer { found, known: MIGRATIONS.len() as u64 }),
        false => Ok(()),
    }
}

/// Replaces the signed head.
fn put_head(commit: &Connection, note: Option<&str>) -> Result<(), LogError> {
    let Some(note) = note else { return Ok(()) };
    let sql = "INSERT INTO head (id, note) VALUES (0, ?1) ON CONFLICT (id) DO UPDATE SET note = ?1";
    commit.prepare_cached(sql)?.execute([note])?;
    Ok(())
}

fn tip(connection: &Connection) -> Result<Option<Tip>, LogError> {
    let sql = "SELECT bytes FROM event ORDER BY seq DESC LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let bytes = statement.query_row([], |row| row.get(0)).optional()?;
    bytes.map(|bytes| Ok(tip_of(&open_as(bytes, None)?))).transpose()
}

fn tip_of(event: &Event) -> Tip {
    Tip { seq: event.fields().seq, cid: event.cid(), ts: event.fields().ts }
}

fn event_at(connection: &Connection, seq: u64) -> Result<Option<Event>, LogError> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM event WHERE seq = ?1")?;
    let bytes = statement.query_row([seq], |row| row.get(0)).optional()?;
    bytes.map(|bytes| open_as(bytes, None)).transpose()
}

fn seq_of(connection: &Connection, cid: &Cid) -> Result<Option<u64>, LogError> {
    if cid.codec() != Codec::DagCbor {
        // An event is DAG-CBOR: a raw block with the digest of an event is another block.
        return Ok(None);
    }
    let mut statement = connection.prepare_cached("SELECT seq FROM event WHERE digest = ?1")?;
    Ok(statement.query_row([cid.digest()], |row| row.get(0)).optional()?)
}

/// Reads stored bytes as the event of id `named`.
fn open_as(bytes: Vec<u8>, named: Option<&Cid>) -> Result<Event, LogError> {
    let event = Event::open(bytes).map_err(|_| LogError::Corrupt { what: "a row that is not an event" })?;
    match named {
        Some(cid) if *cid != event.cid() => {
            Err(LogError::Corrupt { what: "an event's bytes do not have its digest" })
        }
        _ => Ok(event),
    }
}

fn digest(row: &Row<'_>, column: usize) -> Result<Sha256Digest, rusqlite::Error> {
    let bytes = blob(row, column)?;
    bytes.try_into().map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, bytes.len() as i64))
}

fn blob<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a [u8], rusqlite::Error> {
    Ok(row.get_ref(column)?.as_blob()?)
}
