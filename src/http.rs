//! The HTTP door: sockets, bounds and authentication before MCP and the audit API.
//!
//! Invariants:
//! - `Host` and `Origin` are checked before anything else of a request, and its caller before its body;
//! - handlers get a known caller and a bounded request and, for a POST to `/mcp`, strict JSON. A caller whose token is
//!   revoked or expires meanwhile gets no more of the answer;
//! - every refusal for a token, a rate, a host or an origin is counted, and told in the process's log;
//! - no body is interpreted here. A refusal is a problem (RFC 9457), or a JSON-RPC error if a body for `/mcp` is
//!   refused.

pub mod descriptors;
mod seats;
mod wire;
mod waiting;
pub mod tls;
mod listen;
pub mod health;
mod origin;
mod refusals;
mod guard;
pub mod door;

#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
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
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;

use self::{
    guard::{Admission, Current, Lost},
    health::{Health, Ready},
    origin::{Gate, Refusal},
    refusals::Refusals,
    seats::Seat,
};
use crate::{
    audit::content::Contents,
    auth::{Access, Admitted, Denied},
    block::json,
    caller::{Caller, Scope},
    config::Server,
    event::Actor,
    mcp::Endpoint,
    metrics::{
        Metrics,
        access::{What, unknown},
        door::Refused,
    },
    problem::{answer, json_code, panicked, problem, rpc_problem},
    router::{BoxFuture, codes::INVALID_REQUEST},
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How many bytes of an oversized body are read and dropped, so that its sender gets to read the answer.
const DISCARD_MAX: usize = 16 * 1024 * 1024;
/// The paths of the protected resource's metadata (RFC 9728, section 3.1).
const METADATA: &str = "/.well-known/oauth-protected-resource";
const METADATA_MCP: &str = "/.well-known/oauth-protected-resource/mcp";
const MCP: &str = "/mcp";

/// The handler of `/mcp`.
pub trait Mcp: Send + Sync {
    /// Answers one request. The future is dropped midway if the client disconnects.
    fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> BoxFuture<'_, Response>;
}

impl Mcp for Endpoint {
    fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> BoxFuture<'_, Response> {
        Box::pin(Endpoint::respond(self, parts, body, caller))
    }
}

/// What the door serves.
pub struct App {
    pub server: Server,
    pub access: Arc<Access>,
    pub mcp: Arc<dyn Mcp>,
    /// The routes `/v1`, `/log` and `/ipfs`. Their handlers find the [`Caller`] in the request's extensions.
    pub audit: Router,
    pub ready: Ready,
    pub metrics: Arc<Metrics>,
}

/// What the checks and handlers of every request share.
struct Edge {
    access: Arc<Access>,
    /// How callers are let in once this is replaced.
    current: Current,
    gate: Gate,
    limits: Limits,
    refusals: Refusals,
    mcp: Arc<dyn Mcp>,
    metrics: Arc<Metrics>,
    body_max: usize,
    timeout: Duration,
    /// The URL that callers use, without a slash at its end.
    base: String,
}

/// Rate limits by principal. Principals hash to 65,536 buckets, which bounds the memory; two seldom share one.
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

/// Returns every route with its checks. `/metrics` needs no token if `metrics_open`.
fn routes(edge: &Arc<Edge>, health: &Arc<Health>, audit: Router, metrics_open: bool) -> Router {
    let needs = |scope| middleware::from_fn_with_state((Arc::clone(edge), scope), allow);
    let mcp = Router::new().route(MCP, any(mcp)).route_layer(needs(Scope::Call));
    let metrics = health::metrics(health);
    let metrics = if metrics_open { metrics } else { metrics.route_layer(needs(Scope::Audit)) };
    Router::new()
        .route(METADATA, get(metadata))
        .route(METADATA_MCP, get(metadata))
        .merge(mcp)
        .with_state(Arc::clone(edge))
        .merge(health::routes(health))
        .merge(metrics)
        .merge(audit.layer(needs(Scope::Audit)))
        .fallback(async || problem(StatusCode::NOT_FOUND, "not found", "no such path"))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", "another method is served here")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(edge), admit))
}

