//! The facts of other nodes: who was found, who was connected, what was measured, what was asked of them.
//!
//! Invariants:
//! - a peer's name and addresses are text as libp2p writes them; what they mean is not decided here;
//! - what was not measured is left out of the map; nothing stands for it.

use serde::{Deserialize, Serialize};

use crate::block::Cid;

/// Addresses of one peer.
pub const ADDRS_MAX: usize = 16;
/// Bytes of one address.
pub const ADDR_MAX: usize = 256;
/// Capabilities of one peer, and their bytes.
pub const CAPABILITIES_MAX: usize = 256;
pub const CAPABILITIES_BYTES_MAX: usize = 8 * 1024;
/// Protocols of one peer.
pub const PROTOCOLS_MAX: usize = 32;
/// Attempts that a bootstrap tells of.
pub const ATTEMPTS_MAX: usize = 64;

/// Where a peer was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Dht,
    Mdns,
    File,
    Github,
    /// An address that was given to start from.
    Bootstrap,
    /// The configuration's own list of peers.
    Configured,
    /// What the peer itself said over a connection.
    Connection,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Quic,
    /// Through another peer.
    Relay,
}

/// Who dialled whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The peer dialled this node.
    In,
    /// This node dialled the peer.
    Out,
}

/// Why a peer is no longer connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parting {
    /// The peer closed it.
    Closed,
    /// This node was asked to.
    Local,
    /// Nothing used it for too long.
    Idle,
    Error,
    /// This node stopped.
    Stopped,
}

/// Whether this node can be reached from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    Public,
    Private,
    #[default]
    Unknown,
}

/// A peer was heard of for the first time, or is known by other addresses or capabilities, or is heard of again after
/// a long silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDiscovered {
    pub source: Source,
    pub addrs: Vec<String>,
    /// None where the source does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// There is a connection with the peer, where there was none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConnected {
    pub address: String,
    pub transport: Transport,
    pub direction: Direction,
    /// The process that holds it: connections of a process that has ended have ended.
    pub runner: String,
    /// From the first dial, where this node dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// The software it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
}

/// The last connection with the peer has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDisconnected {
    pub cause: Parting,
}

/// The peer was dialled in vain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerUnreachable {
    pub address: String,
    /// A short code: `timeout`, `refused`, `wrong_peer`, ...
    pub cause: String,
    pub attempts: u64,
}

/// What happened over the connections with a peer since the last measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerMeasured {
    pub window_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p50_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p99_us: Option<u64>,
    /// Pings that the latencies are of.
    pub samples: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The peer's requests that this node answered.
    pub served: u64,
    /// This node's requests.
    pub sent: u64,
    /// Those of `sent` that ended without an answer.
    pub failures: u64,
    pub connected_ms: u64,
}

/// The peer signed two histories of one log. Both signed heads, and the proof that they disagree, are payloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerForked {
    /// The log's genesis.
    pub log: Cid,
    pub origin: String,
    pub size_a: u64,
    pub size_b: u64,
}

/// Somebody looked at what the peer had done, and lets it take part again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReleased {}

/// The node began to look for its first connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapStarted {
    /// Addresses it starts from.
    pub nodes: u64,
    /// Connections that are enough, and that are too many.
    pub min: u64,
    pub max: u64,
    pub timeout_ms: u64,
}

/// One address that a bootstrap tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub address: String,
    /// How it came by the address: `known`, `configured`, `file`, `mdns`, `dht`, ...
    pub method: String,
    pub ok: bool,
    /// A short code, where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    pub took_us: u64,
}

/// The node has its first connections, or gave up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapFinished {
    pub connected: u64,
    pub failed: u64,
    /// Whether there are as many connections as are enough.
    pub ready: bool,
    pub nat: Nat,
    pub took_us: u64,
    /// The first of those it made.
    pub attempts: Vec<Attempt>,
}

/// A call of this node was tried at a peer; the peer's own ending of it is among the refs, where it named one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteCalled {
    pub peer: String,
    pub contract: Cid,
    /// Whether the peer answered, whatever the tool said.
    pub ok: bool,
    /// A short code, where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub took_us: u64,
    /// Why this peer was chosen.
    pub rule: String,
    /// From 1.
    pub attempt: u64,
}

/// Another node's log is kept here as far as its signed head of this size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFollowed {
    pub peer: String,
    /// The log's genesis.
    pub log: Cid,
    pub origin: String,
    pub size: u64,
}
