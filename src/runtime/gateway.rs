//! The gateway: what an upstream server offers, put on the router's board, and calls handed back to it.
//!
//! Invariants:
//! - an upstream that is lost keeps its place: its tools stay listed, and calls say that it is unavailable;
//! - names are public here and the upstream's own there; every other byte of a request passes unchanged.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, value::RawValue};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    block::splice,
    error::{Code, Refusal},
    metrics::Metrics,
    router::{
        BoxFuture, Invocation, Method, Offered, Offering, Outcome, Router, RpcError, Run, lane,
        metadata::Hints, renamed,
    },
    runtime::upstream::{self, Failure, Options, Reply, State, Upstream},
};

/// Notifications of one call that may wait for its caller; more are dropped.
const NOTIFICATIONS_MAX: usize = 256;
/// The router bounds the time of a call; this bounds a request that the router has lost.
pub const REQUEST_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How an upstream's offer appears here.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    /// Put before tool and prompt names; empty passes them as they are.
    pub prefix: String,
    /// Tools to offer, by their own names; empty offers all. A trailing `*` stands for any ending.
    pub enable: Vec<String>,
    /// Tools not to offer.
    pub disable: Vec<String>,
    pub rank: u32,
    pub lane: Option<String>,
    pub timeout_ms: Option<u64>,
}

/// Keeps the board in step with one upstream until `stop`, or until the ledger ends.
///
/// `settled` is notified once its tools are on the board, or the first connection has failed.
pub async fn follow(
    upstream: Upstream,
    settings: Settings,
    router: Router,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    settled: oneshot::Sender<State>,
) {
    let mut offer = upstream.offer();
    let mut settled = Some(settled);
    loop {
        let offered = offer.borrow_and_update().clone();
        let up = offered.state == State::Ready;
        metrics.upstream_up(&settings.name, up);
        if up && router.put(settings.offering(&offered, upstream.clone())).await.is_err() {
            break;
        }
        if offered.state != State::Connecting
            && let Some(settled) = settled.take()
        {
            // Whoever started this may have stopped waiting.
            let _ = settled.send(offered.state.clone());
        }
        tokio::select! {
            changed = offer.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
        }
    }
    upstream.stop().await;
}

impl Settings {
    fn offering(&self, offered: &upstream::Offered, upstream: Upstream) -> Offering {
        let server =
            offered.server.as_ref().and_then(|server| serde_json::from_str::<Value>(server.get()).ok());
        let version = server.as_ref().and_then(|server| server["version"].as_str()).unwrap_or_default();
        let hints = Hints { timeout_ms: self.timeout_ms, ..Hints::default() };
        let named = |definitions: &[Box<RawValue>]| -> Vec<Offered> {
            definitions.iter().filter_map(|definition| self.named(definition, &hints)).collect()
        };
        let mut tools = named(&offered.tools);
        tools.retain(|tool| self.offers(&tool.inner));
        Offering {
            source: self.name.clone(),
            version: version.to_owned(),
            rank: self.rank,
            lane: Some(self.lane.clone().unwrap_or_else(|| lane::UPSTREAM.to_owned())),
            tools,
            prompts: named(&offered.prompts),
            resources: keyed(&offered.resources, "uri"),
            templates: keyed(&offered.templates, "uriTemplate"),
            completions: offered.capabilities.completions,
            run: Arc::new(Gateway { upstream, prefix: self.prefix.clone() }),
        }
    }

    /// Returns a tool or prompt under its public name.
    fn named(&self, definition: &RawValue, hints: &Hints) -> Option<Offered> {
        let inner = text_member(definition, "name")?;
        let name = format!("{}{inner}", self.prefix);
        let definition = match self.prefix.is_empty() {
            true => definition.to_owned(),
            false => renamed(definition, &name)?,
        };
        Some(Offered { inner, name, definition, hints: hints.clone(), contract: None })
    }

    fn offers(&self, tool: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|pattern| fits(pattern, tool));
        (self.enable.is_empty() || listed(&self.enable)) && !listed(&self.disable)
    }
}

