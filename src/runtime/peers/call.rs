//! One call of a tool that peers offer: who is asked, who after that, and what is told of each.
//!
//! Invariants:
//! - every peer that was asked is told of once, whatever became of the call;
//! - the peer is asked for this contract and no other, and hears of the event that asks; one that knows no contracts
//!   is asked as any server is.

use std::{sync::atomic::Ordering, time::Instant};

use serde_json::{json, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::{Cid, splice},
    call::{Code, Refusal, Remote},
    catalogue::PEERS,
    event::peer::RemoteCalled,
    router::{BoxFuture, Invocation, Method, Outcome, Remotes, RpcError, Run},
    runtime::{
        gateway::{ask, outcome, text_member},
        peers::{Known, Peers, offers::place},
        upstream::{Failure, Reply},
    },
};

/// Peers that one call is tried at.
pub const TRIES_MAX: u64 = 3;
/// The error of a peer that asks to be asked later: it has run nothing.
const RATE_LIMITED: i64 = -32010;
/// Names of our metadata.
const OUR_KEYS: &str = "io.cairn/";

impl Run for Peers {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(self.call(invocation))
    }
}

impl Peers {
    async fn call(&self, invocation: Invocation) -> Outcome {
        if invocation.caller.is_peer() {
            let refusal = Refusal::new(Code::PermissionDenied, "calls of peers do not go on to other peers");
            return Outcome::Refused(refusal.hint("ask the node that offers the tool"));
        }
        if invocation.method != Method::ToolsCall {
            return Outcome::Rpc(Box::new(RpcError::invalid_params("peers offer tools alone")));
        }
        match invocation.name.parse() {
            Ok(contract) => self.call_any(invocation, contract).await,
            Err(_) => self.call_one(invocation).await,
        }
    }

    /// Asks one peer after the other that serves this contract.
    async fn call_any(&self, invocation: Invocation, contract: Cid) -> Outcome {
        let mut asked = Vec::new();
        let mut last =
            Outcome::Transport { message: "no peer that offers this tool can be asked now".to_owned() };
        for attempt in 1..=TRIES_MAX {
            let Some((peer, rule, known)) = self.choose(&contract, &asked) else {
                return last;
            };
            let Some(offer) = known.offer(&contract) else {
                return last;
            };
            let Some(params) = params(&invocation, &contract, &offer.name) else {
                return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
            };
            let trying = Trying::new(
                &invocation,
                &known,
                RemoteCalled {
                    peer: peer.clone(),
                    contract,
                    ok: false,
                    code: None,
                    took_us: 0,
                    rule,
                    attempt,
                },
            );
            let reply = ask(&known.upstream, &invocation, params).await;
            let failed = trying.end(&reply);
            last = outcome(reply);
            if !failed || !offer.contract.repeatable() || invocation.cancel.is_cancelled() {
                return last;
            }
            asked.push(peer);
        }
        last
    }

    /// Asks the one peer that has a tool without a contract there.
    async fn call_one(&self, invocation: Invocation) -> Outcome {
        let inner = &self.inner;
        let held = |peer: &str| (inner.ties.facts)(peer).is_some_and(|facts| facts.quarantine.is_some());
        let asked = place(&invocation.name).filter(|(_, peer)| !held(peer)).and_then(|(name, peer)| {
            let known = inner.known().get(peer).filter(|known| known.has(name)).cloned()?;
            let tools = inner.router.tools();
            let entry = tools.iter().find(|entry| entry.source == PEERS && entry.inner == invocation.name)?;
            Some((name, peer, known, entry.tool.contract))
        });
        let Some((name, peer, known, contract)) = asked else {
            return Outcome::Transport {
                message: "the peer that has this tool cannot be asked now".to_owned(),
            };
        };
        let Some(params) = plain_params(&invocation, name) else {
            return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
        };
        let (peer, rule) = (peer.to_owned(), "only".to_owned());
        let facts = RemoteCalled { peer, contract, ok: false, code: None, took_us: 0, rule, attempt: 1 };
        let trying = Trying::new(&invocation, &known, facts);
        let reply = ask(&known.upstream, &invocation, params).await;
        trying.end(&reply);
        outcome(reply)
    }
}

