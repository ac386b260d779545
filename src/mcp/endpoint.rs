//! The endpoint: MCP over HTTP, requests that stand alone and those of sessions.
//!
//! Invariants:
//! - a request that stands alone is answered by one JSON message, or by a stream if something is said before its answer;
//! - what happens in a session goes over streams that can be resumed;
//! - no two requests of one session that have the same id are open at once.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Settings, Shared,
    envelope::{self, Fault, Incoming, Message},
    era::Era,
    handler::{Answered, check_shape, is_heard},
    headers::{Unfit, check_events, check_kinds, check_mirrored, era},
    offering::mirrored,
    outlet::{Outlet, Reading, event},
    pipe::notified,
    sessions::{Open, Served, Sessions},
    turn::Turn,
};
use crate::{
    caller::Caller,
    router::{
        Router,
        codes::{
            HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, MISSING_CAPABILITY,
            UNSUPPORTED_VERSION,
        },
    },
};

/// Messages of one request that wait for its connection.
const QUEUE_MAX: usize = 16;
/// How often a silent stream shows that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
const ALIVE: Bytes = Bytes::from_static(b":\n\n");

const SESSION_ID: &str = "mcp-session-id";
const RESUMES: &str = "last-event-id";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// The MCP endpoint of the HTTP door.
pub struct Endpoint {
    shared: Arc<Shared>,
    sessions: Sessions,
}

/// A session, by its id.
type Named = (String, Served);

impl Endpoint {
    /// Must be called on a runtime, on which a task looks for idle sessions until `settings.shutdown` fires.
    pub fn new(router: Arc<Router>, settings: Settings) -> Self {
        let sessions = Sessions::default();
        let (swept, shutdown) = (sessions.clone(), settings.shutdown.clone());
        tokio::spawn(shutdown.run_until_cancelled_owned(async move { swept.sweep().await }));
        Self { shared: Arc::new(Shared::new(router, settings)), sessions }
    }

    /// Returns how many sessions are open.
    pub fn sessions(&self) -> usize {
        self.sessions.count()
    }

    /// Answers a POST, GET or DELETE on the endpoint's path. `body` must be strict JSON for a POST.
    ///
    /// Dropping the response (or this future) of a request that stands alone cancels it.
    pub async fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> Response<Body> {
        let headers = &parts.headers;
        match parts.method {
            Method::POST => self.post(headers, &body, caller).await,
            Method::GET => self.listen(headers, &caller).unwrap_or_else(|refusal| *refusal),
            Method::DELETE => self.delete(headers, &caller).unwrap_or_else(|refusal| *refusal),
            _ => not_allowed("GET, POST, DELETE"),
        }
    }

    async fn post(&self, headers: &HeaderMap, body: &[u8], caller: Caller) -> Response<Body> {
        let actor = caller.actor.id.clone();
        let read = envelope::read(body, &caller).and_then(|message| match message {
            Message::Asks(asked) => match check_shape(&asked).map_err(|error| Fault::of(asked.id(), error)) {
                Err(fault) if asked.id.is_some() => Err(fault),
                _ => Ok(Message::Asks(asked)),
            },
            answers => Ok(answers),
        });
        let message = match read {
            Ok(message) => message,
            Err(fault) => return faulty(&fault),
        };
        let asked = match &message {
            Message::Asks(asked) => Some(asked),
            Message::Answers(_) => None,
        };
        let era = match check_kinds(headers).and_then(|()| era(headers, asked)) {
            Ok(era) => era,
            Err(unfit) => return refuse_unfit(message.id(), unfit),
        };
        match (era, message) {
            (Era::Stateless, Message::Asks(asked)) => self.alone(headers, asked).await,
            (Era::Stateless, Message::Answers(_)) => {
                refuse(StatusCode::BAD_REQUEST, "null", "stateless server does not accept JSON-RPC responses")
            }
            (Era::Session, message) => self.in_session(headers, message, &actor).await,
        }
    }

