//! MCP: one server for both ways of speaking it, over HTTP, over lines and over frames.
//!
//! The protocol library answers every message but one kind: a recorded tool call that stands alone and is
//! plainly in order is answered by `direct`, as the library would, at a fraction of its cost.
//!
//! Invariants:
//! - the protocol library is named in this room alone: what goes in and out are router types and raw JSON;
//! - the router sees a request's params byte for byte, and the client a result's bytes;
//! - the HTTP edge has checked host, origin, size, token and strict JSON before [`Endpoint::respond`].

mod era;
mod answer;
mod client;
mod envelope;
mod list;
mod offering;
mod tasks;
mod direct;
pub mod quota;
mod raw;
mod session;
mod handler;
mod pipe;
mod framed;
mod lines;
mod sessions;

use std::{convert::Infallible, fmt, io, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use rmcp::{
    ServiceExt,
    transport::{StreamableHttpServerConfig, StreamableHttpService},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use self::{
    envelope::{Fault, Incoming, Message},
    framed::Framed,
    handler::Handler,
    lines::Lines,
    offering::header_tool,
    pipe::{Framing, Pipe},
    quota::{Bounds, Quotas},
    sessions::{Claim, Sessions, Taken},
};
use crate::{
    caller::{Caller, Scope},
    frames,
    questions::Audit,
    router::{Router, codes::INVALID_REQUEST},
    runtime::{gateway::fits, upstream::Duplex},
};

pub use self::envelope::Hello;

/// Listen streams open at once: each holds a connection and about 20 KB.
const LISTENERS_MAX: usize = 1_024;

const SESSION_ID: &str = "mcp-session-id";
const ACCEPT_BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The settings of the MCP server.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Text for the client's model about what this server is for.
    pub instructions: Option<String>,
    /// Whether this node stands for one server behind it: then it gives that server's name and instructions.
    pub wraps: bool,
    /// Ends listen streams and sessions when cancelled.
    pub shutdown: CancellationToken,
    /// Whether tools are listed with their contracts, and without those of our own peers. Set for callers that are
    /// peers.
    pub contracts: bool,
    /// The tools that callers over frames see and may call, by their public names; empty allows all. A trailing `*`
    /// stands for any ending.
    pub tools: Vec<String>,
    /// Resolves tokens in requests over frames; `None` if tokens are not accepted there.
    pub tokens: Option<Tokens>,
    /// Tells which callers over frames are barred; `None` if all are served.
    pub barred: Option<Barred>,
    /// The quotas of callers over frames. Doors that share this value count together.
    pub quotas: Quotas,
}

/// Returns the scopes that a token grants; `None` for an invalid one.
#[derive(Clone)]
pub struct Tokens(Arc<Granting>);

type Granting = dyn Fn(&str) -> Option<Vec<Scope>> + Send + Sync;

impl Tokens {
    pub fn new(grants: impl Fn(&str) -> Option<Vec<Scope>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(grants))
    }

    fn scopes(&self, token: &str) -> Option<Vec<Scope>> {
        (self.0)(token)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Tokens")
    }
}

/// Returns why the caller with this id is barred; `None` if it is served.
#[derive(Clone)]
pub struct Barred(Arc<Barring>);

type Barring = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Barred {
    pub fn new(why: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(why))
    }
}

impl fmt::Debug for Barred {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Barred")
    }
}

/// What all handlers share.
struct Shared {
    router: Arc<Router>,
    settings: Settings,
    /// The bounds that each caller is held to and told of; `None` if the door enforces its own.
    bounds: Option<Bounds>,
    /// One permit for each listen stream.
    listeners: Semaphore,
    /// Where lists of tasks are asked for.
    audit: Audit,
}

impl Shared {
    /// Returns whether callers may call the tool with this public name.
    fn shows(&self, tool: &str) -> bool {
        let tools = &self.settings.tools;
        tools.is_empty() || tools.iter().any(|pattern| fits(pattern, tool))
    }

    fn new(router: Arc<Router>, settings: Settings) -> Self {
        let audit = Audit::new(router.ledger().clone());
        Self { router, settings, bounds: None, listeners: Semaphore::new(LISTENERS_MAX), audit }
    }
}

/// Who answers a message: the library, or `direct`.
enum Opened {
    Library { id: String, body: Bytes },
    Direct { id: String, asked: Arc<Incoming> },
}

