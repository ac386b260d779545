//! Derives the state a second time in a file of its own, and compares every table with the state in use.
//!
//! Invariant: the state in use is only read, in one snapshot.

use std::{fs, ops::ControlFlow, path::Path};

use crate::{
    event::Event,
    log::{
        LogError, Reader,
        home::Home,
        sqlite::SqliteReader,
        still::{Scratch, is_writable},
    },
    state::{self, StateError, digest, fold::Folder},
};

/// One transaction folds at most this many events.
const FOLD_MAX: usize = 8 * 1024;
const NO_SCRATCH: StateError = StateError::Broken { what: "no directory for temporary files can be made" };

/// Returns the tables whose rows differ from those that the log gives. Returns an empty list if the state has no
/// tables yet.
pub(super) fn compare(home: &Home, step: &mut dyn FnMut(u64, u64)) -> Result<Vec<String>, StateError> {
    let state = state::open_reader(&home.state_path(), &home.log_path())?;
    let moment = state.unchecked_transaction()?;
    if !state::begun(&moment)? {
        return Ok(Vec::new());
    }
    let size = state::progress(&moment)?.applied;
    let ours = digest::tables(&moment)?;
    drop(moment);
    let name = format!("state.check.{}", std::process::id());
    let theirs = match is_writable(home.dir()) {
        true => {
            let beside = home.dir().join(name);
            let theirs = derive(home, &beside, size, step);
            remove(&beside);
            theirs?
        }
        false => {
            let scratch = Scratch::make().map_err(|_| NO_SCRATCH)?;
            derive(home, &scratch.path().join(name), size, step)?
        }
    };
    let differing = ours.into_iter().filter(|(table, digest)| theirs.get(table) != Some(digest));
    Ok(differing.map(|(table, _)| table).collect())
}

/// Returns the digests of all tables after the first `size` events.
fn derive(
    home: &Home,
    beside: &Path,
    size: u64,
    step: &mut dyn FnMut(u64, u64),
) -> Result<std::collections::BTreeMap<String, String>, StateError> {
    digest::tables(fold(home, beside, size, step)?.state())
}

/// Derives the state of the first `size` events into a file of its own.
pub fn fold(
    home: &Home,
    beside: &Path,
    size: u64,
    step: &mut dyn FnMut(u64, u64),
) -> Result<Folder, StateError> {
    let log = SqliteReader::open(&home.log_path())?;
    let mut folder = Folder::resume(state::open(beside)?, Box::new(SqliteReader::open(&home.log_path())?))?;
    while folder.applied() < size {
        let room = usize::try_from(size - folder.applied()).map_or(FOLD_MAX, |left| left.min(FOLD_MAX));
        let mut events = Vec::with_capacity(room);
        log.events(folder.applied(), &mut |row| {
            events.extend(Event::open(row.bytes.to_vec()));
            if events.len() < room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if events.is_empty() {
            return Err(LogError::Corrupt { what: "the state is ahead of the log" }.into());
        }
        folder.apply(&events)?;
        step(folder.applied(), size);
    }
    Ok(folder)
}

fn remove(beside: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = beside.as_os_str().to_owned();
        path.push(suffix);
        // A file that cannot be removed is harmless: its name holds this process's id, and nothing reads it.
        let _ = fs::remove_file(path);
    }
}
