//! The router: finds the tool a request names, and runs it where it belongs.
//!
//! Invariants:
//! - every call that reaches a tool has a durable `call.started`, and leaves exactly one ending;
//! - nothing here knows JSON-RPC envelopes or HTTP: a request comes in, an answer goes out.

pub mod standing;
pub mod audience;
pub mod declared;
pub mod capture;
pub mod codes;
pub mod lane;
pub mod metadata;
mod aside;
mod offer;
pub mod tuning;
mod outcome;
mod remotes;
mod foretold;
mod view;
pub mod telling;
pub mod trial;
pub mod handles;
mod board;
mod retention;
pub mod away;
mod links;
pub mod sight;
mod target;
mod patience;
mod content;
mod ending;
mod hearing;
mod asking;
mod calling;
mod aiming;
pub mod skills;
pub mod followed;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Instant,
};

use serde_json::{Value, value::RawValue};
use tokio::sync::broadcast;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use crate::router::{
    board::{Entry, Misfit, Offered, Offering, renamed},
    declared::Held,
    foretold::{Foretold, Tell},
    offer::{Change, Listed, Offer, Tool},
    outcome::Outcome,
    remotes::Remotes,
    view::View,
};
use crate::{
    block::{Cid, payload::SaltKey},
    caller::{Caller, rights::Rights},
    catalogue::{BUILTIN, PEERS},
    contract::Contract,
    error::Refusal,
    ledger::{Ledger, Ruling, Stopped, work::Begun},
    metrics::Metrics,
    router::{
        asking::form::Forms,
        audience::Audience,
        away::Away,
        board::Board,
        codes::{INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND},
        handles::{Parked, TaskSupport},
        lane::Lanes,
        links::Links,
        metadata::Resolver,
        sight::Sight,
        standing::Heard,
        tuning::{Swap, Tuning},
    },
    words::words,
};

/// The result of a request that is not recorded, as its server wrote it.
pub type Passed = Result<Box<RawValue>, RpcError>;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The caller's side of a running request, as a tool sees it.
pub trait Client: Send + Sync {
    /// Sends a notification towards the caller (progress, a log line). Never waits; may be dropped.
    fn notify(&self, method: &str, params: Value);
    /// Sends a notification whose params leave as they came, where that can be.
    fn tell(&self, method: &str, params: &RawValue) {
        self.notify(method, serde_json::from_str(params.get()).unwrap_or_default());
    }
    /// Asks the caller something (sampling, elicitation, roots). Only session-era clients can be asked;
    /// others give an error, and the tool answers `input_required` instead.
    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>>;
    /// Returns who is behind the request, as other servers may know it.
    fn audience(&self) -> Audience;
    /// Returns whether a result may be the handle of a task that goes on at the tool's server.
    fn takes_handles(&self) -> bool {
        false
    }
    /// Returns whether a task that the call follows at the tool's server is cancelled there when the call is.
    fn abandons(&self) -> bool {
        true
    }
}

words! {
    /// What a request is recorded as and routed by.
    pub enum Method {
        ToolsCall = "tools/call",
        ResourcesRead = "resources/read",
        PromptsGet = "prompts/get",
        Complete = "completion/complete",
    }
}

/// One recorded operation, asked for by a caller.
pub struct Request {
    pub method: Method,
    /// The tool's or prompt's name, or the resource's URI. Empty for completion.
    pub name: String,
    /// The request's whole `params` object, as it came.
    pub params: Arc<RawValue>,
    pub meta: Meta,
    pub caller: Caller,
    pub client: Arc<dyn Client>,
    /// Cancelled when the caller goes away or asks to.
    pub cancel: CancellationToken,
    /// The event that caused this call, if there is one.
    pub cause: Option<Cid>,
    /// The attempt that this call makes at a task, if it does.
    pub attempt: Option<Arc<trial::Trial>>,
    /// The call's start, if it is recorded already.
    pub begun: Option<Begun>,
}

