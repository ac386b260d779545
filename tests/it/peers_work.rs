//! Work that one node does for another: real processes, whose tools leave their effects outside, killed and cut off.
//!
//! What holds afterwards: every run comes to its end, no task has two successes, nothing that may not run twice did, each
//! side names the other's events, and both logs verify.

use std::{collections::HashMap, net::TcpListener, path::Path, process::ExitStatus};

use cairn::event::{Body, Event};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Server, temp},
    record::{self, until},
    upstream::{Upstream, configure},
    work::Caller,
};

const AGAIN: &str =
    r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;

/// A node that keeps its identity and its address from start to start.
struct Node {
    data: TempDir,
    peer: String,
    address: String,
}

impl Node {
    fn new() -> Self {
        let data = temp();
        let port = free_port();
        let address = format!("/ip4/127.0.0.1/tcp/{port}");
        let server = Server::start(data.path(), &["--config", &configure(data.path(), &p2p(&address))]);
        let peer = server.ready.split(" peer=").nth(1).expect("the ready line names the peer");
        let peer = peer.split_whitespace().next().expect("a name is not empty").to_owned();
        assert!(server.stop().success());
        Self { data, peer, address }
    }

    /// Starts it; `more` comes after its own table.
    fn start(&self, more: &str) -> Server {
        let config = format!("{}{more}", p2p(&self.address));
        Server::start(self.path(), &["--config", &configure(self.path(), &config)])
    }

    fn path(&self) -> &Path {
        self.data.path()
    }
}

fn p2p(address: &str) -> String {
    format!("[p2p]\nenable = true\ndht = false\nlisten = [{address:?}]\n")
}

/// A port that nobody had a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

/// One node with a queue, one that does its work with the tools of an upstream.
struct Pair {
    asks: Node,
    does: Node,
    upstream: Upstream,
}

impl Pair {
    fn new() -> Self {
        let upstream = Upstream::new(&["wait_once", AGAIN, "count"]);
        Self { asks: Node::new(), does: Node::new(), upstream }
    }

    fn start_asking(&self, lease_ms: u64) -> Server {
        let peer = &self.does.peer;
        let tools = r#"["worker_*", "task_*"]"#;
        self.asks.start(&format!(
            "[tasks]\nlease_ms = {lease_ms}\nmax_attempts = 1000\n\
             [[p2p.peers]]\nid = {peer:?}\nscopes = [\"mcp:call\"]\ntools = {tools}\noffer = false\n"
        ))
    }

    /// Starts the working node; the other one is dialled at `address`.
    fn start_doing(&self, address: &str) -> Server {
        let peer = &self.asks.peer;
        let types = r#"["up_wait_once", "up_wait_again", "up_count"]"#;
        self.does.start(&format!(
            "[[p2p.peers]]\nid = {peer:?}\naddrs = [{address:?}]\noffer = false\nwork = {types}\n{}",
            self.upstream.table("up", "")
        ))
    }

    /// How often a tool was called for this, by what the tool itself kept.
    fn effects(&self, tool: &str, of: &str) -> usize {
        let calls = self.upstream.calls();
        calls.iter().filter(|call| call.starts_with(&format!("{tool} ")) && call.contains(of)).count()
    }

    /// Ends both and checks what they kept.
    fn check(&self, servers: [Server; 2]) {
        for status in servers.map(Server::stop) {
            assert!(ExitStatus::success(&status));
        }
        for node in [&self.asks, &self.does] {
            record::check(node.path());
            let (code, report) = record::verify(node.path());
            assert_eq!(code, Some(0), "{report}");
        }
        let mut successes: HashMap<String, usize> = HashMap::new();
        for event in record::events(self.asks.path()) {
            if let Some(Body::TaskSucceeded(_)) = event.body() {
                *successes.entry(event.fields().subject.clone()).or_default() += 1;
            }
        }
        assert!(successes.values().all(|count| *count == 1), "{successes:?}");
    }
}

fn step(name: &str, tool: &str, after: &[&str]) -> Value {
    json!({"step_id": name, "action": format!("worker:up_{tool}"), "depends_on": after, "inputs": {"of": name}})
}

