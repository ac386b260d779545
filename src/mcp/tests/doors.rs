//! Claims about the MCP language at its doors, over a router that records.
//!
//! The tools answer at once or wait until they are cancelled; nothing here sleeps.

mod alone;
mod frames;
mod library;
mod peers;

use std::sync::Arc;

use axum::body::to_bytes;
use bytes::Bytes;
use http::{Method, Request, request::Parts};
use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{caller, raw};
use crate::{
    caller::Caller,
    error::{Code, Refusal},
    ledger::opening::{self, Birth, Running},
    log::home::Home,
    mcp::{Endpoint, Settings, serve_stdio},
    metrics::Metrics,
    router::{
        self, BoxFuture, Invocation, Offered, Offering, Outcome, Router, RpcError, Run, declared::Declared,
        lane::Lanes, metadata::Hints,
    },
};

const ANSWER_MAX: usize = 1 << 20;
/// A definition and a result as no library of ours would print them.
const DEFINITION: &str = r#"{"name":"echo", "inputSchema":{"type":"object" },"x-unknown":[1, 2.50]}"#;
const MIRROR: &str = r#"{"name":"mirror","inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}"#;
const RESULT: &str = r#"{"content":[ ],"x-unknown":1.50"#;

/// Tools whose names say how they end; `wait` waits until it is cancelled, and says so.
struct Tools {
    cancelled: mpsc::UnboundedSender<()>,
}

