//! Upstream servers: what passes through unchanged, what is followed, and what bad days look like in the log.

use std::fs;

use cairn::event::{Body, body::Failure};
use serde_json::{Value, json};

use crate::{
    harness::{Server, needs, temp},
    record::{self, until},
    speech::{Connection, ask, call, event, keyed, modern, result},
    upstream::{Upstream, serve},
};

/// A definition, and a result, that any typed reader would change.
const ODD: &str =
    r#"{ "name":"odd",  "inputSchema":{"type":"object","x-n":1.0e2},"unknown":[1,2.50,"\u00e9"]}"#;
const ODD_RESULT: &str =
    r#" "content" : [ ],"n":1.0e2 , "u":"\u00e9","unknown":[ {} ],"big":12345678901234567890123.10"#;

fn transparent(upstream: &Upstream) -> String {
    upstream.table("up", "prefix = \"\"")
}

fn connect(server: &Server) -> Connection {
    Connection::open(&server.url).expect("the server listens")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("answers are text")
}

/// The code of a domain error.
fn code(result: &Value) -> &str {
    assert_eq!(result["isError"], true, "{result}");
    result["_meta"]["io.cairn/error"]["code"].as_str().unwrap_or_else(|| panic!("{result}"))
}

#[test]
fn every_byte_of_a_tool_and_its_result_passes_in_both_eras() {
    let data = temp();
    let upstream = Upstream::new(&[ODD]);
    upstream.write("odd.result", &format!("{{{ODD_RESULT}}}"));
    let server = serve(data.path(), &transparent(&upstream));
    let mut session = connect(&server);
    session.initialize();
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}});
    let called =
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call("odd", &json!({}))});
    for (message, part) in [(list, ODD), (called, ODD_RESULT)] {
        let reply = session.ask(&message).expect("the server answers");
        assert!(text(&reply.body).contains(part), "{}", reply.text());
    }
    let mut stateless = connect(&server);
    for (message, part) in [
        (modern(1, "tools/list", json!({})), ODD),
        (modern(2, "tools/call", call("odd", &json!({}))), ODD_RESULT),
    ] {
        let reply = stateless.ask(&message).expect("the server answers");
        assert!(text(&reply.body).contains(part), "{}", reply.text());
    }
    assert!(server.stop().success());
    let kept = record::endings(&record::check(data.path()), "odd");
    let pay = kept[0].fields().pay[0].cid;
    assert_eq!(record::content(data.path(), &pay), format!("{{{ODD_RESULT}}}"));
}

