//! Restoring: a backup takes the place of a log, and what was erased since is erased again.
//!
//! Invariants:
//! - nothing of the directory changes before the copy is whole and verified, and the erasures in it are done; one that was made
//!   for a copy that is refused goes again;
//! - what was there is moved aside, never deleted;
//! - a crash midway leaves a directory that no start accepts, for its head fits no log in it; restoring goes on from there.

use std::{
    fs::{self, DirBuilder},
    io,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{
    archive::{
        backup::{self, BackupError, Copied, Stage, Wanted, copy_keys, sync},
        erase,
    },
    block::Cid,
    error::{Code, chain},
    event::{Body, Event, body::is_basis},
    ledger::{
        Command, Ruling, Stopped,
        commit::operator,
        fitting::{self, OpenError},
        opening::{self, Birth, Settings},
    },
    log::{
        LogError, Reader, Stored,
        fresh::Fresh,
        home::{Home, HomeError},
        sqlite::{SqliteLog, SqliteReader},
    },
    verify::{Checks, Report, Verdict, verify},
};

/// The directory in which the copy is prepared, within the data directory.
const PART: &str = "restore.part";
/// The prefix of the directory that an earlier log is moved aside into.
pub const ASIDE: &str = "before-restore-";
/// The files by which a directory is known to hold a log, or to have held one.
const MARKS: [&str; 2] = ["log.db", "head"];
/// Files that are moved aside, in this order: `log.db` goes after the files that belong to it.
const OLD: [&str; 9] = [
    "log.db-wal",
    "log.db-shm",
    "log.db",
    "state.db-wal",
    "state.db-shm",
    "state.db",
    "archives",
    "followed",
    "keys",
];
/// Files that are moved in, in this order; the file `head` follows last, because only with it does a start accept the
/// log.
const NEW: [&str; 7] = ["keys", "archives", "followed", "state.db-wal", "state.db", "log.db-wal", "log.db"];

/// What is restored, and where.
pub struct Restore<'a> {
    pub backup: &'a Home,
    pub into: &'a Path,
    /// Whether an existing log may be moved aside.
    pub replace: bool,
    /// The log's keys, if they were kept apart from the backup.
    pub keys: Option<&'a Path>,
    /// A later copy of the log, which says what was erased since the backup.
    pub later: Option<&'a Home>,
    /// The directory of followed logs.
    pub logs: &'a str,
    /// The name of the directory that an existing log is moved aside into.
    pub aside: &'a str,
    pub owner: &'a str,
    pub random: fn() -> [u8; 32],
    pub now_us: u64,
}

/// What was restored, and what was found on the way.
#[derive(Debug)]
pub struct Restored {
    pub copied: Copied,
    /// Whether the log can go on: its keys are there.
    pub keys: bool,
    /// Where the earlier log was moved to.
    pub aside: Option<PathBuf>,
    /// Whether the tokens that were there stay; they are newer than the backup's.
    pub tokens_stay: bool,
    /// What the replaced log says; `None` if there was none.
    pub old: Option<Later>,
    /// What the given later copy says.
    pub later: Option<Later>,
    /// Payloads that were erased again, why, and by which event.
    pub erased: Vec<(Cid, String, Cid)>,
}

