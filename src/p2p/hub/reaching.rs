//! Reaching: one peer, on the wish of a caller, and streams to those that are connected.
//!
//! Invariants:
//! - who asked for a connection, or for its end, is in the event of it;
//! - a peer that a caller parted from is dialled again when a caller asks for it, and by nothing else.

use std::time::{Duration, Instant};

use super::{Hub, Inner, lock};
use crate::{
    caller::{By, Peer},
    p2p::{Connected, NetError, Stream, Wire},
};

/// The pause before the first further try at a peer; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// How long calls under way at a peer may take to end before it is let go.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The result of a request to connect.
#[derive(Debug)]
pub struct Attempted {
    pub connected: Result<Connected, NetError>,
    pub attempts: u32,
}

impl Hub {
    /// Connects with a peer, at the given address or at its known ones.
    pub async fn connect(
        &self,
        peer: &str,
        address: Option<String>,
        timeout: Duration,
        retries: u32,
        persist: bool,
        by: By,
    ) -> Attempted {
        self.inner.kept.take_back(peer);
        self.asks(peer, by);
        let _dialling = Dialling::new(&self.inner, peer);
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut pause = RETRY_FIRST;
        let mut attempts = 0;
        let connected = loop {
            attempts += 1;
            let addrs = match &address {
                Some(address) => vec![address.clone()],
                None => self.addresses(peer, left()).await,
            };
            let failure = match self.net().dial(peer, addrs, left()).await {
                Ok(connected) => break Ok(connected),
                Err(failure) => failure,
            };
            // Another try cannot change who answers there, nor what the text says.
            if attempts > retries || left() <= pause || !failure.may_pass() {
                break Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        // A new connection's event says who asked, when it is heard.
        if connected.as_ref().map_or(true, |made| made.reused) {
            self.asked_no_more(peer);
        }
        if persist && connected.is_ok() {
            self.inner.kept.keep(peer, address.into_iter().collect());
            self.hold().await;
        }
        Attempted { connected, attempts }
    }

    /// Disconnects a peer and does not dial it again. Returns whether it was connected.
    pub async fn disconnect(&self, peer: &str, graceful: bool, by: By) -> bool {
        self.inner.kept.let_go(peer);
        if graceful {
            let idle = async {
                while (self.inner.parts.traffic)(peer).running > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            // Whatever runs longer is cut off.
            let _ = tokio::time::timeout(DRAIN_MAX, idle).await;
        }
        self.asks(peer, by);
        let was = self.net().disconnect(peer).await;
        if !was {
            self.asked_no_more(peer);
        }
        was
    }

    /// Opens a stream to a connected peer.
    pub async fn open(&self, peer: &str, wire: Wire) -> Result<Stream, NetError> {
        let stream = self.net().open(peer, wire).await?;
        self.inner.parts.metrics.peers.stream("out", wire.as_str());
        Ok(stream)
    }

    /// Returns the peers that are being dialled because a caller asked.
    pub fn dialling(&self) -> Vec<Peer> {
        lock(&self.inner.dialling).keys().cloned().collect()
    }

    /// Returns a peer's known addresses: the kept ones and the book's, or, if there are none, the table's.
    pub(super) async fn addresses(&self, peer: &str, patience: Duration) -> Vec<String> {
        let kept = self.inner.kept.addrs(peer);
        let booked = self.book().get(peer).map(|known| known.addrs.clone()).unwrap_or_default();
        let mut addrs: Vec<String> = kept.into_iter().chain(booked).collect();
        if addrs.is_empty() {
            // A table that is off or does not know leaves it to the swarm to say that there is no address.
            addrs = self.net().find_peer(peer, patience / 2).await.unwrap_or_default();
        }
        addrs
    }

    /// Notes the caller to name in the next event about a peer's connection.
    fn asks(&self, peer: &str, by: By) {
        lock(&self.inner.asked).insert(peer.to_owned(), by);
    }

    pub(super) fn asked_no_more(&self, peer: &str) -> Option<By> {
        lock(&self.inner.asked).remove(peer)
    }
}

/// A dial that a caller asked for, for as long as it lasts.
struct Dialling<'a> {
    inner: &'a Inner,
    peer: Peer,
}

impl<'a> Dialling<'a> {
    fn new(inner: &'a Inner, peer: &str) -> Self {
        *lock(&inner.dialling).entry(peer.to_owned()).or_default() += 1;
        Self { inner, peer: peer.to_owned() }
    }
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        let mut dialling = lock(&self.inner.dialling);
        if let Some(count) = dialling.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                dialling.remove(&self.peer);
            }
        }
    }
}