#[test]
fn names_are_prefixed_or_passed_and_lists_choose() {
    let data = temp();
    let first = Upstream::new(&["alpha", "beta", "list_a", "list_b"]);
    let second = Upstream::new(&["alpha", "gamma"]);
    let third = Upstream::new(&["alpha"]);
    let config = [
        first.table("one", "enable = [\"alpha\", \"list_*\"]\ndisable = [\"list_b\"]"),
        second.table("two", "prefix = \"\""),
        third.table("three", "prefix = \"\""),
    ];
    let server = serve(data.path(), &config.concat());
    let answer = ask(&server, "tools/list", json!({}));
    let tools = answer["result"]["tools"].as_array().expect("a list");
    let names: Vec<_> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
    for (name, offered) in [
        ("one_alpha", true),
        ("one_beta", false),
        ("one_list_a", true),
        ("one_list_b", false),
        ("alpha", true),
        ("gamma", true),
    ] {
        let times = names.iter().filter(|own| **own == name).count();
        assert_eq!(times, usize::from(offered), "{name} in {names:?}");
    }
    result(&server, "alpha", json!({"to": "two"}));
    result(&server, "one_alpha", json!({"to": "one"}));
    assert_eq!(first.calls(), [r#"alpha {"to": "one"}"#]);
    assert_eq!(second.calls(), [r#"alpha {"to": "two"}"#]);
    assert!(third.calls().is_empty(), "the earlier source has the name");
    let hidden = ask(&server, "tools/call", call("one_beta", &json!({})));
    assert_eq!(hidden["error"]["code"], -32602, "{hidden}");
}

#[test]
fn a_changed_definition_is_a_new_contract_that_everyone_hears_of() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &transparent(&upstream));
    let meta = |result: &Value| result["_meta"]["io.cairn/contract"].as_str().map(str::to_owned);
    let old = meta(&result(&server, "tool", json!({}))).expect("a result names its contract");

    let mut session = connect(&server);
    session.initialize();
    session.listen();
    let mut listener = connect(&server);
    listener.send(&modern(1, "subscriptions/listen", json!({"notifications": {"toolsListChanged": true}})));
    assert_eq!(listener.head().expect("the server answers").status, 200);
    listener.until("notifications/subscriptions/acknowledged");

    upstream.offer(&[r#"{"name":"tool","description":"new","inputSchema":{"type":"object"}}"#, "added"]);
    session.until("notifications/tools/list_changed");
    listener.until("notifications/tools/list_changed");
    let new = meta(&result(&server, "tool", json!({}))).expect("a result names its contract");
    assert_ne!(old, new);
    let pinned = |contract: &str| {
        let mut params = call("tool", &json!({}));
        params["_meta"] = json!({"io.cairn/contract": contract});
        ask(&server, "tools/call", params)["result"].clone()
    };
    assert_eq!(pinned(&new)["isError"], Value::Null);
    let refused = pinned(&old);
    assert_eq!(code(&refused), "failed_precondition");
    let said = refused.to_string();
    assert!(said.contains(&old) && said.contains(&new), "both contracts are named: {said}");
    assert_eq!(upstream.calls().len(), 3, "the refused call ran nothing");

    upstream.offer(&["added"]);
    listener.until("notifications/tools/list_changed");
    assert!(server.stop().success());
    let events = record::check(data.path());
    let published = events.iter().filter_map(|event| match event.body() {
        Some(Body::ContractPublished(facts)) if facts.name == "tool" => Some(facts),
        _ => None,
    });
    let chain: Vec<_> = published
        .map(|facts| (facts.contract.to_string(), facts.prev.map(|prev| prev.to_string())))
        .collect();
    assert_eq!(chain, [(old.clone(), None), (new, Some(old))]);
    let retired = |event: &cairn::event::Event| matches!(event.body(), Some(Body::ContractRetired(facts)) if facts.name == "tool");
    assert!(events.iter().any(retired), "a tool that is gone is retired");
    assert_eq!(
        record::kinds(data.path(), "tool"),
        ["call.succeeded", "call.succeeded", "call.succeeded", "call.refused"]
    );
}

#[test]
fn three_outcomes_stay_apart() {
    let data = temp();
    let safe = r#"{"name":"safe","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#;
    let upstream = Upstream::new(&["protocol", "tool", "transport", safe]);
    upstream.write("tool.result", r#"{"content":[{"type":"text","text":"no"}],"isError":true,"x":1}"#);
    let server = serve(data.path(), &transparent(&upstream));

    let protocol = ask(&server, "tools/call", call("protocol", &json!({})));
    assert_eq!(protocol["error"]["code"], -32042, "{protocol}");
    assert_eq!(protocol["error"]["data"]["kept"], 1.5, "{protocol}");
    event(&protocol);
    let tool = result(&server, "tool", json!({}));
    assert_eq!((&tool["isError"], &tool["x"]), (&json!(true), &json!(1)), "{tool}");
    assert!(tool.get("structuredContent").is_none(), "the tool's own error is not replaced: {tool}");
    upstream.write("die", "");
    // The first may have been done, and is not safe to do again; the others were not begun, or are safe.
    let unknown = result(&server, "transport", json!({}));
    let error = &unknown["_meta"]["io.cairn/error"];
    assert_eq!((code(&unknown), &error["retryable"]), ("unavailable", &json!(false)), "{unknown}");
    assert_eq!(error["message"], "upstream up ended before it answered");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("may have taken effect")), "{error}");
    let mut count = 0;
    upstream.write("away", "");
    let mut passes = |tool: &str| {
        count += 1;
        let key = format!("{tool}/{count}");
        let answer = ask(&server, "tools/call", keyed(tool, &json!({}), &key));
        let error = &answer["result"]["_meta"]["io.cairn/error"];
        (error["retryable"] == true).then_some(key)
    };
    until("a safe call that may be made again", || passes("safe"));
    let untaken = until("a call that nobody took", || passes("transport"));

    upstream.remove("die");
    upstream.remove("away");
    until("its key is good for a new try", || {
        let answer = ask(&server, "tools/call", keyed("transport", &json!({}), &untaken));
        (answer["result"]["isError"] != true).then_some(())
    });
    assert!(server.stop().success());
    let events = record::check(data.path());
    for (name, failure) in
        [("protocol", Failure::Protocol), ("tool", Failure::Tool), ("transport", Failure::Transport)]
    {
        let ending = &record::endings(&events, name)[0];
        assert_eq!(record::failure(ending), failure, "{name}");
    }
}

#[test]
fn a_hanging_upstream_is_told_to_stop_in_time() {
    let data = temp();
    let upstream = Upstream::new(&["wait", "other"]);
    let server = serve(data.path(), &upstream.table("up", "timeout_ms = 300"));
    assert_eq!(code(&result(&server, "up_wait", json!({}))), "deadline_exceeded");
    upstream.reached("cancelled", 1);
    assert_eq!(result(&server, "up_other", json!({}))["isError"], Value::Null);
    assert!(server.stop().success());
    let events = record::check(data.path());
    assert_eq!(record::failure(&record::endings(&events, "up_wait")[0]), Failure::Timeout);
}

#[test]
fn floods_garbage_and_second_answers_do_no_harm() {
    let data = temp();
    let python = needs("venv/bin/python");
    let odd = needs("../../src/runtime/upstream/tests/odd.py");
    let tools = ["flood", "garbage", "twice", "huge", "grow"];
    let config = format!(
        "[[upstream]]\nname = \"odd\"\ncommand = {python:?}\nargs = [{odd:?}, \"session\"]\nprefix = \"\"\n"
    );
    // The script offers one tool and answers to more; a copy offers them all.
    let offered =
        tools.map(|tool| format!("'{{\"name\":\"{tool}\",\"inputSchema\":{{\"type\":\"object\"}}}}'"));
    let script = fs::read_to_string(&odd).expect("the script is there");
    let script =
        script.replace("\ncancelled = []", &format!("\ntools += [{}]\ncancelled = []", offered.join(",")));
    let script = script.replace(r#"{"name":"grown"}"#, r#"{"name":"grown","inputSchema":{"type":"object"}}"#);
    let copy = data.path().join("odd.py");
    fs::write(&copy, script).expect("the directory can be written");
    let config = config.replace(&format!("{odd:?}"), &format!("{copy:?}"));
    let server = serve(data.path(), &config);

    assert_eq!(result(&server, "flood", json!({}))["isError"], Value::Null);
    assert_eq!(result(&server, "garbage", json!({"lines": 20}))["isError"], Value::Null);
    assert_eq!(result(&server, "twice", json!({}))["n"], 1);
    assert_eq!(result(&server, "flood", json!({}))["isError"], Value::Null);
    assert_eq!(code(&result(&server, "huge", json!({}))), "unavailable");
    until("the upstream's return", || (result(&server, "twice", json!({}))["n"] == 1).then_some(()));
    assert_eq!(code(&result(&server, "garbage", json!({"lines": 100_000}))), "unavailable");
    until("the upstream's return", || (result(&server, "twice", json!({}))["n"] == 1).then_some(()));
    result(&server, "grow", json!({}));
    until("the grown tool", || {
        ask(&server, "tools/list", json!({})).to_string().contains("grown").then_some(())
    });
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn resources_prompts_and_completions_are_recorded_by_method() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let listed = ask(&server, "resources/list", json!({}));
    assert!(listed.to_string().contains("mem://one"), "{listed}");
    let contents =
        |uri: &str| ask(&server, "resources/read", json!({"uri": uri}))["result"]["contents"][0].clone();
    assert_eq!(contents("mem://one")["text"], "contents");
    assert_eq!(contents("mem://else")["uri"], "mem://else");
    let got = ask(&server, "prompts/get", json!({"name": "up_greet", "arguments": {"who": "Ada"}}));
    assert_eq!(got["result"]["messages"][0]["content"]["text"], "Hello, Ada!");
    let reference = json!({"type": "ref/prompt", "name": "up_greet"});
    let argument = json!({"name": "who", "value": "A"});
    let completed = ask(&server, "completion/complete", json!({"ref": reference, "argument": argument}));
    assert_eq!(completed["result"]["completion"]["values"], json!(["A-done"]));
    for answer in [&got, &completed] {
        event(answer);
    }
    assert!(server.stop().success());
    let started = record::check(data.path()).into_iter().filter_map(|event| match event.body() {
        Some(Body::CallStarted(facts)) => Some((facts.method, facts.name, facts.source)),
        _ => None,
    });
    let started: Vec<_> = started.collect();
    let expected = [
        ("resources/read", ""),
        ("resources/read", ""),
        ("prompts/get", "up_greet"),
        ("completion/complete", ""),
    ];
    let expected = expected.map(|(method, name)| (method.to_owned(), name.to_owned(), "up".to_owned()));
    assert_eq!(started, expected);
}

#[test]
fn a_client_that_goes_away_cancels_its_call() {
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let kinds = || record::kinds(data.path(), "up_wait");

    let mut stateless = connect(&server);
    stateless.send(&modern(1, "tools/call", call("up_wait", &json!({}))));
    upstream.reached("wait", 1);
    drop(stateless);
    until("the first cancellation", || (kinds() == ["call.cancelled"]).then_some(()));
    upstream.reached("cancelled", 1);

    let mut session = connect(&server);
    session.initialize();
    session.send(
        &json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call("up_wait", &json!({}))}),
    );
    upstream.reached("wait", 2);
    let mut other = connect(&server);
    other.session.clone_from(&session.session);
    let params = json!({"requestId": 7, "reason": "enough"});
    let note = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
    assert_eq!(other.ask(&note).expect("the server answers").status, 202);
    until("the second cancellation", || (kinds() == ["call.cancelled"; 2]).then_some(()));
    upstream.reached("cancelled", 2);

    // A session that is deleted takes its calls with it.
    let mut leaving = connect(&server);
    leaving.initialize();
    leaving.send(
        &json!({"jsonrpc": "2.0", "id": 8, "method": "tools/call", "params": call("up_wait", &json!({}))}),
    );
    upstream.reached("wait", 3);
    let session = leaving.session.clone().expect("a session was opened");
    let deleted = server.send("DELETE", "/mcp", &[("mcp-session-id", &session)], b"");
    assert_eq!(deleted.status, 204);
    until("the third cancellation", || (kinds() == ["call.cancelled"; 3]).then_some(()));

    // So does a server that is told to stop.
    let mut last = connect(&server);
    last.send(&modern(1, "tools/call", call("up_wait", &json!({}))));
    upstream.reached("wait", 4);
    assert!(server.stop().success());
    record::check(data.path());
    assert_eq!(kinds(), ["call.cancelled"; 4]);
}

#[test]
fn progress_reaches_callers_of_both_eras() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut params = call("up_tool", &json!({}));
    params["_meta"] = json!({"progressToken": "mine"});
    let mut session = connect(&server);
    session.initialize();
    let mut stateless = connect(&server);
    for (connection, message) in [
        (&mut session, json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params.clone()})),
        (&mut stateless, modern(1, "tools/call", params)),
    ] {
        let reply = connection.ask(&message).expect("the server answers");
        let said = reply.text();
        // As the upstream wrote it, spaces and numbers included.
        let progress = r#""progressToken": "mine", "progress": 1, "total": 2"#;
        assert!(said.contains("notifications/progress") && said.contains(progress), "{said}");
        assert!(reply.json()["result"]["content"].is_array(), "{said}");
    }
}
