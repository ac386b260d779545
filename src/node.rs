//! A node: starts the ledger, the router, the upstreams and the network of one data directory, and stops them in order.
//!
//! Invariants:
//! - nothing is answered before the log is open and checked;
//! - a stop ends calls first, then the network and the upstreams, then the ledger, so every start has its ending in the
//!   log.

#[cfg(feature = "p2p")]
pub mod network;
#[cfg(feature = "p2p")]
pub mod joining;
#[cfg(not(feature = "p2p"))]
#[path = "node/alone.rs"]
pub mod joining;
pub mod recording;
mod sampling;
pub mod status;
pub mod upstreams;
pub mod roster;
pub mod steering;
pub mod control;

use std::{io, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    joining::{Joined, Unjoined},
    recording::Recorded,
    roster::Roster,
    sampling::Sampler,
    steering::{OwnOffer, Prepare, Source, Steering},
};
use crate::{
    block::payload::SaltKey,
    clock::now_ms,
    config::{self, Config},
    engine::Engine,
    ledger::{
        GROUP_MAX, Ledger, Shelf, Stopped,
        fitting::OpenError,
        opening,
        progress::Progress,
        sharing::{self, Member, Sharing},
        upkeep,
    },
    log::home::{Home, HomeError},
    metrics::Metrics,
    questions::Audit,
    queue::{Rate, Rates},
    router::{
        Parts, Router,
        capture::Captures,
        lane::{LaneChange, Lanes},
        metadata::Hints,
        tuning::{Swap, Tuning},
    },
    runtime::{gateway, upstream},
    state::peers::PEER_STATUSES,
    task::{Limits, Moment},
    tools::{self, desk::Desk},
};

/// How long the start waits for upstreams before the node serves without them.
const UPSTREAM_WAIT: Duration = Duration::from_secs(10);
/// The same where there is nothing to serve without it: somewhat less than clients wait for a server.
const WRAPPED_WAIT: Duration = Duration::from_secs(25);
/// The door of a node that stands for one server.
pub const WRAP: &str = "wrap";
/// The pause between two samples of the gauges.
const SAMPLE_PAUSE: Duration = Duration::from_secs(2);
/// How long running calls may take to end by themselves at a stop; then they are cancelled.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How many events the state may be behind the log before the node is not ready.
const LAG_MAX: u64 = 100_000;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("the network cannot start")]
    Network(#[from] Unjoined),
}

/// A running node.
pub struct Node {
    pub ledger: Ledger,
    pub audit: Audit,
    pub router: Router,
    pub metrics: Arc<Metrics>,
    /// Cancelled when the node is to stop. Doors watch it to end their connections.
    pub stopping: CancellationToken,
    /// Cancelled before `stopping`: from then on the node's own workers claim no task.
    claiming: CancellationToken,
    /// Why an upstream could not be reached at the start, if there was one.
    pub lost: Option<String>,
    roster: Arc<Roster>,
    /// Makes what its own tools offer, where they are offered.
    own: Option<OwnOffer>,
    network: Joined,
    limits: Limits,
    sharing: Sharing,
    followers: JoinSet<()>,
}

/// What a node is started with.
pub struct Setup<'a> {
    pub home: &'a Home,
    pub config: &'a Config,
    /// Who has the data directory, as told to a process that finds it in use.
    pub owner: String,
    /// Upstreams in addition to the configured ones.
    pub upstreams: Vec<(upstream::Settings, gateway::Settings)>,
    /// The URL at which the node is reached, if it serves HTTP.
    pub base: Option<String>,
    /// Whether the node's own tools are offered, of which the configuration may say less.
    pub builtins: bool,
    /// Whether the tools, resources and prompts of the MCP conformance suite are offered.
    pub fixtures: bool,
    /// Whether the node takes part in the network, if the configuration enables it.
    pub networked: bool,
    /// The name under which its settings are recorded: `serve`, `stdio`, ...
    pub door: &'static str,
    /// What a door shows of the node before it has started.
    pub starting: Starting,
}

