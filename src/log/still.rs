//! Databases in a directory that cannot be written: a mounted copy, an archive, another user's node.
//!
//! Invariants:
//! - a file is taken for one that does not change only where its directory cannot be written and nothing stands beside it
//!   that it lacks;
//! - a scratch directory is of its owner alone and is removed when dropped.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

/// Tries to make a scratch directory under a name that nobody has.
const TRIES_MAX: u32 = 16;

/// How a database can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As SQLite reads any other.
    Usual,
    /// As one that does not change: SQLite needs no files beside it then.
    Still,
    /// Not at all: commits stand in its write-ahead file, which cannot be read without writing beside it.
    Behind,
}

/// Returns how the database at `path` can be read.
pub fn reading(path: &Path) -> Reading {
    if is_writable(path.parent().unwrap_or(Path::new("."))) {
        return Reading::Usual;
    }
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        fs::metadata(name).ok().map(|file| file.len())
    };
    match (beside("-wal"), beside("-shm")) {
        (None | Some(0), None) => Reading::Still,
        (Some(1..), None) => Reading::Behind,
        (_, Some(_)) => Reading::Usual,
    }
}

/// Returns the name by which SQLite opens the database at `path` for reading.
pub fn uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'~' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    if reading(path) == Reading::Still {
        uri.push_str("?immutable=1");
    }
    uri
}

/// Returns whether files can be made in a directory.
pub fn is_writable(dir: &Path) -> bool {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// A directory for what is needed meanwhile.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes a directory where this machine keeps temporary files.
    pub fn make() -> io::Result<Self> {
        let mut private = DirBuilder::new();
        private.mode(0o700);
        for n in 0..TRIES_MAX {
            let dir = std::env::temp_dir().join(format!("cairn-{}-{n}", std::process::id()));
            match private.create(&dir) {
                Ok(()) => return Ok(Self { dir }),
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is harmless: nothing reads it, and the system clears its place.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_byte_by_byte() {
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("a b?c#d%e");
        let text = uri(&path);
        assert!(text.ends_with("/a%20b%3Fc%23d%25e"), "{text}");
    }

    #[test]
    fn a_scratch_directory_goes_with_its_owner() {
        let scratch = Scratch::make().expect("there is room");
        let other = Scratch::make().expect("there is room");
        let dir = scratch.path().to_owned();
        assert_ne!(dir, other.path());
        assert!(dir.is_dir());
        drop(scratch);
        assert!(!dir.exists());
    }
}
