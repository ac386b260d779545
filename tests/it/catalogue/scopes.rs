//! The whole matrix of scopes, routes and builtin tools: each opens what it is said to open, and nothing else.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use super::{Principal, token};
use crate::{
    harness::{Server, temp},
    upstream::{Upstream, serve},
};

/// What each scope covers, beside itself.
const SETS: [(&str, &[&str]); 12] = [
    (
        "admin",
        &[
            "audit:read",
            "tasks:submit",
            "tasks:work",
            "tasks:admin",
            "workflows:read",
            "workflows:submit",
            "workflows:admin",
            "peers:use",
            "peers:admin",
            "tools:*",
        ],
    ),
    (
        "mcp:call",
        &[
            "tasks:submit",
            "tasks:work",
            "tasks:admin",
            "workflows:read",
            "workflows:submit",
            "workflows:admin",
            "peers:use",
            "tools:*",
        ],
    ),
    ("audit:read", &[]),
    ("tasks:submit", &[]),
    ("tasks:work", &[]),
    ("tasks:admin", &["tasks:submit", "tasks:work"]),
    ("workflows:read", &[]),
    ("workflows:submit", &["workflows:read"]),
    ("workflows:admin", &["workflows:submit", "workflows:read"]),
    ("peers:use", &[]),
    ("peers:admin", &["peers:use"]),
    ("tools:*", &[]),
];
/// Paths of the audit API.
const AUDIT: [&str; 5] = ["/v1/events", "/v1/state", "/v1/contracts", "/v1/followed", "/log/checkpoint"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The scope that each builtin tool names.
fn needed() -> BTreeMap<String, String> {
    let files = fs::read_dir(root().join("schemas/tools")).expect("the folder is there");
    let files = files.map(|file| file.expect("a file").path());
    let tools = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
    tools
        .map(|path| {
            let tool: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
            let (name, scope) = (&tool["name"], &tool["_meta"]["io.cairn/scope"]);
            let text = |value: &Value| {
                value.as_str().unwrap_or_else(|| panic!("{path:?} names no scope")).to_owned()
            };
            (text(name), text(scope))
        })
        .collect()
}

#[test]
fn every_builtin_tool_names_its_scope_where_it_is_documented() {
    let docs = fs::read_to_string(root().join("docs/tools.md")).expect("the page is there");
    for (name, scope) in needed() {
        let section = docs
            .split_once(&format!("\n### `{name}`\n"))
            .unwrap_or_else(|| panic!("{name} has no section"))
            .1;
        let section = section.split("\n### ").next().unwrap_or_default();
        assert!(section.contains(&format!(" Scope: `{scope}`. ")), "{name}: {scope}");
    }
}

#[test]
fn each_scope_opens_its_routes_and_lists_and_calls_its_tools() {
    let data = temp();
    let upstream = Upstream::new(&["alpha"]);
    let tokens = SETS.map(|(scope, _)| token(data.path(), &scope.replace(['*', ':'], "-"), &[scope]));
    let server = serve(data.path(), &format!("[auth]\nmode = \"static\"\n{}", upstream.table("up", "")));
    let needed = needed();
    for ((scope, sets), token) in SETS.into_iter().zip(&tokens) {
        let who = Principal::new(&server, token);
        let has = |needs: &str| needs == scope || sets.contains(&needs);
        for path in AUDIT {
            let status = server.send("GET", path, &[("authorization", &who.bearer)], b"").status;
            assert_eq!(status, if has("audit:read") { 200 } else { 403 }, "{scope}: {path}");
        }
        if scope == "audit:read" {
            let refused = server.send("POST", "/mcp", &[("authorization", &who.bearer)], b"{}");
            assert_eq!(refused.status, 403, "who may only read calls nothing");
            continue;
        }
        let listed = who.lists();
        for (name, needs) in
            needed.iter().filter(|(name, _)| !["tool_call", "tool_search"].contains(&name.as_str()))
        {
            let opens = needs == "mcp:call" || has(needs);
            assert_eq!(listed.contains(name), opens, "{scope}: {name} needs {needs}");
            // Nothing is done: what is let through does not fit the schema.
            let code = who.code(name, json!({"no such argument": 1}));
            let expected = if opens { "invalid_argument" } else { "permission_denied" };
            assert_eq!(code, expected, "{scope}: {name} needs {needs}");
        }
        assert_eq!(listed.iter().any(|name| name == "up_alpha"), has("tools:*"), "{scope}");
        let called = who.call("up_alpha", json!({}));
        assert_eq!(called["error"].is_null(), has("tools:*"), "{scope}: {called}");
        let read = who.ask("resources/read", json!({"uri": "mem://one"}));
        assert_eq!(read["error"].is_null(), has("tools:*"), "{scope}: {read}");
        let prompts = who.ask("prompts/list", json!({}));
        let prompts = prompts["result"]["prompts"].as_array().map_or(0, Vec::len);
        assert_eq!(prompts, usize::from(has("tools:*")), "{scope}");
    }
    // A refused call is on record, with its code.
    let admin = &tokens[0];
    let events = server.send(
        "GET",
        "/v1/events?kind=call.refused&limit=1000",
        &[("authorization", &format!("Bearer {admin}"))],
        b"",
    );
    assert!(events.text().contains("permission_denied"));
    assert!(server.stop().success());
    crate::record::check(data.path());
}

/// What a call answers that asks, in a session, to be run as a task.
fn as_task(server: &Server, token: &str, tool: &str, arguments: &Value) -> Value {
    let bearer = format!("Bearer {token}");
    let send = |session: &str, message: &Value| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-session-id", session),
        ];
        let headers = &headers[..if session.is_empty() { 3 } else { 4 }];
        server.send("POST", "/mcp", headers, message.to_string().as_bytes())
    };
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let greeted = send("", &hello);
    let session = greeted.header("mcp-session-id").expect("a session").to_owned();
    send(&session, &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let params = json!({"name": tool, "arguments": arguments, "task": {}});
    let answer =
        send(&session, &json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}));
    let text = answer.text();
    // As a stream of events, the answer is the last one that holds anything.
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).rfind(|data| data.len() > 2);
    serde_json::from_str(data.unwrap_or(text)).unwrap_or_else(|err| panic!("{err}: {text}"))
}

