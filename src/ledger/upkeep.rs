//! The upkeep thread: keeps the log's write-ahead file small, so that the writer does not have to.
//!
//! Invariants:
//! - a commit waits for it only while the file begins anew, and never longer than the named patience;
//! - erased content is tried to be cut off until it is gone;
//! - a reader that keeps the file from beginning anew is told of, from when it was first seen.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::{
    error::Chain,
    log::{Ahead, LogError, Upkeep, Woken},
    query::work::alerts,
};

/// Folds in a row before the file is tried to begin anew all the same: the writer may commit as fast as this folds.
const FOLDS_MAX: usize = 8;

/// When what is done.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long commits are gathered before they are looked at.
    pub gather: Duration,
    /// After this long everything is folded back, however little it is.
    pub idle: Duration,
    /// Between two tries while a reader holds the file.
    pub retry: Duration,
    /// Pages that are worth folding back: few, so that the disk is never busy with them for long.
    pub fold_pages: u64,
    /// Pages from which on the file begins anew.
    pub restart_pages: u64,
    /// How long commits may wait for that, because of short readers.
    pub patience: Duration,
    /// Pages from which on there are so many short readers that more patience is needed, and that.
    pub crowded_pages: u64,
    pub crowded_patience: Duration,
}

impl Default for Bounds {
    /// With pages of 8 KiB: 4 MiB, 32 MiB, and 128 MiB.
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

/// What is told of the write-ahead file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wal {
    /// When a reader was first seen to hold it that still does.
    pub held_since: Option<Instant>,
    /// Whether erased content stands in it until that reader ends.
    pub uncut: bool,
}

impl From<Wal> for alerts::Wal {
    fn from(wal: Wal) -> Self {
        let held_ms = u64::try_from(wal.held().as_millis()).unwrap_or(u64::MAX);
        Self { held_ms, uncut: wal.uncut }
    }
}

impl Wal {
    /// How long a reader has held it.
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

/// A reader that may hold the file.
#[derive(Clone, Copy)]
struct Hold {
    /// Where the fold stood still.
    at: Ahead,
    since: Instant,
    /// Whether it stood at the same place when it was tried again; else a commit may have come in between.
    sure: bool,
}

impl Tending {
    fn new(bounds: Bounds, now: Instant) -> Self {
        Self { bounds, hold: None, folded: now, at_rest: false }
    }

    /// How long commits are gathered, and how long is waited for one.
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

    /// Whether it is time to fold back what waits.
    fn is_due(&self, ahead: Ahead) -> bool {
        let since = self.folded.elapsed();
        waits(ahead) >= self.bounds.fold_pages
            || since >= self.bounds.idle
            || (self.hold.is_some() && since >= self.bounds.retry)
    }

    /// Folds until little is left or nothing moves.
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

    /// How long commits may wait for readers to let the file begin anew.
    fn patience(&self, ahead: Ahead) -> Duration {
        match self.hold {
            // It would be in vain.
            Some(Hold { sure: true, .. }) => Duration::ZERO,
            _ if ahead.pages >= self.bounds.crowded_pages => self.bounds.crowded_patience,
            _ => self.bounds.patience,
        }
    }

    /// Notes whether the fold stands still, and since when at the same place of the same file.
    fn saw(&mut self, ahead: Ahead, stands: bool) {
        let same = |hold: &Hold| hold.at.folded == ahead.folded && hold.at.pages <= ahead.pages;
        self.hold = match self.hold.filter(same) {
            _ if !stands => None,
            Some(hold) => Some(Hold { sure: true, ..hold }),
            None => Some(Hold { at: ahead, since: Instant::now(), sure: false }),
        };
    }
}

/// Pages that are committed and not folded back.
fn waits(ahead: Ahead) -> u64 {
    ahead.pages.saturating_sub(ahead.folded)
}
