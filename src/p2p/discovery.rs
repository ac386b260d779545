//! Discovery: where peers may be found, asked side by side, and what they said in one book.
//!
//! Invariants:
//! - each source's success or error is told; one that fails or hangs hides no other's finds;
//! - what nobody has confirmed for its time to live is dropped; the book is bounded in peers and addresses;
//! - what is found is a claim: it says where to knock, and grants nothing.

pub mod book;
mod entry;
pub mod file;
pub mod github;
pub mod live;
pub mod outside;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::task::JoinSet;

pub use self::book::{Book, Known};
use crate::{router::BoxFuture, words::words};

/// Peers one source may give at once.
pub const FOUND_MAX: usize = 1_000;
/// Addresses kept of one peer.
pub const ADDRS_MAX: usize = 16;
/// Bytes of one address.
pub const ADDR_MAX: usize = 512;
/// Capabilities kept of one peer.
pub const CAPABILITIES_MAX: usize = 256;
/// Bytes of one capability.
pub const CAPABILITY_MAX: usize = 128;

words! {
    /// Who said that a peer exists.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Origin {
        Bootstrap = "bootstrap",
        File = "file",
        Github = "github",
        Mdns = "mdns",
        Dht = "dht",
    }
}

/// One peer, as one source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub peer: String,
    /// Multiaddrs, the peer's id not among their parts.
    pub addrs: Vec<String>,
    /// Names of tools and CIDs of contracts that the source says it offers.
    pub capabilities: BTreeSet<String>,
    pub origin: Origin,
    /// Milliseconds since the epoch: when its source last heard of it.
    pub seen_ms: u64,
}

/// What a search is for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A peer must offer all of these.
    pub capabilities: BTreeSet<String>,
}

/// Why a source gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    #[error("did not answer in time")]
    TimedOut,
    #[error("{0}")]
    Unavailable(String),
    #[error("asks to be left alone for {} s", .0.as_secs())]
    Limited(Duration),
}

/// A source's answer: its finds, and how many of its entries were malformed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    pub found: Vec<Found>,
    pub bad: usize,
}

/// A source of peers.
pub trait Source: Send + Sync {
    fn origin(&self) -> Origin;
    /// Asks it. Safe to drop midway.
    fn look(&self, wanted: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>>;
}

/// By source, its answer or error.
pub type Fared = BTreeMap<Origin, Result<Looked, LookError>>;

/// Asks every source at once, each for at most `patience`.
pub async fn ask(
    sources: &[std::sync::Arc<dyn Source>],
    wanted: &Wanted,
    now_ms: u64,
    patience: Duration,
) -> Fared {
    let mut asked = JoinSet::new();
    for source in sources {
        let (source, wanted) = (source.clone(), wanted.clone());
        asked.spawn(async move {
            let looked = tokio::time::timeout(patience, source.look(wanted, now_ms)).await;
            (source.origin(), looked.unwrap_or(Err(LookError::TimedOut)))
        });
    }
    let mut fared = Fared::new();
    while let Some(joined) = asked.join_next().await {
        match joined {
            Ok((origin, looked)) => {
                fared.insert(origin, looked);
            }
            Err(err) => tracing::error!(%err, "a source of peers failed"),
        }
    }
    for source in sources {
        let broke = || Err(LookError::Unavailable("it broke; see the server's log".to_owned()));
        fared.entry(source.origin()).or_insert_with(broke);
    }
    fared
}

/// The nodes an operator configured.
pub struct Configured(pub Vec<Found>);

impl Configured {
    /// Reads multiaddrs that end in `/p2p/<peer id>`; the configuration has checked that they do.
    pub fn new(addresses: &[String]) -> Self {
        let mut nodes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (address, peer) in addresses.iter().filter_map(|address| address.rsplit_once("/p2p/")) {
            nodes.entry(peer).or_default().push(address.to_owned());
        }
        let found = |(peer, addrs): (&str, Vec<String>)| Found {
            peer: peer.to_owned(),
            addrs,
            capabilities: BTreeSet::new(),
            origin: Origin::Bootstrap,
            seen_ms: 0,
        };
        Self(nodes.into_iter().map(found).collect())
    }
}

impl Source for Configured {
    fn origin(&self) -> Origin {
        Origin::Bootstrap
    }

    fn look(&self, _: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        let found = self.0.iter().map(|found| Found { seen_ms: now_ms, ..found.clone() }).collect();
        Box::pin(std::future::ready(Ok(Looked { found, bad: 0 })))
    }
}

#[cfg(test)]
mod tests;
