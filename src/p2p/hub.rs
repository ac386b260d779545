//! The hub: what this node does among others, and what of it is worth an event.
//!
//! Invariants:
//! - what the swarm tells is recorded in the order it was told, but for all but a few connections a minute that
//!   strangers open; a listener that fell behind asks how things stand;
//! - nobody is dialled unasked but kept peers, configured relays that had a place for this node, and, below the
//!   connections to keep up, those that a configured source names; never whom a caller parted from;
//! - everything found is merged in one book, and everything the hub runs ends with it.

mod announcing;
mod following;
pub mod course;
mod joining;
mod reaching;
mod recording;
mod requested;
mod standing;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::following::Following;
pub use self::{
    joining::{Goal, Tried},
    reaching::Attempted,
};
use crate::{
    block::payload::SaltKey,
    caller::{By, Peer},
    clock::now_ms,
    event::peer::{PeerDiscovered, Source as Heard},
    follow::driver::Erasures,
    ledger::{Command, Ledger, Ruling, peers::Peering},
    metrics::Metrics,
    p2p::{
        Transport,
        discovery::{
            Book, Fared, Found, Known, LookError, Origin, Source, Wanted, ask, file::PeersFile,
            github::Github, live::Neighbours, outside::Outside,
        },
        handle::Net,
        hub::requested::RequestStore,
    },
    peer::News,
    query::{QueryError, Readers},
    router::Router,
};

/// Connections of peers without an entry that are recorded in one minute, so that strangers cannot fill the log.
const STRANGERS_MAX: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);
/// What the hub is made of.
pub struct Parts {
    pub net: Net,
    pub ledger: Ledger,
    pub router: Router,
    /// This process, in the connections it records.
    pub runner: String,
    pub sources: Vec<Arc<dyn Source>>,
    pub neighbours: Neighbours,
    pub file: Option<Arc<PeersFile>>,
    pub github: Option<Arc<Github>>,
    /// The services that tell this node's address as seen from outside.
    pub outside: Option<Outside>,
    /// Peers that have an entry: what they do is always recorded.
    pub known: BTreeSet<Peer>,
    /// Whether this node's own contracts are announced.
    pub announce: bool,
    pub ttl: Duration,
    /// The least connections to keep up, and the number at which joining stops.
    pub goal: (usize, usize),
    pub bootstrap: Vec<String>,
    /// Peers to stay connected with, and where they are dialled.
    pub keep: BTreeMap<Peer, Vec<String>>,
    /// Peers whose logs are followed.
    pub follow: BTreeSet<Peer>,
    /// What is done about erasures in followed logs, unless `erasures_of` says otherwise for a peer.
    pub erasures: Erasures,
    pub erasures_of: BTreeMap<Peer, Erasures>,
    /// The key that salts this node's payloads.
    pub salt: SaltKey,
    pub metrics: Arc<Metrics>,
    /// Returns the requests that passed between this node and a peer so far.
    pub traffic: Arc<dyn Fn(&str) -> Traffic + Send + Sync>,
}

/// The hub. Clones share it.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    book: Mutex<Book>,
    /// Peers that are being dialled because a caller asked.
    dialling: Mutex<BTreeMap<Peer, usize>>,
    kept: RequestStore,
    /// The task of each followed peer.
    follows: Mutex<HashMap<Peer, Following>>,
    /// One bootstrap at a time.
    joining: tokio::sync::Mutex<()>,
    connected: watch::Sender<BTreeSet<Peer>>,
    /// Connections of strangers that may still be recorded in this minute, and when it began.
    strangers: Mutex<(u32, Instant)>,
    /// By peer: the caller to name in the next event about its connection.
    asked: Mutex<HashMap<Peer, By>>,
    /// What the log knew of connected peers a moment ago.
    standing: RwLock<HashMap<Peer, Arc<crate::peer::Peer>>>,
    /// Notified when `standing` is to be read again at once.
    stale: Notify,
    readers: Arc<Readers>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Requests that passed between this node and a peer since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The peer's requests that this node took.
    pub served: u64,
    /// This node's calls, and those of them that the peer did not answer.
    pub sent: u64,
    pub failures: u64,
    /// This node's calls that are under way.
    pub running: u64,
}

