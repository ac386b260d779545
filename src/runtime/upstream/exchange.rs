//! Exchanges over HTTP: a message posted, and what comes back for it or unasked, delivered.
//!
//! Invariants:
//! - no answer is read beyond its bound, unpacked or not;
//! - a request is sent again only where it cannot have run, or may run twice, and once for each of these reasons;
//! - an event that is no message costs only itself.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::runtime::upstream::{
    Failure,
    credentials::Refusal,
    inbox::Inbox,
    reopening::{PAUSE_MAX, Reopening},
    site::{Site, describe, is_stream},
    sse::{Event, Parser},
    wire::{self, AnswerId, Incoming},
};

/// The largest answer, or single event of a stream.
pub const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// The timeout of a message whose answer nobody waits for.
pub const ASIDE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a broken response stream is taken up again before its request is given up.
const RESUMES_MAX: usize = 5;
/// The pause before a stream is opened again, where the server names none.
const REOPEN: Duration = Duration::from_secs(1);
/// Events that are no message, in a row, after which the server is taken to speak something else.
const GARBAGE_MAX: usize = 1_000;
/// What servers answer that know no session of ours, and others for reasons of their own.
const DOUBTED: [StatusCode; 4] =
    [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::GONE, StatusCode::SERVICE_UNAVAILABLE];
/// Methods that may run twice, because they only read.
const READS: [&str; 9] = [
    "ping",
    "server/discover",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "prompts/get",
    "completion/complete",
];

/// A server, and where what it says goes.
pub struct Exchange {
    pub site: Site,
    pub inbox: Arc<Inbox>,
    /// Takes our answers to what the server asks.
    pub outbox: mpsc::Sender<String>,
}

/// A request on its way out.
pub struct Post<'a> {
    pub id: u64,
    pub method: &'a str,
    pub body: Bytes,
    pub headers: HeaderMap,
}

/// How an exchange ended.
enum Ended {
    /// Without an answer, unless one was delivered.
    Failed(Failure),
    /// With a refusal that names no request: the session may be meant.
    Refused { status: StatusCode, body: Vec<u8> },
}

impl Exchange {
    /// Posts a request, and delivers what comes back until the response ends. Returns why there is no answer, for the
    /// case that none was delivered. Dropping this closes the response.
    pub async fn ask(&self, post: &Post<'_>) -> Failure {
        if let Ended::Failed(failure) = self.ask_once(post).await {
            return failure;
        }
        // What is refused so was not begun: in a session that is in order it is said again, and else in the next one.
        if self.is_forgotten().await {
            return self.expire();
        }
        match self.ask_once(post).await {
            Ended::Failed(failure) => failure,
            Ended::Refused { status, body } => self.conclude(post.id, status, &body),
        }
    }

    async fn ask_once(&self, post: &Post<'_>) -> Ended {
        let response = match self.post(post).await {
            Ok(response) => response,
            Err(failure) => return Ended::Failed(failure),
        };
        let status = response.status();
        if let Some(Refusal { message }) = response.extensions().get() {
            if self.site.is_shut(status) {
                self.inbox.lose(message.clone());
            }
            return Ended::Failed(Failure::Unavailable { message: message.clone() });
        }
        self.site.learn(&response);
        if self.site.is_older() && status.is_success() {
            // The answer comes on the stream.
            return pending().await;
        }
        if status == StatusCode::NOT_FOUND && self.site.has_session() {
            return Ended::Failed(self.expire());
        }
        let doubted = DOUBTED.contains(&status) && self.site.in_session();
        if is_stream(&response) && !doubted {
            return Ended::Failed(self.stream(post.id, response).await);
        }
        let body = match read_whole(response).await {
            Ok(body) => body,
            Err(failure) => return Ended::Failed(failure),
        };
        match doubted && !answers(&body, post.id) {
            true => Ended::Refused { status, body },
            false => Ended::Failed(self.conclude(post.id, status, &body)),
        }
    }

    /// Posts a request; where the connection ends before a response, once more if it only reads.
    async fn post(&self, post: &Post<'_>) -> Result<Response, Failure> {
        let mut again = READS.contains(&post.method);
        loop {
            match self.site.post(post.body.clone(), post.headers.clone()).await {
                Ok(response) => return Ok(response),
                Err(error) if error.is_connect() => {
                    let message = describe(&error);
                    self.inbox.lose(message.clone());
                    return Err(Failure::Unavailable { message });
                }
                Err(_) if std::mem::take(&mut again) => {}
                Err(_) => return Err(Failure::Died),
            }
        }
    }

