//! Restarts: answers, state and upstreams as they were, and nothing run again.

use std::fs;

use serde_json::json;

use crate::{
    harness::temp,
    record,
    speech::{ask, event, keyed, result},
    upstream::{Upstream, serve},
};

#[test]
fn a_restart_answers_a_key_from_the_log_and_runs_nothing() {
    let data = temp();
    let upstream = Upstream::new(&["tool", "protocol"]);
    let config = upstream.table("up", "");
    let again = |server: &crate::harness::Server, tool: &str| {
        ask(server, "tools/call", keyed(tool, &json!({"n": 1}), "key"))
    };
    let server = serve(data.path(), &config);
    let first = [again(&server, "up_tool"), again(&server, "up_protocol")];
    assert!(server.stop().success());
    let at_rest = (record::events(data.path()).len(), record::digests(data.path()));

    let damages: [(&str, &dyn Fn()); 4] = [
        ("nothing", &|| ()),
        ("the state deleted", &|| record::forget_state(data.path())),
        ("the state garbage", &|| {
            record::forget_state(data.path());
            fs::write(data.path().join("state.db"), "not a database at all").expect("it can be written");
        }),
        ("the state cut short", &|| {
            let state = fs::read(data.path().join("state.db")).expect("there is a state");
            fs::write(data.path().join("state.db"), &state[..state.len() / 2]).expect("it can be written");
        }),
    ];
    for (what, damage) in damages {
        damage();
        let server = serve(data.path(), &config);
        for (tool, first) in ["up_tool", "up_protocol"].into_iter().zip(&first) {
            let answer = again(&server, tool);
            assert_eq!(event(&answer), event(first), "{what}: {tool}");
            assert_eq!(answer["result"]["content"], first["result"]["content"], "{what}: {tool}");
            assert_eq!(answer["error"]["code"], first["error"]["code"], "{what}: {tool}");
        }
        assert!(server.stop().success());
        let now = (record::check(data.path()).len(), record::digests(data.path()));
        assert_eq!(now, at_rest, "{what}");
        assert_eq!(upstream.calls().len(), 2, "{what}: a start runs nothing");
    }
}

#[test]
fn a_definition_that_changed_while_the_server_was_down_is_published_at_the_start() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let config = upstream.table("up", "");
    let contract = |answer: &serde_json::Value| answer["_meta"]["io.cairn/contract"].clone();
    let server = serve(data.path(), &config);
    let old = contract(&result(&server, "up_tool", json!({})));
    assert!(server.stop().success());
    let server = serve(data.path(), &config);
    assert_eq!(contract(&result(&server, "up_tool", json!({}))), old);
    assert!(server.stop().success());
    upstream.offer(&[r#"{"name":"tool","description":"new","inputSchema":{"type":"object"}}"#]);
    let server = serve(data.path(), &config);
    assert_ne!(contract(&result(&server, "up_tool", json!({}))), old);
    assert!(server.stop().success());
    record::check(data.path());
}
