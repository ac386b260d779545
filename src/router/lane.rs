//! Lanes: where tools run, each with its own concurrency, queue and time.
//!
//! Invariants:
//! - at most `concurrency` run and `queue` wait in a lane; what exceeds that is refused at once, never lost;
//! - a lane that this build cannot run is named and refused with a clear reason.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// The async tools of this node.
pub const BUILTIN: &str = "builtin";
/// Tools that keep a processor busy: a pool of threads beside the async ones.
pub const BLOCKING: &str = "blocking";
/// MCP servers behind this one.
pub const UPSTREAM: &str = "upstream";

/// Lanes that exist by name and need a runtime this build does not have.
const ABSENT: &[&str] = &["worker", "peer", "wasm"];

/// The bounds of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub concurrency: usize,
    pub queue: usize,
    pub timeout: Duration,
}

pub struct Lane {
    pub name: String,
    pub bounds: Bounds,
    permits: Semaphore,
    waiting: AtomicUsize,
}

/// A place in a lane's queue. Dropping it leaves the queue.
pub struct Place<'a> {
    lane: &'a Lane,
}

/// Every lane of this node, by name.
pub struct Lanes(HashMap<String, Arc<Lane>>);

impl Lanes {
    /// The usual lanes with these changes; lanes of other names are added.
    pub fn new(
        changes: impl IntoIterator<Item = (String, Option<usize>, Option<usize>, Option<Duration>)>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let bounds = |concurrency, queue, seconds| Bounds {
            concurrency,
            queue,
            timeout: Duration::from_secs(seconds),
        };
        let mut lanes = HashMap::from([
            (BUILTIN.to_owned(), bounds(1_024, 8_192, 60)),
            (BLOCKING.to_owned(), bounds(cores, 1_024, 300)),
            (UPSTREAM.to_owned(), bounds(256, 8_192, 60)),
        ]);
        for (name, concurrency, queue, timeout) in changes {
            let lane = lanes.entry(name).or_insert_with(|| bounds(256, 8_192, 60));
            lane.concurrency = concurrency.unwrap_or(lane.concurrency);
            lane.queue = queue.unwrap_or(lane.queue);
            lane.timeout = timeout.unwrap_or(lane.timeout);
        }
        Self(
            lanes
                .into_iter()
                .map(|(name, bounds)| (name.clone(), Arc::new(Lane::new(name, bounds))))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<Arc<Lane>> {
        self.0.get(name).cloned()
    }

    /// Whether a tool may be put in a lane of this name, even if it cannot run there yet.
    pub fn known(&self, name: &str) -> bool {
        self.0.contains_key(name) || ABSENT.contains(&name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.0.values()
    }
}

impl Lane {
    fn new(name: String, bounds: Bounds) -> Self {
        let permits = Semaphore::new(bounds.concurrency.clamp(1, Semaphore::MAX_PERMITS));
        Self {
            name,
            bounds,
            permits,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Takes a place in the queue; none where it is full.
    pub fn join(&self) -> Option<Place<'_>> {
        let limit = self.bounds.queue + self.bounds.concurrency;
        let joined = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then_some(n + 1)
            });
        joined.ok().map(|_| Place { lane: self })
    }

    /// Calls that wait or run here.
    pub fn load(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

impl Place<'_> {
    /// Waits for the right to run, first come first served.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.lane
            .permits
            .acquire()
            .await
            .expect("a lane's semaphore is never closed")
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lane.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
