//! The log as server-sent events: the events from a seq on, then new ones as they are committed.
//!
//! Invariants:
//! - an event's SSE id is its seq, so that a reader with `Last-Event-ID` goes on after the last one it saw;
//! - a slow reader holds nobody up: its stream ends with an `error` event.

use std::{convert::Infallible, ops::ControlFlow, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    content::{Refused, asked, bad},
    reading::Answer,
};
use crate::{
    problem::problem,
    query::{list::Filter, shown::Payloads},
    questions::{Audit, Unanswered},
    words::number,
};

/// The number of events that are read at once.
const BATCH: u64 = 256;
/// The largest number of batches that wait for a reader.
const BACKLOG: usize = 4;
/// How long a reader may leave a full backlog before its stream ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// The silence after which a comment line shows that the connection is alive.
const QUIET: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
}

/// Why a stream ends.
enum Ended {
    Slow,
    Unanswered(Unanswered),
    /// The reader went away, or the ledger has stopped.
    Over,
}

pub(super) async fn events(
    State(audit): State<Audit>,
    headers: HeaderMap,
    query: Result<Query<From>, QueryRejection>,
) -> Answer {
    let asked = asked(query)?.from_seq;
    let last = headers.get(LAST_EVENT_ID).map(|id| {
        let id = id.to_str().ok().and_then(|id| number::parse(id).ok());
        id.ok_or_else(|| bad("last-event-id must be the seq of an event"))
    });
    // `Last-Event-ID` wins over the URL, since browsers reconnect with the URL of the first request.
    let next = match last.transpose()? {
        Some(last) => last.saturating_add(1),
        None => asked.unwrap_or(audit.head().await.size),
    };
    let Ok(place) = Arc::clone(&audit.streams).try_acquire_owned() else {
        let detail = "as many readers as allowed are connected";
        return Err(Refused::new(problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)));
    };
    let (to, from) = mpsc::channel(BACKLOG);
    let feed = tokio::spawn(async move {
        let _place = place;
        feed(audit, next, to).await
    });
    Ok(answer(from, feed))
}

/// Returns a response with the backlog as its body, and an `error` event at the end that says why it ended early.
fn answer(from: mpsc::Receiver<Bytes>, feed: tokio::task::JoinHandle<Ended>) -> Response {
    let frames = stream::unfold(Some((from, feed)), async |state| {
        let (mut from, feed) = state?;
        match from.recv().await {
            Some(frame) => Some((Ok::<_, Infallible>(frame), Some((from, feed)))),
            None => {
                let (code, message) = match feed.await {
                    Ok(Ended::Over) => return None,
                    Ok(Ended::Slow) => {
                        ("slow_reader", "fell behind; come back with last-event-id".to_owned())
                    }
                    Ok(Ended::Unanswered(err)) => {
                        tracing::error!(%err, "an event stream broke off");
                        ("internal", "the stream broke off; come back with last-event-id".to_owned())
                    }
                    Err(_) => ("internal", "the stream broke off".to_owned()),
                };
                let data = serde_json::json!({"code": code, "message": message});
                let frame = format!("event: error\ndata: {data}\n\n");
                Some((Ok(frame.into()), None))
            }
        }
    });
    let buffering = HeaderName::from_static("x-accel-buffering");
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (buffering, "no")];
    (headers, Body::from_stream(frames)).into_response()
}

/// Reads and sends batches until the reader is gone or too slow.
async fn feed(audit: Audit, mut next: u64, to: mpsc::Sender<Bytes>) -> Ended {
    let mut committed = audit.ledger().committed();
    loop {
        committed.mark_unchanged();
        let batch = audit.ask(move |view, _| {
            let filter = Filter { from_seq: Some(next), ..Filter::default() };
            let page = view.list(&filter, BATCH, None)?;
            let mut text = String::new();
            for (event, shown) in page.events.iter().zip(view.shown(&page.events, &Payloads::named())?) {
                let seq = event.fields().seq;
                text += &format!("id: {seq}\ndata: {}\n\n", shown.text());
            }
            Ok((text, page.events.len() as u64))
        });
        let (text, count) = match batch.await {
            Ok(batch) => batch,
            Err(err) => return Ended::Unanswered(err),
        };
        if count > 0 {
            next += count;
            if let ControlFlow::Break(ended) = send(&to, text.into()).await {
                return ended;
            }
            continue;
        }
        tokio::select! {
            changed = committed.changed() => if changed.is_err() { return Ended::Over },
            () = tokio::time::sleep(QUIET) => {
                if let ControlFlow::Break(ended) = send(&to, Bytes::from_static(b": here\n\n")).await {
                    return ended;
                }
            }
            () = to.closed() => return Ended::Over,
        }
    }
}

async fn send(to: &mpsc::Sender<Bytes>, frame: Bytes) -> ControlFlow<Ended> {
    use mpsc::error::SendTimeoutError;
    match to.send_timeout(frame, PATIENCE).await {
        Ok(()) => ControlFlow::Continue(()),
        Err(SendTimeoutError::Timeout(_)) => ControlFlow::Break(Ended::Slow),
        Err(SendTimeoutError::Closed(_)) => ControlFlow::Break(Ended::Over),
    }
}
