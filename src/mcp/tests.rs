//! Claims about the MCP language that need no router: what is read, what is added, what is listed.

mod doors;

use std::{borrow::Cow, time::Instant};

use bytes::Bytes;
use rmcp::{
    model::{CallToolResult, JsonRpcMessage, NumberOrString, ServerJsonRpcMessage, ServerResult},
    transport::streamable_http_server::session::SessionManager,
};
use serde_json::{Value, json, value::RawValue};

use super::{
    answer::{finish, finish_error},
    envelope::{self, Incoming, Message},
    list::{PAGE_MAX, page},
    raw::{pack, unpack, unpack_event},
    sessions::{IDLE_MAX, SESSIONS_MAX, Sessions},
};
use crate::{
    block::{Cid, Codec},
    caller::{Caller, Scope},
    event::Actor,
    mcp::era::Era,
    router::{Record, RpcError},
};

fn caller() -> Caller {
    let actor = Actor { id: "ada".into(), role: "user".into(), proof: None };
    Caller { actor, scopes: vec![Scope::Call] }
}

fn record() -> Record {
    let cid = |name: &str| Cid::of(Codec::Raw, name.as_bytes());
    Record {
        event: cid("event"),
        contract: Some(cid("contract")),
        input: Some(cid("input")),
        output: None,
        seq: 7,
        log: cid("log"),
        replayed: false,
        cancelled: false,
        own: false,
    }
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("the test's own JSON")
}

// ---- parcels

/// A typed message as the library would print it, around `content`.
fn typed(content: &str) -> Vec<u8> {
    let mut result = CallToolResult::success(Vec::new());
    result.meta = Some(pack(content.to_owned()));
    let id = NumberOrString::String("a\"b".into());
    let message: ServerJsonRpcMessage = JsonRpcMessage::response(ServerResult::CallToolResult(result), id);
    serde_json::to_vec(&message).expect("the library prints its own messages")
}

