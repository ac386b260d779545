//! The HTTP door: sockets, bounds and tokens in front of the languages.
//!
//! Invariants:
//! - `Host` and `Origin` are judged before anything else of a request, its caller before its body;
//! - what a language is handed has a known caller, a bounded body and, for MCP, strict JSON;
//! - no body is interpreted here; a refusal takes the language of its path: a problem, or a JSON-RPC error on `/mcp`.

mod listen;
mod origin;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    num::NonZeroU32,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::FutureExt;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

pub use self::listen::serve;
use self::origin::Gate;
use crate::{
    audit::content::Contents,
    auth::{Access, Denied, scope_name},
    block::json,
    caller::{Caller, Scope},
    config::Server,
    event::Actor,
    mcp::Endpoint,
    metrics::{
        Metrics,
        access::{What, unknown},
    },
    problem::{answer, json_code, panicked, problem, rpc_problem},
    router::{BoxFuture, codes::INVALID_REQUEST},
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an oversized body that are read and dropped, so that its sender gets to read the answer.
const DISCARD_MAX: usize = 16 * 1024 * 1024;
/// Where the metadata of the protected resource stands (RFC 9728, section 3.1).
const METADATA: &str = "/.well-known/oauth-protected-resource";
const METADATA_MCP: &str = "/.well-known/oauth-protected-resource/mcp";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The language behind `/mcp`.
pub trait Mcp: Send + Sync {
    /// Answers one request. Dropped midway when the client goes away, or the answer does not begin in time.
    fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> BoxFuture<'_, Response>;
}

impl Mcp for Endpoint {
    fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> BoxFuture<'_, Response> {
        Box::pin(Endpoint::respond(self, parts, body, caller))
    }
}

/// Asked by `/readyz`: why this node is not ready, or nothing.
pub type Ready = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the door stands in front of.
pub struct App {
    pub server: Server,
    pub access: Access,
    pub mcp: Arc<dyn Mcp>,
    /// `/v1`, `/log` and `/ipfs`; its handlers find the [`Caller`] among the extensions.
    pub audit: Router,
    pub ready: Ready,
    pub metrics: Arc<Metrics>,
}

/// What every request meets.
struct Edge {
    access: Access,
    gate: Gate,
    limits: Limits,
    mcp: Arc<dyn Mcp>,
    ready: Ready,
    metrics: Arc<Metrics>,
    body_max: usize,
    timeout: Duration,
    /// The URL callers use, without a slash at its end.
    base: String,
}

/// One bucket of requests for each principal, in a fixed number of buckets: two of them seldom share one.
struct Limits {
    buckets: DefaultKeyedRateLimiter<u16>,
    hasher: RandomState,
}

/// Why a body was not read to its end.
enum Unread {
    TooLarge,
    TooSlow,
    Broken,
}

/// Every URL there is, behind what guards it.
fn routes(edge: &Arc<Edge>, audit: Router, metrics_open: bool) -> Router {
    let needs = |scope| middleware::from_fn_with_state((Arc::clone(edge), scope), allow);
    let mcp = Router::new().route("/mcp", any(mcp)).route_layer(needs(Scope::Call));
    let metrics = Router::new().route("/metrics", get(metrics));
    let metrics = if metrics_open { metrics } else { metrics.route_layer(needs(Scope::Audit)) };
    Router::new()
        .route("/healthz", get(async || answer(StatusCode::OK, &json!({"status": "ok"}))))
        .route("/readyz", get(readiness))
        .route(METADATA, get(metadata))
        .route(METADATA_MCP, get(metadata))
        .merge(mcp)
        .merge(metrics)
        .with_state(Arc::clone(edge))
        .merge(audit.layer(needs(Scope::Audit)))
        .fallback(async || problem(StatusCode::NOT_FOUND, "not found", "no such path"))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", "another method is served here")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(edge), admit))
}

impl Edge {
    fn new(app: App, address: SocketAddr) -> (Self, Router) {
        let server = app.server;
        let base = server.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
        let edge = Self {
            gate: Gate::new(&server, address),
            limits: Limits::new(server.rate_limit_per_second, server.rate_limit_burst),
            access: app.access,
            mcp: app.mcp,
            ready: app.ready,
            metrics: app.metrics,
            body_max: server.max_body_bytes,
            timeout: Duration::from_millis(server.request_timeout_ms),
            base: base.trim_end_matches('/').to_owned(),
        };
        (edge, app.audit)
    }

