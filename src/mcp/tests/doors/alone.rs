//! Claims about requests that stand alone, over HTTP: how each ending is told, and what is refused before anything runs.
//!
//! Invariant: the node and its log are real, and so is the socket.

use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header, request::Parts};
use serde_json::{Value, json};

use super::{ANSWER_MAX, ENDS, Node, caller, node, stateless};
use crate::caller::Caller;

impl Node {
    async fn call(&self, params: Value, caller: Caller) -> (u16, String) {
        let (parts, body) = stateless("tools/call", params);
        let (status, _, text) = self.post(parts, body, caller).await;
        (status, text)
    }

    async fn check(&self, params: Value, caller: Caller, wanted: (u16, &str)) {
        let answer = self.call(params.clone(), caller).await;
        assert!(answer.0 == wanted.0 && answer.1.contains(wanted.1), "{params}: {answer:?}");
    }
}

#[tokio::test]
async fn every_ending_has_its_form_and_status() {
    let node = node().await;
    for (name, status, wanted) in [
        ("echo", 200, r#""x-unknown":1.50,"resultType":"complete""#),
        ("fail", 200, r#""isError":true"#),
        ("input", 200, "input_required"),
        ("forge", 200, r#""k": 1.0"#),
        ("twice", 200, "-32603"),
        ("error", 200, r#""message":"no","data":{"io.cairn/event"#),
        ("data", 200, r#""data":{"uri":"a\"b""#),
        ("list", 200, r#""data":[1.5]"#),
        ("capability", 400, "-32021"),
        ("method", 404, "-32601"),
        ("far", 200, "-32603"),
        ("refuse", 200, "no such thing"),
        ("transport", 200, "io.cairn/event"),
        ("late", 200, "io.cairn/event"),
        ("cancel", 200, "io.cairn/event"),
        ("ask", 404, "the client cannot be asked roots/list"),
    ] {
        assert!(name == "echo" || ENDS.contains(&name), "{name} is on offer");
        node.check(json!({"name": name}), caller(), (status, wanted)).await;
    }
    let unfit = json!({"name": "fail", "arguments": {"unknown": 1}});
    node.check(unfit, caller(), (200, "io.cairn/event")).await;
    let more = json!({"name": "echo", "arguments": {"a": [1.50]}, "inputResponses": {}, "requestState": "s"});
    node.check(more, caller(), (200, "io.cairn/event")).await;
    let nobody = Caller { scopes: Vec::new(), ..caller() };
    node.check(json!({"name": "echo"}), nobody, (200, "-32600")).await;
}

/// A request to `echo` whose body has been changed.
fn edited(from: &str, to: &str) -> (Parts, Bytes) {
    let (parts, body) = stateless("tools/call", json!({"name": "echo"}));
    let text = String::from_utf8(body.into()).expect("JSON is text");
    assert!(text.contains(from), "{text}");
    (parts, text.replace(from, to).into())
}

#[tokio::test]
async fn a_replay_says_so_and_an_id_is_as_it_was_written() {
    let node = node().await;
    let keyed = || edited(r#""_meta":{"#, r#""_meta":{"io.cairn/idempotency-key":"k","#);
    for replayed in [false, true] {
        let (parts, body) = keyed();
        let (_, _, text) = node.post(parts, body, caller()).await;
        assert_eq!(text.contains(r#""io.cairn/replayed":true"#), replayed, "{text}");
    }
    for id in ["-7", r#""a\"b""#, r#""\u0061""#] {
        let (parts, body) = edited(r#""id":1"#, &format!(r#""id":{id}"#));
        let (_, _, text) = node.post(parts, body, caller()).await;
        assert!(text.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"#)), "{text}");
    }
}

#[tokio::test]
async fn headers_say_what_the_message_says() {
    let node = node().await;
    let check = async |name: &'static str, values: &[&'static str], wanted: (u16, &str)| {
        let (mut parts, body) = edited("", "");
        let name = HeaderName::from_static(name);
        parts.headers.remove(&name);
        for value in values {
            parts.headers.append(name.clone(), HeaderValue::from_static(value));
        }
        let (status, _, text) = node.post(parts, body, caller()).await;
        assert!(status == wanted.0 && text.contains(wanted.1), "{name}: {values:?}: {status} {text}");
    };
    let cases: &[(&'static str, &[&'static str], (u16, &str))] = &[
        ("accept", &["application/json"], (406, "-32600")),
        ("accept", &["application/json, text/event-stream;q=0"], (406, "-32600")),
        ("accept", &["text/html;a=\",\\\"\", application/json;q=1, text/event-stream"], (200, "result")),
        ("accept", &["application/json", "text/event-stream;q=0.5"], (200, "result")),
        ("accept", &["*/*"], (200, "result")),
        ("accept", &[], (200, "result")),
        ("content-type", &["text/plain"], (415, "-32600")),
        ("content-type", &["Application/JSON; charset=utf-8"], (200, "result")),
        ("content-type", &[], (415, "-32600")),
        ("mcp-protocol-version", &[], (400, "-32020")),
        ("mcp-protocol-version", &["2025-11-25"], (400, "-32020")),
        ("mcp-method", &[], (400, "-32020")),
        ("mcp-method", &["tools/list"], (400, "-32020")),
        ("mcp-method", &["tools/call", "tools/call"], (400, "-32020")),
        ("mcp-name", &[], (400, "-32020")),
        ("mcp-name", &["ech"], (400, "-32020")),
        ("mcp-name", &["=?base64?ZWNobw==?="], (200, "result")),
        ("mcp-name", &["=?base64?%?="], (400, "not valid Base64")),
        ("mcp-session-id", &["of nobody"], (200, "result")),
        ("last-event-id", &["1"], (200, "result")),
    ];
    for (name, values, wanted) in cases {
        check(name, values, *wanted).await;
    }
}

#[tokio::test]
async fn metadata_that_is_missing_or_of_another_revision_is_told() {
    let node = node().await;
    for (from, to, wanted) in [
        (r#"/clientCapabilities":{}"#, r#"/clientCapabilities":[]"#, (400, "clientCapabilities")),
        (r#"/clientCapabilities":{}"#, r#"/clientCapabilities":{"roots":7}"#, (400, "-32602")),
        (r#"/clientCapabilities":{}"#, r#"/other":{}"#, (400, "-32602")),
        (r#"/protocolVersion":"2026-07-28""#, r#"/other":1"#, (400, "-32602")),
        ("2026-07-28", "2025-11-25", (400, "-32020")),
    ] {
        let (parts, body) = edited(from, to);
        let (status, _, text) = node.post(parts, body, caller()).await;
        assert!(status == wanted.0 && text.contains(wanted.1), "{to}: {status} {text}");
    }
    let (mut parts, body) = edited("2026-07-28", "2099-01-01");
    parts.headers.insert("mcp-protocol-version", HeaderValue::from_static("2099-01-01"));
    let (status, _, text) = node.post(parts, body, caller()).await;
    assert!(status == 400 && text.contains("-32022") && text.contains("\"supported\":["), "{status} {text}");
}

#[tokio::test]
async fn mirrored_arguments_are_compared_with_their_headers() {
    let node = node().await;
    for (arguments, header, wanted) in [
        (json!({"a": "x"}), Some("x"), 200),
        (json!({"a": "x"}), Some("=?base64?eA==?="), 200),
        (json!({}), None, 200),
        (json!({"a": null}), None, 200),
        (json!({"a": "x"}), Some("y"), 400),
        (json!({"a": "x"}), None, 400),
        (json!({}), Some("x"), 400),
    ] {
        let params = json!({"name": "mirror", "arguments": arguments});
        let (mut parts, body) = stateless("tools/call", params.clone());
        if let Some(header) = header {
            parts.headers.insert("mcp-param-a", HeaderValue::from_static(header));
        }
        // The tool waits, where it is reached.
        let answer = tokio::time::timeout(Duration::from_millis(200), node.post(parts, body, caller())).await;
        let status = answer.map_or(200, |(status, ..)| status);
        assert_eq!(status, wanted, "{params} {header:?}");
    }
}

#[tokio::test]
async fn what_is_no_request_of_a_session_is_refused() {
    let node = node().await;
    for (method, version, status) in [
        (Method::GET, "2026-07-28", 405),
        (Method::DELETE, "2026-07-28", 405),
        (Method::PUT, "2025-11-25", 405),
        (Method::GET, "2025-11-25", 400),
        (Method::DELETE, "2025-11-25", 400),
        (Method::GET, "1999-01-01", 400),
    ] {
        let (mut parts, _) = edited("", "");
        parts.method = method.clone();
        parts.headers.insert("mcp-protocol-version", HeaderValue::from_static(version));
        let response = node.endpoint.respond(parts, Bytes::new(), caller()).await;
        assert_eq!(response.status(), status, "{method} {version}");
        assert_eq!(response.headers().contains_key(header::ALLOW), status == 405, "{method} {version}");
    }
    let (parts, _) = edited("", "");
    let (status, _, text) =
        node.post(parts, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into(), caller()).await;
    assert!(status == 400 && text.contains("-32600"), "{status} {text}");
    let (parts, body) = edited(r#""id":1,"#, "");
    assert_eq!(node.post(parts, body, caller()).await.0, 202);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_call() {
    let mut node = node().await;
    for meta in [r#""_meta":{"#, r#""_meta":{"progressToken":1,"#] {
        let (mut parts, body) = edited(r#""_meta":{"#, meta);
        parts.headers.insert("mcp-name", HeaderValue::from_static("wait"));
        let body = String::from_utf8(body.into()).expect("JSON is text").replace("echo", "wait");
        let call = node.endpoint.respond(parts, body.into(), caller());
        let gone = tokio::time::timeout(Duration::from_millis(200), call).await;
        assert!(gone.is_err(), "the tool waits");
        node.cancelled.recv().await.expect("the tool is told");
    }
}

#[tokio::test]
async fn a_client_hears_what_it_listens_for_and_nothing_else() {
    let node = node().await;
    let wanted =
        json!({"toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["a:b"]});
    let (parts, body) = stateless("subscriptions/listen", json!({"notifications": wanted}));
    let response = node.endpoint.respond(parts, body, caller()).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    for change in [crate::router::Change::Prompts, crate::router::Change::Tools] {
        node.router.notify(change);
    }
    node.shutdown.cancel();
    let body = to_bytes(response.into_body(), ANSWER_MAX).await.expect("the stream ends with the server");
    let text = String::from_utf8_lossy(&body);
    let messages = text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    let messages: Vec<Value> = messages.collect();
    let meta = json!({"io.modelcontextprotocol/subscriptionId": 1});
    assert_eq!(messages[0]["method"], "notifications/subscriptions/acknowledged", "{text}");
    assert_eq!(messages[0]["params"], json!({"_meta": meta, "notifications": {"toolsListChanged": true}}));
    assert_eq!(messages.last().map(|last| &last["result"]["resultType"]), Some(&json!("complete")), "{text}");
    assert!(!text.contains("prompts/list_changed"), "{text}");
}
