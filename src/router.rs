//! The router: finds the tool a request names, and runs it where it belongs.
//!
//! Invariants:
//! - every call that reaches a tool has a durable `call.started`, and leaves exactly one ending;
//! - nothing here knows JSON-RPC envelopes or HTTP: a request comes in, an answer goes out.

use std::{future::Future, pin::Pin, sync::Arc};

use serde_json::{Value, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{block::Cid, event::Actor};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a caller may do. An operation names the one scope it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `mcp:call`: list and call tools, read resources, get prompts.
    Call,
    /// `audit:read`: read events, blocks, proofs, exports.
    Audit,
    /// `admin`: everything.
    Admin,
}

/// Who asks: known before anything is read of what they ask.
#[derive(Clone, Debug)]
pub struct Caller {
    pub actor: Actor,
    pub scopes: Vec<Scope>,
}

impl Caller {
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// The caller's side of a running request, as a tool sees it.
pub trait Client: Send + Sync {
    /// Sends a notification towards the caller (progress, a log line). Never waits; may be dropped.
    fn notify(&self, method: &str, params: Value);
    /// Asks the caller something (sampling, elicitation, roots). Only session-era clients can be asked;
    /// others give an error, and the tool answers `input_required` instead.
    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>>;
    /// The capabilities the client declared, as JSON; an empty object when none.
    fn capabilities(&self) -> Value;
    /// True for revision 2026-07-28 and later, where a request stands alone.
    fn stateless(&self) -> bool;
}

/// What a request is recorded as and routed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    ToolsCall,
    ResourcesRead,
    PromptsGet,
    Complete,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ToolsCall => "tools/call",
            Self::ResourcesRead => "resources/read",
            Self::PromptsGet => "prompts/get",
            Self::Complete => "completion/complete",
        }
    }
}

/// One recorded operation, asked for by a caller.
pub struct Request {
    pub method: Method,
    /// The tool's or prompt's name, or the resource's URI. Empty for completion.
    pub name: String,
    /// The request's whole `params` object, as it came.
    pub params: Box<RawValue>,
    pub meta: Meta,
    pub caller: Caller,
    pub client: Arc<dyn Client>,
    /// Cancelled when the caller goes away or asks to.
    pub cancel: CancellationToken,
    /// The event this call is made for, where there is one.
    pub cause: Option<Cid>,
}

/// What of a request's `_meta` the router acts on.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// `io.cairn/idempotency-key`
    pub idempotency_key: Option<String>,
    /// `io.cairn/contract`
    pub contract: Option<Cid>,
    /// `traceparent` (W3C trace context), validated.
    pub traceparent: Option<String>,
    /// `progressToken`, as it came; absent when the caller wants no progress.
    pub progress_token: Option<Value>,
}

/// The recorded answer to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The result object, as the tool or the upstream gave it; the language adds its own `_meta`.
    pub result: Box<RawValue>,
    pub record: Option<Record>,
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
}

/// A JSON-RPC error object. `record` names the event that remembers it, where there is one.
#[derive(Clone, Debug)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
    pub data: Option<Value>,
    pub record: Option<Record>,
}

/// What a runtime is given to run.
pub struct Invocation {
    pub method: Method,
    /// The name the tool's source knows it by.
    pub name: String,
    /// The request's whole `params` object.
    pub params: Box<RawValue>,
    pub caller: Caller,
    pub client: Arc<dyn Client>,
    pub progress_token: Option<Value>,
    pub cancel: CancellationToken,
    /// The call's `call.started` event.
    pub started: Option<Cid>,
}

/// What came of running something: three failures stay apart (transport, JSON-RPC error, `isError`).
#[derive(Debug)]
pub enum Outcome {
    /// A result object. `is_error` is the tool's own claim.
    Result {
        result: Box<RawValue>,
        is_error: bool,
    },
    /// The tool's server answered with a JSON-RPC error.
    Rpc(RpcError),
    /// The tool's server could not be reached, died or broke the protocol.
    Transport {
        message: String,
    },
    TimedOut,
    Cancelled,
}

/// A hand: something that runs invocations.
pub trait Run: Send + Sync {
    /// Runs to an outcome. Stops early when `invocation.cancel` fires.
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome>;
}

/// A tool as offered to callers.
#[derive(Debug)]
pub struct Tool {
    /// The public name, prefix included.
    pub name: String,
    /// The tool object of `tools/list`, as its source gave it but for the public name.
    pub definition: Box<RawValue>,
    pub contract: Cid,
}

/// A prompt, resource or resource template as offered to callers.
#[derive(Debug)]
pub struct Listed {
    /// The public name of a prompt; the URI or URI template of a resource.
    pub name: String,
    pub definition: Box<RawValue>,
}

/// Everything on offer at one moment, each list in its stable order.
#[derive(Debug, Default)]
pub struct Offer {
    pub tools: Vec<Arc<Tool>>,
    pub prompts: Vec<Arc<Listed>>,
    pub resources: Vec<Arc<Listed>>,
    pub templates: Vec<Arc<Listed>>,
    /// Whether any source completes arguments.
    pub completions: bool,
}

/// Which list of the offer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Tools,
    Prompts,
    Resources,
}

/// Scaffold: runs unrecorded.
pub struct Router {
    offer: Arc<Offer>,
    run: Arc<dyn Run>,
    changes: tokio::sync::broadcast::Sender<Change>,
}

impl Router {
    pub fn new(
        offer: Offer,
        run: Arc<dyn Run>,
        changes: tokio::sync::broadcast::Sender<Change>,
    ) -> Self {
        Self { offer: Arc::new(offer), run, changes }
    }

    pub async fn call(&self, request: Request) -> Result<Answer, RpcError> {
        let error = |code, message: String, data| RpcError { code, message, data, record: None };
        if request.method == Method::ToolsCall && !self.offer.tools.iter().any(|t| t.name == request.name) {
            return Err(error(-32602, format!("unknown tool: {}", request.name), None));
        }
        let outcome = self
            .run
            .run(Invocation {
                method: request.method,
                name: request.name,
                params: request.params,
                caller: request.caller,
                client: request.client,
                progress_token: request.meta.progress_token,
                cancel: request.cancel,
                started: None,
            })
            .await;
        match outcome {
            Outcome::Result { result, .. } => Ok(Answer { result, record: None }),
            Outcome::Rpc(error) => Err(error),
            Outcome::Transport { message } => Err(error(-32603, message, None)),
            Outcome::TimedOut => Err(error(-32603, "timed out".into(), None)),
            Outcome::Cancelled => Err(error(-32603, "cancelled".into(), None)),
        }
    }

    pub fn offer(&self) -> Arc<Offer> {
        self.offer.clone()
    }

    pub fn changes(&self) -> tokio::sync::broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    pub fn notify(&self, change: Change) {
        let _ = self.changes.send(change);
    }
}
