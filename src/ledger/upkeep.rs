//! The upkeep thread: keeps the log's write-ahead file small, so that the writer does not have to.
//!
//! Invariants:
//! - "folding back" is SQLite's checkpoint; a commit waits for it only while the file restarts, and never longer than
//!   the named patience;
//! - cutting erased content off the file is tried again until it is gone;
//! - a reader that keeps the file from restarting is reported, with the time it was first seen.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::{
    error::Chain,
    log::{Ahead, LogError, Upkeep, Woken},
    query::work::alerts,
};

/// Folds in a row before a restart of the file is tried all the same: the writer may commit as fast as this folds.
const FOLDS_MAX: usize = 8;

/// When the upkeep thread does what.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long commits are gathered before the file is looked at.
    pub gather: Duration,
    /// How long the file may lie unfolded, however little is in it.
    pub idle: Duration,
    /// The pause between two tries while a reader holds the file.
    pub retry: Duration,
    /// Pages from which on a fold is worth it: few, so that the disk is never busy for long.
    pub fold_pages: u64,
    /// Pages from which on the file is restarted.
    pub restart_pages: u64,
    /// How long commits may wait for readers to let the file restart.
    pub patience: Duration,
    /// Pages from which on `crowded_patience` holds instead: then short readers follow each other so closely that the
    /// usual patience never sufficed.
    pub crowded_pages: u64,
    pub crowded_patience: Duration,
}

impl Default for Bounds {
    /// The page bounds are 4, 32 and 128 MiB, with pages of 8 KiB.
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(50),
            idle: Duration::from_secs(10),
            retry: Duration::from_secs(1),
            fold_pages: 512,
            restart_pages: 4 * 1024,
            patience: Duration::from_millis(5),
            crowded_pages: 16 * 1024,
            crowded_patience: Duration::from_millis(50),
        }
    }
}

/// The state of the write-ahead file, as it is reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wal {
    /// Since when a reader has held it, if one does.
    pub held_since: Option<Instant>,
    /// Whether it still has erased content, which goes when that reader ends.
    pub uncut: bool,
}

impl From<Wal> for alerts::Wal {
    fn from(wal: Wal) -> Self {
        let held_ms = u64::try_from(wal.held().as_millis()).unwrap_or(u64::MAX);
        Self { held_ms, uncut: wal.uncut }
    }
}

impl Wal {
    /// Returns how long a reader has held it.
    pub fn held(&self) -> Duration {
        self.held_since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// Tends the log until it is dropped.
pub(super) fn run(mut upkeep: Box<dyn Upkeep>, bounds: &Bounds, told: &watch::Sender<Wal>) {
    let mut tending = Tending::new(*bounds, Instant::now());
    let mut failed = false;
    loop {
        let (gather, at_most) = tending.pause(failed);
        let woken = upkeep.wait(gather, at_most);
        if woken.ended {
            return;
        }
        let tended = tending.tend(upkeep.as_mut(), woken);
        if let (Err(err), false) = (&tended, failed) {
            // Nothing is lost: the log stands in both files, and one of them grows.
            tracing::warn!(err = %Chain(err), "the log's write-ahead file could not be folded back; trying again");
        }
        failed = tended.is_err();
        told.send_replace(tended.unwrap_or_default());
    }
}

struct Tending {
    bounds: Bounds,
    hold: Option<Hold>,
    folded: Instant,
    /// Whether all that is committed is folded back.
    at_rest: bool,
}

/// The suspicion that a reader holds the file.
#[derive(Clone, Copy)]
struct Hold {
    /// Where the fold stopped.
    at: Ahead,
    since: Instant,
    /// Whether a second try stopped at the same place. After one try only, a commit may have come in between.
    sure: bool,
}

impl Tending {
    fn new(bounds: Bounds, now: Instant) -> Self {
        Self { bounds, hold: None, folded: now, at_rest: false }
    }

    /// Returns how long commits are gathered, and how long to wait for the first.
    fn pause(&self, failed: bool) -> (Duration, Duration) {
        let Bounds { gather, idle, retry, .. } = self.bounds;
        match self.hold {
            Some(Hold { sure: true, .. }) => (retry, retry),
            _ if failed => (retry, retry),
            Some(_) => (gather, retry),
            None if self.at_rest => (gather, Duration::MAX),
            None => (gather, idle),
        }
    }

    fn tend(&mut self, upkeep: &mut dyn Upkeep, woken: Woken) -> Result<Wal, LogError> {
        let mut uncut = woken.uncut;
        let mut ahead = upkeep.look()?;
        let mut stands = None;
        if uncut || self.is_due(ahead) {
            ahead = self.fold(upkeep, ahead)?;
            stands = Some(ahead.folded < ahead.pages);
        }
        if uncut || ahead.pages >= self.bounds.restart_pages {
            if upkeep.restart(self.patience(ahead))? {
                (ahead, uncut, stands) = (Ahead::default(), false, Some(false));
            } else if uncut {
                stands = Some(true);
            }
        }
        if let Some(stands) = stands {
            self.saw(ahead, stands);
        }
        self.at_rest = ahead.folded == ahead.pages && !uncut;
        Ok(Wal { held_since: self.hold.filter(|hold| hold.sure).map(|hold| hold.since), uncut })
    }

    /// Returns whether a fold is due.
    fn is_due(&self, ahead: Ahead) -> bool {
        let since = self.folded.elapsed();
        waits(ahead) >= self.bounds.fold_pages
            || since >= self.bounds.idle
            || (self.hold.is_some() && since >= self.bounds.retry)
    }

    /// Folds until little is left or a fold makes no progress.
    fn fold(&mut self, upkeep: &mut dyn Upkeep, mut ahead: Ahead) -> Result<Ahead, LogError> {
        for _ in 0..FOLDS_MAX {
            let before = ahead;
            ahead = upkeep.fold()?;
            if waits(ahead) < self.bounds.fold_pages || ahead.folded == before.folded {
                break;
            }
        }
        self.folded = Instant::now();
        Ok(ahead)
    }

    /// Returns how long commits may wait for readers to let the file restart.
    fn patience(&self, ahead: Ahead) -> Duration {
        match self.hold {
            // It would be in vain.
            Some(Hold { sure: true, .. }) => Duration::ZERO,
            _ if ahead.pages >= self.bounds.crowded_pages => self.bounds.crowded_patience,
            _ => self.bounds.patience,
        }
    }

    /// Notes whether the fold made no progress, and since when it has stood at this place of this file.
    fn saw(&mut self, ahead: Ahead, stands: bool) {
        let same = |hold: &Hold| hold.at.folded == ahead.folded && hold.at.pages <= ahead.pages;
        self.hold = match self.hold.filter(same) {
            _ if !stands => None,
            Some(hold) => Some(Hold { sure: true, ..hold }),
            None => Some(Hold { at: ahead, since: Instant::now(), sure: false }),
        };
    }
}

/// Returns the pages that are committed and not folded back.
fn waits(ahead: Ahead) -> u64 {
    ahead.pages.saturating_sub(ahead.folded)
}
