//! What the network itself tells: neighbours that call out, and the table of who provides what.
//!
//! A capability stands in the table under a key of its own: a contract under its CID, a tool's name under the hash of the
//! name. Every node also stands under [`everybody`], so that a search without a capability finds it.
//!
//! Invariants:
//! - the table is asked at most `KEYS_MAX` questions a search, side by side;
//! - what it says is a claim by whoever keeps the record: who serves what is seen only when the peer is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;

use super::{FOUND_MAX, Found, LookError, Looked, Origin, Source, Wanted};
use crate::{
    block::{Cid, Codec},
    p2p::handle::Net,
    router::BoxFuture,
};

/// Keys that one search looks up.
const KEYS_MAX: usize = 8;
/// How long one lookup in the table may take.
const TABLE_MAX: Duration = Duration::from_secs(20);
/// How long a search waits for neighbours where none has called yet.
const NEIGHBOURS_WAIT: Duration = Duration::from_millis(1_500);
/// The pause between two looks meanwhile.
const NEIGHBOURS_PAUSE: Duration = Duration::from_millis(50);
/// Neighbours remembered.
const NEIGHBOURS_MAX: usize = 1_000;

/// Returns the key of a capability.
pub fn key(capability: &str) -> Cid {
    match capability.parse() {
        Ok(contract) => contract,
        Err(_) => hashed("capability", capability),
    }
}

/// Returns the key that every node provides.
pub fn everybody() -> Cid {
    hashed("node", "")
}

fn hashed(what: &str, name: &str) -> Cid {
    Cid::of(Codec::Raw, format!("cairn/{what}/1/{name}").as_bytes())
}

/// The Kademlia table.
pub struct Table(pub Net);

impl Source for Table {
    fn origin(&self) -> Origin {
        Origin::Dht
    }

    fn look(&self, wanted: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        Box::pin(async move {
            let names: Vec<String> = wanted.capabilities.into_iter().take(KEYS_MAX).collect();
            let keys = if names.is_empty() {
                vec![everybody()]
            } else {
                names.iter().map(|name| key(name)).collect()
            };
            let asked = keys.into_iter().map(|key| self.0.providers(key, TABLE_MAX));
            let mut found: BTreeMap<String, Found> = BTreeMap::new();
            for (nth, answer) in join_all(asked).await.into_iter().enumerate() {
                let candidates = answer.map_err(|err| LookError::Unavailable(err.to_string()))?;
                for candidate in candidates.into_iter().filter(|candidate| candidate.peer != self.0.local()) {
                    let peer = candidate.peer.clone();
                    let entry = found.entry(peer).or_insert_with(|| Found {
                        peer: candidate.peer,
                        addrs: candidate.addrs,
                        capabilities: BTreeSet::new(),
                        origin: Origin::Dht,
                        seen_ms: now_ms,
                    });
                    entry.capabilities.extend(names.get(nth).cloned());
                }
            }
            Ok(Looked { found: found.into_values().take(FOUND_MAX).collect(), bad: 0 })
        })
    }
}

/// Neighbours on the local network that announced themselves by mDNS.
#[derive(Clone, Default)]
pub struct Neighbours {
    heard: Arc<Mutex<BTreeMap<String, Found>>>,
    ttl_ms: u64,
}

impl Neighbours {
    pub fn new(ttl_ms: u64) -> Self {
        Self { heard: Arc::default(), ttl_ms }
    }

    /// Remembers a neighbour's announcement.
    pub fn hear(&self, peer: &str, addrs: Vec<String>, now_ms: u64) {
        let mut heard = self.heard();
        heard.retain(|_, found| found.seen_ms + self.ttl_ms >= now_ms);
        if heard.len() < NEIGHBOURS_MAX || heard.contains_key(peer) {
            let found = Found {
                peer: peer.to_owned(),
                addrs,
                capabilities: BTreeSet::new(),
                origin: Origin::Mdns,
                seen_ms: now_ms,
            };
            heard.insert(peer.to_owned(), found);
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Found>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Neighbours {
    fn origin(&self) -> Origin {
        Origin::Mdns
    }

    fn look(&self, _: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        Box::pin(async move {
            let patience = tokio::time::Instant::now() + NEIGHBOURS_WAIT;
            while self.heard().is_empty() && tokio::time::Instant::now() < patience {
                tokio::time::sleep(NEIGHBOURS_PAUSE).await;
            }
            let mut found: Vec<Found> = self.heard().values().cloned().collect();
            found.retain(|found| found.seen_ms + self.ttl_ms >= now_ms);
            Ok(Looked { found, bad: 0 })
        })
    }
}
