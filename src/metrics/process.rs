//! What the operating system says of this process, under the names that Prometheus clients share.
//!
//! Invariants:
//! - it is read when it is asked for, from `/proc`; what cannot be read stays as it was;
//! - the names have no prefix of this program, because dashboards know them without one.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

type Float = Gauge<f64, AtomicU64>;
type Whole = Gauge<u64, AtomicU64>;

/// The gauges of the process, in a registry of their own.
#[derive(Debug)]
pub struct Process {
    pub registry: Registry,
    cpu_seconds: Counter<f64, AtomicU64>,
    resident_bytes: Whole,
    virtual_bytes: Whole,
    open_fds: Whole,
    max_fds: Whole,
    started: Float,
    threads: Whole,
}

impl Process {
    pub fn new() -> Self {
        let mut process = Self {
            registry: Registry::with_prefix("process"),
            cpu_seconds: Counter::default(),
            resident_bytes: Gauge::default(),
            virtual_bytes: Gauge::default(),
            open_fds: Gauge::default(),
            max_fds: Gauge::default(),
            started: Gauge::default(),
            threads: Gauge::default(),
        };
        let registry = &mut process.registry;
        let help = "User and system CPU time";
        registry.register_with_unit("cpu", help, Unit::Seconds, process.cpu_seconds.clone());
        let help = "Resident memory";
        registry.register_with_unit("resident_memory", help, Unit::Bytes, process.resident_bytes.clone());
        let help = "Virtual memory";
        registry.register_with_unit("virtual_memory", help, Unit::Bytes, process.virtual_bytes.clone());
        registry.register("open_fds", "Open file descriptors", process.open_fds.clone());
        registry.register("max_fds", "The most file descriptors that may be open", process.max_fds.clone());
        let help = "When the process started, since the Unix epoch";
        registry.register_with_unit("start_time", help, Unit::Seconds, process.started.clone());
        registry.register("threads", "Threads", process.threads.clone());
        process
    }

    /// Reads everything again.
    pub fn read(&self) {
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
            let per_second = clock_ticks_per_second() as f64;
            let cpu = stat.cpu_ticks as f64 / per_second;
            // A counter only grows, and so does this.
            self.cpu_seconds.inner().store(cpu.to_bits(), Ordering::Relaxed);
            self.threads.set(stat.threads);
            self.virtual_bytes.set(stat.virtual_bytes);
            self.resident_bytes.set(stat.resident_pages.saturating_mul(page_size() as u64));
            if let Some(booted) = booted() {
                self.started.set(booted as f64 + stat.start_ticks as f64 / per_second);
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory's own.
            self.open_fds.set((open.count() as u64).saturating_sub(1));
        }
        self.max_fds.set(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
    }
}

impl Default for Process {
    fn default() -> Self {
        Self::new()
    }
}

/// The fields of `/proc/self/stat` that are shown (proc_pid_stat(5)).
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name, in brackets, may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first field here is the third of the file.
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
        Some(Self {
            cpu_ticks: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Returns when the machine started, in seconds since the Unix epoch.
fn booted() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_any_name_is_read() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 1234 8192000 300 18446744073709551615 1";
        let stat = Stat::parse(line).expect("it is read");
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks), (300, 9, 1234));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (8_192_000, 300));
        assert!(Stat::parse("7 (a) S 1").is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_seen() {
        let process = Process::new();
        process.read();
        assert!(process.resident_bytes.get() > 0 && process.open_fds.get() > 2 && process.max_fds.get() > 0);
        assert!(process.started.get() > 1_600_000_000.0);
    }
}
