//! Streams of this node's own protocols: negotiated, counted, handed out.
//!
//! Invariants:
//! - an inbound stream is in the queue or reset and counted; none waits elsewhere;
//! - streams are opened side by side, each with its own answer;
//! - no peer holds more than its share of inbound streams;
//! - a peer that is to be kept holds its connections, whatever they carry;
//! - a peer that was let go is not dialled by any part of the swarm until it is asked for again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    fmt, future, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, InboundUpgrade, UpgradeInfo, transport::PortUse, upgrade::ReadyUpgrade},
    futures::{AsyncRead as _, AsyncWrite as _},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamProtocol, StreamUpgradeError, SubstreamProtocol, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::{
    io::ReadBuf,
    sync::{mpsc, oneshot},
};

use crate::p2p::{Inbound, NetError, Stream, Wire, limits};

type Answer = oneshot::Sender<Result<Stream, NetError>>;

/// What passed between this node and one peer since they connected.
#[derive(Debug, Default)]
pub struct Traffic {
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    /// Inbound streams that are open.
    held: AtomicUsize,
    /// Whether idle connections with the peer are kept.
    kept: AtomicBool,
}

/// Opens and accepts the streams of this node's protocols. It replaces `libp2p-stream`, which drops inbound streams
/// that come in bursts and opens outbound ones one after another.
pub struct Behaviour {
    inbound: mpsc::Sender<Inbound>,
    refused: Arc<AtomicU64>,
    peers: HashMap<PeerId, Arc<Traffic>>,
    left: HashSet<PeerId>,
    kept: HashSet<PeerId>,
    wishes: VecDeque<(PeerId, ConnectionId, Wish)>,
    waker: Option<Waker>,
}

