//! Claims about the MCP language that need no router: what is read, what is added, what is listed.

mod doors;

use std::{borrow::Cow, time::Instant};

use bytes::Bytes;
use serde_json::{Value, json, value::RawValue};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{finish, finish_error},
    envelope::{self, Incoming, Message},
    handler::check_shape,
    list::{PAGE_MAX, page},
    outlet::{Outlet, Streams, event},
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

// ---- streams

/// The stream of a session that belongs to its requests with this number.
fn told(streams: &std::sync::Arc<Streams>, stream: u64) -> Outlet {
    Outlet::Streams(streams.clone(), stream)
}

fn text(event: Option<Bytes>) -> String {
    String::from_utf8(event.expect("an event").into()).expect("events are text")
}

#[tokio::test]
async fn a_message_is_one_line_of_its_event() {
    let message = "{\n  \"content\" : [],\r\n  \"s\": \"a\\nb\"\n}";
    let line = message.replace(['\n', '\r'], " ");
    assert_eq!(event(message.to_owned()), format!("data: {line}\n\n"));
    let streams = std::sync::Arc::new(Streams::new());
    let mut reading = streams.open(7);
    told(&streams, 7).say(message.to_owned()).await;
    assert_eq!(text(reading.next().await), "data: \nid: 0/7\nretry: 3000\n\n");
    assert_eq!(text(reading.next().await), format!("data: {line}\nid: 1/7\n\n"));
}

#[tokio::test]
async fn a_stream_that_broke_goes_on_after_the_last_event_that_was_seen() {
    let streams = std::sync::Arc::new(Streams::new());
    let outlet = told(&streams, 1);
    drop(streams.open(1));
    for n in 1..=3 {
        outlet.say(n.to_string()).await;
    }
    streams.end(1);
    outlet.say("too late".to_owned()).await;
    let mut reading = streams.resume("1/1").expect("it is kept");
    assert_eq!(text(reading.next().await), "data: 2\nid: 2/1\n\n");
    assert_eq!(text(reading.next().await), "data: 3\nid: 3/1\n\n");
    assert_eq!(reading.next().await, None);
    for gone in ["1/1", "1/2", "x", "", "1/"] {
        assert!(streams.resume(gone).is_none(), "{gone}");
    }
}

#[tokio::test]
async fn what_belongs_to_no_request_is_told_on_one_stream_of_the_session() {
    let streams = std::sync::Arc::new(Streams::new());
    told(&streams, 1).tell("early".to_owned()).await;
    let mut first = streams.listen();
    assert_eq!(text(first.next().await), "data: early\nid: 1\n\n");
    let mut second = streams.listen();
    told(&streams, 1).tell("once".to_owned()).await;
    assert_eq!(text(first.next().await), "data: once\nid: 2\n\n");
    drop(first);
    told(&streams, 1).tell("then".to_owned()).await;
    assert_eq!(text(second.next().await), "data: then\nid: 3\n\n");
    drop(second);
    told(&streams, 1).tell("missed".to_owned()).await;
    let mut third = streams.resume("2").expect("a session has its stream");
    assert_eq!(text(third.next().await), "data: then\nid: 3\n\n");
    assert_eq!(text(third.next().await), "data: missed\nid: 4\n\n");
}

