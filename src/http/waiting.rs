//! Waiting: an answer that takes long, kept alive for whoever stands between us and the client.
//!
//! A proxy gives up on an answer that says nothing for a minute, and an answer may take hours. So it begins as a stream
//! of events after a few seconds, and a comment is sent now and then.
//!
//! Invariants:
//! - an answer that comes within `Pace::patience` leaves as it was given;
//! - a stream says something at least once in each `Pace::every`, and a comment stands between events alone;
//! - dropping the response drops the future of its answer.

use std::{convert::Infallible, future::Future, pin::Pin, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use tokio::time::sleep;

/// Asks proxies to pass on each event as it comes.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// The first revision in which a request stands alone.
const FIRST_STATELESS: &str = "2026-07-28";
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// How long an answer may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long it may take to begin.
    pub patience: Duration,
    /// How long a stream may be silent.
    pub every: Duration,
}

/// Proxies wait for 60 seconds by default, and some for 30.
pub const PACE: Pace = Pace { patience: Duration::from_secs(5), every: Duration::from_secs(20) };

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Returns whether the answer to a request may begin before it is known: its client reads streams of events, and no
/// header of the answer says anything to it.
pub fn may_begin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let reads =
        text("accept").is_some_and(|accept| accept.contains("text/event-stream") || accept.contains("*/*"));
    let alone = text("mcp-protocol-version").is_some_and(|version| version >= FIRST_STATELESS);
    reads && (alone || headers.contains_key("mcp-session-id"))
}

/// Returns the answer once it is there; or, if it `may_begin` and takes longer, a stream of events that ends with it.
pub async fn answered(may_begin: bool, pace: Pace, answering: Answering) -> Response {
    let mut answering = answering;
    tokio::select! {
        biased;
        response = &mut answering => match is_stream(&response) {
            true => {
                let (head, body) = response.into_parts();
                let body = Body::from_stream(alive(State::begun(body), pace));
                streaming(Response::from_parts(head, body))
            }
            false => response,
        },
        () = sleep(pace.patience), if may_begin => {
            let state = State { part: Part::Comment(answering), between: true };
            let mut response = Response::new(Body::from_stream(alive(state, pace)));
            response.headers_mut().insert(CONTENT_TYPE, EVENTS);
            streaming(response)
        }
    }
}

/// Gives a stream of events the headers by which it passes proxies.
pub fn streaming(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    response
}

/// Returns whether a response is a stream of events.
pub fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(EVENTS.as_bytes()))
}

/// What is left of a stream.
enum Part {
    /// A comment, so that the head leaves at once, and then the answer.
    Comment(Answering),
    Answer(Answering),
    Events(Body),
    Over,
}

struct State {
    part: Part,
    /// Whether all that was sent ends with an event.
    between: bool,
}

impl State {
    fn begun(body: Body) -> Self {
        Self { part: Part::Events(body), between: true }
    }
}

fn alive(state: State, pace: Pace) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(state, move |state| async move {
        let (bytes, state) = next(state, pace).await?;
        Some((Ok(bytes), state))
    })
}

/// Returns what is sent next, and the state after it; `None` at the end.
async fn next(state: State, pace: Pace) -> Option<(Bytes, State)> {
    let State { mut part, between } = state;
    loop {
        part = match part {
            Part::Comment(answering) => {
                return Some((COMMENT, State { part: Part::Answer(answering), between }));
            }
            Part::Answer(mut answering) => tokio::select! {
                biased;
                response = &mut answering => match is_stream(&response) {
                    true => Part::Events(response.into_body()),
                    false => {
                        let event = event(response).await?;
                        return Some((event, State { part: Part::Over, between: true }));
                    }
                },
                () = sleep(pace.every) => {
                    return Some((COMMENT, State { part: Part::Answer(answering), between }));
                }
            },
            Part::Events(mut body) => tokio::select! {
                biased;
                frame = body.frame() => match frame {
                    // A body that breaks off ends the stream: its head has left.
                    None | Some(Err(_)) => return None,
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(bytes) => {
                            let between = bytes.ends_with(b"\n\n") || (between && bytes.is_empty());
                            return Some((bytes, State { part: Part::Events(body), between }));
                        }
                        Err(_) => Part::Events(body),
                    },
                },
                () = sleep(pace.every), if between => {
                    return Some((COMMENT, State { part: Part::Events(body), between }));
                }
            },
            Part::Over => return None,
        };
    }
}