/// What is known of a node while it starts, shared with whoever asks meanwhile.
#[derive(Clone, Default)]
pub struct Starting {
    pub metrics: Arc<Metrics>,
    pub progress: Arc<Progress>,
}

impl Starting {
    /// Returns why the node is not ready, while it starts.
    pub fn reason(&self) -> String {
        match self.progress.now() {
            Some((folded, of)) if folded < of => {
                format!("starting: the state is derived from the log, {folded} of {of} events so far")
            }
            Some(_) | None => "starting".to_owned(),
        }
    }
}

impl Node {
    /// Opens the log, offers the builtin tools, connects the upstreams and joins the network.
    pub async fn start(mut setup: Setup<'_>) -> Result<Self, StartError> {
        let runner = uuid::Uuid::now_v7().simple().to_string();
        let metrics = setup.starting.metrics.clone();
        let shelf = Shelf::default();
        let member = member(&setup, &runner, metrics.clone(), shelf.clone());
        let (ledger, sharing) = sharing::join(member).await?;
        recording::configured(&ledger, setup.door, setup.config).await?;
        let salt = setup.home.keys()?.salt;
        let lease = Duration::from_millis(setup.config.tasks.lease_ms);
        let parts = parts(setup.config, ledger.clone(), salt.clone(), runner.clone(), metrics.clone());
        let router = Router::new(parts);
        router.govern(setup.config.rights(setup.builtins));
        let audit = Audit::new(ledger.clone());
        // Nobody else sets the shelf, so this cannot fail.
        let limits = limits(&setup.config.tasks);
        let desk = Desk::new(&router, &salt, limits);
        let _ = shelf.set(Box::new(tools::planning::Catalogue::whole(&desk)));
        let offers = setup.builtins || setup.config.finds();
        let own = offers.then(|| own_offer(&desk, &audit, setup.base.clone()));
        if let Some(own) = &own {
            router.put(own(setup.config.finds())).await?;
        }
        if setup.fixtures {
            let state_key = random();
            router.put(tools::conformance::offering(state_key, &router)).await?;
        }
        let stopping = CancellationToken::new();
        let roster = Roster::new(setup.home.clone(), router.clone(), metrics.clone(), stopping.clone());
        let mut node = Self {
            roster: Arc::new(roster),
            own,
            ledger,
            audit,
            router,
            metrics,
            stopping,
            claiming: CancellationToken::new(),
            lost: None,
            network: Default::default(),
            limits,
            sharing,
            followers: JoinSet::new(),
        };
        node.roster.apply(&setup.config.upstream).await;
        for (at, shown) in std::mem::take(&mut setup.upstreams) {
            node.roster.add(at, shown).await;
        }
        let patience = if setup.door == WRAP { WRAPPED_WAIT } else { UPSTREAM_WAIT };
        node.lost = node.roster.settled(patience).await.unwrap_or_else(|_| {
            tracing::warn!("some upstreams are not connected yet; serving without them");
            None
        });
        node.network = Joined::start(&node, &setup, &desk, salt.clone(), runner.clone()).await?;
        let engine = Engine::new(node.router.clone(), salt, runner, lease);
        node.followers.spawn(engine.run(node.claiming.clone(), node.stopping.clone()));
        Ok(node)
    }

    /// Lets running calls end. Those that take longer than `DRAIN_MAX` are cancelled, and recorded and answered as
    /// such.
    pub async fn quiet(&self) {
        // The node's own worker must claim nothing more: a waiting task would be started only to be cancelled.
        self.claiming.cancel();
        self.router.drain(DRAIN_MAX).await;
        self.stopping.cancel();
    }

