//! Calls from outside: keys at the same moment, full lanes, large content, long lists, and whose call it was.

use std::{collections::HashSet, process::Command, thread};

use cairn::event::Body;
use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp},
    record,
    speech::{Connection, ask, ask_at, call, event, keyed, modern, request},
    upstream::{Upstream, configure, serve},
};

fn code(answer: &Value) -> &Value {
    &answer["result"]["_meta"]["io.cairn/error"]["code"]
}

#[test]
fn one_of_many_calls_with_one_key_runs() {
    const CALLERS: usize = 16;
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let (url, params) = (server.url.as_str(), keyed("up_wait", &json!({}), "one"));
    let answers: Vec<Value> = thread::scope(|scope| {
        let callers: Vec<_> =
            (0..CALLERS).map(|_| scope.spawn(|| ask_at(url, "tools/call", params.clone()))).collect();
        upstream.reached("wait", 1);
        // All but the one that runs are told so at once; only then may it end.
        let (first, rest): (Vec<_>, Vec<_>) = {
            record::until("the refusals", || {
                (callers.iter().filter(|caller| caller.is_finished()).count() == CALLERS - 1).then_some(())
            });
            upstream.write("go", "");
            let answers = callers.into_iter().map(|caller| caller.join().expect("a caller only calls"));
            answers.partition(|answer| answer["result"]["isError"].is_null())
        };
        assert_eq!(first.len(), 1);
        rest.into_iter().chain(first).collect()
    });
    for refused in &answers[..CALLERS - 1] {
        assert_eq!(code(refused), "conflict", "{refused}");
        assert_eq!(refused["result"]["_meta"]["io.cairn/error"]["retryable"], true, "{refused}");
    }
    let again = ask(&server, "tools/call", params.clone());
    assert_eq!(event(&again), event(&answers[CALLERS - 1]));
    assert_eq!(upstream.calls().len(), 1);
    assert!(server.stop().success());
    assert_eq!(record::kinds(data.path(), "up_wait"), ["call.succeeded"]);
    record::check(data.path());
}

#[test]
fn a_full_lane_refuses_and_says_so() {
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let lane = "[router.lanes.upstream]\nconcurrency = 1\nqueue = 1\n";
    let server = serve(data.path(), &format!("{}{lane}", upstream.table("up", "")));
    let url = server.url.as_str();
    thread::scope(|scope| {
        let runs = scope.spawn(|| ask_at(url, "tools/call", call("up_wait", &json!({"n": 1}))));
        upstream.reached("wait", 1);
        let mut waits = Connection::open(&server.url).expect("the server listens");
        waits.send(&modern(1, "tools/call", call("up_wait", &json!({"n": 2}))));
        let started = |event: &cairn::event::Event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == "up_wait");
        record::until("the waiting call", || {
            (record::events(data.path()).iter().filter(|event| started(event)).count() == 2).then_some(())
        });
        let refused = ask(&server, "tools/call", call("up_wait", &json!({"n": 3})));
        assert_eq!(code(&refused), "resource_exhausted", "{refused}");
        upstream.write("go", "");
        let ran = runs.join().expect("a caller only calls");
        assert!(ran["result"]["isError"].is_null(), "{ran}");
        let waited = waits.reply().expect("the server answers").json();
        assert!(waited["result"]["isError"].is_null(), "{waited}");
    });
    assert!(server.stop().success());
    record::check(data.path());
    assert_eq!(upstream.calls().len(), 2);
}

#[test]
fn large_content_is_kept_in_parts_and_given_again_byte_for_byte() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let text = (0..120_000).map(|n| format!("{n:x} ")).collect::<String>();
    let answer = format!(r#"{{ "content":[{{"type":"text","text":"{text}"}}],"x":1.0e2 }}"#);
    upstream.write("tool.result", &answer);
    let config = upstream.table("up", "");
    let params = keyed("up_tool", &json!({"text": text}), "large");
    let server = serve(data.path(), &config);
    let first = ask(&server, "tools/call", params.clone());
    assert!(server.stop().success());
    let server = serve(data.path(), &config);
    let again = ask(&server, "tools/call", params);
    assert_eq!(first["result"]["content"], again["result"]["content"]);
    assert_eq!(event(&first), event(&again));
    assert!(server.stop().success());
    let events = record::check(data.path());
    let ending = &record::endings(&events, "up_tool")[0];
    assert_eq!(record::content(data.path(), &ending.fields().pay[0].cid), answer);
    let started = events.iter().find(|event| Some(event.cid()) == ending.fields().cause);
    let input = started.expect("an ending names its start").fields().pay[0].cid;
    assert_eq!(record::content(data.path(), &input), json!({"text": text}).to_string());
}

