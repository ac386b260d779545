//! Tools that are found by name: two are listed, and a call by name is a call of the named tool in every respect.

use serde_json::{Value, json};

use super::names;
use crate::{
    harness::{node, python, temp},
    record,
    speech::{Connection, ask, call, event, keyed, result},
    upstream::{Upstream, serve},
};

const ADD: &str = r#"{"name":"add_numbers","description":"Adds two numbers","inputSchema":{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"x-kept":1.50},"outputSchema":{"type":"object","required":["sum"]}}"#;

fn config(upstream: &Upstream) -> String {
    format!("[tools]\ncatalogue = \"search\"\ndeny = [\"*_secret\"]\n{}", upstream.table("up", ""))
}

fn by_name(name: &str, arguments: &Value) -> Value {
    json!({"name": name, "arguments": arguments})
}

#[test]
fn a_call_by_name_is_a_call_of_that_tool() {
    let data = temp();
    let upstream = Upstream::new(&[ADD, "other", "the_secret"]);
    upstream.write("add_numbers.result", r#"{"content":[],"structuredContent":{"sum":1.50}}"#);
    let server = serve(data.path(), &config(&upstream));
    assert_eq!(names(&ask(&server, "tools/list", json!({}))), ["tool_search", "tool_call"]);
    let found = result(&server, "tool_search", json!({"query": "add numbers", "limit": 3}));
    let found = &found["structuredContent"];
    assert_eq!(found["tools"][0]["name"], "up_add_numbers", "{found}");
    assert_eq!(found["tools"][0]["inputSchema"]["x-kept"], 1.5, "{found}");
    let contract = found["tools"][0]["contract"].as_str().expect("a contract").to_owned();
    let all = result(&server, "tool_search", json!({"query": "", "limit": 100}))["structuredContent"].clone();
    assert!(!all.to_string().contains("secret") && all["of"].as_u64() > Some(40), "{all}");
    assert!(!all["tools"].to_string().contains("\"tool_call\""), "those that find others are not found");

    let keyed = |key: &str, arguments: Value| keyed("tool_call", &by_name("up_add_numbers", &arguments), key);
    let first = ask(&server, "tools/call", keyed("k", json!({"a": 1})));
    assert_eq!(first["result"]["structuredContent"]["sum"], 1.5, "{first}");
    assert_eq!(first["result"]["_meta"]["io.cairn/contract"], contract.as_str(), "{first}");
    let again = ask(&server, "tools/call", keyed("k", json!({"a": 1})));
    assert_eq!(again["result"]["_meta"]["io.cairn/replayed"], true, "{again}");
    assert_eq!(event(&again), event(&first));
    // The key is that of the named tool, however it is called.
    let direct = crate::speech::keyed("up_add_numbers", &json!({"a": 1}), "k");
    assert_eq!(event(&ask(&server, "tools/call", direct)), event(&first));
    assert_eq!(upstream.calls(), [r#"add_numbers {"a": 1}"#]);

    let unfit = result(&server, "tool_call", by_name("up_add_numbers", &json!({"a": "one"})));
    assert_eq!(unfit["_meta"]["io.cairn/error"]["code"], "invalid_argument", "{unfit}");
    assert!(unfit["structuredContent"].is_null(), "the form is the tool's own: {unfit}");
    let own = result(&server, "tool_call", by_name("queue_stats", &json!({})));
    assert_eq!(own["structuredContent"]["success"], true, "{own}");
    for name in ["up_the_secret", "nothing", "tool_call"] {
        let answer = ask(&server, "tools/call", call("tool_call", &by_name(name, &json!({}))));
        assert_eq!(answer["error"]["code"], -32602, "{name}: {answer}");
    }
    for arguments in [json!({}), json!({"name": 7}), json!({"name": "up_other", "arguments": []})] {
        let answer = ask(&server, "tools/call", call("tool_call", &arguments));
        assert_eq!(answer["error"]["code"], -32602, "{arguments}: {answer}");
    }
    let task = json!({"task_id": "t", "task_type": "tool:tool_call", "payload": {"name": "up_other"}});
    let refused = result(&server, "task_submit", task);
    assert_eq!(refused["structuredContent"]["error"]["code"], "invalid_argument", "{refused}");

    // Progress of the named tool is that of the call.
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let mut params = call("tool_call", &by_name("up_other", &json!({})));
    params["_meta"] = json!({"progressToken": "p"});
    let message = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params});
    let reply = session.ask(&message).expect("the server answers");
    assert!(reply.text().contains("notifications/progress"), "{}", reply.text());
    assert!(server.stop().success());
    let events = record::check(data.path());
    assert_eq!(record::endings(&events, "tool_call").len(), 0, "no call is recorded under this name");
    assert_eq!(record::endings(&events, "up_add_numbers").len(), 2);
}

#[test]
fn clients_of_other_makes_find_and_call() {
    let data = temp();
    let upstream = Upstream::new(&[ADD, "other"]);
    upstream.write(
        "add_numbers.result",
        r#"{"content":[{"type":"text","text":"two"}],"structuredContent":{"sum":2}}"#,
    );
    let server = serve(data.path(), &config(&upstream));
    let plan = json!({"call": call("tool_call", &by_name("up_add_numbers", &json!({"a": 1})))}).to_string();
    let url = server.mcp();
    for said in [
        node("drive.mjs", &["client", "auto", &url, &plan]).succeeded(),
        node("drive.mjs", &["client", "legacy", &url, &plan]).succeeded(),
        node("drive.mjs", &["sdk", "", &url, &plan]).succeeded(),
        python("drive.py", &["auto", &url, &plan]).succeeded(),
    ] {
        let seen: Value = serde_json::from_str(&said).unwrap_or_else(|err| panic!("{err}: {said}"));
        assert_eq!(seen["tools"], json!(["tool_search", "tool_call"]), "{seen}");
        assert!(seen["called"].to_string().contains("two"), "{seen}");
    }
    assert!(server.stop().success());
    assert_eq!(record::endings(&record::check(data.path()), "up_add_numbers").len(), 4);
}