/// The result of a search.
#[derive(Debug)]
pub struct Discovered {
    /// The peers that offer every capability, the most recently heard of first.
    pub peers: Vec<Known>,
    pub sources: Fared,
    pub took: Duration,
}

impl Hub {
    /// Starts all tasks of the hub. Must be called on a runtime.
    pub fn start(parts: Parts) -> Self {
        let inner = Inner {
            book: Mutex::new(Book::new(parts.ttl.as_millis() as u64)),
            kept: RequestStore::open(parts.ledger.home(), parts.keep.clone(), parts.follow.clone()),
            follows: Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            connected: watch::Sender::default(),
            strangers: Mutex::new((STRANGERS_MAX, Instant::now())),
            asked: Mutex::default(),
            dialling: Mutex::default(),
            standing: RwLock::default(),
            stale: Notify::new(),
            readers: Arc::new(Readers::new(parts.ledger.home().clone())),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            parts,
        };
        let hub = Self { inner: Arc::new(inner) };
        let events = hub.net().events();
        hub.spawn(recording::events(hub.clone(), events));
        hub.spawn(recording::keep(hub.clone()));
        hub.spawn(recording::measure(hub.clone()));
        hub.spawn(announcing::announce(hub.clone()));
        hub.spawn(following::publish(hub.clone()));
        hub.spawn(following::listen(hub.clone()));
        hub.spawn(standing::refresh(hub.clone()));
        for peer in hub.inner.kept.followed() {
            hub.begin_following(peer);
        }
        hub
    }

    pub fn net(&self) -> &Net {
        &self.inner.parts.net
    }

    /// Watches which peers are connected.
    pub fn connected(&self) -> watch::Receiver<BTreeSet<Peer>> {
        self.inner.connected.subscribe()
    }

    /// Runs a task of the network until the hub stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Asks the named sources, or all if none is named, each for at most `timeout`.
    pub async fn discover(
        &self,
        capabilities: &BTreeSet<String>,
        max: usize,
        timeout: Duration,
        origins: &[Origin],
    ) -> Discovered {
        let begun = Instant::now();
        let asked = |source: &&Arc<dyn Source>| origins.is_empty() || origins.contains(&source.origin());
        let sources: Vec<_> = self.inner.parts.sources.iter().filter(asked).cloned().collect();
        let wanted = Wanted { capabilities: capabilities.clone() };
        let mut fared = ask(&sources, &wanted, now_ms(), timeout).await;
        for (origin, looked) in &fared {
            self.inner.parts.metrics.peers.searched(origin.as_str(), looked.is_ok());
        }
        for origin in origins.iter().filter(|origin| !fared.contains_key(origin)).copied().collect::<Vec<_>>()
        {
            let off = format!("{} is not configured on this node", origin.as_str());
            fared.insert(origin, Err(LookError::Unavailable(off)));
        }
        for found in
            fared.values().filter_map(|looked| looked.as_ref().ok()).flat_map(|looked| looked.found.clone())
        {
            self.found(found).await;
        }
        let now_ms = now_ms();
        let book = self.book();
        let among = |known: &&Known| {
            origins.is_empty() || origins.iter().any(|origin| known.origins.contains(origin))
        };
        let peers = book.with(capabilities, now_ms).into_iter().filter(among).take(max).cloned().collect();
        Discovered { peers, sources: fared, took: begun.elapsed() }
    }

    /// Takes in a connected peer's own word on what it offers.
    pub async fn offers(&self, peer: &str, capabilities: BTreeSet<String>) {
        self.book().offers(peer, capabilities.clone());
        let capabilities = Some(capabilities.into_iter().collect());
        let facts = PeerDiscovered { source: Heard::Connection, addrs: Vec::new(), capabilities };
        self.record(peer, News::Discovered { facts, ttl_ms: u64::MAX }).await;
    }

    /// Returns what a peer is said to offer.
    pub fn capabilities(&self, peer: &str) -> Vec<String> {
        let booked = self.book().get(peer).map(|known| known.capabilities.clone());
        booked.unwrap_or_default().into_iter().collect()
    }