/// Passes invocations to an upstream.
struct Gateway {
    upstream: Upstream,
    prefix: String,
}

impl Run for Gateway {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let Some(params) = self.params(&invocation) else {
                return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
            };
            let who = format!("upstream {}", self.upstream.name());
            outcome(ask(&self.upstream, &invocation, None, params).await, &who)
        })
    }
}

impl Gateway {
    /// Returns the request's params with the upstream's own name for the thing.
    fn params(&self, invocation: &Invocation) -> Option<Box<RawValue>> {
        let name = splice::raw(splice::quoted(&invocation.name));
        match invocation.method {
            Method::ResourcesRead => Some((*invocation.params).to_owned()),
            Method::Complete if self.prefix.is_empty() => Some((*invocation.params).to_owned()),
            Method::ToolsCall | Method::PromptsGet => {
                splice::edit(&invocation.params, &[("name", &name)], |_| false).ok()
            }
            Method::Complete => {
                let reference = splice::member(&invocation.params, "ref").ok()??;
                let is_prompt = text_member(reference, "type")? == "ref/prompt";
                let reference = match is_prompt {
                    true => splice::edit(reference, &[("name", &name)], |_| false).ok()?,
                    false => reference.to_owned(),
                };
                splice::edit(&invocation.params, &[("ref", &reference)], |_| false).ok()
            }
        }
    }
}

/// Passes an invocation to an upstream, and the upstream's notifications to the caller.
pub(super) async fn ask(
    upstream: &Upstream,
    invocation: &Invocation,
    timeout: Option<Duration>,
    params: Box<RawValue>,
) -> Result<Reply, Failure> {
    let (notifications, mut told) = mpsc::channel(NOTIFICATIONS_MAX);
    let options = Options { timeout, cancel: invocation.cancel.clone(), notifications: Some(notifications) };
    let request = upstream.request(invocation.method.as_str(), params, options);
    tokio::pin!(request);
    loop {
        tokio::select! {
            biased;
            Some(notification) = told.recv() => {
                let params = serde_json::from_str(notification.params.get()).unwrap_or_default();
                invocation.client.notify(&notification.method, params);
            }
            reply = &mut request => return reply,
        }
    }
}

/// Returns the outcome of a call with this reply; `who` names the side that was asked.
pub(super) fn outcome(reply: Result<Reply, Failure>, who: &str) -> Outcome {
    match reply {
        Ok(Reply::Result(result)) => Outcome::of_result(result),
        Ok(Reply::Error { code, message, data }) => {
            let data = data.and_then(|data| serde_json::from_str(data.get()).ok());
            Outcome::Rpc(Box::new(RpcError { data, ..RpcError::new(code, message) }))
        }
        Err(failure @ Failure::Oversize { .. }) => {
            Outcome::Untaken(Refusal::new(Code::ResourceExhausted, format!("{who} {failure}")))
        }
        Err(failure @ (Failure::Unavailable { .. } | Failure::Gone)) => {
            Outcome::Untaken(Refusal::new(Code::Unavailable, format!("{who} {failure}")).retryable())
        }
        Err(Failure::TimedOut) => Outcome::TimedOut,
        Err(Failure::Cancelled) => Outcome::Cancelled,
        Err(failure @ (Failure::Died | Failure::Broken(_) | Failure::TooLarge)) => {
            Outcome::Transport { message: format!("{who} {failure}") }
        }
    }
}

fn keyed(definitions: &[Box<RawValue>], key: &str) -> Vec<Offered> {
    let offered = |definition: &RawValue| {
        let inner = text_member(definition, key)?;
        Some(Offered {
            name: inner.clone(),
            inner,
            definition: definition.to_owned(),
            hints: Hints::default(),
            contract: None,
        })
    };
    definitions.iter().filter_map(|definition| offered(definition)).collect()
}

pub(super) fn text_member(object: &RawValue, key: &str) -> Option<String> {
    serde_json::from_str(splice::member(object, key).ok()??.get()).ok()
}

/// Returns whether a name matches the pattern; a trailing `*` stands for any ending.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}
