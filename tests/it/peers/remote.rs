//! Calls that one node takes to another: what both logs hold of them, and what a peer may do.
//!
//! Invariant: nodes are processes of their own; their logs are read from the files.

use cairn::event::{Body, body::Failure};
use serde_json::{Value, json};

use crate::{
    peers::nodes::{Node, ending, remotes, started},
    record, speech,
    upstream::Upstream,
};

const CALLS: &str = "scopes = [\"mcp:call\"]";

/// A node that calls, and one that has a tool `tool` and lets it.
fn pair(upstream: &Upstream, entry: &str) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), a.entry(entry)));
    a.start("", &b.dialled(""));
    (a, b)
}

/// An answer as it came.
fn bytes(node: &Node, method: &str, params: Value) -> String {
    let mut connection = speech::Connection::open(&node.server().url).expect("the node listens");
    let reply = connection.ask(&speech::modern(1, method, params)).expect("it answers");
    reply.text().to_owned()
}

fn code(answer: &Value) -> &str {
    let told = &answer["result"]["_meta"]["io.cairn/error"]["code"];
    told.as_str().unwrap_or_else(|| panic!("no domain error: {answer}"))
}

#[test]
fn a_call_taken_to_a_peer_is_in_both_logs_and_each_names_the_other() {
    let upstream = Upstream::new(&[
        r#"{"name":"tool","description":"Does.","inputSchema":{"type":"object"},"annotations":{"x-odd":1.50}}"#,
    ]);
    let (a, b) = pair(&upstream, CALLS);
    a.offers("peers_tool");
    let listed = bytes(&a, "tools/list", json!({}));
    assert!(listed.contains(r#""annotations":{"x-odd":1.50}"#), "byte for byte: {listed}");
    assert!(!b.tools().iter().any(|name| name.starts_with("peers_")), "{:?}", b.tools());

    let answer = a.call("peers_tool", json!({"n": 1}));
    assert_eq!(answer["result"]["content"][0]["text"], "call 1", "{answer}");
    let contract = answer["result"]["_meta"]["io.cairn/contract"].as_str().expect("a contract").to_owned();
    let here = b.call("tool", json!({"n": 2}));
    assert_eq!(here["result"]["_meta"]["io.cairn/contract"], *contract, "the contract is the peer's own");
    let by_contract = a.call(&contract, json!({"n": 3}));
    assert_eq!(by_contract["result"]["content"][0]["text"], "call 3", "{by_contract}");
    let pinned =
        json!({"name": "no_such_name", "arguments": {"n": 4}, "_meta": {"io.cairn/contract": contract}});
    let pinned = bytes(&a, "tools/call", pinned);
    assert!(pinned.contains("call 4"), "a pinned contract is enough: {pinned}");
    let dispatched = json!({"tool": "no_such_name", "contract": contract, "params": {"n": 5}});
    let dispatched = a.call("tools_dispatch", dispatched);
    assert_eq!(dispatched["result"]["content"][0]["text"], "call 5", "{dispatched}");
    let sent: Vec<String> = (1..=5).map(|n| format!(r#"tool {{"n": {n}}}"#)).collect();
    assert_eq!(upstream.calls(), sent);

    let (ours, theirs) = (a.events(), b.events());
    let called = remotes(&ours);
    assert_eq!(called.len(), 4);
    let start = called[0].0.fields().cause.expect("it names the call");
    let (told, facts) = &called[0];
    assert_eq!((&facts.peer, facts.ok, facts.attempt), (&b.peer, true, 1), "{facts:?}");
    assert_eq!(facts.contract.to_string(), contract);
    assert!(!facts.rule.is_empty() && facts.took_us > 0, "{facts:?}");
    let first = theirs.iter().find(|event| event.fields().actor.id == a.peer).expect("a called");
    assert_eq!((first.fields().refs.as_slice(), &first.fields().actor.role[..]), (&[start][..], "peer"));
    assert_eq!(told.fields().refs, [ending(&theirs, first.cid()).cid()], "ours names their ending");
    let last = started(&theirs, "tool", &a.peer);
    assert_eq!(Some(last.fields().refs[0]), called[3].0.fields().cause, "by contract as by name");
    assert_eq!(record::kind(&ending(&ours, start)), "call.succeeded");
    let shown = a.runs(&["trace", &start.to_string()]);
    assert!(shown.status.success(), "{shown:?}");
    let metrics = a.caller().tell("peer_metrics", json!({"peer_id": b.peer}));
    assert_eq!(metrics["connection_info"]["calls"], 4, "{metrics}");

    let (mut a, mut b) = (a, b);
    for node in [&mut a, &mut b] {
        node.stop();
        let before = record::digests(node.data());
        record::forget_state(node.data());
        let mut command = crate::harness::cairn(&["rebuild", "--data"]);
        command.arg(node.data());
        crate::harness::run(command).succeeded();
        assert_eq!(record::digests(node.data()), before, "the state derived again is the same");
        record::check(node.data());
        let (code, report) = record::verify(node.data());
        assert_eq!(code, Some(0), "{report}");
    }
}

#[test]
fn without_scopes_a_peer_lists_and_calls_nothing() {
    let upstream = Upstream::new(&["tool"]);
    let (a, b) = pair(&upstream, "");
    a.offers("peers_tool");
    let answer = a.call("peers_tool", json!({}));
    assert_eq!(code(&answer), "permission_denied", "{answer}");
    let error = &answer["result"]["_meta"]["io.cairn/error"];
    let said = error["message"].as_str().expect("a message");
    assert!(said.starts_with(&format!("peer {} refused the call", b.peer)), "{said}");
    assert!(said.contains("the scope mcp:call is needed") && said.contains("-32600"), "{said}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("[[p2p.peers]]")), "{error}");
    assert!(upstream.calls().is_empty());
    let ours = a.events();
    let (_, facts) = &remotes(&ours)[0];
    assert!(facts.ok, "the peer answered: {facts:?}");
    a.ends_well();
    b.ends_well();
}

#[test]
fn an_entry_bounds_which_tools_a_peer_sees_and_calls() {
    let upstream = Upstream::new(&["read_one", "read_two", "write"]);
    let (a, b) = pair(&upstream, &format!("{CALLS}\ntools = [\"read_*\"]"));
    a.offers("peers_read_two");
    assert!(!a.tools().iter().any(|name| name == "peers_write"));
    assert_eq!(a.call("peers_read_one", json!({}))["result"]["content"][0]["text"], "call 1");
    let write = b.call("write", json!({}));
    let contract = write["result"]["_meta"]["io.cairn/contract"].as_str().expect("a contract").to_owned();
    let refused = a.call(&contract, json!({}));
    assert!(refused["error"].is_object() || refused["result"]["isError"] == true, "{refused}");
    assert_eq!(upstream.calls().len(), 2);
    a.ends_well();
    b.ends_well();
}

#[test]
fn what_a_peer_offers_follows_what_it_has_and_whether_it_is_there() {
    let upstream = Upstream::new(&["one"]);
    let (mut a, mut b) = pair(&upstream, CALLS);
    a.offers("peers_one");
    upstream.offer(&["two"]);
    a.offers("peers_two");
    a.offers_not("peers_one");
    b.stop();
    // What a peer offered stays for a while: callers hear that it cannot be asked, not that there is no such tool.
    let gone = record::until("the peer is gone", || {
        let answer = a.call("peers_two", json!({}));
        (answer["result"]["isError"] == true).then_some(answer)
    });
    assert_eq!(code(&gone), "unavailable", "{gone}");
    a.offers("peers_two");
    b.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), a.entry(CALLS)));
    record::until("the peer is back", || {
        (a.call("peers_two", json!({}))["result"]["isError"] != true).then_some(())
    });
    a.stop();
    let kinds: Vec<String> =
        record::events(a.data()).iter().map(|event| record::kind(event).to_owned()).collect();
    assert!(kinds.iter().any(|kind| kind == "contract.retired"), "{kinds:?}");
    record::check(a.data());
}

#[test]
fn a_peers_own_errors_pass_and_a_call_of_a_peer_goes_no_further() {
    let upstream = Upstream::new(&["protocol"]);
    let (a, b) = pair(&upstream, CALLS);
    a.offers("peers_protocol");
    let answer = bytes(&a, "tools/call", speech::call("peers_protocol", &json!({})));
    assert!(answer.contains("-32042") && answer.contains(r#""kept":1.5"#), "{answer}");
    let ours = a.events();
    let (told, facts) = &remotes(&ours)[0];
    assert!(facts.ok, "{facts:?}");
    assert_eq!(told.fields().refs.len(), 1, "an error names the peer's event too");
    // A third node is offered what a has, not what a's peers have.
    let own = Upstream::new(&["own"]);
    let (mut a, mut c) = (a, Node::new());
    a.stop();
    a.start("", &format!("{}{}", own.table("up", "prefix = \"\""), b.dialled("")));
    a.offers("peers_protocol");
    c.start("", &a.dialled(""));
    c.offers("peers_own");
    assert!(!c.tools().iter().any(|name| name.contains("protocol")), "{:?}", c.tools());
    a.ends_well();
    b.ends_well();
    c.ends_well();
}

#[test]
fn a_peer_that_takes_too_long_is_told_of_and_its_call_fails_once() {
    let upstream = Upstream::new(&["wait"]);
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), a.entry(CALLS)));
    a.start("request_timeout_ms = 500", &b.dialled(""));
    a.offers("peers_wait");
    let answer = a.call("peers_wait", json!({}));
    assert_eq!(code(&answer), "deadline_exceeded", "{answer}");
    record::until("b hears that nobody waits", || {
        upstream.calls().iter().any(|line| line == "cancelled").then_some(())
    });
    let ours = a.events();
    let called = remotes(&ours);
    assert_eq!((called.len(), called[0].1.ok), (1, false), "{:?}", called[0].1);
    let failed = ending(&ours, called[0].0.fields().cause.expect("it names the call"));
    assert!(
        matches!(failed.body(), Some(Body::CallFailed(facts)) if facts.failure == Failure::Timeout),
        "{failed:?}"
    );
    a.ends_well();
    b.ends_well();
}
