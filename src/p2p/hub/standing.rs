//! Standing: a recent copy of what the log knows of connected peers, for choosing one to call.
//!
//! Invariants:
//! - choosing asks nobody: it reads what was read of the state a moment ago.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::Hub;
use crate::peer::Peer as Known;

/// How old that copy may be.
const REFRESH: Duration = Duration::from_secs(1);

/// Keeps that copy recent until it is dropped.
pub(super) async fn refresh(hub: Hub) {
    let mut connected = hub.connected();
    loop {
        let peers = connected.borrow_and_update().clone();
        let mut standing = HashMap::with_capacity(peers.len());
        for peer in peers {
            if let Some(known) = hub.known(&peer).await {
                standing.insert(peer, Arc::new(known));
            }
        }
        *hub.inner.standing.write().unwrap_or_else(PoisonError::into_inner) = standing;
        // A new connection, and who takes no part any more, is read at once; the rest when it is due.
        tokio::select! {
            changed = connected.changed() => if changed.is_err() { return },
            () = hub.inner.stale.notified() => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
    }
}

impl Hub {
    /// Returns what the log knew of a connected peer a moment ago.
    pub fn facts(&self, peer: &str) -> Option<Arc<Known>> {
        self.inner.standing.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }
}
