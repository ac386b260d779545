//! The older transport, of revision 2024-11-05: one stream of events for all answers, and an endpoint for messages.
//!
//! Invariants:
//! - it is tried only where a server refused a POST as such, and not for who asked or how often;
//! - messages go to the origin that was configured, whatever endpoint the server names;
//! - when the stream ends, everything that waits on it ends at once.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::StatusCode;
use reqwest::Response;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::runtime::upstream::{
    Failure,
    exchange::{ANSWER_MAX, Exchange},
    site::is_stream,
    sse::{Event, Parser},
};

/// How long a server may take to name its endpoint, which it does first of all.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(5);

/// The stream of one connection, once it is open; read until this is dropped.
#[derive(Default)]
pub struct Older(OnceLock<AbortOnDropHandle<()>>);

impl Older {
    /// Opens the stream, if the server's last refusal is like that of a server of this transport. Returns whether the
    /// server has named its endpoint.
    pub async fn open(&self, exchange: &Arc<Exchange>) -> bool {
        if self.0.get().is_some() || !exchange.site.refusal().is_some_and(is_of_transport) {
            return false;
        }
        let opened = timeout(ENDPOINT_TIMEOUT, find(exchange)).await;
        let Ok(Some((response, parser))) = opened else { return false };
        let reading = read(Arc::clone(exchange), response, parser);
        self.0.set(AbortOnDropHandle::new(tokio::spawn(reading))).is_ok()
    }
}

/// Returns whether this refusal may be of a POST as such, and not of who asks or how often.
fn is_of_transport(status: StatusCode) -> bool {
    let others = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    (status.is_client_error() && !others.contains(&status)) || status == StatusCode::NOT_IMPLEMENTED
}

/// Opens the stream and reads it up to the event that names the endpoint.
async fn find(exchange: &Exchange) -> Option<(Response, Parser)> {
    let mut response = exchange.site.get(None).await.ok()?;
    if !(response.status().is_success() && is_stream(&response)) {
        return None;
    }
    let mut parser = Parser::new(ANSWER_MAX);
    loop {
        let bytes = response.chunk().await.ok()??;
        let mut events = parser.push(&bytes).ok()?;
        let Some(at) = events.iter().position(Event::is_endpoint) else { continue };
        let rest = events.split_off(at + 1);
        let endpoint = str::from_utf8(&events[at].data).ok()?;
        if !exchange.site.redirect(response.url(), endpoint.trim()) {
            tracing::warn!("an upstream names an endpoint of another origin, or none; it is not used");
            return None;
        }
        exchange.take(rest, None, &mut 0).ok()?;
        return Some((response, parser));
    }
}

async fn read(exchange: Arc<Exchange>, response: Response, mut parser: Parser) {
    let failure = exchange.pump(response, &mut parser, None).await.err().unwrap_or(Failure::Died);
    exchange.inbox.drain(|| failure.clone());
    exchange.inbox.lose("the stream ended");
}
