//! What was measured of one peer: now, as the log stood at an event, and over time.
//!
//! Invariants:
//! - every number was measured or counted, and is in the log; what was not is null;
//! - as of an event, times run to the moment of that event.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{LISTER, network};
use crate::{
    clock::now_ms,
    peer::{Peer, score::ONE},
    query::{QueryError, View, peers::Point, work::At},
    router::Invocation,
    tools::{
        arguments,
        desk::{Desk, Told, seen, told, unknown},
        reading::time,
    },
};

const HISTORY_HOURS: u64 = 24;
const HOUR_MS: u64 = 60 * 60_000;

/// The arguments of `peer_metrics`.
#[derive(Deserialize)]
pub struct AskMetrics {
    peer_id: String,
    #[serde(default)]
    include_history: bool,
    history_hours: Option<u64>,
    as_of_seq: Option<u64>,
}

pub(super) async fn metrics(desk: &Desk, call: &Invocation) -> Told {
    network(desk)?;
    let asked: AskMetrics = arguments(call)?;
    let id = asked.peer_id.clone();
    let shown = desk.ask(move |view| match asked.of(view) {
        Err(QueryError::NotFound(_)) => Ok(None),
        shown => shown.map(Some),
    });
    told(&shown.await?.ok_or_else(|| unknown("peer", &id, LISTER))?)
}

impl AskMetrics {
    /// Returns the measures of the peer that a log holds.
    pub fn of(&self, view: &View) -> Result<Value, QueryError> {
        let At { applied, what: peer } = view.peer(&self.peer_id, self.as_of_seq)?;
        let applied = seen(applied, self.as_of_seq)?;
        let at_ms = match self.as_of_seq {
            Some(seq) => view.recorded_ms(seq)?,
            None => now_ms(),
        };
        let mut shown = json!({
            "peer_id": peer.id,
            "current_metrics": measured(&peer, at_ms),
            "connection_info": connection(&peer),
            "seq": applied,
        });
        if self.include_history {
            let hours = self.history_hours.unwrap_or(HISTORY_HOURS);
            let from_ms = at_ms.saturating_sub(hours * HOUR_MS);
            let points = view.peer_history(&self.peer_id, from_ms, self.as_of_seq)?;
            shown["history"] = points.iter().map(point).collect();
        }
        Ok(shown)
    }
}

/// Returns a peer's metrics at a moment. What was never measured is null.
pub(super) fn measured(peer: &Peer, at_ms: u64) -> Value {
    let counters = &peer.counters;
    let passed = |count: u64| (counters.connected_ms > 0).then_some(count);
    let (p50, p99) = latency(peer);
    json!({
        "latency_ms": {"p50": p50, "p99": p99},
        "bytes_sent": passed(counters.bytes_out),
        "bytes_received": passed(counters.bytes_in),
        "requests_served": passed(counters.served),
        "requests_sent": passed(counters.sent),
        "failures": passed(counters.failures),
        "connection_quality": peer.connection_quality().map(whole),
        "reliability_score": peer.reliability().map(whole),
        "uptime_s": peer.link.as_ref().map(|link| at_ms.saturating_sub(link.since_ms) / 1000),
    })
}

fn connection(peer: &Peer) -> Value {
    let link = peer.link.as_ref();
    json!({
        "status": peer.status.as_str(),
        "multiaddr": link.map(|link| &link.address),
        "transport": link.map(|link| link.transport),
        "direction": link.map(|link| link.direction),
        "connected_since": link.map(|link| time(link.since_ms)),
        "connection_time_ms": link.and_then(|link| link.took_us).map(|us| us / 1000),
        "agent": peer.agent,
        "protocols": peer.protocols,
        "connections": peer.counters.connections,
        "calls": peer.counters.calls,
        "calls_failed": peer.counters.calls_failed,
        "followed": peer.followed.iter().map(|followed| json!({
            "log": followed.log.to_string(),
            "origin": followed.origin,
            "size": followed.size,
        })).collect::<Vec<_>>(),
        "quarantine": peer.quarantine.map(|held| held.event.to_string()),
    })
}

fn point(point: &Point) -> Value {
    let measured = &point.measured;
    json!({
        "time": time(point.at_ms),
        "window_ms": measured.window_ms,
        "latency_ms": {"p50": measured.latency_p50_us.map(milli), "p99": measured.latency_p99_us.map(milli)},
        "bytes_sent": measured.bytes_out,
        "bytes_received": measured.bytes_in,
        "requests_served": measured.served,
        "requests_sent": measured.sent,
        "failures": measured.failures,
        "connected_ms": measured.connected_ms,
    })
}

/// Returns the last measured latencies in milliseconds: the median and the 99th percentile of the pings.
pub(super) fn latency(peer: &Peer) -> (Option<f64>, Option<f64>) {
    let measure = peer.measure.as_ref();
    let of = |us: Option<u64>| us.map(milli);
    (of(measure.and_then(|at| at.latency_p50_us)), of(measure.and_then(|at| at.latency_p99_us)))
}

fn milli(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// Converts parts per million to a share of one.
pub(super) fn whole(ppm: u64) -> f64 {
    ppm as f64 / ONE as f64
}
