//! The loopback address that a login's page leads back to.
//!
//! Invariants:
//! - it listens on 127.0.0.1 alone, for one login, and takes only the answer with that login's `state`;
//! - nothing of a request is shown or logged.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

const PATH: &str = "/callback";
/// How long a connection may take: the browser sends one short request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; a browser opens two or three.
const CONNECTIONS_MAX: usize = 16;
/// How long the last answer may take to leave.
const LINGER: Duration = Duration::from_millis(200);
const DONE: &str = "Cairn has what it needs. You can close this page.\n";
const STRANGE: &str = "This is not the answer to the login under way.\n";

/// A place to come back to.
pub struct Redirect {
    listener: TcpListener,
    port: u16,
}

/// Returns the URL of a port.
pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}{PATH}")
}

/// Returns the port of such a URL.
pub fn port(url: &str) -> Option<u16> {
    Url::parse(url).ok()?.port()
}

impl Redirect {
    /// Listens on the port given, or on `liked` or any other.
    pub async fn open(port: Option<u16>, liked: Option<u16>) -> std::io::Result<Self> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match (port, liked) {
            (Some(port), _) => bind(port).await?,
            (None, Some(liked)) => match bind(liked).await {
                Ok(listener) => listener,
                Err(_) => bind(0).await?,
            },
            (None, None) => bind(0).await?,
        };
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    pub fn url(&self) -> String {
        url(self.port)
    }

    /// Waits for the answer with this `state`; returns its whole URL.
    pub async fn answer(&self, state: &str) -> std::io::Result<String> {
        let (found, mut answers) = mpsc::channel(1);
        let mut connections = JoinSet::new();
        let answer = loop {
            tokio::select! {
                Some(answer) = answers.recv() => break answer,
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted?;
                    while connections.try_join_next().is_some() {}
                    if connections.len() < CONNECTIONS_MAX {
                        connections.spawn(converse(TokioIo::new(stream), self.port, state.to_owned(), found.clone()));
                    }
                }
            }
        };
        // The browser is to get its page before the process ends.
        let _ = timeout(LINGER, async { while connections.join_next().await.is_some() {} }).await;
        Ok(answer)
    }
}

async fn converse(
    stream: TokioIo<tokio::net::TcpStream>,
    port: u16,
    state: String,
    found: mpsc::Sender<String>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = redirected(&request, port).filter(|answer| is_answer(answer, &state));
        let known = answer.is_some();
        // A second answer to the same login is told the same and dropped.
        let _ = answer.map(|answer| found.try_send(answer));
        async move { Ok::<_, Infallible>(page(known)) }
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(stream, service);
    tokio::select! {
        // A browser that goes away has had its chance.
        _ = connection => {}
        () = sleep(CONNECTION_TIMEOUT) => {}
    }
}

/// Returns the URL that was asked for, if it is the one to come back to.
fn redirected(request: &Request<Incoming>, port: u16) -> Option<String> {
    let uri = request.uri();
    let query = uri.query().filter(|_| uri.path() == PATH)?;
    Some(format!("{}?{query}", url(port)))
}

/// Returns whether a URL answers the login with this `state`.
pub fn is_answer(redirected: &str, state: &str) -> bool {
    let url = Url::parse(redirected).ok();
    url.is_some_and(|url| url.query_pairs().any(|(key, value)| key == "state" && value == state))
}

fn page(known: bool) -> Response<Full<Bytes>> {
    let (status, text) = if known { (StatusCode::OK, DONE) } else { (StatusCode::BAD_REQUEST, STRANGE) };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    // The address holds the code.
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
