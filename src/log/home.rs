//! The data directory: its files, its locks, its keys, and the file of the last signed heads.
//!
//! Invariants:
//! - one process owns the log: the lock is the kernel's, which releases it when the process ends;
//! - a key is never replaced but by a rotation, and is readable by its owner only;
//! - the head file is written after the commit that the head covers, never before.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::OFlags;

use crate::{block::payload::SaltKey, identity::CHECKPOINT_MAX};

/// The bytes of one of the two slots of the head file: every signed head fits.
const HEAD_SLOT: usize = CHECKPOINT_MAX;
/// The bytes of a slot as earlier builds wrote it. A file of two of these is read, and widened before it is written.
const FORMER_SLOT: usize = 1024;

/// How long a server waits for another to end, and how often it looks.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that are read of what the holder of a lock says of itself.
const HOLDER_MAX: u64 = 4096;

/// The files of the keys: the seed that signs heads, and the key of payload salts.
const KEYS: [&str; 2] = ["log.key", "salt.key"];
/// The file of the first seed that signed heads, which exists once another seed does.
const PEER_KEY: &str = "peer.key";
/// The file of the next seed while a rotation is under way.
const NEXT_KEY: &str = "log.key.next";

/// A directory that holds one log.
#[derive(Clone, Debug)]
pub struct Home {
    dir: PathBuf,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("data directory is in use by {owner}; stop it first, or use another --data")]
    Owned { owner: String },
    #[error("data directory `{dir}` cannot be used")]
    Io {
        dir: String,
        #[source]
        source: io::Error,
    },
    #[error("key file `keys/{file}` is missing; restore it from your backup")]
    NoKey { file: &'static str },
    #[error("key file `keys/{file}` does not hold 32 bytes in hex; restore it from your backup")]
    Key { file: &'static str },
}

/// The right to write the log, or to serve. It is released when this is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// The secrets of this node.
pub struct Keys {
    /// The Ed25519 seed that signs heads.
    pub seed: [u8; 32],
    pub salt: SaltKey,
    /// The seed of the node's identity among peers: the first seed that signed heads, whichever signs them now.
    pub peer: [u8; 32],
}

impl Home {
    /// Opens `dir`, and creates it if there is none.
    pub fn open(dir: &Path) -> Result<Self, HomeError> {
        let home = Self { dir: dir.to_owned() };
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        home.io(private.create(dir.join("runners")))?;
        home.keep_private()?;
        home.close_keys();
        Ok(home)
    }

    /// Takes the rights of others to the keys away, which a copy of the directory may have opened.
    fn close_keys(&self) {
        let folder = self.dir.join("keys");
        let files = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in std::iter::once(folder).chain(files) {
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let open = found.permissions().mode() & 0o077;
            if open != 0 && !found.is_symlink() {
                let closed = fs::Permissions::from_mode(found.permissions().mode() & 0o700);
                // Keys of somebody else are theirs to close.
                if fs::set_permissions(&path, closed).is_ok() {
                    tracing::warn!(path = %path.display(), "others could reach it; its rights are closed");
                }
            }
        }
    }

    /// Names a directory without touching it.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Creates the databases' files, readable by their owner only. SQLite gives their side files the same mode.
    pub fn keep_private(&self) -> Result<(), HomeError> {
        for file in [self.log_path(), self.state_path()] {
            let mut options = OpenOptions::new();
            self.io(options.create(true).append(true).mode(0o600).open(file))?;
        }
        Ok(())
    }

    /// Opens `dir` only if there is a log in it.
    pub fn existing(dir: &Path) -> Result<Self, HomeError> {
        let home = Self { dir: dir.to_owned() };
        let log = home.io(fs::metadata(home.log_path()))?;
        // A start that failed leaves an empty file.
        if log.len() == 0 {
            home.io(Err(io::ErrorKind::NotFound.into()))?;
        }
        Ok(home)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log.db")
    }

    /// Returns the path of the log's write-ahead file.
    pub fn wal_path(&self) -> PathBuf {
        self.dir.join("log.db-wal")
    }

    pub fn state_path(&self) -> PathBuf {
        self.dir.join("state.db")
    }

    pub fn socket_path(&self) -> PathBuf {
        self.dir.join("ledger.sock")
    }

    /// Takes the right to write, and writes `owner` into the lock file.
    pub fn lock(&self, owner: &str) -> Result<Lock, HomeError> {
        self.claim("lock", owner)
    }

    /// Takes the right to be the one server of this directory.
    ///
    /// Blocks for up to a second if somebody else has it: a child that a killed server had just forked holds its
    /// files until it has become another program.
    pub fn serve(&self, owner: &str) -> Result<Lock, HomeError> {
        let patience = Instant::now() + CLAIM_PATIENCE;
        loop {
            match self.claim("serve.lock", owner) {
                Err(HomeError::Owned { .. }) if Instant::now() < patience => thread::sleep(CLAIM_PAUSE),
                claimed => return claimed,
            }
        }
    }

    /// Returns what the server of this directory says of itself, if one runs on it.
    pub fn server(&self) -> Option<String> {
        self.holder("serve.lock")
    }

    /// Returns what the owner of this directory's log says of itself, if it has one.
    pub fn owner(&self) -> Option<String> {
        self.holder("lock")
    }

    fn holder(&self, name: &str) -> Option<String> {
        let mut file = unlinked().read(true).open(self.dir.join(name)).ok()?;
        let mut said = String::new();
        match file.try_lock_shared() {
            Err(fs::TryLockError::WouldBlock) => {
                (&mut file).take(HOLDER_MAX).read_to_string(&mut said).ok()?;
                Some(said)
            }
            Ok(()) | Err(fs::TryLockError::Error(_)) => None,
        }
    }

    fn claim(&self, name: &str, owner: &str) -> Result<Lock, HomeError> {
        let mut options = unlinked();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = self.io(options.open(self.dir.join(name)))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                self.io(file.read_to_string(&mut owner))?;
                return Err(HomeError::Owned { owner });
            }
            Err(fs::TryLockError::Error(source)) => return self.io(Err(source)),
        }
        let lock = Lock { file };
        self.io(lock.say(owner))?;
        Ok(lock)
    }

    /// Marks a process as running, so that its open calls are not taken for interrupted ones.
    pub fn enrol(&self, runner: &str) -> Result<Runner, HomeError> {
        let path = self.runner_path(runner);
        self.io(fs::create_dir_all(self.dir.join("runners")))?;
        let file = self.io(unlinked().create(true).truncate(true).write(true).mode(0o600).open(&path))?;
        self.io(file.try_lock().map_err(io::Error::from))?;
        Ok(Runner { path, _file: file })
    }

    /// Returns whether the process that enrolled as `runner` still runs. Removes its mark if it does not.
    pub fn runs(&self, runner: &str) -> bool {
        let Ok(file) = unlinked().read(true).open(self.runner_path(runner)) else {
            return false;
        };
        match file.try_lock_shared() {
            Ok(()) => {
                // Nobody holds the lock: the process ended without removing its mark.
                let _ = fs::remove_file(self.runner_path(runner));
                false
            }
            Err(_) => true,
        }
    }

    /// Removes the marks of processes that have ended.
    pub fn sweep(&self) {
        let marks = fs::read_dir(self.dir.join("runners")).into_iter().flatten().flatten();
        for mark in marks {
            self.runs(&mark.file_name().to_string_lossy());
        }
    }

    fn runner_path(&self, runner: &str) -> PathBuf {
        let name: String = runner.chars().filter(char::is_ascii_alphanumeric).collect();
        self.dir.join("runners").join(name)
    }

    /// Creates the keys of a new log from `fresh`; a key that exists already is kept.
    pub fn make_keys(&self, mut fresh: impl FnMut() -> [u8; 32]) -> Result<(), HomeError> {
        for name in KEYS {
            let path = self.dir.join("keys").join(name);
            if path.exists() {
                continue;
            }
            self.io(fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join("keys")))?;
            self.put_key(name, &fresh())?;
        }
        Ok(())
    }

    /// Reads the keys. A lost key is never replaced by a new one, so a log is not continued without its own.
    pub fn keys(&self) -> Result<Keys, HomeError> {
        let [seed, salt] = KEYS;
        let seed = self.key(seed)?;
        let peer = self.key_if_there(PEER_KEY)?.unwrap_or(seed);
        Ok(Keys { seed, salt: SaltKey::new(self.key(salt)?), peer })
    }

    /// Saves the seed of the node's identity among peers, before another one signs heads.
    pub fn keep_peer_key(&self) -> Result<(), HomeError> {
        match self.key_if_there(PEER_KEY)? {
            Some(_) => Ok(()),
            None => self.put_key(PEER_KEY, &self.key(KEYS[0])?),
        }
    }

    /// Checks that the seed of the node's identity among peers is saved. A log with more than one key needs it. Errors:
    /// `NoKey`.
    pub fn check_peer_key(&self) -> Result<(), HomeError> {
        self.key(PEER_KEY).map(|_| ())
    }

    /// Returns the next seed of a rotation that is under way.
    pub fn next_key(&self) -> Result<Option<[u8; 32]>, HomeError> {
        self.key_if_there(NEXT_KEY)
    }

    pub fn put_next_key(&self, seed: &[u8; 32]) -> Result<(), HomeError> {
        self.put_key(NEXT_KEY, seed)
    }

    /// Makes the next seed the one that signs heads, durably. The former one is overwritten.
    pub fn take_next_key(&self) -> Result<(), HomeError> {
        let keys = self.dir.join("keys");
        self.io(fs::rename(keys.join(NEXT_KEY), keys.join(KEYS[0])))?;
        self.io(File::open(keys).and_then(|keys| keys.sync_all()))
    }

    pub fn forget_next_key(&self) -> Result<(), HomeError> {
        self.io(fs::remove_file(self.dir.join("keys").join(NEXT_KEY)))
    }

    fn put_key(&self, name: &str, key: &[u8; 32]) -> Result<(), HomeError> {
        let text = format!("{}\n", data_encoding::HEXLOWER.encode(key));
        self.io(write_secret(&self.dir.join("keys").join(name), text.as_bytes()))
    }

    fn key_if_there(&self, name: &'static str) -> Result<Option<[u8; 32]>, HomeError> {
        match self.key(name) {
            Err(HomeError::NoKey { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    fn key(&self, name: &'static str) -> Result<[u8; 32], HomeError> {
        match fs::read_to_string(self.dir.join("keys").join(name)) {
            Ok(text) => data_encoding::HEXLOWER
                .decode(text.trim().as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(HomeError::Key { file: name }),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Err(HomeError::NoKey { file: name }),
            Err(source) => self.io(Err(source)),
        }
    }

    /// Returns the texts of the last signed heads, without writing anything.
    pub fn signed_heads(&self) -> Result<Vec<String>, HomeError> {
        let file = self.io(File::open(self.dir.join("head")))?;
        self.io(HeadFile { file, slot: 0 }.read())
    }

    /// Puts a file with this signed head alone in the place of the head file, whole or not at all.
    pub fn replace_head(&self, note: &str) -> io::Result<()> {
        write_secret(&self.dir.join("head"), &slot_of(note)?)
    }

    /// Opens the file of the last signed head.
    pub fn head(&self) -> Result<HeadFile, HomeError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = self.io(options.open(self.dir.join("head")))?;
        let mut head = HeadFile { file, slot: 0 };
        self.io(head.widen())?;
        Ok(head)
    }

    fn io<T>(&self, result: io::Result<T>) -> Result<T, HomeError> {
        result.map_err(|source| HomeError::Io { dir: self.dir.display().to_string(), source })
    }
}

impl Lock {
    /// Replaces the text about the owner in the lock file.
    pub fn say(&self, owner: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(owner.as_bytes(), 0)
    }
}

/// The mark of a running process. Its lock is released when the process ends, however it ends.
#[derive(Debug)]
pub struct Runner {
    path: PathBuf,
    _file: File,
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The file of the last signed heads, in two slots that are written in turn: a torn write leaves the other one.
#[derive(Debug)]
pub struct HeadFile {
    file: File,
    slot: u64,
}

impl HeadFile {
    /// Returns the texts of both slots. The caller takes the larger head whose signature is good.
    pub fn read(&mut self) -> io::Result<Vec<String>> {
        let bytes = self.bytes()?;
        let width = if is_narrow(&bytes) { FORMER_SLOT } else { HEAD_SLOT };
        let texts = bytes.chunks(width).filter_map(|slot| {
            let text = slot.split(|byte| *byte == 0).next()?;
            std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(str::to_owned)
        });
        Ok(texts.collect())
    }

    fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        (&mut self.file).take(2 * HEAD_SLOT as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Moves the second slot of a file of narrow slots to where it stands in a wide one. The first stays where it is.
    fn widen(&mut self) -> io::Result<()> {
        let bytes = self.bytes()?;
        if !is_narrow(&bytes) {
            return Ok(());
        }
        // A crash before the write leaves the narrow file; after it, a wide one with the same two heads. Amid it, the
        // first head is left here, and the log has its own in it.
        let mut second = bytes.get(FORMER_SLOT..).unwrap_or_default().to_vec();
        second.resize(HEAD_SLOT, 0);
        self.file.write_all_at(&second, HEAD_SLOT as u64)?;
        self.file.sync_data()
    }

    /// Writes a signed head. Without `sync` it survives the process, but not a power cut. Errors: `FileTooLarge` if it
    /// is over [`CHECKPOINT_MAX`] bytes, which no signed head is.
    pub fn write(&mut self, note: &str, sync: bool) -> io::Result<()> {
        // What is left of a longer head stands behind a zero byte, which no head contains, and is not read.
        let slot = slot_of(note)?;
        let written = slot.get(..=note.len()).unwrap_or(&slot);
        self.file.write_all_at(written, self.slot * HEAD_SLOT as u64)?;
        self.slot = 1 - self.slot;
        if sync { self.file.sync_data() } else { Ok(()) }
    }
}

/// Returns whether a head file has the slots of earlier builds, or none yet.
fn is_narrow(bytes: &[u8]) -> bool {
    bytes.len() <= 2 * FORMER_SLOT
}

/// Returns a slot with this head.
fn slot_of(note: &str) -> io::Result<Vec<u8>> {
    let mut slot = note.as_bytes().to_vec();
    if slot.len() > HEAD_SLOT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    slot.resize(HEAD_SLOT, 0);
    Ok(slot)
}

/// Returns options that open no symbolic link: a lock or a fresh file that somebody put a link in the place of must not
/// empty or lock another file.
pub fn unlinked() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// The extension of a file that [`write_secret`] has not finished; a crash leaves it.
pub const UNFINISHED: &str = "new";

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(UNFINISHED);
    let mut file = unlinked().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