#[test]
fn a_run_is_worked_off_by_a_peer_and_each_side_names_the_others_events() {
    let pair = Pair::new();
    pair.upstream.write("go", "");
    pair.upstream.write("count.result", r#"{"content":[],"structuredContent":{"n":7}}"#);
    let asks = pair.start_asking(30_000);
    let does = pair.start_doing(&pair.asks.address);
    let mut caller = Caller::new(&asks);
    let mut last = step("last", "count", &["count"]);
    last["inputs"] = json!({"of": "last", "n": {"$from": "count", "pointer": "/n"}});
    caller.run(
        "r",
        json!([step("count", "count", &[]), step("once", "wait_once", &["count"]), last]),
        json!({}),
    );
    caller.run_until("r", "succeeded");
    caller.submit("odd", "up_count", json!({"payload": ["no object"]}));
    let failed = caller.task_until("odd", "failed");
    assert_eq!(failed["attempts"], 1, "{failed}");
    assert_eq!(pair.effects("count", r#""n": 7"#), 1, "{:?}", pair.upstream.calls());
    assert_eq!(pair.effects("wait_once", "once"), 1);
    pair.check([does, asks]);

    let (there, here) = (record::events(pair.asks.path()), record::events(pair.does.path()));
    let named = |log: &[Event], refs: &[cairn::block::Cid]| -> Vec<String> {
        let named = refs.iter().filter_map(|cid| log.iter().find(|event| event.cid() == *cid));
        named.map(|event| format!("{} of {}", record::kind(event), name_of(log, event))).collect()
    };
    let mut claims = 0;
    for event in &here {
        if let Some(Body::CallStarted(facts)) = event.body()
            && facts.name.starts_with("up_")
        {
            let named = named(&there, &event.fields().refs);
            assert!(
                matches!(named.as_slice(), [one] if one == "call.succeeded of task_claim" || one == "call.succeeded of task_complete"),
                "{named:?}"
            );
            assert_eq!(
                (event.fields().actor.id.as_str(), event.fields().actor.role.as_str()),
                (pair.asks.peer.as_str(), "peer")
            );
            claims += 1;
        }
    }
    assert_eq!(claims, 3, "the odd one never began");
    let completions = there.iter().filter(|event| {
        matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == "task_complete")
            && named(&here, &event.fields().refs).iter().all(|one| one.starts_with("call.succeeded of up_"))
            && event.fields().refs.len() == 1
    });
    assert_eq!(completions.count(), 3);
}

/// The tool of the call that an event ends.
fn name_of(log: &[Event], event: &Event) -> String {
    let started = log.iter().find(|other| Some(other.cid()) == event.fields().cause);
    match started.and_then(Event::body) {
        Some(Body::CallStarted(facts)) => facts.name,
        other => panic!("no start of {event:?}: {other:?}"),
    }
}

#[test]
fn a_worker_that_is_killed_comes_back_and_repeats_only_what_may_be() {
    let pair = Pair::new();
    let asks = pair.start_asking(1_000);
    let does = pair.start_doing(&pair.asks.address);
    let mut caller = Caller::new(&asks);
    caller.run("again", json!([step("a", "wait_again", &[]), step("b", "count", &["a"])]), json!({}));
    caller.submit("once", "up_wait_once", json!({}));
    pair.upstream.reached("wait", 2);
    does.kill();
    pair.upstream.write("go", "");
    let does = pair.start_doing(&pair.asks.address);
    caller.run_until("again", "succeeded");
    let once = caller.task_until("once", "failed");
    assert_eq!(once["error"]["code"], "failed_precondition", "{once}");
    assert_eq!(pair.effects("wait_again", r#""a""#), 2, "it may run twice");
    assert_eq!(pair.effects("wait_once", "once"), 1, "it may not");
    assert_eq!(pair.effects("count", r#""b""#), 1);
    pair.check([does, asks]);
}

#[test]
fn a_queue_that_is_killed_gets_what_was_done_meanwhile() {
    // With the lease still there the old fence holds; without it the answer of the first call is told under a new one.
    for lease_ms in [30_000, 300] {
        let pair = Pair::new();
        let asks = pair.start_asking(lease_ms);
        let does = pair.start_doing(&pair.asks.address);
        let mut caller = Caller::new(&asks);
        let steps =
            json!([step("a", "wait_once", &[]), step("b", "wait_once", &["a"]), step("c", "count", &["b"])]);
        caller.run("r", steps, json!({}));
        pair.upstream.reached("wait_once", 1);
        asks.kill();
        pair.upstream.write("go", "");
        until("the end of the call", || {
            record::endings(&record::events(pair.does.path()), "up_wait_once").pop()
        });
        let asks = pair.start_asking(lease_ms);
        let mut caller = Caller::new(&asks);
        caller.run_until("r", "succeeded");
        for name in ["a", "b"] {
            assert_eq!(pair.effects("wait_once", &format!("{name:?}")), 1, "{name}, {lease_ms}");
        }
        assert_eq!(pair.effects("count", r#""c""#), 1);
        pair.check([does, asks]);
    }
}
