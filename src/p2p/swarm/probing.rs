//! Probing: whether this node can be reached from outside, asked of others for addresses of its own alone.
//!
//! Invariants:
//! - an address through a relay is never probed: that it works says nothing of this node, and the relay knows it.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId,
    autonat::v2::client,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour,
        NewExternalAddrCandidate, THandlerInEvent, ToSwarm,
    },
};

use crate::p2p::{Transport, swarm::addresses};

type Handler = <client::Behaviour as NetworkBehaviour>::ConnectionHandler;

/// The prober, kept from relayed addresses.
#[derive(Default)]
pub struct Behaviour(client::Behaviour);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.0.handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.0.handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr }) = &event
            && addresses::transport(addr) == Transport::Relay
        {
            return;
        }
        self.0.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: <Handler as ConnectionHandler>::ToBehaviour,
    ) {
        self.0.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<client::Event, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}