#[test]
fn what_runs_later_names_no_tool_that_its_submitter_does_not_see() {
    let data = temp();
    let upstream = Upstream::new(&["alpha"]);
    let (part, whole) = (
        token(data.path(), "part", &["tasks:submit", "workflows:submit"]),
        token(data.path(), "whole", &["mcp:call"]),
    );
    let server = serve(
        data.path(),
        &format!("[auth]\nmode = \"static\"\n[tools]\ncatalogue = \"search\"\n{}", upstream.table("up", "")),
    );
    let plan = json!({"workflow_id": "w", "name": "n", "steps": [{"step_id": "s", "action": "up_alpha"}]});
    let naming = [
        ("tools_dispatch", json!({"tool": "up_alpha", "params": {}})),
        ("workflow_submit", plan),
        ("tool_call", json!({"name": "up_alpha", "arguments": {}})),
    ];
    for (tool, input) in &naming {
        let submitted = json!({"task_id": tool, "task_type": format!("tool:{tool}"), "payload": input});
        let (part, whole) = (Principal::new(&server, &part), Principal::new(&server, &whole));
        assert!(!part.code("task_submit", submitted.clone()).is_empty(), "{tool}");
        let allowed = whole.call("task_submit", submitted);
        let allowed = allowed["result"]["structuredContent"]["success"] == true;
        assert_eq!(allowed, *tool != "tool_call", "whoever has the scope may, and names the tool itself");
    }
    for (tool, input) in &naming {
        let refused = as_task(&server, &part, tool, input);
        assert_eq!(refused["error"]["code"], -32601, "{tool}: {refused}");
    }
    let made = as_task(&server, &whole, "tools_dispatch", &naming[0].1);
    assert!(made["result"]["task"]["taskId"].is_string(), "{made}");
    assert!(server.stop().success());
    crate::record::check(data.path());
}