#[tokio::test]
async fn of_what_nobody_reads_the_last_events_are_kept() {
    let streams = std::sync::Arc::new(Streams::new());
    for n in 0..1_000 {
        told(&streams, 1).tell(n.to_string()).await;
    }
    let mut reading = streams.listen();
    assert_eq!(text(reading.next().await), "data: 968\nid: 969\n\n");
    for stream in 1..=100 {
        drop(streams.open(stream));
        streams.end(stream);
    }
    drop(streams.open(101));
    assert!(streams.resume("0/1").is_none() && streams.resume("0/100").is_some());
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

fn read(body: &str) -> Incoming {
    match envelope::read(body.as_bytes(), &caller()) {
        Ok(Message::Asks(asked)) => asked,
        Ok(Message::Answers(_)) => panic!("{body} asks nothing"),
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
    let body = |method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":"q","method":"{method}","params":{params}}}"#)
    };
    let check = |method: &str, params: &str| {
        let error = check_shape(&read(&body(method, params))).expect_err(params);
        assert_eq!(error.code, -32602, "{params}");
    };
    check("tools/call", "{}");
    check("tools/call", r#"{"name":7}"#);
    check("tools/call", r#"{"name":"t","arguments":[1,2]}"#);
    check("tools/call", r#"{"name":"t","arguments":null}"#);
    check("tools/list", r#"{"cursor":1}"#);
    check("resources/read", r#"{"uri":null}"#);
    check("completion/complete", r#"{"ref":{}}"#);
    check("initialize", "{}");
    let check = |params: &str| check_fault(&body("tools/call", params), "\"q\"", -32602, false);
    check(r#"{"name":"t","_meta":{"io.cairn/idempotency-key":""}}"#);
    let long = "k".repeat(129);
    check(&format!(r#"{{"name":"t","_meta":{{"io.cairn/idempotency-key":"{long}"}}}}"#));
    check(r#"{"name":"t","_meta":{"io.cairn/contract":"bafy"}}"#);
}

#[test]
fn a_removed_method_is_not_judged_by_its_params() {
    let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let level = |meta: &str| {
        read(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{{{meta}}}}}"#))
    };
    assert!(check_shape(&level(meta)).is_ok());
    assert!(check_shape(&level("")).is_err());
}

#[test]
fn the_router_gets_the_params_as_they_came() {
    let params = r#"{ "name":"t",  "arguments":{"n":1.50}, "_meta":{"progressToken":3} }"#;
    let asked = read(&format!(r#"{{"jsonrpc":"2.0","id":"a\"","method":"tools/call","params":{params}}}"#));
    assert_eq!(asked.params.get(), params);
    assert_eq!((asked.name.as_str(), &asked.meta.progress_token), ("t", &Some(json!(3))));
    assert_eq!((asked.field("arguments"), asked.field("uri")), (Some(r#"{"n":1.50}"#), None));
    assert_eq!((asked.id(), asked.missing().len()), (r#""a\"""#, 2));
}

#[test]
fn a_token_is_in_no_copy_of_the_params() {
    let params = r#"{"_meta":{"io.cairn/token":"hush"},"name":"t","arguments":{"a":1}}"#;
    let asked = read(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#));
    assert_eq!(asked.token.as_deref(), Some("hush"));
    assert_eq!(asked.params.get(), r#"{"_meta":{},"name":"t","arguments":{"a":1}}"#);
    assert_eq!(asked.field("arguments"), Some(r#"{"a":1}"#));
}

#[test]
fn an_answer_is_read_whatever_it_says() {
    let read = |body: &str| match envelope::read(body.as_bytes(), &caller()) {
        Ok(Message::Answers(answer)) => (answer.id, answer.outcome.map_err(|error| error.code)),
        _ => panic!("{body} is an answer"),
    };
    assert_eq!(read(r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#), ("7".into(), Ok(json!({"a": 1}))));
    assert_eq!(read(r#"{"jsonrpc":"2.0","id":"7","result":null}"#), (r#""7""#.into(), Ok(json!(null))));
    let error = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-1,"message":"no"}}"#;
    assert_eq!(read(error), ("7".into(), Err(-1)));
    assert_eq!(read(r#"{"jsonrpc":"2.0","error":"no"}"#), ("null".into(), Err(-32600)));
}

#[test]
fn capabilities_are_objects_of_objects() {
    let given = |capabilities: &str| {
        let meta = format!(r#"{{"io.modelcontextprotocol/clientCapabilities":{capabilities}}}"#);
        let params = format!(r#"{{"name":"t","_meta":{meta}}}"#);
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
        read(&body).capabilities.map(|text| text.to_string())
    };
    assert_eq!(given("{}").as_deref(), Some("{}"));
    assert_eq!(given(r#"{"roots":{},"other":1}"#).as_deref(), Some(r#"{"other":1,"roots":{}}"#));
    for none in ["[]", "7", r#"{"roots":7}"#, r#"{"extensions":[]}"#] {
        assert_eq!(given(none), None, "{none}");
    }
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
        read(&body.to_string()).meta.clone()
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
    let (sessions, shutdown) = (Sessions::default(), CancellationToken::new());
    let create = || sessions.create("ada", &shutdown);
    let mut opened = Vec::new();
    for _ in 0..SESSIONS_MAX {
        opened.push(create().expect("there is room"));
    }
    let (latest, _) = create().expect("an idle one makes room");
    assert!(sessions.of(&opened[0].0, "ada").is_none() && opened[0].1.session.end.is_cancelled());
    assert!(sessions.of(&opened[1].0, "ada").is_some());
    assert!(sessions.of(&latest, "ada").is_some() && sessions.of(&latest, "eve").is_none());
    let ids = opened[1..].iter().map(|(id, _)| id).chain([&latest]);
    let held: Vec<_> = ids.map(|id| sessions.open(id)).collect();
    assert!(create().is_none(), "no session with an open stream makes room");
    drop(held);
    assert!(create().is_some());
}

#[tokio::test]
async fn an_idle_session_is_closed_unless_a_stream_is_open() {
    let (sessions, shutdown) = (Sessions::default(), CancellationToken::new());
    let create = || sessions.create("ada", &shutdown).expect("there is room");
    let ((idle, _), (held, _)) = (create(), create());
    let stream = sessions.open(&held);
    let later = Instant::now() + IDLE_MAX;
    sessions.close_idle(Instant::now());
    assert_eq!(sessions.count(), 2);
    sessions.close_idle(later);
    assert!(sessions.of(&idle, "ada").is_none() && sessions.of(&held, "ada").is_some());
    drop(stream);
    sessions.close_idle(Instant::now() + IDLE_MAX);
    assert_eq!(sessions.count(), 0);
}
