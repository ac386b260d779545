//! How far a start has come: the events that the state has folded, of those in the log.
//!
//! Invariants:
//! - it only tells: nothing is decided by it;
//! - while a start takes long, a log line says how far it is, not more often than every `TELL_EVERY`.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const TELL_EVERY: Duration = Duration::from_secs(5);

/// The progress of a start, shared by reference.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    folded: u64,
    of: u64,
    /// When the last line was written; the first is due a while after the start.
    told: Option<Instant>,
}

impl Progress {
    /// Says that `folded` events of `of` are folded.
    pub fn at(&self, folded: u64, of: u64) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (told.folded, told.of) = (folded, of);
        let now = Instant::now();
        if now.saturating_duration_since(*told.told.get_or_insert(now)) >= TELL_EVERY {
            told.told = Some(now);
            tracing::info!(folded, of, "deriving the state from the log");
        }
    }

    /// Returns the events folded and those there are, if folding has begun.
    pub fn now(&self) -> Option<(u64, u64)> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.told.map(|_| (told.folded, told.of))
    }
}