/// Returns an answer as one event; `None` if it has no content.
async fn event(response: Response) -> Option<Bytes> {
    let body = response.into_body().collect().await.ok()?.to_bytes();
    if body.is_empty() {
        return None;
    }
    // Strict JSON has line ends only between tokens.
    let line = body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte });
    Some(b"data: ".iter().copied().chain(line).chain(*b"\n\n").collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{body::Body, response::Response};
    use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
    use http_body_util::BodyExt;
    use tokio::sync::oneshot;

    use super::{Pace, answered, may_begin};

    const PACE: Pace = Pace { patience: Duration::from_millis(20), every: Duration::from_millis(20) };

    async fn said(response: Response) -> String {
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(bytes.into()).expect("text")
    }

    #[tokio::test]
    async fn an_answer_that_takes_long_begins_as_a_stream() {
        let (answer, answering) = oneshot::channel::<Response>();
        let waits = Box::pin(async move { answering.await.expect("an answer") });
        let response = answered(true, PACE, waits).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body();
        for _ in 0..3 {
            let frame = body.frame().await.expect("it goes on").expect("data").into_data().expect("data");
            assert_eq!(&frame[..], b":\n\n");
        }
        answer.send(Response::new(Body::from("{\"id\":\n1}"))).expect("it is waited for");
        let rest = body.collect().await.expect("a body").to_bytes();
        assert!(rest.ends_with(b"data: {\"id\": 1}\n\n"), "{rest:?}");
    }

    #[tokio::test]
    async fn an_answer_that_comes_soon_or_must_not_begin_leaves_as_it_is() {
        let soon = answered(true, PACE, Box::pin(async { Response::new(Body::from("{}")) })).await;
        assert!(soon.headers().get(CONTENT_TYPE).is_none());
        assert_eq!(said(soon).await, "{}");
        let slow = Box::pin(async {
            tokio::time::sleep(5 * PACE.patience).await;
            Response::new(Body::from("{}"))
        });
        assert_eq!(said(answered(false, PACE, slow).await).await, "{}");
    }

    #[tokio::test]
    async fn comments_stand_between_events() {
        let (mut to, body) = tokio::io::duplex(64);
        let frames = futures_util::stream::unfold(body, |mut body| async move {
            let mut bytes = [0; 64];
            let len =
                tokio::io::AsyncReadExt::read(&mut body, &mut bytes).await.ok().filter(|len| *len > 0)?;
            Some((Ok::<_, std::convert::Infallible>(bytes[..len].to_vec()), body))
        });
        let mut response = Response::new(Body::from_stream(frames));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        let response = answered(true, PACE, Box::pin(async { response })).await;
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body();
        let mut next = async || {
            let frame = body.frame().await.expect("it goes on").expect("data").into_data().expect("data");
            String::from_utf8(frame.into()).expect("text")
        };
        assert_eq!(next().await, ":\n\n");
        tokio::io::AsyncWriteExt::write_all(&mut to, b"data: half").await.expect("it is read");
        while next().await == ":\n\n" {}
        let waited = tokio::time::timeout(5 * PACE.every, next()).await;
        assert!(waited.is_err(), "no comment cuts an event: {waited:?}");
        tokio::io::AsyncWriteExt::write_all(&mut to, b" of it\n\n").await.expect("it is read");
        assert_eq!(next().await, " of it\n\n");
        assert_eq!(next().await, ":\n\n");
    }

    #[test]
    fn only_an_answer_without_a_header_that_matters_begins_early() {
        let check = |headers: &[(&'static str, &'static str)], begins: bool| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)));
            assert_eq!(may_begin(&headers.collect::<HeaderMap>()), begins);
        };
        let both = ("accept", "application/json, text/event-stream");
        check(&[both, ("mcp-protocol-version", "2026-07-28")], true);
        check(&[both, ("mcp-session-id", "a")], true);
        check(&[("accept", "*/*"), ("mcp-session-id", "a")], true);
        // It may open a session, whose name is a header.
        check(&[both, ("mcp-protocol-version", "2025-11-25")], false);
        check(&[both], false);
        check(&[("accept", "application/json"), ("mcp-protocol-version", "2026-07-28")], false);
    }
}
