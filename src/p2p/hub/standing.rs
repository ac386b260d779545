//! Standing: what the log knows of the peers that may be called, near enough for choosing one.
//!
//! Invariants:
//! - choosing asks nobody: it reads what was read of the state a moment ago;
//! - a peer that the log has put in quarantine is not chosen, whatever it offers.

use std::{collections::HashMap, sync::PoisonError, time::Duration};

use super::{Hub, now_ms};
use crate::{
    peer::{
        choice::{self, choose},
        score::Score,
    },
    runtime::peers::Candidate,
};

/// How old what is known may be.
const REFRESH: Duration = Duration::from_secs(1);

/// Reads what the log knows of connected peers, again and again, until it is dropped.
pub(super) async fn refresh(hub: Hub) {
    let mut connected = hub.connected();
    loop {
        let peers = connected.borrow_and_update().clone();
        let mut standing = HashMap::with_capacity(peers.len());
        for peer in peers {
            if let Some(known) = hub.known(&peer).await {
                standing.insert(peer, known);
            }
        }
        *hub.inner.standing.write().unwrap_or_else(PoisonError::into_inner) = standing;
        // A new connection is read at once; the rest when it is due.
        if let Ok(Err(_)) = tokio::time::timeout(REFRESH, connected.changed()).await {
            return;
        }
    }
}

impl Hub {
    /// Who is asked first, and by which rule; none where nobody should be.
    pub fn choose(&self, among: &[Candidate]) -> Option<(usize, String)> {
        let standing = self.inner.standing.read().unwrap_or_else(PoisonError::into_inner);
        let candidate = |candidate: &'_ Candidate| {
            let in_flight = candidate.in_flight as u64;
            match standing.get(&candidate.peer) {
                // Whoever offers is connected, whatever was read before.
                Some(known) => {
                    choice::Candidate { connected: true, ..choice::Candidate::of(known, in_flight) }
                }
                None => unmeasured(),
            }
        };
        let candidates: Vec<choice::Candidate<'_>> =
            among.iter().map(|one| choice::Candidate { peer: &one.peer, ..candidate(one) }).collect();
        let mut random = [0; 8];
        // Without randomness the best is drawn by the time: any of the best will do.
        let random = match getrandom::fill(&mut random) {
            Ok(()) => u64::from_le_bytes(random),
            Err(_) => now_ms(),
        };
        let choice = choose(&candidates, now_ms(), random)?;
        let first = choice.order.first()?;
        Some((among.iter().position(|one| one.peer == *first)?, choice.rule))
    }
}

/// A peer that nothing is known of yet.
fn unmeasured<'a>() -> choice::Candidate<'a> {
    choice::Candidate {
        peer: "",
        connected: true,
        quarantined: false,
        success: Score::default(),
        call_us: None,
        latency_us: None,
        in_flight: 0,
    }
}
