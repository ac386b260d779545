//! Work for peers: this node claims tasks from another node's queue and runs them.
//!
//! Invariants:
//! - the peer's leases and fences decide who holds a task. A claimed task goes on when the connection is lost, and its
//!   outcome is reported when the peer is reached again;
//! - each call has an idempotency key of its task, so that a tool that must not run twice does not, however often the
//!   task is handed out;
//! - only task types of the peer's entry run, with the peer as the caller.

mod line;
mod attempt;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::line::{Line, PeerAnswer, Unsaid};
use crate::{
    block::Cid,
    caller::{Caller, Scope},
    event::Actor,
    router::Router,
    runtime::upstream::OpenStream,
};

/// The largest number of tasks of one peer that run here at once.
const AT_ONCE: usize = 8;
/// How long a claim waits at the peer for a task.
const WAIT: Duration = Duration::from_secs(30);
/// The pause after a refusal. It is long, because somebody has to change the peer's configuration.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The pause after a request that was lost.
const LOST_PAUSE: Duration = Duration::from_millis(250);
/// The lease that is assumed until the peer has told its own.
const LEASE_MS: u64 = 30_000;

/// What a worker is started with.
pub(super) struct Setup {
    /// The peer whose queue this is.
    pub peer: Actor,
    /// This node's peer id.
    pub local: String,
    /// The task types to claim.
    pub types: BTreeSet<String>,
    pub router: Router,
    pub open: Arc<dyn OpenStream>,
    /// Cancelled when no more tasks are to be claimed.
    pub claiming: CancellationToken,
    /// Cancelled when everything is to end.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

/// A worker for one peer's queue.
pub(super) struct Worker {
    setup: Setup,
    /// The worker's id at the peer.
    name: String,
    line: Line,
    places: Arc<Semaphore>,
    lease_ms: AtomicU64,
    /// The tasks that were claimed and whose outcome is not reported yet.
    held: Mutex<HashMap<String, Held>>,
}

/// The state of a claimed task.
#[derive(Clone)]
struct Held {
    /// The fence of its latest claim.
    fence: u64,
    /// The peer's event of that claim.
    claimed: Option<Cid>,
    /// The fence for which the peer answered that this worker does not hold the task.
    lost: Option<u64>,
    /// Whether the peer asks to cancel it.
    unwanted: bool,
    cancel: CancellationToken,
}

/// A task as the peer hands it out.
#[derive(Debug, Deserialize)]
struct Given {
    task_id: String,
    task_type: String,
    payload: Option<Box<RawValue>>,
    fence: u64,
}

#[derive(Deserialize)]
struct Claimed {
    #[serde(default)]
    tasks: Vec<Given>,
}

#[derive(Deserialize)]
struct Registered {
    lease_ms: u64,
}

impl Worker {
    pub(super) fn new(setup: Setup) -> Arc<Self> {
        let name = format!("peer/{}", setup.local);
        Arc::new(Self {
            name,
            line: Line::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            lease_ms: AtomicU64::new(LEASE_MS),
            held: Mutex::default(),
            setup,
        })
    }

    /// Works for the peer whenever it is connected, until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, mut connected: watch::Receiver<BTreeSet<String>>) {
        let peer = self.setup.peer.id.clone();
        while connected.wait_for(|peers| peers.contains(&peer)).await.is_ok() {
            let ready = self.line.begin(&peer, self.setup.open.clone());
            tokio::select! {
                _ = connected.wait_for(|peers| !peers.contains(&peer)) => {}
                () = self.clone().serve(ready) => return,
            }
            self.line.end().await;
        }
    }

    /// Registers and claims repeatedly until `claiming` is cancelled. Then it keeps the line open, and never returns.
    async fn serve(self: Arc<Self>, mut ready: line::Ready) {
        let claiming = self.setup.claiming.clone();
        loop {
            let pause = match claiming.run_until_cancelled(self.claims(&mut ready)).await {
                None => break,
                Some(Unsaid::Lost) => LOST_PAUSE,
                Some(Unsaid::Refused(refused)) => {
                    tracing::warn!(peer = self.setup.peer.id, %refused, "a peer gives this node no work");
                    REFUSED_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
        // The outcomes of claimed tasks are still reported over this line.
        std::future::pending::<()>().await;
    }

    /// Registers and claims until a request fails. Returns why it failed.
    async fn claims(self: &Arc<Self>, ready: &mut line::Ready) -> Unsaid {
        ready.wait().await;
        if let Err(unsaid) = self.register().await {
            return unsaid;
        }
        loop {
            if let Err(unsaid) = self.claim().await {
                return unsaid;
            }
        }
    }

    async fn register(&self) -> Result<(), Unsaid> {
        let types: Vec<&String> = self.setup.types.iter().collect();
        let facts = json!({"worker_id": self.name, "capabilities": types, "max_concurrent_tasks": AT_ONCE});
        let told = self.line.ask("worker_register", &facts, None, None).await?;
        let Registered { lease_ms } = told.read()?;
        self.lease_ms.store(lease_ms, Ordering::Relaxed);
        Ok(())
    }

    /// Claims as many tasks as there are free places, once at least one is free, and starts them.
    async fn claim(self: &Arc<Self>) -> Result<(), Unsaid> {
        let closed = |_| Unsaid::Lost;
        let mut places = vec![self.places.clone().acquire_owned().await.map_err(closed)?];
        while let Ok(place) = self.places.clone().try_acquire_owned() {
            places.push(place);
        }
        let asked = json!({"worker_id": self.name, "max_tasks": places.len(), "wait_ms": WAIT.as_millis()});
        let told = self.line.ask("task_claim", &asked, None, None).await?;
        for (given, place) in self.taken(&told, places.len())?.into_iter().zip(places) {
            self.clone().begin(given, place);
        }
        Ok(())
    }

    /// Spawns the work on a task, and on each task handed out with the end of the one before, in one place.
    fn begin(self: Arc<Self>, given: Given, place: OwnedSemaphorePermit) {
        let stop = self.setup.stop.clone();
        let tasks = self.setup.tasks.clone();
        tasks.spawn(stop.run_until_cancelled_owned(async move {
            let mut given = Some(given);
            while let Some(task) = given {
                given = self.attempt(task).await;
            }
            drop(place);
        }));
    }

    /// Returns the tasks of an answer that are not held yet, at most `most`; of those under way, it takes over the
    /// fence. What is handed out beyond `most` is dropped, and its lease runs out.
    fn taken(&self, told: &PeerAnswer, most: usize) -> Result<Vec<Given>, Unsaid> {
        let Claimed { tasks } = told.read()?;
        let mut held = self.held();
        let new = |given: &Given| match held.get_mut(&given.task_id) {
            Some(known) => {
                (known.fence, known.claimed) = (given.fence, told.event);
                false
            }
            None => {
                held.insert(given.task_id.clone(), Held::new(given.fence, told.event));
                true
            }
        };
        Ok(tasks.into_iter().take(most).filter(new).collect())
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.load(Ordering::Relaxed))
    }

    fn caller(&self) -> Caller {
        Caller { actor: self.setup.peer.clone(), scopes: vec![Scope::Call] }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn new(fence: u64, claimed: Option<Cid>) -> Self {
        Self { fence, claimed, lost: None, unwanted: false, cancel: CancellationToken::new() }
    }

    /// Returns whether the task is lost under its latest fence, as far as is known.
    fn is_lost(&self) -> bool {
        self.lost == Some(self.fence)
    }
}
