//! The status of following each peer's log.
//!
//! Invariant: a pursuit begins stalled, and without a log.

use crate::{block::Cid, caller::Peer, words::words};

words! {
    /// How following a log goes.
    #[derive(PartialOrd, Ord)]
    pub enum Course {
        /// All events under the peer's head are held, or are coming.
        Following = "following",
        /// The peer shows an older head than the one that is held.
        Behind = "behind",
        /// The peer does not let its log be read.
        Denied = "denied",
        /// Nothing more comes, for a reason that may pass.
        Stalled = "stalled",
        /// The log has forked.
        Quarantined = "quarantined",
    }
}

/// A followed peer, and how following it goes.
#[derive(Clone, Debug)]
pub struct Pursuit {
    pub peer: Peer,
    /// `None` until the peer has shown it.
    pub log: Option<Cid>,
    pub course: Course,
    /// Why nothing comes, if nothing does.
    pub error: Option<String>,
    pub since_ms: u64,
}

impl Pursuit {
    /// Makes the pursuit of a peer that has just begun.
    pub fn new(peer: Peer, now_ms: u64) -> Self {
        Self { peer, log: None, course: Course::Stalled, error: None, since_ms: now_ms }
    }
}
