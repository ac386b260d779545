//! Imports archives: a whole log becomes a data directory, and the record of a run is kept as an archive beside a log.
//!
//! Invariants:
//! - a refused archive leaves nothing behind, nor a directory that was made for it: the log takes its name only once it
//!   is complete and verified;
//! - an archive holds no key, so an imported log cannot be appended to without its own keys.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use super::export::RUN;
use crate::{
    archive::{
        check::KeepError,
        evidence::Evidence,
        keep::{KeptArchive, keep},
        kept,
        writing::Manifest,
    },
    block::{
        Block, Cid, Codec,
        car::{CarError, Limits, Reader, SECTION_MAX},
    },
    event::Event,
    identity::{CheckpointError, check_form},
    log::{
        Batch, Log, LogError,
        fresh::Fresh,
        home::{Home, HomeError},
        sqlite::SqliteLog,
    },
    verify::{Checks, Report, Step, Verdict, verify},
};

/// A commit is made once it has this many events.
const BATCH_EVENTS: usize = 4096;
/// A commit is made once its blocks and events have this many bytes.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Says why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("`{dir}` holds a log already; import into an empty directory")]
    Occupied { dir: String },
    #[error("the archive is refused")]
    Car(#[from] CarError),
    #[error("the file is no archive: name a file that `cairn log export` wrote")]
    NoArchive(#[source] CarError),
    #[error("the archive is not an export of a log: its root is no manifest of version 1")]
    NoManifest,
    #[error("the archive is refused: its checkpoint is no signed head")]
    Checkpoint(#[from] CheckpointError),
    #[error("the archive holds {count} blocks that nothing in it names, the first {cid}")]
    Unnamed { count: u64, cid: String },
    #[error(
        "the archive holds {count} events from {from} to {to}: it is not a whole log, nor the record of a run; export it \
         without a subject, cid or range, or with the subject workflow/ID"
    )]
    Partial { from: u64, to: u64, count: u64 },
    #[error("the archive goes from event {expected} to event {found}: the events between are missing")]
    Gap { expected: u64, found: u64 },
    #[error("the archive ends before event {expected} of {count}")]
    Short { expected: u64, count: u64 },
    #[error("what the archive holds does not verify: {}", faults(.0))]
    Unverified(Box<Report>),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the log cannot be written")]
    Log(#[from] LogError),
    #[error("the data directory cannot be written")]
    Io(#[from] io::Error),
}

impl ImportError {
    /// Returns the verdict on the refused archive; returns none if something other than its content prevents the
    /// import.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::NoArchive(_) | Self::NoManifest => Some(Verdict::Unreadable),
            Self::Car(err) => Verdict::of_archive(err),
            Self::Checkpoint(_) | Self::Unnamed { .. } | Self::Log(LogError::Corrupt { .. }) => {
                Some(Verdict::Invalid)
            }
            Self::Partial { .. }
            | Self::Gap { .. }
            | Self::Short { .. }
            | Self::Log(LogError::Orphan { .. }) => Some(Verdict::Incomplete),
            Self::Unverified(report) => Some(report.verdict),
            Self::Keep(err) => err.verdict(),
            Self::Occupied { .. } | Self::Home(_) | Self::Log(_) | Self::Io(_) => None,
        }
    }
}

fn faults(report: &Report) -> String {
    let first = report.faults.first().map_or("no fault", |fault| &fault.fault);
    match report.faults_total {
        0 | 1 => first.to_owned(),
        more => format!("{first}, and {} more faults", more - 1),
    }
}

/// Says what an archive became.
#[derive(Debug)]
pub enum Imported {
    /// The archive became the log of the directory; the head it was verified under is given.
    Log(Report, Evidence),
    /// The archive is kept as the record of a run, beside a log if there is one.
    Run(KeptArchive),
}

