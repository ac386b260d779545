//! Facts about other nodes: who was found, connected or measured, and what was asked of them.
//!
//! Invariants:
//! - peer ids and addresses are text as libp2p writes them, and are not parsed here;
//! - what was not measured is left out of the map.

use serde::{Deserialize, Serialize};

use crate::block::Cid;

/// An event lists at most this many addresses of a peer.
pub const ADDRS_MAX: usize = 16;
/// An address has at most this many bytes.
pub const ADDR_MAX: usize = 256;
/// An event lists at most this many capabilities of a peer. Together they have at most [`CAPABILITIES_BYTES_MAX`]
/// bytes.
pub const CAPABILITIES_MAX: usize = 256;
pub const CAPABILITIES_BYTES_MAX: usize = 8 * 1024;
/// An event lists at most this many protocols of a peer.
pub const PROTOCOLS_MAX: usize = 32;
/// A `bootstrap.finished` lists at most this many attempts.
pub const ATTEMPTS_MAX: usize = 64;

/// Says how this node learned of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Dht,
    Mdns,
    File,
    Github,
    /// The address was given as one to start from.
    Bootstrap,
    /// The configuration lists the peer.
    Configured,
    /// The peer said it over a connection.
    Connection,
}

/// Says what carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Quic,
    /// The connection goes through a relay peer.
    Relay,
}

/// Says who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The peer dialled this node.
    In,
    /// This node dialled the peer.
    Out,
}

/// Says why a peer is no longer connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parting {
    /// The peer closed the connection.
    Closed,
    /// This node closed the connection on purpose.
    Local,
    /// The connection was not used for too long.
    Idle,
    Error,
    /// This node stopped.
    Stopped,
}

/// Says whether this node can be reached from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    Public,
    Private,
    #[default]
    Unknown,
}

/// A peer was heard of for the first time or after a long silence, or its addresses or capabilities changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDiscovered {
    pub source: Source,
    pub addrs: Vec<String>,
    /// None if the source does not state them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// There is a connection to the peer, and there was none before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConnected {
    pub address: String,
    pub transport: Transport,
    pub direction: Direction,
    /// Identifies the process that holds the connection. Once it has ended, so has the connection.
    pub runner: String,
    /// Microseconds from the first dial, if this node dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// The name and version of the peer's software, as the peer states them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<String>,
}

/// The last connection to the peer has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDisconnected {
    pub cause: Parting,
}

/// All dials to the peer failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerUnreachable {
    pub address: String,
    /// States the reason as a short code, such as `timeout`, `refused` or `wrong_peer`.
    pub cause: String,
    pub attempts: u64,
}

/// Sums up the connections to a peer since the last measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerMeasured {
    pub window_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p50_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_p99_us: Option<u64>,
    /// Counts the pings from which the latencies are.
    pub samples: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Counts the peer's requests that this node answered.
    pub served: u64,
    /// Counts this node's requests to the peer.
    pub sent: u64,
    /// Counts those of `sent` that were not answered.
    pub failures: u64,
    pub connected_ms: u64,
}

/// The peer signed two histories of one log. Both signed heads and the proof of their disagreement are payloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerForked {
    /// The CID of the log's genesis block.
    pub log: Cid,
    pub origin: String,
    pub size_a: u64,
    pub size_b: u64,
}

/// Somebody looked at the evidence of a fork and lets the peer take part again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReleased {}

/// The node began to look for its first connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapStarted {
    /// Counts the addresses that it starts from.
    pub nodes: u64,
    /// The number of connections that suffice. More than `max` are too many.
    pub min: u64,
    pub max: u64,
    pub timeout_ms: u64,
}

/// Records one address that a bootstrap tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub address: String,
    /// Says how the node knew the address: `known`, `configured`, `file`, `mdns`, `dht`, ...
    pub method: String,
    pub ok: bool,
    /// States the reason of a failure as a short code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    pub took_us: u64,
}

/// The node has its first connections, or gave up looking for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapFinished {
    pub connected: u64,
    pub failed: u64,
    /// Says whether enough connections exist.
    pub ready: bool,
    pub nat: Nat,
    pub took_us: u64,
    /// Holds the first attempts, at most [`ATTEMPTS_MAX`].
    pub attempts: Vec<Attempt>,
}

/// A call of this node was tried at a peer. If the peer named its own ending of the call, it is among the refs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteCalled {
    pub peer: String,
    pub contract: Cid,
    /// Says whether the peer answered, even if the tool failed.
    pub ok: bool,
    /// States the reason as a short code, if the peer did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    pub took_us: u64,
    /// Names the rule that chose this peer.
    pub rule: String,
    /// Counts the attempts at this call, from 1.
    pub attempt: u64,
}

/// Another node's log is stored here up to its signed head of this size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFollowed {
    pub peer: String,
    /// The CID of the log's genesis block.
    pub log: Cid,
    pub origin: String,
    pub size: u64,
}
