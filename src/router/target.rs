//! What a request resolves to, before anything of it is recorded.
//!
//! Invariant: a target is fixed for the whole call; what changes on the board meanwhile changes nothing of it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    block::Cid,
    ledger::Ruling,
    router::{
        Invocation, Method, Remotes, Request, Run, board::Entry, metadata::Rule, sight::Sight, telling::Form,
    },
};

/// How long an attempt at a task goes on that a client follows: that long a client may follow it.
const FOLLOWED_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What a request resolves to: the runner, its name for the thing, and the lane.
pub(super) struct Target {
    pub method: Method,
    pub run: Arc<dyn Run>,
    pub inner: String,
    /// The public name as recorded; empty if the name is text that the caller chose.
    pub recorded_name: String,
    pub source: String,
    pub entry: Option<Arc<Entry>>,
    pub lane: String,
    pub rule: Rule,
    /// Collects the peers that the run tries.
    pub remotes: Remotes,
    /// What there was to see when the request came.
    pub sight: Sight,
}

impl Target {
    /// Returns the name that the call is counted under: the tool's, or the method of anything else.
    pub(super) fn label(&self) -> &str {
        self.entry.as_ref().map_or(self.method.as_str(), |entry| &entry.tool.name)
    }

    /// Returns the tool's contract; `None` for anything but tools.
    pub(super) fn contract(&self) -> Option<Cid> {
        self.entry.as_ref().map(|entry| entry.tool.contract)
    }

    /// Returns where an error of this node's own stands in an answer.
    pub(super) fn form(&self) -> Form {
        match &self.entry {
            None => Form::Rpc,
            Some(entry) if entry.own() => Form::Structured,
            Some(_) => Form::Meta,
        }
    }

    /// Returns how long one try may take, in a lane of this limit.
    pub(super) fn limit(&self, request: &Request, lane: Duration) -> Duration {
        let own = self.entry.as_ref().and_then(|entry| entry.metadata.timeout_ms);
        let limit = own.map_or(lane, Duration::from_millis);
        let followed = request.attempt.is_some() && request.client.takes_handles();
        match followed && (own.is_none() || request.meta.follows.is_some()) {
            true => limit.max(FOLLOWED_MAX),
            false => limit,
        }
    }

    /// Returns what is run.
    pub(super) fn invocation(
        &self,
        request: &Request,
        started: Option<Cid>,
        cancel: CancellationToken,
        ruled: Option<Ruling>,
    ) -> Invocation {
        Invocation {
            method: request.method,
            name: self.inner.clone(),
            params: request.params.clone(),
            caller: request.caller.clone(),
            client: request.client.clone(),
            progress_token: request.meta.progress_token.clone(),
            cancel,
            deadline: None,
            started,
            ruled: Arc::new(Mutex::new(ruled)),
            peer: request.meta.peer.clone(),
            remotes: self.remotes.clone(),
            sight: self.sight.clone(),
            follows: request.meta.follows.clone(),
            support: self.entry.as_ref().map(|entry| entry.support).unwrap_or_default(),
        }
    }

    /// Returns whether running it twice does no more than running it once. Of a tool its contract says so; all else
    /// is repeatable.
    pub(super) fn repeatable(&self) -> bool {
        self.entry.as_ref().is_none_or(|entry| entry.contract.repeatable())
    }
}
