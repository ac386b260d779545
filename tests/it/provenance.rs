//! The provenance tools over MCP, and the exports they link to.
//!
//! Invariant: what a tool answers of a name is what an auditor finds under it.

use serde_json::{Value, json};

use crate::harness::{Server, cairn, run, temp};

/// Calls a tool; its structured output.
fn call(server: &Server, tool: &str, arguments: Value) -> Value {
    let ran = run(cairn(&["call", tool, &arguments.to_string(), "--url", &server.url]));
    serde_json::from_str(ran.stdout.trim()).unwrap_or_else(|err| panic!("{err}: {}", ran.stdout))
}

#[test]
fn an_agent_asks_what_happened_and_checks_it() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    call(&server, "tools_list_categories", json!({}));
    let query = json!({"kind": "call.succeeded", "tool": "tools_list_categories"});
    let found = call(&server, "provenance_query", query);
    assert_eq!((&found["total_count"], &found["has_more"]), (&json!(1), &json!(false)));
    let ended = found["events"][0]["cid"].clone();
    let event = call(&server, "provenance_get", json!({"cid": ended, "include_content": true}));
    assert_eq!(event["type"], "event");
    assert_eq!(event["value"]["pay"][0]["content"]["isError"], Value::Null);
    let walk = call(&server, "provenance_trace", json!({"cid": ended}));
    let kinds: Vec<&Value> = walk["nodes"].as_array().expect("nodes").iter().map(|n| &n["type"]).collect();
    assert_eq!(kinds, ["event", "payload", "contract", "event", "payload"]);
    let receipt = call(&server, "provenance_receipt", json!({"cid": ended}));
    assert_eq!(receipt["receipt"]["cid"], ended);
    for scope in [json!({"cid": ended}), json!({"from_seq": 2, "to_seq": 4}), json!({})] {
        assert_eq!(call(&server, "provenance_verify", scope)["verified"], true);
    }
    let export = call(&server, "provenance_export", json!({"cid": ended, "format": "jsonl"}));
    assert_eq!(export["count"], 2);
    let uri = export["uri"].as_str().expect("a uri");
    let path = &uri[uri.find("/v1/").expect("a path")..];
    assert_eq!(server.get(path).text().lines().count(), 2);
    for (tool, arguments, code) in [
        (
            "provenance_get",
            json!({"cid": "bafyreifxj6z7iilrj7uvv63c76hp4pcjjezoii4htax23bubtodya6ilxm"}),
            "not_found",
        ),
        ("provenance_get", json!({"cid": "hello"}), "invalid_argument"),
        ("provenance_query", json!({"kind": "nosuch"}), "invalid_argument"),
        ("provenance_query", json!({"cursor": "AAAA"}), "invalid_argument"),
        ("provenance_query", json!({"limit": 1001}), "invalid_argument"),
        ("provenance_query", json!({"colour": "blue"}), "invalid_argument"),
        ("provenance_export", json!({"subject": "nobody"}), "not_found"),
    ] {
        let answer = call(&server, tool, arguments);
        assert_eq!(
            (&answer["success"], &answer["error"]["code"]),
            (&json!(false), &json!(code)),
            "{tool}: {answer}"
        );
    }
    assert!(server.stop().success());
}
