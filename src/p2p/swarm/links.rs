//! The peers this node is connected with, and why others are not.
//!
//! Invariants:
//! - a peer is here from its first connection until its last has closed;
//! - what a peer says of itself is cut to its bounds before it is kept.

use std::{
    collections::VecDeque,
    error::Error,
    io,
    time::{Duration, Instant, SystemTime},
};

use libp2p::{
    Multiaddr, PeerId, TransportError,
    core::{ConnectedPoint, transport::timeout::TransportTimeoutError},
    dns, identify,
    swarm::{ConnectionError, ConnectionId, DialError},
};

use crate::p2p::{Cause, Connected, Direction, Link, NetError, Transport, limits, swarm::addresses};

/// One connection with a peer.
pub struct Connection {
    pub id: ConnectionId,
    pub address: Multiaddr,
    pub direction: Direction,
}

/// A connected peer.
pub struct Peering {
    pub connections: Vec<Connection>,
    since: SystemTime,
    pub established: Instant,
    pub took: Duration,
    agent: Option<String>,
    protocol_version: Option<String>,
    protocols: Vec<String>,
    /// Whether this peer has been reported.
    pub announced: bool,
    /// Why this node is closing the connection, if it is.
    pub leaving: Option<Cause>,
    pings_us: VecDeque<u64>,
    missed: u32,
}

impl Connection {
    pub fn new(id: ConnectionId, endpoint: &ConnectedPoint) -> Self {
        let direction = if endpoint.is_dialer() { Direction::Out } else { Direction::In };
        let address = match endpoint {
            ConnectedPoint::Listener { local_addr, send_back_addr } if endpoint.is_relayed() => {
                addresses::circuit(local_addr, send_back_addr)
            }
            ConnectedPoint::Listener { .. } | ConnectedPoint::Dialer { .. } => {
                endpoint.get_remote_address().clone()
            }
        };
        Self { id, address, direction }
    }
}

impl Peering {
    pub fn new(took: Duration, now: Instant) -> Self {
        Self {
            connections: Vec::new(),
            since: SystemTime::now(),
            established: now,
            took,
            agent: None,
            protocol_version: None,
            protocols: Vec::new(),
            announced: false,
            leaving: None,
            pings_us: VecDeque::with_capacity(limits::PINGS_KEPT),
            missed: 0,
        }
    }

    /// Returns the connection to use: the oldest direct one, else the oldest.
    pub fn best(&self) -> Option<&Connection> {
        let direct = |connection: &&Connection| addresses::transport(&connection.address) != Transport::Relay;
        self.connections.iter().find(direct).or_else(|| self.connections.first())
    }

    /// Stores what the peer says of itself. Returns whether anything is new.
    pub fn identify(&mut self, info: &identify::Info) -> bool {
        let agent: String = info.agent_version.chars().take(limits::AGENT_MAX).collect();
        let version: String = info.protocol_version.chars().take(limits::AGENT_MAX).collect();
        let mut protocols: Vec<String> = info.protocols.iter().map(ToString::to_string).collect();
        protocols.sort_unstable();
        protocols.truncate(limits::PROTOCOLS_MAX);
        let new = self.agent.as_ref() != Some(&agent) || self.protocols != protocols;
        self.agent = Some(agent);
        self.protocol_version = Some(version);
        self.protocols = protocols;
        new
    }

    /// Returns the transport of the connection to use.
    pub fn transport(&self) -> Option<Transport> {
        self.best().map(|best| addresses::transport(&best.address))
    }

