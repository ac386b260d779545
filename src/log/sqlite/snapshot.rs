//! A copy of a log as it stands at one moment, taken while others write it.
//!
//! Invariants:
//! - the copy is one commit's state: all pages are read within one reading transaction, so no commit begins it anew;
//! - the copy is one file, that can be read where nothing can be written.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use crate::log::{
    LogError,
    sqlite::BUSY_MAX,
    still::{Reading, reading, uri},
};

/// Pages copied between two reports of progress: 16 MiB.
const STEP_PAGES: i32 = 2048;

/// Copies the log at `from` to `to`, which must not be there. `step` is told how many pages are copied, and of how many.
///
/// While it runs, the writer's write-ahead file grows by what is committed, as with every reader.
pub fn snapshot(from: &Path, to: &Path, step: &mut dyn FnMut(u64, u64)) -> Result<(), LogError> {
    let store = |err: std::io::Error| LogError::Store(Box::new(err));
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to).map_err(store)?;
    // SQLite has its own view of the file; none of its connections is open while this one closes.
    drop(file);
    if reading(from) == Reading::Behind {
        return Err(LogError::Behind);
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let source = Connection::open_with_flags(uri(from), flags)?;
    source.busy_timeout(BUSY_MAX)?;
    let mut copy = Connection::open(to)?;
    // Nothing to roll back and nothing to share: a copy that breaks off is thrown away, and is forced to disk at its end.
    copy.execute_batch(
        "PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA locking_mode = exclusive",
    )?;
    let moment = source.unchecked_transaction()?;
    // The transaction begins with the first read.
    moment.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, u64>(0))?;
    {
        let backup = Backup::new(&moment, &mut copy)?;
        loop {
            let stepped = backup.step(STEP_PAGES)?;
            let progress = backup.progress();
            let count = |pages: i32| u64::try_from(pages).unwrap_or(0);
            step(count(progress.pagecount - progress.remaining), count(progress.pagecount));
            match stepped {
                StepResult::Done => break,
                StepResult::More => {}
                _ => return Err(LogError::Conflict),
            }
        }
    }
    moment.finish()?;
    // The pages say that there is a write-ahead file beside them. There is none, and none is needed to read a copy.
    copy.pragma_update(None, "journal_mode", "delete")?;
    copy.close().map_err(|(_, err)| err)?;
    let file = OpenOptions::new().write(true).open(to).map_err(store)?;
    file.sync_all().map_err(store)
}
