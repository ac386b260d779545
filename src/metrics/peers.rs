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

/// The series of the network.
#[derive(Debug, Default)]
pub struct Peers {
    peers: Family<Labels<1>, Gauge>,
    requests: Family<Labels<2>, Counter>,
    discovery: Family<Labels<2>, Counter>,
    bootstrap: Family<Labels<1>, Counter>,
}

impl Peers {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("peers", "Peers by status", self.peers.clone());
        let help = "Requests from peers (in) and to them (out), by outcome";
        registry.register("peer_requests", help, self.requests.clone());
        let help = "Searches for peers, by source and outcome";
        registry.register("discovery", help, self.discovery.clone());
        registry.register("bootstrap", "Bootstraps, by outcome", self.bootstrap.clone());
    }

    /// Shows how many peers stand so.
    pub fn standing(&self, status: &'static str, peers: u64) {
        let peers = i64::try_from(peers).unwrap_or(i64::MAX);
        self.peers.get_or_create(&[("status", status.to_owned())]).set(peers);
    }

    /// Counts a request: `in`, `taken`, `refused` or `limited`; or `out`, `ok` or `failed`.
    pub fn request(&self, direction: &'static str, outcome: &'static str) {
        let labels = [("direction", direction.to_owned()), ("outcome", outcome.to_owned())];
        self.requests.get_or_create(&labels).inc();
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
