//! File descriptors: how many this process may have, and how many of them connections may take.
//!
//! Invariant: connections leave at least half of the descriptors to the log, exports, upstreams and peers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The number that is asked for where the system allows more. Some programs, which inherit it, close every descriptor
/// that there may be when they start.
const WANTED: u64 = 65_536;

/// Raises the soft limit of descriptors as far as the hard one allows, to `WANTED` at most. Returns the limit in force.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(WANTED);
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => wanted,
        Err(err) => {
            tracing::warn!(%err, current, "the limit of file descriptors cannot be raised");
            current
        }
    }
}

/// Returns how many connections a listener may have: `most`, or half of the descriptors where these are few.
pub(super) fn for_connections(most: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(16, most.max(16))
}
