//! The whole matrix of scopes, routes and builtin tools: each opens what it is said to open, and nothing else.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use super::{Principal, token};
use crate::{
    harness::temp,
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