/// What a log says that may continue the restored one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Later {
    /// Events after those of the backup; `None` if it is another history.
    pub events: Option<u64>,
    /// Payloads that it records as erased, and why.
    pub erasures: Vec<(Cid, String)>,
    /// Why it could not be read to its end.
    pub fault: Option<String>,
}

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("`{dir}` holds a log; with --replace it is moved aside, and stays there")]
    Occupied { dir: String },
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the restored log cannot be opened")]
    Open(#[from] OpenError),
    #[error("the restored log cannot be read")]
    Log(#[from] LogError),
    #[error(
        "the keys given do not fit the log of the backup; if its key was changed since, give those from before, kept with \
         the backup (after one change the former `log.key` is `keys/peer.key`)"
    )]
    Keys(#[source] OpenError),
    #[error(
        "{count} payloads were erased after the backup, which takes the log's keys to do again; give them with --keys"
    )]
    KeysNeeded { count: usize },
    #[error("the later copy is another log's")]
    OtherLog,
    #[error("the later copy does not go on from the backup: it is another history of the same log")]
    OtherHistory,
    #[error("the later copy does not verify")]
    Unverified(Box<Report>),
    #[error("payload {payload} cannot be erased again: {why}")]
    Erase { payload: Cid, why: String },
    #[error("what was erased cannot be taken out of the archives")]
    Archives(#[from] erase::EraseError),
    #[error("the ledger stopped while payloads were erased again")]
    Stopped(#[from] Stopped),
    #[error("the data directory cannot be written")]
    Io(#[from] io::Error),
}

impl RestoreError {
    /// Returns the verdict on the backup or the later copy, or `None` if the reason is another.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Backup(err) => err.verdict(),
            Self::Log(LogError::Full) => None,
            Self::Log(err) => Some(Verdict::of_log(err)),
            Self::OtherLog => Some(Verdict::Invalid),
            Self::OtherHistory => Some(Verdict::Forked),
            Self::Unverified(report) => Some(report.verdict),
            Self::Occupied { .. }
            | Self::Home(_)
            | Self::Open(_)
            | Self::Keys(_)
            | Self::KeysNeeded { .. }
            | Self::Erase { .. }
            | Self::Archives(_)
            | Self::Stopped(_)
            | Self::Io(_) => None,
        }
    }
}

/// Puts the log of a backup into a directory. `step` is told how far copying and verifying it is.
pub fn restore(wanted: &Restore<'_>, step: &mut dyn FnMut(Stage)) -> Result<Restored, RestoreError> {
    let into = Home::of(wanted.into);
    if !wanted.replace && MARKS.iter().any(|mark| wanted.into.join(mark).exists()) {
        return Err(RestoreError::Occupied { dir: wanted.into.display().to_string() });
    }
    let fresh = Fresh::of(wanted.into);
    DirBuilder::new().recursive(true).mode(0o700).create(wanted.into)?;
    let _one = into.lock(wanted.owner)?;
    let part = wanted.into.join(PART);
    let ready = make_ready(wanted, &part, step);
    if ready.is_err() {
        // Nothing but the part was touched; failing to remove it must not hide why.
        let _ = fs::remove_dir_all(&part);
        if fresh.has(wanted.into) {
            // While the lock is held, nobody else takes it in a directory that goes.
            let _ = fs::remove_file(wanted.into.join("lock"));
        }
        drop(fresh);
        return ready;
    }
    fresh.keep();
    let mut restored = ready?;
    restored.tokens_stay = wanted.into.join("tokens.json").exists();
    restored.aside = swap(wanted.into, &part, wanted.aside)?;
    Ok(restored)
}

/// Copies the backup into `part`, with its keys and without what was erased since.
fn make_ready(
    wanted: &Restore<'_>,
    part: &Path,
    step: &mut dyn FnMut(Stage),
) -> Result<Restored, RestoreError> {
    if part.exists() {
        fs::remove_dir_all(part)?;
    }
    DirBuilder::new().mode(0o700).create(part)?;
    let has_keys = wanted.backup.dir().join("keys").exists();
    // Whether they fit is asked below, with those of other places.
    let any = |_: &Home| true;
    let keys: Option<&dyn Fn(&Home) -> bool> = if has_keys { Some(&any) } else { None };
    let copied = backup::copy(wanted.backup, part, Wanted { keys, logs: wanted.logs }, step)?;
    if !copied.report.verified {
        let dir = wanted.backup.dir().display().to_string();
        return Err(BackupError::Unverified { dir, report: Box::new(copied.report) }.into());
    }
    let home = Home::of(part);
    let log = SqliteReader::open(&home.log_path())?;
    let keys = find_keys(wanted, &home, &log)?;
    // A restore that broke off has moved the log aside that knows what was erased: those are asked as well.
    let mut olds: Vec<Later> = std::iter::once(wanted.into.to_owned())
        .chain(moved_aside(wanted.into)?)
        .filter_map(|dir| Home::existing(&dir).ok())
        .map(|old| look(&log, &old))
        .collect();
    let later = wanted.later.map(|later| trusted(&log, later)).transpose()?;
    let mut due: Vec<(Cid, String)> = Vec::new();
    for (payload, basis) in olds.iter().chain(&later).flat_map(|told| &told.erasures) {
        erase::erase(part, payload)?;
        let here = matches!(log.block(payload)?, Some(Stored::Present(_)));
        if here && !due.iter().any(|(known, _)| known == payload) {
            due.push((*payload, basis.clone()));
        }
    }
    drop(log);
    let erased = match (keys, due.len()) {
        (true, _) => erase(wanted, part, &due)?,
        (false, 0) => Vec::new(),
        (false, count) => return Err(RestoreError::KeysNeeded { count }),
    };
    let old = (!olds.is_empty()).then(|| olds.swap_remove(0));
    Ok(Restored { copied, keys, aside: None, tokens_stay: false, old, later, erased })
}