    /// Answers a request that stands alone.
    async fn alone(&self, headers: &HeaderMap, asked: Incoming) -> Response<Body> {
        let called = (asked.method == "tools/call").then_some(&asked.name);
        let tool = called.and_then(|name| self.shared.router.tool_for(&asked.caller, name));
        let schema = tool.and_then(|entry| mirrored(&entry.tool));
        if let Err(unfit) = check_mirrored(headers, &asked, schema.as_ref()) {
            return refuse_unfit(asked.id(), unfit);
        }
        if asked.id.is_none() {
            return empty(StatusCode::ACCEPTED);
        }
        let (id, incomplete, heard) = (asked.id().to_owned(), !asked.missing().is_empty(), is_heard(&asked));
        let (outlet, said) = match heard {
            true => {
                let (queue, said) = mpsc::channel(QUEUE_MAX);
                (Outlet::Queue(queue, event), Some(said))
            }
            false => (Outlet::Nowhere, None),
        };
        let cancel = CancellationToken::new();
        let turn = Turn { shared: self.shared.clone(), asked, session: None, outlet, cancel, place: None };
        let shutdown = &self.shared.settings.shutdown;
        let mut telling =
            Telling { said, answering: Some(Box::pin(async move { turn.answer().await })), answer: None };
        let Some(first) = shutdown.run_until_cancelled(telling.next()).await else {
            let message = "the server is stopping, and the call was cancelled";
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, &id, message);
        };
        match first {
            Some(Told::Said(first)) => stream(Some(first), telling, shutdown.clone()),
            Some(Told::Answer(Answered { text, failed })) => json(status(failed, incomplete), text),
            None => refuse(StatusCode::INTERNAL_SERVER_ERROR, &id, "there is no answer"),
        }
    }

    /// Takes a message of a session, or the handshake that opens one.
    async fn in_session(&self, headers: &HeaderMap, message: Message, actor: &str) -> Response<Body> {
        let given = match self.given(headers, actor, message.id()) {
            Ok(given) => given,
            Err(refusal) => return *refusal,
        };
        let opens = matches!(&message, Message::Asks(asked) if asked.method == "initialize");
        let (id, Served { session, streams }) = match given {
            Some(named) => named,
            None => match message {
                Message::Asks(asked) if opens && asked.id.is_some() => return self.open(asked).await,
                _ => {
                    return refuse(
                        StatusCode::BAD_REQUEST,
                        message.id(),
                        "Bad Request: Session ID is required",
                    );
                }
            },
        };
        let asked = match message {
            Message::Answers(answer) => {
                session.answered(answer);
                return empty(StatusCode::ACCEPTED);
            }
            Message::Asks(asked) => asked,
        };
        if asked.id.is_none() {
            for number in notified(&self.shared, &session, &asked) {
                streams.end(number);
            }
            return empty(StatusCode::ACCEPTED);
        }
        if session.runs(asked.id()) {
            let message = "another request of this session has this id and is not answered yet";
            return refuse(StatusCode::BAD_REQUEST, asked.id(), message);
        }
        let (number, cancel) = session.begin(asked.id());
        let (reading, open) = (streams.open(number), self.sessions.open(&id));
        let outlet = Outlet::Streams(streams.clone(), number);
        let (shared, end) = (self.shared.clone(), session.end.clone());
        let own = session.clone();
        tokio::spawn(async move {
            let turn = Turn { shared, asked, session: Some(own.clone()), outlet, cancel, place: None };
            let answered = turn.answer().await;
            if own.finish(number) {
                turn.outlet.say(answered.text).await;
            }
            streams.end(number);
        });
        stream(None, (reading, open), end)
    }

    /// Opens a session.
    async fn open(&self, asked: Incoming) -> Response<Body> {
        let id = asked.id().to_owned();
        let shutdown = &self.shared.settings.shutdown;
        let Some((name, Served { session, .. })) = self.sessions.create(&asked.caller.actor.id, shutdown)
        else {
            let message = "all sessions are in use; try again later";
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &id, message);
        };
        let (outlet, cancel) = (session.outlet.clone(), session.end.child_token());
        let (shared, session) = (self.shared.clone(), Some(session));
        let turn = Turn { shared, asked, session, outlet, cancel, place: None };
        let answered = turn.answer().await;
        let mut response = json(StatusCode::OK, answered.text);
        if let Ok(name) = HeaderValue::try_from(name) {
            response.headers_mut().insert(SESSION_ID, name);
        }
        response
    }

    /// Opens the stream of a session on which it is told of changes, or one that broke.
    fn listen(&self, headers: &HeaderMap, caller: &Caller) -> Result<Response<Body>, Box<Response<Body>>> {
        check_events(headers).map_err(|unfit| Box::new(refuse_unfit("null", unfit)))?;
        let (id, Served { session, streams }) = self.named(headers, caller)?;
        let last = headers.get(RESUMES).and_then(|last| last.to_str().ok());
        let reading = match last {
            None => Some(streams.listen()),
            Some(last) => streams.resume(last),
        };
        let end = session.end.clone();
        // Where nothing can be resumed, the end of an empty stream says so: after an error a client would ask for ever.
        Ok(match reading {
            Some(reading) => stream(None, (reading, self.sessions.open(&id)), end),
            None => stream(None, Ended, end),
        })
    }

    fn delete(&self, headers: &HeaderMap, caller: &Caller) -> Result<Response<Body>, Box<Response<Body>>> {
        let (id, _) = self.named(headers, caller)?;
        self.sessions.close(&id);
        Ok(empty(StatusCode::NO_CONTENT))
    }

    /// Returns the session of a request that has no message of its own.
    fn named(&self, headers: &HeaderMap, caller: &Caller) -> Result<Named, Box<Response<Body>>> {
        let era = era(headers, None).map_err(|unfit| Box::new(refuse_unfit("null", unfit)))?;
        if era == Era::Stateless {
            return Err(Box::new(not_allowed("POST")));
        }
        let required = "Bad Request: Session ID is required";
        self.given(headers, &caller.actor.id, "null")?
            .ok_or_else(|| Box::new(refuse(StatusCode::BAD_REQUEST, "null", required)))
    }

    /// Returns the session that a request names, if it names one. Errors: it is none of this actor's.
    fn given(
        &self,
        headers: &HeaderMap,
        actor: &str,
        asked: &str,
    ) -> Result<Option<Named>, Box<Response<Body>>> {
        let Some(id) = headers.get(SESSION_ID) else {
            return Ok(None);
        };
        let known = id.to_str().ok().and_then(|id| Some((id.to_owned(), self.sessions.of(id, actor)?)));
        let unknown = || refuse(StatusCode::NOT_FOUND, asked, "Not Found: Session not found");
        known.map(Some).ok_or_else(|| Box::new(unknown()))
    }
}

