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

/// What is wished of the task that owns the swarm.
pub(super) enum Command {
    Dial { peer: Peer, addrs: Vec<String>, answer: Answer<Result<Connected, NetError>> },
    Disconnect { peer: Peer, answer: Answer<bool> },
    Open { peer: Peer, wire: Wire, answer: Answer<Result<Stream, NetError>> },
    Block { peer: Peer, blocked: bool, answer: Answer<Result<(), NetError>> },
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

/// Speaks to the network; clones speak to the same one.
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

    /// Where this node listens and is known to be reached, each with its id at the end.
    pub fn addrs(&self) -> Vec<String> {
        self.addrs.borrow().clone()
    }

    /// The addresses once there is at least one. Errors: none within `timeout`.
    pub async fn listening(&self, timeout: Duration) -> Result<Vec<String>, NetError> {
        let mut addrs = self.addrs.clone();
        let listening = time::timeout(timeout, addrs.wait_for(|addrs| !addrs.is_empty())).await;
        let addrs = listening.map_err(|_| NetError::Timeout(timeout))?.map_err(|_| NetError::Stopped)?;
        Ok(addrs.clone())
    }

    /// A connection with the peer, new or the one that stands, once the peer has said who it is or was given
    /// time to. Without addresses, those known of it are tried.
    pub async fn dial(
        &self,
        peer: &str,
        addrs: Vec<String>,
        timeout: Duration,
    ) -> Result<Connected, NetError> {
        let peer = peer.to_owned();
        self.ask(timeout, |answer| Command::Dial { peer, addrs, answer }).await?
    }

    /// Closes all connections with the peer; nothing here dials it until [`Self::dial`] is called for it.
    /// False: there was none.
    pub async fn disconnect(&self, peer: &str) -> bool {
        let peer = peer.to_owned();
        let asked = self.ask(limits::OPEN_MAX, |answer| Command::Disconnect { peer, answer });
        asked.await.unwrap_or(false)
    }

    /// A new stream to a connected peer. What the peer does not speak may show at the first read only.
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

    /// Closes all connections with the peer and takes none until it is unblocked.
    pub async fn block(&self, peer: &str) -> Result<(), NetError> {
        let peer = peer.to_owned();
        self.ask(limits::OPEN_MAX, |answer| Command::Block { peer, blocked: true, answer }).await?
    }

    pub async fn unblock(&self, peer: &str) -> Result<(), NetError> {
        let peer = peer.to_owned();
        self.ask(limits::OPEN_MAX, |answer| Command::Block { peer, blocked: false, answer }).await?
    }

    /// Says in the table that this node serves these keys, and says it again for as long as it runs.
    pub async fn provide(&self, keys: Vec<Cid>) -> Result<(), NetError> {
        self.ask(limits::OPEN_MAX, |answer| Command::Provide { keys, answer }).await?
    }

    /// Says it no longer; what others have kept ends with its time.
    pub async fn stop_providing(&self, keys: Vec<Cid>) {
        self.tell(Command::StopProviding { keys }).await;
    }

    /// Which other peers say that they serve the key; what is known by the end of `timeout` where the table is
    /// slow. Whoever is named has said so; that they do serve it shows only when they are asked.
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

    /// Where the table says that the peer listens.
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

    /// Says that this node is seen under these addresses from outside, and under none told before. Others are asked
    /// whether they reach it there.
    pub async fn seen(&self, ips: Vec<IpAddr>) {
        self.tell(Command::Seen { ips }).await;
    }

    /// Tells all who listen of a signed head.
    pub async fn publish_head(&self, bytes: Vec<u8>) {
        self.tell(Command::PublishHead { bytes }).await;
    }

    /// Signed heads from now on, each to be judged.
    pub fn heads(&self) -> broadcast::Receiver<Head> {
        self.heads.subscribe()
    }

    /// Says what is to become of a head; without it the head goes no further.
    pub async fn judge(&self, head: &Head, verdict: Verdict) {
        self.tell(Command::Judge { id: head.id.clone(), from: head.from.clone(), verdict }).await;
    }

    /// Says whose connections are kept though they carry nothing; those of all others end when they are idle.
    pub async fn keep(&self, peers: HashSet<Peer>) {
        self.tell(Command::Keep { peers }).await;
    }

    pub async fn snapshot(&self) -> Snapshot {
        self.ask(limits::OPEN_MAX, |answer| Command::Snapshot { answer }).await.unwrap_or_default()
    }

    /// What happens from now on. A listener that falls behind is told how much it missed.
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
