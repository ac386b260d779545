//! One call of a tool that peers offer: who is asked, who after that, and what is told of each.
//!
//! Invariants:
//! - every peer that was asked is told of once, whatever became of the call;
//! - the peer is asked for this contract and no other, and hears of the event that asks; one that knows no contracts
//!   is asked as any server is;
//! - a refusal by the peer is reported as that peer's, with what its operator can do about it.

use std::{sync::atomic::Ordering, time::Instant};

use serde_json::{json, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::{Cid, splice},
    call::Remote,
    catalogue::PEERS,
    error::{Code, Refusal},
    event::peer::RemoteCalled,
    metrics::peers::Request,
    router::{
        BoxFuture, Invocation, Method, Outcome, Remotes, RpcError, Run,
        codes::{INVALID_PARAMS, INVALID_REQUEST, RATE_LIMITED, REQUEST_TIMEOUT},
    },
    runtime::{
        gateway::text_member,
        passing::{ask, outcome},
        peers::{Known, Peers, offers::place},
        upstream::{Failure, Reply},
        upstream_tasks::knowing,
    },
    visible,
};

/// Peers that one call is tried at.
const TRIES_MAX: u64 = 3;
/// Characters shown of what a peer says.
const SAID_MAX: usize = 256;
/// Names of our metadata.
const OUR_KEYS: &str = "io.cairn/";

impl Run for Peers {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(self.call(invocation))
    }

    fn serves(&self, peer: &str, tool: &str) -> Option<bool> {
        let known = self.inner.known().get(peer).cloned()?;
        Some(match tool.parse() {
            Ok(contract) => known.offer(&contract).is_some(),
            Err(_) => place(tool).is_some_and(|(name, at)| at == peer && known.lists(name)),
        })
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

    /// Asks the peers that serve this contract, one after the other, until one has an answer that stands.
    async fn call_any(&self, invocation: Invocation, contract: Cid) -> Outcome {
        let mut asked = Vec::new();
        let only = invocation.peer.as_deref();
        let mut last = match only {
            None => out_of_reach("no peer that offers this tool can be asked now"),
            Some(peer) => out_of_reach(&format!("peer {peer} cannot be asked for this tool now")),
        };
        for attempt in 1..=TRIES_MAX {
            let Some((peer, rule, known)) = self.choose(&contract, only, &asked) else {
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
            // Where another could be asked after it, a peer has half of what is left of the call's time.
            asked.push(peer.clone());
            let another = offer.contract.repeatable()
                && attempt < TRIES_MAX
                && self.choose(&contract, only, &asked).is_some();
            let left = invocation
                .deadline
                .filter(|_| another)
                .map(|at| at.saturating_duration_since(Instant::now()));
            let audience = knowing(&invocation.client.audience(), false);
            let reply = ask(&known.upstream, &invocation, left.map(|left| left / 2), params, &audience).await;
            let how = trying.end(&reply);
            let begun = how == How::Stopped || reply.as_ref().is_err_and(Failure::begun);
            let now = match &reply {
                _ if how == How::Stopped => Some(stopped(&peer)),
                Ok(Reply::Error { code, message, data }) if event_in(data.as_deref()).is_none() => {
                    refused(&peer, *code, message, data.as_deref())
                }
                Ok(_) | Err(_) => None,
            }
            .unwrap_or_else(|| outcome(reply.map(unmarked), &format!("peer {peer}")));
            last = now.after(Some(last));
            if how == How::Final
                || (begun && !offer.contract.repeatable())
                || invocation.cancel.is_cancelled()
            {
                return last;
            }
        }
        last
    }

    /// Asks the one peer that has a tool without a contract there.
    async fn call_one(&self, invocation: Invocation) -> Outcome {
        let inner = &self.inner;
        let held = |peer: &str| (inner.ties.facts)(peer).is_some_and(|facts| facts.quarantine.is_some());
        let may = |peer: &str| !held(peer) && invocation.peer.as_ref().is_none_or(|only| only == peer);
        let asked = place(&invocation.name).filter(|(_, peer)| may(peer)).and_then(|(name, peer)| {
            let known = inner.known().get(peer).filter(|known| known.has(name)).cloned()?;
            let tools = inner.router.tools();
            let entry = tools.iter().find(|entry| entry.source == PEERS && entry.inner == invocation.name)?;
            Some((name, peer, known, entry.tool.contract))
        });
        let Some((name, peer, known, contract)) = asked else {
            return out_of_reach("the peer that has this tool cannot be asked now");
        };
        let Some(params) = plain_params(&invocation, name) else {
            return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
        };
        let rule = "only".to_owned();
        let facts = RemoteCalled {
            peer: peer.to_owned(),
            contract,
            ok: false,
            code: None,
            took_us: 0,
            rule,
            attempt: 1,
        };
        let trying = Trying::new(&invocation, &known, facts);
        let audience = knowing(&invocation.client.audience(), false);
        let reply = ask(&known.upstream, &invocation, None, params, &audience).await;
        match trying.end(&reply) {
            How::Stopped => stopped(peer),
            How::Final | How::Failed => outcome(reply, &format!("peer {peer}")),
        }
    }
}

/// What a peer's reply says about asking another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// No other peer would do better.
    Final,
    /// The peer cancelled the call unasked, so its node is stopping.
    Stopped,
    Failed,
}

