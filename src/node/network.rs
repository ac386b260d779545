//! The node among others: composes the hub, the peers' tools, the doors for peers, and the workers of peers' queues.
//!
//! Invariants:
//! - a peer id alone grants to list tools and read contracts and heads; more takes its entry, or a token of ours;
//! - only peers with an entry offer their tools here, so that no text of a stranger reaches callers;
//! - `Network::stop` ends calls before connections. It waits for streams with a bound, and reports those that are left.

mod barring;
mod door;
mod entries;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{barring::barring, entries::Entries, work::Worker};
use crate::{
    auth::{Access, Denied},
    block::payload::SaltKey,
    caller::Scope,
    config,
    error::chain,
    event::Actor,
    follow::{
        fetch,
        serve::{Last, May, Served, Server, What},
    },
    ledger::Ledger,
    mcp::{
        self,
        quota::{Bounds, Quotas},
    },
    metrics::{
        Metrics,
        access::{
            What::{Read, Refused},
            unknown,
        },
    },
    p2p::{
        self, Inbound, NetError, Wire,
        discovery::{
            Configured, Source,
            file::PeersFile,
            github::{Github, PUBLIC_API},
            live::{Neighbours, Table},
            outside::Outside,
        },
        handle::Net,
        hub::{self, Hub, Traffic},
    },
    query::{Readers, proof::Head},
    questions::Audit,
    router::{BoxFuture, Router},
    runtime::{
        peers::{Peers, Ties},
        upstream::{Duplex, OpenStream},
    },
    tools::desk::Desk,
};

/// The rank of peers' tools: after all others.
const RANK: u32 = 10_000;
/// The environment variable that holds the token for the GitHub registry of peers.
const GITHUB_TOKEN: &str = "CAIRN_GITHUB_TOKEN";
/// The longest pause between two looks at what peers offer.
const LEARN_EVERY: Duration = Duration::from_secs(5);
/// How long changes of what peers offer are gathered before they are read.
const GATHER: Duration = Duration::from_millis(100);
/// How long the tools of a disconnected peer are still offered.
const GRACE: Duration = Duration::from_secs(300);
/// How long a stop waits for streams to end, once before and once after their connections close.
const PARTING_MAX: Duration = Duration::from_millis(500);
/// How long the start waits for a listening address, which the ready line shows.
const LISTENING_MAX: Duration = Duration::from_secs(5);

/// What a network is started with.
pub(super) struct Setup<'a> {
    pub config: &'a config::P2p,
    /// The seed of the node's peer id.
    pub seed: [u8; 32],
    pub salt: SaltKey,
    pub router: Router,
    pub runner: String,
    pub metrics: Arc<Metrics>,
    /// How tokens in peers' calls are checked; `None` if this node asks nobody for a token.
    pub access: Option<Access>,
    /// Cancelled when no more tasks are to be claimed.
    pub claiming: CancellationToken,
}