/// Imports `archive` into `dir`. A whole log is imported only if `dir` holds no log. `step` is called with the progress
/// of the checks.
pub fn import(archive: impl Read, dir: &Path, step: &mut dyn FnMut(Step)) -> Result<Imported, ImportError> {
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let mut archive = Reader::new(io::BufReader::new(archive), limits).map_err(ImportError::NoArchive)?;
    let manifest = kept::manifest(&mut archive).ok_or(ImportError::NoManifest)?;
    let Manifest { from, to, count, .. } = manifest;
    match &manifest.subject {
        None if from == 0 && to.checked_add(1) == Some(count) && manifest.proof.is_none() => {
            let (report, evidence) = import_log(archive, &manifest, dir, step)?;
            Ok(Imported::Log(report, evidence))
        }
        Some(subject) if subject.starts_with(RUN) => {
            let step = &mut |events| step(Step::Events(events, count));
            Ok(Imported::Run(keep(archive, &manifest, subject, dir, step)?))
        }
        None | Some(_) => Err(ImportError::Partial { from, to, count }),
    }
}

/// Writes the log of `archive` into `dir`, which must hold no log.
fn import_log(
    archive: Reader<impl Read>,
    manifest: &Manifest,
    dir: &Path,
    step: &mut dyn FnMut(Step),
) -> Result<(Report, Evidence), ImportError> {
    if Home::existing(dir).is_ok() {
        return Err(ImportError::Occupied { dir: dir.display().to_string() });
    }
    check_form(&manifest.checkpoint)?;
    let fresh = Fresh::of(dir);
    // An import that a crash interrupted may have left this directory.
    let part = dir.join("import");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    let part = Home::open(&part)?;
    let imported = write(archive, manifest, &part).and_then(|()| {
        let report = verify(&part, &Checks::default(), step);
        if !report.verified {
            return Err(ImportError::Unverified(Box::new(report)));
        }
        // A block that no event names was added by someone else, so the archive is refused.
        if let Some(cid) = report.unnamed.cids.first() {
            return Err(ImportError::Unnamed { count: report.unnamed.count, cid: cid.clone() });
        }
        // The first line of a checkpoint is its log's origin.
        let evidence = signed(&report, manifest.checkpoint.lines().next().unwrap_or_default());
        Ok((report, evidence))
    });
    let imported = imported.and_then(|report| {
        for name in ["head", "log.db"] {
            // The log is renamed last, so a crash before that leaves a directory without a log.
            fs::rename(part.dir().join(name), dir.join(name))?;
        }
        Ok(report)
    });
    fs::remove_dir_all(part.dir())?;
    let imported = imported?;
    fresh.keep();
    Ok(imported)
}

/// Returns the evidence for a log that was verified.
fn signed(report: &Report, origin: &str) -> Evidence {
    match &report.head {
        Some(head) => Evidence::Verified { head: head.size, origin: origin.to_owned() },
        None => Evidence::Unsigned,
    }
}

/// Writes the log's events, blocks and signed head into `home`.
fn write(archive: Reader<impl Read>, manifest: &Manifest, home: &Home) -> Result<(), ImportError> {
    let mut log = Filling {
        log: SqliteLog::open(&home.log_path(), true)?,
        batch: Batch::default(),
        bytes: 0,
        tip: None,
    };
    let mut next = 0;
    for section in archive {
        let (cid, bytes) = section?;
        let event = match cid.codec() {
            Codec::DagCbor => Event::open(bytes.clone()).ok(),
            Codec::Raw => None,
        };
        log.bytes += bytes.len();
        match event.filter(|event| event.fields().log == manifest.log) {
            None => log.batch.blocks.push(Block::new(cid.codec(), bytes)),
            Some(event) if event.fields().seq == next => {
                next += 1;
                log.batch.events.push(event);
            }
            Some(event) => {
                let found = event.fields().seq;
                return Err(ImportError::Gap { expected: next, found });
            }
        }
        if log.bytes >= BATCH_BYTES || log.batch.events.len() >= BATCH_EVENTS {
            log.flush()?;
        }
    }
    log.flush()?;
    if next != manifest.count {
        return Err(ImportError::Short { expected: next, count: manifest.count });
    }
    log.log.append(log.tip, &Batch { head: Some(manifest.checkpoint.clone()), ..Batch::default() })?;
    home.head()?.write(&manifest.checkpoint, true)?;
    Ok(())
}

/// Collects the events and blocks of one commit.
struct Filling {
    log: SqliteLog,
    batch: Batch,
    bytes: usize,
    tip: Option<Cid>,
}

impl Filling {
    fn flush(&mut self) -> Result<(), LogError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        self.log.append(self.tip, &batch)?;
        self.tip = batch.events.last().map(Event::cid).or(self.tip);
        Ok(())
    }
}