/// What of a request's `_meta` the router acts on.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// `io.cairn/idempotency-key`
    pub idempotency_key: Option<String>,
    /// `io.cairn/contract`
    pub contract: Option<Cid>,
    /// `io.cairn/refs`: events of the caller's own log that led to this request.
    pub refs: Vec<Cid>,
    /// The only peer that may run it. Set by this node's own durable work, never by a caller.
    pub peer: Option<String>,
    /// The task at the tool's server that it follows, instead of calling the tool anew. Set likewise.
    pub follows: Option<String>,
    /// `traceparent` (W3C trace context), validated.
    pub traceparent: Option<String>,
    /// `progressToken`, as it came; absent when the caller wants no progress.
    pub progress_token: Option<Value>,
}

/// The recorded answer to a request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The result object, as the tool or the upstream gave it; `mcp` adds its own `_meta`.
    pub result: Box<RawValue>,
    pub record: Option<Record>,
    /// The error, if the answer is this node's own and not the tool's.
    pub own: Option<Box<Refusal>>,
}

/// Where an answer stands in the log.
#[derive(Clone, Debug)]
pub struct Record {
    pub event: Cid,
    pub contract: Option<Cid>,
    pub input: Option<Cid>,
    pub output: Option<Cid>,
    pub seq: u64,
    pub log: Cid,
    pub replayed: bool,
    /// Whether the call was cancelled.
    pub cancelled: bool,
    /// Whether the answer is this node's own and not the tool's.
    pub own: bool,
}

/// A JSON-RPC error object. `record` names the event that it is recorded in, if there is one.
#[derive(Clone, Debug)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    pub data: Option<Value>,
    pub record: Option<Box<Record>>,
}

/// What a runtime is given to run.
pub struct Invocation {
    pub method: Method,
    /// The name the tool's source knows it by.
    pub name: String,
    /// The request's whole `params` object.
    pub params: Arc<RawValue>,
    pub caller: Caller,
    pub client: Arc<dyn Client>,
    pub progress_token: Option<Value>,
    pub cancel: CancellationToken,
    /// When the call is given up.
    pub deadline: Option<Instant>,
    /// The call's `call.started` event.
    pub started: Option<Cid>,
    /// The ruling on the change that the call was foretold to ask for, made in the commit of its start.
    pub ruled: Arc<Mutex<Option<Ruling>>>,
    /// The only peer that may be asked; `None` allows any.
    pub peer: Option<String>,
    /// Collects the peers that the run tried. They are recorded with the call's ending.
    pub remotes: Remotes,
    /// What there was to see when the request came, of which the caller sees a part.
    pub sight: Sight,
    /// The task at the tool's server to follow, instead of calling the tool anew.
    pub follows: Option<String>,
    /// What the tool's definition says of running it as a task.
    pub support: TaskSupport,
}

/// Runs invocations: a runtime, or a builtin tool.
pub trait Run: Send + Sync {
    /// Runs to an outcome. Stops early when `invocation.cancel` fires.
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome>;

    /// Returns whether it checks this tool's input against the schema itself, so that all faults are reported at
    /// once.
    fn checks(&self, _tool: &str) -> bool {
        false
    }

    /// Returns whether it answers a call of this tool with the handle of a task of its own, where it wants to and the
    /// client takes handles.
    fn gives_handles(&self, _tool: &str) -> bool {
        false
    }

