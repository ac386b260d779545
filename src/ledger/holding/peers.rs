//! Peers in memory: those that are connected, and those that were heard of lately.
//!
//! Invariants:
//! - every connected peer is here;
//! - memory is bounded: peers that are not connected and were not heard of the longest are left to the state.

use std::collections::HashMap;

use crate::peer::Peer;

/// Peers in memory.
const PEERS_KEPT: usize = 10_000;
/// Peers that are dropped from memory at a time.
const PEERS_LEFT: usize = 1_000;

#[derive(Default)]
pub struct Peers {
    pub live: HashMap<String, Peer>,
}

impl Peers {
    /// Takes a peer into memory. `applied` is the number of events that the state has folded.
    pub fn hold(&mut self, peer: Peer, applied: u64) {
        if self.live.len() >= PEERS_KEPT {
            self.leave(PEERS_LEFT, applied);
        }
        self.live.insert(peer.id.clone(), peer);
    }

    /// Drops up to `count` unconnected peers that the state has folded, those heard of longest ago first.
    fn leave(&mut self, count: usize, applied: u64) {
        let left = self.live.values().filter(|peer| peer.link.is_none() && peer.last_seq < applied);
        let mut left: Vec<(u64, String)> = left.map(|peer| (peer.last_seq, peer.id.clone())).collect();
        left.sort_unstable();
        for (_, id) in left.into_iter().take(count) {
            self.live.remove(&id);
        }
    }

    /// Returns the processes that hold connections, one name for each peer.
    pub fn runners(&self) -> impl Iterator<Item = String> {
        self.live.values().filter_map(|peer| peer.link.as_ref()).map(|link| link.runner.clone())
    }
}