    /// Stops everything it runs, then the network itself.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        announcing::withdraw(self).await;
        self.net().stop().await;
    }

    /// Adds a find to the book, and records it if it is news.
    async fn found(&self, found: Found) {
        if found.peer == self.net().local() {
            return;
        }
        let (now_ms, ttl_ms) = (now_ms(), self.inner.parts.ttl.as_millis() as u64);
        // One source knows a part of what a peer offers; the news is all that is known by now.
        let capabilities = {
            let mut book = self.book();
            if !book.put(found.clone(), now_ms) {
                return;
            }
            book.get(&found.peer).map(|known| known.capabilities.clone()).unwrap_or_default()
        };
        let facts = PeerDiscovered {
            source: heard(found.origin),
            addrs: found.addrs,
            capabilities: (!capabilities.is_empty()).then(|| capabilities.into_iter().collect()),
        };
        self.record(&found.peer, News::Discovered { facts, ttl_ms }).await;
    }

    /// Records news; the ledger ignores news that changes nothing.
    async fn record(&self, id: &str, news: News) {
        self.record_by(id, news, None).await;
    }

    async fn record_by(&self, id: &str, news: News, by: Option<By>) {
        let peering = match by {
            Some(By { actor, cause, note }) => Peering { actor, cause, note, ..Peering::new(id, news) },
            None => Peering::new(id, news),
        };
        match self.inner.parts.ledger.submit(Command::Peer(Box::new(peering))).await {
            Ok(Ruling::Denied(refusal)) => {
                tracing::warn!(reason = refusal.message, "news of a peer is not recorded");
            }
            Ok(_) => {}
            Err(stopped) => tracing::warn!(%stopped, "news of a peer is not recorded"),
        }
    }

    /// Returns what the log knows of a peer; `None` if nothing, or if the log cannot be read.
    pub async fn known(&self, peer: &str) -> Option<crate::peer::Peer> {
        let (readers, peer) = (self.inner.readers.clone(), peer.to_owned());
        let asked = tokio::task::spawn_blocking(move || readers.ask(|view| view.peer(&peer, None))).await;
        match asked {
            Ok(Ok(known)) => Some(known.what),
            Ok(Err(QueryError::NotFound(_))) => None,
            Ok(Err(err)) => {
                tracing::warn!(%err, "what is known of a peer cannot be read");
                None
            }
            Err(err) => {
                tracing::error!(%err, "what is known of a peer cannot be read");
                None
            }
        }
    }

    /// Returns whether an inbound connection gets an event: always for a known peer, a few a minute for strangers.
    fn worth_telling(&self, peer: &str) -> bool {
        if self.inner.parts.known.contains(peer) || self.inner.kept.peers().contains_key(peer) {
            return true;
        }
        let mut left = lock(&self.inner.strangers);
        if left.1.elapsed() >= MINUTE {
            *left = (STRANGERS_MAX, Instant::now());
        }
        let worth = left.0 > 0;
        left.0 = left.0.saturating_sub(1);
        worth
    }

    /// Keeps idle connections of kept peers open. Returns those peers.
    async fn hold(&self) -> BTreeMap<Peer, Vec<String>> {
        let kept = self.inner.kept.peers();
        self.net().keep(kept.keys().cloned().collect()).await;
        kept
    }

    /// Returns whether there is anybody to join by. The table does not count, since it is empty until somebody is
    /// known.
    fn may_join(&self) -> bool {
        let Parts { bootstrap, sources, .. } = &self.inner.parts;
        let named = sources.iter().any(|source| source.origin() != Origin::Dht);
        !bootstrap.is_empty() || named || !self.met().is_empty()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.inner.book)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn heard(origin: Origin) -> Heard {
    match origin {
        Origin::Bootstrap => Heard::Bootstrap,
        Origin::File => Heard::File,
        Origin::Github => Heard::Github,
        Origin::Mdns => Heard::Mdns,
        Origin::Dht => Heard::Dht,
    }
}

fn carried(transport: Transport) -> crate::event::peer::Transport {
    match transport {
        Transport::Tcp => crate::event::peer::Transport::Tcp,
        Transport::Quic => crate::event::peer::Transport::Quic,
        Transport::Relay => crate::event::peer::Transport::Relay,
    }
}
