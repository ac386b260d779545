//! The book: what every source has said of every peer, merged.
//!
//! Invariants:
//! - one peer is one entry, whatever number of sources tell of it;
//! - an entry lives as long as some source has confirmed it within the time to live;
//! - a full book forgets whom nobody has confirmed for longest.

use std::collections::{BTreeSet, HashMap};

use super::{ADDR_MAX, ADDRS_MAX, CAPABILITIES_MAX, CAPABILITY_MAX, Found, Origin};

/// Peers remembered.
pub const PEERS_MAX: usize = 10_000;

/// One peer, merged from all its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub peer: String,
    /// The most recently confirmed come first.
    pub addrs: Vec<String>,
    pub capabilities: BTreeSet<String>,
    /// The source that confirmed it last.
    pub origin: Origin,
    pub origins: BTreeSet<Origin>,
    pub seen_ms: u64,
}

/// All peers heard of lately.
#[derive(Debug)]
pub struct Book {
    ttl_ms: u64,
    peers: HashMap<String, Known>,
}

impl Book {
    pub fn new(ttl_ms: u64) -> Self {
        Self { ttl_ms, peers: HashMap::new() }
    }

    /// Adds what a source said. Returns whether a peer or anything about it is new.
    pub fn put(&mut self, found: Found, now_ms: u64) -> bool {
        let Found { peer, mut addrs, mut capabilities, origin, seen_ms } = found;
        // Nobody is seen in the future, whatever their clock says.
        let seen_ms = seen_ms.min(now_ms);
        if seen_ms + self.ttl_ms < now_ms {
            return false;
        }
        addrs.retain(|address| address.len() <= ADDR_MAX);
        capabilities.retain(|capability| capability.len() <= CAPABILITY_MAX);
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            self.forget_oldest();
        }
        let known = self.peers.entry(peer.clone()).or_insert_with(|| Known {
            peer,
            addrs: Vec::new(),
            capabilities: BTreeSet::new(),
            origin,
            origins: BTreeSet::new(),
            seen_ms,
        });
        let new_origin = known.origins.insert(origin);
        let new = new_origin
            || !addrs.iter().all(|address| known.addrs.contains(address))
            || !capabilities.is_subset(&known.capabilities);
        let old = std::mem::take(&mut known.addrs);
        for address in addrs.into_iter().chain(old) {
            if known.addrs.len() < ADDRS_MAX && !known.addrs.contains(&address) {
                known.addrs.push(address);
            }
        }
        let room = CAPABILITIES_MAX.saturating_sub(known.capabilities.len());
        known.capabilities.extend(capabilities.into_iter().take(room));
        if seen_ms >= known.seen_ms {
            (known.seen_ms, known.origin) = (seen_ms, origin);
        }
        new
    }

    /// Notes what a peer offers, from the peer itself.
    pub fn offers(&mut self, peer: &str, capabilities: BTreeSet<String>) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.capabilities = capabilities.into_iter().take(CAPABILITIES_MAX).collect();
        }
    }

    pub fn get(&self, peer: &str) -> Option<&Known> {
        self.peers.get(peer)
    }

    /// Returns the peers that offer every capability, the most recently heard of first.
    pub fn with(&self, capabilities: &BTreeSet<String>, now_ms: u64) -> Vec<&Known> {
        let fits = |known: &&Known| {
            known.seen_ms + self.ttl_ms >= now_ms && capabilities.is_subset(&known.capabilities)
        };
        let mut known: Vec<&Known> = self.peers.values().filter(fits).collect();
        known.sort_by(|a, b| b.seen_ms.cmp(&a.seen_ms).then_with(|| a.peer.cmp(&b.peer)));
        known
    }

    /// Drops peers not confirmed within the TTL; returns how many.
    pub fn sweep(&mut self, now_ms: u64) -> usize {
        let before = self.peers.len();
        self.peers.retain(|_, known| known.seen_ms + self.ttl_ms >= now_ms);
        before - self.peers.len()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    fn forget_oldest(&mut self) {
        let oldest = self.peers.values().min_by_key(|known| known.seen_ms).map(|known| known.peer.clone());
        if let Some(oldest) = oldest {
            self.peers.remove(&oldest);
        }
    }
}
