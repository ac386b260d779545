//! The handle of the network: every wish goes over one bounded channel to the task that owns the swarm.
//!
//! Invariants:
//! - each wish is answered, refused or out of time; dropping the future of any is safe, what it asked for may
//!   still happen;
//! - no wish waits without a bound.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time,
};

use crate::{
    block::Cid,
    caller::Peer,
    p2p::{Candidate, Connected, Head, NetError, NetEvent, Snapshot, Stream, Verdict, Wire, limits},
};

type Answer<T> = oneshot::Sender<T>;

/// A request to the task that owns the swarm.
pub(super) enum Command {
    Dial { peer: Peer, addrs: Vec<String>, answer: Answer<Result<Connected, NetError>> },
    Disconnect { peer: Peer, answer: Answer<bool> },
    Open { peer: Peer, wire: Wire, answer: Answer<Result<Stream, NetError>> },
    Provide { keys: Vec<Cid>, answer: Answer<Result<(), NetError>> },
    StopProviding { keys: Vec<Cid> },
    Providers { key: Cid, deadline: Instant, answer: Answer<Result<Vec<Peer>, NetError>> },
    FindPeer { peer: Peer, answer: Answer<Result<Vec<String>, NetError>> },
    BootstrapDht { answer: Answer<Result<(), NetError>> },
    PublishHead { bytes: Vec<u8> },
    Judge { id: Vec<u8>, from: Peer, verdict: Verdict },
    Seen { ips: Vec<IpAddr> },
    Keep { peers: HashSet<Peer> },
    Snapshot { answer: Answer<Snapshot> },
    Stop { answer: Answer<()> },
}

/// The handle to the network; clones refer to the same one.
#[derive(Clone)]
pub struct Net {
    pub(super) local: Peer,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) addrs: watch::Receiver<Vec<String>>,
    pub(super) events: broadcast::Sender<NetEvent>,
    pub(super) heads: broadcast::Sender<Head>,
}

impl Net {
    pub fn local(&self) -> Peer {
        self.local.clone()
    }

    /// Returns the addresses at which this node listens or is known to be reachable, each with its id at the end.
    pub fn addrs(&self) -> Vec<String> {
        self.addrs.borrow().clone()
    }

    /// Waits until there is at least one address. Errors: none within `timeout`.
    pub async fn listening(&self, timeout: Duration) -> Result<Vec<String>, NetError> {
        let mut addrs = self.addrs.clone();
        let listening = time::timeout(timeout, addrs.wait_for(|addrs| !addrs.is_empty())).await;
        let addrs = listening.map_err(|_| NetError::Timeout(timeout))?.map_err(|_| NetError::Stopped)?;
        Ok(addrs.clone())
    }

    /// Returns a connection with the peer, a new or an existing one, once the peer has identified itself or
    /// `IDENTIFY_WAIT` is over. Without addresses, those known of the peer are tried.
    pub async fn dial(
        &self,
        peer: &str,
        addrs: Vec<String>,
        timeout: Duration,
    ) -> Result<Connected, NetError> {
        let peer = peer.to_owned();
        self.ask(timeout, |answer| Command::Dial { peer, addrs, answer }).await?
    }

    /// Closes all connections with the peer; nothing here dials it until [`Self::dial`] is called for it. Returns
    /// whether there was a connection.
    pub async fn disconnect(&self, peer: &str) -> bool {
        let peer = peer.to_owned();
        let asked = self.ask(limits::OPEN_MAX, |answer| Command::Disconnect { peer, answer });
        asked.await.unwrap_or(false)
    }

    /// Opens a stream to a connected peer. That the peer does not speak the protocol may show at the first read only.
    pub async fn open(&self, peer: &str, wire: Wire) -> Result<Stream, NetError> {
        let named = peer.to_owned();
        let opened = self.ask(limits::OPEN_MAX, |answer| Command::Open { peer: named, wire, answer }).await;
        match opened {
            // The connection went, and the wish with it.
            Err(NetError::Stopped) if !self.commands.is_closed() => {
                Err(NetError::NotConnected { peer: peer.to_owned() })
            }
            opened => opened?,
        }
    }

