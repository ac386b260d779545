//! Peers: the tools of other nodes, put on the router's board as one source, and calls taken to one of those nodes.
//!
//! Invariants:
//! - a tool is offered under the contract its node published, whose bytes have that hash;
//! - a tool of a server that knows no contracts is offered under one of this node's own, and asked for at that peer;
//! - what this node offers itself is not offered again, and no call of a peer goes on to another;
//! - a call is tried at the next peer while peers are what fails; one that may not run twice only while none of them
//!   can have begun it.

mod offers;
mod call;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    block::Cid,
    catalogue::PEERS,
    clock::now_ms,
    contract::Contract,
    metrics::Metrics,
    peer::{
        Peer,
        choice::{self, Candidate, Choice},
    },
    router::{BoxFuture, Offered, Offering, Router, audience::Audience, declared::Declared, lane},
    runtime::{
        peers::offers::{Behind, Names, Offer, listed, placed, read, uncontracted},
        upstream::{self, OpenStream, Sharing, State, Transport, Upstream},
    },
};

/// Tools that are taken of one peer.
pub const TOOLS_MAX: usize = 1_000;
/// Peers that offer tools at once.
pub const PEERS_MAX: usize = 1_000;
/// Peers whose calls are counted.
const COUNTED_MAX: usize = 10_000;

/// What the rooms above provide for the peers' tools.
#[derive(Clone)]
pub struct Ties {
    /// Fetches the bytes of a contract's block from a peer.
    pub fetch: Arc<Fetch>,
    /// What is known of a peer, for choosing among several.
    pub facts: Arc<Facts>,
    pub metrics: Arc<Metrics>,
    /// The rank of the peers among the sources on the board.
    pub rank: u32,
    /// How long one peer may take for one call.
    pub timeout: Duration,
    /// How long the tools of a lost peer stay on offer. Calls meanwhile say that it cannot be asked.
    pub grace: Duration,
}

/// Returns what is known of a peer, or `None` if nothing is.
pub type Facts = dyn Fn(&str) -> Option<Arc<Peer>> + Send + Sync;

pub type Fetch = dyn Fn(String, Cid) -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync;

/// The tools of every connected peer. Clones share them.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    ties: Ties,
    known: Mutex<BTreeMap<String, Arc<Known>>>,
    /// Notified when the peers' tools may have changed.
    changed: Notify,
    stopping: CancellationToken,
    /// Counts by peer, of peers that have left too.
    counts: Mutex<HashMap<String, Arc<Counts>>>,
}

/// This node's calls of one peer since the process began.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    failures: AtomicU64,
}

/// One connected peer.
struct Known {
    upstream: Upstream,
    offers: Mutex<BTreeMap<Cid, Offer>>,
    /// Its tools without a contract, by name.
    uncontracted: Mutex<BTreeMap<String, Arc<RawValue>>>,
    in_flight: AtomicUsize,
    counts: Arc<Counts>,
    metrics: Arc<Metrics>,
    /// Ends its follower.
    leaving: CancellationToken,
}

