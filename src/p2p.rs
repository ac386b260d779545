//! Peers: other nodes, found, dialled and spoken to over libp2p.
//!
//! Invariants:
//! - a peer id says who speaks, never what they may do;
//! - one task owns the swarm; all else speaks to it through [`handle::Net`], over bounded channels;
//! - libp2p's types are named in `swarm` only: peers and addresses go in and out as text, checked on entry;
//! - nobody is built in: no public bootstrap node, no public table; others are met through what is configured.

use std::{
    collections::HashSet,
    fmt,
    time::{Duration, SystemTime},
};

use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::{caller::Peer, runtime::upstream::Duplex, words::words};

pub mod bootstrap;
pub mod dialling;
pub mod limits;
pub mod handle;
pub mod discovery;
pub mod hub;
mod swarm;

/// A stream of bytes both ways.
pub type Stream = Box<dyn Duplex>;

words! {
    /// What a stream carries.
    #[derive(Hash)]
    pub enum Wire {
        Mcp = "mcp",
        Log = "log",
    }
}

impl Wire {
    /// The protocol's name in the negotiation of a stream.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Mcp => "/mcp+p2p/1.0.0",
            Self::Log => "/cairn/log/1.0.0",
        }
    }
}

/// A stream that a peer has opened.
pub struct Inbound {
    pub peer: Peer,
    pub wire: Wire,
    pub stream: Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Quic,
    Relay,
}

/// Who has dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    In,
    Out,
}

/// A connection that stands, and what the peer has said of itself by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    pub peer: Peer,
    pub address: String,
    pub transport: Transport,
    pub direction: Direction,
    pub connection_id: String,
    /// From the request to dial until the connection was usable; for an inbound one, the time of its handshakes.
    pub took: Duration,
    /// Whether the connection was there already.
    pub reused: bool,
    pub agent: Option<String>,
    pub protocol_version: Option<String>,
    pub protocols: Vec<String>,
}

words! {
    /// Why a connection ended or never came to be.
    #[derive(Hash)]
    pub enum Cause {
        /// The other side closed it.
        Closed = "closed",
        /// This node was asked to close it.
        Local = "local",
        Idle = "idle",
        Error = "error",
        /// This node is stopping.
        Stopped = "stopped",
        Refused = "refused",
        Timeout = "timeout",
        /// Another peer answered at the address.
        WrongPeer = "wrong_peer",
        /// A list or a limit of this node forbids it.
        Denied = "denied",
        /// No transport for the address, or none known.
        Address = "address",
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What has happened between this node and its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    Found {
        peer: Peer,
        addrs: Vec<String>,
        source: &'static str,
    },
    Connected(Connected),
    /// A peer identified itself, or changed what it says of itself.
    Identified {
        peer: Peer,
        agent: String,
        protocol_version: String,
        protocols: Vec<String>,
        addrs: Vec<String>,
    },
    Disconnected {
        peer: Peer,
        cause: Cause,
    },
    Unreachable {
        peer: Peer,
        address: String,
        cause: Cause,
    },
    /// A limit has turned something away since the last such event; sent once a second at most.
    Limited {
        what: &'static str,
    },
}

/// A peer that claims to serve a key, and where it was last known to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub peer: Peer,
    pub addrs: Vec<String>,
}

/// A signed head that came by gossip. It is passed on only once [`handle::Net::judge`] accepts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Who published it, by their signature on the message.
    pub author: Peer,
    /// Who passed it on to this node.
    pub from: Peer,
    pub bytes: Vec<u8>,
    id: Vec<u8>,
}

/// The verdict on a gossip message (libp2p's message acceptance).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is valid and passed on.
    Accept,
    /// It is invalid: it is not passed on, and counts against the peer that sent it.
    Reject,
}

/// Whether others can reach this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nat {
    Public,
    Private,
    #[default]
    Unknown,
}

/// The network as it stands.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub connections: Vec<Link>,
    /// Global addresses of this node: confirmed by others, configured, told by address services, or at a relay with a
    /// global address.
    pub external: Vec<String>,
    pub nat: Nat,
    pub refused: Refused,
}

/// One connected peer.
#[derive(Clone, Debug)]
pub struct Link {
    pub peer: Peer,
    pub address: String,
    pub transport: Transport,
    pub direction: Direction,
    pub since: SystemTime,
    /// Bytes of this node's streams with the peer since it connected.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub agent: Option<String>,
    pub protocols: Vec<String>,
    /// The last round trips, oldest first.
    pub ping_us: Vec<u64>,
}

/// How much was turned away since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Connections over a limit.
    pub connections: u64,
    /// Connections of peers that a list forbids.
    pub peers: u64,
    /// Streams that came faster than they were taken, or over a peer's share.
    pub streams: u64,
    /// Records of others that the table had no room for.
    pub records: u64,
    /// Heads that came while nobody listened, or too fast.
    pub heads: u64,
}

