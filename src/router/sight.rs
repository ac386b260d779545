//! Sight: what one caller sees of the board, and what it may call of that.
//!
//! Invariants:
//! - what a caller does not see is told it as what is not there: in lists, in calls, as a suggestion or in a hint;
//! - what a source has beside tools is for callers who may call one of its tools, or any, where it has none.

use std::sync::{Arc, PoisonError};

use crate::{
    caller::{Caller, rights::Rights},
    error::{Code, Refusal},
    router::{
        Change, Entry, Held, Offer, Router, RpcError,
        audience::Audience,
        board::{Board, Source},
        telling::not_found,
    },
};

/// The board at one moment, with the rights of everybody.
#[derive(Clone)]
pub struct Sight {
    board: Arc<Board>,
    rights: Arc<Rights>,
}

impl Sight {
    pub(super) fn board(&self) -> &Board {
        &self.board
    }

    /// Returns whether the rights let a caller call this tool, whatever its scopes.
    pub fn allows(&self, caller: &Caller, entry: &Entry) -> bool {
        let named = entry.named();
        if self.rights.are_open() || entry.finds {
            return true;
        }
        let offered = !entry.own() || self.rights.offer(named.group);
        offered && self.rights.allow(&caller.actor.id, &named)
    }

    /// Returns whether a caller has the scope for this tool.
    pub fn scoped(caller: &Caller, entry: &Entry) -> bool {
        match &entry.needs {
            Some(scope) => caller.may(scope.clone()),
            None => caller.may_call(&entry.named()),
        }
    }

    /// Returns whether a caller sees this tool.
    pub fn sees(&self, caller: &Caller, entry: &Entry) -> bool {
        self.allows(caller, entry) && Self::scoped(caller, entry)
    }

    /// Returns whether durable work may call a tool for a caller who sees it. Such a call comes later and has the whole
    /// scope `mcp:call`, since the log holds no scopes. So a tool that itself names others needs that scope now.
    pub fn lasts(caller: &Caller, entry: &Entry) -> bool {
        let names_others = entry.dispatches || entry.plans;
        !entry.finds && (!names_others || caller.has_all_calls())
    }

    /// Returns whether the call of a tool reaches it. One of this node's own that only a scope is missing for is reached,
    /// and refused with the scope that it needs.
    pub fn reaches(&self, caller: &Caller, entry: &Entry) -> bool {
        self.allows(caller, entry) && (entry.own() || Self::scoped(caller, entry))
    }

    /// Returns why a caller may not call a tool of this node that it has reached; `None` if it may.
    pub fn unscoped(caller: &Caller, entry: &Entry) -> Option<Refusal> {
        let scope = entry.needs.as_ref().filter(|_| !Self::scoped(caller, entry))?;
        let refusal = Refusal::new(Code::PermissionDenied, format!("this needs the scope {scope}"));
        Some(refusal.hint(format!("call with a token that has the scope {scope}")))
    }

    /// Returns whether a caller may read the resources and get the prompts of a source.
    pub fn reads(&self, caller: &Caller, source: &Source) -> bool {
        match source.tools() {
            [] => caller.may_call_all(),
            tools => tools.iter().any(|entry| self.sees(caller, entry)),
        }
    }

    /// Returns whether a caller sees this node's own tool of this name.
    pub fn sees_own(&self, caller: &Caller, name: &str) -> bool {
        self.board.tool(name).is_some_and(|entry| entry.own() && self.sees(caller, &entry))
    }

    /// Returns a refusal without its hint, if that names a tool of this node that the caller does not see.
    pub fn hinted(&self, caller: &Caller, refusal: Refusal) -> Refusal {
        let hidden = |word: &str| {
            let own = self.board.tool(word).filter(|entry| entry.own() && entry.tool.name == word);
            own.is_some_and(|entry| !self.sees(caller, &entry))
        };
        let names = |hint: &String| {
            let words = hint.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            words.into_iter().any(hidden)
        };
        Refusal { hint: refusal.hint.filter(|hint| !names(hint)), ..refusal }
    }
}

impl Router {
    /// Sets the rights of everybody from now on, and tells listeners that lists may have changed.
    pub fn govern(&self, rights: Rights) {
        *self.inner.rights.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rights);
        self.notify(Change::Tools);
    }

    /// Returns what there is to see now.
    pub fn sight(&self) -> Sight {
        let rights = self.inner.rights.read().unwrap_or_else(PoisonError::into_inner).clone();
        Sight { board: self.board(), rights }
    }

    /// Returns what a client sees now of what its caller may call.
    pub fn offer_for(&self, audience: &Audience, caller: &Caller) -> Arc<Offer> {
        let sight = self.sight();
        let (calls, reads) =
            (|entry: &Entry| sight.sees(caller, entry), |source: &Source| sight.reads(caller, source));
        sight.board.offer_to(&audience.capabilities, calls, reads)
    }

    /// Returns the tools that a caller sees, in the order of the offer, without those that find others.
    pub fn tools_for(&self, caller: &Caller) -> Vec<Arc<Entry>> {
        let sight = self.sight();
        let seen = sight.board.entries.iter().filter(|entry| !entry.finds && sight.sees(caller, entry));
        seen.cloned().collect()
    }

    /// Returns the tools that the rights allow a peer, whatever its scopes: those of its token are not known when it
    /// lists them.
    pub fn tools_for_peer(&self, peer: &Caller) -> Vec<Arc<Entry>> {
        let sight = self.sight();
        let allowed = sight.board.entries.iter().filter(|entry| !entry.finds && sight.allows(peer, entry));
        allowed.cloned().collect()
    }

    /// Returns whether a caller's call of a tool reaches it.
    pub fn reaches(&self, caller: &Caller, entry: &Entry) -> bool {
        self.sight().reaches(caller, entry)
    }

    /// Returns the tool of this public name or contract, if a caller sees it.
    pub fn tool_for(&self, caller: &Caller, name: &str) -> Option<Arc<Entry>> {
        let sight = self.sight();
        sight.board.tool(name).filter(|entry| sight.sees(caller, entry))
    }

    /// Returns whether a caller may read a resource that some source has.
    pub fn reads(&self, caller: &Caller, uri: &str) -> bool {
        self.resource_for(&self.sight(), caller, uri).is_some()
    }

    /// Watches a resource for a caller until what is returned is dropped. Errors: no source that it sees has it, or its
    /// source refuses.
    pub async fn watch_for(&self, caller: &Caller, uri: &str, audience: &Audience) -> Result<Held, RpcError> {
        let sight = self.sight();
        let found = self.resource_for(&sight, caller, uri);
        let (source, inner) = found.ok_or_else(|| not_found(uri))?;
        if !source.declared.subscriptions {
            let message = "the source of this resource does not tell when it changes";
            return Err(RpcError::invalid_params(message));
        }
        source.run.watch(&inner, audience).await
    }

    /// Returns the source of a resource that a caller may read, and the source's own URI.
    pub(super) fn resource_for(
        &self,
        sight: &Sight,
        caller: &Caller,
        uri: &str,
    ) -> Option<(Arc<Source>, String)> {
        let places = &sight.board.places;
        let linked = || {
            let source = self.inner.links.source(&caller.actor.id, uri)?;
            Some((places.source(&source)?, uri.to_owned()))
        };
        let found = places.named(uri).or_else(linked).or_else(|| places.resource(uri));
        found.filter(|(source, _)| sight.reads(caller, source))
    }
}
