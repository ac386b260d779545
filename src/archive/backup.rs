//! A backup copies a data directory while other processes write to it; the copy can be verified where it lies.
//!
//! Invariants:
//! - the head is copied before the log, which only grows, so the copied log reaches the copied head;
//! - a backup takes its name only once it is complete, on disk, and its own log is verified (logs of other nodes are
//!   only copied);
//! - keys are copied only if the caller asks for them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    archive::kept,
    log::{
        LogError,
        fresh::Fresh,
        home::{Home, HomeError, UNFINISHED, write_secret},
        sqlite::snapshot::snapshot,
    },
    verify::{Checks, Report, Step, Verdict, verify},
};

/// This file in a data directory holds the last signed heads.
const HEAD: &str = "head";
/// These files are copied with another node's log: its head, the evidence that it forked, and its key rotations.
const BESIDE: [&str; 3] = [HEAD, "fork.json", "rotations"];

/// Says what is copied in addition to the log, its head, the tokens and the archives.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// If set, the keys are copied too. The function returns whether the copied keys are those of the copied log.
    pub keys: Option<&'a dyn Fn(&Home) -> bool>,
    /// Names the directory with the logs of other nodes, which has one directory for each log.
    pub logs: &'a str,
}

/// Reports what a copy holds.
#[derive(Clone, Debug)]
pub struct Copied {
    pub report: Report,
    pub keys: bool,
    pub tokens: bool,
    pub archives: u64,
    /// Counts the logs of other nodes. They are not verified, because their owners may withhold content.
    pub logs: u64,
}

/// Reports the progress of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Holds the pages copied so far and the pages in all.
    Copying(u64, u64),
    Verifying(Step),
}

/// Says why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("`{dir}` is there and not empty; name a directory that is not there yet")]
    Occupied { dir: String },
    #[error("`{dir}` is there, and no backup that broke off; move it away")]
    Beside { dir: String },
    #[error("`{dir}` lies within the data directory, or is no name of a directory; name one elsewhere")]
    Place { dir: String },
    #[error("the copy does not verify; it stays in `{dir}` for a look")]
    Unverified { dir: String, report: Box<Report> },
    #[error(
        "the keys beside the log are not those of the copy; back up again where they were being changed, else see `cairn key`"
    )]
    Keys,
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the log cannot be copied")]
    Log(#[from] LogError),
    #[error("`{path}` cannot be copied or written")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl BackupError {
    /// Returns the verdict on the log that was to be copied; returns none if something other than the log prevents the
    /// copy.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Unverified { report, .. } => Some(report.verdict),
            Self::Log(LogError::Full) => None,
            Self::Log(err) => Some(Verdict::of_log(err)),
            Self::Occupied { .. }
            | Self::Beside { .. }
            | Self::Place { .. }
            | Self::Keys
            | Self::Home(_)
            | Self::Io { .. } => None,
        }
    }
}

/// Copies the data directory of `home` to `to`; other processes may write to it meanwhile. `owner` is written into the
/// lock of the copy, so a second backup to the same place can name who holds it.
///
/// An existing `to` must be empty. An unfinished backup beside it is removed first. A copy that does not verify stays
/// under its `.part` name.
pub fn backup(
    home: &Home,
    to: &Path,
    wanted: Wanted<'_>,
    owner: &str,
    step: &mut dyn FnMut(Stage),
) -> Result<Copied, BackupError> {
    if to.exists() && at(to, fs::read_dir(to))?.next().is_some() {
        return Err(BackupError::Occupied { dir: to.display().to_string() });
    }
    let place = || BackupError::Place { dir: to.display().to_string() };
    let part = beside(to, ".part").ok_or_else(place)?;
    let to = beside(to, "").ok_or_else(place)?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // An erasure would not reach a copy inside the data directory, so the erased content would stay readable there.
    if within(parent, home.dir()) {
        return Err(place());
    }
    if part.exists() {
        if !is_broken_off(&part) {
            return Err(BackupError::Beside { dir: part.display().to_string() });
        }
        // If the other backup still runs, it holds this lock, and taking the lock fails.
        drop(Home::of(&part).lock(owner)?);
        at(&part, fs::remove_dir_all(&part))?;
    }
    let fresh = Fresh::of(parent);
    at(parent, fs::create_dir_all(parent))?;
    at(&part, DirBuilder::new().mode(0o700).create(&part))?;
    let lock = Home::of(&part).lock(owner)?;
    let copied = match copy(home, &part, wanted, step) {
        Ok(copied) if copied.report.verified => copied,
        Ok(copied) => {
            // Without its lock file, the copy is not mistaken for an unfinished backup, so the next backup does not
            // remove it.
            drop(lock);
            at(&part, fs::remove_file(part.join("lock")))?;
            let report = Box::new(copied.report);
            return Err(BackupError::Unverified { dir: part.display().to_string(), report });
        }
        Err(err) => {
            // A partial copy has no use. An error of its removal is ignored, so that it does not hide the first error.
            let _ = fs::remove_dir_all(&part);
            return Err(err);
        }
    };
    fresh.keep();
    drop(lock);
    // A crash between here and the rename leaves a whole copy without a lock, which the next backup does not remove.
    at(&part, fs::remove_file(part.join("lock")))?;
    at(&part, sync(&part))?;
    at(&to, fs::rename(&part, &to))?;
    at(parent, sync(parent))?;
    Ok(copied)
}

