//! Nodes that die midway: one ending for every call, whoever dies, and another peer where that is allowed.
//!
//! Invariant: nothing is run twice that may not be, and every log is whole after it.

use std::thread;

use cairn::event::{Body, Event, body::Failure};
use serde_json::{Value, json};

use crate::{
    peers::nodes::{Node, ending, remotes},
    record::{self, until},
    speech,
    upstream::Upstream,
};

const CALLS: &str = "scopes = [\"mcp:call\"]";
/// A tool that waits until its directory says go, and may be asked twice.
const WAITS_TWICE: &str =
    r#"{"name":"wait_safe","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#;

/// A tool that answers at once, and may be asked twice.
const SAFE: &str = r#"{"name":"safe","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#;

fn tables(upstream: &Upstream, caller: &Node) -> String {
    format!("{}{}", upstream.table("up", "prefix = \"\""), caller.entry(CALLS))
}

/// Calls a tool in the background; its answer comes when the thread is joined, none where the node died.
fn calls(node: &Node, tool: &str) -> thread::JoinHandle<Option<Value>> {
    let (url, tool) = (node.server().url.clone(), tool.to_owned());
    thread::spawn(move || {
        let mut connection = speech::Connection::open(&url)?;
        let message = speech::modern(1, "tools/call", speech::call(&tool, &json!({})));
        Some(connection.ask(&message)?.json())
    })
}

fn starts(events: &[Event], name: &str) -> Vec<Event> {
    let named = |event: &&Event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == name);
    events.iter().filter(named).cloned().collect()
}

