//! Keeps an archive: every block and event is checked while it is copied into the data directory.
//!
//! Invariants:
//! - an archive takes its name only once it is complete and checked; a refused archive leaves nothing behind;
//! - a block that nothing names is refused: contracts and plans come before the events, and payloads after the first
//!   event that names them;
//! - what was erased of a kept archive does not come back with the same archive: imports and erasures take turns.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    check::Check,
    evidence::{Evidence, Proof},
};
use crate::{
    archive::{
        check::KeepError,
        kept::{ARCHIVES_MAX, BYTES_MAX, DIRECTORY, EVENTS_MAX, EXTENSION},
        writing::Manifest,
    },
    block::{
        car::{self, CarError},
        encode,
    },
    log::fresh::Fresh,
};

/// Progress is reported each time this many events were checked.
const STEP: u64 = 1024;

/// Describes an archive that was kept.
#[derive(Clone, Debug)]
pub struct KeptArchive {
    /// Names the entity whose record it is.
    pub subject: String,
    pub file: PathBuf,
    pub events: u64,
    pub blocks: u64,
    /// Says whether the events are shown to be those that the log's key signed.
    pub evidence: Evidence,
    /// Says whether the same archive was already kept before.
    pub already: bool,
}

/// Checks the blocks that follow the manifest of a record of `subject`, and keeps the archive in the data directory
/// `dir`. `step` is called with the number of events checked so far. Blocks while another process erases in the archives.
pub fn keep<R: Read>(
    archive: car::Reader<R>,
    manifest: &Manifest,
    subject: &str,
    dir: &Path,
    step: &mut dyn FnMut(u64),
) -> Result<KeptArchive, KeepError> {
    if manifest.count > EVENTS_MAX {
        return Err(KeepError::TooLarge { count: manifest.count });
    }
    let dir = dir.join(DIRECTORY);
    let fresh = Fresh::of(&dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let file = dir.join(format!("{}.{EXTENSION}", archive.root()));
    if !file.exists() && fs::read_dir(&dir)?.count() >= ARCHIVES_MAX {
        return Err(KeepError::TooMany);
    }
    // A crash leaves this file, which is never read. The next import of the same archive overwrites it.
    let part = file.with_extension("part");
    let kept = write(archive, manifest, subject, &part, step).and_then(|(events, blocks, evidence)| {
        // An erasure between the comparison and the renaming would be undone.
        let alone = File::open(&dir)?;
        alone.lock()?;
        let already = file.exists();
        // Another archive of the same root may hold fewer payloads, so a kept one is replaced only by the same bytes.
        if already && !same(&part, &file)? {
            return Err(KeepError::Differs { file: file.display().to_string() });
        }
        fs::rename(&part, &file)?;
        alone.sync_all()?;
        Ok(KeptArchive { subject: subject.to_owned(), file, events, blocks, evidence, already })
    });
    if kept.is_err() {
        let _ = fs::remove_file(&part);
        return kept;
    }
    fresh.keep();
    kept
}

/// Returns whether two files hold the same bytes.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one).bytes(), BufReader::new(other).bytes());
    loop {
        match (one.next().transpose()?, other.next().transpose()?) {
            (None, None) => return Ok(true),
            (left, right) if left != right => return Ok(false),
            _ => {}
        }
    }
}

fn write<R: Read>(
    archive: car::Reader<R>,
    manifest: &Manifest,
    subject: &str,
    part: &Path,
    step: &mut dyn FnMut(u64),
) -> Result<(u64, u64, Evidence), KeepError> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(part)?;
    let root = archive.root();
    let mut copy = car::Writer::new(BufWriter::new(file), root)?;
    copy.append(&root, &encode(manifest))?;
    let mut proof = Proof::of(manifest).map_err(|fault| KeepError::Proof { fault })?;
    let mut check = Check::new(manifest, subject);
    let mut bytes = 0;
    for section in archive {
        let (cid, block) = section?;
        bytes += block.len() as u64;
        if bytes > BYTES_MAX {
            return Err(CarError::TooLarge { max: BYTES_MAX }.into());
        }
        copy.append(&cid, &block)?;
        if proof.open() {
            proof.take(cid, &block).map_err(|fault| KeepError::Block { cid, fault })?;
            continue;
        }
        check.block(cid, block)?;
        if check.events.is_multiple_of(STEP) {
            step(check.events);
        }
    }
    let evidence = check.end(&proof)?;
    let mut file = copy.finish()?;
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok((check.events, check.blocks, evidence))
}