/// This node's part in the network.
pub struct Network {
    hub: Hub,
    peers: Peers,
    publishing: JoinHandle<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Network {
    pub(super) async fn start(mut setup: Setup<'_>) -> Result<Self, NetError> {
        let (config, router) = (setup.config, setup.router.clone());
        let mut counted = Registry::with_prefix("cairn");
        let (net, inbound) = p2p::start_counted(&settings(config, setup.seed), &mut counted)?;
        setup.metrics.network(counted);
        let listening = net.listening(LISTENING_MAX).await;
        if let Err(err) = listening {
            tracing::warn!(%err, "the network listens nowhere yet");
        }
        let entries = Arc::new(Entries::new(&config.peers));
        let quotas = quotas(&setup);
        // The peers' tools need the hub's facts, and the hub needs their traffic: the hub is set here once it runs.
        let place: Arc<OnceLock<Hub>> = Arc::default();
        let (peers, publishing) = Peers::start(router.clone(), ties(&setup, net.clone(), place.clone()));
        let traffic = {
            let (peers, quotas) = (peers.clone(), quotas.clone());
            Arc::new(move |peer: &str| {
                let (sent, failures, running) = peers.traffic(peer);
                Traffic { served: quotas.taken(peer), sent, failures, running }
            })
        };
        let hub = Hub::start(parts(&setup, net.clone(), traffic));
        // Nobody else sets it, so this cannot fail.
        let _ = place.set(hub.clone());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let network = Self {
            hub: hub.clone(),
            peers: peers.clone(),
            publishing,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let access = setup.access.take().map(Arc::new);
        let settings = mcp::Settings {
            contracts: true,
            shutdown: stop.clone(),
            tokens: access.map(|access| granting(access, setup.metrics.clone())),
            quotas,
            ..mcp::Settings::default()
        };
        let server = log_server(router.ledger(), entries.clone());
        let door = Door {
            hub: hub.clone(),
            readers: Arc::new(Readers::new(router.ledger().home().clone())),
            router: Arc::new(router.clone()),
            settings,
            server,
            entries: entries.clone(),
            metrics: setup.metrics.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(door.accept(inbound)));
        let learning = learn(hub.clone(), peers.clone(), router.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(learning));
        tasks.spawn(stop.clone().run_until_cancelled_owned(join(hub.clone(), peers, entries.clone())));
        network.work(&setup, &entries);
        Ok(network)
    }

    /// Begins to take tasks from the queues of those peers whose entries say so.
    fn work(&self, setup: &Setup<'_>, entries: &Entries) {
        for entry in setup.config.peers.iter().filter(|entry| !entry.work.is_empty()) {
            let worker = Worker::new(work::Setup {
                peer: entries.caller(&entry.id).actor,
                local: self.hub.net().local(),
                types: entry.work.iter().cloned().collect(),
                router: setup.router.clone(),
                open: Arc::new(Opener { hub: self.hub.clone(), peer: entry.id.clone() }),
                claiming: setup.claiming.clone(),
                stop: self.stop.clone(),
                tasks: self.tasks.clone(),
            });
            let working = worker.run(self.hub.connected());
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(working));
        }
    }

    /// Gives the network to the peer tools, and the peer id and followed logs to the audit API.
    pub(super) fn offer_to(&self, desk: &Desk, audit: &Audit) {
        // A node has one network, so each of these is set once.
        let _ = desk.network.set(Arc::new(door::Tools(self.hub.clone())));
        let hub = self.hub.clone();
        let pursued = hub.clone();
        audit.shows_pursuits(move || pursued.pursuits());
        audit.shows_peer(move || json!({"peer_id": hub.net().local(), "multiaddrs": hub.net().addrs()}));
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Ends calls and streams in both directions, then the connections.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.peers.stop();
        self.tasks.close();
        // A peer may not read what a stream still has to send; such a stream ends with its connection.
        let said = tokio::time::timeout(PARTING_MAX, self.tasks.wait()).await;
        if let Err(err) = self.publishing.await {
            tracing::error!(%err, "the peers' tools were not kept in step");
        }
        self.hub.stop().await;
        if said.is_err() && tokio::time::timeout(PARTING_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!(streams = self.tasks.len(), "streams of peers are left to the end of the process");
        }
    }
}

/// What all streams of a peer may take together.
fn quotas(setup: &Setup<'_>) -> Quotas {
    let mut quotas = Quotas::new(Bounds {
        idle: Duration::from_millis(setup.config.idle_ms),
        request_timeout: Duration::from_millis(setup.config.request_timeout_ms),
        ..Bounds::default()
    });
    quotas.metrics = Some(setup.metrics.clone());
    quotas
}

/// What the peers' tools need of the network; `hub` is filled once there is one.
fn ties(setup: &Setup<'_>, net: Net, hub: Arc<OnceLock<Hub>>) -> Ties {
    Ties {
        fetch: fetching(net, setup.metrics.clone()),
        facts: Arc::new(move |peer| hub.get()?.facts(peer)),
        metrics: setup.metrics.clone(),
        rank: RANK,
        timeout: Duration::from_millis(setup.config.request_timeout_ms),
        grace: GRACE,
    }
}

/// Serves the streams that peers open.
struct Door {
    hub: Hub,
    /// Reads from the state how a peer stands that the hub has not read yet.
    readers: Arc<Readers>,
    router: Arc<Router>,
    settings: mcp::Settings,
    server: Server,
    entries: Arc<Entries>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

impl Door {
    /// Serves every incoming stream, each in a task of its own.
    async fn accept(self, mut inbound: mpsc::Receiver<Inbound>) {
        while let Some(Inbound { peer, wire, stream }) = inbound.recv().await {
            self.metrics.peers.stream("in", wire.as_str());
            match wire {
                Wire::Mcp => {
                    let tools = self.entries.tools(&peer);
                    let mut quotas = self.settings.quotas.clone();
                    quotas.known = self.entries.knows(&peer);
                    let settings = mcp::Settings { tools, quotas, ..self.settings.clone() };
                    let (router, hub, readers) =
                        (self.router.clone(), self.hub.clone(), self.readers.clone());
                    let caller = self.entries.caller(&peer);
                    self.tasks.spawn(async move {
                        let barred = Some(barring(hub, readers, &peer).await);
                        let settings = mcp::Settings { barred, ..settings };
                        if let Err(err) = mcp::serve_frames(router, settings, caller, stream).await {
                            tracing::debug!(peer, %err, "a peer's stream ended");
                        }
                    });
                }
                Wire::Log => {
                    let (server, stop) = (self.server.clone(), self.settings.shutdown.clone());
                    let reading = Reading::new(self.metrics.clone(), self.entries.caller(&peer).actor);
                    self.tasks.spawn(stop.run_until_cancelled_owned(async move {
                        let mut reading = reading;
                        if let Err(err) = server.serve_into(stream, &peer, &mut reading.served).await {
                            tracing::debug!(peer, %err, "a peer's stream ended");
                        }
                    }));
                }
            }
        }
    }
}

/// Opens MCP streams to one peer.
struct Opener {
    hub: Hub,
    peer: String,
}

impl OpenStream for Opener {
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async move { self.hub.open(&self.peer, Wire::Mcp).await.map_err(|err| err.to_string()) })
    }
}

