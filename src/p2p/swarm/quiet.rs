//! Quiet: gossip whose streams do not hold a connection by themselves.
//!
//! Gossip streams stay open for as long as the connection, which so would never count as idle. Even a stream to a
//! peer without gossip stays open: with lazy negotiation only a reader would notice.
//!
//! Invariants:
//! - a peer that heads are passed on to, one of the mesh, holds its connection; any other peer needs something else.

use std::task::{Context, Poll};

use libp2p::{
    Multiaddr, PeerId, Stream,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
    gossipsub,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, SubstreamProtocol, THandlerInEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
            ListenUpgradeError,
        },
    },
};

type Inner = <gossipsub::Behaviour as NetworkBehaviour>::ConnectionHandler;
type In = <Inner as ConnectionHandler>::InboundProtocol;
type Out = <Inner as ConnectionHandler>::OutboundProtocol;

/// Gossip whose streams do not keep a connection alive.
pub struct Behaviour(pub gossipsub::Behaviour);

/// The streams of one connection.
pub struct Handler(Inner);

/// An upgrade whose stream does not keep its connection alive.
#[derive(Clone, Debug)]
pub struct Quiet<U>(U);

impl<U: UpgradeInfo> UpgradeInfo for Quiet<U> {
    type Info = U::Info;
    type InfoIter = U::InfoIter;

    fn protocol_info(&self) -> U::InfoIter {
        self.0.protocol_info()
    }
}

impl<U: InboundUpgrade<Stream>> InboundUpgrade<Stream> for Quiet<U> {
    type Output = U::Output;
    type Error = U::Error;
    type Future = U::Future;

    fn upgrade_inbound(self, mut stream: Stream, info: U::Info) -> U::Future {
        stream.ignore_for_keep_alive();
        self.0.upgrade_inbound(stream, info)
    }
}

impl<U: OutboundUpgrade<Stream>> OutboundUpgrade<Stream> for Quiet<U> {
    type Output = U::Output;
    type Error = U::Error;
    type Future = U::Future;

    fn upgrade_outbound(self, mut stream: Stream, info: U::Info) -> U::Future {
        stream.ignore_for_keep_alive();
        self.0.upgrade_outbound(stream, info)
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = <Inner as ConnectionHandler>::FromBehaviour;
    type ToBehaviour = <Inner as ConnectionHandler>::ToBehaviour;
    type InboundProtocol = Quiet<In>;
    type OutboundProtocol = Quiet<Out>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Quiet<In>> {
        self.0.listen_protocol().map_upgrade(Quiet)
    }

    fn connection_keep_alive(&self) -> bool {
        self.0.connection_keep_alive()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Quiet<Out>, (), Self::ToBehaviour>> {
        self.0.poll(cx).map(|event| event.map_protocol(Quiet))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        self.0.poll_close(cx)
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.0.on_behaviour_event(event);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Quiet<In>, Quiet<Out>>) {
        use ConnectionEvent as Event;
        self.0.on_connection_event(match event {
            Event::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, info }) => {
                Event::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, info })
            }
            Event::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                Event::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info })
            }
            Event::DialUpgradeError(err) => {
                Event::DialUpgradeError(DialUpgradeError { info: err.info, error: err.error })
            }
            Event::ListenUpgradeError(err) => {
                Event::ListenUpgradeError(ListenUpgradeError { info: err.info, error: err.error })
            }
            Event::AddressChange(change) => Event::AddressChange(change),
            Event::LocalProtocolsChange(change) => Event::LocalProtocolsChange(change),
            Event::RemoteProtocolsChange(change) => Event::RemoteProtocolsChange(change),
            // The library may tell of more one day.
            _ => return,
        });
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = gossipsub::Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.0.handle_established_inbound_connection(connection, peer, local, remote).map(Handler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.0.handle_established_outbound_connection(connection, peer, address, role, port).map(Handler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<gossipsub::Event, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}
