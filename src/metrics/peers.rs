//! The network in numbers: who is there, what was asked of whom, and how finding others goes.
//!
//! Invariants:
//! - labels are words of closed lists, so the number of series is bounded;
//! - counters begin with the process.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Labels;

/// The methods that requests are counted by; any other is `other`.
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

/// A request from a peer or to one.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `in` or `out`.
    pub direction: &'static str,
    /// As it was asked for: what is not of a closed list is counted as `other`.
    pub method: &'a str,
    /// Whether the configuration has an entry of the peer.
    pub known: bool,
}

/// The series of the network.
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

    /// Shows how many peers stand so.
    pub fn standing(&self, status: &'static str, peers: u64) {
        let peers = i64::try_from(peers).unwrap_or(i64::MAX);
        self.peers.get_or_create(&[("status", status.to_owned())]).set(peers);
    }

    /// Shows how many logs are followed so.
    pub fn followed(&self, status: &'static str, logs: u64) {
        let logs = i64::try_from(logs).unwrap_or(i64::MAX);
        self.followed.get_or_create(&[("status", status.to_owned())]).set(logs);
    }

    /// Counts a request.
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

    /// Counts a stream: `in` or `out`, and what it carries.
    pub fn stream(&self, direction: &'static str, wire: &'static str) {
        self.streams.get_or_create(&[("direction", direction.to_owned()), ("wire", wire.to_owned())]).inc();
    }

    /// Counts what one source came to when it was searched: `ok` or `failed`.
    pub fn searched(&self, source: &'static str, ok: bool) {
        let labels = [("source", source.to_owned()), ("outcome", outcome(ok))];
        self.discovery.get_or_create(&labels).inc();
    }

    /// Counts a bootstrap that ended.
    pub fn bootstrapped(&self, ready: bool) {
        self.bootstrap.get_or_create(&[("outcome", outcome(ready))]).inc();
    }
}

fn outcome(ok: bool) -> String {
    if ok { "ok" } else { "failed" }.to_owned()
}