/// The MCP endpoint of the HTTP door.
pub struct Endpoint {
    shared: Arc<Shared>,
    sessions: Arc<Sessions>,
    library: StreamableHttpService<Handler, Sessions>,
}

impl Endpoint {
    /// Must be called on a runtime, on which a task looks for idle sessions until `settings.shutdown` fires.
    pub fn new(router: Arc<Router>, settings: Settings) -> Self {
        let mut config = StreamableHttpServerConfig::default().disable_allowed_hosts();
        config.json_response = true;
        config.max_request_body_bytes = usize::MAX;
        config.cancellation_token = settings.shutdown.clone();
        let shared = Arc::new(Shared::new(router, settings));
        let sessions = Arc::new(Sessions::new());
        let swept = sessions.clone();
        let shutdown = shared.settings.shutdown.clone();
        tokio::spawn(shutdown.run_until_cancelled_owned(async move { swept.sweep().await }));
        let handlers = shared.clone();
        let library =
            StreamableHttpService::new(move || Ok(Handler::new(handlers.clone())), sessions.clone(), config);
        Self { shared, sessions, library }
    }

    /// Returns how many sessions are open.
    pub fn sessions(&self) -> usize {
        self.sessions.count()
    }

    /// Answers a POST, GET or DELETE on the endpoint's path. `body` must be strict JSON for a POST.
    ///
    /// Dropping the response (or this future) of a request of revision 2026-07-28 cancels it.
    pub async fn respond(&self, mut parts: Parts, body: Bytes, caller: Caller) -> Response<Body> {
        if let Some(id) = parts.headers.get(SESSION_ID) {
            let owned = id.to_str().is_ok_and(|id| self.sessions.owned(id, &caller.actor.id));
            if !owned && parts.method == Method::DELETE {
                return refuse(StatusCode::NOT_FOUND, "null", "there is no such session");
            }
            if !owned {
                // No session has this name, so the library answers as for any unknown one, in either era.
                parts.headers.insert(SESSION_ID, HeaderValue::from_static("-"));
            }
        }
        let accept = parts.headers.get(header::ACCEPT);
        if accept.is_none_or(|accept| accept.as_bytes() == b"*/*") {
            // Whoever takes anything takes both of these, which the library wants to see named.
            parts.headers.insert(header::ACCEPT, ACCEPT_BOTH);
        }
        let method = parts.method.clone();
        let (id, body) = if method == Method::POST {
            match self.open(&mut parts, body, &caller) {
                Ok(Opened::Library { id, body }) => (id, body),
                Ok(Opened::Direct { id, asked }) => {
                    return direct::answer(&self.shared, &asked, &id).await;
                }
                Err(refusal) => return *refusal,
            }
        } else {
            ("null".to_owned(), Bytes::new())
        };
        let session = parts.headers.get(SESSION_ID).filter(|_| method == Method::POST && id != "null");
        let claim = session
            .and_then(|session| session.to_str().ok())
            .map(|session| self.sessions.claim(session, &id));
        let claim = match claim.transpose() {
            Ok(claim) => claim,
            Err(Taken) => {
                let message = "another request of this session has this id and is not answered yet";
                return refuse(StatusCode::BAD_REQUEST, &id, message);
            }
        };
        let request = http::Request::from_parts(parts, Full::new(body));
        deliver(self.library.handle(request).await, &method, &id, claim).await
    }

    /// Reads the message and decides who answers it. The caller's side of it is left in `parts` for the library.
    fn open(&self, parts: &mut Parts, body: Bytes, caller: &Caller) -> Result<Opened, Box<Response<Body>>> {
        match envelope::read(&body, caller).map_err(|fault| Box::new(faulty(&fault)))? {
            Message::Answers => Ok(Opened::Library { id: "null".to_owned(), body }),
            Message::Asks { asked, method, id, slim } => {
                let offer = self.shared.router.offer();
                if let Some(id) = id.filter(|_| direct::takes(&parts.headers, &method, &asked, &offer)) {
                    return Ok(Opened::Direct { id: id.to_owned(), asked });
                }
                let id = id.unwrap_or("null").to_owned();
                if method == "initialize" && !self.sessions.admits() {
                    let message = "all sessions are in use; try again later";
                    let refusal = refuse(StatusCode::SERVICE_UNAVAILABLE, &id, message);
                    return Err(Box::new(refusal));
                }
                let slim = slim.filter(|_| header_tool(&offer, &asked.name).is_none());
                let slim = slim.map(|slim| Bytes::from(slim.to_json()));
                parts.extensions.insert(asked);
                Ok(Opened::Library { id, body: slim.unwrap_or(body) })
            }
        }
    }
}