/// Tells the hub what peers offer, whenever that changes.
async fn learn(hub: Hub, peers: Peers, router: Router) {
    let mut changes = router.changes();
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    loop {
        match tokio::time::timeout(LEARN_EVERY, changes.recv()).await {
            Ok(Err(RecvError::Closed)) => return,
            // Several peers that connect together are read together.
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => tokio::time::sleep(GATHER).await,
            // A peer's offer that adds no tool here raises no change of the router, so it is read at intervals.
            Err(_) => {}
        }
        let offered: BTreeMap<_, _> = peers.capabilities().into_iter().collect();
        told.retain(|peer, _| offered.contains_key(peer));
        for (peer, capabilities) in offered {
            if told.get(&peer) != Some(&capabilities) {
                hub.offers(&peer, capabilities.clone()).await;
                told.insert(peer, capabilities);
            }
        }
    }
}

/// Lists the tools of peers that connect and have an entry, and removes those of peers that disconnect.
async fn join(hub: Hub, peers: Peers, entries: Arc<Entries>) {
    let mut connected = hub.connected();
    let mut joined = BTreeSet::new();
    loop {
        let now = connected.borrow_and_update().clone();
        for peer in joined.difference(&now) {
            peers.leave(peer);
        }
        for peer in now.difference(&joined).filter(|peer| entries.offers(peer)) {
            peers.join(peer, Arc::new(Opener { hub: hub.clone(), peer: peer.clone() }));
        }
        joined = now;
        if connected.changed().await.is_err() {
            return;
        }
    }
}

fn fetching(net: Net, metrics: Arc<Metrics>) -> Arc<crate::runtime::peers::Fetch> {
    Arc::new(move |peer, cid| {
        let (net, metrics) = (net.clone(), metrics.clone());
        Box::pin(async move {
            metrics.peers.stream("out", Wire::Log.as_str());
            let stream = net.open(&peer, Wire::Log).await.map_err(|err| err.to_string())?;
            fetch::block(stream, cid).await.map_err(|err| chain(&err))
        })
    })
}

fn granting(access: Arc<Access>, metrics: Arc<Metrics>) -> mcp::Tokens {
    mcp::Tokens::new(move |token| {
        let header = format!("Bearer {token}").parse().map_err(|_| Denied::Invalid);
        match header.and_then(|header| access.authenticate(Some(&header))) {
            Ok(caller) => Some(caller.scopes),
            Err(denied) => {
                if let Some(reason) = denied.reason() {
                    metrics.access.add(&unknown(), Refused(reason), 1);
                }
                None
            }
        }
    })
}

/// Counts the contents that a peer read over one stream. They are added when this is dropped, however the stream ends.
struct Reading {
    metrics: Arc<Metrics>,
    actor: Actor,
    served: Served,
}

