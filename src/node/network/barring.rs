//! Barring: peers that signed two histories of their log may ask nothing of this node.
//!
//! Invariants:
//! - a barred peer is served again only after an operator has released it;
//! - if the state of a peer cannot be read, it is not served. A peer without any record is served.

use std::sync::Arc;

use crate::{
    mcp,
    p2p::hub::Hub,
    peer::Quarantine,
    query::{QueryError, Readers},
};

/// Returns the check that bars a peer whose log forked until it is released.
pub(super) async fn barring(hub: Hub, readers: Arc<Readers>, peer: &str) -> mcp::Barred {
    // The hub may not have read the facts of a peer that has just connected, so they are read here once.
    let before = {
        let peer = peer.to_owned();
        let asked = move || readers.ask(|view| view.peer(&peer, None));
        match tokio::task::spawn_blocking(asked).await {
            Ok(Ok(known)) => Ok(known.what.quarantine),
            Ok(Err(QueryError::NotFound(_))) => Ok(None),
            Ok(Err(err)) => Err(err.to_string()),
            Err(err) => Err(err.to_string()),
        }
    };
    let before = before.map_err(|err| tracing::error!(peer, %err, "how a peer stands cannot be read"));
    mcp::Barred::new(move |peer| {
        why_barred(peer, hub.facts(peer).map_or(before, |known| Ok(known.quarantine)))
    })
}

/// Returns why a peer is not served, if it is barred. A peer whose facts could not be read is barred too.
fn why_barred(peer: &str, held: Result<Option<Quarantine>, ()>) -> Option<String> {
    let Ok(held) = held else {
        return Some(
            "this node cannot read now whether it may take calls of this peer; ask again later".to_owned(),
        );
    };
    let held = held?.event;
    Some(format!(
        "this node takes no calls of a peer that signed two histories of its log (its event {held}); its operator \
         lifts that with `cairn peers follow {peer} --release`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Cid, Codec};

    #[test]
    fn a_peer_is_served_that_is_known_to_have_one_history_or_none() {
        let event = Cid::of(Codec::Raw, b"a fork");
        let held = Quarantine { event, log: event, size_a: 1, size_b: 2 };
        let why = |held| why_barred("p", held).unwrap_or_default();
        assert_eq!(why(Ok(None)), "");
        assert!(why(Ok(Some(held))).contains(&format!("its event {event}")));
        assert!(why(Err(())).contains("ask again later"));
    }
}