impl Edge {
    /// Returns what requests share, the audit API's routes, and what says whether the node is ready.
    fn new(app: App, address: SocketAddr, scheme: &str, current: Current) -> (Self, Router, Ready) {
        let server = app.server;
        let base = server.public_url.clone().unwrap_or_else(|| format!("{scheme}://{address}"));
        let (ready, access) = (app.ready, Arc::clone(&app.access));
        let ready = move || {
            let mut reasons = ready();
            reasons.extend(access.trouble());
            reasons
        };
        let edge = Self {
            gate: Gate::new(&server, address),
            limits: Limits::new(server.rate_limit_per_second, server.rate_limit_burst),
            refusals: Refusals::new(Arc::clone(&app.metrics)),
            access: app.access,
            current,
            mcp: app.mcp,
            metrics: app.metrics,
            body_max: server.max_body_bytes,
            timeout: Duration::from_millis(server.request_timeout_ms),
            base: base.trim_end_matches('/').to_owned(),
        };
        (edge, app.audit, Box::new(ready))
    }

    /// Returns the caller if it has the scope. Otherwise returns why not, and the actor as far as it is known.
    async fn caller(&self, headers: &HeaderMap, scope: &Scope) -> Result<Admitted, (Denied, Actor)> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let admitted = match (values.next(), values.next()) {
            (value, None) => self.access.admit(value).await.map_err(|denied| (denied, unknown()))?,
            (_, Some(_)) => return Err((Denied::Invalid, unknown())),
        };
        if !admitted.caller.may(scope.clone()) {
            return Err((Denied::Insufficient { scope: scope.clone() }, admitted.caller.actor));
        }
        Ok(admitted)
    }

    /// Counts and records a refusal for a token, and answers it.
    fn denied(&self, (denied, actor): (&Denied, &Actor), scope: &Scope, from: Option<IpAddr>) -> Response {
        let (status, title, reason) = match denied {
            Denied::Missing => (StatusCode::UNAUTHORIZED, "unauthorized", Refused::Missing),
            Denied::Invalid => (StatusCode::UNAUTHORIZED, "unauthorized", Refused::Invalid),
            Denied::Insufficient { .. } => (StatusCode::FORBIDDEN, "forbidden", Refused::Scope),
            Denied::Unverifiable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", Refused::Unverifiable),
        };
        let known = matches!(denied, Denied::Insufficient { .. }).then_some(actor);
        self.refusals.note(status, reason, from, known);
        let mut response = problem(status, title, &denied.to_string());
        let headers = response.headers_mut();
        match denied.reason() {
            Some(reason) => {
                self.metrics.access.add(actor, What::Refused(reason), 1);
                let challenge = denied.challenge(&format!("{}{METADATA_MCP}", self.base), scope);
                if let Ok(challenge) = HeaderValue::try_from(challenge) {
                    headers.insert(WWW_AUTHENTICATE, challenge);
                }
            }
            None => drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))),
        }
        response
    }

    /// Returns what a request is let in with, by tokens or keys of this version.
    fn admission(&self, headers: &HeaderMap, admitted: &Admitted, version: Option<u64>) -> Admission {
        let mut authorization = headers.get(AUTHORIZATION).cloned();
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        let (current, access) = (Arc::clone(&self.current), Arc::clone(&self.access));
        let Admitted { caller, until } = admitted.clone();
        Admission { current, access, authorization, caller, version, until }
    }
}

impl Limits {
    fn new(per_second: u32, burst: u32) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst));
        Self { buckets: RateLimiter::keyed(quota), hasher: RandomState::new() }
    }

    /// Counts a request. The error is the time until the next one is allowed.
    fn count(&self, principal: &str) -> Result<(), Duration> {
        // The hash is seeded at random, so that nobody can aim at another principal's bucket.
        let [low, high, ..] = self.hasher.hash_one(principal).to_le_bytes();
        self.buckets
            .check_key(&u16::from_le_bytes([low, high]))
            .map_err(|until| until.wait_time_from(self.buckets.clock().now()))
    }
}

