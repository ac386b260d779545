//! An upstream over Streamable HTTP: one POST a message, answered as JSON or as server-sent events.
//!
//! Invariants:
//! - no answer is read beyond its bound, and no redirect leads to another origin;
//! - configured headers and the URL's query are never in an error or a log line.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, Response, Url, redirect};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use crate::runtime::upstream::{
    Failure, Protocol,
    headers::{self, SESSION, VERSION},
    inbox::{Answer, Inbox},
    sse::Parser,
};

/// The largest answer, or single event of a stream.
pub const ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Our answers and cancellations not yet posted; beyond this they are dropped.
const OUTBOX_MAX: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a message whose answer nobody waits for.
const ASIDE_TIMEOUT: Duration = Duration::from_secs(5);
const REDIRECTS_MAX: usize = 5;
/// How often a broken response stream is taken up again before its request is given up.
const RESUMES_MAX: usize = 5;
/// The pause before a stream is opened again, where the server names none, and the longest it may name.
const REOPEN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(30);

pub struct Http {
    pub outbox: mpsc::Sender<String>,
    wire: Arc<Wire>,
    /// Posts the outbox; aborted when this is dropped.
    _poster: JoinSet<()>,
}

struct Wire {
    client: Client,
    url: Url,
    inbox: Arc<Inbox>,
    session: OnceLock<HeaderValue>,
    /// The server has forgotten the session.
    expired: AtomicBool,
    protocol: OnceLock<Protocol>,
}

impl Http {
    /// Prepares a connection; nothing is sent yet. Errors: which setting makes no sense, without its value.
    pub fn open(url: &str, headers: &BTreeMap<String, String>, inbox: Arc<Inbox>) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("the url is malformed: {error}"))?;
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .default_headers(headers::configured(headers)?)
            .redirect(redirect::Policy::custom(same_origin));
        if url.scheme() == "http" {
            // Without TLS, a machine without certificate authorities is good enough.
            client = client.tls_certs_only([]);
        }
        let client = client.build();
        let client = client.map_err(|error| format!("cannot prepare http: {}", cause(&error)))?;
        let wire = Arc::new(Wire {
            client,
            url,
            inbox,
            session: OnceLock::new(),
            expired: AtomicBool::new(false),
            protocol: OnceLock::new(),
        });
        let (outbox, mut letters) = mpsc::channel::<String>(OUTBOX_MAX);
        let mut poster = JoinSet::new();
        let posting = Arc::clone(&wire);
        poster.spawn(async move {
            while let Some(letter) = letters.recv().await {
                posting.post_aside(letter).await;
            }
        });
        Ok(Self { outbox, wire, _poster: poster })
    }

    /// Fixes the protocol version that every later message names.
    pub fn settle(&self, protocol: Protocol) {
        let _ = self.wire.protocol.set(protocol);
    }

    /// Posts a request and returns its answer. Dropping this closes the stream.
    pub async fn request(
        &self,
        id: u64,
        body: String,
        headers: HeaderMap,
        answer: tokio::sync::oneshot::Receiver<Answer>,
    ) -> Answer {
        let mut answer = answer;
        tokio::select! {
            biased;
            answer = &mut answer => answer.unwrap_or(Err(Failure::Died)),
            failure = self.exchange(id, body, headers) => match answer.try_recv() {
                Ok(answer) => answer,
                Err(_) => Err(failure),
            },
        }
    }

    /// Posts a notification and waits until it is taken.
    pub async fn notify(&self, body: String) {
        self.wire.post_aside(body).await;
    }

    /// Follows the server's own stream of messages for as long as it lets us. Session era only.
    pub async fn follow(&self) {
        let mut parser = Parser::new(ANSWER_MAX);
        loop {
            let response = match self.wire.get(parser.last_id()).await {
                Ok(response) if response.status().is_success() => response,
                Ok(response) if response.status() == StatusCode::NOT_FOUND && self.has_session() => {
                    self.wire.expire();
                    return;
                }
                // Most servers say 405: they have nothing to say unasked.
                Ok(_) => return,
                Err(error) => return self.wire.inbox.lose(describe(&error)),
            };
            if self.pump(response, &mut parser, None).await.is_err() {
                return;
            }
            sleep(pause(&parser)).await;
            self.wire.inbox.all_changed();
        }
    }

    /// Ends the session, where there is one.
    pub async fn close(&self) {
        if self.has_session() && !self.expired() {
            let request = self.wire.client.delete(self.wire.url.clone());
            // The server ends an abandoned session by itself.
            let _ = request.headers(self.wire.headers()).timeout(ASIDE_TIMEOUT).send().await;
        }
        self.wire.inbox.lose("stopped");
    }

    /// True once the server has forgotten the session: it runs nothing asked for in it.
    pub fn expired(&self) -> bool {
        self.wire.expired.load(Ordering::Acquire)
    }

    fn has_session(&self) -> bool {
        self.wire.session.get().is_some()
    }

    /// Posts, and delivers what comes back, until the response ends. Returns why there is no answer if
    /// by then there is none.
    async fn exchange(&self, id: u64, body: String, headers: HeaderMap) -> Failure {
        let response = match self.wire.post(body, headers).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                let message = describe(&error);
                self.wire.inbox.lose(message.clone());
                return Failure::Unavailable { message };
            }
            Err(_) => return Failure::Died,
        };
        let status = response.status();
        if let Some(session) = response.headers().get(SESSION) {
            let _ = self.wire.session.set(session.clone());
        }
        if status == StatusCode::NOT_FOUND && self.has_session() {
            return self.wire.expire();
        }
        if is_stream(&response) {
            return self.stream(id, response).await;
        }
        let body = match read_whole(response).await {
            Ok(body) => body,
            Err(failure) => return failure,
        };
        let delivered =
            std::str::from_utf8(&body).is_ok_and(|text| self.wire.inbox.deliver(text, Some(id)).is_ok());
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
            response = match self.wire.get(Some(last)).await {
                Ok(next) if next.status().is_success() && is_stream(&next) => next,
                Ok(_) | Err(_) => return Failure::Died,
            };
        }
        Failure::Died
    }

    /// Delivers the events of one response until it ends.
    async fn pump(
        &self,
        response: Response,
        parser: &mut Parser,
        context: Option<u64>,
    ) -> Result<(), Failure> {
        let mut response = response;
        // A stream cut off midway ends like one that was closed.
        while let Ok(Some(bytes)) = response.chunk().await {
            for event in parser.push(&bytes).map_err(|_| Failure::TooLarge)? {
                // An event without data only says where the stream can be taken up again.
                if event.data.is_empty() {
                    continue;
                }
                let text = String::from_utf8(event.data)
                    .map_err(|_| Failure::Broken("an event is not utf-8".to_owned()))?;
                let back = self.wire.inbox.deliver(&text, context);
                let back = back.map_err(|_| Failure::Broken("an event is no json-rpc message".to_owned()))?;
                for letter in back {
                    // A server that asks faster than it takes answers loses some.
                    let _ = self.outbox.try_send(letter);
                }
            }
        }
        parser.cut();
        Ok(())
    }
}