    /// Delivers a response's body. Returns why there is no answer if it held none.
    fn conclude(&self, id: u64, status: StatusCode, body: &[u8]) -> Failure {
        let delivered = str::from_utf8(body).is_ok_and(|text| self.inbox.deliver(text, Some(id)).is_ok());
        match (status.is_success(), delivered) {
            (true, true) => Failure::Broken("the response answers another request".to_owned()),
            (true, false) => Failure::Broken("the response is no json-rpc message".to_owned()),
            (false, _) if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
                // It broke at it, or somebody between us gave up on it: it may have begun.
                Failure::Broken(format!("it answered {status}"))
            }
            (false, _) => Failure::Unavailable { message: format!("answered {status}") },
        }
    }

    /// Returns whether the server refuses even a ping, and so knows no session of ours.
    async fn is_forgotten(&self) -> bool {
        let id = self.inbox.next_id();
        let body = wire::request(id, "ping", &wire::empty());
        let asked = async {
            let response = self.site.post(body.into(), HeaderMap::new()).await.ok()?;
            let refused = !response.status().is_success();
            Some(refused && !answers(&read_whole(response).await.ok()?, id))
        };
        // A server that says nothing to it has not said that either.
        timeout(ASIDE_TIMEOUT, asked).await.ok().flatten().unwrap_or(false)
    }

    /// Gives the session up: the owner opens another, in which whoever waits asks again.
    fn expire(&self) -> Failure {
        let message = "the session is gone".to_owned();
        self.site.expire();
        self.inbox.lose(message.clone());
        Failure::Unavailable { message }
    }

    /// Reads a response stream, taking it up again where the server gave it event ids.
    async fn stream(&self, id: u64, response: Response) -> Failure {
        let mut parser = Parser::new(ANSWER_MAX);
        let mut response = response;
        for _ in 0..RESUMES_MAX {
            if let Err(failure) = self.pump(response, &mut parser, Some(id)).await {
                return failure;
            }
            let Some(last) = parser.last_id() else {
                return Failure::Died;
            };
            sleep(pause(&parser)).await;
            response = match self.site.get(Some(last)).await {
                Ok(next) if next.status().is_success() && is_stream(&next) => next,
                Ok(_) | Err(_) => return Failure::Died,
            };
        }
        Failure::Died
    }

    /// Opens the server's own stream and reads it, again and again, until the server refuses it.
    pub async fn follow(&self) {
        let mut reopening = Reopening::new(Instant::now());
        let mut parser = Parser::new(ANSWER_MAX);
        loop {
            reopening.open(Instant::now());
            match self.site.get(parser.last_id()).await {
                Ok(response) if response.status().is_success() && is_stream(&response) => {
                    tokio::select! {
                        biased;
                        never = reopening.catch_up(&self.inbox) => match never {},
                        pumped = self.pump(response, &mut parser, None) => {
                            if let Err(failure) = pumped {
                                tracing::debug!(%failure, "a stream of changes is opened anew");
                                parser = Parser::new(ANSWER_MAX);
                            }
                        }
                    }
                }
                Ok(response) if passes(response.status()) => {}
                Ok(response) => {
                    let doubted = DOUBTED.contains(&response.status()) && self.site.has_session();
                    if doubted && self.is_forgotten().await {
                        self.expire();
                    }
                    // Most servers say 405: they have nothing to say unasked.
                    return;
                }
                Err(error) if error.is_connect() => return self.inbox.lose(describe(&error)),
                Err(_) => {}
            }
            reopening.wait(pause(&parser)).await;
        }
    }

    /// Delivers the events of one response until it ends.
    pub async fn pump(
        &self,
        response: Response,
        parser: &mut Parser,
        context: Option<u64>,
    ) -> Result<(), Failure> {
        let (mut response, mut garbage) = (response, 0);
        // A stream cut off midway ends like one that was closed.
        while let Ok(Some(bytes)) = response.chunk().await {
            let events = parser.push(&bytes).map_err(|_| Failure::TooLarge)?;
            self.take(events, context, &mut garbage)?;
        }
        parser.cut();
        Ok(())
    }

    /// Delivers events. Those that are no message are skipped, and counted in `garbage`.
    pub fn take(&self, events: Vec<Event>, context: Option<u64>, garbage: &mut usize) -> Result<(), Failure> {
        // An event without data only says where the stream can be taken up again.
        for event in events.into_iter().filter(|event| event.is_message() && !event.data.is_empty()) {
            let delivered = str::from_utf8(&event.data).ok();
            let delivered = delivered.and_then(|text| self.inbox.deliver(text, context).ok());
            let Some(back) = delivered else {
                *garbage += 1;
                tracing::debug!(bytes = event.data.len(), "an event that is no message is skipped");
                if *garbage > GARBAGE_MAX {
                    return Err(Failure::Broken(format!(
                        "over {GARBAGE_MAX} events in a row are no messages"
                    )));
                }
                continue;
            };
            *garbage = 0;
            for letter in back {
                // A server that asks faster than it takes answers loses some.
                let _ = self.outbox.try_send(letter);
            }
        }
        Ok(())
    }

    /// Posts a message whose answer nobody waits for.
    pub async fn post_aside(&self, body: String) {
        let posted = timeout(ASIDE_TIMEOUT, self.site.post(body.into(), HeaderMap::new())).await;
        if !matches!(posted, Ok(Ok(response)) if response.status().is_success()) {
            tracing::debug!("upstream did not take a message");
        }
    }
}

/// Returns whether a body holds an answer that names request `id`.
fn answers(body: &[u8], id: u64) -> bool {
    let messages = str::from_utf8(body).ok().and_then(|text| wire::parse(text).ok());
    let named = |message: &Incoming| match message {
        Incoming::Answer { id: of, .. } | Incoming::Malformed { id: of, .. } => *of == AnswerId::Ours(id),
        Incoming::Notification(_) | Incoming::Request { .. } => false,
    };
    messages.is_some_and(|messages| messages.iter().any(named))
}

/// Returns whether a refusal of this status is only for now.
fn passes(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS
        || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED)
}

async fn read_whole(response: Response) -> Result<Vec<u8>, Failure> {
    let mut response = response;
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(bytes)) if body.len() + bytes.len() > ANSWER_MAX => {
                return Err(Failure::TooLarge);
            }
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            Ok(None) => return Ok(body),
            Err(_) => return Err(Failure::Died),
        }
    }
}

fn pause(parser: &Parser) -> Duration {
    parser.retry_ms().map_or(REOPEN, Duration::from_millis).min(PAUSE_MAX)
}
