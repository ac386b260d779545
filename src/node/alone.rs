//! A node alone: what stands in the place of `joining.rs` in a program that is built without peers.
//!
//! Invariant: a configuration that enables the network is refused, never passed over.

use super::{Node, Setup, StartError};
use crate::{block::payload::SaltKey, peer, tools::desk::Desk};

/// Why the network cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{}", peer::BUILT_WITHOUT)]
pub struct Unjoined;

/// No network.
#[derive(Default)]
pub(super) struct Joined;

impl Joined {
    /// Refuses to start where the network is enabled.
    pub(super) async fn start(
        _: &Node,
        setup: &Setup<'_>,
        _: &Desk,
        _: SaltKey,
        _: String,
    ) -> Result<Self, StartError> {
        match setup.config.p2p.enable && setup.networked {
            true => Err(Unjoined.into()),
            false => Ok(Self),
        }
    }

    /// There is nothing to end.
    pub(super) async fn stop(self) {}

    /// Returns no id, since there is nobody to show it to.
    pub(super) fn peer(&self) -> Option<String> {
        None
    }
}

/// Returns `None`: a program without peers gives a node no peer id.
pub fn peer_of(_: &[u8; 32]) -> Option<String> {
    None
}
