//! Directories that are not there yet, and go again where what they are made for comes to nothing.
//!
//! Invariant: only what was not there before is taken away, and only while it is empty.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories that are made by whoever holds this. Dropped, they are taken away again; [`Fresh::keep`] leaves them.
#[derive(Debug)]
pub struct Fresh {
    /// The innermost first.
    missing: Vec<PathBuf>,
}

impl Fresh {
    /// Notes which of `dir` and the directories above it are not there. Ask before they are made.
    pub fn of(dir: &Path) -> Self {
        let named = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        Self { missing: named.take_while(|dir| !dir.exists()).map(Path::to_owned).collect() }
    }

    /// Whether `dir` was not there.
    pub fn has(&self, dir: &Path) -> bool {
        self.missing.iter().any(|missing| missing == dir)
    }

    /// Leaves what was made.
    pub fn keep(mut self) {
        self.missing.clear();
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for dir in &self.missing {
            // One that was not made, or that somebody else has put something into, stays as it is.
            let _ = fs::remove_dir(dir);
        }
    }
}