/// Serves one client that writes messages to `reader`'s other end, until it closes that or the server shuts down.
///
/// Only messages are written to `writer`.
pub async fn serve_stdio(
    router: Arc<Router>,
    settings: Settings,
    caller: Caller,
    reader: impl AsyncRead + Send + Unpin + 'static,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> io::Result<()> {
    let shared = Arc::new(Shared::new(router, ended_alone(settings)));
    let (pipe, written) = Pipe::new(shared.clone(), caller, Lines::new(reader), None);
    // The queue ends with the service, and the writer with the queue.
    let (served, wrote) = tokio::join!(serve(shared, pipe), lines::write(written, writer));
    served.and(wrote)
}

/// Serves one stream of a peer, until the peer closes it, breaks the rules or is idle for too long, or the server
/// shuts down.
///
/// The quota of a caller is shared by all its streams that have the same `settings.quotas`.
pub async fn serve_frames(
    router: Arc<Router>,
    settings: Settings,
    caller: Caller,
    stream: impl Duplex + 'static,
) -> io::Result<()> {
    let bounds = settings.quotas.bounds;
    let counted = settings.quotas.stream(&caller.actor.id);
    let shared = Shared { bounds: Some(bounds), ..Shared::new(router, ended_alone(settings)) };
    let shared = Arc::new(shared);
    let (reader, writer) = tokio::io::split(stream);
    let (pipe, written) = Pipe::new(shared.clone(), caller, Framed::new(reader), Some(counted));
    let (served, wrote) = tokio::join!(serve(shared, pipe), frames::write(written, writer, bounds.idle));
    served.and(wrote)
}

/// Gives a stream a shutdown of its own, so that its listeners end with it or with the server.
fn ended_alone(settings: Settings) -> Settings {
    Settings { shutdown: settings.shutdown.child_token(), ..settings }
}

async fn serve<F: Framing>(shared: Arc<Shared>, pipe: Pipe<F>) -> io::Result<()> {
    let shutdown = shared.settings.shutdown.clone();
    match Handler::new(shared).serve_with_ct(pipe, shutdown).await {
        Ok(service) => {
            service.waiting().await.map_err(io::Error::other)?;
            Ok(())
        }
        // The client left before it said anything worth an answer.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => Ok(()),
        Err(err) => Err(io::Error::other(err)),
    }
}

/// Makes the response that leaves from the library's: opens parcels, and turns plain text into JSON-RPC errors. The
/// request's id is claimed until it is answered.
async fn deliver(
    response: Response<BoxBody<Bytes, Infallible>>,
    method: &Method,
    id: &str,
    mut claim: Option<Claim>,
) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE);
    let is = |wanted: &[u8]| kind.is_some_and(|kind| kind.as_bytes().starts_with(wanted));
    if is(b"text/event-stream") {
        // The library gives each event as a frame of its own.
        let answer = [r#""result":"#, r#""error":"#].map(|member| format!(r#""id":{id},{member}"#));
        let events = body.map_frame(move |frame| {
            frame.map_data(|event| {
                if answer.iter().any(|answer| raw::opens_with(&event, answer)) {
                    claim = None;
                }
                raw::unpack_event(event)
            })
        });
        return Response::from_parts(head, Body::new(events));
    }
    let is_json = is(b"application/json");
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(never) => match never {},
    };
    if is_json {
        let body = raw::unpack(&body).map_or(body, Bytes::from);
        return Response::from_parts(head, Body::from(body));
    }
    if head.status.is_client_error() || head.status.is_server_error() {
        let mut response = refuse(head.status, id, &String::from_utf8_lossy(&body));
        if let Some(allow) = head.headers.remove(header::ALLOW) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        return response;
    }
    if *method == Method::DELETE {
        head.status = StatusCode::NO_CONTENT;
    }
    Response::from_parts(head, Body::from(body))
}

fn faulty(fault: &Fault) -> Response<Body> {
    let status = if fault.malformed { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    json(status, fault.to_json())
}

fn refuse(status: StatusCode, id: &str, message: &str) -> Response<Body> {
    let fault = Fault { id: id.to_owned(), ..Fault::malformed(INVALID_REQUEST, message) };
    json(status, fault.to_json())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

#[cfg(test)]
mod tests;
