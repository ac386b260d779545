//! Lanes: where tools run, each with its own concurrency, queue and time.
//!
//! Invariants:
//! - at most `concurrency` run and `queue` wait in a lane; what exceeds that is refused at once, never lost;
//! - a lane that this build cannot run is named and refused with a clear reason.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::{
    error::{Code, Refusal},
    router::{Invocation, Outcome, Run},
};

/// The async tools of this node.
pub const BUILTIN: &str = "builtin";
/// Tools that keep a processor busy: a pool of threads beside the async ones.
pub const BLOCKING: &str = "blocking";
/// MCP servers behind this one.
pub const UPSTREAM: &str = "upstream";
/// Tools of other nodes.
pub const PEER: &str = "peer";

/// Lanes that exist by name and need a runtime this build does not have.
const ABSENT: &[&str] = &["worker", "wasm"];

/// The bounds of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub concurrency: usize,
    pub queue: usize,
    pub timeout: Duration,
}

pub struct Lane {
    pub name: String,
    queue: Mutex<Queue>,
}

/// Who runs and who waits: higher priority first, first come first served within one.
struct Queue {
    bounds: Bounds,
    /// Places taken: waiting, running, or about to do either.
    places: usize,
    running: usize,
    arrivals: u64,
    waiting: BTreeMap<(Reverse<u8>, u64), oneshot::Sender<()>>,
}

/// A place in a lane. Dropping it leaves the lane.
pub struct LaneTicket {
    pub(super) lane: Arc<Lane>,
}

/// The right to run. Dropping it lets the next one run.
pub struct Turn {
    lane: Arc<Lane>,
}

/// Every lane of this node, by name.
pub struct Lanes(RwLock<HashMap<String, Arc<Lane>>>);

/// What is changed of a lane: its name, its concurrency, its queue and its timeout.
pub type LaneChange = (String, Option<usize>, Option<usize>, Option<Duration>);

impl Lanes {
    /// Makes the default lanes with these changes, and adds the lanes of other names.
    pub fn new(changes: impl IntoIterator<Item = LaneChange>) -> Self {
        let lanes = Self::bounds(changes).into_iter();
        let lanes = lanes.map(|(name, bounds)| (name.clone(), Arc::new(Lane::new(name, bounds))));
        Self(RwLock::new(lanes.collect()))
    }

    /// Gives the lanes other bounds, as [`Lanes::new`] would. Who runs or waits stays where it is; a lane that is not
    /// named any more stays as it is.
    pub fn change(&self, changes: impl IntoIterator<Item = LaneChange>) {
        let mut lanes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (name, bounds) in Self::bounds(changes) {
            match lanes.get(&name) {
                Some(lane) => lane.change(bounds),
                None => drop(lanes.insert(name.clone(), Arc::new(Lane::new(name, bounds)))),
            }
        }
    }