/// A peer is being asked. Dropped before it has answered, it is told of as one that did not.
struct Trying<'a> {
    remotes: Remotes,
    known: &'a Known,
    facts: Option<RemoteCalled>,
    begun: Instant,
    cancel: CancellationToken,
}

impl<'a> Trying<'a> {
    fn new(invocation: &Invocation, known: &'a Known, facts: RemoteCalled) -> Self {
        known.in_flight.fetch_add(1, Ordering::Relaxed);
        known.counts.sent.fetch_add(1, Ordering::Relaxed);
        Self {
            remotes: invocation.remotes.clone(),
            known,
            facts: Some(facts),
            begun: Instant::now(),
            cancel: invocation.cancel.clone(),
        }
    }

    /// Tells of the peer's reply. True where the peer is what failed.
    fn end(mut self, reply: &Result<Reply, Failure>) -> bool {
        let (code, event) = match reply {
            Ok(Reply::Result(result)) => (None, event_of(result)),
            Ok(Reply::Error { code: RATE_LIMITED, .. }) => (Some("rate_limited"), None),
            Ok(Reply::Error { data, .. }) => {
                let event = data.as_ref().and_then(|data| text_member(data, "io.cairn/event"));
                (None, event.and_then(|event| event.parse().ok()))
            }
            Err(Failure::Unavailable { .. }) => (Some("unavailable"), None),
            Err(Failure::Died) => (Some("died"), None),
            Err(Failure::TimedOut) => (Some("timeout"), None),
            Err(Failure::Cancelled) => (Some("cancelled"), None),
            Err(Failure::Broken(_)) => (Some("broken"), None),
            Err(Failure::TooLarge | Failure::Oversize { .. }) => (Some("too_large"), None),
        };
        self.tell(code, event);
        matches!(
            reply,
            Ok(Reply::Error { code: RATE_LIMITED, .. })
                | Err(Failure::Unavailable { .. } | Failure::Died | Failure::TimedOut | Failure::Broken(_))
        )
    }

    fn tell(&mut self, code: Option<&str>, event: Option<Cid>) {
        let Some(facts) = self.facts.take() else { return };
        self.known.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.known.metrics.peers.request("out", if code.is_some() { "failed" } else { "ok" });
        if code.is_some() {
            self.known.counts.failures.fetch_add(1, Ordering::Relaxed);
        }
        let took_us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let facts = RemoteCalled { ok: code.is_none(), code: code.map(str::to_owned), took_us, ..facts };
        self.remotes.tell(Remote { facts, refs: event.into_iter().collect() });
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        // The router drops what has outlived its time before it cancels it.
        let code = if self.cancel.is_cancelled() { "cancelled" } else { "timeout" };
        self.tell(Some(code), None);
    }
}

/// The request's params as the peer gets them.
fn params(invocation: &Invocation, contract: &Cid, name: &str) -> Option<Box<RawValue>> {
    let empty = splice::raw("{}".to_owned());
    let meta = splice::member(&invocation.params, "_meta").ok()?.unwrap_or(&empty);
    let contract = splice::raw(splice::quoted(&contract.to_string()));
    let started = invocation.started.iter().map(Cid::to_string).collect::<Vec<_>>();
    let refs = splice::raw(json!(started).to_string());
    let own: [(&str, &RawValue); 2] = [("io.cairn/contract", &contract), ("io.cairn/refs", &refs)];
    let meta = splice::edit(meta, &own, |key| key.starts_with(OUR_KEYS)).ok()?;
    let name = splice::raw(splice::quoted(name));
    splice::edit(&invocation.params, &[("name", &name), ("_meta", &meta)], |_| false).ok()
}

/// The same for a peer that knows nothing of this node's metadata.
fn plain_params(invocation: &Invocation, name: &str) -> Option<Box<RawValue>> {
    let name = splice::raw(splice::quoted(name));
    let Some(meta) = splice::member(&invocation.params, "_meta").ok()? else {
        return splice::edit(&invocation.params, &[("name", &name)], |_| false).ok();
    };
    let meta = splice::edit(meta, &[], |key| key.starts_with(OUR_KEYS)).ok()?;
    splice::edit(&invocation.params, &[("name", &name), ("_meta", &meta)], |_| false).ok()
}

/// The event that the answering node names in its result.
fn event_of(result: &RawValue) -> Option<Cid> {
    text_member(splice::member(result, "_meta").ok()??, "io.cairn/event")?.parse().ok()
}