/// Returns `path` without a trailing slash and with `suffix` appended to its last component; returns none if it has no
/// such component.
pub fn beside(path: &Path, suffix: &str) -> Option<PathBuf> {
    let path: PathBuf = path.components().collect();
    let mut name = path.file_name()?.to_owned();
    name.push(suffix);
    Some(path.with_file_name(name))
}

/// Returns whether `path`, or its nearest ancestor that exists, lies in `dir`.
fn within(path: &Path, dir: &Path) -> bool {
    let there = path.ancestors().find_map(|path| match path.as_os_str().is_empty() {
        true => fs::canonicalize(".").ok(),
        false => fs::canonicalize(path).ok(),
    });
    fs::canonicalize(dir).is_ok_and(|dir| there.is_some_and(|there| there.starts_with(dir)))
}

/// Returns whether a directory is an unfinished backup: it is empty, or it has a lock but no state. A data directory in
/// use has a `state.db`, and a backup never has one.
fn is_broken_off(part: &Path) -> bool {
    let empty = fs::read_dir(part).is_ok_and(|mut entries| entries.next().is_none());
    empty || (part.join("lock").exists() && !part.join("state.db").exists())
}

/// Copies what is wanted of `home` into the existing directory `dir`, which must hold none of it, and verifies the
/// copied log.
pub fn copy(
    home: &Home,
    dir: &Path,
    wanted: Wanted<'_>,
    step: &mut dyn FnMut(Stage),
) -> Result<Copied, BackupError> {
    let from = home.dir();
    copy_small(from, dir, HEAD)?;
    snapshot(&home.log_path(), &dir.join("log.db"), &mut |done, of| step(Stage::Copying(done, of)))?;
    let tokens = copy_small(from, dir, "tokens.json")?;
    let archives = copy_archives(&from.join(kept::DIRECTORY), &dir.join(kept::DIRECTORY))?;
    let logs = copy_logs(&from.join(wanted.logs), &dir.join(wanted.logs), step)?;
    if wanted.keys.is_some() {
        home.keys()?;
        copy_keys(&from.join("keys"), &dir.join("keys"))?;
    }
    at(dir, sync(dir))?;
    let copy = Home::existing(dir)?;
    // The keys may have changed since the log was copied, or may belong to another log.
    if wanted.keys.is_some_and(|fits| !fits(&copy)) {
        return Err(BackupError::Keys);
    }
    let report = verify(&copy, &Checks::default(), &mut |done| step(Stage::Verifying(done)));
    Ok(Copied { report, keys: wanted.keys.is_some(), tokens, archives, logs })
}

/// Copies a directory of keys with permissions for the owner only.
pub fn copy_keys(from: &Path, to: &Path) -> Result<(), BackupError> {
    at(to, DirBuilder::new().recursive(true).mode(0o700).create(to))?;
    for entry in at(from, fs::read_dir(from))? {
        let name = at(from, entry)?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == UNFINISHED) {
            continue;
        }
        let bytes = at(&from.join(&name), fs::read(from.join(&name)))?;
        at(&to.join(&name), write_secret(&to.join(&name), &bytes))?;
    }
    Ok(())
}

/// Copies a file that fits into memory. Returns false if there is no such file.
fn copy_small(from: &Path, to: &Path, name: &str) -> Result<bool, BackupError> {
    match fs::read(from.join(name)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        bytes => {
            let bytes = at(&from.join(name), bytes)?;
            at(&to.join(name), write_secret(&to.join(name), &bytes))?;
            Ok(true)
        }
    }
}

fn copy_archives(from: &Path, to: &Path) -> Result<u64, BackupError> {
    let mut copied = 0;
    for path in entries(from)? {
        // A file with another extension is an unfinished import.
        if path.extension().is_none_or(|extension| extension != kept::EXTENSION) {
            continue;
        }
        at(to, DirBuilder::new().recursive(true).mode(0o700).create(to))?;
        let name = to.join(path.file_name().unwrap_or_default());
        let mut source = at(&path, File::open(&path))?;
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&name);
        let mut file = at(&name, file)?;
        at(&name, io::copy(&mut source, &mut file))?;
        // The modification time decides which of two archives of one run is read: the later one.
        let kept = at(&path, source.metadata().and_then(|about| about.modified()))?;
        at(&name, file.set_modified(kept).and_then(|()| file.sync_all()))?;
        copied += 1;
    }
    if copied > 0 {
        at(to, sync(to))?;
    }
    Ok(copied)
}

fn copy_logs(from: &Path, to: &Path, step: &mut dyn FnMut(Stage)) -> Result<u64, BackupError> {
    let mut copied = 0;
    for path in entries(from)? {
        // A log that was begun and is still empty is skipped, because following it begins again.
        let Ok(home) = Home::existing(&path) else { continue };
        let to = to.join(path.file_name().unwrap_or_default());
        at(&to, DirBuilder::new().recursive(true).mode(0o700).create(&to))?;
        for name in BESIDE {
            copy_small(&path, &to, name)?;
        }
        snapshot(&home.log_path(), &to.join("log.db"), &mut |done, of| step(Stage::Copying(done, of)))?;
        at(&to, sync(&to))?;
        copied += 1;
    }
    if copied > 0 {
        at(to, sync(to))?;
    }
    Ok(copied)
}

/// Returns the sorted paths in a directory; returns an empty list if the directory does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => at(dir, entries)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(at(dir, entry)?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

/// Forces the entries of a directory to disk, so that renames and new files in it survive a power cut.
pub fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn at<T>(path: &Path, done: io::Result<T>) -> Result<T, BackupError> {
    done.map_err(|source| BackupError::Io { path: path.display().to_string(), source })
}