/// How a node takes part in the network.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The seed of the log's key; the node's own is derived from it.
    pub seed: [u8; 32],
    pub listen: Vec<String>,
    /// External addresses of this node that the operator configured.
    pub external: Vec<String>,
    pub mdns: bool,
    pub dht: bool,
    pub dht_protocol: String,
    /// Whether this node serves others as a relay.
    pub relay: bool,
    /// Peers that may carry connections to this node, where they are relays.
    pub relays: HashSet<Peer>,
    pub upnp: bool,
    /// Peers whose connections do not count towards the limits, so that strangers cannot take their places.
    pub known: HashSet<Peer>,
    pub connections_max: u32,
    /// The share of the machine's memory above which no connection is taken.
    pub memory_share: f64,
    /// How long an idle connection stays open, unless its peer is kept.
    pub idle: Duration,
    /// How long a provider record is valid without being published again.
    pub record_ttl: Duration,
    /// The only peers to connect with; empty allows all.
    pub allow: HashSet<Peer>,
    pub block: HashSet<Peer>,
}

impl Settings {
    /// Settings of a node on loopback that uses the table and nothing else.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            seed,
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            external: Vec::new(),
            mdns: false,
            dht: true,
            dht_protocol: limits::DHT_PROTOCOL.to_owned(),
            relay: false,
            relays: HashSet::new(),
            upnp: false,
            known: HashSet::new(),
            connections_max: limits::CONNECTIONS_DEFAULT,
            memory_share: limits::MEMORY_SHARE_MAX,
            idle: limits::IDLE_DEFAULT,
            record_ttl: limits::RECORD_TTL_DEFAULT,
            allow: HashSet::new(),
            block: HashSet::new(),
        }
    }
}

/// A text that names no peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a peer id: {text}")]
pub struct BadPeer {
    pub text: String,
}

/// Why the network did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    #[error(transparent)]
    BadPeer(#[from] BadPeer),
    #[error("not an address this node can use: {address}: {reason}")]
    BadAddress { address: String, reason: String },
    #[error("not a protocol name: {name}")]
    BadProtocol { name: String },
    #[error("cannot start {what}: {reason}")]
    Start { what: &'static str, reason: String },
    #[error("no address known of this peer")]
    NoAddress,
    #[error("{peer} cannot be reached: {cause}: {reason}")]
    Unreachable { peer: Peer, cause: Cause, reason: String },
    #[error("not connected with {peer}")]
    NotConnected { peer: Peer },
    #[error("{peer} does not speak {protocol}")]
    Unsupported { peer: Peer, protocol: &'static str },
    #[error("stream was not opened: {reason}")]
    Stream { reason: String },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("too much of this kind is under way")]
    Busy,
    #[error("switched off in the configuration: {0}")]
    Off(&'static str),
    #[error("network has stopped")]
    Stopped,
}

impl NetError {
    /// Returns whether another try may succeed.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { cause, .. } => {
                !matches!(cause, Cause::WrongPeer | Cause::Denied | Cause::Address)
            }
            Self::NotConnected { .. } | Self::Stream { .. } | Self::Timeout(_) | Self::Busy => true,
            Self::NoAddress
            | Self::BadPeer(_)
            | Self::BadAddress { .. }
            | Self::BadProtocol { .. }
            | Self::Start { .. }
            | Self::Unsupported { .. }
            | Self::Off(_)
            | Self::Stopped => false,
        }
    }

    #[cfg(test)]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadPeer(_) => "bad_peer",
            Self::BadAddress { .. } => "bad_address",
            Self::BadProtocol { .. } => "bad_protocol",
            Self::Start { .. } => "start",
            Self::NoAddress => "no_address",
            Self::Unreachable { cause, .. } => cause.as_str(),
            Self::NotConnected { .. } => "not_connected",
            Self::Unsupported { .. } => "unsupported",
            Self::Stream { .. } => "stream",
            Self::Timeout(_) => "timeout",
            Self::Busy => "busy",
            Self::Off(_) => "off",
            Self::Stopped => "stopped",
        }
    }
}

/// Returns the peer's id in its canonical text. Errors: the text is no multihash of a public key.
pub fn peer_id(text: &str) -> Result<Peer, BadPeer> {
    swarm::addresses::peer(text).map(|peer| peer.to_base58())
}

/// Checks that a node can listen at the address. Errors: why it cannot.
pub fn can_listen(address: &str) -> Result<(), NetError> {
    swarm::addresses::to_listen(address).map(drop)
}

/// Checks that a node can be dialled at the address, with or without its id at the end. Errors: why it cannot.
pub fn can_dial(address: &str) -> Result<(), NetError> {
    swarm::addresses::to_dial(address).map(drop)
}

/// The id of the node whose log is signed with this seed.
pub fn local_peer(seed: &[u8; 32]) -> Peer {
    swarm::addresses::keypair(seed).public().to_peer_id().to_base58()
}

/// Starts the node's network: its handle, and the streams that peers open.
///
/// The network ends when [`handle::Net::stop`] is called or the last handle is dropped. Needs a tokio runtime.
/// Errors: an address that cannot be read or listened on, a list entry that names no peer.
pub fn start(settings: Settings) -> Result<(handle::Net, mpsc::Receiver<Inbound>), NetError> {
    swarm::start(&settings, None)
}

/// Like [`start`], and counts in `registry` what libp2p does, under names that begin with `libp2p_`.
pub fn start_counted(
    settings: &Settings,
    registry: &mut Registry,
) -> Result<(handle::Net, mpsc::Receiver<Inbound>), NetError> {
    swarm::start(settings, Some(registry))
}

#[cfg(test)]
mod tests;