impl Run for Tools {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let result = |text: &str, is_error| Outcome::Result {
                result: raw(&format!("{RESULT}{text}}}")),
                is_error,
            };
            let error = |code, data| Outcome::Rpc(Box::new(RpcError { data, ..RpcError::new(code, "no") }));
            match invocation.name.as_str() {
                "echo" => return result("", false),
                "fail" => return result(r#","isError":true"#, true),
                "input" => return result(r#","resultType":"input_required","inputRequests":{}"#, false),
                "forge" => return result(r#","_meta":{ "io.cairn/event":"mine", "k": 1.0}"#, false),
                "twice" => return result(r#","resultType":"a","resultType":"b""#, false),
                "error" => return error(-32000, None),
                "data" => return error(-32602, Some(json!({"uri": "a\"b"}))),
                "list" => return error(-32603, Some(json!([1.50]))),
                "capability" => return error(-32021, None),
                "method" => return error(-32601, None),
                "request" => return error(-32600, None),
                "far" => return error(i64::MAX, None),
                "refuse" => return Outcome::Refused(Refusal::new(Code::NotFound, "no such thing")),
                "transport" => return Outcome::Transport { message: "broken".into() },
                "late" => return Outcome::TimedOut,
                "cancel" => return Outcome::Cancelled,
                "ask" => {
                    let asked = invocation.client.request("roots/list", json!({})).await;
                    return Outcome::Rpc(Box::new(asked.expect_err("the client stands alone")));
                }
                _ => {}
            }
            invocation.cancel.cancelled().await;
            // The test may have ended already.
            let _ = self.cancelled.send(());
            Outcome::Cancelled
        })
    }
}

/// Tools without arguments, by how they end.
const ENDS: &[&str] = &[
    "wait",
    "fail",
    "input",
    "forge",
    "twice",
    "error",
    "data",
    "list",
    "capability",
    "method",
    "far",
    "refuse",
    "request",
    "transport",
    "late",
    "cancel",
    "ask",
];

/// A node with tools and nothing else.
struct Node {
    router: Arc<Router>,
    endpoint: Endpoint,
    cancelled: mpsc::UnboundedReceiver<()>,
    shutdown: CancellationToken,
    _running: Running,
    _dir: tempfile::TempDir,
}

/// A router with nothing on its board, over a log of its own.
struct House {
    router: Arc<Router>,
    running: Running,
    dir: tempfile::TempDir,
}

fn house(seed: u8) -> House {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let home = Home::open(dir.path()).expect("the directory is fresh");
    let mut random = || [seed; 32];
    let birth = Birth { owner: "test", random: &mut random, now_us: 1, step: &mut |_| {} };
    let opened = opening::open(&home, &opening::Settings::default(), birth);
    let (ledger, running) = opened.expect("the log is fresh");
    let salt = home.keys().expect("the log was opened").salt;
    let router = Arc::new(Router::new(router::Parts {
        ledger,
        salt,
        runner: "test".into(),
        lanes: Lanes::new([]),
        tuning: Default::default(),
        metrics: Arc::new(Metrics::new()),
    }));
    House { router, running, dir }
}

async fn node() -> Node {
    let House { router, running, dir } = house(7);
    let tool = |name: &str, definition: &str| Offered {
        inner: name.into(),
        name: name.into(),
        definition: raw(definition),
        hints: Hints::default(),
        contract: None,
    };
    let (told, cancelled) = mpsc::unbounded_channel();
    let offering = Offering {
        source: "test".into(),
        version: "1".into(),
        rank: 0,
        lane: None,
        tools: [tool("echo", DEFINITION), tool("mirror", MIRROR)]
            .into_iter()
            .chain(ENDS.iter().map(|name| {
                let schema = r#"{"type":"object","additionalProperties":false}"#;
                tool(name, &format!(r#"{{"name":"{name}","inputSchema":{schema}}}"#))
            }))
            .collect(),
        prompts: Vec::new(),
        resources: Vec::new(),
        templates: Vec::new(),
        views: Vec::new(),
        declared: Declared { tools: true, ..Declared::default() },
        mirrors: false,
        run: Arc::new(Tools { cancelled: told }),
    };
    router.put(offering).await.expect("the ledger runs");
    let shutdown = CancellationToken::new();
    let settings = Settings { shutdown: shutdown.clone(), ..Settings::default() };
    Node {
        endpoint: Endpoint::new(router.clone(), settings),
        router,
        cancelled,
        shutdown,
        _running: running,
        _dir: dir,
    }
}

fn parts(headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri("/mcp")
        .header("host", "localhost")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("the test's own headers").into_parts().0
}

/// A request of revision 2026-07-28, with the headers it needs.
fn stateless(method: &str, mut params: Value) -> (Parts, Bytes) {
    let field = if method == "resources/read" { "uri" } else { "name" };
    let name = params[field].as_str().map(str::to_owned);
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
    headers.extend(name.as_deref().map(|name| ("mcp-name", name)));
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    (parts(&headers), body.to_string().into())
}

impl Node {
    /// Status, session id, and the answer's text.
    async fn post(&self, parts: Parts, body: Bytes, caller: Caller) -> (u16, String, String) {
        let response = self.endpoint.respond(parts, body, caller).await;
        let session = response.headers().get("mcp-session-id");
        let session = session.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), ANSWER_MAX).await.expect("a short answer");
        (status, session, String::from_utf8_lossy(&body).into_owned())
    }

    async fn stateless(&self, method: &str, params: Value) -> (u16, String) {
        let (parts, body) = stateless(method, params);
        let (status, _, text) = self.post(parts, body, caller()).await;
        (status, text)
    }

    /// Opens a session; the answer is its id.
    async fn initialize(&self) -> String {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
        let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let (_, session, _) = self.post(parts(&[]), body.to_string().into(), caller()).await;
        let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let (status, _, _) = self.in_session(&session, body, caller()).await;
        assert_eq!(status, 202);
        session
    }

    async fn in_session(&self, session: &str, body: &str, caller: Caller) -> (u16, String, String) {
        let headers = [("mcp-session-id", session), ("mcp-protocol-version", "2025-11-25")];
        self.post(parts(&headers), Bytes::from(body.to_owned()), caller).await
    }
}

#[tokio::test]
async fn unknown_fields_survive_byte_for_byte_in_both_eras() {
    let node = node().await;
    let session = node.initialize().await;
    let list = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#;
    let call = r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"echo"}}"#;
    for text in
        [node.stateless("tools/list", json!({})).await.1, node.in_session(&session, list, caller()).await.2]
    {
        assert!(text.contains(DEFINITION), "{text}");
    }
    for text in [
        node.stateless("tools/call", json!({"name": "echo"})).await.1,
        node.in_session(&session, call, caller()).await.2,
    ] {
        assert!(text.contains(RESULT) && text.contains("io.cairn/event"), "{text}");
        assert!(!text.contains("parcel"), "{text}");
    }
}