    /// Prepares for a client that is about to see the offer, within a bound.
    fn admit<'a>(&'a self, _audience: &'a Audience) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Hears what a client says outside its requests. Returns once whoever it concerns has taken it, within a bound.
    fn hear<'a>(&'a self, _heard: Heard, _audience: &'a Audience) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Asks to be told when a resource changes, until what is returned is dropped.
    fn watch<'a>(&'a self, _uri: &'a str, _audience: &'a Audience) -> BoxFuture<'a, Result<Held, RpcError>> {
        Box::pin(std::future::ready(Ok(Box::new(()) as Held)))
    }

    /// Passes on a request that is not recorded. Errors: there is no such method, or its server refuses.
    fn pass<'a>(&'a self, method: &'a str, _: Box<RawValue>, _: &'a Audience) -> BoxFuture<'a, Passed> {
        let error = RpcError::new(METHOD_NOT_FOUND, format!("there is no method {method}"));
        Box::pin(std::future::ready(Err(error)))
    }

    /// Returns whether this peer can run this tool, or `None` if it reaches no such peer.
    fn serves(&self, _peer: &str, _tool: &str) -> Option<bool> {
        None
    }

    /// Returns the change of durable work that is all this call does, if that can be told before it starts. The
    /// change is ruled in the commit of the start. If the ruling tells the outcome, that commit ends the call too;
    /// else the run gets the ruling as [`Invocation::ruled`].
    fn foretell(&self, _invocation: &Arc<Invocation>) -> Option<Foretold> {
        None
    }
}

/// Changes that a slow listener may be behind; a slower one is told only that it missed some.
const CHANGES_MAX: usize = 64;

/// Likewise updates of resources.
const UPDATES_MAX: usize = 256;

/// What the router is made of.
pub struct Parts {
    pub ledger: Ledger,
    pub salt: SaltKey,
    /// This process, in the calls it starts.
    pub runner: String,
    pub lanes: Lanes,
    pub tuning: Swap<Tuning>,
    pub metrics: Arc<Metrics>,
}

/// The sources that are no servers behind this node.
const OWN_SOURCES: [&str; 3] = [BUILTIN, PEERS, "conformance"];

/// How a source stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    pub name: String,
    pub tools: usize,
    pub prompts: usize,
    pub resources: usize,
    /// Why it cannot be reached, if it cannot.
    pub away: Option<String>,
}

impl SourceStatus {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tools: 0, prompts: 0, resources: 0, away: None }
    }

    /// Returns whether this is a server behind this node, not the node itself or its peers.
    pub fn is_upstream(&self) -> bool {
        !OWN_SOURCES.contains(&self.name.as_str())
    }
}

/// Finds what a request names, runs it in its lane, and records both ends. Clones share it.
#[derive(Clone)]
pub struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    board: RwLock<Arc<Board>>,
    rights: RwLock<Arc<Rights>>,
    links: Links,
    away: Away,
    resolver: Resolver,
    forms: Arc<Forms>,
    parked: Arc<Parked>,
    changes: broadcast::Sender<Change>,
    /// The URIs of watched resources that have changed.
    updates: broadcast::Sender<Arc<str>>,
    /// Every call's task.
    calls: TaskTracker,
    /// Cancelled when running calls are to end.
    halt: CancellationToken,
    /// One publisher at a time, so that boards follow each other.
    publishing: tokio::sync::Mutex<()>,
}

