//! `cairn peers` as it is typed: what needs a server, what the files tell, and what it comes to.
//!
//! Invariant: exit codes are 1 where the answer is no, and 2 where what was typed makes no sense.

use std::net::TcpListener;

use serde_json::Value;

use crate::{
    harness::{Ran, cairn, run, temp},
    peers::nodes::Node,
};

fn in_files(node: &Node, args: &[&str]) -> Ran {
    let mut command = cairn(&[&["peers"], args].concat());
    command.arg("--data").arg(node.data());
    run(command)
}

#[test]
fn what_the_log_knows_of_peers_is_told_without_a_server() {
    let (mut one, mut other) = (Node::new(), Node::new());
    other.start("", "");
    one.start("", "");
    one.connect(&other);
    let served = one.caller().tell("peer_metrics", serde_json::json!({"peer_id": other.peer}));
    other.ends_well();
    one.sees(served["peer_id"].as_str().expect("an id"), "disconnected");
    one.stop();
    let before = one.events().len();
    let peer = served["peer_id"].as_str().expect("an id");
    let listed = in_files(&one, &["list", "--json"]).succeeded();
    let listed: Value = serde_json::from_str(&listed).expect("json");
    assert_eq!(
        (&listed["peers"][0]["peer_id"], &listed["peers"][0]["status"]),
        (&peer.into(), &"disconnected".into())
    );
    let measured: Value =
        serde_json::from_str(&in_files(&one, &["metrics", peer, "--history", "--json"]).succeeded())
            .expect("json");
    assert_eq!(
        measured["connection_info"]["multiaddrs"], served["connection_info"]["multiaddrs"],
        "{measured}"
    );
    assert!(measured["history"].is_array(), "{measured}");
    for args in
        [&["connect", peer][..], &["discover"], &["disconnect", peer], &["follow", peer], &["bootstrap"]]
    {
        let refused = in_files(&one, args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {refused:?}");
        assert!(refused.stderr.contains("needs a running server"), "{args:?}: {refused:?}");
    }
    assert_eq!(one.events().len(), before, "asking changes nothing");
}

#[test]
fn what_makes_no_sense_is_one_exit_code_and_an_answer_of_no_another() {
    let node = Node::running();
    for args in [
        &["list", "--limit", "0"][..],
        &["list", "--status", "odd"],
        &["list", "--sort", "odd"],
        &["discover", "--max", "0"],
        &["bootstrap", "--min", "0"],
        &["connect", crate::peers::PEER, "--retries", "11"],
        &["metrics", crate::peers::PEER, "--history", "--hours", "169"],
    ] {
        let refused = node.runs(&[&["peers"], args].concat());
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {refused:?}");
    }
    let nobody = format!("/ip4/127.0.0.1/tcp/9/p2p/{}", crate::peers::PEER);
    let alone = node.runs(&["peers", "bootstrap", &nobody, "--timeout-ms", "2000"]);
    assert_eq!(alone.status.code(), Some(1), "{alone:?}");
    assert!(
        alone.stdout.contains("not joined") && alone.stdout.contains("/ip4/127.0.0.1/tcp/9 "),
        "{alone:?}"
    );
    let other = Node::running();
    let joined = node.runs(&["peers", "bootstrap", &other.full()]).succeeded();
    assert!(joined.contains("joined: 1 connected"), "{joined}");
    node.ends_well();
    other.ends_well();
}

#[test]
fn a_network_that_cannot_start_says_why_once() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let dir = temp();
    let config = dir.path().join("node.toml");
    std::fs::write(&config, format!("[p2p]\nenable = true\nlisten = [\"/ip4/127.0.0.1/tcp/{port}\"]\n"))
        .expect("it can be written");
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&config).arg("--data").arg(dir.path().join("data"));
    let ran = run(command);
    assert!(!ran.status.success(), "{ran:?}");
    assert_eq!(ran.stderr.matches("the network cannot start").count(), 1, "{ran:?}");
    assert_eq!(ran.stderr.matches(&port.to_string()).count(), 1, "{ran:?}");
}
