//! Runs whose steps are carried to one peer, and steps that wait for a peer's return.
//!
//! Invariant: what is to be done at one peer is done there or not at all.

use cairn::event::Body;
use serde_json::{Value, json};

use crate::{
    harness,
    peers::nodes::{Node, remotes},
    record::{self, until},
    upstream::Upstream,
    work::stand,
};

const CALLS: &str = "scopes = [\"mcp:call\"]\ntools = [\"count\", \"wait_*\"]";
/// A tool that waits until its directory says go, and may be asked twice.
const SAFE: &str =
    r#"{"name":"wait_safe","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#;

fn serve(node: &mut Node, upstream: &Upstream, caller: &Node) {
    node.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), caller.entry(CALLS)));
}

fn step(id: &str, tool: &str, after: &[&str]) -> Value {
    let retry = json!({"max_retries": 1_000, "backoff_ms": 50, "backoff_factor": 1, "jitter": false});
    json!({"step_id": id, "action": tool, "depends_on": after, "inputs": {"of": id}, "retry": retry})
}

fn calls(upstream: &Upstream, of: &str) -> usize {
    upstream.calls().iter().filter(|call| call.contains(of)).count()
}

/// A node whose runs may be carried to one of two others, which have the same tools.
struct Nodes {
    a: Node,
    b: Node,
    c: Node,
    upstreams: [Upstream; 2],
}

impl Nodes {
    fn start() -> Self {
        let upstreams = [(); 2].map(|()| Upstream::new(&["count", SAFE, "wait_once"]));
        let (mut a, mut b, mut c) = (Node::new(), Node::new(), Node::new());
        serve(&mut b, &upstreams[0], &a);
        serve(&mut c, &upstreams[1], &a);
        // Nothing that comes there would wait.
        upstreams[1].write("go", "");
        let dials = format!("{}{}", b.dialled(""), c.dialled(""));
        a.start("", &dials);
        for tool in ["peers_count", "peers_wait_safe", "peers_wait_once"] {
            a.offers(tool);
        }
        for peer in [&b, &c] {
            a.sees(&peer.peer, "connected");
        }
        Self { a, b, c, upstreams }
    }

    /// Stops all of them; the other peer was never asked for anything.
    fn end_well(self) {
        let Self { a, b, c, upstreams } = self;
        assert_eq!(calls(&upstreams[1], ""), 0, "{:?}", upstreams[1].calls());
        for node in [a, b, c] {
            node.ends_well();
        }
    }
}

#[test]
fn a_run_names_a_peer_that_is_known_and_offers_what_it_does() {
    let nodes = Nodes::start();
    let mut caller = nodes.a.caller();
    let nobody =
        json!({"workflow_id": "x", "name": "x", "peer": "nobody", "steps": [step("s", "peers_count", &[])]});
    let error = caller.refused("workflow_submit", nobody, "invalid_argument");
    assert_eq!(error["faults"][0]["place"], "/peer", "{error}");
    let peer = &nodes.b.peer;
    let other = json!({"workflow_id": "x", "name": "x", "peer": peer,
                       "steps": [{"step_id": "s", "action": "queue_stats"}]});
    let error = caller.refused("workflow_submit", other, "invalid_argument");
    let fault = format!("peer `{peer}` does not offer `queue_stats`");
    assert_eq!(error["faults"], json!([{"place": "/steps/0/action", "fault": fault}]), "{error}");
    nodes.end_well();
}