    /// Returns whether the peer has said that it speaks this protocol.
    pub fn names(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|known| known == protocol)
    }

    /// Returns false if the peer has said what it speaks and this is not among it.
    pub fn speaks(&self, protocol: &str) -> bool {
        self.protocols.is_empty()
            || self.protocols.len() == limits::PROTOCOLS_MAX
            || self.protocols.iter().any(|known| known == protocol)
    }

    pub fn pinged(&mut self, round_trip: Duration) {
        self.missed = 0;
        if self.pings_us.len() == limits::PINGS_KEPT {
            self.pings_us.pop_front();
        }
        self.pings_us.push_back(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts an unanswered ping. Returns whether the connection counts as dead now.
    pub fn missed(&mut self) -> bool {
        self.missed += 1;
        self.missed >= limits::PINGS_MISSED_MAX
    }

    pub fn connected(&self, peer: &PeerId, reused: bool) -> Option<Connected> {
        let best = self.best()?;
        Some(Connected {
            peer: peer.to_base58(),
            address: best.address.to_string(),
            transport: addresses::transport(&best.address),
            direction: best.direction,
            connection_id: best.id.to_string(),
            took: self.took,
            reused,
            agent: self.agent.clone(),
            protocol_version: self.protocol_version.clone(),
            protocols: self.protocols.clone(),
        })
    }

    pub fn link(&self, peer: &PeerId, bytes_in: u64, bytes_out: u64) -> Option<Link> {
        let best = self.best()?;
        Some(Link {
            peer: peer.to_base58(),
            address: best.address.to_string(),
            transport: addresses::transport(&best.address),
            direction: best.direction,
            since: self.since,
            bytes_in,
            bytes_out,
            agent: self.agent.clone(),
            protocols: self.protocols.clone(),
            ping_us: self.pings_us.iter().copied().collect(),
        })
    }
}

/// Returns why an established connection ended that this node did not close on purpose.
pub fn closed(error: Option<&ConnectionError>) -> Cause {
    match error {
        None => Cause::Local,
        Some(ConnectionError::KeepAliveTimeout) => Cause::Idle,
        Some(ConnectionError::IO(err)) => match root(err).kind {
            io::ErrorKind::TimedOut => Cause::Error,
            _ => Cause::Closed,
        },
    }
}

/// Returns why a dial failed, and at which address.
pub fn failed(peer: &PeerId, error: &DialError) -> (Option<Multiaddr>, NetError) {
    let unreachable = |cause, reason: String| NetError::Unreachable { peer: peer.to_base58(), cause, reason };
    match error {
        DialError::NoAddresses => (None, NetError::NoAddress),
        DialError::LocalPeerId { address } => {
            (Some(address.clone()), unreachable(Cause::Address, "is this node itself".to_owned()))
        }
        DialError::WrongPeerId { obtained, address } => {
            (Some(address.clone()), unreachable(Cause::WrongPeer, format!("{obtained} answered")))
        }
        DialError::Denied { cause } => (None, unreachable(Cause::Denied, reason(cause))),
        DialError::Transport(errors) => {
            let Some((address, error)) = errors.last() else {
                return (None, NetError::NoAddress);
            };
            let (cause, reason) = match error {
                TransportError::MultiaddrNotSupported(_) => {
                    (Cause::Address, "no transport for this address".to_owned())
                }
                TransportError::Other(err) => {
                    let root = root(err);
                    let cause = match root.kind {
                        io::ErrorKind::ConnectionRefused => Cause::Refused,
                        io::ErrorKind::TimedOut => Cause::Timeout,
                        io::ErrorKind::Unsupported => Cause::Address,
                        _ => Cause::Error,
                    };
                    (cause, root.text)
                }
            };
            (Some(address.clone()), unreachable(cause, reason))
        }
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => {
            (None, unreachable(Cause::Error, error.to_string()))
        }
    }
}

/// A socket error, found inside the errors of the transports around it.
#[derive(Debug, thiserror::Error)]
#[error("socket failed")]
pub struct Socket(#[source] pub io::Error);

/// Returns the text of the error at the root.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    root(error).text
}

struct Root {
    kind: io::ErrorKind,
    text: String,
}

/// Follows the sources to the first that says more than "other".
fn root(error: &(dyn Error + 'static)) -> Root {
    let mut at = error;
    loop {
        let mut inner = at.source();
        if let Some(err) = at.downcast_ref::<io::Error>() {
            if err.kind() != io::ErrorKind::Other {
                return Root { kind: err.kind(), text: err.to_string() };
            }
            inner = err.get_ref().map(|inner| inner as &(dyn Error + 'static)).or(inner);
        }
        if let Some(TransportTimeoutError::Timeout) = at.downcast_ref::<TransportTimeoutError<io::Error>>() {
            return Root { kind: io::ErrorKind::TimedOut, text: at.to_string() };
        }
        match at.downcast_ref::<dns::Error<io::Error>>() {
            Some(dns::Error::MultiaddrNotSupported(_)) => {
                return Root {
                    kind: io::ErrorKind::Unsupported,
                    text: "no transport for this address".to_owned(),
                };
            }
            Some(dns::Error::Dial(tried)) => inner = tried.last().map(|last| last as &(dyn Error + 'static)),
            Some(_) | None => {}
        }
        match inner {
            Some(inner) => at = inner,
            None => return Root { kind: io::ErrorKind::Other, text: at.to_string() },
        }
    }
}