#[tokio::test]
async fn what_is_not_declared_is_no_method() {
    let node = node().await;
    for method in [
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "ping",
        "no/such",
    ] {
        let (status, text) = node.stateless(method, json!({"name": "x", "uri": "x:y"})).await;
        assert!(status == 404 && text.contains("-32601"), "{method}: {status} {text}");
    }
    let (_, text) = node.stateless("server/discover", json!({})).await;
    assert!(text.contains(r#""tools":{"#) && !text.contains("prompts"), "{text}");
}

#[tokio::test]
async fn an_unknown_tool_is_a_protocol_error_that_names_it() {
    let (_, text) = node().await.stateless("tools/call", json!({"name": "ech"})).await;
    assert!(text.contains("-32602") && text.contains("ech"), "{text}");
}

#[tokio::test]
async fn a_session_answers_only_its_owner() {
    let node = node().await;
    let session = node.initialize().await;
    let ping = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
    assert_eq!(node.in_session(&session, ping, caller()).await.0, 200);
    let mut eve = caller();
    eve.actor.id = "eve".into();
    assert_eq!(node.in_session(&session, ping, eve).await.0, 404);
}

#[tokio::test]
async fn a_session_cancels_by_notification_and_hears_nothing_more() {
    let mut node = node().await;
    let session = node.initialize().await;
    let call = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"wait"}}"#;
    let headers = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-11-25")];
    // The session has taken the call once the head of its stream is here.
    let stream = node.endpoint.respond(parts(&headers), Bytes::from(call), caller()).await;
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}"#;
    assert_eq!(node.in_session(&session, cancel, caller()).await.0, 202);
    node.cancelled.recv().await.expect("the tool is told");
    let rest = to_bytes(stream.into_body(), ANSWER_MAX).await.expect("the stream ends");
    assert!(!String::from_utf8_lossy(&rest).contains("jsonrpc"));
}

#[tokio::test]
async fn two_requests_of_one_id_are_not_open_at_once() {
    let mut node = node().await;
    let session = node.initialize().await;
    let call = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"wait"}}"#;
    let headers = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-11-25")];
    let first = node.endpoint.respond(parts(&headers), Bytes::from(call), caller()).await;
    let (status, _, text) = node.in_session(&session, &call.replace("wait", "echo"), caller()).await;
    assert!(status == 400 && text.contains("-32600") && text.contains(r#""id":"a""#), "{status} {text}");
    let other = call.replace("wait", "echo").replace(r#""a""#, "5");
    assert_eq!(node.in_session(&session, &other, caller()).await.0, 200, "another id is free");
    assert_eq!(node.in_session(&session, &other, caller()).await.0, 200, "and is free again once answered");
    let again = node.initialize().await;
    assert_eq!(node.in_session(&again, &call.replace("wait", "echo"), caller()).await.0, 200);

    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
    assert_eq!(node.in_session(&session, cancel, caller()).await.0, 202);
    node.cancelled.recv().await.expect("the tool is told");
    to_bytes(first.into_body(), ANSWER_MAX).await.expect("the stream ends");
    assert_eq!(node.in_session(&session, &call.replace("wait", "echo"), caller()).await.0, 200);
}

#[tokio::test]
async fn lines_carry_messages_and_nothing_else() {
    let node = node().await;
    let (client, server) = tokio::io::duplex(1 << 16);
    let (reader, writer) = tokio::io::split(server);
    let served =
        tokio::spawn(serve_stdio(node.router.clone(), Settings::default(), caller(), reader, writer));
    let (answers, mut asks) = tokio::io::split(client);
    let mut answers = BufReader::new(answers).lines();
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let call =
        format!(r#"{{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{{"name":"echo",{meta}}}}}"#);
    for (ask, wanted) in
        [("garbage", "-32700"), (r#"{"a":1,"a":2}"#, "-32600"), ("[]", "-32600"), (call.as_str(), RESULT)]
    {
        asks.write_all(format!("{ask}\n\n").as_bytes()).await.expect("the server reads");
        let line = answers.next_line().await.expect("the server writes").expect("an answer");
        let _: &RawValue = serde_json::from_str(&line).expect("a line is one message");
        assert!(line.contains(wanted), "{ask}: {line}");
    }
    asks.shutdown().await.expect("the client may leave");
    drop((asks, answers));
    served.await.expect("no panic").expect("no failure");
}
