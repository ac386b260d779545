//! The file `credentials` of the data directory: tokens and registrations at upstreams, encrypted.
//!
//! Invariants:
//! - what is on disk is sealed with the key in `keys/credentials.key`; both files are readable by their owner only;
//! - the file is replaced whole or not at all, and only by the process that holds `credentials.lock`;
//! - nothing here has a `Debug` text, and no error repeats what a file holds.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{
    log::home::{unlinked, write_secret},
    runtime::upstream::credentials::session::{Registered, Token},
};

const FILE: &str = "credentials";
const LOCK: &str = "credentials.lock";
const KEY: &str = "credentials.key";
/// The first bytes of the file, which are authenticated with the rest.
const MARK: &[u8] = b"cairn credentials 1\n";
const NONCE_LEN: usize = 24;
/// The largest number of bytes of the file.
const FILE_MAX: u64 = 1024 * 1024;
/// Registrations that one upstream keeps: one for each authorization server it named lately.
const CLIENTS_MAX: usize = 8;
/// How long a process waits for another one to be done, and how often it looks. Whoever has the lock may be asking an
/// authorization server, whose time is bounded too.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What is kept of one upstream.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The URL that all of it is for: at another one nothing of it is used.
    pub url: String,
    /// Who we are at each authorization server, by its issuer.
    pub clients: BTreeMap<String, Registered>,
    pub token: Option<Token>,
    /// The scopes that the token was asked for.
    pub asked: Vec<String>,
    /// What the upstream wanted when it last refused a request.
    pub wanted: Option<Wanted>,
}

/// A refusal that a login has to meet.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The `WWW-Authenticate` value.
    pub challenge: Option<String>,
    /// The scopes that a token must have from now on; empty where the authorization server's side says.
    pub scopes: Vec<String>,
}

/// What tells two versions of the file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the file `{0}` of the data directory cannot be used")]
    Io(&'static str, #[source] io::Error),
    #[error(
        "the file `credentials` cannot be opened with `keys/credentials.key`; remove it and log in to the upstreams again"
    )]
    Sealed,
    #[error("`keys/credentials.key` does not hold 32 bytes in hex")]
    Key,
    #[error("the credentials have no room for more")]
    Full,
    #[error("another process has kept the credentials locked for a minute")]
    Locked,
    #[error("the operating system gave no randomness")]
    NoRandom,
}

/// Between an upstream's name, which holds none of it, and a caller's in the name of a record.
const OF: char = '/';

/// Returns the name under which the credentials at an upstream are kept: this node's own, or a caller's.
pub fn key(upstream: &str, principal: Option<&str>) -> String {
    principal.map_or_else(|| upstream.to_owned(), |principal| format!("{upstream}{OF}{principal}"))
}

/// Returns the caller whose credentials at this upstream a name is of; `None` for any other.
pub fn caller<'a>(key: &'a str, upstream: &str) -> Option<&'a str> {
    key.strip_prefix(upstream)?.strip_prefix(OF)
}

/// The credentials' file of one data directory.
#[derive(Clone)]
pub struct Vault {
    dir: PathBuf,
}

/// The right to replace the file. It ends when this is dropped.
pub struct Held<'a> {
    vault: &'a Vault,
    _lock: File,
}

impl Vault {
    /// Names the file of a directory without touching it.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Returns the file's stamp; `None` if there is no file.
    pub fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(self.dir.join(FILE)).ok()?;
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Some(Stamp { inode: metadata.ino(), len: metadata.len(), changed })
    }

    /// Returns what is kept, by upstream.
    pub fn read(&self) -> Result<BTreeMap<String, Record>, VaultError> {
        let mut sealed = Vec::new();
        match File::open(self.dir.join(FILE)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            opened => {
                let opened = opened.and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut sealed));
                opened.map_err(|err| VaultError::Io(FILE, err))?;
            }
        }
        let cipher = self.cipher(false)?.ok_or(VaultError::Sealed)?;
        let rest = sealed.strip_prefix(MARK).ok_or(VaultError::Sealed)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(VaultError::Sealed)?;
        let open = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: text, aad: MARK });
        serde_json::from_slice(&open.map_err(|_| VaultError::Sealed)?).map_err(|_| VaultError::Sealed)
    }

    /// Takes the right to replace the file. Waits while another process or task has it, a minute at most.
    pub async fn hold(&self) -> Result<Held<'_>, VaultError> {
        let io = |err| VaultError::Io(LOCK, err);
        let mut options = unlinked();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(self.dir.join(LOCK)).map_err(io)?;
        for _ in 0..LOCK_PATIENCE.as_millis() / LOCK_PAUSE.as_millis() {
            match lock.try_lock() {
                Ok(()) => return Ok(Held { vault: self, _lock: lock }),
                Err(fs::TryLockError::WouldBlock) => sleep(LOCK_PAUSE).await,
                Err(fs::TryLockError::Error(err)) => return Err(io(err)),
            }
        }
        Err(VaultError::Locked)
    }

    /// Returns the cipher under the key; `make` makes the key where there is none.
    fn cipher(&self, make: bool) -> Result<Option<XChaCha20Poly1305>, VaultError> {
        let io = |err| VaultError::Io(KEY, err);
        let keys = self.dir.join("keys");
        let path = keys.join(KEY);
        let key = match fs::read_to_string(&path) {
            Ok(text) => {
                let bytes = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).ok();
                bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(VaultError::Key)?
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound && !make => return Ok(None),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 32] = random()?;
                let text = format!("{}\n", data_encoding::HEXLOWER.encode(&key));
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&keys);
                // A crash after this leaves a key of nothing, which the next save uses.
                made.and_then(|()| write_secret(&path, text.as_bytes())).map_err(io)?;
                key
            }
            Err(err) => return Err(io(err)),
        };
        Ok(Some(XChaCha20Poly1305::new(&key.into())))
    }
}

impl Held<'_> {
    /// Replaces what is kept of one upstream; `None` forgets it. Durable when this returns.
    pub fn put(&self, name: &str, record: Option<Record>) -> Result<(), VaultError> {
        let mut records = self.vault.read()?;
        match record {
            Some(mut record) => {
                while record.clients.len() > CLIENTS_MAX {
                    let current = record.token.as_ref().map(|token| token.issuer());
                    let old = record.clients.keys().find(|issuer| Some(issuer.as_str()) != current);
                    let Some(old) = old.cloned() else { break };
                    record.clients.remove(&old);
                }
                records.insert(name.to_owned(), record);
            }
            None => drop(records.remove(name)),
        }
        let open = serde_json::to_vec(&records).map_err(|_| VaultError::Full)?;
        let nonce: [u8; NONCE_LEN] = random()?;
        let cipher = self.vault.cipher(true)?.ok_or(VaultError::Key)?;
        let text = cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: &open, aad: MARK });
        let sealed = [MARK, &nonce, &text.map_err(|_| VaultError::Full)?].concat();
        if sealed.len() as u64 > FILE_MAX {
            return Err(VaultError::Full);
        }
        write_secret(&self.vault.dir.join(FILE), &sealed).map_err(|err| VaultError::Io(FILE, err))
    }
}

fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| VaultError::NoRandom)?;
    Ok(bytes)
}