/// Returns the outcome of a call whose tool had begun when its peer stopped.
fn stopped(peer: &str) -> Outcome {
    Outcome::Transport { message: format!("peer {peer} stopped before its tool was done") }
}

/// Returns the outcome for an error that names no event: the peer's node made it, not the tool, and refused the call
/// or gave it up. Returns `None` for all other codes.
fn refused(peer: &str, code: i64, message: &str, data: Option<&RawValue>) -> Option<Outcome> {
    let said: String = message.chars().filter(|c| !visible::acts(*c)).take(SAID_MAX).collect();
    let told = |ours| Refusal::new(ours, format!("peer {peer} refused the call: {said} (error {code})"));
    let refusal = match code {
        INVALID_REQUEST => told(Code::PermissionDenied).hint(
            "what this node may call there is for that peer's operator to say: `scopes` and `tools` of this \
             node's entry in its [[p2p.peers]]",
        ),
        INVALID_PARAMS => told(Code::NotFound).hint(
            "that peer does not have this tool now; tools_list_tools names what is on offer, and `tools` of \
             this node's entry in its [[p2p.peers]] what it offers to this node",
        ),
        RATE_LIMITED => {
            let wait = data.and_then(|data| splice::member(data, "retry_after_ms").ok().flatten());
            let wait = wait.and_then(|wait| wait.get().parse::<u64>().ok());
            let wait = wait.map_or("later".to_owned(), |wait| format!("after {wait} ms"));
            told(Code::ResourceExhausted).retryable().hint(format!("ask that peer again {wait}"))
        }
        REQUEST_TIMEOUT => return Some(Outcome::TimedOut),
        _ => return None,
    };
    Some(Outcome::Untaken(refusal))
}

/// Returns the outcome of a call that no peer could be asked for.
fn out_of_reach(message: &str) -> Outcome {
    Outcome::Untaken(Refusal::new(Code::Unavailable, message).retryable())
}

/// A peer that is being asked. If this is dropped before the answer, the peer is recorded as one that did not answer.
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

    /// Records the peer's reply with the call.
    fn end(mut self, reply: &Result<Reply, Failure>) -> How {
        let (how, code, event) = match reply {
            Ok(Reply::Result(result)) if cancelled(result) && !self.cancel.is_cancelled() => {
                (How::Stopped, Some("died"), event_of(result))
            }
            Ok(Reply::Result(result)) => (How::Final, None, event_of(result)),
            Ok(Reply::Error { code: RATE_LIMITED, .. }) => (How::Failed, Some("rate_limited"), None),
            Ok(Reply::Error { data, .. }) => (How::Final, None, event_in(data.as_deref())),
            Err(Failure::Unavailable { .. } | Failure::Gone) => (How::Failed, Some("unavailable"), None),
            Err(Failure::Died) => (How::Failed, Some("died"), None),
            Err(Failure::TimedOut) => (How::Failed, Some("timeout"), None),
            Err(Failure::Broken(_)) => (How::Failed, Some("broken"), None),
            Err(Failure::Cancelled) => (How::Final, Some("cancelled"), None),
            Err(Failure::TooLarge | Failure::Oversize { .. }) => (How::Final, Some("too_large"), None),
        };
        self.tell(code, event);
        how
    }

    fn tell(&mut self, code: Option<&str>, event: Option<Cid>) {
        let Some(facts) = self.facts.take() else { return };
        self.known.in_flight.fetch_sub(1, Ordering::Relaxed);
        let request = Request { direction: "out", method: Method::ToolsCall.as_str(), known: true };
        self.known.metrics.peers.request(request, if code.is_some() { "failed" } else { "ok" });
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

/// Returns the request's params for a peer.
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

/// The event that the answering node names in an error's data.
fn event_in(data: Option<&RawValue>) -> Option<Cid> {
    text_member(data?, "io.cairn/event")?.parse().ok()
}

/// Removes the answering node's own metadata from a reply, so that equal answers of the tool are the same output.
fn unmarked(reply: Reply) -> Reply {
    let cleared = |result: &RawValue| {
        let meta = splice::edit(splice::member(result, "_meta").ok()??, &[], |key| key.starts_with(OUR_KEYS))
            .ok()?;
        match meta.get().trim_matches(['{', '}', ' ']).is_empty() {
            true => splice::edit(result, &[], |key| key == "_meta").ok(),
            false => splice::edit(result, &[("_meta", &meta)], |_| false).ok(),
        }
    };
    match reply {
        Reply::Result(result) => Reply::Result(cleared(&result).unwrap_or(result)),
        Reply::Error { .. } => reply,
    }
}

/// The event that the answering node names in its result.
fn event_of(result: &RawValue) -> Option<Cid> {
    text_member(marks(result)?, "io.cairn/event")?.parse().ok()
}

/// Returns whether the answering node itself marks the result as that of a cancelled call.
fn cancelled(result: &RawValue) -> bool {
    let mark = marks(result).and_then(|marks| splice::member(marks, "io.cairn/cancelled").ok()?);
    mark.is_some_and(|mark| mark.get() == "true")
}

/// Returns the `_meta` of a result, where the answering node puts its marks.
fn marks(result: &RawValue) -> Option<&RawValue> {
    splice::member(result, "_meta").ok()?
}
