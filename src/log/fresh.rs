//! Directories that are not there yet, and go again where what they are made for comes to nothing.
//!
//! Invariant: only what was not there before is taken away, and only while it is empty.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// New directories. Dropping this removes them, as long as they are empty; [`Fresh::keep`] leaves them.
#[derive(Debug)]
pub struct Fresh {
    /// The innermost first.
    missing: Vec<PathBuf>,
}

impl Fresh {
    /// Notes which of `dir` and its parents do not exist. Call it before they are created.
    pub fn of(dir: &Path) -> Self {
        let named = dir.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        Self { missing: named.take_while(|dir| !dir.exists()).map(Path::to_owned).collect() }
    }

    /// Returns whether `dir` did not exist.
    pub fn has(&self, dir: &Path) -> bool {
        self.missing.iter().any(|missing| missing == dir)
    }

    /// Keeps the new directories.
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