/// Something that a client is told in answer to its request.
enum Told {
    /// An event before the answer.
    Said(Bytes),
    Answer(Answered),
}

/// What a request that stands alone tells its client. Dropping it cancels the request.
struct Telling {
    /// What is said before the answer, if anything may be.
    said: Option<mpsc::Receiver<Bytes>>,
    answering: Option<Pin<Box<dyn Future<Output = Answered> + Send>>>,
    answer: Option<Answered>,
}

impl Telling {
    /// Returns what is told next, the answer last. Safe to drop midway.
    async fn next(&mut self) -> Option<Told> {
        let Self { said, answering, answer } = self;
        if let Some(running) = answering {
            tokio::select! {
                biased;
                Some(said) = hear(said) => return Some(Told::Said(said)),
                done = running => *answer = Some(done),
            }
            // Whoever could speak is gone with it, and so the queue ends.
            *answering = None;
        }
        match hear(said).await {
            Some(said) => Some(Told::Said(said)),
            None => answer.take().map(Told::Answer),
        }
    }
}

async fn hear(said: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    said.as_mut()?.recv().await
}

/// What gives a response its events.
trait Events: Send + 'static {
    fn event(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

impl Events for Telling {
    async fn event(&mut self) -> Option<Bytes> {
        self.next().await.map(|told| match told {
            Told::Said(event) => event,
            Told::Answer(answered) => event(answered.text),
        })
    }
}

impl Events for (Reading, Open) {
    async fn event(&mut self) -> Option<Bytes> {
        self.0.next().await
    }
}

/// No events.
struct Ended;

impl Events for Ended {
    async fn event(&mut self) -> Option<Bytes> {
        None
    }
}

/// Returns a response that is a stream of events, up to their end or until `end` fires.
fn stream(first: Option<Bytes>, events: impl Events, end: CancellationToken) -> Response<Body> {
    let events = unfold((first, events, end), |(first, mut events, end)| async move {
        let event = match first {
            Some(first) => first,
            None => tokio::select! {
                biased;
                event = events.event() => event?,
                () = end.cancelled() => return None,
                () = sleep(ALIVE_EVERY) => ALIVE,
            },
        };
        Some((Ok::<_, Infallible>(event), (None, events, end)))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENTS);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Returns the status of an answer to a request that stands alone. `incomplete` says that it lacks metadata.
fn status(failed: Option<i64>, incomplete: bool) -> StatusCode {
    match failed {
        Some(UNSUPPORTED_VERSION | MISSING_CAPABILITY | HEADER_MISMATCH) => StatusCode::BAD_REQUEST,
        Some(INVALID_PARAMS) if incomplete => StatusCode::BAD_REQUEST,
        Some(METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        _ => StatusCode::OK,
    }
}

fn faulty(fault: &Fault) -> Response<Body> {
    let status = if fault.malformed { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    json(status, fault.to_json())
}

fn refuse(status: StatusCode, id: &str, message: &str) -> Response<Body> {
    refuse_unfit(id, Unfit { status, code: INVALID_REQUEST, message: message.to_owned() })
}

fn refuse_unfit(id: &str, unfit: Unfit) -> Response<Body> {
    let fault = Fault { id: id.to_owned(), ..Fault::malformed(unfit.code, unfit.message) };
    json(unfit.status, fault.to_json())
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "null", "Method Not Allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn json(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