    /// Publishes provider records for these keys in the table, again and again for as long as the node runs.
    pub async fn provide(&self, keys: Vec<Cid>) -> Result<(), NetError> {
        self.ask(limits::OPEN_MAX, |answer| Command::Provide { keys, answer }).await?
    }

    /// Stops publishing them; records that others hold expire.
    pub async fn stop_providing(&self, keys: Vec<Cid>) {
        self.tell(Command::StopProviding { keys }).await;
    }

    /// Returns the other peers with a provider record for the key, as far as known within `timeout`. A record is a
    /// claim: whether they serve it shows when they are asked.
    pub async fn providers(&self, key: Cid, timeout: Duration) -> Result<Vec<Candidate>, NetError> {
        let deadline = Instant::now() + timeout;
        let patience = timeout + limits::SWEEP_EVERY * 2;
        let mut peers = self.ask(patience, |answer| Command::Providers { key, deadline, answer }).await??;
        peers.retain(|peer| *peer != self.local);
        let candidates = peers.into_iter().map(|peer| async {
            let left = deadline.saturating_duration_since(Instant::now()).max(limits::SWEEP_EVERY);
            // A provider whose place is not found is named all the same: another source may know it.
            let addrs = self.find_peer(&peer, left).await.unwrap_or_default();
            Candidate { peer, addrs }
        });
        Ok(join_all(candidates).await)
    }

    /// Returns the peer's addresses according to the table.
    pub async fn find_peer(&self, peer: &str, timeout: Duration) -> Result<Vec<String>, NetError> {
        let peer = peer.to_owned();
        self.ask(timeout, |answer| Command::FindPeer { peer, answer }).await?
    }

    /// Looks this node's place in the table up, so that its neighbours know it. A lookup under way is joined.
    pub async fn bootstrap_dht(&self) -> Result<(), NetError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|err| NetError::Start { what: "a lookup", reason: err.to_string() })?;
        let spread = limits::DHT_STAGGER.as_millis() as u64;
        time::sleep(Duration::from_millis(u64::from_le_bytes(random) % spread)).await;
        self.ask(limits::WALK_MAX, |answer| Command::BootstrapDht { answer }).await?
    }

    /// Replaces the addresses under which this node is seen from outside. Others are asked whether they reach it
    /// there.
    pub async fn seen(&self, ips: Vec<IpAddr>) {
        self.tell(Command::Seen { ips }).await;
    }

    /// Publishes a signed head by gossip.
    pub async fn publish_head(&self, bytes: Vec<u8>) {
        self.tell(Command::PublishHead { bytes }).await;
    }

    /// Subscribes to signed heads; each is to be judged.
    pub fn heads(&self) -> broadcast::Receiver<Head> {
        self.heads.subscribe()
    }

    /// Gives the verdict on a head; without one the head is not passed on.
    pub async fn judge(&self, head: &Head, verdict: Verdict) {
        self.tell(Command::Judge { id: head.id.clone(), from: head.from.clone(), verdict }).await;
    }

    /// Sets the peers whose idle connections are kept; those of all others are closed when idle.
    pub async fn keep(&self, peers: HashSet<Peer>) {
        self.tell(Command::Keep { peers }).await;
    }

    pub async fn snapshot(&self) -> Snapshot {
        self.ask(limits::OPEN_MAX, |answer| Command::Snapshot { answer }).await.unwrap_or_default()
    }

    /// Subscribes to events. A listener that falls behind is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<NetEvent> {
        self.events.subscribe()
    }

    /// Closes everything; when this returns, the swarm is gone and its sockets with it.
    pub async fn stop(&self) {
        let (answer, done) = oneshot::channel();
        if self.commands.send(Command::Stop { answer }).await.is_ok() {
            // An answer that never comes means the same: the task has ended.
            let _ = done.await;
        }
    }

    async fn ask<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<T, NetError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.commands.send(command(answer)).await.map_err(|_| NetError::Stopped)?;
            answered.await.map_err(|_| NetError::Stopped)
        };
        time::timeout(timeout, asked).await.unwrap_or(Err(NetError::Timeout(timeout)))
    }

    async fn tell(&self, command: Command) {
        // A network that has stopped has nothing left to do.
        let _ = self.commands.send(command).await;
    }
}
