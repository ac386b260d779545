//! Counters of the HTTP door: who was refused and why, and its connections.
//!
//! Invariant: labels are words of closed lists, so the number of series is bounded.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::words::words;

words! {
    /// Why the door refuses a request.
    #[derive(Hash, PartialOrd, Ord)]
    pub enum Refused {
        /// No token.
        Missing = "missing",
        /// A token that is unknown, expired or revoked.
        Invalid = "invalid",
        /// A token without the scope.
        Scope = "scope",
        /// A host this server does not answer to.
        Host = "host",
        /// A web page of another origin.
        Origin = "origin",
        /// Requests that come too fast.
        Rate = "rate",
        /// Tokens or keys that cannot be read.
        Unverifiable = "unverifiable",
    }
}

words! {
    /// Why the door closes a connection that its client would have kept.
    #[derive(Hash)]
    pub enum Closed {
        /// Its request did not come in time.
        Late = "late",
        /// It was the one of many that had been of least use.
        Crowded = "crowded",
        /// There was no place for it.
        Full = "full",
        /// It did not complete the TLS handshake.
        Handshake = "handshake",
    }
}

/// The counters of the HTTP door.
#[derive(Debug, Default)]
pub struct Door {
    refusals: Family<[(&'static str, String); 2], Counter>,
    connections: Gauge,
    closed: Family<[(&'static str, String); 1], Counter>,
}

impl Door {
    /// Counts a refused request.
    pub fn refused(&self, status: u16, reason: Refused) {
        let labels = [("status", status.to_string()), ("reason", reason.as_str().to_owned())];
        self.refusals.get_or_create(&labels).inc();
    }

    /// Sets how many connections are open.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Counts a connection that the door closed.
    pub fn closed(&self, reason: Closed) {
        self.closed.get_or_create(&[("reason", reason.as_str().to_owned())]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Requests refused at the door, by status and reason";
        registry.register("http_refusals", help, self.refusals.clone());
        registry.register("http_connections", "Open HTTP connections", self.connections.clone());
        let help = "HTTP connections that the door closed before their clients did";
        registry.register("http_connections_closed", help, self.closed.clone());
    }
}
