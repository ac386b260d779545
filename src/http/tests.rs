//! Tests of the door from outside: bytes into a real socket, bytes out of it.

mod machines;
mod standing;

use std::{fmt::Write, net::SocketAddr, sync::Arc};

use axum::{Extension, Router, body::Body, response::Response, routing::get};
use bytes::Bytes;
use http::{StatusCode, request::Parts};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    App, Mcp,
    door::{Door, Opener, serve_health},
    health::Health,
    listen,
};
use crate::{
    auth::{Access, Tokens, tokens},
    caller::{Caller, Scope},
    config::Server,
    metrics::Metrics,
    problem::internal,
    router::BoxFuture,
};

/// A handler that answers who asked, and with how many bytes.
#[derive(Default)]
struct Parrot {
    gate: Notify,
    /// Receives a message when an answer is awaited, and when its future is dropped.
    waits: Option<mpsc::UnboundedSender<&'static str>>,
}

struct Gone(mpsc::UnboundedSender<&'static str>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send("gone");
    }
}

impl Mcp for Parrot {
    fn respond(&self, parts: Parts, body: Bytes, caller: Caller) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            if let Some(waits) = &self.waits {
                let _gone = Gone(waits.clone());
                let _ = waits.send("waiting");
                self.gate.notified().await;
            }
            let said = json!({"method": parts.method.as_str(), "actor": caller.actor.id, "len": body.len()});
            Response::new(Body::from(said.to_string()))
        })
    }
}

/// A server on a free port, and how to stop it.
struct House {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    metrics: Arc<Metrics>,
    /// What puts something else behind the door.
    opener: Option<Opener>,
}

impl House {
    async fn open(access: Access, server: Server) -> Self {
        Self::with(access, server, Parrot::default().into(), Vec::new()).await
    }

    async fn with(access: Access, server: Server, mcp: Arc<Parrot>, unready: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let audit = Router::new()
            .route("/v1/endless", get(standing::endless))
            .route("/v1/who", get(async |Extension(caller): Extension<Caller>| caller.actor.id))
            .route("/v1/never", get(std::future::pending::<StatusCode>))
            .route("/v1/panic", get(async || -> String { panic!("a secret of ours") }))
            .route("/v1/fault", get(async || internal(&std::io::Error::other("a secret of ours"))));
        let ready = Box::new(move || unready.clone());
        let metrics = Arc::new(Metrics::new());
        let starting = Box::new(|| vec!["starting: 5 of 9 events".to_owned()]);
        let health = Arc::new(Health::new(metrics.clone(), starting));
        let door = Door::new(listener, &server, None, health).expect("the listener has an address");
        let app = App { server, access: Arc::new(access), mcp, audit, ready, metrics: metrics.clone() };
        let opener = door.opener();
        opener.open(app);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(door.serve(shutdown.clone()));
        Self { address, shutdown, task, metrics, opener: Some(opener) }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the server listens")
    }

