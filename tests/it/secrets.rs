//! Marked secrets at the door: whatever form a schema and a call take, no file and no line of the log holds one.
//!
//! Invariants:
//! - every form is tried with a secret of its own, and every file of the directory is searched for it, after the node has
//!   stopped as before;
//! - what is called as it should be reaches its tool whole.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::{
    harness::{cairn, run, temp},
    record,
    speech::{Connection, call, modern, result},
    upstream::{Upstream, serve},
};

/// What each secret ends in: long enough not to stand anywhere by chance.
const MARK: &str = "-4815162342-hunter2";

/// Input schemas that mark `p`, by the keyword they do it with.
fn schemas() -> Vec<Value> {
    let s = json!({"type": "string", "writeOnly": true});
    let has_p = json!({"properties": {"p": s}});
    let with = |p: Value, more: Value| {
        let mut schema = json!({"type": "object", "properties": {"p": p, "u": {"type": "integer"}}});
        let more: Map<String, Value> = more.as_object().cloned().unwrap_or_default();
        schema.as_object_mut().expect("an object").extend(more);
        schema
    };
    let reference = |to: &str, more: Value| with(json!({"$ref": to}), more);
    vec![
        with(s.clone(), json!({})),
        with(json!({"type": "string", "x-secret": true}), json!({"additionalProperties": false})),
        with(json!({"type": "string", "format": "password"}), json!({"required": ["p"]})),
        reference("#/$defs/s", json!({"$defs": {"s": s}})),
        reference("#/$defs/a~1b%20c", json!({"$defs": {"a/b c": s}})),
        reference("#sec", json!({"$defs": {"s": {"$anchor": "sec", "type": "string", "writeOnly": true}}})),
        reference("s#/$defs/s", json!({"$id": "https://x.example/s", "$defs": {"s": s}})),
        reference(
            "t",
            json!({"$id": "https://x.example/s", "$defs": {"t": {"$id": "t", "writeOnly": true}}}),
        ),
        with(
            json!({"$dynamicRef": "#dd"}),
            json!({"$defs": {"s": {"$dynamicAnchor": "dd", "writeOnly": true}}}),
        ),
        with(json!({}), json!({"dependentSchemas": {"u": has_p}})),
        with(json!({}), json!({"allOf": [{"anyOf": [{}, has_p]}]})),
        with(json!({}), json!({"if": {"required": ["u"]}, "then": has_p})),
        with(json!({}), json!({"not": {"not": has_p}})),
        json!({"type": "object", "patternProperties": {"^p$": s}}),
        json!({"type": "object", "additionalProperties": s}),
        json!({"type": "object", "unevaluatedProperties": s}),
        json!({"type": "object", "propertyNames": {"writeOnly": true}}),
        json!({"type": "object", "x-unknown": has_p}),
        reference("https://nowhere.example/s", json!({})),
        with(json!({"type": "string", "writeOnly": "true"}), json!({})),
        (0..60).fold(has_p, |schema, _| json!({"type": "object", "allOf": [schema]})),
    ]
}

