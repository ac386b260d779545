//! Claims about MCP over frames: both eras, what a peer is told and held to, and what ends its stream.
//!
//! The peer is written by hand, frame by frame, so that it can say what no library would.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::JoinHandle,
    time::timeout,
};

use super::{Node, node};
use crate::{
    caller::{Caller, Scope},
    event::Actor,
    frames::{FRAME_MAX, Frames},
    mcp::{
        Settings, Tokens,
        quota::{Bounds, Quotas},
        serve_frames,
    },
    metrics::Metrics,
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A peer's end of a stream that is served.
struct Client {
    frames: Frames<ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
    served: JoinHandle<std::io::Result<()>>,
}

fn peer(scopes: &[Scope]) -> Caller {
    let actor = Actor { id: "12D3KooWpeer".into(), role: "peer".into(), proof: None };
    Caller { actor, scopes: scopes.to_vec() }
}

fn connect(node: &Node, settings: &Settings, scopes: &[Scope]) -> Client {
    let (near, far) = duplex(1 << 16);
    let served = serve_frames(node.router.clone(), settings.clone(), peer(scopes), far);
    let (reader, writer) = split(near);
    Client { frames: Frames::new(reader, FRAME_MAX), writer, served: tokio::spawn(served) }
}

fn settings() -> Settings {
    Settings { contracts: true, ..Settings::default() }
}

fn with(bounds: Bounds) -> Settings {
    Settings { quotas: Quotas::new(bounds), ..settings() }
}

/// A request of revision 2026-07-28 with more in its metadata.
fn modern(id: Value, method: &str, mut params: Value, meta: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    for (key, value) in meta.as_object().into_iter().flatten() {
        params["_meta"][key] = value.clone();
    }
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn call(id: impl Into<Value>, tool: &str) -> Value {
    modern(id.into(), "tools/call", json!({"name": tool}), json!({}))
}

impl Client {
    async fn bytes(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("it is read");
    }

    async fn say(&mut self, text: &str) {
        self.bytes(&(text.len() as u32).to_be_bytes()).await;
        self.bytes(text.as_bytes()).await;
    }

    async fn next(&mut self) -> Option<Value> {
        let frame = timeout(PATIENCE, self.frames.next()).await.expect("in time").expect("whole frames");
        frame.map(|frame| serde_json::from_slice(&frame).expect("json"))
    }

    async fn ask(&mut self, message: Value) -> Value {
        self.say(&message.to_string()).await;
        self.next().await.expect("an answer")
    }

    /// Nothing more comes, and the server is done.
    async fn ended(mut self) {
        assert_eq!(self.next().await, None);
        let served = timeout(PATIENCE, self.served).await.expect("in time");
        // How it ended is for the log alone.
        let _ = served.expect("no panic");
    }
}

fn check_limits(result: &Value) {
    let limits = json!({"max_frame_bytes": FRAME_MAX, "in_flight": 256, "requests_per_second": 10_000});
    assert_eq!((&result["limits"], &result["_meta"]["io.cairn/limits"]), (&limits, &limits), "{result}");
}

#[tokio::test]
async fn both_eras_are_spoken_over_frames() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[Scope::Call]);
    let discovered = client.ask(modern(json!("d"), "server/discover", json!({}), json!({}))).await;
    check_limits(&discovered["result"]);
    assert_eq!(discovered["result"]["supportedVersions"][4], "2026-07-28");
    let answer = client.ask(call("c", "echo")).await;
    assert_eq!(answer["id"], "c");
    assert!(answer["result"]["_meta"]["io.cairn/event"].is_string(), "{answer}");

    let mut client = connect(&node, &settings(), &[Scope::Call]);
    let info = json!({"name": "t", "version": "1"});
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info});
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    let greeted = client.ask(hello).await;
    check_limits(&greeted["result"]);
    assert_eq!(greeted["result"]["protocolVersion"], "2025-11-25");
    client.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    let params = json!({"name": "echo"});
    let answer =
        client.ask(json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params})).await;
    assert!(answer["result"]["_meta"]["io.cairn/event"].is_string(), "{answer}");
}

#[tokio::test]
async fn every_tool_is_listed_with_its_contract() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[]);
    let listed = client.ask(modern(json!(1), "tools/list", json!({}), json!({}))).await;
    let tools = listed["result"]["tools"].as_array().expect("a list");
    assert_eq!(tools.len(), node.router.tools().len());
    for (tool, entry) in tools.iter().zip(node.router.tools()) {
        assert_eq!(tool["_meta"]["io.cairn/contract"], json!(entry.tool.contract.to_string()));
    }
    let cid = node.router.tools()[0].tool.contract;
    let mut client = connect(&node, &settings(), &[Scope::Call]);
    let answer = client.ask(call(1, &cid.to_string())).await;
    assert_eq!(answer["result"]["_meta"]["io.cairn/contract"], json!(cid.to_string()), "{answer}");
}