impl Reading {
    fn new(metrics: Arc<Metrics>, actor: Actor) -> Self {
        Self { metrics, actor, served: Served::default() }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.metrics.access.add(&self.actor, Read, self.served.contents);
    }
}

/// Returns the server of this node's log, for peers that may read it.
fn log_server(ledger: &Ledger, entries: Arc<Entries>) -> Server {
    let reach = ledger.reach();
    let last: Last = Arc::new(move || {
        let reach = reach.borrow();
        Head { size: reach.applied, note: reach.checkpoint.clone() }
    });
    let may: May = Arc::new(move |peer, what| match what {
        What::Events => entries.caller(peer).may(Scope::Audit),
        What::Content => entries.caller(peer).may(Scope::Audit) && entries.gives_payloads(peer),
    });
    let about = ledger.about();
    Server::new(ledger.home(), about.log, last, may)
}

/// Returns the ids of the peers that the configuration names, which may relay for this node.
fn relays(config: &config::P2p) -> HashSet<String> {
    let joined = config.bootstrap.iter().filter_map(|node| node.rsplit_once("/p2p/"));
    let entries = config.peers.iter().map(|entry| entry.id.clone());
    joined.map(|(_, peer)| peer.to_owned()).chain(entries).collect()
}

fn settings(config: &config::P2p, seed: [u8; 32]) -> p2p::Settings {
    p2p::Settings {
        seed,
        listen: config.listen.clone(),
        external: config.announce_addrs.clone(),
        mdns: config.mdns,
        dht: config.dht,
        dht_protocol: config.dht_protocol.clone(),
        relay: config.relay,
        relays: relays(config),
        upnp: config.upnp,
        known: config.peers.iter().map(|entry| entry.id.clone()).collect(),
        connections_max: config.max_connections,
        memory_share: p2p::limits::MEMORY_SHARE_MAX,
        idle: Duration::from_millis(config.idle_ms),
        record_ttl: Duration::from_secs(config.ttl_s),
        allow: config.allow.iter().cloned().collect(),
        block: config.block.iter().cloned().collect(),
    }
}

fn parts(setup: &Setup<'_>, net: Net, traffic: Arc<dyn Fn(&str) -> Traffic + Send + Sync>) -> hub::Parts {
    let config = setup.config;
    let ttl_ms = config.ttl_s * 1_000;
    let file = config.peers_file.clone().map(|path| Arc::new(PeersFile::new(path, ttl_ms)));
    let api = config.github_api.as_deref().unwrap_or(PUBLIC_API);
    let token = std::env::var(GITHUB_TOKEN).ok().filter(|token| !token.is_empty());
    let github =
        config.github.as_deref().and_then(|name| Github::new(api, name, token, ttl_ms)).map(Arc::new);
    let outside = Outside::new(config.external_services.urls());
    let neighbours = Neighbours::new(ttl_ms);
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    if !config.bootstrap.is_empty() {
        sources.push(Arc::new(Configured::new(&config.bootstrap)));
    }
    sources.extend(file.clone().map(|file| file as Arc<dyn Source>));
    sources.extend(github.clone().map(|github| github as Arc<dyn Source>));
    if config.mdns {
        sources.push(Arc::new(neighbours.clone()));
    }
    if config.dht {
        sources.push(Arc::new(Table(net.clone())));
    }
    let kept = config.peers.iter().filter(|entry| !entry.addrs.is_empty());
    hub::Parts {
        net,
        ledger: setup.router.ledger().clone(),
        router: setup.router.clone(),
        runner: setup.runner.clone(),
        sources,
        neighbours,
        file,
        github,
        outside,
        known: config.peers.iter().map(|entry| entry.id.clone()).collect(),
        announce: config.announce && config.dht,
        ttl: Duration::from_secs(config.ttl_s),
        goal: (config.min_connections as usize, config.max_connections as usize),
        bootstrap: config.bootstrap.clone(),
        keep: kept.map(|entry| (entry.id.clone(), entry.addrs.clone())).collect(),
        follow: config.peers.iter().filter(|entry| entry.follow).map(|entry| entry.id.clone()).collect(),
        erasures: config.erasures,
        erasures_of: config.erasures_of(),
        salt: setup.salt.clone(),
        metrics: setup.metrics.clone(),
        traffic,
    }
}