#[test]
fn a_run_is_carried_to_the_peer_it_names_and_waits_for_its_return() {
    let mut nodes = Nodes::start();
    let mut caller = nodes.a.caller();
    let peer = nodes.b.peer.clone();
    let steps = json!([
        step("first", "peers_count", &[]),
        {"step_id": "pause", "action": "wait:time", "depends_on": ["first"], "inputs": {"ms": 1}},
        step("safe", "peers_wait_safe", &["pause"]),
        step("last", "peers_count", &["safe"]),
    ]);
    let submitted = caller.run("carried", steps, json!({"peer": peer}));
    assert_eq!(submitted["peer_assigned"], peer, "{submitted}");
    nodes.upstreams[0].reached("wait_safe", 1);
    nodes.b.kill();
    // The other peer is there all the time, and has what the step needs.
    until("the step was tried again while the peer is gone", || {
        (stand(&caller.run_status("carried"), "safe")["attempt"].as_u64() > Some(2)).then_some(())
    });
    nodes.upstreams[0].write("go", "");
    serve(&mut nodes.b, &nodes.upstreams[0], &nodes.a);
    let ended = caller.run_until("carried", "succeeded");
    assert_eq!(ended["peer_id"], peer, "{ended}");
    assert_eq!((calls(&nodes.upstreams[0], "first"), calls(&nodes.upstreams[0], "last")), (1, 1));
    assert_eq!(caller.tell("workflow_replay", json!({"workflow_id": "carried"}))["matched"], true);

    let events = nodes.a.events();
    let told = events.iter().filter_map(|event| match event.body() {
        Some(Body::WorkflowSubmitted(facts)) => facts.peer,
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), std::slice::from_ref(&peer));
    assert!(remotes(&events).iter().all(|(_, facts)| facts.peer == peer));
    nodes.a.stop();
    let data = nodes.a.data();
    let before = record::digests(data);
    record::forget_state(data);
    let mut command = harness::cairn(&["rebuild", "--data"]);
    command.arg(data);
    harness::run(command).succeeded();
    assert_eq!(record::digests(data), before, "the state derived again is the same");
    record::check(data);
    let dials = format!("{}{}", nodes.b.dialled(""), nodes.c.dialled(""));
    nodes.a.start("", &dials);
    nodes.end_well();
}

#[test]
fn a_step_that_may_not_run_twice_fails_with_the_peer_it_is_carried_to() {
    let mut nodes = Nodes::start();
    let mut caller = nodes.a.caller();
    let peer = nodes.b.peer.clone();
    caller.run("once", json!([step("once", "peers_wait_once", &[])]), json!({"peer": peer}));
    nodes.upstreams[0].reached("wait_once", 1);
    nodes.b.kill();
    let failed = caller.run_until("once", "failed");
    assert_eq!(stand(&failed, "once")["error"]["code"], "unavailable", "{failed}");
    for (filter, ids) in [(&peer, vec!["once"]), (&nodes.c.peer, vec![])] {
        let listed = caller.tell("workflow_list", json!({"peer_filter": filter}));
        let rows = listed["workflows"].as_array().expect("a list").iter();
        let found: Vec<&str> = rows.filter_map(|row| row["workflow_id"].as_str()).collect();
        assert_eq!(listed["total_count"].as_u64(), Some(ids.len() as u64), "{listed}");
        assert_eq!(found, ids, "{listed}");
    }
    serve(&mut nodes.b, &nodes.upstreams[0], &nodes.a);
    nodes.end_well();
}

#[test]
fn a_repeatable_step_waits_for_the_only_peer_that_has_its_tool() {
    let upstream = Upstream::new(&[SAFE]);
    let (mut a, mut b) = (Node::new(), Node::new());
    serve(&mut b, &upstream, &a);
    a.start("", &b.dialled(""));
    a.offers("peers_wait_safe");
    let mut caller = a.caller();
    for (nth, run) in ["killed", "stopped"].into_iter().enumerate() {
        a.offers("peers_wait_safe");
        let before = upstream.calls().iter().filter(|call| call.starts_with("wait_safe")).count();
        caller.run(run, json!([step("safe", "peers_wait_safe", &[])]), json!({}));
        upstream.reached("wait_safe", before + 1);
        match nth {
            0 => b.kill(),
            _ => b.stop(),
        }
        until("the step was tried again while the peer is gone", || {
            (stand(&caller.run_status(run), "safe")["attempt"].as_u64() > Some(2)).then_some(())
        });
        upstream.write("go", "");
        serve(&mut b, &upstream, &a);
        caller.run_until(run, "succeeded");
        upstream.remove("go");
    }
    a.ends_well();
    b.ends_well();
}