    /// Sends one request on its own connection. `Host` is the server's address unless it is given.
    async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(&self.request(line, headers, body)).await.expect("the server reads");
        answer(&mut stream).await
    }

    fn request(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if headers.iter().all(|(name, _)| *name != "Host") {
            write!(head, "Host: {}\r\n", self.address).expect("a string can be written");
        }
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").expect("a string can be written");
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the body is JSON")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

async fn answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("the server answers and closes");
    let text = String::from_utf8(bytes).expect("the answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("the answer has a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("the answer has a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Makes tokens for `ann` (calls) and `bob` (calls and audit), and the access that knows them.
struct Keys {
    ann: String,
    bob: String,
    access: Access,
    directory: TempDir,
}

fn keys() -> Keys {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let add = |name, scopes: &[Scope]| {
        let (_, token) = tokens::add(directory.path(), name, scopes, None).expect("a token is made");
        format!("Bearer {token}")
    };
    let (ann, bob) = (add("ann", &[Scope::Call]), add("bob", &[Scope::Call, Scope::Audit]));
    let access = Access::Static(Tokens::open(directory.path()).expect("the file is readable"));
    Keys { ann, bob, access, directory }
}

#[tokio::test]
async fn hosts_and_origins_are_judged_first() {
    let server = Server {
        public_url: Some("https://cairn.example".to_owned()),
        allowed_origins: vec!["https://app.example".to_owned()],
        allowed_hosts: vec!["inside:80".to_owned()],
        ..Server::default()
    };
    let house = House::open(Access::Open, server).await;
    let own = format!("http://{}", house.address);
    let port = house.address.port();
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[], 200),
        (&[("Host", "LocalHost:9")], 200),
        (&[("Host", "[::1]")], 200),
        (&[("Host", "cairn.example")], 200),
        (&[("Host", "inside:80")], 200),
        (&[("Host", "inside:81")], 403),
        (&[("Host", "evil.example")], 403),
        (&[("Host", "localhost.evil.example")], 403),
        (&[("Host", "evil@localhost")], 403),
        (&[("Host", "0.0.0.0")], 403),
        (&[("Host", "")], 403),
        (&[("Host", "localhost"), ("Host", "evil.example")], 403),
        (&[("Origin", &own)], 200),
        (&[("Origin", "https://cairn.example")], 200),
        (&[("Origin", "https://app.example")], 200),
        (&[("Origin", "http://app.example")], 403),
        (&[("Origin", "https://app.example.evil.example")], 403),
        (&[("Origin", "http://localhost:1")], 403),
        (&[("Origin", "http://evil.example")], 403),
        (&[("Origin", "null")], 403),
        (&[("Origin", "")], 403),
        (&[("Origin", &own), ("Origin", "null")], 403),
    ];
    for (headers, expected) in cases {
        for line in ["POST /mcp", "GET /v1/who", "GET /healthz", "GET /nowhere"] {
            let named = headers.iter().any(|(name, _)| *name == "Origin");
            let expected = match (line, *expected) {
                ("GET /nowhere", 200) => 404,
                // Machines ask for health by whatever name they know.
                ("GET /healthz", _) if !named => 200,
                (_, expected) => expected,
            };
            let found = house.ask(line, headers, b"{}").await;
            assert_eq!(found.status, expected, "{line} {headers:?} {}", found.body);
        }
    }
    let absolute = house.ask("GET http://evil.example/v1/who", &[], b"").await;
    assert_eq!(absolute.status, 403);
    // The origin is checked before the body is read, so an unreadable one does not matter.
    assert_eq!(house.ask("POST /mcp", &[("Origin", "null")], b"{").await.status, 403);

    let preflight = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")];
    let found = house.ask("OPTIONS /mcp", &preflight, b"").await;
    assert_eq!(
        (found.status, found.header("access-control-allow-origin")),
        (204, Some("https://app.example"))
    );
    let with = |headers: &[(&'static str, &'static str)]| [&preflight[..], headers].concat();
    for (asked, allowed) in [
        ("Mcp-Param-City, content-type, X-Other,mcp-param-unit", ", mcp-param-city, mcp-param-unit"),
        ("mcp-param-a b, mcp-param-\u{e9}, authorization", ""),
    ] {
        let found = house.ask("OPTIONS /mcp", &with(&[("Access-Control-Request-Headers", asked)]), b"").await;
        let listed = found.header("access-control-allow-headers").expect("headers are allowed");
        let rest = listed.split_once("Mcp-Name").map(|(_, rest)| rest);
        assert_eq!(rest, Some(allowed), "{asked}");
    }
    let found = house.ask("GET /healthz", &[("Host", &format!("localhost:{port}"))], b"").await;
    assert_eq!(found.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn only_strict_and_bounded_json_reaches_the_language() {
    let house = House::open(Access::Open, Server::default()).await;
    let deep = ["[".repeat(10_000), "]".repeat(10_000)].concat();
    let cases: [(&[u8], u16, i64); 12] = [
        (br#"{"jsonrpc":"2.0"}"#, 200, 0),
        (b"", 400, -32700),
        (b"{", 400, -32700),
        (b"{} {}", 400, -32700),
        (b"{\"a\":\"\xff\"}", 400, -32700),
        (br#"{"a":"\ud800"}"#, 400, -32700),
        (br#"{"a":"\udc00\ud800"}"#, 400, -32700),
        (br#"{"a":1,"a":2}"#, 400, -32600),
        (br#"{"a":1,"\u0061":2}"#, 400, -32600),
        (br#"{"a":1e400}"#, 400, -32600),
        (deep.as_bytes(), 400, -32600),
        (&vec![b' '; 5 * 1024 * 1024], 413, -32600),
    ];
    for (body, status, code) in cases {
        let found = house.ask("POST /mcp", &[], body).await;
        let start = String::from_utf8_lossy(&body[..body.len().min(30)]);
        assert_eq!(found.status, status, "{start}");
        match code {
            0 => assert_eq!(found.json()["len"], body.len()),
            code => {
                let told = found.json();
                assert_eq!((&told["error"]["code"], &told["id"]), (&json!(code), &Value::Null), "{start}");
            }
        }
    }
    // Only the body of a POST is parsed.
    assert_eq!(house.ask("DELETE /mcp", &[], b"").await.json()["method"], "DELETE");
}

#[tokio::test]
async fn a_body_without_a_length_is_bounded_too() {
    let house = House::open(Access::Open, Server { max_body_bytes: 1024, ..Server::default() }).await;
    for (chunks, expected) in [(1, 200), (3, 413)] {
        let head = format!("POST /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", house.address);
        let chunk = format!("200\r\n\"{}\"\r\n", "x".repeat(510)).repeat(chunks);
        let mut stream = house.connect().await;
        let request = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        assert_eq!(answer(&mut stream).await.status, expected);
    }
}

#[tokio::test]
async fn each_path_asks_for_its_scope() {
    let keys = keys();
    let server = Server { public_url: Some("https://cairn.example/".to_owned()), ..Server::default() };
    let house = House::open(keys.access, server).await;
    let (ann, bob) = (Some(keys.ann.as_str()), Some(keys.bob.as_str()));
    let cases = [
        ("POST /mcp", None, 401),
        ("POST /mcp", Some("Bearer cairn_wrong"), 401),
        ("POST /mcp", Some("Basic YTpi"), 401),
        ("POST /mcp", ann, 200),
        ("GET /v1/who", None, 401),
        ("GET /v1/who", ann, 403),
        ("GET /v1/who", bob, 200),
        ("GET /metrics", None, 401),
        ("GET /metrics", ann, 403),
        ("GET /metrics", bob, 200),
        ("GET /healthz", None, 200),
        ("GET /readyz", None, 200),
        ("GET /.well-known/oauth-protected-resource", None, 200),
        ("GET /.well-known/oauth-protected-resource/mcp", None, 200),
        ("GET /v1/nowhere", None, 404),
        ("POST /healthz", None, 405),
    ];
    for (line, token, expected) in cases {
        let headers: Vec<_> = token.map(|token| ("Authorization", token)).into_iter().collect();
        let found = house.ask(line, &headers, b"{}").await;
        assert_eq!(found.status, expected, "{line}");
        assert!(!token.is_some_and(|token| found.body.contains(&token["Bearer ".len()..])), "{line}");
        if expected >= 400 {
            assert_eq!(found.header("content-type"), Some("application/problem+json"), "{line}");
            assert_eq!(found.json()["status"], expected);
        }
        assert_eq!(found.header("www-authenticate").is_some(), [401, 403].contains(&expected), "{line}");
    }
    let twice = [("Authorization", keys.ann.as_str()), ("Authorization", keys.bob.as_str())];
    assert_eq!(house.ask("POST /mcp", &twice, b"{}").await.status, 401);

    let rest = "resource_metadata=\"https://cairn.example/.well-known/oauth-protected-resource/mcp\"";
    let missing = house.ask("POST /mcp", &[], b"{}").await;
    assert_eq!(missing.header("www-authenticate"), Some(&*format!("Bearer scope=\"mcp:call\", {rest}")));
    let lacking = house.ask("GET /v1/who", &[("Authorization", &keys.ann)], b"").await;
    assert_eq!(
        lacking.header("www-authenticate"),
        Some(&*format!("Bearer error=\"insufficient_scope\", scope=\"audit:read\", {rest}"))
    );
    let metadata = house.ask("GET /.well-known/oauth-protected-resource/mcp", &[], b"").await;
    assert_eq!(
        metadata.json(),
        json!({
            "resource": "https://cairn.example/mcp",
            "scopes_supported": Scope::WORDS,
            "bearer_methods_supported": ["header"],
        })
    );
}

#[tokio::test]
async fn a_principal_that_asks_too_often_waits_alone() {
    let keys = keys();
    let server = Server { rate_limit_per_second: 1, rate_limit_burst: 2, ..Server::default() };
    let house = House::open(keys.access, server).await;
    let mut refused = None;
    for _ in 0..100 {
        let found = house.ask("POST /mcp", &[("Authorization", &keys.ann)], b"{}").await;
        if found.status == 429 {
            refused = Some(found);
            break;
        }
    }
    let refused = refused.expect("a hundred requests are more than the burst");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(house.ask("POST /mcp", &[("Authorization", &keys.bob)], b"{}").await.status, 200);
}

#[tokio::test]
async fn a_fault_of_ours_is_an_id_outside_and_ends_nothing_else() {
    let house = House::open(Access::Open, Server::default()).await;
    for line in ["GET /v1/panic", "GET /v1/fault"] {
        let found = house.ask(line, &[], b"").await;
        assert_eq!((found.status, &found.json()["title"]), (500, &json!("internal error")));
        assert!(found.body.contains("fault ") && !found.body.contains("secret"), "{}", found.body);
    }
    assert_eq!(house.ask("GET /healthz", &[], b"").await.body, r#"{"status":"ok"}"#);
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_why() {
    let reasons = vec!["state is behind the log".to_owned()];
    let house = House::with(Access::Open, Server::default(), Parrot::default().into(), reasons).await;
    let found = house.ask("GET /readyz", &[], b"").await;
    assert_eq!(found.status, 503);
    assert_eq!(found.json()["reasons"], json!(["state is behind the log"]));
    let metrics = house.ask("GET /metrics", &[], b"").await;
    assert!(metrics.body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_ended_but_for_calls() {
    let (waits, mut told) = mpsc::unbounded_channel();
    let parrot = Arc::new(Parrot { waits: Some(waits), ..Parrot::default() });
    let server = Server { request_timeout_ms: 100, ..Server::default() };
    let house = House::with(Access::Open, server, Arc::clone(&parrot), Vec::new()).await;
    let mut stream = house.connect().await;
    stream.write_all(&house.request("POST /mcp", &[], b"{}")).await.expect("the server reads");
    assert_eq!(told.recv().await, Some("waiting"));
    // It has waited for longer than the call meanwhile, and is ended.
    assert_eq!(house.ask("GET /v1/never", &[], b"").await.status, 504);
    parrot.gate.notify_one();
    assert_eq!(answer(&mut stream).await.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_drops_its_request() {
    let (waits, mut told) = mpsc::unbounded_channel();
    let parrot = Parrot { waits: Some(waits), ..Parrot::default() };
    let house = House::with(Access::Open, Server::default(), parrot.into(), Vec::new()).await;
    let mut stream = house.connect().await;
    stream.write_all(&house.request("POST /mcp", &[], b"{}")).await.expect("the server reads");
    assert_eq!(told.recv().await, Some("waiting"));
    drop(stream);
    assert_eq!(told.recv().await, Some("gone"));
}

#[tokio::test]
async fn a_stop_lets_begun_answers_end_and_takes_no_new_ones() {
    let (waits, mut told) = mpsc::unbounded_channel();
    let parrot = Arc::new(Parrot { waits: Some(waits), ..Parrot::default() });
    let house = House::with(Access::Open, Server::default(), Arc::clone(&parrot), Vec::new()).await;
    let mut idle = house.connect().await;
    let mut stream = house.connect().await;
    stream.write_all(&house.request("POST /mcp", &[], b"{}")).await.expect("the server reads");
    assert_eq!(told.recv().await, Some("waiting"));
    house.shutdown.cancel();
    assert_eq!(idle.read(&mut [0; 1]).await.expect("the connection ends in order"), 0);
    parrot.gate.notify_one();
    assert_eq!(answer(&mut stream).await.status, 200);
    house.task.await.expect("the server does not panic");
    assert!(TcpStream::connect(house.address).await.is_err());
}

#[tokio::test]
async fn headers_are_bounded() {
    let house = House::open(Access::Open, Server::default()).await;
    let long = "x".repeat(64 * 1024);
    let status = house.ask("GET /healthz", &[("X-Long", &long)], b"").await.status;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16());
    let many = vec![("X-Many", "x"); 200];
    let status = house.ask("GET /healthz", &many, b"").await.status;
    assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16());
}

#[tokio::test]
async fn an_accepted_connection_does_not_wait_to_fill_packets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let (accepted, _client) = tokio::join!(listen::accept(&listener), TcpStream::connect(address));
    assert!(accepted.and_then(|(stream, _)| stream.nodelay()).expect("the connection is open"));
}