impl Behaviour {
    pub fn new(inbound: mpsc::Sender<Inbound>, refused: Arc<AtomicU64>) -> Self {
        Self {
            inbound,
            refused,
            peers: HashMap::new(),
            left: HashSet::new(),
            kept: HashSet::new(),
            wishes: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream on this connection; the answer comes when it is negotiated.
    pub fn open(&mut self, peer: PeerId, connection: ConnectionId, wire: Wire, answer: Answer) {
        self.wishes.push_back((peer, connection, Wish { wire, answer }));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub fn traffic(&self, peer: &PeerId) -> Option<&Traffic> {
        self.peers.get(peer).map(Arc::as_ref)
    }

    /// Forbids every part of the swarm to dial a peer, until [`Behaviour::seek`].
    pub fn leave(&mut self, peer: PeerId) {
        if self.left.len() < limits::LEFT_MAX {
            self.left.insert(peer);
        }
    }

    pub fn seek(&mut self, peer: &PeerId) {
        self.left.remove(peer);
    }

    /// Sets the peers whose idle connections are kept.
    pub fn keep(&mut self, peers: HashSet<PeerId>) {
        self.kept = peers;
        for (peer, traffic) in &self.peers {
            traffic.kept.store(self.kept.contains(peer), Relaxed);
        }
    }

    fn wanted(&self, peer: &PeerId) -> Result<(), ConnectionDenied> {
        if self.left.contains(peer) { Err(ConnectionDenied::new(LetGo)) } else { Ok(()) }
    }

    fn handler(&mut self, peer: PeerId) -> Handler {
        let traffic = self.peers.entry(peer).or_default();
        traffic.kept.store(self.kept.contains(&peer), Relaxed);
        Handler {
            peer,
            traffic: Arc::clone(traffic),
            inbound: self.inbound.clone(),
            refused: Arc::clone(&self.refused),
            wishes: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        peer.map_or(Ok(()), |peer| self.wanted(&peer))?;
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // It may have been let go while it was dialled.
        self.wanted(&peer)?;
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ConnectionClosed(closed) = event
            && closed.remaining_established == 0
        {
            self.peers.remove(&closed.peer_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some((peer_id, connection, event)) = self.wishes.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event,
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[derive(Debug, thiserror::Error)]
#[error("peer was let go")]
struct LetGo;

/// A request for a stream.
pub struct Wish {
    wire: Wire,
    answer: Answer,
}

impl fmt::Debug for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wish({:?})", self.wire)
    }
}

/// The streams of one connection.
pub struct Handler {
    peer: PeerId,
    traffic: Arc<Traffic>,
    inbound: mpsc::Sender<Inbound>,
    refused: Arc<AtomicU64>,
    wishes: VecDeque<Wish>,
}

impl Handler {
    fn take(&self, stream: libp2p::Stream, wire: Wire) {
        let held = Held::new(&self.traffic);
        if held.number <= limits::STREAMS_PER_PEER_MAX {
            let stream = Counted { stream, traffic: Arc::clone(&self.traffic), _held: Some(held) };
            let inbound = Inbound { peer: self.peer.to_base58(), wire, stream: Box::new(stream) };
            if self.inbound.try_send(inbound).is_ok() {
                return;
            }
        }
        // Dropping a stream resets it, so the peer learns at once.
        self.refused.fetch_add(1, Relaxed);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Wish;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyWire;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Answer;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyWire> {
        SubstreamProtocol::new(AnyWire, ()).with_timeout(limits::OPEN_MAX)
    }

    fn connection_keep_alive(&self) -> bool {
        self.traffic.kept.load(Relaxed)
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Answer, Infallible>> {
        let Some(Wish { wire, answer }) = self.wishes.pop_front() else {
            return Poll::Pending;
        };
        let upgrade = ReadyUpgrade::new(StreamProtocol::new(wire.protocol()));
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(upgrade, answer).with_timeout(limits::OPEN_MAX),
        })
    }

    fn on_behaviour_event(&mut self, wish: Wish) {
        if self.wishes.len() < limits::OPENING_MAX {
            self.wishes.push_back(wish);
        } else {
            // Who no longer waits for the answer does not miss it.
            let _ = wish.answer.send(Err(NetError::Busy));
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, AnyWire, ReadyUpgrade<StreamProtocol>, (), Answer>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.take(protocol.0, protocol.1);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                let stream = Counted { stream: protocol, traffic: Arc::clone(&self.traffic), _held: None };
                let _ = info.send(Ok(Box::new(stream)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => NetError::Timeout(limits::OPEN_MAX),
                    error => NetError::Stream { reason: error.to_string() },
                };
                let _ = info.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Any protocol of this node, as the peer proposes.
#[derive(Clone, Copy, Debug)]
pub struct AnyWire;

impl UpgradeInfo for AnyWire {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; Wire::ALL.len()];

    fn protocol_info(&self) -> Self::InfoIter {
        Wire::ALL.map(|wire| StreamProtocol::new(wire.protocol()))
    }
}

impl<S> InboundUpgrade<S> for AnyWire {
    type Output = (S, Wire);
    type Error = Infallible;
    type Future = future::Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: S, protocol: StreamProtocol) -> Self::Future {
        let wire = Wire::ALL.into_iter().find(|wire| wire.protocol() == protocol.as_ref());
        future::ready(Ok((stream, wire.expect("only names from `protocol_info` are negotiated"))))
    }
}

/// A peer's share of inbound streams, given back on drop.
struct Held {
    traffic: Arc<Traffic>,
    number: usize,
}

impl Held {
    fn new(traffic: &Arc<Traffic>) -> Self {
        let number = traffic.held.fetch_add(1, Relaxed) + 1;
        Self { traffic: Arc::clone(traffic), number }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.traffic.held.fetch_sub(1, Relaxed);
    }
}

/// A stream whose bytes are counted.
struct Counted {
    stream: libp2p::Stream,
    traffic: Arc<Traffic>,
    /// Of an inbound stream: its place in the peer's share.
    _held: Option<Held>,
}

impl tokio::io::AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        self.traffic.bytes_in.fetch_add(read as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.traffic.bytes_out.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
