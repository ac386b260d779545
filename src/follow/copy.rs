//! Followed logs on disk: one data directory each, under `followed/` and the log's name.
//!
//! Invariants:
//! - a copy was checked before it was written; what is read of it is hashed again all the same;
//! - a directory is removed only on request; evidence of a fork stays until somebody lifts the quarantine.

use std::{fs, io, path::PathBuf};

use serde_bytes::ByteBuf;
use serde_json::{Value, json};

use super::evidence::Evidence;
use crate::{
    block::{Cid, decode},
    event::Genesis,
    follow::{
        Refused,
        rules::{Signed, followed_by},
    },
    identity::{CheckpointError, rotation::Keys},
    ledger::opening,
    log::{
        LogError, Reader, Stored,
        home::{Home, HomeError, write_secret},
        sqlite::{SqliteLog, SqliteReader},
    },
    query::{
        QueryError, View,
        beside::{Beside, passed_over},
        proof::Head,
    },
};

/// The directory of followed logs, within the data directory.
pub const DIRECTORY: &str = "followed";
/// Followed logs of one node: each is asked where a name is not known.
pub const FOLLOWED_MAX: usize = 256;

/// The file of the evidence that a log forked.
const FORK: &str = "fork.json";
/// Bytes of evidence: two heads, a proof of at most 64 hashes, and the changes of keys.
const FORK_MAX: u64 = 2 * 1024 * 1024;
/// The file of the events that changed a followed log's keys.
pub(super) const ROTATIONS: &str = "rotations";
/// Bytes of it: a thousand events of some hundred bytes.
const ROTATIONS_BYTES_MAX: u64 = 1024 * 1024;

/// A log that is followed, or was.
#[derive(Clone, Debug)]
pub struct Followed {
    pub log: Cid,
    home: Home,
}