/// Calls that bring `secret` to `tool`: the method's `params`.
fn calls(tool: &str, secret: &str, form: usize) -> Option<Value> {
    let p = json!({"p": secret});
    let text = p.to_string();
    let id = format!("{tool}-{form}");
    let task = |more: Value| {
        let mut task = json!({"task_id": id, "task_type": format!("tool:{tool}")});
        task.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        call("task_submit", &task)
    };
    let flow =
        |steps: Value| call("workflow_submit", &json!({"workflow_id": id, "name": "w", "steps": steps}));
    let every = |what: &str, made: Value| {
        call("schedule_create", &json!({"schedule_id": id, "every_ms": 60_000, (what): made}))
    };
    let dispatch = |more: Value| {
        let mut given = json!({"tool": tool});
        given.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        call("tools_dispatch", &given)
    };
    let kind = format!("tool:{tool}");
    Some(match form {
        0 => call(tool, &p),
        1 => call(tool, &json!({"p": secret, "u": 1})),
        2 => call(tool, &json!({"P": secret})),
        3 => call(tool, &json!({"input": p})),
        4 => call(tool, &json!({"p": {"value": secret}})),
        5 => call(tool, &json!({"p": [secret]})),
        6 => call(tool, &json!({ (secret): "p" })),
        7 => call(tool, &json!({"u": secret})),
        8 => json!({"name": tool, "arguments": text}),
        9 => json!({"name": tool, "argumets": p}),
        10 => dispatch(json!({"params": p})),
        11 => dispatch(json!({"arguments": p})),
        12 => dispatch(json!({"params": text})),
        13 => dispatch(json!({"params": {"input": p}})),
        14 => dispatch(json!({"params": {"p": secret, "u": "1"}})),
        15 => call("tools_dispatch", &json!({"tool": format!("{tool}x"), "params": p})),
        16 => dispatch(json!({"tool": "tools_dispatch", "params": {"tool": tool, "params": p}})),
        17 => task(json!({"payload": p})),
        18 => task(json!({"payload": text})),
        19 => task(json!({"inputs": p})),
        20 => task(json!({"payload": {"input": p}})),
        21 => task(json!({"payload": p, "task_type": format!("tool:{tool}x")})),
        22 => task(json!({"payload": p, "task_type": tool})),
        23 => flow(json!([{"step_id": "a", "action": tool, "inputs": p}])),
        24 => flow(json!([{"step_id": "a", "action": tool, "inputs": text}])),
        25 => flow(json!([{"step_id": "a", "action": tool, "params": p}])),
        26 => flow(json!([{"step_id": "a", "action": tool, "payload": p}])),
        27 => flow(json!(json!([{"step_id": "a", "action": tool, "inputs": p}]).to_string())),
        28 => flow(json!([{"step_id": "a", "acton": tool, "inputs": p}])),
        29 => flow(json!([{"step_id": "a", "action": format!("{tool}x"), "inputs": p}])),
        30 => {
            flow(json!([{"step_id": "a", "action": "tools_dispatch", "inputs": {"tool": tool, "params": p}}]))
        }
        31 => flow(json!([{"step_id": "a", "action": "workflow:run", "inputs":
            {"name": "c", "steps": [{"step_id": "b", "action": tool, "inputs": p}]}}])),
        32 => flow(json!([{"step_id": "a", "action": "worker:any",
            "compensate": {"action": tool, "inputs": p}}])),
        33 => every("task", json!({"task_type": kind, "payload": p})),
        34 => every("task", json!({"task_type": kind, "payload": text})),
        35 => every("task", json!({"task_type": kind, "inputs": p})),
        36 => every("task", json!({"type": kind, "payload": p})),
        37 => every("task", json!(json!({"task_type": kind, "payload": p}).to_string())),
        38 => {
            every("workflow", json!({"name": "w", "steps": [{"step_id": "a", "action": tool, "inputs": p}]}))
        }
        39 => call("task_priority", &json!({"task_id": "none", "priority": 1, "p": secret})),
        40 => call(
            "workflow_fork",
            &json!({"workflow_id": "none", "new_workflow_id": "n", "overrides": {"a": p}}),
        ),
        41 => call(
            "workflow_fork",
            &json!({"workflow_id": "none", "new_workflow_id": "n", "overrides": {"a": text}}),
        ),
        _ => return None,
    })
}

/// Every byte of every file under `dir`, one after another.
pub fn all_bytes(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("the directory is there").path();
        bytes.extend(match path.is_dir() {
            true => all_bytes(&path),
            // A file that is gone by now holds nothing.
            false => fs::read(&path).unwrap_or_default(),
        });
    }
    bytes
}

/// Those of `secrets` that begin before [`MARK`] somewhere in `bytes`.
fn found(bytes: &[u8], secrets: &[String]) -> Vec<String> {
    let mark = MARK.as_bytes();
    let ends = (0..bytes.len().saturating_sub(mark.len())).filter(|at| bytes[*at..].starts_with(mark));
    let ends: Vec<usize> = ends.collect();
    let stands = |secret: &&String| {
        let begin = secret.len() - mark.len();
        ends.iter().any(|end| *end >= begin && bytes[end - begin..].starts_with(secret.as_bytes()))
    };
    secrets.iter().filter(stands).cloned().collect()
}

#[test]
fn no_form_of_a_schema_or_a_call_leaves_a_secret_behind() {
    let data = temp();
    let schemas = schemas();
    let define =
        |(at, schema): (usize, &Value)| json!({"name": format!("t{at}"), "inputSchema": schema}).to_string();
    let tools: Vec<String> = schemas.iter().enumerate().map(define).collect();
    let upstream = Upstream::new(&tools.iter().map(String::as_str).collect::<Vec<_>>());
    let mut server = serve(data.path(), &upstream.table("up", ""));
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let mut secrets = Vec::new();
    for at in 0..schemas.len() {
        for form in 0.. {
            let secret = format!("s{at}-f{form}{MARK}");
            let Some(params) = calls(&format!("up_t{at}"), &secret, form) else { break };
            // Every form of a call with the first schemas, the plain ones with all.
            if at > 2 && ![0, 1, 3, 10, 13, 17, 23].contains(&form) {
                continue;
            }
            let answer = connection.request(1, "tools/call", params);
            assert!(answer["result"].is_object() || answer["error"].is_object(), "{answer}");
            secrets.push(secret);
        }
    }
    assert!(secrets.len() > 200, "{} forms", secrets.len());
    let arrived = upstream.calls().join("\n");
    for at in [0, 1, 2, 3, 5, 13, 14] {
        assert!(arrived.contains(&format!("s{at}-f0{MARK}")), "the tool t{at} still gets what it is for");
    }
    assert_eq!(found(&all_bytes(data.path()), &secrets), [""; 0], "while it runs");
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    assert_eq!(found(&all_bytes(data.path()), &secrets), [""; 0], "once it has stopped");
    assert_eq!(found(server.process.last_errors().as_bytes(), &secrets), [""; 0], "in what it said");
}

