//! Dialling: whom this node dials unasked, and when.
//!
//! The rule is pure: how things stand and the time go in, whom to dial comes out. Whoever drives it dials.
//!
//! Invariants:
//! - a peer that is to be kept is dialled for as long as it is missing, once at a time, at pauses that double up to
//!   [`REDIAL_MAX_MS`];
//! - the pauses begin anew once a connection has stood for [`STEADY_MS`]: one that comes and goes is dialled ever less;
//! - a pause is cut by chance to between half and all of it, so that many nodes do not dial a returning one at once;
//! - others are joined by at most once in [`JOIN_PAUSE_MS`], and only below the connections wished for.

use std::collections::{BTreeMap, BTreeSet};

use crate::caller::Peer;

/// The first pause before a kept peer is dialled again, and the longest.
const REDIAL_FIRST_MS: u64 = 2_000;
pub const REDIAL_MAX_MS: u64 = 300_000;
/// How long a connection must have stood for the pauses of its peer to begin anew.
pub const STEADY_MS: u64 = 30_000;
/// The pause between two attempts to have enough connections.
pub const JOIN_PAUSE_MS: u64 = 60_000;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The present state. `joinable` says whether there is anybody to join by.
    Look { kept: &'a BTreeSet<Peer>, connected: &'a BTreeSet<Peer>, joinable: bool },
    /// A dial of this peer has ended, with or without success.
    Ended(&'a str),
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Dial the peer, and report the end by [`Input::Ended`].
    Dial(Peer),
    /// Join the network by other peers.
    Join,
}

#[derive(Debug)]
pub struct Keeping {
    /// The number of connections below which this node joins by others.
    min: usize,
    peers: BTreeMap<Peer, KeptPeer>,
    join_ms: u64,
    chance: u64,
}

/// One peer to keep.
#[derive(Debug)]
struct KeptPeer {
    /// The earliest time of the next dial.
    next_ms: u64,
    pause_ms: u64,
    dialling: bool,
    /// Since when it has been seen connected.
    since_ms: Option<u64>,
}

impl Keeping {
    /// `chance` seeds the jitter and should differ from node to node.
    pub fn new(min: usize, chance: u64) -> Self {
        Self { min, peers: BTreeMap::new(), join_ms: 0, chance }
    }

    /// Takes an input and returns what to do.
    pub fn handle(&mut self, input: Input<'_>, now_ms: u64) -> Vec<Output> {
        match input {
            Input::Ended(peer) => {
                if let Some(kept) = self.peers.get_mut(peer) {
                    kept.dialling = false;
                }
                Vec::new()
            }
            Input::Look { kept, connected, joinable } => {
                let mut outputs = self.missing(kept, connected, now_ms);
                if joinable && connected.len() < self.min && self.join_ms <= now_ms {
                    self.join_ms = now_ms + JOIN_PAUSE_MS;
                    outputs.push(Output::Join);
                }
                outputs
            }
        }
    }

    fn missing(&mut self, kept: &BTreeSet<Peer>, connected: &BTreeSet<Peer>, now_ms: u64) -> Vec<Output> {
        // One that is dialled stays until that has ended: it may be kept again before.
        self.peers.retain(|peer, state| state.dialling || kept.contains(peer));
        let mut outputs = Vec::new();
        for peer in kept {
            let state = self.peers.entry(peer.clone()).or_insert(KeptPeer {
                next_ms: now_ms,
                pause_ms: REDIAL_FIRST_MS,
                dialling: false,
                since_ms: None,
            });
            if connected.contains(peer) {
                let since_ms = *state.since_ms.get_or_insert(now_ms);
                if now_ms - since_ms >= STEADY_MS {
                    (state.next_ms, state.pause_ms) = (now_ms, REDIAL_FIRST_MS);
                }
                continue;
            }
            state.since_ms = None;
            if !state.dialling && state.next_ms <= now_ms {
                state.dialling = true;
                self.chance = stirred(self.chance);
                let half = state.pause_ms / 2;
                state.next_ms = now_ms + half + self.chance % (half + 1);
                state.pause_ms = REDIAL_MAX_MS.min(state.pause_ms * 2);
                outputs.push(Output::Dial(peer.clone()));
            }
        }
        outputs
    }
}

/// Returns the next value of a small generator (Steele et al., SplitMix64), random enough to spread nodes.
fn stirred(chance: u64) -> u64 {
    let mut mixed = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
