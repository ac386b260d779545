//! A program that is built without peers: what it refuses, what it answers, and what it still reads.
//!
//! `cargo test --no-default-features --test it alone::` runs these.

use std::fs;

use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp},
    work::Caller,
};

const WHY: &str = "this program was built without peers; build it with the feature `p2p`";
const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

#[test]
fn a_configuration_that_enables_the_network_is_refused() {
    let temp = temp();
    let (config, data) = (temp.path().join("cairn.toml"), temp.path().join("data"));
    fs::write(&config, "[p2p]\nenable = true\n").expect("the file can be written");
    for args in [&["config", "check"][..], &["serve", "--listen", "127.0.0.1:0", "--config"]] {
        let mut command = cairn(args);
        command.arg(&config).arg("--data").arg(&data);
        let refused = run(command);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = format!("line 2: p2p.enable: {WHY}");
        assert!(refused.stderr.contains(&said), "{refused:?}");
    }
    assert!(!data.exists(), "nothing is begun");
}

#[test]
fn the_peer_tools_are_on_offer_and_say_what_is_missing() {
    let temp = temp();
    let (config, data) = (temp.path().join("cairn.toml"), temp.path().join("data"));
    fs::write(&config, "[p2p]\nenable = true\n").expect("the file can be written");
    let server = Server::start(&data, &["--no-p2p", "--config", config.to_str().expect("paths are text")]);
    assert!(!server.ready.contains(" peer="), "{}", server.ready);
    let tools = run(cairn(&["tools", "--json", "--url", &server.url])).succeeded();
    let tools: Vec<Value> = serde_json::from_str(&tools).expect("json");
    let mut caller = Caller::new(&server);
    for (tool, arguments) in [
        ("peer_discover", json!({})),
        ("peer_connect", json!({"peer_id": PEER})),
        ("peer_disconnect", json!({"peer_id": PEER})),
        ("peer_list", json!({})),
        ("peer_metrics", json!({"peer_id": PEER})),
        ("bootstrap_network", json!({})),
        ("peer_follow", json!({"peer_id": PEER})),
        ("peer_unfollow", json!({"peer_id": PEER})),
    ] {
        assert!(tools.iter().any(|listed| listed["name"] == tool), "{tool} is not on offer");
        let error = caller.refused(tool, arguments, "unavailable");
        assert_eq!(error["hint"], WHY, "{tool}: {error}");
    }
    let carried = json!({"workflow_id": "x", "name": "x", "peer": PEER,
                         "steps": [{"step_id": "s", "action": "queue_stats"}]});
    let error = caller.refused("workflow_submit", carried, "invalid_argument");
    assert_eq!(error["faults"][0]["place"], "/peer", "{error}");
    // The files are read as ever, while the server runs and after it.
    let listed = || {
        let mut command = cairn(&["peers", "list", "--json"]);
        command.arg("--data").arg(&data);
        serde_json::from_str::<Value>(&run(command).succeeded()).expect("json")
    };
    assert_eq!(listed()["peers"], json!([]));
    assert!(server.stop().success());
    assert_eq!(listed()["peers"], json!([]));
    let mut command = cairn(&["key", "--json"]);
    command.arg("--data").arg(&data);
    let key: Value = serde_json::from_str(&run(command).succeeded()).expect("json");
    assert_eq!(key["peer"], Value::Null, "{key}");
}
