//! Tests of callers whose tokens are revoked, expire or cannot be checked while they are answered.
//!
//! Invariant: what must end is given two seconds, and what must not is read for a second more.

use std::{convert::Infallible, fs, time::Duration};

use axum::{
    body::Body,
    extract::RawQuery,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;

use super::*;
use crate::clock::now_s;

/// Between the change of a token and the end of its streams.
const END_MAX: Duration = Duration::from_secs(2);

/// A stream that never ends by itself, of the media type that the query names.
pub(super) async fn endless(RawQuery(media): RawQuery) -> Response {
    let frames = stream::unfold(0_u64, async |n| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Some((Ok::<_, Infallible>(Bytes::from(format!("data: {n}\n\n"))), n + 1))
    });
    ([(CONTENT_TYPE, media.unwrap_or_default())], Body::from_stream(frames)).into_response()
}

/// Opens a stream and reads its first frame.
async fn open(house: &House, media: &str, token: &str) -> TcpStream {
    let mut stream = house.connect().await;
    let request = house.request(&format!("GET /v1/endless?{media}"), &[("Authorization", token)], b"");
    stream.write_all(&request).await.expect("the server reads");
    let mut seen = Vec::new();
    while !seen.windows(7).any(|part| part == b"data: 0") {
        assert!(stream.read_buf(&mut seen).await.expect("the stream goes on") > 0);
    }
    assert!(seen.starts_with(b"HTTP/1.1 200"));
    stream
}

/// Reads a stream to its end, in time. Returns whether it ended in order.
async fn ends(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(END_MAX, stream.read_to_end(&mut rest)).await;
    let read = read.expect("the stream ends in time");
    read.is_ok() && rest.ends_with(b"0\r\n\r\n")
}

fn revoke(keys: &Keys, name: &str) {
    let listed = tokens::list(keys.directory.path()).expect("the file is readable");
    let entry = listed.iter().find(|entry| entry.name == name).expect("the token is there");
    tokens::revoke(keys.directory.path(), &entry.id).expect("the token is revoked");
}

#[tokio::test]
async fn streams_end_when_their_token_is_revoked_and_others_go_on() {
    let keys = keys();
    let (_, other) =
        tokens::add(keys.directory.path(), "cid", &[Scope::Audit], None).expect("a token is made");
    let access = Tokens::open(keys.directory.path()).map(Access::Static).expect("the file is readable");
    let house = House::open(access, Server::default()).await;
    let events = open(&house, "text/event-stream", &keys.bob).await;
    let file = open(&house, "application/x-ndjson", &keys.bob).await;
    let mut kept = open(&house, "text/event-stream", &format!("Bearer {other}")).await;
    revoke(&keys, "bob");
    let (events, file) = tokio::join!(ends(events), ends(file));
    assert!(events, "an event stream ends in order");
    assert!(!file, "a file that is not whole breaks off");
    for _ in 0..20 {
        assert!(kept.read(&mut [0; 256]).await.expect("the stream goes on") > 0);
    }
    assert_eq!(house.ask("GET /v1/who", &[("Authorization", &keys.bob)], b"").await.status, 401);
}

#[tokio::test]
async fn streams_end_when_their_token_expires_or_cannot_be_checked() {
    let keys = keys();
    let soon = now_s() + 4;
    let (_, short) =
        tokens::add(keys.directory.path(), "cid", &[Scope::Audit], Some(soon)).expect("a token is made");
    let access = Tokens::open(keys.directory.path()).map(Access::Static).expect("the file is readable");
    let house = House::open(access, Server::default()).await;
    let expiring = open(&house, "text/event-stream", &format!("Bearer {short}")).await;
    let bob = open(&house, "text/event-stream", &keys.bob).await;
    while now_s() < soon {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ends(expiring).await);
    fs::write(keys.directory.path().join("tokens.json"), "[").expect("the file can be written");
    assert!(ends(bob).await);
    let refused = house.ask("GET /v1/who", &[("Authorization", &keys.bob)], b"").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(house.ask("GET /healthz", &[], b"").await.status, 200);
    let ready = house.ask("GET /readyz", &[], b"").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("the tokens cannot be read"), "{}", ready.body);
}

#[tokio::test]
async fn a_call_whose_token_is_revoked_is_cancelled() {
    let keys = keys();
    let access = Tokens::open(keys.directory.path()).map(Access::Static).expect("the file is readable");
    let (waits, mut told) = mpsc::unbounded_channel();
    let parrot = Parrot { waits: Some(waits), ..Parrot::default() };
    let house = House::with(access, Server::default(), parrot.into(), Vec::new()).await;
    let headers = [("Authorization", keys.ann.as_str())];
    let asked = house.ask("POST /mcp", &headers, b"{}");
    let revoked = async {
        assert_eq!(told.recv().await, Some("waiting"));
        revoke(&keys, "ann");
        assert_eq!(told.recv().await, Some("gone"));
    };
    let (answer, ()) = tokio::join!(asked, revoked);
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn streams_end_whose_caller_another_configuration_does_not_let_in() {
    let keys = keys();
    let access = Tokens::open(keys.directory.path()).map(Access::Static).expect("the file is readable");
    let house = House::open(access, Server::default()).await;
    let mut bob = open(&house, "text/event-stream", &keys.bob).await;
    let app = |access| App {
        server: Server::default(),
        access: Arc::new(access),
        mcp: Arc::new(Parrot::default()),
        audit: Router::new(),
        ready: Box::new(|| vec!["another".to_owned()]),
        metrics: house.metrics.clone(),
    };
    let opener = house.opener.as_ref().expect("the door can be opened");
    opener.open(app(keys.access));
    for _ in 0..20 {
        assert!(bob.read(&mut [0; 256]).await.expect("the stream goes on") > 0);
    }
    let ready = house.ask("GET /readyz", &[], b"").await;
    assert_eq!(ready.json()["reasons"], json!(["another"]));
    let elsewhere = tempfile::tempdir().expect("a temporary directory can be made");
    let nobody = Tokens::open(elsewhere.path()).map(Access::Static).expect("no file is no tokens");
    opener.open(app(nobody));
    assert!(ends(bob).await);
}