    /// Stops everything in order: calls as in [`Node::quiet`], then the network and the upstreams, then the ledger.
    pub async fn stop(mut self) {
        self.quiet().await;
        self.network.stop().await;
        self.roster.end().await;
        while self.followers.join_next().await.is_some() {}
        if let Err(err) = recording::counted(&self.ledger, &self.metrics, true).await {
            tracing::warn!(%err, "who read and who was refused last is not on record");
        }
        self.ledger.close().await;
        self.sharing.end().await;
    }

    /// Spawns a task that samples the gauges until the node stops. `sessions` returns the number of open sessions.
    pub fn sample(&self, sessions: Arc<dyn Fn() -> usize + Send + Sync>) {
        let (ledger, router, metrics) = (self.ledger.clone(), self.router.clone(), self.metrics.clone());
        let (stopping, audit, limits) = (self.stopping.clone(), self.audit.clone(), self.limits);
        let mut sampler = Sampler::default();
        // The task ends with `stopping`; losing a sample that is under way does no harm.
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SAMPLE_PAUSE);
            while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
                metrics.queue_depth("ledger", ledger.waiting());
                for (lane, load) in router.loads() {
                    metrics.queue_depth(&lane, load);
                }
                let on_disk = |path| std::fs::metadata(path).map_or(0, |file| file.len());
                metrics.log_size(*ledger.committed().borrow(), on_disk(ledger.home().log_path()));
                let wal = ledger.wal();
                let held = wal.map_or(0.0, |wal| wal.held().as_secs_f64());
                metrics.log_wal(on_disk(ledger.home().wal_path()), held);
                metrics.sessions(sessions());
                let moment = Moment { now_ms: now_ms(), limits };
                let pulse = audit.ask(move |view, _| view.pulse(&sampling::kinds(), moment.now_ms)).await;
                match pulse {
                    Ok(mut pulse) => {
                        pulse.what.seen.wal = wal.map(Into::into);
                        let reading = sampler.reading(&pulse.what, &moment);
                        metrics.queue_depth("tasks", reading.queued as usize);
                        metrics.work.set(&reading);
                        for (status, peers) in PEER_STATUSES.iter().zip(pulse.what.seen.peers.standing) {
                            metrics.peers.standing(status.as_str(), peers);
                        }
                    }
                    Err(err) => tracing::warn!(%err, "the metrics of tasks could not be read"),
                }
            }
        });
    }

    /// Records which tokens are in force, before any of them is accepted. A task then records later changes and the
    /// doors' counts, until the node stops.
    pub async fn record(&mut self) -> io::Result<()> {
        let (ledger, metrics) = (self.ledger.clone(), self.metrics.clone());
        let look = |mut recorded: Recorded, ledger: Ledger| {
            tokio::task::spawn_blocking(move || {
                let looked = recorded.look(ledger.home().dir(), &ledger);
                (recorded, looked)
            })
        };
        let (mut recorded, looked) =
            look(Recorded::default(), ledger.clone()).await.map_err(io::Error::other)?;
        looked?;
        let stopping = self.stopping.clone();
        self.followers.spawn(async move {
            while stopping.run_until_cancelled(tokio::time::sleep(recording::LOOK_EVERY)).await.is_some() {
                let counted = recording::counted(&ledger, &metrics, false).await;
                let Ok((kept, looked)) = look(recorded, ledger.clone()).await else { return };
                recorded = kept;
                if let Some(err) = looked.err().or(counted.err().map(io::Error::other)) {
                    tracing::error!(%err, "tokens and accesses are not put on record at the moment");
                }
            }
        });
        Ok(())
    }

    /// Returns the reasons for which the node is not ready to serve; none if it is.
    pub fn unready(ledger: &Ledger) -> Vec<String> {
        let mut reasons = Vec::new();
        if !ledger.runs() {
            reasons.push("the ledger has stopped: the log is not writable".to_owned());
        }
        let (committed, applied) = (*ledger.committed().borrow(), ledger.reach().borrow().applied);
        if committed.saturating_sub(applied) > LAG_MAX {
            reasons.push(format!("the state is {} events behind the log", committed - applied));
        }
        reasons
    }

    /// Returns this node's peer id, if it takes part in a network.
    pub fn peer(&self) -> Option<String> {
        self.network.peer()
    }

    /// Gives the hand that puts the node under another configuration, with what a door does about it.
    pub fn steer(&mut self, source: Source, setup: (&Config, &'static str), prepare: Prepare) -> Steering {
        let parts = steering::Parts {
            ledger: self.ledger.clone(),
            router: self.router.clone(),
            roster: self.roster.clone(),
            own: self.own.take(),
        };
        let (config, door) = setup;
        Steering::new(source, config.clone(), door, prepare, parts)
    }
}

