//! A small file that other processes replace, read again when it has changed, and as long as it cannot be used.
//!
//! Invariants:
//! - the file's metadata is checked at most once in `LOOK_EVERY`, and its bytes are read only if its stamp differs, or
//!   if the last reading failed;
//! - a file that cannot be read or parsed has no value: what it held before does not stay in force. Each reason is
//!   reported once, and so is the end of the trouble.

use std::{
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::AuthError;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The largest number of bytes of a file of tokens or keys.
pub(super) const FILE_MAX: u64 = 1024 * 1024;

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
    /// `None` while the file cannot be used.
    value: Option<Arc<T>>,
    /// Why it cannot be used.
    trouble: Option<String>,
    /// Counts the values, those of an unusable file included.
    version: u64,
}

/// What tells two versions of a file apart: its inode, its length and the times of its last changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    len: u64,
    written: (i64, i64),
    /// The change of its owner or mode counts too: it may have become readable.
    changed: (i64, i64),
}

impl<T> Watched<T> {
    /// Reads the file for the first time. Here an unusable file is an error.
    pub(super) fn open(path: PathBuf, parse: Parse<T>) -> Result<Self, AuthError> {
        match look(&path).and_then(|stamp| Ok((stamp, Arc::new(read(&path, parse)?)))) {
            Ok((stamp, value)) => {
                let looked = Instant::now();
                let seen = Seen { looked, stamp, value: Some(value), trouble: None, version: 0 };
                Ok(Self { path, parse, seen: Mutex::new(seen) })
            }
            Err(source) => Err(AuthError::File { path, source }),
        }
    }

    /// Returns the value as the file had it at the last look, at most `LOOK_EVERY` ago; `None` if it cannot be used.
    ///
    /// Reads the file on the caller's thread, because it is small and seldom changes.
    pub(super) fn current_at(&self, now: Instant) -> Option<Arc<T>> {
        self.looked_at(now).value.clone()
    }

    /// Returns a number that differs whenever the value has changed.
    pub(super) fn version_at(&self, now: Instant) -> u64 {
        self.looked_at(now).version
    }

    /// Returns why the file cannot be used, if it cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        self.looked_at(Instant::now()).trouble.clone()
    }

    /// Reads the file again, whether it has changed or not.
    pub(super) fn reload(&self) {
        let mut seen = self.seen();
        seen.looked = Instant::now();
        let stamp = look(&self.path);
        self.take(&mut seen, stamp);
    }

    fn seen(&self) -> MutexGuard<'_, Seen<T>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looked_at(&self, now: Instant) -> MutexGuard<'_, Seen<T>> {
        let mut seen = self.seen();
        if now.saturating_duration_since(seen.looked) < LOOK_EVERY {
            return seen;
        }
        seen.looked = now;
        // The stamp is taken before the file is read: a change in between is noticed at the next look.
        let stamp = look(&self.path);
        if seen.value.is_none() || !matches!(stamp, Ok(stamp) if stamp == seen.stamp) {
            self.take(&mut seen, stamp);
        }
        seen
    }

    fn take(&self, seen: &mut Seen<T>, stamp: io::Result<Option<Stamp>>) {
        let path = self.path.display();
        match stamp.and_then(|stamp| Ok((stamp, read(&self.path, self.parse)?))) {
            Ok((stamp, value)) => {
                if seen.trouble.take().is_some() {
                    tracing::info!(%path, "access file usable again");
                }
                seen.stamp = stamp;
                seen.value = Some(Arc::new(value));
                seen.version += 1;
            }
            Err(err) => {
                let trouble = err.to_string();
                if seen.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(%err, %path, "access file unusable; nobody is let in until it can be read");
                    seen.trouble = Some(trouble);
                }
                if seen.value.take().is_some() {
                    seen.version += 1;
                }
            }
        }
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
pub fn look(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(stamp(&metadata))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        inode: metadata.ino(),
        len: metadata.len(),
        written: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}