/// Why followed logs cannot be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum FollowedError {
    #[error("as many logs are followed as may be: 256; remove one first")]
    TooMany,
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the head is not signed by the log's key")]
    Head(#[from] CheckpointError),
    #[error("the followed log cannot be read")]
    Log(#[from] LogError),
    #[error("the directory of followed logs cannot be used")]
    Io(#[from] io::Error),
    #[error("the evidence of a fork cannot be read")]
    Evidence(#[source] serde_json::Error),
}

impl Followed {
    /// Returns the logs that the node of `home` follows, by name.
    pub fn list(home: &Home) -> Result<Vec<Self>, FollowedError> {
        let names = names(home)?;
        Ok(names.iter().take(FOLLOWED_MAX).filter_map(|name| Self::open(home, name)).collect())
    }

    /// Like [`Followed::list`], but empty if they cannot be read, with a warning.
    pub fn list_or_none(home: &Home) -> Vec<Self> {
        Self::list(home).unwrap_or_else(|err| {
            tracing::warn!(%err, "followed logs cannot be read");
            Vec::new()
        })
    }

    /// Returns the followed logs, folded, for questions that include them. A log without events is left out, and so
    /// is one that cannot be read, with a warning.
    pub fn beside(home: &Home) -> Vec<Beside> {
        let opened = |followed: &Self| {
            let opened = followed.opened();
            opened.unwrap_or_else(|err| {
                passed_over(&followed.log, &err);
                None
            })
        };
        Self::list_or_none(home).iter().filter_map(opened).collect()
    }

    fn opened(&self) -> Result<Option<Beside>, QueryError> {
        self.fold()?;
        let view = View::open(&self.home)?;
        if !view.begun()? {
            // It is being followed for the first time.
            return Ok(None);
        }
        let applied = view.applied()?;
        let Some((genesis, keys)) = self.genesis()? else {
            return Ok(None);
        };
        let signed = self.signed(&keys).filter(|signed| signed.head.size <= applied);
        let head = signed.map(|signed| Head { size: signed.head.size, note: signed.note });
        let (log, origin) = (self.log, genesis.origin);
        Ok(Some(Beside { log, origin, view, head: head.unwrap_or_default() }))
    }

    /// Returns how many logs have a directory here.
    pub(super) fn count(home: &Home) -> Result<usize, FollowedError> {
        Ok(names(home)?.len())
    }

    /// Returns the followed log of this name; `None` if nothing of it is held.
    pub fn open(home: &Home, log: &Cid) -> Option<Self> {
        let home = Home::existing(&path(home, log)).ok()?;
        Some(Self { log: *log, home })
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Returns how many events are held.
    pub fn size(&self) -> Result<u64, LogError> {
        size(&self.home)
    }

    /// Returns the genesis block and the keys of the log's heads; `None` before the first events are held.
    pub fn genesis(&self) -> Result<Option<(Genesis, Keys)>, LogError> {
        let reader = SqliteReader::open(&self.home.log_path())?;
        let Some(Stored::Present(bytes)) = reader.block(&self.log)? else {
            return Ok(None);
        };
        let corrupt = || LogError::Corrupt { what: "a genesis block" };
        let genesis: Genesis = decode(&bytes).map_err(|_| corrupt())?;
        let first = Keys::of_genesis(self.log, &genesis.origin, &genesis.key).map_err(|_| corrupt())?;
        let changed = || LogError::Corrupt { what: "the changes of a followed log's keys" };
        let keys = keys(&self.home, first).map_err(|_| changed())?;
        Ok(Some((genesis, keys)))
    }

    /// Returns the largest signed head that was accepted. While events are still coming, it covers more than are
    /// held.
    pub fn signed(&self, keys: &Keys) -> Option<Signed> {
        signed(&self.home, keys)
    }

    /// Returns the evidence of the fork for which this log is not followed any more.
    pub fn evidence(&self) -> Result<Option<Evidence>, FollowedError> {
        evidence(&self.home)
    }

    /// Lifts the quarantine, so that the log can be followed again. Returns whether there was evidence.
    pub fn lift(&self) -> Result<bool, FollowedError> {
        match fs::remove_file(self.home.dir().join(FORK)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => Ok(removed.map(|()| true)?),
        }
    }

    /// Folds held events into the state, if nobody is following the log at the moment.
    pub fn fold(&self) -> Result<(), QueryError> {
        if is_behind(&self.home)?
            && let Ok(_lock) = self.home.lock("cairn, which is folding this followed log")
        {
            let log = SqliteLog::open(&self.home.log_path(), true)?;
            opening::derive(&self.home, &log, &mut |_| {})?;
        }
        Ok(())
    }

    /// Returns a summary of what is held, as JSON.
    pub fn shown(&self) -> Result<Value, FollowedError> {
        let genesis = self.genesis()?;
        let signed = genesis.as_ref().and_then(|(_, keys)| self.signed(keys));
        let forked = self.evidence()?.is_some();
        Ok(json!({
            "log": self.log.to_string(),
            "origin": genesis.as_ref().map(|(genesis, _)| &genesis.origin),
            "key": genesis.as_ref().map(|(_, keys)| keys.current().vkey()),
            "size": self.size()?,
            "signed": signed.map(|signed| signed.head.size),
            "status": if forked { "quarantined" } else { "kept" },
        }))
    }
}

fn size(home: &Home) -> Result<u64, LogError> {
    let tip = SqliteReader::open(&home.log_path())?.tip()?;
    Ok(tip.map_or(0, |tip| tip.seq + 1))
}

/// Returns whether events are held that the state does not have yet.
pub(super) fn is_behind(home: &Home) -> Result<bool, LogError> {
    match View::open(home).and_then(|view| view.applied()) {
        Ok(applied) => Ok(applied < size(home)?),
        Err(_) => Ok(true),
    }
}

fn names(home: &Home) -> io::Result<Vec<Cid>> {
    let entries = match fs::read_dir(home.dir().join(DIRECTORY)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<Cid> = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().to_string_lossy().parse::<Cid>());
    }
    names.sort_unstable();
    Ok(names)
}

/// The directory of the followed log `log`.
pub(super) fn path(home: &Home, log: &Cid) -> PathBuf {
    home.dir().join(DIRECTORY).join(log.to_string())
}

/// Returns the keys of a log as far as they were seen, beginning with its first.
pub(super) fn keys(home: &Home, first: Keys) -> Result<Keys, Refused> {
    let path = home.dir().join(ROTATIONS);
    let read = match fs::metadata(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(first),
        Ok(file) if file.len() <= ROTATIONS_BYTES_MAX => fs::read(&path).ok(),
        _ => None,
    };
    let rotations: Vec<ByteBuf> = read.and_then(|bytes| decode(&bytes).ok()).ok_or(Refused::Keys)?;
    followed_by(first, &rotations)
}

pub(super) fn signed(home: &Home, keys: &Keys) -> Option<Signed> {
    let notes = home.signed_heads().unwrap_or_default();
    let heads = notes.into_iter().filter_map(|note| {
        let head = keys.open(&note).ok()?;
        Some(Signed { note, head })
    });
    heads.max_by_key(|signed| signed.head.size)
}

pub(super) fn evidence(home: &Home) -> Result<Option<Evidence>, FollowedError> {
    let path = home.dir().join(FORK);
    match fs::metadata(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(file) if file.len() > FORK_MAX => {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        file => file?,
    };
    serde_json::from_slice(&fs::read(path)?).map(Some).map_err(FollowedError::Evidence)
}

pub(super) fn keep_evidence(home: &Home, evidence: &Evidence) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(evidence).expect("evidence is text under string keys");
    write_secret(&home.dir().join(FORK), &text)
}