#[test]
fn a_long_list_comes_in_pages_that_hold_everything_once() {
    const TOOLS: usize = 400;
    let data = temp();
    let names: Vec<String> = (0..TOOLS).map(|n| format!("tool_{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let upstream = Upstream::new(&names);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut seen = Vec::new();
    let mut params = json!({});
    loop {
        let page = ask(&server, "tools/list", params)["result"].clone();
        let tools = page["tools"].as_array().unwrap_or_else(|| panic!("{page}"));
        seen.extend(tools.iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned));
        let Some(cursor) = page["nextCursor"].as_str() else {
            break;
        };
        params = json!({"cursor": cursor});
    }
    let distinct: HashSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "no tool comes twice");
    assert!(names.iter().all(|name| distinct.contains(&format!("up_{name}"))));
    let bad = ask(&server, "tools/list", json!({"cursor": "nonsense"}));
    assert_eq!(bad["error"]["code"], -32602, "{bad}");
}

#[test]
fn a_trace_is_kept_with_its_call_and_nonsense_is_not() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for trace in [good, "00-zz-b7ad6b7169203331-01"] {
        let mut params = call("test_simple_text", &json!({}));
        params["_meta"] = json!({"traceparent": trace});
        event(&ask(&server, "tools/call", params));
    }
    assert!(server.stop().success());
    let traces = record::check(data.path()).into_iter().filter_map(|event| match event.body() {
        Some(Body::CallStarted(facts)) => Some(facts.trace),
        _ => None,
    });
    assert_eq!(traces.collect::<Vec<_>>(), [Some(good.to_owned()), None]);
}

#[test]
fn a_token_says_whose_call_it_was_and_is_nowhere_to_be_found() {
    let data = temp();
    let token = |name: &str, scope: &str| {
        let mut command: Command = cairn(&["token", "add", name, "--scope", scope, "--data"]);
        command.arg(data.path());
        let said = run(command).succeeded();
        said.split_whitespace().max_by_key(|word| word.len()).expect("a token").to_owned()
    };
    let (ada, auditor) = (token("ada", "mcp:call"), token("iris", "audit:read"));
    let config = configure(data.path(), "[auth]\nmode = \"static\"\n");
    let server = Server::start(data.path(), &["--conformance-fixtures", "--config", &config]);
    let host = server.url.trim_start_matches("http://");
    let message = modern(1, "tools/call", call("test_simple_text", &json!({})));
    let post = |authorization: Option<String>| {
        let line = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
        let bytes = String::from_utf8(request(host, None, &message)).expect("a request is text");
        server.exchange(bytes.replacen("\r\n", &format!("\r\n{line}connection: close\r\n"), 1).as_bytes())
    };
    for (authorization, status) in [
        (None, 401),
        (Some("Bearer nonsense".to_owned()), 401),
        (Some(format!("Basic {ada}")), 401),
        (Some(format!("Bearer {auditor}")), 403),
        (Some(format!("Bearer {ada}")), 200),
    ] {
        let reply = post(authorization);
        assert_eq!(reply.status, status, "{}", reply.text());
        let challenge = reply.header("www-authenticate");
        assert_eq!(challenge.is_some(), status != 200);
        assert!(challenge.is_none_or(|challenge| challenge.contains("resource_metadata=")));
    }
    let list =
        |token: &str| server.send("GET", "/v1/events", &[("authorization", &format!("Bearer {token}"))], b"");
    assert_eq!((list(&ada).status, list(&auditor).status), (403, 200));
    for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        assert_eq!(server.get(path).json()["resource"], format!("{}/mcp", server.url), "{path}");
    }
    let mut server = server;
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    let events = record::check(data.path());
    let endings = record::endings(&events, "test_simple_text");
    assert_eq!(endings.len(), 1);
    assert!(endings[0].fields().actor.id.contains("ada"), "{:?}", endings[0].fields().actor);
    for token in [&ada, &auditor] {
        crate::bad_input::no_file_holds(data.path(), token);
        assert!(!server.process.errors().contains(token.as_str()));
    }
}

#[test]
fn requests_that_come_too_fast_are_told_when_to_come_back() {
    let data = temp();
    let config = configure(data.path(), "[server]\nrate_limit_per_second = 1\nrate_limit_burst = 3\n");
    let server = Server::start(data.path(), &["--config", &config]);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let replies =
        (0..10).map(|id| connection.ask(&modern(id, "tools/list", json!({}))).expect("the server answers"));
    let replies: Vec<_> = replies.collect();
    assert_eq!(replies[0].status, 200);
    let late = replies.iter().find(|reply| reply.status == 429).expect("ten are more than three");
    assert!(late.header("retry-after").is_some(), "{late:?}");
}
