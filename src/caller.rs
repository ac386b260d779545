//! Who asks, and what they may do.
//!
//! Invariant: a caller is known before anything of what they ask is read.

use crate::{
    block::{Cid, payload::SealedPayload},
    event::Actor,
    peer,
    words::words,
};

/// A peer's id in base58, as `p2p::peer_id` checks it.
pub type Peer = String;

words! {
    /// What a caller may do. An operation names the one scope it needs.
    pub enum Scope {
        /// `mcp:call`: list and call tools, read resources, get prompts.
        Call = "mcp:call",
        /// `audit:read`: read events, blocks, proofs, exports.
        Audit = "audit:read",
        /// `admin`: everything.
        Admin = "admin",
    }
}

/// Who asks: known before anything is read of what they ask.
#[derive(Clone, Debug)]
pub struct Caller {
    pub actor: Actor,
    pub scopes: Vec<Scope>,
}

impl Caller {
    /// Whether it is another node.
    pub fn is_peer(&self) -> bool {
        self.actor.role == peer::ROLE
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// The actor, call and reason of a request.
#[derive(Clone, Debug)]
pub struct By {
    pub actor: Actor,
    pub cause: Option<Cid>,
    pub note: Option<SealedPayload>,
}