/// Puts the log's keys into `home`: the backup's, the given ones, or those at the destination if they fit. Returns
/// whether there are any.
fn find_keys(wanted: &Restore<'_>, home: &Home, log: &dyn Reader) -> Result<bool, RestoreError> {
    let own = home.dir().join("keys");
    if own.exists() {
        fitting::fits(home, log).map_err(RestoreError::Keys)?;
        return Ok(true);
    }
    if let Some(given) = wanted.keys {
        copy_keys(given, &own)?;
        fitting::fits(home, log).map_err(RestoreError::Keys)?;
        return Ok(true);
    }
    let places = std::iter::once(wanted.into.to_owned()).chain(moved_aside(wanted.into)?);
    for there in places.map(|place| place.join("keys")).filter(|keys| keys.exists()) {
        copy_keys(&there, &own)?;
        if fitting::fits(home, log).is_ok() {
            return Ok(true);
        }
        fs::remove_dir_all(&own)?;
    }
    Ok(false)
}

/// The directories that earlier restores moved a log aside into, the latest first.
fn moved_aside(into: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(into)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(ASIDE) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    found.reverse();
    Ok(found)
}

/// Reads the given later copy. It must verify, be of this log, and continue it.
fn trusted(log: &dyn Reader, later: &Home) -> Result<Later, RestoreError> {
    let checks = Checks { payloads: false, ..Checks::default() };
    let report = verify(later, &checks, &mut |_| {});
    if !report.verified {
        return Err(RestoreError::Unverified(Box::new(report)));
    }
    let told = tells(log, &SqliteReader::open(&later.log_path())?)?.ok_or(RestoreError::OtherLog)?;
    match told.events {
        Some(_) => Ok(told),
        None => Err(RestoreError::OtherHistory),
    }
}

/// Reads the log that is being replaced, as far as it can be read.
fn look(log: &dyn Reader, old: &Home) -> Later {
    let told = SqliteReader::open(&old.log_path()).and_then(|old| tells(log, &old));
    match told {
        Ok(Some(told)) => told,
        Ok(None) => Later { fault: Some("it is another log".to_owned()), ..Later::default() },
        Err(err) => Later { fault: Some(chain(&err)), ..Later::default() },
    }
}

/// Returns the erasures in `other` after the events that both logs share; those within them are in `log` too. Returns
/// `None` if `other` is another log.
fn tells(log: &dyn Reader, other: &dyn Reader) -> Result<Option<Later>, LogError> {
    let Some(tip) = log.tip()? else { return Ok(None) };
    let first = |log: &dyn Reader| Ok::<_, LogError>(log.event_at(0)?.map(|event| event.cid()));
    if first(log)? != first(other)? {
        return Ok(None);
    }
    let events = other.tip()?.map_or(0, |tip| tip.seq + 1);
    let both = events.min(tip.seq + 1);
    let common = in_common(log, other, both)?;
    let same = common == both;
    let mut told = Later { events: same.then(|| events.saturating_sub(tip.seq + 1)), ..Later::default() };
    other.events(common, &mut |row| {
        let event = Event::open(row.bytes.to_vec()).ok().filter(|event| *event.cid().digest() == row.digest);
        let Some(event) = event else {
            told.fault = Some(format!("event {} of it cannot be read", row.seq));
            return ControlFlow::Break(());
        };
        if let Some(Body::PayloadErased(facts)) = event.body() {
            told.erasures.push((facts.payload, facts.basis.clone()));
        }
        ControlFlow::Continue(())
    })?;
    Ok(Some(told))
}

