//! Erases a payload in the archives beside the log: each archive that holds the payload is rewritten without it.
//!
//! Invariants:
//! - an archive is replaced whole or not at all, and keeps its name, its modification time and every other block;
//! - only a block that an event of the archive names as a payload is removed, with the parts that no other payload
//!   there names.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::{
    archive::kept::{DIRECTORY, EXTENSION, opened},
    block::{
        Cid, Codec,
        car::{self, CarError},
    },
    event::Event,
    query::payload_parts,
};

/// The rewritten file has this extension until it replaces the archive. A crash leaves such a file, and the next
/// erasure removes it.
const FRESH: &str = "erasing";

/// Says why an erasure in the archives failed.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    #[error("the archive `{file}` cannot be read; remove it, or put a whole one in its place")]
    Car {
        file: String,
        #[source]
        source: CarError,
    },
    #[error("the archives beside the log cannot be written")]
    Io(#[from] io::Error),
}

/// Erases `payload` in every archive of the data directory `dir`. Returns how many archives held it.
///
/// Blocks while another process erases: each would take the other's unfinished files for leftovers of a crash.
pub fn erase(dir: &Path, payload: &Cid) -> Result<usize, EraseError> {
    let dir = dir.join(DIRECTORY);
    let alone = match File::open(&dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(0),
        directory => directory?,
    };
    alone.lock()?;
    let mut held = 0;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(FRESH) => fs::remove_file(&path)?,
            Some(EXTENSION) => held += usize::from(erase_in(&path, payload)?),
            Some(_) | None => {}
        }
    }
    if held > 0 {
        alone.sync_all()?;
    }
    Ok(held)
}

fn erase_in(path: &Path, payload: &Cid) -> Result<bool, EraseError> {
    let unread = |source| EraseError::Car { file: path.display().to_string(), source };
    let file = File::open(path)?;
    let gone = going(&file, payload).map_err(unread)?;
    if gone.is_empty() {
        return Ok(false);
    }
    let fresh = path.with_extension(FRESH);
    let written = write_without(&file, &gone, &fresh).map_err(unread)?;
    // Of several archives of one record, the one with the latest modification time is read, so it must keep that time.
    written.set_modified(file.metadata()?.modified()?)?;
    written.sync_all()?;
    // A crash before this leaves the archive as it was; after it, the payload is gone.
    fs::rename(&fresh, path)?;
    Ok(true)
}

/// Returns the payload and its unshared parts if an event of the archive names the payload; otherwise returns an empty
/// set.
fn going(file: &File, payload: &Cid) -> Result<HashSet<Cid>, CarError> {
    let (mut parts, mut shared) = (HashSet::new(), HashSet::new());
    let (mut there, mut named) = (false, false);
    for section in opened(file)? {
        let (cid, bytes) = section?;
        if cid.codec() != Codec::DagCbor {
            continue;
        }
        let held = payload_parts(&bytes);
        if cid == *payload {
            there = held.is_some();
            parts.extend(held.into_iter().flatten());
        } else if let Some(held) = held {
            shared.extend(held);
        } else if let Ok(event) = Event::open(bytes) {
            named |= event.fields().pay.iter().any(|pay| pay.cid == *payload);
        }
    }
    if !(there && named) {
        return Ok(HashSet::new());
    }
    parts.retain(|part| !shared.contains(part));
    parts.insert(*payload);
    Ok(parts)
}

fn write_without(file: &File, gone: &HashSet<Cid>, fresh: &Path) -> Result<File, CarError> {
    let archive = opened(file)?;
    let fresh = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(fresh)?;
    let mut copy = car::Writer::new(BufWriter::new(fresh), archive.root())?;
    for section in archive {
        let (cid, bytes) = section?;
        if !gone.contains(&cid) {
            copy.append(&cid, &bytes)?;
        }
    }
    Ok(copy.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?)
}
