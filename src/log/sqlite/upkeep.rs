//! Keeps the log's write-ahead file small, from a connection that is not the writing one.
//!
//! Invariants:
//! - the writer's commits copy no pages and wait for no reader; what waits for readers here has a bound;
//! - erased content is cut off the write-ahead file, as soon as no reader holds it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

use crate::log::{Ahead, LogError, Upkeep, Woken};

/// The handle by which the writing connection wakes upkeep. Dropping the log ends upkeep.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<Woken>,
    changed: Condvar,
}

impl Bell {
    /// Reports a commit.
    pub fn committed(&self) {
        self.ring(|rung| rung.committed = true);
    }

    /// Reports that erased content is in the write-ahead file, or is there no longer.
    pub fn uncut(&self, uncut: bool) {
        self.ring(|rung| rung.uncut = uncut);
    }

    pub fn is_uncut(&self) -> bool {
        // No code that holds the lock panics midway, so a poisoned lock is usable.
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).uncut
    }

    pub fn end(&self) {
        self.ring(|rung| rung.ended = true);
    }

    fn ring(&self, change: impl FnOnce(&mut Woken)) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *rung;
        change(&mut rung);
        // A commit after an unnoticed commit wakes nobody, because every commit goes through here.
        if *rung != before {
            drop(rung);
            self.changed.notify_one();
        }
    }
}

/// The connection that keeps the file small. Its statements read and write no table.
pub(super) struct Keeper {
    connection: Connection,
    bell: Arc<Bell>,
    wal: PathBuf,
    /// The database's file, for forcing folded pages to disk before the writer has to wait for that.
    file: Arc<File>,
    fsync: bool,
}

impl Keeper {
    pub fn open(path: &Path, bell: Arc<Bell>, file: Arc<File>, fsync: bool) -> Result<Self, LogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.pragma_update(None, "synchronous", if fsync { "full" } else { "off" })?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.busy_timeout(Duration::ZERO)?;
        Ok(Self { connection, bell, wal: wal_of(path), file, fsync })
    }

    fn checkpoint(&self, how: &str) -> Result<(bool, Ahead), LogError> {
        let (busy, ahead) = checkpoint(&self.connection, how)?;
        let bytes = std::fs::metadata(&self.wal).map_or(0, |file| file.len());
        Ok((busy, Ahead { bytes, ..ahead }))
    }
}

impl Upkeep for Keeper {
    fn wait(&mut self, gather: Duration, at_most: Duration) -> Woken {
        let begun = Instant::now();
        let mut rung = self.bell.rung.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let waited = begun.elapsed();
            // Erased content waits for `gather` too, but it is never left until `at_most`.
            let awake = rung.committed && waited >= gather;
            if rung.ended || (rung.uncut && waited >= gather) || awake || waited >= at_most {
                let woken = *rung;
                rung.committed = false;
                return woken;
            }
            let until = if rung.committed || rung.uncut { gather } else { at_most };
            let slept = self.bell.changed.wait_timeout(rung, until.min(at_most).saturating_sub(waited));
            rung = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(&mut self) -> Result<Ahead, LogError> {
        Ok(self.checkpoint("noop")?.1)
    }

    fn fold(&mut self) -> Result<Ahead, LogError> {
        let (_, ahead) = self.checkpoint("passive")?;
        // SQLite forces the main file to disk only if it has folded all pages. Otherwise it is done here, so that the
        // writer need not wait for it later.
        if self.fsync && ahead.folded < ahead.pages {
            self.file.sync_data().map_err(|err| LogError::Store(Box::new(err)))?;
        }
        Ok(ahead)
    }

    fn restart(&mut self, patience: Duration) -> Result<bool, LogError> {
        let uncut = self.bell.is_uncut();
        // An erasure while this runs sets it again.
        self.bell.uncut(false);
        self.connection.busy_timeout(patience)?;
        let begun = self.checkpoint(if uncut { "truncate" } else { "restart" });
        if uncut && !matches!(begun, Ok((false, _))) {
            self.bell.uncut(true);
        }
        Ok(!begun?.0)
    }
}

/// Runs a checkpoint. Returns true if a reader or a writer kept it from completing.
pub(super) fn checkpoint(connection: &Connection, how: &str) -> Result<(bool, Ahead), LogError> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({how})"))?;
    let (busy, pages, folded): (bool, i64, i64) =
        statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    // SQLite returns -1 for both if there is no write-ahead file.
    let count = |pages: i64| u64::try_from(pages).unwrap_or(0);
    Ok((busy, Ahead { bytes: 0, pages: count(pages), folded: count(folded) }))
}

pub(super) fn wal_of(path: &Path) -> PathBuf {
    let mut wal = path.to_owned().into_os_string();
    wal.push("-wal");
    PathBuf::from(wal)
}