/// Returns how many of the first `both` events are the same; the first must be. Each event pins all before it, so
/// halving finds the place.
fn in_common(log: &dyn Reader, other: &dyn Reader, both: u64) -> Result<u64, LogError> {
    let name = |log: &dyn Reader, seq: u64| Ok::<_, LogError>(log.event_at(seq)?.map(|event| event.cid()));
    let (mut same, mut other_from) = (1, both + 1);
    while other_from - same > 1 {
        let middle = same.midpoint(other_from);
        match name(log, middle - 1)? == name(other, middle - 1)? {
            true => same = middle,
            false => other_from = middle,
        }
    }
    Ok(same)
}

/// Opens the log in `part` as a start would, and erases in it.
fn erase(
    wanted: &Restore<'_>,
    part: &Path,
    due: &[(Cid, String)],
) -> Result<Vec<(Cid, String, Cid)>, RestoreError> {
    let home = Home::open(part)?;
    let mut random = wanted.random;
    let birth = Birth { owner: wanted.owner, random: &mut random, now_us: wanted.now_us, step: &mut |_| {} };
    let (ledger, running) = opening::open(&home, &Settings::default(), birth)?;
    let mut erased = Vec::new();
    for (payload, basis) in due {
        // A log from before bases were codes may hold another text, which is not recorded again.
        let basis = if is_basis(basis) { basis } else { "restored" };
        let command = Command::Erase { payload: *payload, basis: basis.to_owned(), actor: operator() };
        match ledger.submit_blocking(command)? {
            Ruling::Done(sealed) => erased.push((*payload, basis.to_owned(), sealed.cid)),
            Ruling::Unchanged => {}
            Ruling::Denied(refusal) if refusal.code == Code::NotFound => {}
            Ruling::Denied(refusal) => {
                return Err(RestoreError::Erase { payload: *payload, why: refusal.message });
            }
            _ => {
                let why = "the ledger answered something else".to_owned();
                return Err(RestoreError::Erase { payload: *payload, why });
            }
        }
    }
    drop(ledger);
    running.join();
    Ok(erased)
}

/// Moves the log in `into` aside and the one in `part` in its place. Returns where the earlier one is.
///
/// Until the last step the head in `into` is of no log there, so that no start takes what is half done for a log.
fn swap(into: &Path, part: &Path, aside: &str) -> Result<Option<PathBuf>, RestoreError> {
    let (head, new_head) = (into.join("head"), part.join("head"));
    if into.join("log.db").exists() {
        // What a killed server left beside the log is folded into it, so that moving one of the two loses nothing. A log
        // that cannot be opened is moved as it is.
        drop(SqliteLog::open(&into.join("log.db"), true));
    }
    let kept = OLD.iter().any(|name| into.join(name).exists()) || head.exists();
    let aside = kept.then(|| into.join(aside));
    if let Some(aside) = &aside {
        DirBuilder::new().mode(0o700).create(aside)?;
        if head.exists() {
            fs::copy(&head, aside.join("head"))?;
        }
    }
    if !head.exists() {
        fs::copy(&new_head, &head)?;
    }
    sync(into)?;
    for name in OLD {
        if let Some(aside) = &aside {
            move_in(&into.join(name), &aside.join(name))?;
        }
    }
    if let Some(aside) = &aside {
        sync(aside)?;
    }
    if !into.join("tokens.json").exists() {
        move_in(&part.join("tokens.json"), &into.join("tokens.json"))?;
    }
    for name in NEW {
        move_in(&part.join(name), &into.join(name))?;
    }
    sync(into)?;
    fs::rename(&new_head, &head)?;
    sync(into)?;
    fs::remove_dir_all(part)?;
    Ok(aside)
}

/// Moves a file, if it exists.
fn move_in(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}
