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

#[test]
fn a_run_is_carried_to_the_peer_it_names_and_waits_for_its_return() {
    let upstreams = [(); 2].map(|()| Upstream::new(&["count", SAFE, "wait_once"]));
    let (mut a, mut b, mut c) = (Node::new(), Node::new(), Node::new());
    serve(&mut b, &upstreams[0], &a);
    serve(&mut c, &upstreams[1], &a);
    upstreams[1].write("go", "");
    let dials = format!("{}{}", b.dialled(""), c.dialled(""));
    a.start("", &dials);
    for tool in ["peers_count", "peers_wait_safe", "peers_wait_once"] {
        a.offers(tool);
    }
    for peer in [&b, &c] {
        a.sees(&peer.peer, "connected");
    }
    let mut caller = a.caller();

    let nobody =
        json!({"workflow_id": "x", "name": "x", "peer": "nobody", "steps": [step("s", "peers_count", &[])]});
    let error = caller.refused("workflow_submit", nobody, "invalid_argument");
    assert_eq!(error["faults"][0]["place"], "/peer", "{error}");
    let other = json!({"workflow_id": "x", "name": "x", "peer": b.peer,
                       "steps": [{"step_id": "s", "action": "queue_stats"}]});
    let error = caller.refused("workflow_submit", other, "invalid_argument");
    let fault = format!("peer `{}` does not offer `queue_stats`", b.peer);
    assert_eq!(error["faults"], json!([{"place": "/steps/0/action", "fault": fault}]), "{error}");

    let steps = json!([
        step("first", "peers_count", &[]),
        {"step_id": "pause", "action": "wait:time", "depends_on": ["first"], "inputs": {"ms": 1}},
        step("safe", "peers_wait_safe", &["pause"]),
        step("last", "peers_count", &["safe"]),
    ]);
    let submitted = caller.run("carried", steps, json!({"peer": b.peer}));
    assert_eq!(submitted["peer_assigned"], b.peer, "{submitted}");
    upstreams[0].reached("wait_safe", 1);
    b.kill();
    until("the step was tried again while the peer is gone", || {
        (stand(&caller.run_status("carried"), "safe")["attempt"].as_u64() > Some(2)).then_some(())
    });
    // The other peer is there all the time, and has what the step needs.
    assert_eq!(calls(&upstreams[1], ""), 0);
    upstreams[0].write("go", "");
    serve(&mut b, &upstreams[0], &a);
    let ended = caller.run_until("carried", "succeeded");
    assert_eq!(ended["peer_id"], b.peer, "{ended}");
    assert_eq!(calls(&upstreams[1], ""), 0, "{:?}", upstreams[1].calls());
    assert_eq!((calls(&upstreams[0], "first"), calls(&upstreams[0], "last")), (1, 1));
    assert_eq!(caller.tell("workflow_replay", json!({"workflow_id": "carried"}))["matched"], true);

    upstreams[0].remove("go");
    caller.run("once", json!([step("once", "peers_wait_once", &[])]), json!({"peer": b.peer}));
    upstreams[0].reached("wait_once", 1);
    b.kill();
    let failed = caller.run_until("once", "failed");
    assert_eq!(stand(&failed, "once")["error"]["code"], "unavailable", "{failed}");
    assert_eq!(calls(&upstreams[1], ""), 0);
    for (filter, ids) in [(&b.peer, vec!["carried", "once"]), (&c.peer, vec![])] {
        let listed = caller.tell("workflow_list", json!({"peer_filter": filter}));
        let found: Vec<&str> = listed["workflows"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|row| row["workflow_id"].as_str())
            .collect();
        assert_eq!(
            (found, listed["total_count"].as_u64()),
            (ids.clone(), Some(ids.len() as u64)),
            "{listed}"
        );
    }

    let events = a.events();
    let told = events.iter().filter_map(|event| match event.body() {
        Some(Body::WorkflowSubmitted(facts)) => facts.peer,
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [b.peer.clone(), b.peer.clone()]);
    assert!(remotes(&events).iter().all(|(_, facts)| facts.peer == b.peer));
    a.stop();
    let before = record::digests(a.data());
    record::forget_state(a.data());
    let mut command = harness::cairn(&["rebuild", "--data"]);
    command.arg(a.data());
    harness::run(command).succeeded();
    assert_eq!(record::digests(a.data()), before, "the state derived again is the same");
    record::check(a.data());
    serve(&mut b, &upstreams[0], &a);
    b.ends_well();
    c.ends_well();
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
