//! What each known peer may do here, as its entry in the configuration says.
//!
//! Invariant: a peer without an entry has no scopes, no tools and no content, and offers nothing.

use std::collections::BTreeMap;

use crate::{
    caller::{Caller, Scope},
    config,
    event::Actor,
    peer,
};

/// What each known peer may do here.
pub(super) struct Entries(BTreeMap<String, config::Entry>);

impl Entries {
    pub fn new(entries: &[config::Entry]) -> Self {
        Self(entries.iter().map(|entry| (entry.id.clone(), entry.clone())).collect())
    }

    pub fn knows(&self, peer: &str) -> bool {
        self.0.contains_key(peer)
    }

    /// The caller that a peer is.
    pub fn caller(&self, peer: &str) -> Caller {
        let entry = self.0.get(peer);
        let scopes = entry.map(|entry| entry.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect());
        Caller {
            actor: Actor { id: peer.to_owned(), role: peer::ROLE.to_owned(), proof: None },
            scopes: scopes.unwrap_or_default(),
        }
    }

    /// The tools that a peer may see and call; all that its scopes allow where there is none.
    pub fn tools(&self, peer: &str) -> Vec<String> {
        self.0.get(peer).map(|entry| entry.tools.clone()).unwrap_or_default()
    }

    pub fn gives_payloads(&self, peer: &str) -> bool {
        self.0.get(peer).is_some_and(|entry| entry.payloads)
    }

    pub fn offers(&self, peer: &str) -> bool {
        self.0.get(peer).is_some_and(|entry| entry.offer)
    }
}
