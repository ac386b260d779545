//! Metrics: counters and gauges of this process, served as OpenMetrics text for Prometheus.
//!
//! Invariants:
//! - the number of series is bounded: names past a bound share the label `other`;
//! - no rule reads a metric, and all metrics are lost when the process ends. Only the counts in `access` are also
//!   recorded in the log.

pub mod access;
pub mod door;
pub mod peers;
pub mod process;
pub mod work;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::{OnceLock, PoisonError, RwLock, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

/// How many tool names get a series of their own.
const TOOLS_MAX: usize = 1000;
/// How many names of lanes, and of upstreams, get a series of their own.
const NAMES_MAX: usize = 300;
/// The label that stands for every name past its bound.
const OTHER: &str = "other";
/// Histogram bounds in seconds. They start at 100 microseconds, since a recorded call waits for a disk flush, and end
/// at a minute.
const SECONDS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Histogram bounds of events in one commit. One command can seal several events, so they go beyond the largest group
/// of commands.
const GROUP: [f64; 9] = [1.0, 2.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 8192.0, 65_536.0];

type Labels<const N: usize> = [(&'static str, String); N];

/// The metrics of a process, shared by reference. Every method can be called from any thread and never waits for IO.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    tools: Names,
    lanes: Names,
    upstreams: Names,
    calls: Family<Labels<2>, Counter>,
    call_seconds: Family<Labels<2>, Histogram>,
    commit_seconds: Histogram,
    commit_events: Histogram,
    queue_depth: Family<Labels<1>, Gauge>,
    log_events: Gauge<u64, AtomicU64>,
    log_bytes: Gauge<u64, AtomicU64>,
    log_wal_bytes: Gauge<u64, AtomicU64>,
    log_wal_held: Gauge<f64, AtomicU64>,
    sessions: Gauge,
    upstream_up: Family<Labels<1>, Gauge>,
    pub work: work::Work,
    pub peers: peers::Peers,
    pub door: door::Door,
    process: process::Process,
    /// The counts of reads and refusals that are to be recorded in the log.
    pub access: access::Counts,
    /// The registry of libp2p's own metrics, once the network has started.
    network: OnceLock<Registry>,
}

/// The names that have a series, at most `max` of them.
#[derive(Debug)]
struct Names {
    max: usize,
    seen: RwLock<HashSet<String>>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cairn"),
            tools: Names::new(TOOLS_MAX),
            lanes: Names::new(NAMES_MAX),
            upstreams: Names::new(NAMES_MAX),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            commit_seconds: Histogram::new(SECONDS),
            commit_events: Histogram::new(GROUP),
            queue_depth: Family::default(),
            log_events: Gauge::default(),
            log_bytes: Gauge::default(),
            log_wal_bytes: Gauge::default(),
            log_wal_held: Gauge::default(),
            sessions: Gauge::default(),
            upstream_up: Family::default(),
            work: work::Work::default(),
            peers: peers::Peers::default(),
            door: door::Door::default(),
            process: process::Process::default(),
            access: access::Counts::default(),
            network: OnceLock::new(),
        };
        metrics.register();
        metrics
    }

    /// Counts a call that has ended. `outcome` must be from a closed list, since it is a label.
    pub fn call_ended(&self, tool: &str, outcome: &'static str, lane: &str, seconds: f64) {
        let (tool, lane) = (self.tools.bounded(tool), self.lanes.bounded(lane));
        self.call_seconds.get_or_create(&[("tool", tool.clone()), ("lane", lane)]).observe(seconds);
        self.calls.get_or_create(&[("tool", tool), ("outcome", outcome.to_owned())]).inc();
    }

    /// Records one commit: how many events it had, and how long it took.
    pub fn commit(&self, events: usize, seconds: f64) {
        self.commit_events.observe(events as f64);
        self.commit_seconds.observe(seconds);
    }

    /// Sets how many items wait in a queue: the ledger's, or a lane's.
    pub fn queue_depth(&self, queue: &str, waiting: usize) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.queue_depth.get_or_create(&[("queue", self.lanes.bounded(queue))]).set(waiting);
    }

    pub fn log_size(&self, events: u64, bytes: u64) {
        self.log_events.set(events);
        self.log_bytes.set(bytes);
    }

    /// Sets the size of the log's write-ahead file, and for how many seconds a reader has kept SQLite from restarting
    /// it.
    pub fn log_wal(&self, bytes: u64, held_seconds: f64) {
        self.log_wal_bytes.set(bytes);
        self.log_wal_held.set(held_seconds);
    }

    pub fn sessions(&self, open: usize) {
        self.sessions.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    pub fn upstream_up(&self, name: &str, up: bool) {
        self.upstream_up.get_or_create(&[("upstream", self.upstreams.bounded(name))]).set(up.into());
    }

    /// Adds libp2p's own metrics to what is served. Only the first call has an effect, since a process has one network.
    pub fn network(&self, registry: Registry) {
        let _ = self.network.set(registry);
    }

    /// Returns all metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        self.process.read();
        let registries = [Some(&self.registry), Some(&self.process.registry), self.network.get()];
        for registry in registries.into_iter().flatten() {
            text::encode_registry(&mut text, registry).expect("writing to a string cannot fail");
        }
        text::encode_eof(&mut text).expect("writing to a string cannot fail");
        text
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("calls", "Calls that ended, by outcome", self.calls.clone());
        registry.register_with_unit(
            "call",
            "From a call's start to its end",
            Unit::Seconds,
            self.call_seconds.clone(),
        );
        registry.register_with_unit(
            "commit",
            "From the first event of a commit to its durability",
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        registry.register("commit_events", "Events that shared one commit", self.commit_events.clone());
        registry.register("queue_depth", "What waits in a queue", self.queue_depth.clone());
        registry.register("log_events", "Events in the log", self.log_events.clone());
        registry.register_with_unit("log", "Size of the log on disk", Unit::Bytes, self.log_bytes.clone());
        let help = "Size of the log's write-ahead file on disk";
        registry.register_with_unit("log_wal", help, Unit::Bytes, self.log_wal_bytes.clone());
        let help = "How long a reader has kept the write-ahead file from beginning anew";
        registry.register_with_unit("log_wal_held", help, Unit::Seconds, self.log_wal_held.clone());
        registry.register("sessions", "Open sessions", self.sessions.clone());
        registry.register("upstream_up", "1 while an upstream can be called", self.upstream_up.clone());
        self.work.register(registry);
        self.peers.register(registry);
        self.door.register(registry);
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("p2p", if cfg!(feature = "p2p") { "yes" } else { "no" }),
        ]);
        registry.register("build", "The program that runs", build);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Names {
    fn new(max: usize) -> Self {
        Self { max, seen: RwLock::default() }
    }

    /// Returns the name itself, or [`OTHER`] if the bound was reached before this name was first seen.
    fn bounded(&self, name: &str) -> String {
        let known = |seen: &HashSet<String>| seen.contains(name);
        if known(&self.seen.read().unwrap_or_else(PoisonError::into_inner)) {
            return name.to_owned();
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= self.max && !known(&seen) {
            return OTHER.to_owned();
        }
        seen.insert(name.to_owned());
        name.to_owned()
    }
}
