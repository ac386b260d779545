//! Standing: a client's session, as the servers behind this node reach it outside its requests.
//!
//! Invariants:
//! - nobody is told or asked anything before its client has said that it is ready;
//! - what is said this way belongs to no call, and so is on no record.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::watch;

use crate::router::Client;

/// Log levels, least severe first (RFC 5424).
pub const LEVELS: [&str; 8] =
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
/// Stands for no level.
const UNSET: usize = usize::MAX;

/// What a client says outside its requests, to all servers that serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It wants other log messages than before.
    Level,
    /// Its roots have changed.
    Roots,
}

/// One session of a client.
pub struct Standing {
    client: watch::Sender<Option<Arc<dyn Client>>>,
    level: AtomicUsize,
}

impl Default for Standing {
    fn default() -> Self {
        Self { client: watch::Sender::new(None), level: AtomicUsize::new(UNSET) }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("Standing").field("level", &self.level()).finish_non_exhaustive()
    }
}

impl Standing {
    /// Says that the client is ready, and how it is reached.
    pub fn open(&self, client: Arc<dyn Client>) {
        self.client.send_replace(Some(client));
    }

    /// Says that the client is gone.
    pub fn close(&self) {
        self.client.send_replace(None);
    }

    /// Watches how the client is reached, once it is ready.
    pub fn client(&self) -> watch::Receiver<Option<Arc<dyn Client>>> {
        self.client.subscribe()
    }

    /// Sets the least severe log messages that the client wants; a level that is not known changes nothing.
    pub fn set_level(&self, level: &str) {
        if let Some(level) = rank(level) {
            self.level.store(level, Ordering::Relaxed);
        }
    }

    /// Returns the place in [`LEVELS`] of the least severe log messages that the client wants; `None` if it has named
    /// none.
    pub fn level(&self) -> Option<usize> {
        Some(self.level.load(Ordering::Relaxed)).filter(|level| *level != UNSET)
    }
}

/// Returns the place of a level in [`LEVELS`].
pub fn rank(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == level)
}
