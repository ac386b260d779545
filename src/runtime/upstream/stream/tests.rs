//! Streams to peers that keep the protocol, and to those that do not.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::timeout,
};

use super::UNTOLD_MAX;
use crate::{
    frames::{FRAME_MAX, Frames},
    router::{BoxFuture, audience::Audience},
    runtime::upstream::{
        Duplex, Failure, OpenStream, Options, Reply, Settings, Sharing, State, Transport, Upstream,
    },
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens one half of a pair, and hands the other to the test.
struct Pairs(mpsc::Sender<DuplexStream>);

impl OpenStream for Pairs {
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>> {
        Box::pin(async {
            let (near, far) = duplex(1 << 16);
            self.0.send(far).await.map_err(|_| "the peer is gone".to_owned())?;
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

/// The other side, by hand.
struct Peer {
    frames: Frames<tokio::io::ReadHalf<DuplexStream>>,
    writer: tokio::io::WriteHalf<DuplexStream>,
}

impl Peer {
    fn new(stream: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { frames: Frames::new(reader, FRAME_MAX), writer }
    }

    /// The next request's method and id.
    async fn asked(&mut self) -> (String, Value) {
        let frame = self.frames.next().await.expect("frames").expect("a request");
        let asked: Value = serde_json::from_slice(&frame).expect("json");
        (asked["method"].as_str().unwrap_or_default().to_owned(), asked["id"].clone())
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("it is read");
    }

    async fn say(&mut self, text: &str) {
        self.write(&(text.len() as u32).to_be_bytes()).await;
        self.write(text.as_bytes()).await;
    }

    async fn answer(&mut self, id: Value, result: Value) {
        self.say(&json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()).await;
    }

    /// Answers as a stateless server with `limits`.
    async fn greet(&mut self, limits: Value) {
        let (method, id) = self.asked().await;
        assert_eq!(method, "server/discover");
        let versions = json!(["2026-07-28"]);
        self.answer(id, json!({"supportedVersions": versions, "capabilities": {}, "limits": limits})).await;
    }
}

/// An upstream over streams, and where its peer finds the other ends.
fn start() -> (Upstream, mpsc::Receiver<DuplexStream>) {
    let (to, streams) = mpsc::channel(1);
    let settings = Settings {
        capabilities: Audience::default().capabilities,
        sharing: Sharing::ByCapabilities,
        sessions_first: false,
        updates: Default::default(),
        name: "peer".to_owned(),
        transport: Transport::Stream { open: Arc::new(Pairs(to)) },
        timeout: PATIENCE,
    };
    (Upstream::start(settings), streams)
}

async fn ready(limits: Value) -> (Upstream, Peer, mpsc::Receiver<DuplexStream>) {
    let (upstream, mut streams) = start();
    let mut peer = Peer::new(streams.recv().await.expect("a stream is opened"));
    peer.greet(limits).await;
    let mut offer = upstream.offer();
    let ready = offer.wait_for(|offered| offered.state == State::Ready);
    timeout(PATIENCE, ready).await.expect("in time").expect("alive");
    (upstream, peer, streams)
}

fn params(text: usize) -> Box<RawValue> {
    let params = json!({"name": "t", "arguments": {"text": "x".repeat(text)}});
    serde_json::value::to_raw_value(&params).expect("json")
}

/// Calls, while `peer` does something other than to answer.
async fn check(does: impl AsyncFnOnce(&mut Peer, Value), wanted: Failure) {
    let (upstream, mut peer, _streams) = ready(json!({})).await;
    let odd = async {
        let (method, id) = peer.asked().await;
        assert_eq!(method, "tools/call");
        does(&mut peer, id).await;
        peer
    };
    let options = Options { timeout: Some(Duration::from_secs(1)), ..Options::default() };
    let (answer, peer) = tokio::join!(upstream.request("tools/call", params(1), options), odd);
    assert_eq!(answer.expect_err("there is no answer"), wanted);
    drop(peer);
    upstream.stop().await;
}

#[tokio::test]
async fn several_requests_are_answered_in_any_order() {
    let (upstream, mut peer, _streams) = ready(json!({})).await;
    let ask = || upstream.request("tools/call", params(1), Options::default());
    let answering = async {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(peer.asked().await.1);
        }
        while let Some(id) = ids.pop() {
            peer.answer(id.clone(), json!({"id": id})).await;
        }
        // So that the stream outlives the answers.
        peer
    };
    let (one, two, three, _peer) = tokio::join!(ask(), ask(), ask(), answering);
    for answer in [one, two, three] {
        assert!(matches!(answer, Ok(Reply::Result(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn whatever_a_peer_does_a_call_has_one_outcome() {
    let broken = |how: &str| Failure::Broken(how.to_owned());
    let no_message = || broken("a frame is no json-rpc message");
    check(async |peer, _| peer.writer.shutdown().await.expect("it closes"), Failure::Died).await;
    check(async |peer, _| peer.write(&[0, 0, 0, 9, b'{']).await, Failure::TimedOut).await;
    check(async |peer, _| peer.write(&[0; 4]).await, broken("a frame is empty")).await;
    let long = "a frame of 16777217 bytes is over the bound of 16777216";
    check(async |peer, _| peer.write(&[1, 0, 0, 1]).await, broken(long)).await;
    check(async |peer, _| peer.say("garbage").await, no_message()).await;
    check(async |peer, _| peer.say("{\"id\":1,\"result\":{}}{}").await, no_message()).await;
    check(async |peer, _| peer.write(&[0, 0, 0, 2, 0xff, 0xfe]).await, no_message()).await;
    check(async |peer, _| peer.answer(json!("other"), json!({})).await, Failure::TimedOut).await;
    check(async |_, _| {}, Failure::TimedOut).await;
}

#[tokio::test]
async fn one_byte_at_a_time_is_an_answer_too() {
    let (upstream, mut peer, _streams) = ready(json!({})).await;
    let slow = async {
        let id = peer.asked().await.1;
        let text = json!({"jsonrpc": "2.0", "id": id, "result": {}}).to_string();
        let framed = [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        for byte in framed {
            peer.write(&[byte]).await;
            tokio::task::yield_now().await;
        }
        peer
    };
    let (answer, _peer) = tokio::join!(upstream.request("tools/call", params(1), Options::default()), slow);
    assert!(matches!(answer, Ok(Reply::Result(_))), "{answer:?}");
}

#[tokio::test]
async fn no_more_is_sent_at_once_than_the_peer_takes() {
    let (upstream, _peer, _streams) = ready(json!({})).await;
    match upstream.request("tools/call", params(UNTOLD_MAX), Options::default()).await {
        Err(failure @ Failure::Oversize { max: UNTOLD_MAX, .. }) => {
            assert!(failure.to_string().contains("takes no more than 1048576 bytes"), "{failure}");
        }
        other => panic!("it was sent: {other:?}"),
    }
    let (upstream, mut peer, _streams) = ready(json!({"max_frame_bytes": 2 * UNTOLD_MAX})).await;
    let request = upstream.request("tools/call", params(UNTOLD_MAX), Options::default());
    let taking = async {
        let id = peer.asked().await.1;
        peer.answer(id, json!({})).await;
        peer
    };
    let (answer, _peer) = tokio::join!(request, taking);
    assert!(answer.is_ok());
}

#[tokio::test]
async fn a_peer_that_closes_at_the_first_question_is_greeted_by_a_session() {
    let (upstream, mut streams) = start();
    let mut modern = Peer::new(streams.recv().await.expect("a stream is opened"));
    assert_eq!(modern.asked().await.0, "server/discover");
    drop(modern);
    let mut peer = Peer::new(streams.recv().await.expect("another stream is opened"));
    let (method, id) = peer.asked().await;
    assert_eq!(method, "initialize");
    let info = json!({"name": "old", "version": "1"});
    let limits = json!({"io.cairn/limits": {"max_frame_bytes": FRAME_MAX}});
    peer.answer(
        id,
        json!({"protocolVersion": "2024-11-05", "capabilities": {}, "serverInfo": info, "_meta": limits}),
    )
    .await;
    assert_eq!(peer.asked().await.0, "notifications/initialized");
    let mut offer = upstream.offer();
    let ready = offer.wait_for(|offered| offered.state == State::Ready);
    timeout(PATIENCE, ready).await.expect("in time").expect("alive");
}

#[tokio::test]
async fn a_request_that_is_given_up_is_cancelled_there() {
    let (upstream, mut peer, _streams) = ready(json!({})).await;
    let options = Options { timeout: Some(Duration::from_millis(50)), ..Options::default() };
    let answer = upstream.request("tools/call", params(1), options).await;
    assert_eq!(answer.expect_err("nobody answers"), Failure::TimedOut);
    assert_eq!(peer.asked().await.0, "tools/call");
    assert_eq!(peer.asked().await.0, "notifications/cancelled");
}

#[tokio::test]
async fn a_peers_question_is_answered_in_its_own_shape() {
    let (_upstream, mut peer, _streams) = ready(json!({})).await;
    for (question, answer) in [
        (r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#, r#"{"jsonrpc":"2.0","id":"p","result":{}}"#),
        (r#"{"type":"request","id":"p","method":"ping"}"#, r#"{"type":"response","id":"p","result":{}}"#),
        (
            r#"{"type":"request","id":1,"method":"made/up"}"#,
            r#"{"type":"error","id":1,"error":"no client that is served here can be asked this"}"#,
        ),
        (r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#),
    ] {
        peer.say(question).await;
        let told = peer.frames.next().await.expect("frames").expect("an answer");
        assert_eq!(told, answer.as_bytes(), "{question}");
    }
}
