//! Work on peers: this node as a worker of another node's queue.
//!
//! Invariants:
//! - the peer's leases and fences decide whose a task is; a task that was taken outlives the connection, and what came
//!   of it is told when the peer is reached again;
//! - each task is called under keys of its own, so that what may not run twice does not, however often it is handed out;
//! - nothing runs for the peer but the types of its entry, as a caller that is the peer.

mod attempt;
mod line;

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

use self::line::{Line, Told, Unsaid};
use crate::{
    block::Cid,
    caller::{Caller, Scope},
    event::Actor,
    router::Router,
    runtime::upstream::OpenStream,
};

/// Tasks of one peer that run here at once.
const AT_ONCE: usize = 8;
/// How long a claim waits at the peer for work.
const WAIT: Duration = Duration::from_secs(30);
/// Before a peer that refused is asked again: somebody has to change its configuration.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// Before a peer that was not reached is asked again.
const LOST_PAUSE: Duration = Duration::from_millis(250);
/// A lease, until the peer has said how long one is.
const LEASE_MS: u64 = 30_000;

/// What a worker is started with.
pub(super) struct Setup {
    /// Whose queue it is.
    pub peer: Actor,
    /// This node, as the peer knows it.
    pub local: String,
    /// The types that are taken.
    pub types: BTreeSet<String>,
    pub router: Router,
    pub open: Arc<dyn OpenStream>,
    /// Nothing is claimed once this is cancelled.
    pub claiming: CancellationToken,
    /// Everything ends once this is.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

/// A worker of one peer's queue.
pub(super) struct Worker {
    setup: Setup,
    /// Its id there.
    name: String,
    line: Line,
    places: Arc<Semaphore>,
    lease_ms: AtomicU64,
    /// The tasks that were taken and not told of yet.
    held: Mutex<HashMap<String, Held>>,
}

/// How a task that was taken stands.
#[derive(Clone)]
struct Held {
    /// The fence it was handed out under last.
    fence: u64,
    /// The peer's event that handed it out.
    claimed: Option<Cid>,
    /// The fence under which the peer said that it is not this worker's.
    lost: Option<u64>,
    /// Whether the peer wants it to stop.
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

    /// Works for the peer whenever it is connected, until it is dropped.
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

    /// Registers and claims, again and again, until nothing is to be claimed any more.
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
        // What was taken is still told of over this line.
        std::future::pending::<()>().await;
    }

    /// Claims until that does not go on.
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

    /// Takes as many tasks as there are places, waiting for the first of each.
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

    /// Works on a task, and on what is handed out with its end, in one place.
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

    /// The tasks of an answer that are new here; of those under way, only the fence is. What is handed out beyond `most`
    /// has no place here, and its lease runs out.
    fn taken(&self, told: &Told, most: usize) -> Result<Vec<Given>, Unsaid> {
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

    /// Whether it is another's now, as far as is known.
    fn is_lost(&self) -> bool {
        self.lost == Some(self.fence)
    }
}