impl Wire {
    fn expire(&self) -> Failure {
        let message = "the session is gone".to_owned();
        self.expired.store(true, Ordering::Release);
        self.inbox.lose(message.clone());
        Failure::Unavailable { message }
    }

    async fn post(&self, body: String, headers: HeaderMap) -> reqwest::Result<Response> {
        let request = self.client.post(self.url.clone()).headers(self.headers()).headers(headers);
        request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(body)
            .send()
            .await
    }

    async fn post_aside(&self, body: String) {
        let posted = tokio::time::timeout(ASIDE_TIMEOUT, self.post(body, HeaderMap::new())).await;
        if !matches!(posted, Ok(Ok(response)) if response.status().is_success()) {
            tracing::debug!("upstream did not take a message");
        }
    }

    async fn get(&self, last_id: Option<&str>) -> reqwest::Result<Response> {
        let mut request = self.client.get(self.url.clone()).headers(self.headers());
        request = request.header(header::ACCEPT, "text/event-stream");
        if let Some(last_id) = last_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            request = request.header("last-event-id", last_id);
        }
        request.send().await
    }

    /// The headers that every message of the connection has.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(session) = self.session.get() {
            headers.insert(SESSION, session.clone());
        }
        if let Some(protocol) = self.protocol.get() {
            headers.insert(VERSION, HeaderValue::from_static(protocol.version()));
        }
        headers
    }
}

/// Follows redirects within one origin only: configured headers are for nobody else.
fn same_origin(attempt: redirect::Attempt) -> redirect::Action {
    let home = attempt.previous().first().map(Url::origin);
    let same = home.is_some_and(|home| home == attempt.url().origin());
    match same && attempt.previous().len() <= REDIRECTS_MAX {
        true => attempt.follow(),
        false => attempt.stop(),
    }
}

fn is_stream(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok());
    media.is_some_and(|media| media.trim_start().starts_with("text/event-stream"))
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
    parser.retry_ms().map_or(REOPEN, Duration::from_millis).min(REOPEN_MAX)
}

fn describe(error: &reqwest::Error) -> String {
    format!("cannot connect: {}", cause(error))
}

/// Returns the innermost cause of an error, because the outer ones may contain the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.is::<reqwest::Error>() {
        true => "no cause is known".to_owned(),
        false => cause.to_string(),
    }
}