fn check_parcel(content: &str) {
    let wanted = format!(r#"{{"jsonrpc":"2.0","id":"a\"b","result":{content}}}"#);
    assert_eq!(unpack(&typed(content)), Some(wanted.clone().into_bytes()));
    let event = [b"data: ".as_slice(), &typed(content), b"\nid: 1/0\n\n"].concat();
    let line = wanted.replace(['\n', '\r'], " ");
    let unpacked = unpack_event(Bytes::from(event));
    assert_eq!(unpacked, Bytes::from(format!("data: {line}\nid: 1/0\n\n")));
}

#[test]
fn a_result_passes_the_library_byte_for_byte() {
    check_parcel("{}");
    check_parcel(r#"{"n":1.50,"e":1E+2,"u":"\u00e9é\"","x-unknown":[ ]}"#);
    check_parcel("{\n  \"content\" : [],\r\n  \"s\": \"a\\nb\"\n}");
}

#[test]
fn what_is_no_parcel_is_left_alone() {
    for message in [
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        r#"{"jsonrpc":"2.0","method":"x","params":{"_meta":{"io.cairn/parcel":"{}"}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"text":"io.cairn/parcel"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"io.cairn/parcel"}}"#,
        "io.cairn/parcel",
    ] {
        assert_eq!(unpack(message.as_bytes()), None, "{message}");
    }
    let ping = Bytes::from_static(b":\n\n");
    assert_eq!(unpack_event(ping.clone()), ping);
}

// ---- envelopes

fn check_fault(body: &str, id: &str, code: i64, malformed: bool) {
    match envelope::read(body.as_bytes(), &caller()) {
        Ok(_) => panic!("{body} was taken"),
        Err(fault) => {
            assert_eq!((fault.id.as_str(), fault.code, fault.malformed), (id, code, malformed), "{body}");
        }
    }
}

fn read(body: &str) -> (std::sync::Arc<Incoming>, Option<String>) {
    match envelope::read(body.as_bytes(), &caller()) {
        Ok(Message::Asks { asked, slim, .. }) => {
            let slim = slim.map(|slim| String::from_utf8(slim.to_json()).expect("JSON is text"));
            (asked, slim)
        }
        Ok(Message::Answers) => panic!("{body} asks nothing"),
        Err(fault) => panic!("{body}: {}", fault.message),
    }
}

#[test]
fn a_malformed_envelope_is_an_invalid_request() {
    check_fault("[]", "null", -32600, true);
    check_fault(r#"["2.0",1,"ping",{},null,null]"#, "null", -32600, true);
    check_fault("7", "null", -32600, true);
    check_fault(r#"{"id":1,"method":"ping"}"#, "1", -32600, true);
    check_fault(r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "1", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "null", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, "null", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, "null", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "1", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1}"#, "1", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#, "1", -32600, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#, "1", -32602, true);
    check_fault(r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":1}}"#, "1", -32602, true);
}

#[test]
fn params_of_the_wrong_shape_are_invalid_params() {
    let check = |method: &str, params: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"q","method":"{method}","params":{params}}}"#);
        check_fault(&body, "\"q\"", -32602, false);
    };
    check("tools/call", "{}");
    check("tools/call", r#"{"name":7}"#);
    check("tools/call", r#"{"name":"t","arguments":[1,2]}"#);
    check("tools/call", r#"{"name":"t","arguments":null}"#);
    check("tools/list", r#"{"cursor":1}"#);
    check("resources/read", r#"{"uri":null}"#);
    check("completion/complete", r#"{"ref":{}}"#);
    check("initialize", "{}");
    check("tools/call", r#"{"name":"t","_meta":{"io.cairn/idempotency-key":""}}"#);
    let long = "k".repeat(129);
    check("tools/call", &format!(r#"{{"name":"t","_meta":{{"io.cairn/idempotency-key":"{long}"}}}}"#));
    check("tools/call", r#"{"name":"t","_meta":{"io.cairn/contract":"bafy"}}"#);
}

#[test]
fn a_removed_method_is_not_judged_by_its_params() {
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    read(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{{{meta}}}}}"#));
    assert!(envelope::is_known("logging/setLevel", Era::Session));
    assert!(!envelope::is_known("logging/setLevel", Era::Stateless));
}

#[test]
fn the_router_gets_the_params_as_they_came_and_the_library_the_names() {
    let params = r#"{ "name":"t",  "arguments":{"n":1.50}, "_meta":{"progressToken":3} }"#;
    let (asked, slim) =
        read(&format!(r#"{{"jsonrpc":"2.0","id":"a\"","method":"tools/call","params":{params}}}"#));
    assert_eq!(asked.params.get(), params);
    assert_eq!((asked.name.as_str(), &asked.meta.progress_token), ("t", &Some(json!(3))));
    let wanted = r#"{"jsonrpc":"2.0","id":"a\"","method":"tools/call","params":{"name":"t","_meta":{"progressToken":3}}}"#;
    assert_eq!(slim.as_deref(), Some(wanted));
}

#[test]
fn request_metadata_is_read() {
    let cid = Cid::of(Codec::DagCbor, b"contract").to_string();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let meta = |traceparent: &str| {
        let meta = json!({
            "io.cairn/idempotency-key": "k1", "io.cairn/contract": cid, "traceparent": traceparent,
        });
        let params = json!({"name": "t", "_meta": meta});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        read(&body.to_string()).0.meta.clone()
    };
    let read = meta(trace);
    assert_eq!(read.idempotency_key.as_deref(), Some("k1"));
    assert_eq!(read.contract.map(|cid| cid.to_string()), Some(cid.clone()));
    assert_eq!(read.traceparent.as_deref(), Some(trace));
    for malformed in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    ] {
        assert_eq!(meta(malformed).traceparent, None, "{malformed}");
    }
}

// ---- answers

fn finished(result: &str, era: Era, ttl_ms: Option<u64>, record: Option<&Record>) -> String {
    let mut out = String::new();
    finish(&mut out, &raw(result), era, ttl_ms, record).expect("the result is an object");
    out
}

#[test]
fn a_session_result_without_record_is_unchanged() {
    for result in ["{}", r#"{ "content":[] , "x":1.0}"#, r#"{"_meta":null}"#] {
        assert_eq!(finished(result, Era::Session, Some(5), None), result);
    }
}

#[test]
fn a_stateless_result_gains_what_it_lacks() {
    let info = format!(
        r#""_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"cairn","version":"{}"}}}}"#,
        env!("CARGO_PKG_VERSION")
    );
    let check = |result: &str, ttl_ms, wanted: &str| {
        assert_eq!(finished(result, Era::Stateless, ttl_ms, None), wanted.replace("INFO", &info));
    };
    check("{}", None, r#"{"resultType":"complete",INFO}"#);
    check(
        r#"{ "x":1.0 }"#,
        Some(9),
        r#"{ "x":1.0,"resultType":"complete","ttlMs":9,"cacheScope":"private",INFO }"#,
    );
    check(
        r#"{"ttlMs":1,"resultType":"complete"}"#,
        Some(9),
        r#"{"ttlMs":1,"resultType":"complete","cacheScope":"private",INFO}"#,
    );
    check(r#"{"resultType":"input_required"}"#, Some(9), r#"{"resultType":"input_required",INFO}"#);
}

#[test]
fn the_record_joins_a_meta_that_is_there() {
    let result = finished(r#"{"a":[1.0 ],"_meta":{ "k": 1.50},"b":2}"#, Era::Session, None, Some(&record()));
    let start = r#"{"a":[1.0 ],"_meta":{ "k": 1.50,"io.cairn/event":"bafkrei"#;
    assert!(result.starts_with(start), "{result}");
    assert!(result.ends_with(r#"},"b":2}"#), "{result}");
    let meta = serde_json::from_str::<Value>(&result).expect("still JSON")["_meta"].clone();
    assert_eq!(meta["io.cairn/seq"], 7);
    assert_eq!(meta.get("io.cairn/output"), None);
    assert_eq!(meta.get("io.cairn/replayed"), None);
}

#[test]
fn a_source_cannot_speak_for_the_record() {
    for forged in [
        r#"{"_meta":{"io.cairn/event":"mine","io.cairn/output":"mine","k":1}}"#,
        r#"{"_meta":{"io.cairn\u002fevent":"mine","k":1}}"#,
    ] {
        let result = finished(forged, Era::Session, None, Some(&record()));
        let meta = serde_json::from_str::<Value>(&result).expect("still JSON")["_meta"].clone();
        assert_eq!(meta["io.cairn/event"], record().event.to_string());
        assert_eq!((meta.get("io.cairn/output"), &meta["k"]), (None, &json!(1)));
    }
    let replaced = finished(r#"{"_meta":null}"#, Era::Session, None, Some(&record()));
    assert!(replaced.starts_with(r#"{"_meta":{"io.cairn/event""#), "{replaced}");
}

#[test]
fn a_result_that_cannot_be_given_is_an_error() {
    for (result, era, code) in [
        ("[]", Era::Session, -32603),
        ("null", Era::Stateless, -32603),
        (r#"{"resultType":"a","resultType":"b"}"#, Era::Stateless, -32603),
        (r#"{"resultType":"input_required"}"#, Era::Session, -32600),
    ] {
        let mut out = String::new();
        let given = finish(&mut out, &raw(result), era, None, None).map_err(|error| error.code);
        assert_eq!((given, out.as_str()), (Err(code), ""), "{result}");
    }
}

#[test]
fn an_error_carries_its_record_where_data_can_hold_it() {
    let error = |data| RpcError { code: -1, message: "no".into(), data, record: Some(Box::new(record())) };
    let event = json!(record().event.to_string());
    assert_eq!(
        finish_error(error(None)).data.map(|data| data["io.cairn/event"].clone()),
        Some(event.clone())
    );
    let data = finish_error(error(Some(json!({"uri": "u"})))).data.unwrap_or_default();
    assert_eq!((&data["uri"], &data["io.cairn/event"]), (&json!("u"), &event));
    assert_eq!(finish_error(error(Some(json!([1])))).data, Some(json!([1])));
}

// ---- lists

fn entries(count: usize) -> Vec<(String, Box<RawValue>)> {
    let entry = |at: usize| {
        let definition = format!(r#"{{"name":"t{at}", "x-unknown":1.0}}"#);
        (format!("t{at}"), RawValue::from_string(definition).expect("JSON"))
    };
    (0..count).map(entry).collect()
}

fn pages(entries: &[(String, Box<RawValue>)], key: &str, cursor: Option<&str>) -> Result<Value, i64> {
    let page = page(key, entries, |(name, definition)| (name, Cow::Borrowed(definition)), cursor);
    page.map_err(|error| error.code).map(|page| serde_json::from_str(page.get()).expect("a page is JSON"))
}

#[test]
fn definitions_are_listed_as_written() {
    let listed = page("tools", &entries(2), |(name, definition)| (name, Cow::Borrowed(definition)), None);
    let wanted = r#"{"tools":[{"name":"t0", "x-unknown":1.0},{"name":"t1", "x-unknown":1.0}]}"#;
    assert_eq!(listed.ok().as_deref().map(RawValue::get), Some(wanted));
}

#[test]
fn a_cursor_goes_on_where_its_page_ended() {
    let mut entries = entries(PAGE_MAX + 2);
    let first = pages(&entries, "tools", None).expect("the first page");
    assert_eq!(first["tools"].as_array().map(Vec::len), Some(PAGE_MAX));
    let cursor = first["nextCursor"].as_str().expect("there is more");
    entries.remove(0);
    let second = pages(&entries, "tools", Some(cursor)).expect("the second page");
    assert_eq!(second["tools"][0]["name"], format!("t{PAGE_MAX}"));
    assert_eq!(second.get("nextCursor"), None);
    assert_eq!(pages(&entries, "prompts", Some(cursor)), Err(-32602));
    entries.truncate(10);
    assert_eq!(pages(&entries, "tools", Some(cursor)), Err(-32602));
    for garbage in ["", "zzz", "%", "dG9vbHM"] {
        assert_eq!(pages(&entries, "tools", Some(garbage)), Err(-32602), "{garbage}");
    }
}

// ---- sessions

#[tokio::test]
async fn at_the_bound_the_longest_idle_session_makes_room() {
    let sessions = Sessions::new();
    let mut opened = Vec::new();
    for _ in 0..SESSIONS_MAX {
        opened.push(sessions.create_session().await.expect("there is room"));
    }
    assert!(sessions.admits());
    let (latest, _transport) = sessions.create_session().await.expect("an idle one makes room");
    let (first, second) = (&opened[0].0, &opened[1].0);
    assert_eq!(sessions.has_session(first).await.ok(), Some(false));
    assert_eq!(sessions.has_session(second).await.ok(), Some(true));
    assert_eq!(sessions.has_session(&latest).await.ok(), Some(true));
    assert!(!sessions.owned(&latest, "ada"), "nobody owns what was not initialized");
}

#[tokio::test]
async fn an_idle_session_is_closed_unless_a_stream_is_open() {
    let sessions = Sessions::new();
    let (idle, _idle) = sessions.create_session().await.expect("there is room");
    let (held, _held) = sessions.create_session().await.expect("there is room");
    let stream = sessions.open(&held);
    let later = Instant::now() + IDLE_MAX;
    sessions.close_idle(Instant::now()).await;
    assert_eq!(sessions.count(), 2);
    sessions.close_idle(later).await;
    assert_eq!(sessions.has_session(&idle).await.ok(), Some(false));
    assert_eq!(sessions.has_session(&held).await.ok(), Some(true));
    drop(stream);
    sessions.close_idle(Instant::now() + IDLE_MAX).await;
    assert_eq!(sessions.count(), 0);
}
