//! Peers that callers asked to keep or follow, beside those of the configuration: `network.json` in the data
//! directory.
//!
//! Invariants:
//! - what a caller asked outlives the process; the file is replaced whole or not at all;
//! - what the configuration says is not written, and cannot be unsaid by a caller for longer than the process lives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    caller::Peer,
    log::home::{Home, unlinked},
};

/// Peers that callers may ask to keep.
const KEPT_MAX: usize = 1_000;

pub(super) struct RequestStore {
    path: PathBuf,
    now: Mutex<Now>,
}

struct Now {
    asked: Requested,
    /// All kept peers, those of the configuration among them.
    keep: BTreeMap<Peer, Vec<String>>,
    follow: BTreeSet<Peer>,
}

/// What callers asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Requested {
    keep: BTreeMap<Peer, Vec<String>>,
    follow: BTreeSet<Peer>,
    /// Peers that callers parted from, which are not dialled until a caller asks.
    apart: BTreeSet<Peer>,
}

impl RequestStore {
    /// Reads the callers' requests and adds the configuration. A file that cannot be read counts as empty, with a
    /// warning.
    pub(super) fn open(
        home: &Home,
        mut keep: BTreeMap<Peer, Vec<String>>,
        mut follow: BTreeSet<Peer>,
    ) -> Self {
        let path = home.dir().join("network.json");
        let mut asked = match fs::read(&path).map(|text| serde_json::from_slice::<Requested>(&text)) {
            Ok(Ok(asked)) => asked,
            Ok(Err(err)) => {
                tracing::warn!(%err, "network.json cannot be read; peers that callers asked to keep are forgotten");
                Requested::default()
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Requested::default(),
            Err(err) => {
                tracing::warn!(%err, "network.json cannot be read; peers that callers asked to keep are forgotten");
                Requested::default()
            }
        };
        // The configuration was read after the caller parted: it says so again.
        asked.apart.retain(|peer| !keep.contains_key(peer) && !follow.contains(peer));
        for (peer, addrs) in &asked.keep {
            keep.entry(peer.clone()).or_insert_with(|| addrs.clone());
        }
        follow.extend(asked.follow.iter().cloned());
        Self { path, now: Mutex::new(Now { asked, keep, follow }) }
    }

    /// Returns the peers to stay connected with, and their addresses. A peer that a caller parted from is not among
    /// them, even if its log is followed.
    pub(super) fn peers(&self) -> BTreeMap<Peer, Vec<String>> {
        let now = self.now();
        let followed = now.follow.iter().map(|peer| (peer.clone(), Vec::new()));
        let kept = followed.chain(now.keep.clone());
        kept.filter(|(peer, _)| !now.asked.apart.contains(peer)).collect()
    }

    pub(super) fn addrs(&self, peer: &str) -> Vec<String> {
        self.now().keep.get(peer).cloned().unwrap_or_default()
    }

    pub(super) fn followed(&self) -> BTreeSet<Peer> {
        self.now().follow.clone()
    }

    pub(super) fn keep(&self, peer: &str, addrs: Vec<String>) {
        self.change(|now| {
            if now.asked.keep.len() < KEPT_MAX || now.asked.keep.contains_key(peer) {
                now.asked.keep.insert(peer.to_owned(), addrs.clone());
                now.keep.insert(peer.to_owned(), addrs);
            }
        });
    }

    /// Notes that a caller parted from a peer: it is neither kept nor joined by.
    pub(super) fn let_go(&self, peer: &str) {
        self.change(|now| {
            now.asked.keep.remove(peer);
            now.keep.remove(peer);
            if now.asked.apart.len() < KEPT_MAX {
                now.asked.apart.insert(peer.to_owned());
            }
        });
    }

    /// Notes that a caller wants the peer back.
    pub(super) fn take_back(&self, peer: &str) {
        if self.is_apart(peer) {
            self.change(|now| {
                now.asked.apart.remove(peer);
            });
        }
    }

    pub(super) fn is_apart(&self, peer: &str) -> bool {
        self.now().asked.apart.contains(peer)
    }

    /// Notes a peer to follow. Returns false if there is no room for another.
    pub(super) fn follow(&self, peer: &str) -> bool {
        let mut follows = false;
        self.change(|now| {
            follows = now.follow.contains(peer);
            if !follows && now.follow.len() < KEPT_MAX {
                follows = now.follow.insert(peer.to_owned());
                now.asked.follow.insert(peer.to_owned());
            }
        });
        follows
    }

    /// Notes that a peer is followed no longer. Returns whether it was.
    pub(super) fn unfollow(&self, peer: &str) -> bool {
        let mut was = false;
        self.change(|now| {
            now.asked.follow.remove(peer);
            was = now.follow.remove(peer);
        });
        was
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.now();
        change(&mut now);
        // Small, rare, and under the lock, so that two changes cannot overtake each other on the disk.
        if let Err(err) = self.write(&now.asked) {
            tracing::warn!(%err, "network.json is not written; what was asked for ends with this process");
        }
    }

    fn write(&self, asked: &Requested) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = unlinked().create(true).truncate(true).write(true).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(asked)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::p2p::hub::requested::*;

    #[test]
    fn a_followed_peer_that_a_caller_parted_from_is_kept_again_when_a_caller_asks() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || {
            let home = Home::open(dir.path()).expect("a home");
            RequestStore::open(&home, BTreeMap::new(), BTreeSet::new())
        };
        let kept = open();
        assert!(kept.follow("a") && kept.peers().contains_key("a"));
        kept.let_go("a");
        assert!(!kept.peers().contains_key("a") && kept.followed().contains("a"));
        drop(kept);
        let kept = open();
        assert!(!kept.peers().contains_key("a"), "it outlives the process");
        kept.take_back("a");
        assert!(kept.peers().contains_key("a"));
    }

    #[test]
    fn what_the_configuration_keeps_is_kept_again_by_the_next_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || {
            let home = Home::open(dir.path()).expect("a home");
            RequestStore::open(
                &home,
                BTreeMap::from([("a".to_owned(), Vec::new())]),
                BTreeSet::from(["b".to_owned()]),
            )
        };
        let kept = open();
        for peer in ["a", "b"] {
            kept.let_go(peer);
            assert!(!kept.peers().contains_key(peer), "{peer} is left alone");
        }
        drop(kept);
        assert!(open().peers().keys().eq(["a", "b"]));
    }
}
