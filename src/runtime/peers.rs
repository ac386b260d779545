//! Peers: the tools of other nodes, put on the router's board as one source, and calls taken to one of those nodes.
//!
//! Invariants:
//! - a tool is offered under the contract its node published, whose bytes have that hash; nothing else a peer lists
//!   is believed;
//! - what this node offers itself is not offered again, and no call of a peer goes on to another;
//! - a call that may not run twice is tried at one peer; any other at the next, while peers are what fails.

mod call;
mod offers;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    block::Cid,
    catalogue::PEERS,
    contract::Contract,
    router::{BoxFuture, Offering, Router, lane},
    runtime::{
        peers::offers::{Names, Offer, listed, read},
        upstream::{self, OpenStream, State, Transport, Upstream},
    },
};

/// Tools that are taken of one peer.
pub const TOOLS_MAX: usize = 1_000;
/// Peers that offer tools at once.
pub const PEERS_MAX: usize = 1_000;

/// What the rooms above know and do for the peers' tools.
#[derive(Clone)]
pub struct Ties {
    /// The bytes of a contract's block, as a peer gives them.
    pub fetch: Arc<Fetch>,
    /// Picks who is asked.
    pub choose: Arc<Choose>,
    /// The place of their source among the others of the board.
    pub rank: u32,
    /// How long one peer may take for one call.
    pub timeout: Duration,
}

/// A peer that could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub peer: String,
    /// Calls of this node that it has not answered yet.
    pub in_flight: usize,
}

/// Picks one of those that could be asked, and says by which rule; none where nobody should be.
pub type Choose = dyn Fn(&[Candidate]) -> Option<(usize, String)> + Send + Sync;

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
    /// Told when what peers offer may have changed.
    changed: Notify,
    stopping: CancellationToken,
    refused: AtomicU64,
}

/// One connected peer.
struct Known {
    upstream: Upstream,
    offers: Mutex<BTreeMap<Cid, Offer>>,
    in_flight: AtomicUsize,
    /// Ends its follower.
    leaving: CancellationToken,
}