impl Peers {
    /// Starts a task that keeps the board up to date until [`Peers::stop`]. Must be called on a runtime; the caller
    /// joins the task.
    pub fn start(router: Router, ties: Ties) -> (Self, JoinHandle<()>) {
        let inner = Inner {
            router,
            ties,
            known: Mutex::default(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
            counts: Mutex::default(),
        };
        let peers = Self { inner: Arc::new(inner) };
        let publishing = tokio::spawn(peers.clone().publish());
        (peers, publishing)
    }

    /// Follows a connected peer's tools until [`Peers::leave`], over streams that `open` opens.
    ///
    /// A peer that was joined before is followed anew.
    pub fn join(&self, peer: &str, open: Arc<dyn OpenStream>) {
        let upstream = Upstream::start(upstream::Settings {
            name: peer.to_owned(),
            transport: Transport::Stream { open },
            capabilities: Audience::default().capabilities,
            sharing: Sharing::ByCapabilities,
            sessions_first: false,
            updates: Default::default(),
            timeout: self.inner.ties.timeout,
        });
        // Until it has listed them anew, a peer that comes back offers what it did.
        let before = self.inner.known().get(peer).cloned();
        let (offers, uncontracted) = match &before {
            Some(before) => (lock(&before.offers).clone(), lock(&before.uncontracted).clone()),
            None => Default::default(),
        };
        let known = Arc::new(Known {
            upstream,
            offers: Mutex::new(offers),
            uncontracted: Mutex::new(uncontracted),
            in_flight: AtomicUsize::new(0),
            counts: self.counts(peer),
            metrics: self.inner.ties.metrics.clone(),
            leaving: self.inner.stopping.child_token(),
        });
        let before = {
            let mut all = self.inner.known();
            if all.len() >= PEERS_MAX && !all.contains_key(peer) {
                tracing::warn!(peer, "a peer's tools are not asked for: too many peers are connected");
                return;
            }
            all.insert(peer.to_owned(), known.clone())
        };
        if let Some(before) = before {
            before.leaving.cancel();
        }
        let following = self.clone().follow(peer.to_owned(), known.clone());
        // Ended by `leaving`, which also ends when all stop.
        tokio::spawn(async move {
            known.leaving.run_until_cancelled(following).await;
            known.upstream.stop().await;
        });
    }

    /// Stops following a peer that is no longer connected. Its running calls end at once. Its tools are forgotten
    /// after the grace, unless it has come back.
    pub fn leave(&self, peer: &str) {
        let Some(known) = self.inner.known().get(peer).cloned() else {
            return;
        };
        known.leaving.cancel();
        if self.inner.ties.grace.is_zero() {
            return self.forget(peer, &known);
        }
        let (peers, peer, grace) = (self.clone(), peer.to_owned(), self.inner.ties.grace);
        let stopping = self.inner.stopping.clone();
        // Ends with the grace, or when all stop.
        tokio::spawn(async move {
            if stopping.run_until_cancelled(tokio::time::sleep(grace)).await.is_some() {
                peers.forget(&peer, &known);
            }
        });
    }

    fn forget(&self, peer: &str, gone: &Arc<Known>) {
        let mut all = self.inner.known();
        if all.get(peer).is_some_and(|known| Arc::ptr_eq(known, gone)) {
            all.remove(peer);
            self.inner.changed.notify_one();
        }
    }

    /// Returns the peers that offer tools, and the contracts they offer.
    #[cfg(test)]
    pub fn offered(&self) -> Vec<(String, Vec<Cid>)> {
        let known = self.inner.known();
        known
            .iter()
            .map(|(peer, known)| (peer.clone(), lock(&known.offers).keys().copied().collect()))
            .collect()
    }

    /// Chooses the next peer to ask for a tool. Returns its id, the rule that chose it, and its connection. `only`
    /// names the one peer that may be asked.
    fn choose(
        &self,
        contract: &Cid,
        only: Option<&str>,
        asked: &[String],
    ) -> Option<(String, String, Arc<Known>)> {
        let open: Vec<(String, Arc<Known>)> = {
            let may = |peer: &String| !asked.contains(peer) && only.is_none_or(|only| only == peer);
            let known = self.inner.known();
            let open = known.iter().filter(|(peer, known)| may(peer) && known.serves(contract));
            open.map(|(peer, known)| (peer.clone(), known.clone())).collect()
        };
        let facts: Vec<Option<Arc<Peer>>> =
            open.iter().map(|(peer, _)| (self.inner.ties.facts)(peer)).collect();
        let candidates: Vec<Candidate<'_>> = open
            .iter()
            .zip(&facts)
            .map(|((peer, known), facts)| known.candidate(peer, facts.as_deref()))
            .collect();
        let random = getrandom::u64().unwrap_or_default();
        let Choice { order, rule } = choice::choose(&candidates, now_ms(), random)?;
        let first = order.into_iter().next()?;
        let (peer, known) = open.into_iter().find(|(peer, _)| *peer == first)?;
        Some((peer, rule, known))
    }

    /// Returns what each peer offers: the CIDs of its contracts, and its names for their tools.
    pub fn capabilities(&self) -> Vec<(String, BTreeSet<String>)> {
        let known = self.inner.known();
        let words = |known: &Known| {
            let offers = lock(&known.offers);
            offers.iter().flat_map(|(cid, offer)| [cid.to_string(), offer.name.clone()]).collect()
        };
        known.iter().map(|(peer, known)| (peer.clone(), words(known))).collect()
    }

    /// Returns how many calls went to a peer, how many of them failed, and how many are under way.
    pub fn traffic(&self, peer: &str) -> (u64, u64, u64) {
        let counts = lock(&self.inner.counts).get(peer).cloned().unwrap_or_default();
        let running = self.inner.known().get(peer).map_or(0, |known| known.in_flight.load(Ordering::Relaxed));
        (counts.sent.load(Ordering::Relaxed), counts.failures.load(Ordering::Relaxed), running as u64)
    }

    fn counts(&self, peer: &str) -> Arc<Counts> {
        let mut counts = lock(&self.inner.counts);
        if counts.len() >= COUNTED_MAX {
            // Whoever is connected holds its own.
            counts.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        counts.entry(peer.to_owned()).or_default().clone()
    }

    /// Ends every stream to a peer. The board is left as it is.
    pub fn stop(&self) {
        self.inner.stopping.cancel();
    }

    /// Takes in what one peer offers, whenever that changes.
    async fn follow(self, peer: String, known: Arc<Known>) {
        let mut offer = known.upstream.offer();
        loop {
            let offered = offer.borrow_and_update().clone();
            if offered.state == State::Ready {
                let offers = self.proven(&peer, listed(&offered.tools)).await;
                *lock(&known.offers) = offers;
                let room = TOOLS_MAX.saturating_sub(lock(&known.offers).len());
                *lock(&known.uncontracted) = uncontracted(&offered.tools).into_iter().take(room).collect();
            }
            self.inner.changed.notify_one();
            if offer.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns the listed tools whose contract is known here, or was fetched and hashes correctly.
    async fn proven(&self, peer: &str, listed: Vec<(Cid, String)>) -> BTreeMap<Cid, Offer> {
        let mut offers = BTreeMap::new();
        for (cid, name) in listed.into_iter().take(TOOLS_MAX) {
            let contract = match self.at_hand(&cid) {
                Some(contract) => contract,
                None => match (self.inner.ties.fetch)(peer.to_owned(), cid).await {
                    Ok(bytes) => match read(&cid, &bytes) {
                        Some(contract) => Arc::new(contract),
                        None => {
                            tracing::warn!(peer, %cid, "a peer's tool is not offered: that is not its contract");
                            continue;
                        }
                    },
                    Err(reason) => {
                        tracing::warn!(peer, %cid, reason, "a peer's tool is not offered: no contract came");
                        continue;
                    }
                },
            };
            offers.insert(cid, Offer { name, contract });
        }
        offers
    }

    /// Returns the contract with this CID, if this node or another peer offers it.
    fn at_hand(&self, cid: &Cid) -> Option<Arc<Contract>> {
        let offered = |known: &Arc<Known>| known.offer(cid).map(|offer| offer.contract);
        let theirs = self.inner.known().values().find_map(offered);
        theirs.or_else(|| Some(Arc::new(self.inner.router.contract(cid)?)))
    }

    /// Puts all peers' tools on the board, whenever those or this node's own tools change.
    async fn publish(self) {
        let mut changes = self.inner.router.changes();
        let mut names = Names::default();
        // Once in any case: what was on offer when the node last stopped may not be now.
        let mut due = true;
        loop {
            due |= names.fit(self.distinct());
            if due && self.inner.router.put(self.offering(names.tools())).await.is_err() {
                return;
            }
            due = false;
            let heard = async {
                tokio::select! {
                    () = self.inner.changed.notified() => true,
                    change = changes.recv() => !matches!(change, Err(RecvError::Closed)),
                }
            };
            if self.inner.stopping.run_until_cancelled(heard).await != Some(true) {
                return;
            }
        }
    }

    fn offering(&self, tools: Vec<Offered>) -> Offering {
        Offering {
            source: PEERS.to_owned(),
            version: String::new(),
            rank: self.inner.ties.rank,
            lane: Some(lane::PEER.to_owned()),
            tools,
            prompts: Vec::new(),
            resources: Vec::new(),
            templates: Vec::new(),
            views: Vec::new(),
            declared: Declared { tools: true, ..Declared::default() },
            mirrors: false,
            run: Arc::new(self.clone()),
        }
    }

    /// Returns each contract that peers offer and this node does not, and each tool of a peer that has no contract.
    fn distinct(&self) -> BTreeMap<String, Behind> {
        let mut distinct = BTreeMap::new();
        for (peer, known) in self.inner.known().iter() {
            for (cid, offer) in lock(&known.offers).iter() {
                let contract = || Behind::Contract(offer.contract.clone());
                distinct.entry(cid.to_string()).or_insert_with(contract);
            }
            let plain = lock(&known.uncontracted);
            let placed = |(name, tool): (&String, &Arc<RawValue>)| {
                (placed(name, peer), Behind::Definition(tool.clone()))
            };
            distinct.extend(plain.iter().map(placed));
        }
        for entry in self.inner.router.tools().iter().filter(|entry| entry.source != PEERS) {
            distinct.remove(&entry.tool.contract.to_string());
        }
        distinct
    }
}

impl Known {
    /// Returns the peer as a candidate for a choice. It counts as connected, whatever the log says, because it is.
    fn candidate<'a>(&self, peer: &'a str, facts: Option<&Peer>) -> Candidate<'a> {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as u64;
        Candidate {
            peer,
            connected: true,
            quarantined: facts.is_some_and(|facts| facts.quarantine.is_some()),
            success: facts.map(|facts| facts.success).unwrap_or_default(),
            call_us: facts.and_then(|facts| facts.call_us),
            latency_us: facts.and_then(|facts| facts.measure?.latency_p50_us),
            in_flight,
        }
    }

    /// Returns whether it can be asked for this contract now.
    fn serves(&self, cid: &Cid) -> bool {
        self.upstream.is_ready() && lock(&self.offers).contains_key(cid)
    }

    /// Returns whether it can be asked now for this tool without a contract.
    fn has(&self, name: &str) -> bool {
        self.upstream.is_ready() && self.lists(name)
    }

    /// Returns whether it listed this tool without a contract when it was last asked.
    fn lists(&self, name: &str) -> bool {
        lock(&self.uncontracted).contains_key(name)
    }

    fn offer(&self, cid: &Cid) -> Option<Offer> {
        lock(&self.offers).get(cid).cloned()
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Known>>> {
        lock(&self.known)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