    /// Whose request this is, when they may make it; else why not, and who it is as far as that is known.
    fn caller(&self, headers: &HeaderMap, scope: Scope) -> Result<Caller, (Denied, Actor)> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let caller = match (values.next(), values.next()) {
            (value, None) => self.access.authenticate(value).map_err(|denied| (denied, unknown()))?,
            (_, Some(_)) => return Err((Denied::Invalid, unknown())),
        };
        if !caller.may(scope) {
            return Err((Denied::Insufficient { scope }, caller.actor));
        }
        Ok(caller)
    }

    fn denied(&self, denied: Denied, scope: Scope) -> Response {
        let (status, title) = match denied {
            Denied::Missing | Denied::Invalid => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Denied::Insufficient { .. } => (StatusCode::FORBIDDEN, "forbidden"),
        };
        let challenge = denied.challenge(&format!("{}{METADATA_MCP}", self.base), scope);
        let mut response = problem(status, title, &denied.to_string());
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl Limits {
    fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self { buckets: RateLimiter::keyed(quota), hasher: RandomState::new() }
    }

    /// Counts a request; an error says after how long the next one is let through.
    fn count(&self, principal: &str) -> Result<(), Duration> {
        // The hash is seeded, so that nobody can aim at another principal's bucket.
        let [low, high, ..] = self.hasher.hash_one(principal).to_le_bytes();
        self.buckets
            .check_key(&u16::from_le_bytes([low, high]))
            .map_err(|until| until.wait_time_from(self.buckets.clock().now()))
    }
}

/// Outermost: judges `Host` and `Origin`, bounds the time to an answer, and turns a panic into one.
async fn admit(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let origin = match edge.gate.judge(&request) {
        Ok(origin) => origin,
        Err(refusal) => return problem(StatusCode::FORBIDDEN, "forbidden", &refusal.to_string()),
    };
    let answer = async {
        if origin.is_some() && origin::is_preflight(&request) {
            return StatusCode::NO_CONTENT.into_response();
        }
        match tokio::time::timeout(edge.timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => problem(StatusCode::GATEWAY_TIMEOUT, "timed out", "the answer did not begin in time"),
        }
    };
    // Nothing of a request outlives it but what has its own locks, so a panic leaves nothing half done here.
    let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => panicked(panic.as_ref()),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        origin::share(headers, origin);
    }
    response
}

/// Lets through whoever may, as often as they may; the rest of the way their [`Caller`] goes along.
async fn allow(
    State((edge, scope)): State<(Arc<Edge>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match edge.caller(request.headers(), scope) {
        Ok(caller) => caller,
        Err((denied, actor)) => {
            edge.metrics.access.add(&actor, What::Refused(denied.reason()), 1);
            return edge.denied(denied, scope);
        }
    };
    if let Err(wait) = edge.limits.count(&caller.actor.id) {
        let detail = "this principal's requests come too fast";
        let seconds = wait.as_secs() + 1;
        let response = problem(StatusCode::TOO_MANY_REQUESTS, "too many requests", detail);
        return ([(RETRY_AFTER, HeaderValue::from(seconds))], response).into_response();
    }
    let actor = caller.actor.clone();
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    if let Some(Contents(read)) = response.extensions().get() {
        edge.metrics.access.add(&actor, What::Read, *read);
    }
    response
}

async fn mcp(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = match read(body, edge.body_max).await {
        Ok(body) => body,
        Err(unread) => return unread.answer(edge.body_max),
    };
    if parts.method == Method::POST
        && let Err(fault) = json::check(&body)
    {
        return rpc_problem(StatusCode::BAD_REQUEST, json_code(&fault), &fault.to_string());
    }
    edge.mcp.respond(parts, body, caller).await
}

/// The whole body, when it is small enough and comes in time.
async fn read(mut body: Body, max: usize) -> Result<Bytes, Unread> {
    let whole = async {
        match Limited::new(&mut body, max).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(err) if err.is::<LengthLimitError>() => {
                let mut dropped = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    dropped += frame.data_ref().map_or(0, Bytes::len);
                    if dropped > DISCARD_MAX {
                        break;
                    }
                }
                Err(Unread::TooLarge)
            }
            Err(_) => Err(Unread::Broken),
        }
    };
    tokio::time::timeout(BODY_TIMEOUT, whole).await.unwrap_or(Err(Unread::TooSlow))
}

impl Unread {
    fn answer(&self, max: usize) -> Response {
        let (status, message) = match self {
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, format!("body is over {max} bytes")),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "body did not arrive in time".to_owned()),
            Self::Broken => (StatusCode::BAD_REQUEST, "body broke off".to_owned()),
        };
        rpc_problem(status, INVALID_REQUEST, &message)
    }
}

async fn readiness(State(edge): State<Arc<Edge>>) -> Response {
    match (edge.ready)() {
        reasons if reasons.is_empty() => answer(StatusCode::OK, &json!({"status": "ready"})),
        reasons => {
            answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not_ready", "reasons": reasons}))
        }
    }
}

async fn metrics(State(edge): State<Arc<Edge>>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, OPENMETRICS)], edge.metrics.encode())
}

/// The protected resource's metadata (RFC 9728, section 2).
async fn metadata(State(edge): State<Arc<Edge>>) -> Response {
    let scopes = [Scope::Call, Scope::Audit, Scope::Admin].map(scope_name);
    let mut metadata = json!({
        "resource": format!("{}/mcp", edge.base),
        "scopes_supported": scopes,
        "bearer_methods_supported": ["header"],
    });
    if let Some(issuer) = edge.access.issuer() {
        metadata["authorization_servers"] = json!([issuer]);
    }
    answer(StatusCode::OK, &metadata)
}