impl Peers {
    /// Keeps the board in step until [`Peers::stop`]. Must be called on a runtime; the task is to be joined.
    pub fn start(router: Router, ties: Ties) -> (Self, JoinHandle<()>) {
        let inner = Inner {
            router,
            ties,
            known: Mutex::default(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
            refused: AtomicU64::new(0),
        };
        let peers = Self { inner: Arc::new(inner) };
        let publishing = tokio::spawn(peers.clone().publish());
        (peers, publishing)
    }

    /// Asks a peer that is connected for its tools, over streams that `open` opens, until it is left.
    ///
    /// A peer that is known already is followed anew.
    pub fn join(&self, peer: &str, open: Arc<dyn OpenStream>) {
        let upstream = Upstream::start(upstream::Settings {
            name: peer.to_owned(),
            transport: Transport::Stream { open },
            timeout: self.inner.ties.timeout,
        });
        let known = Arc::new(Known {
            upstream,
            offers: Mutex::default(),
            in_flight: AtomicUsize::new(0),
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

    /// Forgets a peer that is not connected any more. Its running calls end.
    pub fn leave(&self, peer: &str) {
        if let Some(known) = self.inner.known().remove(peer) {
            known.leaving.cancel();
            self.inner.changed.notify_one();
        }
    }

    /// The peers that offer tools now, and the contracts they offer.
    pub fn offered(&self) -> Vec<(String, Vec<Cid>)> {
        let known = self.inner.known();
        known
            .iter()
            .map(|(peer, known)| (peer.clone(), lock(&known.offers).keys().copied().collect()))
            .collect()
    }

    /// Who is asked for a tool next, by which rule, and how that peer is reached.
    fn choose(&self, contract: &Cid, asked: &[String]) -> Option<(String, String, Arc<Known>)> {
        let candidates: Vec<(Candidate, Arc<Known>)> = {
            let known = self.inner.known();
            let open = known.iter().filter(|(peer, known)| !asked.contains(peer) && known.serves(contract));
            open.map(|(peer, known)| {
                let in_flight = known.in_flight.load(Ordering::Relaxed);
                (Candidate { peer: peer.clone(), in_flight }, known.clone())
            })
            .collect()
        };
        let shown: Vec<Candidate> = candidates.iter().map(|(candidate, _)| candidate.clone()).collect();
        let (at, rule) = (self.inner.ties.choose)(&shown)?;
        let (candidate, known) = candidates.into_iter().nth(at)?;
        Some((candidate.peer, rule, known))
    }

    /// Contracts that were refused because their bytes were not theirs.
    pub fn refused(&self) -> u64 {
        self.inner.refused.load(Ordering::Relaxed)
    }

    /// Ends every stream to a peer. The board is left as it is.
    pub fn stop(&self) {
        self.inner.stopping.cancel();
    }

    /// Takes what one peer offers, whenever that changes.
    async fn follow(self, peer: String, known: Arc<Known>) {
        let mut offer = known.upstream.offer();
        loop {
            let offered = offer.borrow_and_update().clone();
            if offered.state == State::Ready {
                let offers = self.proven(&peer, listed(&offered.tools)).await;
                *lock(&known.offers) = offers;
            }
            self.inner.changed.notify_one();
            if offer.changed().await.is_err() {
                return;
            }
        }
    }

    /// Of what a peer lists, that whose contracts are at hand or come from it whole.
    async fn proven(&self, peer: &str, listed: Vec<(Cid, String)>) -> BTreeMap<Cid, Offer> {
        let mut offers = BTreeMap::new();
        for (cid, name) in listed.into_iter().take(TOOLS_MAX) {
            let contract = match self.at_hand(&cid) {
                Some(contract) => contract,
                None => match (self.inner.ties.fetch)(peer.to_owned(), cid).await {
                    Ok(bytes) => match read(&cid, &bytes) {
                        Some(contract) => Arc::new(contract),
                        None => {
                            self.inner.refused.fetch_add(1, Ordering::Relaxed);
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

    /// A contract that this node or another peer offers.
    fn at_hand(&self, cid: &Cid) -> Option<Arc<Contract>> {
        let offered = |known: &Arc<Known>| known.offer(cid).map(|offer| offer.contract);
        let theirs = self.inner.known().values().find_map(offered);
        theirs.or_else(|| Some(Arc::new(self.inner.router.contract(cid)?)))
    }

    /// Puts what all peers offer on the board, whenever that or what this node offers changes.
    async fn publish(self) {
        let mut changes = self.inner.router.changes();
        let mut names = Names::default();
        loop {
            let heard = async {
                tokio::select! {
                    () = self.inner.changed.notified() => true,
                    change = changes.recv() => !matches!(change, Err(RecvError::Closed)),
                }
            };
            if self.inner.stopping.run_until_cancelled(heard).await != Some(true) {
                return;
            }
            let offered = self.distinct();
            if !names.fit(&offered) {
                continue;
            }
            let offering = Offering {
                source: PEERS.to_owned(),
                version: String::new(),
                rank: self.inner.ties.rank,
                lane: Some(lane::PEER.to_owned()),
                tools: names.tools(&offered),
                prompts: Vec::new(),
                resources: Vec::new(),
                templates: Vec::new(),
                completions: false,
                run: Arc::new(self.clone()),
            };
            if self.inner.router.put(offering).await.is_err() {
                return;
            }
        }
    }

    /// Each contract that peers offer and this node does not.
    fn distinct(&self) -> BTreeMap<Cid, Arc<Contract>> {
        let mut distinct = BTreeMap::new();
        for known in self.inner.known().values() {
            for (cid, offer) in lock(&known.offers).iter() {
                distinct.entry(*cid).or_insert_with(|| offer.contract.clone());
            }
        }
        for entry in self.inner.router.tools().iter().filter(|entry| entry.source != PEERS) {
            distinct.remove(&entry.tool.contract);
        }
        distinct
    }
}

impl Known {
    /// Whether it can be asked for this now.
    fn serves(&self, cid: &Cid) -> bool {
        self.upstream.is_ready() && lock(&self.offers).contains_key(cid)
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
