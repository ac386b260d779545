//! A small file that other processes replace, read again when it has changed.
//!
//! Invariants:
//! - the file's metadata is checked at most once in [`LOOK_EVERY`], and its bytes are read only if its stamp differs;
//! - if the file cannot be read or parsed, the last value stays in force, and each such version is reported once. If
//!   its metadata cannot be read, the value stays without a report.

use std::{
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::AuthError;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The largest number of bytes of a file of tokens or keys.
const FILE_MAX: u64 = 1024 * 1024;

/// Parses the file's bytes; `None` stands for a missing file.
type Parse<T> = fn(Option<&[u8]>) -> io::Result<T>;

pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    seen: Mutex<Seen<T>>,
}

struct Seen<T> {
    looked: Instant,
    stamp: Option<Stamp>,
    value: Arc<T>,
}

/// What tells two versions of a file apart: its inode, its length and its modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl<T> Watched<T> {
    /// Reads the file for the first time. Here an unusable file is an error.
    pub(super) fn open(path: PathBuf, parse: Parse<T>) -> Result<Self, AuthError> {
        match look(&path).and_then(|stamp| Ok((stamp, Arc::new(read(&path, parse)?)))) {
            Ok((stamp, value)) => {
                let looked = Instant::now();
                let seen = Mutex::new(Seen { looked, stamp, value });
                Ok(Self { path, parse, seen })
            }
            Err(source) => Err(AuthError::File { path, source }),
        }
    }

    /// Returns the value as the file had it at the last look, at most a second ago.
    ///
    /// Reads the file on the caller's thread, because it is small and seldom changes.
    pub(super) fn current_at(&self, now: Instant) -> Arc<T> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(seen.looked) < LOOK_EVERY {
            return Arc::clone(&seen.value);
        }
        seen.looked = now;
        // The stamp is taken before the file is read: a change in between is noticed at the next look.
        let stamp = look(&self.path).unwrap_or(seen.stamp);
        if stamp != seen.stamp {
            seen.stamp = stamp;
            match read(&self.path, self.parse) {
                Ok(value) => seen.value = Arc::new(value),
                Err(err) => {
                    tracing::error!(%err, path = %self.path.display(), "access file unusable; keeping the last one")
                }
            }
        }
        Arc::clone(&seen.value)
    }
}

/// Reads and parses the file. Errors: `FileTooLarge` if it has over 1 MiB.
pub(super) fn read<T>(path: &Path, parse: Parse<T>) -> io::Result<T> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file.take(FILE_MAX + 1),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return parse(None),
        Err(err) => return Err(err),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is over 1 MiB"));
    }
    parse(Some(&bytes))
}

/// Returns the file's stamp; `None` if there is no file.
pub(super) fn look(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(stamp(&metadata))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp { inode: metadata.ino(), len: metadata.len(), changed: (metadata.mtime(), metadata.mtime_nsec()) }
}
