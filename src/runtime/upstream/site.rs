//! One server over HTTP: where it is, and the headers and session that every message to it has.
//!
//! Invariants:
//! - no redirect leads to another origin, and no endpoint that a server names does;
//! - configured headers and the URL's query are never in an error or a log line;
//! - nothing compressed is asked for, because compressed events arrive late; what comes so all the same is read.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};

use crate::runtime::upstream::{
    Protocol,
    credentials::Credentials,
    headers::{self, SESSION, VERSION},
};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept. Many servers close theirs after five seconds, some at the very moment at which
/// the next request arrives, and nobody knows then whether it ran.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Redirects that one request follows.
const REDIRECTS_MAX: usize = 5;
/// The `User-Agent` of every request whose configured headers name none.
const AGENT: &str = concat!("cairn/", env!("CARGO_PKG_VERSION"));
/// The media type of a stream of events.
const EVENTS: &str = "text/event-stream";
/// The variables that name the proxy of a URL without TLS.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// One server, as messages are sent to it over one connection.
pub struct Site {
    client: Client,
    url: Url,
    credentials: Option<Arc<Credentials>>,
    /// Where a server of the older transport takes messages.
    endpoint: OnceLock<Url>,
    session: OnceLock<HeaderValue>,
    /// Whether the server has forgotten the session.
    expired: AtomicBool,
    /// The status of the last response to a message; zero before the first.
    status: AtomicU16,
    protocol: OnceLock<Protocol>,
}

impl Site {
    /// Prepares a client; nothing is sent yet. Errors: which setting makes no sense, without its value.
    pub fn new(
        url: &str,
        headers: &BTreeMap<String, String>,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| format!("the url is malformed: {error}"))?;
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut defaults = HeaderMap::from_iter([
            (header::USER_AGENT, HeaderValue::from_static(AGENT)),
            (header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        ]);
        defaults.extend(headers::configured(headers)?);
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_MAX)
            .default_headers(defaults)
            .redirect(redirect::Policy::custom(same_origin));
        if url.scheme() == "http" && !has_tls_proxy() {
            // Without TLS, a machine without certificate authorities is good enough.
            client = client.tls_certs_only([]);
        }
        let client = client.build();
        let client = client.map_err(|error| format!("cannot prepare http: {}", cause(&error)))?;
        Ok(Self {
            client,
            url,
            credentials,
            endpoint: OnceLock::new(),
            session: OnceLock::new(),
            expired: AtomicBool::new(false),
            status: AtomicU16::new(0),
            protocol: OnceLock::new(),
        })
    }

    /// Fixes the protocol version that every later message names.
    pub fn settle(&self, protocol: Protocol) {
        let _ = self.protocol.set(protocol);
    }

    /// Learns the session from the response that opens it.
    pub fn learn(&self, response: &Response) {
        if let Some(session) = response.headers().get(SESSION) {
            let _ = self.session.set(session.clone());
        }
    }

    /// Returns whether the server gave the session an id.
    pub fn has_session(&self) -> bool {
        self.session.get().is_some()
    }

    /// Returns whether a session was opened, with or without an id.
    pub fn in_session(&self) -> bool {
        self.has_session() || matches!(self.protocol.get(), Some(Protocol::Session(_)))
    }

    /// Marks the session as forgotten by the server.
    pub fn expire(&self) {
        self.expired.store(true, Ordering::Release);
    }

    /// Returns whether the server has forgotten the session.
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    /// Learns from a server of the older transport where it takes messages. Returns whether that is at its own origin.
    pub fn redirect(&self, base: &Url, endpoint: &str) -> bool {
        match base.join(endpoint) {
            Ok(endpoint) if endpoint.origin() == self.url.origin() => self.endpoint.set(endpoint).is_ok(),
            Ok(_) | Err(_) => false,
        }
    }

    /// Returns whether the server speaks the older transport, of revision 2024-11-05.
    pub fn is_older(&self) -> bool {
        self.endpoint.get().is_some()
    }

    /// Posts a message, to the endpoint that a server of the older transport named, else to the URL.
    pub async fn post(&self, body: Bytes, headers: HeaderMap) -> reqwest::Result<Response> {
        let url = self.endpoint.get().unwrap_or(&self.url).clone();
        let request = self.client.post(url).headers(self.headers()).headers(headers);
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(body);
        let response = self.send(request).await?;
        self.status.store(response.status().as_u16(), Ordering::Release);
        Ok(response)
    }

    /// Returns the status of the last response to a message, if it was no success.
    pub fn refusal(&self) -> Option<StatusCode> {
        let status = StatusCode::from_u16(self.status.load(Ordering::Acquire)).ok();
        status.filter(|status| !status.is_success())
    }

    /// Opens a stream of events, which begins after the event `last_id` if that is known.
    pub async fn get(&self, last_id: Option<&str>) -> reqwest::Result<Response> {
        let mut request = self.client.get(self.url.clone()).headers(self.headers());
        request = request.header(header::ACCEPT, EVENTS);
        if let Some(last_id) = last_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            request = request.header("last-event-id", last_id);
        }
        self.send(request).await
    }

    /// Ends the session.
    pub async fn delete(&self, patience: Duration) -> reqwest::Result<Response> {
        self.send(self.client.delete(self.url.clone()).headers(self.headers()).timeout(patience)).await
    }

    /// Sends a request with the token that it needs, if it needs one.
    async fn send(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        match &self.credentials {
            Some(credentials) => credentials.send(request).await,
            None => request.send().await,
        }
    }

    /// Returns whether a refusal for want of a token is of the whole connection: a 401, or one of a first question.
    pub fn is_shut(&self, status: StatusCode) -> bool {
        status == StatusCode::UNAUTHORIZED || self.protocol.get().is_none()
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

/// Returns whether the way to a URL without TLS may begin with TLS.
fn has_tls_proxy() -> bool {
    PROXIES.iter().any(|name| std::env::var(name).is_ok_and(|proxy| proxy.starts_with("https:")))
}

/// Returns whether a response is a stream of events.
pub fn is_stream(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok());
    let media = media.unwrap_or_default().trim_start().as_bytes();
    media.get(..EVENTS.len()).is_some_and(|media| media.eq_ignore_ascii_case(EVENTS.as_bytes()))
}

/// Returns why there is no connection, without the URL.
pub fn describe(error: &reqwest::Error) -> String {
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
