//! New directories that are removed again if the work they were made for fails.
//!
//! Invariant: only a directory that did not exist before is removed, and only if it is empty.

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
            // A directory that was not made stays missing, and one with content stays as it is.
            let _ = fs::remove_dir(dir);
        }
    }
}
