//! Static tokens: `tokens.json` in the data directory, one entry a token, only digests of them.
//!
//! Invariants:
//! - a token is shown once, when it is made; the file holds its SHA-256, which is enough for 256 random bits;
//! - every presented token is compared with every entry, in the same time wherever it matches;
//! - the file is replaced whole or not at all, is readable by its owner only, and is written by one process at a time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

pub use super::watched::Stamp;
use super::{
    AuthError, Denied, actor, is_actor_id, now_s, scope_name, scope_named,
    watched::{Watched, look, read},
};
use crate::caller::{Caller, Scope};

/// Tokens in one file: each request is compared with all of them.
pub const TOKENS_MAX: usize = 1000;
const FILE: &str = "tokens.json";
const FILE_NEW: &str = "tokens.json.new";
const LOCK: &str = "tokens.lock";
const TOKEN_PREFIX: &str = "cairn_";
const TOKEN_BYTES: usize = 32;
const ID_BYTES: usize = 5;

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Names the token to revoke it; tells nothing about it.
    pub id: String,
    /// The principal: the actor of every event the token asks for.
    pub name: String,
    pub scopes: Vec<String>,
    /// SHA-256 of the token, in lower-case hex.
    pub sha256: String,
    /// Seconds since the epoch.
    pub created: u64,
    /// Seconds since the epoch; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// The tokens of a running server; a changed file is noticed within a second.
pub struct Tokens {
    known: Watched<Vec<Known>>,
}

/// An entry, ready to be compared.
struct Known {
    digest: [u8; 32],
    caller: Caller,
    expires: Option<u64>,
}

impl Tokens {
    /// Opens the tokens of a data directory. No file is no tokens.
    pub fn open(directory: &Path) -> Result<Self, AuthError> {
        let known =
            Watched::open(directory.join(FILE), |bytes| parse(bytes)?.into_iter().map(known).collect())?;
        Ok(Self { known })
    }

    /// The caller this token was made for.
    pub(super) fn authenticate(&self, token: &str) -> Result<Caller, Denied> {
        self.authenticate_at(token, Instant::now())
    }

    /// Expiry is told by the wall clock; `now` says only whether to look at the file again.
    pub(super) fn authenticate_at(&self, token: &str, now: Instant) -> Result<Caller, Denied> {
        let known = self.known.current_at(now);
        let digest: [u8; 32] = Sha256::digest(token).into();
        let (mut found, mut place) = (Choice::from(0), 0_u64);
        for (index, entry) in known.iter().enumerate() {
            let same = entry.digest.ct_eq(&digest);
            place.conditional_assign(&(index as u64), same);
            found |= same;
        }
        let entry = known.get(place as usize).filter(|_| found.into()).ok_or(Denied::Invalid)?;
        match entry.expires {
            Some(expires) if expires <= now_s() => Err(Denied::Invalid),
            Some(_) | None => Ok(entry.caller.clone()),
        }
    }
}

/// Makes a token for `name` and returns its entry and, this once, the token. `expires` is in seconds since the epoch.
pub fn add(
    directory: &Path,
    name: &str,
    scopes: &[Scope],
    expires: Option<u64>,
) -> Result<(Entry, String), AuthError> {
    Held::take(directory)?.add(name, scopes, expires)
}

fn made(name: &str, scopes: &[Scope], expires: Option<u64>) -> Result<(Entry, String), AuthError> {
    if !is_actor_id(name) {
        return Err(AuthError::Name);
    }
    if scopes.is_empty() {
        return Err(AuthError::NoScope);
    }
    let token = format!("{TOKEN_PREFIX}{}", random::<TOKEN_BYTES>()?);
    let entry = Entry {
        id: random::<ID_BYTES>()?,
        name: name.to_owned(),
        scopes: scopes.iter().map(|scope| scope_name(*scope).to_owned()).collect(),
        sha256: HEXLOWER.encode(&Sha256::digest(&token)),
        created: now_s(),
        expires,
    };
    Ok((entry, token))
}

/// Every token's entry, oldest first.
pub fn list(directory: &Path) -> Result<Vec<Entry>, AuthError> {
    let path = directory.join(FILE);
    read(&path, parse).map_err(|source| AuthError::File { path, source })
}

