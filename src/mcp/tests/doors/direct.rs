//! Claims about calls answered without the library: they are answered as the library answers them.
//!
//! Each request goes both ways: as it is, and accepting the same in a form that is left to the library.

use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use http::{HeaderValue, header, request::Parts};
use serde_json::{Value, json};

use super::{ANSWER_MAX, ENDS, Node, caller, node, stateless};
use crate::{caller::Caller, mcp::Opened};

const BOTH: &str = "application/json, text/event-stream";
/// Accepts the same, in a form that only the library weighs.
const BOTH_WEIGHED: &str = "application/json;q=1, text/event-stream";

fn accepting(accept: &'static str, (mut parts, body): (Parts, Bytes)) -> (Parts, Bytes) {
    parts.headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    (parts, body)
}

impl Node {
    fn is_direct(&self, (mut parts, body): (Parts, Bytes)) -> bool {
        matches!(self.endpoint.open(&mut parts, body, &caller()), Ok(Opened::Direct { .. }))
    }

    /// Status, headers and body, without what tells one recorded call from another.
    async fn answered(&self, (parts, body): (Parts, Bytes), caller: Caller) -> (u16, String, String) {
        let response = self.endpoint.respond(parts, body, caller).await;
        let (head, body) = response.into_parts();
        let body = to_bytes(body, ANSWER_MAX).await.expect("a short answer");
        let mut text = String::from_utf8_lossy(&body).into_owned();
        let message: Value = serde_json::from_str(&text).expect("an answer is JSON");
        for members in [&message["result"]["_meta"], &message["error"]["data"]] {
            for key in ["io.cairn/event", "io.cairn/seq"] {
                if let Some(value) = members.get(key) {
                    text = text.replace(&format!("\"{key}\":{value}"), key);
                }
            }
        }
        (head.status.as_u16(), format!("{:?}", head.headers), text)
    }

    async fn check(&self, params: Value, caller: Caller, wanted: (u16, &str)) {
        let both = || accepting(BOTH, stateless("tools/call", params.clone()));
        let weighed = || accepting(BOTH_WEIGHED, stateless("tools/call", params.clone()));
        assert!(self.is_direct(both()) && !self.is_direct(weighed()), "{params}");
        let direct = self.answered(both(), caller.clone()).await;
        assert_eq!(direct, self.answered(weighed(), caller).await, "{params}");
        assert!(direct.0 == wanted.0 && direct.2.contains(wanted.1), "{params}: {direct:?}");
    }
}

#[tokio::test]
async fn both_ways_give_the_same_answers() {
    let node = node().await;
    for (name, status, wanted) in [
        ("echo", 200, r#""x-unknown":1.50,"resultType":"complete""#),
        ("fail", 200, r#""isError":true"#),
        ("input", 200, "input_required"),
        ("forge", 200, r#""k": 1.0"#),
        ("twice", 200, "-32603"),
        ("error", 200, r#""message":"no","data":{io.cairn/event"#),
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
    let (parts, body) = accepting(BOTH, stateless("tools/call", json!({"name": "echo"})));
    let text = String::from_utf8(body.into()).expect("JSON is text");
    assert!(text.contains(from), "{text}");
    (parts, text.replace(from, to).into())
}

#[tokio::test]
async fn a_replay_and_a_written_id_are_the_same_both_ways() {
    let node = node().await;
    let keyed = || edited(r#""_meta":{"#, r#""_meta":{"io.cairn/idempotency-key":"k","#);
    let first = node.answered(keyed(), caller()).await;
    assert!(node.is_direct(keyed()) && !first.2.contains("replayed"), "{first:?}");
    let replayed = node.answered(keyed(), caller()).await;
    assert!(replayed.2.contains(r#""io.cairn/replayed":true"#), "{replayed:?}");
    assert_eq!(replayed, node.answered(accepting(BOTH_WEIGHED, keyed()), caller()).await);
    for id in ["-7", r#""a\"b""#] {
        let named = || edited(r#""id":1"#, &format!(r#""id":{id}"#));
        let answer = node.answered(named(), caller()).await;
        assert!(node.is_direct(named()) && answer.2.contains(&format!(r#""id":{id},"#)), "{answer:?}");
        assert_eq!(answer, node.answered(accepting(BOTH_WEIGHED, named()), caller()).await);
    }
}

#[tokio::test]
async fn what_is_not_plainly_in_order_is_left_to_the_library() {
    let node = node().await;
    let plain = || edited("", "");
    assert!(node.is_direct(plain()));
    for (name, value) in [
        ("accept", "application/json"),
        ("content-type", "text/plain"),
        ("mcp-protocol-version", "2025-11-25"),
        ("mcp-method", "tools/list"),
        ("mcp-name", "=?base64?ZWNobw==?="),
        ("mcp-session-id", "-"),
        ("last-event-id", "1"),
    ] {
        let (mut parts, body) = plain();
        parts.headers.insert(name, HeaderValue::from_static(value));
        assert!(!node.is_direct((parts, body)), "{name}: {value}");
    }
    for name in ["mcp-protocol-version", "mcp-method", "mcp-name"] {
        let (mut parts, body) = plain();
        let value = parts.headers[name].clone();
        parts.headers.append(name, value);
        assert!(!node.is_direct((parts.clone(), body.clone())), "{name} twice");
        parts.headers.remove(name);
        assert!(!node.is_direct((parts, body)), "no {name}");
    }
    for (from, to) in [
        (r#"/clientCapabilities":{}"#, r#"/clientCapabilities":[]"#),
        (r#"/clientCapabilities":{}"#, r#"/clientCapabilities":{"roots":7}"#),
        (r#"/clientCapabilities":{}"#, r#"/other":{}"#),
        (r#""_meta":{"#, r#""_meta":{"progressToken":1,"#),
        (r#""_meta":{"#, r#""_meta":{"io.modelcontextprotocol/logLevel":"info","#),
        ("2026-07-28", "2025-11-25"),
        (r#""id":1,"#, ""),
        ("tools/call", "prompts/get"),
    ] {
        assert!(!node.is_direct(edited(from, to)), "{to}");
    }
    for name in ["mirror", "ech"] {
        assert!(!node.is_direct(accepting(BOTH, stateless("tools/call", json!({"name": name})))), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_call_both_ways() {
    let mut node = node().await;
    for accept in [BOTH, BOTH_WEIGHED] {
        let (parts, body) = accepting(accept, stateless("tools/call", json!({"name": "wait"})));
        let call = node.endpoint.respond(parts, body, caller());
        let gone = tokio::time::timeout(Duration::from_millis(200), call).await;
        assert!(gone.is_err(), "the tool waits");
        node.cancelled.recv().await.expect("the tool is told");
    }
}