/// Does the outermost checks: of `Host` and `Origin`, of the time until the answer begins (elsewhere than at `/mcp`), and
/// of panics.
async fn admit(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let origin = match edge.gate.judge(&request) {
        Ok(origin) => origin,
        Err(refusal) => {
            let reason = match refusal {
                Refusal::Host => Refused::Host,
                Refusal::Origin => Refused::Origin,
            };
            let from = seat(&request).map(|seat| seat.address);
            edge.refusals.note(StatusCode::FORBIDDEN, reason, from, None);
            return problem(StatusCode::FORBIDDEN, "forbidden", &refusal.to_string());
        }
    };
    let asked = origin::asked_headers(&request);
    let answer = async {
        if origin.is_some() && origin::is_preflight(&request) {
            return StatusCode::NO_CONTENT.into_response();
        }
        // A call may take hours, and its tool's own limits end it.
        if request.uri().path() == MCP {
            return next.run(request).await;
        }
        match tokio::time::timeout(edge.timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => problem(StatusCode::GATEWAY_TIMEOUT, "timed out", "the answer did not begin in time"),
        }
    };
    // Whatever outlives a request has its own locks, so a panic leaves nothing half done.
    let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
        Ok(response) => response,
        Err(panic) => panicked(panic.as_ref()),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        origin::share(headers, origin, &asked);
    }
    response
}

/// Lets a request pass if its caller has the scope and keeps the rate limit. Puts the [`Caller`] into its extensions.
async fn allow(
    State((edge, scope)): State<(Arc<Edge>, Scope)>,
    mut request: Request,
    next: Next,
) -> Response {
    let seat = seat(&request);
    let from = seat.as_ref().map(|seat| seat.address);
    // The version comes first: a change in between is noticed by the guard.
    let version = edge.access.version();
    let admitted = edge.caller(request.headers(), &scope).await;
    if let Some(seat) = &seat {
        seat.knows(admitted.is_ok());
    }
    let admitted = match admitted {
        Ok(admitted) => admitted,
        Err((denied, actor)) => return edge.denied((&denied, &actor), &scope, from),
    };
    let actor = admitted.caller.actor.clone();
    if let Err(wait) = edge.limits.count(&actor.id) {
        edge.refusals.note(StatusCode::TOO_MANY_REQUESTS, Refused::Rate, from, Some(&actor));
        let detail = "this principal's requests come too fast";
        let seconds = wait.as_secs() + 1;
        let response = problem(StatusCode::TOO_MANY_REQUESTS, "too many requests", detail);
        return ([(RETRY_AFTER, HeaderValue::from(seconds))], response).into_response();
    }
    let admission = edge.admission(request.headers(), &admitted, version);
    request.extensions_mut().insert(admitted.caller);
    let response = match version {
        // Where no token is asked for, only what outlasts the configuration is looked at again.
        None => guard::guard(next.run(request).await, || Box::pin(admission.lost())),
        Some(_) => {
            let mut lost: Lost = Box::pin(admission.lost());
            tokio::select! {
                response = next.run(request) => guard::guard(response, || lost),
                () = &mut lost => return edge.denied((&Denied::Invalid, &actor), &scope, from),
            }
        }
    };
    if let Some(Contents(read)) = response.extensions().get() {
        edge.metrics.access.add(&actor, What::Read, *read);
    }
    response
}

/// Returns the seat of the connection that a request came by.
fn seat(request: &Request) -> Option<Arc<Seat>> {
    request.extensions().get().cloned()
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
    let may_begin = parts.method == Method::POST && waiting::may_begin(&parts.headers);
    let handler = Arc::clone(&edge.mcp);
    let answering = async move { handler.respond(parts, body, caller).await };
    waiting::answered(may_begin, waiting::PACE, Box::pin(answering)).await
}

/// Reads the whole body. Errors: it is too large, too slow, or breaks off.
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

/// Returns the protected resource's metadata (RFC 9728, section 2).
async fn metadata(State(edge): State<Arc<Edge>>) -> Response {
    let mut metadata = json!({
        "resource": format!("{}/mcp", edge.base),
        "scopes_supported": Scope::WORDS,
        "bearer_methods_supported": ["header"],
    });
    if let Some(issuer) = edge.access.issuer() {
        metadata["authorization_servers"] = json!([issuer]);
    }
    answer(StatusCode::OK, &metadata)
}