#[test]
fn a_peer_that_is_killed_midway_fails_the_call_once_and_ends_its_own_when_it_is_back() {
    let upstream = Upstream::new(&["wait", WAITS_TWICE]);
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &tables(&upstream, &a));
    a.start("", &b.dialled(""));
    a.offers("peers_wait");
    let asked = calls(&a, "peers_wait");
    upstream.reached("wait", 1);
    b.kill();
    let answer = asked.join().expect("it only asks").expect("a lives");
    let error = &answer["result"]["_meta"]["io.cairn/error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("unavailable"), &json!(false)), "{answer}");
    assert!(error["message"].as_str().is_some_and(|said| said.contains(&b.peer)), "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("may have taken effect")), "{error}");
    let ours = a.events();
    let called = remotes(&ours);
    assert_eq!((called.len(), called[0].1.ok), (1, false), "{:?}", called[0].1);
    let failed = ending(&ours, called[0].0.fields().cause.expect("it names the call"));
    assert!(
        matches!(failed.body(), Some(Body::CallFailed(facts)) if facts.failure == Failure::Transport),
        "{failed:?}"
    );
    b.start("", &tables(&upstream, &a));
    let theirs = b.events();
    let [start] = &starts(&theirs, "wait")[..] else { panic!("it was asked once") };
    assert_eq!(record::kind(&ending(&theirs, start.cid())), "call.interrupted");
    a.offers("peers_wait");
    upstream.write("go", "");
    until("it is called again", || {
        (a.call("peers_wait", json!({}))["result"]["isError"] != true).then_some(())
    });
    upstream.remove("go");
    a.offers("peers_wait_safe");
    let asked = calls(&a, "peers_wait_safe");
    upstream.reached("wait_safe", 1);
    b.kill();
    let answer = asked.join().expect("it only asks").expect("a lives");
    let error = &answer["result"]["_meta"]["io.cairn/error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("unavailable"), &json!(true)), "{answer}");
    b.start("", &tables(&upstream, &a));
    a.ends_well();
    b.ends_well();
}

#[test]
fn a_peer_that_hangs_leaves_time_for_the_next_one() {
    const TIMES: &str = "[router.lanes.peer]\ntimeout_ms = 6000\n";
    let upstream = Upstream::new(&[SAFE]);
    let (mut a, mut b, mut c) = (Node::new(), Node::new(), Node::new());
    b.start("", &tables(&upstream, &a));
    c.start("", &tables(&upstream, &a));
    a.start("", &format!("{TIMES}{}{}", b.dialled(""), c.dialled("")));
    until("both are known to offer it", || {
        let known = |node: &Node| {
            let listed = a.caller().tell("peer_list", json!({"capability_filter": ["safe"]}));
            listed["peers"].as_array().into_iter().flatten().any(|row| row["peer_id"] == *node.peer)
        };

        (known(&b) && known(&c)).then_some(())
    });
    a.offers("peers_safe");
    b.server().process.signal("STOP");
    let asked: Vec<_> = (0..8).map(|_| calls(&a, "peers_safe")).collect();
    for answer in asked {
        let answer = answer.join().expect("it only asks").expect("a lives");
        assert_ne!(answer["result"]["isError"], true, "{answer}");
        let output = &answer["result"]["content"];
        assert!(output.is_array(), "{answer}");
    }
    let tried = remotes(&a.events());
    assert!(tried.iter().any(|(_, facts)| !facts.ok), "the one that hangs was asked");
    assert!(tried.iter().all(|(_, facts)| facts.ok == (facts.peer == c.peer)), "and it alone fails");
    b.server().process.signal("CONT");
    for node in [a, b, c] {
        node.ends_well();
    }
}

#[test]
fn a_caller_that_is_killed_midway_has_one_ending_after_it_and_its_peer_has_one_too() {
    let upstream = Upstream::new(&["wait"]);
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &tables(&upstream, &a));
    a.start("", &b.dialled(""));
    a.offers("peers_wait");
    let asked = calls(&a, "peers_wait");
    upstream.reached("wait", 1);
    a.kill();
    assert!(asked.join().expect("it only asks").is_none(), "nobody answered");
    // The stream is gone: nobody waits for the answer.
    let theirs = until("b's call has ended", || {
        let events = b.events();
        let start = starts(&events, "wait").pop()?.cid();
        let ended = events.iter().any(|event| event.fields().cause == Some(start));
        ended.then_some((events, start))
    });
    assert_eq!(record::kind(&ending(&theirs.0, theirs.1)), "call.cancelled");
    a.start("", &b.dialled(""));
    let ours = a.events();
    let [start] = &starts(&ours, "peers_wait")[..] else { panic!("it was called once") };
    assert_eq!(record::kind(&ending(&ours, start.cid())), "call.interrupted");
    upstream.write("go", "");
    a.offers("peers_wait");
    assert!(a.call("peers_wait", json!({}))["result"]["content"].is_array());
    assert_eq!(upstream.calls().iter().filter(|line| line.starts_with("wait")).count(), 2);
    a.ends_well();
    b.ends_well();
}

#[test]
fn another_peer_is_asked_where_the_tool_may_run_twice_and_none_where_it_may_not() {
    let upstreams = [(); 2].map(|()| Upstream::new(&[WAITS_TWICE, "wait_once"]));
    let mut a = Node::new();
    let mut peers = [Node::new(), Node::new()];
    for (peer, upstream) in peers.iter_mut().zip(&upstreams) {
        peer.start("", &tables(upstream, &a));
    }
    a.start("", &format!("{}{}", peers[0].dialled(""), peers[1].dialled("")));
    for tool in ["peers_wait_safe", "peers_wait_once"] {
        a.offers(tool);
    }
    for peer in &peers {
        a.sees(&peer.peer, "connected");
    }
    until("both serve it", || {
        // One contract of both: it is one tool.
        (a.tools().iter().filter(|name| name.starts_with("peers_wait")).count() == 2).then_some(())
    });
    for (tool, repeatable) in [("wait_safe", true), ("wait_once", false)] {
        let public = format!("peers_{tool}");
        let asked = calls(&a, &public);
        let count =
            |upstream: &Upstream| upstream.calls().iter().filter(|line| line.starts_with(tool)).count();
        let first = until("one of them is asked", || (0..2).find(|nth| count(&upstreams[*nth]) == 1));
        upstreams[1 - first].write("go", "");
        peers[first].kill();
        let answer = asked.join().expect("it only asks").expect("a lives");
        let answered = answer["result"]["content"].is_array() && answer["result"]["isError"] != true;
        assert_eq!(answered, repeatable, "{tool}: {answer}");
        assert_eq!(count(&upstreams[1 - first]), usize::from(repeatable), "{tool}");
        let events = a.events();
        let start = starts(&events, &public).pop().expect("it was called").cid();
        let tried: Vec<(u64, bool)> = remotes(&events)
            .iter()
            .filter(|(event, _)| event.fields().cause == Some(start))
            .map(|(_, facts)| (facts.attempt, facts.ok))
            .collect();
        match repeatable {
            true => assert_eq!(tried, [(1, false), (2, true)]),
            false => assert_eq!(tried, [(1, false)]),
        }
        upstreams[1 - first].remove("go");
        let fresh = tables(&upstreams[first], &a);
        peers[first].start("", &fresh);
        a.sees(&peers[first].peer, "connected");
        a.offers("peers_wait_once");
    }
    a.ends_well();
    for peer in peers {
        peer.ends_well();
    }
}