#[tokio::test]
async fn without_scopes_a_peer_lists_and_pings_and_no_more() {
    let node = node().await;
    let scopes = |token: &str| (token == "good").then(|| vec![Scope::Call]);
    let metrics = Arc::new(Metrics::new());
    let mut quotas = Quotas::default();
    quotas.metrics = Some(metrics.clone());
    let settings = Settings { tokens: Some(Tokens::new(scopes)), quotas, ..settings() };
    let mut client = connect(&node, &settings, &[]);
    let pong = client.ask(json!({"jsonrpc": "2.0", "id": "p", "method": "ping"})).await;
    assert_eq!(pong, json!({"jsonrpc": "2.0", "id": "p", "result": {}}));
    let listed = client.ask(modern(json!(1), "tools/list", json!({}), json!({}))).await;
    assert!(listed["result"]["tools"].is_array(), "{listed}");
    let denied = client.ask(call(2, "echo")).await;
    assert!(denied["error"]["message"].to_string().contains("mcp:call"), "{denied}");
    let with_token =
        |token, tool| modern(json!(3), "tools/call", json!({"name": tool}), json!({"io.cairn/token": token}));
    let invalid = client.ask(with_token("bad", "echo")).await;
    assert!(invalid["error"]["message"].to_string().contains("token"), "{invalid}");
    let granted = client.ask(with_token("good", "echo")).await;
    assert!(granted["result"]["_meta"]["io.cairn/event"].is_string(), "{granted}");
    let failed = client.ask(with_token("good", "request")).await;
    assert_eq!(failed["error"]["code"], -32600, "a server's own error is no refusal of ours: {failed}");
    let denied = client.ask(call(4, "echo")).await;
    assert!(denied["error"].is_object(), "a token is good for one request: {denied}");
    // A length that no frame has ends the stream, and all that was asked on it.
    client.bytes(&[255; 4]).await;
    client.ended().await;
    let text = metrics.encode();
    for (method, outcome, count) in [
        ("ping", "taken", 1),
        ("tools/list", "taken", 1),
        ("tools/call", "taken", 2),
        ("tools/call", "refused", 3),
    ] {
        let labels = format!(r#"direction="in",method="{method}",class="stranger",outcome="{outcome}""#);
        let line = format!("cairn_peer_requests_total{{{labels}}} {count}");
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_peer_sees_and_calls_the_tools_it_is_allowed() {
    let node = node().await;
    let settings = Settings { tools: vec!["e*".into(), "fail".into()], ..settings() };
    let mut client = connect(&node, &settings, &[Scope::Call]);
    let listed = client.ask(modern(json!(1), "tools/list", json!({}), json!({}))).await;
    let names: Vec<&str> = listed["result"]["tools"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    assert_eq!(names, ["echo", "fail", "error"]);
    assert!(client.ask(call(2, "echo")).await["result"].is_object());
    let contract = node.router.tool("data").expect("it is offered").tool.contract.to_string();
    for name in ["data", &contract] {
        let refused = client.ask(call(3, name)).await;
        assert!(refused["error"]["message"].to_string().contains("may not call"), "{name}: {refused}");
    }
    let pinned =
        modern(json!(4), "tools/call", json!({"name": "nothing"}), json!({"io.cairn/contract": contract}));
    let refused = client.ask(pinned).await;
    assert!(refused["error"]["message"].to_string().contains("may not call"), "{refused}");
}

#[tokio::test]
async fn what_a_request_comes_from_is_for_peers_to_say() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[Scope::Call]);
    let cid = node.router.tools()[0].tool.contract.to_string();
    let ask =
        |refs: Value| modern(json!(1), "tools/call", json!({"name": "echo"}), json!({"io.cairn/refs": refs}));
    assert!(client.ask(ask(json!([cid]))).await["result"].is_object());
    for refs in [json!(vec![cid.as_str(); 9]), json!(["no CID"]), json!("text")] {
        assert_eq!(client.ask(ask(refs.clone())).await["error"]["code"], -32602, "{refs}");
    }
}

#[tokio::test]
async fn a_violation_closes_the_stream() {
    let node = node().await;
    for bytes in [&[0, 0, 0, 0][..], &[1, 0, 0, 1], &[255; 8]] {
        let mut client = connect(&node, &settings(), &[Scope::Call]);
        client.bytes(bytes).await;
        client.ended().await;
    }
    for (text, code) in [("garbage", -32700), ("[]", -32600), ("{}{}", -32700), (r#"{"a":1,"a":2}"#, -32600)]
    {
        let mut client = connect(&node, &settings(), &[Scope::Call]);
        client.say(text).await;
        let told = client.next().await.expect("it is told why");
        assert_eq!(told["error"]["code"], code, "{text}: {told}");
        client.ended().await;
    }
}

#[tokio::test]
async fn whoever_asks_too_much_is_told_when_to_ask_again() {
    let mut node = node().await;
    let settings = with(Bounds { in_flight: 1, ..Bounds::default() });
    let mut client = connect(&node, &settings, &[Scope::Call]);
    // One place for all streams of a caller: the second stream finds it taken.
    client.say(&call("w", "wait").to_string()).await;
    let pong = client.ask(json!({"jsonrpc": "2.0", "id": "p", "method": "ping"})).await;
    assert_eq!(pong["id"], "p");
    let mut other = connect(&node, &settings, &[Scope::Call]);
    let refused = other.ask(call(2, "echo")).await;
    assert_eq!(refused["error"]["code"], -32010, "{refused}");
    assert_eq!(refused["error"]["message"], "rate_limited");
    assert_eq!(refused["error"]["data"]["limit"], "in_flight");
    assert!(refused["error"]["data"]["retry_after_ms"].as_u64() > Some(0));
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}});
    client.say(&cancel.to_string()).await;
    node.cancelled.recv().await.expect("the tool is told");
    // The place comes back once the library has let go of the request.
    let again = async {
        loop {
            let answer = other.ask(call(3, "echo")).await;
            if answer["result"].is_object() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("the place comes back");

    let metrics = Arc::new(Metrics::new());
    let mut quotas = Quotas::new(Bounds { requests_per_second: 1, ..Bounds::default() });
    quotas.metrics = Some(metrics.clone());
    let settings = Settings { quotas, ..self::settings() };
    let mut client = connect(&node, &settings, &[Scope::Call]);
    let ping = json!({"jsonrpc": "2.0", "id": "p", "method": "ping"});
    let listed = client.ask(modern(json!(1), "tools/list", json!({}), json!({}))).await;
    assert!(listed["result"].is_object(), "{listed}");
    let refused = client.ask(ping.clone()).await;
    let wait = refused["error"]["data"]["retry_after_ms"].as_u64().expect("a time");
    assert!(refused["error"]["code"] == -32010 && (1..=1_000).contains(&wait), "{refused}");
    // A notification passes whatever the rate is, and is no request.
    client.say(&cancel.to_string()).await;
    client.ask(ping).await;
    let text = metrics.encode();
    let limited =
        |method: &str| text.contains(&format!(r#"method="{method}",class="stranger",outcome="limited""#));
    assert!(limited("ping") && !limited("other"), "{text}");
}

#[tokio::test]
async fn an_idle_stream_is_closed_and_a_slow_request_is_answered() {
    let mut node = node().await;
    let brief = Duration::from_millis(50);
    let settings = with(Bounds { idle: brief, request_timeout: 4 * brief, ..Bounds::default() });
    connect(&node, &settings, &[Scope::Call]).ended().await;
    let mut client = connect(&node, &settings, &[Scope::Call]);
    let late = client.ask(call(1, "wait")).await;
    assert_eq!(late["error"]["code"], -32001, "{late}");
    node.cancelled.recv().await.expect("the tool is told");
    client.ended().await;
}

#[tokio::test]
async fn a_peer_that_leaves_cancels_what_it_asked() {
    let mut node = node().await;
    let mut client = connect(&node, &settings(), &[Scope::Call]);
    client.say(&call("w", "wait").to_string()).await;
    client.ask(json!({"jsonrpc": "2.0", "id": "p", "method": "ping"})).await;
    drop((client.frames, client.writer));
    node.cancelled.recv().await.expect("the tool is told");
}

#[tokio::test]
async fn answers_may_overtake_each_other() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[Scope::Call]);
    client.say(&call("slow", "wait").to_string()).await;
    for n in 0..20 {
        assert_eq!(client.ask(call(n, "echo")).await["id"], n);
    }
}

#[tokio::test]
async fn whoever_wraps_is_answered_so_and_is_nobody_else_for_it() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[]);
    let wrapped = |id: &str, method: &str, params: &Value| {
        json!({"type": "request", "id": id, "method": method, "params": params, "result": null, "error": null,
               "sender": "12D3KooWsomebodyElse", "timestamp": 1.5})
    };
    let params = modern(json!(0), "tools/list", json!({}), json!({}))["params"].take();
    let listed = client.ask(wrapped("l", "tools/list", &params)).await;
    assert_eq!((&listed["type"], &listed["id"]), (&json!("response"), &json!("l")), "{listed}");
    assert!(listed["result"]["tools"].is_array() && listed.get("jsonrpc").is_none(), "{listed}");
    let params = call(0, "echo")["params"].take();
    let refused = client.ask(wrapped("c", "tools/call", &params)).await;
    assert!(refused["error"].as_str().is_some_and(|text| text.contains("mcp:call")), "{refused}");
    let plain = client.ask(modern(json!("p"), "tools/list", json!({}), json!({}))).await;
    assert_eq!(plain["type"], "response", "the first message has said how it is answered: {plain}");
    let unknown = client.ask(json!({"type": "request", "id": "u", "method": "nope"})).await;
    assert_eq!((&unknown["type"], &unknown["id"]), (&json!("error"), &json!("u")), "{unknown}");
}

#[tokio::test]
async fn a_ping_is_answered_at_once() {
    let node = node().await;
    let mut client = connect(&node, &settings(), &[]);
    let mut took = Vec::new();
    for _ in 0..1_001 {
        let begun = Instant::now();
        client.ask(json!({"jsonrpc": "2.0", "id": "p", "method": "ping"})).await;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    println!("ping over a stream, p50: {:?}", took[500]);
    assert!(took[500] < Duration::from_millis(5), "{:?}", took[500]);
}