    fn bounds(changes: impl IntoIterator<Item = LaneChange>) -> HashMap<String, Bounds> {
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
            (PEER.to_owned(), bounds(256, 8_192, 60)),
        ]);
        for (name, concurrency, queue, timeout) in changes {
            let lane = lanes.entry(name).or_insert_with(|| bounds(256, 8_192, 60));
            lane.concurrency = concurrency.unwrap_or(lane.concurrency);
            lane.queue = queue.unwrap_or(lane.queue);
            lane.timeout = timeout.unwrap_or(lane.timeout);
        }
        lanes
    }

    pub fn get(&self, name: &str) -> Option<Arc<Lane>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes a place in a lane. Errors: why there is none.
    pub fn place(&self, name: &str) -> Result<LaneTicket, Refusal> {
        let lane = self.get(name).ok_or_else(|| {
            Refusal::new(Code::Unavailable, format!("this build has no `{name}` runtime"))
                .hint("give the tool another runtime in its [tools] configuration")
        })?;
        lane.join().ok_or_else(|| {
            Refusal::new(Code::ResourceExhausted, format!("the queue of the `{name}` lane is full"))
                .retryable()
                .hint("ask again later, or raise the lane's queue")
        })
    }

    /// Returns whether a lane of this name exists, even if this build cannot run tools in it.
    pub fn known(&self, name: &str) -> bool {
        self.get(name).is_some() || ABSENT.contains(&name)
    }

    /// Returns every lane there is now.
    pub fn all(&self) -> Vec<Arc<Lane>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Lane {
    fn new(name: String, bounds: Bounds) -> Self {
        let queue = Queue { bounds, places: 0, running: 0, arrivals: 0, waiting: BTreeMap::new() };
        Self { name, queue: Mutex::new(queue) }
    }

    /// Returns its bounds as they are now.
    pub fn bounds(&self) -> Bounds {
        self.queue().bounds
    }

    /// Gives it other bounds. Those that now may run do; those that run and would not may go on.
    fn change(&self, bounds: Bounds) {
        let mut queue = self.queue();
        queue.bounds = bounds;
        while queue.running < queue.bounds.concurrency {
            let Some((_, next)) = queue.waiting.pop_first() else { break };
            // Whoever left does not take it.
            queue.running += usize::from(next.send(()).is_ok());
        }
    }

    /// Takes a place. Returns `None` if the lane is full.
    pub fn join(self: &Arc<Self>) -> Option<LaneTicket> {
        let mut queue = self.queue();
        let free = queue.places < queue.bounds.concurrency + queue.bounds.queue;
        queue.places += usize::from(free);
        drop(queue);
        free.then(|| LaneTicket { lane: self.clone() })
    }

    /// Runs an invocation in this lane: processor work on a thread of its own, everything else on the caller's task.
    pub async fn run(&self, turn: &Arc<Turn>, run: &Arc<dyn Run>, invocation: Invocation) -> Outcome {
        let panicked = || {
            tracing::error!("a tool panicked");
            Outcome::Refused(Refusal::new(Code::Internal, "the tool failed inside this server"))
        };
        if self.name == BLOCKING {
            let run = run.clone();
            let runtime = tokio::runtime::Handle::current();
            let turn = turn.clone();
            let task = tokio::task::spawn_blocking(move || {
                let outcome = runtime.block_on(run.run(invocation));
                drop(turn);
                outcome
            });
            return task.await.unwrap_or_else(|_| panicked());
        }
        AssertUnwindSafe(async { run.run(invocation).await })
            .catch_unwind()
            .await
            .unwrap_or_else(|_| panicked())
    }

    /// Calls that wait or run here.
    pub fn load(&self) -> usize {
        self.queue().places
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneTicket {
    /// Waits for the right to run. Safe to drop midway: the turn goes to the next.
    pub async fn turn(&self, priority: u8) -> Turn {
        let (place, waiting) = {
            let mut queue = self.lane.queue();
            if queue.running < queue.bounds.concurrency {
                queue.running += 1;
                return Turn { lane: self.lane.clone() };
            }
            let (turn, waiting) = oneshot::channel();
            queue.arrivals += 1;
            let place = (Reverse(priority), queue.arrivals);
            queue.waiting.insert(place, turn);
            (place, waiting)
        };
        // A turn that is handed over is held by nobody for a moment; `Handed` keeps it from being lost.
        let mut handed = Handed { lane: &self.lane, place, waiting: Some(waiting) };
        if let Some(waiting) = handed.waiting.as_mut() {
            waiting.await.expect("a lane hands its turns over and never drops them");
        }
        handed.waiting = None;
        Turn { lane: self.lane.clone() }
    }
}

/// One that waits for a turn. Dropping it leaves the queue, and passes on a turn that came too late.
struct Handed<'a> {
    lane: &'a Arc<Lane>,
    place: (Reverse<u8>, u64),
    waiting: Option<oneshot::Receiver<()>>,
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        if let Some(mut waiting) = self.waiting.take() {
            self.lane.queue().waiting.remove(&self.place);
            waiting.close();
            if waiting.try_recv().is_ok() {
                drop(Turn { lane: self.lane.clone() });
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.lane.queue();
        while queue.running <= queue.bounds.concurrency
            && let Some((_, next)) = queue.waiting.pop_first()
        {
            // Whoever left does not take it; the one after does.
            if next.send(()).is_ok() {
                return;
            }
        }
        queue.running -= 1;
    }
}

impl Drop for LaneTicket {
    fn drop(&mut self) {
        self.lane.queue().places -= 1;
    }
}

#[cfg(test)]
mod tests;
