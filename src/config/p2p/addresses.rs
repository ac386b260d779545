//! Addresses and ids of a configuration, read as the network reads them.
//!
//! Invariant: what passes here is what the network takes.

use crate::p2p::{can_dial, can_listen, peer_id};

/// The largest number of bytes of a multiaddr.
const ADDRESS_MAX: usize = 512;

/// Returns whether a node can listen at this address.
pub fn listens(text: &str) -> bool {
    text.len() <= ADDRESS_MAX && can_listen(text).is_ok()
}

/// Returns whether a node can be dialled at this address.
pub fn dials(text: &str) -> bool {
    text.len() <= ADDRESS_MAX && can_dial(text).is_ok()
}

/// Returns whether this is a peer id in its canonical text.
pub fn is_peer(text: &str) -> bool {
    peer_id(text).is_ok_and(|peer| peer == text)
}
