//! Every bound of the network, each with its reason.
//!
//! Invariants:
//! - nothing a peer sends or asks for is kept without one of these bounds;
//! - the bounds hold whatever the configuration says; it may only ask for less.

use std::{num::NonZeroUsize, time::Duration};

/// The table that nodes of this kind share; never the public one.
pub const DHT_PROTOCOL: &str = "/cairn/kad/1.0.0";

/// Wishes to the network that wait for their turn: one turn of the loop takes them all.
pub const COMMANDS_MAX: usize = 256;
/// Inbound streams that wait to be taken: bursts of some hundred come when a peer fans out.
pub const INBOUND_MAX: usize = 512;
/// Events a slow listener may fall behind before it is told that it missed some.
pub const EVENTS_MAX: usize = 1024;
/// Heads a slow listener may fall behind.
pub const HEADS_MAX: usize = 256;

/// Connections with all peers, unless configured.
pub const CONNECTIONS_DEFAULT: u32 = 64;
/// Connections with one peer: hole punching needs the relayed and the direct one side by side.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 2;
/// Half-open connections, so that those who never finish a handshake cannot hold all memory.
pub const PENDING_IN_MAX: u32 = 64;
/// Dials under way.
pub const PENDING_OUT_MAX: u32 = 64;
/// Peers that are being dialled on request.
pub const DIALS_MAX: usize = 256;
/// Requests that wait for one peer.
pub const WAITERS_MAX: usize = 256;
/// How long the handshakes of a connection may take. A peer that asks to be dialled back waits 10 s for the result,
/// so a router that drops the dial silently must be noticed before that.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(8);
/// A connection without streams is closed after this, unless configured.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(300);
/// The share of the machine's memory above which no connection is accepted: the last resort.
pub const MEMORY_SHARE_MAX: f64 = 0.9;

/// Addresses under which this node is said to be seen from outside.
pub const SEEN_MAX: usize = 64;

/// Streams that one peer may hold open towards this node.
pub const STREAMS_PER_PEER_MAX: usize = 256;
/// Streams of both sides on one QUIC connection, those of the network's own protocols among them.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Streams of both sides on one TCP connection. They share windows of 1 GiB, 256 KiB of it sure to each, and a busy
/// stream may take what is left over. Other makes send all that a window has room for as one frame, and a frame of
/// yamux over 1 MiB ends the connection: so what is left over is just what makes one window of 256 KiB one of 1 MiB.
pub const STREAMS_PER_TCP_MAX: usize = 4096 - 3;
/// Inbound streams of a connection that have not yet said what they carry.
pub const STREAMS_NEGOTIATING_MAX: usize = 256;
/// Requests for a stream that may wait on one connection.
pub const OPENING_MAX: usize = 512;
/// How long the negotiation of one stream may take.
pub const OPEN_MAX: Duration = Duration::from_secs(10);

/// How long a new connection waits for the peer's identification before it is reported without.
pub const IDENTIFY_WAIT: Duration = Duration::from_secs(3);
/// Addresses kept of one peer: what one event may carry.
pub const ADDRESSES_PER_PEER_MAX: usize = 16;
/// Protocols kept of one peer.
pub const PROTOCOLS_MAX: usize = 32;
/// Characters kept of what a peer says of its software.
pub const AGENT_MAX: usize = 128;
/// Peers whose addresses are kept beyond their connection.
pub const BOOK_MAX: usize = 4096;
/// Peers that were let go and are not dialled until asked for again.
pub const LEFT_MAX: usize = 4096;

/// Round trips kept of one peer.
pub const PINGS_KEPT: usize = 128;
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
pub const PING_TIMEOUT: Duration = Duration::from_secs(6);
/// Unanswered pings in a row after which a connection counts as dead; libp2p reports none before the second. A peer
/// that hangs is disconnected after half a minute.
pub const PINGS_MISSED_MAX: u32 = 2;

/// Lookups in the table under way at once.
pub const QUERIES_MAX: usize = 256;
/// How long one lookup in the table may take.
pub const QUERY_MAX: Duration = Duration::from_secs(30);
/// How long the lookup of this node's own id may take.
pub const WALK_MAX: Duration = Duration::from_secs(60);
/// Own keys are published again this long after a new node came near, so that many newcomers cost one round.
pub const TELL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Nodes that keep a record, and that one lookup ends with. The public table takes 20 because its nodes come and
/// go by the hour; a walk costs this many dials for each distance.
pub const REPLICATION: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");
/// Own keys that are published at once.
pub const TOLD_AT_ONCE: usize = 32;
/// Providers of one key that are returned.
pub const PROVIDERS_MAX: usize = 20;
/// Keys that this node may provide at once.
pub const PROVIDED_MAX: usize = 4096;
/// Provider records kept for others.
pub const RECORDS_MAX: usize = 16_384;
/// Provider records kept for one other peer, so that none can fill the table.
pub const RECORDS_PER_PEER_MAX: usize = 1024;
/// How long a provider record is valid without being published again, unless configured.
pub const RECORD_TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// The whole table is walked again after this; more often costs a thousand messages for nothing.
pub const DHT_REFRESH: Duration = Duration::from_secs(600);
/// Nodes that start together spread their first lookups over this.
pub const DHT_STAGGER: Duration = Duration::from_millis(500);

/// Bytes of one gossip message; a signed head takes some hundred.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
pub const HEADS_TOPIC: &str = "/cairn/heads/1";

/// One relayed circuit of this node as a relay: long and large enough for calls and a log, not only for a punch.
pub const CIRCUIT_TIME_MAX: Duration = Duration::from_secs(3600);
pub const CIRCUIT_BYTES_MAX: u64 = 1 << 30;
pub const CIRCUITS_MAX: usize = 64;
/// The pause before a relay reservation is asked for again; it doubles up to the longest.
pub const RESERVE_FIRST: Duration = Duration::from_secs(2);
pub const RESERVE_MAX: Duration = Duration::from_secs(300);
/// A listener that was lost is tried again after this.
pub const RELISTEN_AFTER: Duration = Duration::from_secs(30);
/// How often timers are looked at.
pub const SWEEP_EVERY: Duration = Duration::from_millis(250);
