//! Joining: the node's part in the network, where its configuration enables one.
//!
//! Invariant: all that the rest of a node asks of its network is asked here. A program that is built without peers has
//! `alone.rs` in the place of this file.

use super::{
    Node, Setup, StartError,
    network::{self, Network},
};
use crate::{
    block::payload::SaltKey,
    config::AuthMode,
    p2p::{self, NetError},
    tools::desk::Desk,
};

/// Why the network cannot start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unjoined(#[from] NetError);

/// The network, if the node takes part in one.
#[derive(Default)]
pub(super) struct Joined(Option<Network>);

impl Joined {
    /// Joins the network if it is enabled, and gives it to the peer tools and to the audit API.
    pub(super) async fn start(
        node: &Node,
        setup: &Setup<'_>,
        desk: &Desk,
        salt: SaltKey,
        runner: String,
    ) -> Result<Self, StartError> {
        if !(setup.config.p2p.enable && setup.networked) {
            return Ok(Self::default());
        }
        let access = match setup.config.auth.mode {
            // In mode `none` only those who reach the loopback socket may do everything; peers are others.
            AuthMode::None => None,
            AuthMode::Static | AuthMode::Jwt => setup
                .config
                .access(setup.home.dir())
                .inspect_err(|err| tracing::warn!(%err, "tokens mean nothing to peers"))
                .ok(),
        };
        let network = Network::start(network::Setup {
            config: &setup.config.p2p,
            seed: setup.home.keys()?.peer,
            salt,
            router: node.router.clone(),
            runner,
            metrics: node.metrics.clone(),
            access,
            claiming: node.claiming.clone(),
        });
        let network = network.await.map_err(Unjoined)?;
        network.offer_to(desk, &node.audit);
        Ok(Self(Some(network)))
    }

    /// Ends calls and streams of peers, then the connections.
    pub(super) async fn stop(self) {
        if let Some(network) = self.0 {
            network.stop().await;
        }
    }

    /// Returns this node's peer id, if it takes part in a network.
    pub(super) fn peer(&self) -> Option<String> {
        Some(self.0.as_ref()?.hub().net().local())
    }
}

/// Returns the peer id of the node whose keys hold this seed; `None` if this program has no peers.
pub fn peer_of(seed: &[u8; 32]) -> Option<String> {
    Some(p2p::local_peer(seed))
}
