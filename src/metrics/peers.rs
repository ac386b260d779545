//! Metrics of the network: peers by status, requests and streams, discovery and followed logs.
//!
//! Invariants:
//! - labels are words of closed lists, so the number of series is bounded;
//! - counters start at zero with the process.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Labels;

/// The MCP methods that are counted by name; any other is counted as `other`.
const METHODS: [&str; 8] = [
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "tools/call",
    "prompts/get",
    "resources/read",
    "subscriptions/listen",
];

/// A request that a peer made, or that was made to a peer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `in` for a request from a peer, `out` for one to a peer.
    pub direction: &'static str,
    /// The method as requested. It may be any text, since `METHODS` bounds the label.
    pub method: &'a str,
    /// Whether the peer has an entry in the configuration.
    pub known: bool,
}

/// The metrics of the network.
#[derive(Debug, Default)]
pub struct Peers {
    peers: Family<Labels<1>, Gauge>,
    requests: Family<Labels<4>, Counter>,
    streams: Family<Labels<2>, Counter>,
    discovery: Family<Labels<2>, Counter>,
    bootstrap: Family<Labels<1>, Counter>,
    followed: Family<Labels<1>, Gauge>,
}

impl Peers {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("peers", "Peers by status", self.peers.clone());
        let help = "Requests from peers (in) and to them (out), by method, class of peer and outcome";
        registry.register("peer_requests", help, self.requests.clone());
        let help = "Streams that peers opened (in) and that were opened to them (out), by what they carry";
        registry.register("peer_streams", help, self.streams.clone());
        let help = "Searches for peers, by source and outcome";
        registry.register("discovery", help, self.discovery.clone());
        registry.register("bootstrap", "Bootstraps, by outcome", self.bootstrap.clone());
        registry.register("followed", "Followed logs by how that goes", self.followed.clone());
    }

    /// Sets how many peers have this status.
    pub fn standing(&self, status: &'static str, peers: u64) {
        let peers = i64::try_from(peers).unwrap_or(i64::MAX);
        self.peers.get_or_create(&[("status", status.to_owned())]).set(peers);
    }

    /// Sets how many followed logs have this status.
    pub fn followed(&self, status: &'static str, logs: u64) {
        let logs = i64::try_from(logs).unwrap_or(i64::MAX);
        self.followed.get_or_create(&[("status", status.to_owned())]).set(logs);
    }

    /// Counts a request that has ended. `outcome` must be from a closed list.
    pub fn request(&self, request: Request<'_>, outcome: &'static str) {
        let method = METHODS.iter().find(|known| **known == request.method).unwrap_or(&"other");
        let labels = [
            ("direction", request.direction.to_owned()),
            ("method", (*method).to_owned()),
            ("class", if request.known { "known" } else { "stranger" }.to_owned()),
            ("outcome", outcome.to_owned()),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts an opened stream by its direction, `in` or `out`, and its protocol.
    pub fn stream(&self, direction: &'static str, wire: &'static str) {
        self.streams.get_or_create(&[("direction", direction.to_owned()), ("wire", wire.to_owned())]).inc();
    }

    /// Counts one search of a discovery source, as `ok` or `failed`.
    pub fn searched(&self, source: &'static str, ok: bool) {
        let labels = [("source", source.to_owned()), ("outcome", outcome(ok))];
        self.discovery.get_or_create(&labels).inc();
    }

    /// Counts a bootstrap that has ended; `ready` says whether enough peers were connected.
    pub fn bootstrapped(&self, ready: bool) {
        self.bootstrap.get_or_create(&[("outcome", outcome(ready))]).inc();
    }
}

fn outcome(ok: bool) -> String {
    if ok { "ok" } else { "failed" }.to_owned()
}