/// Returns what makes the offer of the node's own tools.
fn own_offer(desk: &Desk, audit: &Audit, base: Option<String>) -> OwnOffer {
    let (desk, audit) = (desk.clone(), audit.clone());
    Box::new(move |finds| {
        let mut own = tools::all(&desk, &audit, base.as_deref());
        if finds {
            own.extend(tools::finding::all(&desk.router));
        }
        tools::offering(own)
    })
}

fn member(setup: &Setup<'_>, runner: &str, metrics: Arc<Metrics>, shelf: Shelf) -> Member {
    let log = &setup.config.log;
    let settings = opening::Settings {
        group_max: log.group_max.min(GROUP_MAX),
        fsync: log.fsync,
        checkpoint_interval: Duration::from_millis(log.checkpoint_interval_ms),
        metrics: Some(metrics),
        limits: limits(&setup.config.tasks),
        rates: rates(&setup.config.tasks),
        tools: shelf,
        upkeep: upkeep::Bounds::default(),
        progress: setup.starting.progress.clone(),
    };
    Member {
        home: setup.home.clone(),
        settings,
        runner: runner.to_owned(),
        owner: setup.owner.clone(),
        random,
    }
}

fn limits(tasks: &config::Tasks) -> Limits {
    Limits {
        lease_ms: tasks.lease_ms,
        ageing_ms: tasks.ageing_ms,
        queue_max: tasks.max_queue as u64,
        attempts_max: tasks.max_attempts.into(),
    }
}

fn rates(tasks: &config::Tasks) -> Rates {
    let rate = |rate: &config::Rate| Rate { interval_ms: rate.interval_ms, burst: rate.burst };
    Rates {
        default: None,
        keys: tasks.rates.iter().map(|(key, of_key)| (key.clone(), rate(of_key))).collect(),
    }
}

/// Returns 32 random bytes from the operating system.
///
/// # Panics
/// Panics if the operating system has no randomness, since no key could be made then.
pub fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

fn parts(config: &Config, ledger: Ledger, salt: SaltKey, runner: String, metrics: Arc<Metrics>) -> Parts {
    let tuning = Swap::new(tuning(config));
    Parts { ledger, salt, runner, lanes: Lanes::new(lanes(config)), tuning, metrics }
}

/// Returns how the configuration changes the lanes.
fn lanes(config: &Config) -> impl Iterator<Item = LaneChange> {
    config.router.lanes.iter().map(|(name, lane)| {
        (name.clone(), lane.concurrency, lane.queue, lane.timeout_ms.map(Duration::from_millis))
    })
}

/// Returns what the configuration says of tools.
fn tuning(config: &Config) -> Tuning {
    let captures = Captures {
        default: config.capture.default,
        tools: config.capture.tools.iter().map(|(tool, capture)| (tool.clone(), *capture)).collect(),
    };
    Tuning { captures, hints: config.tools.iter().map(|(name, tool)| (name.clone(), hints(tool))).collect() }
}

fn hints(tool: &config::Tool) -> Hints {
    Hints {
        runtime: tool.runtime.clone(),
        category: tool.category.clone(),
        priority: tool.priority,
        timeout_ms: tool.timeout_ms,
        retry: tool.retry,
        cpu: tool.cpu,
        io: tool.io,
        memory: tool.memory,
    }
}