#[test]
fn numbers_and_short_texts_that_come_back_are_not_kept() {
    let data = temp();
    let schema = json!({"type": "object", "properties":
        {"pin": {"writeOnly": true}, "user": {"type": "string"}}});
    let output = json!({"type": "object", "properties": {"token": {"type": "string", "x-secret": true}}});
    let upstream = Upstream::new(&[
        &json!({"name": "echo", "inputSchema": schema}).to_string(),
        &json!({"name": "mint", "inputSchema": {"type": "object"}, "outputSchema": output}).to_string(),
    ]);
    upstream.write(
        "mint.result",
        r#"{"content":[{"type":"text","text":"{\"token\":\"minted-\u0068unter2\"}"}],"structuredContent":{"token":"minted-hunter2"}}"#,
    );
    let mut server = serve(data.path(), &upstream.table("up", ""));
    for pin in [json!(48_151_623), json!("48151623"), json!(4815.1623), json!("q7#Zx")] {
        let answer = json!({"content": [{"type": "text", "text": format!("your pin {pin}, {{\"pin\":{pin}}}")}],
            "structuredContent": {"pin": pin}, "isError": false});
        upstream.write("echo.result", &answer.to_string());
        let told = result(&server, "up_echo", json!({"pin": pin, "user": "ada-the-user"}));
        assert_eq!(told["structuredContent"]["pin"], pin, "the caller gets the true answer");
    }
    assert_eq!(result(&server, "up_mint", json!({}))["structuredContent"]["token"], "minted-hunter2");
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    let kept = String::from_utf8_lossy(&all_bytes(data.path())).into_owned();
    for never in ["48151623", "4815.1623", "q7#Zx", "minted-hunter2", "unter2"] {
        assert!(!kept.contains(never), "{never} is kept");
    }
    assert!(kept.contains("ada-the-user"), "what is not marked is kept");
}

#[test]
fn nobody_finds_a_secret_by_calls_of_their_own() {
    let data = temp();
    let schema = json!({"type": "object", "properties": {"pin": {"writeOnly": true}, "pins": {"items": {"writeOnly": true}}}});
    let upstream = Upstream::new(&[&json!({"name": "login", "inputSchema": schema}).to_string(), "seen"]);
    let path = data.path().to_str().expect("temporary paths are text");
    let token = |name: &str| {
        let added = run(cairn(&["token", "add", name, "--scope", "mcp:call", "--data", path]));
        let said = added.succeeded();
        said.split_whitespace().max_by_key(|word| word.len()).expect("it prints the token").to_owned()
    };
    let (ada, eve) = (token("ada"), token("eve"));
    let config = format!(
        "[auth]\nmode = \"static\"\n[capture.tools]\nup_seen = \"redacted\"\n{}",
        upstream.table("up", "")
    );
    let server = serve(data.path(), &config);
    let said = |token: &str, tool: &str, arguments: Value| {
        let message = modern(1, "tools/call", call(tool, &arguments));
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", tool),
        ];
        let reply = server.send("POST", "/mcp", &headers, message.to_string().as_bytes()).json();
        assert!(reply["result"].is_object(), "{reply}");
    };
    said(&ada, "up_login", json!({"pin": 4711}));
    said(&ada, "up_login", json!({"pin": 4711}));
    said(&ada, "up_seen", json!({"pin": 4711}));
    let guesses: Vec<u32> = (4000..5000).collect();
    said(&eve, "up_login", json!({"pin": 4711, "pins": guesses}));
    said(&eve, "up_seen", json!({"pin": 4711, "pins": guesses, "fake": {"$redacted": "v2:00"}}));
    assert_eq!(server.stop().code(), Some(0));
    let kept = all_bytes(data.path());
    let mut seen = std::collections::BTreeMap::<&[u8], usize>::new();
    for at in (0..kept.len().saturating_sub(36)).filter(|at| kept[*at..].starts_with(b"\"v2:")) {
        *seen.entry(&kept[at + 1..at + 36]).or_default() += 1;
    }
    assert!(seen.len() > 2000, "{} commitments", seen.len());
    // What ada said twice of one field is one payload, and stands once.
    assert!(seen.values().all(|times| *times == 1), "a guess is told from a secret by nothing: {seen:?}");
    assert!(!kept.windows(6).any(|six| six == b"v2:00\""), "what looks like a commitment is a value");
}

#[test]
fn a_caller_hears_its_own_names_again_where_nothing_is_secret() {
    let data = temp();
    let server = crate::harness::Server::start(data.path(), &[]);
    let wrong = json!({"worker_id": "w", "capabilities": ["t"], "task_types": ["t"]});
    let answer = result(&server, "worker_register", wrong);
    assert!(answer.to_string().contains("`task_types` is not known"), "{answer}");
    assert!(server.stop().success());
    let bytes = all_bytes(data.path());
    assert!(!bytes.windows(10).any(|window| window == b"task_types"), "it is kept without the name");
}