impl Router {
    pub fn new(parts: Parts) -> Self {
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let (updates, _) = broadcast::channel(UPDATES_MAX);
        let inner = Inner {
            parts,
            board: RwLock::default(),
            rights: RwLock::default(),
            links: Links::default(),
            away: Away::default(),
            resolver: Resolver::default(),
            forms: Arc::default(),
            parked: Arc::default(),
            changes,
            updates,
            calls: TaskTracker::new(),
            halt: CancellationToken::new(),
            publishing: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs a request to its recorded answer.
    ///
    /// Dropping it midway cancels the call; its ending is recorded all the same.
    pub async fn call(&self, request: Request) -> Result<Response, RpcError> {
        let gone = request.cancel.clone().drop_guard();
        let router = self.clone();
        let call = self.inner.calls.spawn(async move { router.run(request).await });
        let answer = call.await.unwrap_or_else(|err| {
            tracing::error!(%err, "a call's task failed");
            Err(RpcError::internal())
        });
        gone.disarm();
        answer
    }

    /// Waits for running calls; those that take longer than `patience` are cancelled, and recorded so.
    pub async fn drain(&self, patience: std::time::Duration) {
        self.inner.calls.close();
        if tokio::time::timeout(patience, self.inner.calls.wait()).await.is_err() {
            self.inner.halt.cancel();
            self.inner.calls.wait().await;
        }
    }

    /// Everything on offer now.
    pub fn offer(&self) -> Arc<Offer> {
        self.board().offer.clone()
    }

    /// Prepares for a client that is about to see the offer: where a source shows it other things than others see,
    /// those are on offer when this returns, or could not be had within a bound.
    pub async fn admit(&self, audience: &Audience) {
        let runs = self.board().runs();
        futures_util::future::join_all(runs.iter().map(|run| run.admit(audience))).await;
    }

    /// The tool of this public name or contract.
    pub fn tool(&self, name: &str) -> Option<Arc<Entry>> {
        self.board().tool(name)
    }

    /// Returns the tool that a request names, by name or contract. If nothing here has that name, the contract that
    /// the request pins decides.
    pub fn tool_asked(&self, name: &str, pinned: Option<&Cid>) -> Option<Arc<Entry>> {
        self.board().tool_asked(name, pinned)
    }

    /// Returns whether a peer can run this tool, or `None` if no such peer offers tools here.
    pub fn serves(&self, peer: &str, entry: &Entry) -> Option<bool> {
        let (peers, inner) = self.board().at_peers(entry)?;
        peers.run.serves(peer, &inner)
    }

    /// Returns the contract with this CID, if a tool on offer has it.
    pub fn contract(&self, cid: &Cid) -> Option<Contract> {
        self.board().tool_under(cid).map(|entry| entry.contract.clone())
    }

    /// Every tool, in the order of the offer.
    pub fn tools(&self) -> Vec<Arc<Entry>> {
        self.board().entries.clone()
    }

    /// Replaces what a source offered before by `offering`. Contracts are durable when this returns. Returns the lists
    /// that differ now, of which listeners have been told.
    pub async fn put(&self, offering: Offering) -> Result<Vec<Change>, Stopped> {
        let _one = self.inner.publishing.lock().await;
        let (board, changed) = self.board().with(offering, &self.inner.parts, &self.inner.resolver).await?;
        *self.inner.board.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(board);
        changed.iter().for_each(|change| self.notify(*change));
        Ok(changed)
    }

    /// Returns how each source stands that is on the board or away.
    pub fn sources(&self) -> Vec<SourceStatus> {
        let mut all: BTreeMap<String, SourceStatus> = self.board().standings();
        for (source, why) in self.inner.away.reasons() {
            all.entry(source.clone()).or_insert_with(|| SourceStatus::new(&source)).away = Some(why);
        }
        all.into_values().collect()
    }

    /// Returns whether this node's own tool of this name is on offer.
    pub fn offers_own(&self, name: &str) -> bool {
        self.board().tool(name).is_some_and(|entry| entry.own())
    }

    /// Calls that wait or run in each lane.
    pub fn loads(&self) -> Vec<(String, usize)> {
        self.inner.parts.lanes.all().iter().map(|lane| (lane.name.clone(), lane.load())).collect()
    }

    /// Calls each lane runs at once.
    pub fn bounds(&self) -> Vec<(String, usize)> {
        let lanes = self.inner.parts.lanes.all();
        lanes.iter().map(|lane| (lane.name.clone(), lane.bounds().concurrency)).collect()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.inner.parts.ledger
    }

    fn board(&self) -> Arc<Board> {
        self.inner.board.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl RpcError {
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None, record: None }
    }

    /// The error of a caller whose parameters make no sense.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(INVALID_PARAMS, message)
    }

    /// The error of a fault of ours: what happened is in the server's log lines, not in the answer.
    pub fn internal() -> Self {
        Self::new(INTERNAL_ERROR, "internal error")
    }
}

#[cfg(test)]
mod tests;
