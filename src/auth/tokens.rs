//! Static tokens: the file `tokens.json` in the data directory, with one entry for each token.
//!
//! Invariants:
//! - a token is returned once, when it is made. The file holds its SHA-256; a slow hash is not needed for 256 random
//!   bits;
//! - a presented token is compared with every entry in constant time, so that timing does not tell which one matches;
//! - the file is replaced atomically, is readable by its owner only, and is written by one process at a time.

use std::{
    fs::{self, File},
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
    Admitted, AuthError, Denied, actor, is_actor_id,
    watched::{Watched, look, read},
};
use crate::{
    caller::{Caller, Scope},
    clock::now_s,
    log::home::unlinked,
};

/// The largest number of tokens in a file: each request is compared with all of them.
const TOKENS_MAX: usize = 1000;
const FILE: &str = "tokens.json";
const FILE_NEW: &str = "tokens.json.new";
const LOCK: &str = "tokens.lock";
const TOKEN_PREFIX: &str = "cairn_";
const TOKEN_BYTES: usize = 32;
const ID_BYTES: usize = 5;

/// A token as the file stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The id by which the token is listed and revoked. It is random, and not a part of the token.
    pub id: String,
    /// The principal: the actor of every event that a caller with this token causes.
    pub name: String,
    pub scopes: Vec<String>,
    /// SHA-256 of the token, in lower-case hex.
    pub sha256: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Seconds since the Unix epoch; a token without it never expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// The tokens of a running server. A changed file is read at the first request at least half a second after the last
/// look. While it cannot be read, no token is in force.
pub struct Tokens {
    known: Watched<Vec<Known>>,
}

/// An entry, parsed for comparison.
struct Known {
    digest: [u8; 32],
    caller: Caller,
    expires: Option<u64>,
}

impl Tokens {
    /// Opens the tokens of a data directory; a missing file has no tokens.
    pub fn open(directory: &Path) -> Result<Self, AuthError> {
        let known =
            Watched::open(directory.join(FILE), |bytes| parse(bytes)?.into_iter().map(known).collect())?;
        Ok(Self { known })
    }

    /// Returns a number that differs whenever the tokens have changed.
    pub(super) fn version(&self) -> u64 {
        self.known.version_at(Instant::now())
    }

    /// Returns why the file cannot be used, if it cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        self.known.trouble()
    }

    /// Reads the file again, whether it has changed or not.
    pub(super) fn reload(&self) {
        self.known.reload();
    }

    /// Returns the caller that a token was made for, and until when it is.
    ///
    /// `now` only decides whether the file is checked again, and expiry goes by the wall clock.
    pub(super) fn admit_at(&self, token: &str, now: Instant) -> Result<Admitted, Denied> {
        let known = self.known.current_at(now).ok_or(Denied::Unverifiable)?;
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
            until => Ok(Admitted { caller: entry.caller.clone(), until }),
        }
    }
}

/// Makes a token for `name`. Returns its entry and the token, which is not stored. `expires` is in seconds since the
/// Unix epoch.
#[cfg(test)]
pub fn add(
    directory: &Path,
    name: &str,
    scopes: &[Scope],
    expires: Option<u64>,
) -> Result<(Entry, String), AuthError> {
    let held = Held::take(directory)?;
    let (entry, token) = held.draft(name, scopes, expires)?;
    held.put(entry.clone())?;
    Ok((entry, token))
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
        scopes: scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        sha256: HEXLOWER.encode(&Sha256::digest(&token)),
        created: now_s(),
        expires,
    };
    Ok((entry, token))
}

/// Returns the entry of every token, oldest first.
pub fn list(directory: &Path) -> Result<Vec<Entry>, AuthError> {
    let path = directory.join(FILE);
    read(&path, parse).map_err(|source| AuthError::File { path, source })
}

/// Revokes the token whose entry has this id. Errors: `Unknown` if there is none.
#[cfg(test)]
pub fn revoke(directory: &Path, id: &str) -> Result<(), AuthError> {
    Held::take(directory)?.revoke(id)
}

/// Returns the stamp of the file of tokens; `None` if there is no file.
pub fn stamp(directory: &Path) -> io::Result<Option<Stamp>> {
    look(&directory.join(FILE))
}

/// The lock on a directory's tokens: no other process changes them while this lives.
pub struct Held<'a> {
    directory: &'a Path,
    _lock: File,
}

impl<'a> Held<'a> {
    /// Takes the lock, and waits until no other process holds it.
    pub fn take(directory: &'a Path) -> Result<Self, AuthError> {
        // The operating system releases the lock if the process ends before.
        let lock = private(&directory.join(LOCK)).map_err(at(directory, LOCK))?;
        lock.lock().map_err(at(directory, LOCK))?;
        Ok(Self { directory, _lock: lock })
    }

    pub fn list(&self) -> Result<Vec<Entry>, AuthError> {
        list(self.directory)
    }

    /// Makes a token that is not valid until [`Self::put`] writes it, so that it can be recorded in the log first.
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

    /// Writes a token to the file, which makes it valid.
    pub fn put(&self, entry: Entry) -> Result<(), AuthError> {
        self.change(|entries| {
            entries.push(entry);
            Ok(())
        })
    }

    /// Does what `revoke` does.
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
    // A crash before the rename leaves the old file in force, and a `.new` file that the next change overwrites.
    file.write_all(&serde_json::to_vec_pretty(entries)?)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(FILE))?;
    // A crash before this can bring the old file back.
    File::open(directory)?.sync_all()
}

/// Creates or empties a file. A new one is readable by its owner only.
fn private(path: &Path) -> io::Result<File> {
    unlinked().write(true).create(true).truncate(true).mode(0o600).open(path)
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
    let scopes = entry.scopes.iter().map(|name| Scope::parse(name)).collect::<Option<Vec<_>>>();
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