/// Takes a token out of force, by its entry's id.
pub fn revoke(directory: &Path, id: &str) -> Result<(), AuthError> {
    Held::take(directory)?.revoke(id)
}

/// Which file of tokens there is; none where there is none.
pub fn stamp(directory: &Path) -> io::Result<Option<Stamp>> {
    look(&directory.join(FILE))
}

/// The tokens of a directory, which no other process changes as long as this lives.
pub struct Held<'a> {
    directory: &'a Path,
    _lock: File,
}

impl<'a> Held<'a> {
    /// Waits until no other process changes them.
    pub fn take(directory: &'a Path) -> Result<Self, AuthError> {
        // The operating system lets go of it if the process ends before.
        let lock = private(&directory.join(LOCK)).map_err(at(directory, LOCK))?;
        lock.lock().map_err(at(directory, LOCK))?;
        Ok(Self { directory, _lock: lock })
    }

    pub fn list(&self) -> Result<Vec<Entry>, AuthError> {
        list(self.directory)
    }

    /// As [`add`].
    pub fn add(
        &self,
        name: &str,
        scopes: &[Scope],
        expires: Option<u64>,
    ) -> Result<(Entry, String), AuthError> {
        let (entry, token) = self.draft(name, scopes, expires)?;
        self.put(entry.clone())?;
        Ok((entry, token))
    }

    /// Makes a token that is not in force before [`Self::put`], so that it can be put on record first.
    pub fn draft(
        &self,
        name: &str,
        scopes: &[Scope],
        expires: Option<u64>,
    ) -> Result<(Entry, String), AuthError> {
        match self.list()?.len() < TOKENS_MAX {
            true => made(name, scopes, expires),
            false => Err(AuthError::TooMany),
        }
    }

    /// Puts a token in force.
    pub fn put(&self, entry: Entry) -> Result<(), AuthError> {
        self.change(|entries| {
            entries.push(entry);
            Ok(())
        })
    }

    /// As [`revoke`].
    pub fn revoke(&self, id: &str) -> Result<(), AuthError> {
        self.change(|entries| {
            let before = entries.len();
            entries.retain(|entry| entry.id != id);
            match entries.len() < before {
                true => Ok(()),
                false => Err(AuthError::Unknown { id: id.to_owned() }),
            }
        })
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Entry>) -> Result<(), AuthError>) -> Result<(), AuthError> {
        let mut entries = self.list()?;
        edit(&mut entries)?;
        replace(self.directory, &entries).map_err(at(self.directory, FILE))
    }
}

fn at(directory: &Path, name: &str) -> impl FnOnce(io::Error) -> AuthError {
    let path: PathBuf = directory.join(name);
    move |source| AuthError::File { path, source }
}

fn replace(directory: &Path, entries: &[Entry]) -> io::Result<()> {
    let new = directory.join(FILE_NEW);
    let mut file = private(&new)?;
    // A crash up to the rename leaves the old file in force, and a stray new one that the next change overwrites.
    file.write_all(&serde_json::to_vec_pretty(entries)?)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(FILE))?;
    // A crash before this may bring the old file back.
    File::open(directory)?.sync_all()
}

/// An empty file that only its owner may read.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn parse(bytes: Option<&[u8]>) -> io::Result<Vec<Entry>> {
    let entries: Vec<Entry> = match bytes {
        Some(bytes) => serde_json::from_slice(bytes)?,
        None => Vec::new(),
    };
    if entries.len() > TOKENS_MAX {
        return Err(invalid("there are more than 1000 tokens"));
    }
    Ok(entries)
}

fn known(entry: Entry) -> io::Result<Known> {
    let digest = HEXLOWER
        .decode(entry.sha256.as_bytes())
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or_else(|| invalid("a sha256 is not 64 lower-case hex digits"))?;
    if !is_actor_id(&entry.name) {
        return Err(invalid("a name is not 1 to 128 printable characters"));
    }
    let scopes = entry.scopes.iter().map(|name| scope_named(name)).collect::<Option<Vec<_>>>();
    Ok(Known {
        digest,
        caller: Caller {
            actor: actor(entry.name),
            scopes: scopes.ok_or_else(|| invalid("a scope is not known"))?,
        },
        expires: entry.expires,
    })
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn random<const N: usize>() -> Result<String, AuthError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| AuthError::NoRandom)?;
    Ok(BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}
