//! Logs that one node keeps of another: caught up with, resumed after crashes, held to the owner's word.
//!
//! Invariant: what a follower holds is the owner's bytes, checked by a run of `cairn log verify` of its own.

use std::{path::PathBuf, time::Instant};

use cairn::{
    event::{
        Body, Event,
        peer::{PeerDiscovered, Source},
    },
    ledger::{Command, peers::Peering},
    log::home::Home,
    peer::News,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    peers::nodes::{Node, ending, remotes, started},
    questions,
    record::{self, until},
    upstream::Upstream,
};

pub const READS: &str = "scopes = [\"mcp:call\", \"audit:read\"]";
/// Events that take a follower a while.
const MANY: usize = 6_000;

/// The one followed log as its follower lists it; null while nothing of it is held.
pub fn followed(node: &Node) -> Value {
    node.server().get("/v1/followed").json()["followed"][0].clone()
}

/// Where a follower keeps the log.
pub fn directory(node: &Node) -> PathBuf {
    let mut entries = std::fs::read_dir(node.path("followed")).expect("something is followed");
    entries.next().expect("something is followed").expect("it can be read").path()
}

/// Waits until the follower holds all that the owner has.
pub fn caught_up(follower: &Node, owner: &Node) -> Value {
    until("the follower holds all", || {
        let held = followed(follower);
        (held["size"] == owner.events().len() && held["signed"] == held["size"]).then_some(held)
    })
}

/// Adds events to the log of a node that does not run.
pub fn grow(node: &Node, count: usize) {
    let home = Home::existing(node.data()).expect("the node has a log");
    let (ledger, running) = questions::open(&home);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let news = (0..count).map(|nth| {
        let facts = PeerDiscovered {
            source: Source::File,
            addrs: vec![format!("/ip4/192.0.2.1/tcp/{nth}")],
            capabilities: None,
        };
        let news = News::Discovered { facts, ttl_ms: 3_600_000 };
        ledger.submit(Command::Peer(Box::new(Peering::new(crate::peers::PEER, news))))
    });
    for told in runtime.block_on(join_all(news)) {
        told.expect("the ledger runs");
    }
    drop(ledger);
    running.join();
}

pub fn verified(follower: &Node) {
    let directory = directory(follower);
    let (code, report) = record::verify(&directory);
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_follower_keeps_up_and_gives_auditors_the_owners_bytes() {
    let upstream = Upstream::new(&["tool"]);
    let (mut owner, mut follower) = (Node::new(), Node::new());
    let tables = format!("{}{}", upstream.table("up", "prefix = \"\""), follower.entry(READS));
    owner.start("", &tables);
    follower.start("", &owner.dialled("follow = true"));
    caught_up(&follower, &owner);
    let answer = owner.call("tool", json!({"n": 1}));
    let since = Instant::now();
    caught_up(&follower, &owner);
    assert!(since.elapsed().as_secs() < 10, "a head is told, not asked for: {:?}", since.elapsed());
    let meta = &answer["result"]["_meta"];
    let (event, output) =
        (meta["io.cairn/event"].as_str().expect("text"), meta["io.cairn/output"].as_str().expect("text"));
    for path in [format!("/v1/events/{event}"), format!("/v1/blocks/{event}"), format!("/v1/blocks/{output}")]
    {
        let (theirs, ours) = (owner.server().get(&path), follower.server().get(&path));
        assert_eq!((theirs.status, ours.status), (200, 200), "{path}: {ours:?}");
        assert_eq!(theirs.body, ours.body, "{path}");
    }
    let log = followed(&follower)["log"].as_str().expect("a name").to_owned();
    let listed = follower.server().get(&format!("/v1/followed/{log}/events?limit=5")).json();
    assert!(listed["events"].as_array().is_some_and(|events| events.len() == 5), "{listed}");
    let head = follower.server().get(&format!("/v1/followed/{log}/checkpoint"));
    assert!(head.text().contains('\n') && head.status == 200, "{head:?}");
    let unknown = follower
        .server()
        .get(&format!("/v1/events/{}", cairn::block::Cid::of(cairn::block::Codec::DagCbor, b"no")));
    assert_eq!(unknown.status, 404);
    let told = follower.about(&owner.peer, "log.followed");
    assert!((1..=2).contains(&told.len()), "at most one a minute, and the first: {}", told.len());
    let before = followed(&follower);
    assert_eq!((&before["status"], &before["error"]), (&json!("following"), &Value::Null), "{before}");
    follower.caller().tell("peer_follow", json!({"peer_id": owner.peer}));
    let after = followed(&follower);
    assert_eq!(
        (&after["status"], &after["since_ms"]),
        (&before["status"], &before["since_ms"]),
        "it goes on"
    );
    let info = follower.caller().tell("peer_metrics", json!({"peer_id": owner.peer}));
    assert_eq!(info["connection_info"]["followed"][0]["log"], *log, "{info}");
    follower.caller().tell("peer_unfollow", json!({"peer_id": owner.peer}));
    let held = followed(&follower)["size"].clone();
    owner.call("tool", json!({"n": 2}));
    owner.ends_well();
    assert_eq!(followed(&follower)["size"], held, "what is held stays, and grows no more");
    follower.stop();
    verified(&follower);
    record::check(follower.data());
}

#[test]
fn a_log_is_shown_to_those_only_who_may_read_it() {
    let (mut owner, mut follower) = (Node::new(), Node::new());
    owner.start("", &follower.entry("scopes = [\"mcp:call\"]"));
    follower.start("", &owner.dialled("follow = true"));
    let denied = until("the follower is refused", || {
        Some(followed(&follower)).filter(|followed| followed["status"] == "denied")
    });
    assert_eq!((&denied["size"], &denied["peer"]), (&json!(0), &json!(owner.peer)), "{denied}");
    assert!(denied["log"].is_string() && denied["since_ms"].is_u64(), "{denied}");
    assert!(denied["error"].as_str().is_some_and(|error| error.ends_with("declined: denied")), "{denied}");
    let listed = follower.runs(&["peers", "follow", "--list"]).succeeded();
    assert!(listed.contains("denied") && listed.contains(&owner.peer), "{listed}");
    let metrics = follower.server().get("/metrics").text().to_owned();
    assert!(metrics.contains(r#"cairn_followed{status="denied"} 1"#), "{metrics}");
    owner.stop();
    let stalled = until("the owner is gone", || {
        Some(followed(&follower)).filter(|followed| followed["status"] == "stalled")
    });
    assert!(stalled["error"].as_str().is_some_and(|error| error.contains("not connected")), "{stalled}");
    owner.start("", &follower.entry(READS));
    caught_up(&follower, &owner);
    let held = until("it is followed", || {
        Some(followed(&follower)).filter(|followed| followed["status"] == "following")
    });
    assert_eq!(held["error"], Value::Null, "{held}");
    assert!(held["since_ms"].as_u64() > denied["since_ms"].as_u64(), "{held}");
    follower.caller().tell("peer_unfollow", json!({"peer_id": owner.peer}));
    assert_eq!(followed(&follower)["status"], "kept");
    owner.ends_well();
    follower.stop();
    let mut offline = crate::harness::cairn(&["peers", "follow", "--list", "--data"]);
    offline.arg(follower.data());
    let listed = crate::harness::run(offline).succeeded();
    assert!(listed.contains("kept") && listed.contains(held["log"].as_str().expect("a name")), "{listed}");
}

#[test]
fn a_follower_without_a_right_to_payloads_has_the_events_and_later_the_rest() {
    let (mut owner, mut follower) = (Node::new(), Node::new());
    owner.start("", &follower.entry(&format!("{READS}\npayloads = false")));
    let answer = owner.call("tools_dispatch", json!({"tool": "nobody_has_this"}));
    follower.start("", &owner.dialled("follow = true"));
    caught_up(&follower, &owner);
    let output = answer["result"]["_meta"]["io.cairn/output"].as_str().expect("text").to_owned();
    let block = |node: &Node| node.server().get(&format!("/v1/blocks/{output}"));
    assert_ne!(block(&follower).status, 200, "its content stays with its owner");
    let subject = answer["result"]["_meta"]["io.cairn/event"].as_str().expect("text");
    let path = format!("/v1/receipts/{subject}");
    let proven = |node: &Node| Some(node.server().get(&path)).filter(|answer| answer.status == 200);
    let receipt = until("it is proven all the same", || proven(&follower));
    assert_eq!(receipt.body, proven(&owner).expect("its owner proves it").body);
    owner.stop();
    owner.start("", &follower.entry(READS));
    until("the payload comes", || (block(&follower).status == 200).then_some(()));
    assert_eq!(block(&follower).body, block(&owner).body);
    owner.ends_well();
    follower.stop();
    verified(&follower);
}

#[test]
fn kills_on_either_side_midway_cost_nothing_of_what_was_kept() {
    let (mut owner, mut follower) = (Node::new(), Node::new());
    grow(&owner, MANY);
    owner.start("", &follower.entry(READS));
    let (dials, shows) = (owner.dialled("follow = true"), follower.entry(READS));
    let held = |node: &Node| followed(node)["size"].as_u64().unwrap_or(0);
    let mut before = 0;
    for kills_owner in [false, true, false, true] {
        follower.start("", &dials);
        until("something of it is held", || (held(&follower) > before).then_some(()));
        if kills_owner {
            owner.kill();
            owner.start("", &shows);
        }
        follower.kill();
        let (code, report) = record::verify(&directory(&follower));
        assert_ne!(code, Some(1), "what was kept is whole: {report}");
        before = before.max(MANY as u64 / 8);
        if size_on_disk(&follower) >= MANY as u64 {
            break;
        }
    }
    follower.start("", &dials);
    caught_up(&follower, &owner);
    follower.stop();
    verified(&follower);
    record::check(follower.data());
    owner.ends_well();
}

fn size_on_disk(follower: &Node) -> u64 {
    record::events(&directory(follower)).len() as u64
}

#[test]
fn a_log_that_forks_is_evidence_and_its_peer_takes_no_part_until_it_is_released() {
    let (upstream, own) = (Upstream::new(&["tool"]), Upstream::new(&["own"]));
    let (mut owner, mut follower) = (Node::new(), Node::new());
    let tables = format!("{}{}", upstream.table("up", "prefix = \"\""), follower.entry(READS));
    let follows = owner.dialled("follow = true\nscopes = [\"mcp:call\"]");
    let follows = format!("{}{follows}", own.table("up", "prefix = \"\""));
    owner.start("", &tables);
    follower.start("", &follows);
    follower.offers("peers_tool");
    caught_up(&follower, &owner);
    owner.stop();
    let mut fork = owner.copy();
    owner.start("", &tables);
    owner.call("tool", json!({"of": "the owner"}));
    caught_up(&follower, &owner);
    owner.stop();
    // The same key and address, and another history.
    fork.start("", &tables);
    for nth in 0..5 {
        fork.call("tool", json!({"of": "the fork", "nth": nth}));
    }
    let told = until("the fork is told of", || follower.about(&owner.peer, "peer.forked").pop());
    assert!(
        matches!(told.body(), Some(Body::PeerForked(facts)) if facts.size_a > 0 && facts.size_b > 0),
        "{told:?}"
    );
    let evidence: Value = told
        .fields()
        .pay
        .iter()
        .find_map(|pay| serde_json::from_str(&record::content(follower.data(), &pay.cid)).ok())
        .expect("the evidence is kept with it");
    for half in ["held", "told"] {
        assert!(
            evidence[half].as_str().is_some_and(|head| head.contains('\u{2014}')),
            "a signed head: {evidence}"
        );
    }
    assert_eq!(followed(&follower)["status"], "quarantined");
    let row = until("it is quarantined", || {
        Some(follower.row(&owner.peer)).filter(|row| row["quarantined"] == true)
    });
    assert_eq!(row["peer_id"], owner.peer);
    let calls = upstream.calls().len();
    until("its tools are called no more", || {
        let answer = follower.call("peers_tool", json!({}));
        (answer["error"].is_object() || answer["result"]["isError"] == true).then_some(())
    });
    assert!(upstream.calls().len() <= calls + 1, "{:?}", upstream.calls());
    fork.offers("peers_own");
    let refused = until("its own calls are refused", || {
        let answer = fork.call("peers_own", json!({}));
        (answer["result"]["isError"] == true).then_some(answer)
    });
    let said = refused["result"]["_meta"]["io.cairn/error"]["message"].as_str().expect("a message");
    for part in ["signed two histories", &told.cid().to_string(), "--release"] {
        assert!(said.contains(part), "{said}");
    }
    let error =
        follower.caller().refused("peer_follow", json!({"peer_id": owner.peer}), "failed_precondition");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("release")), "{error}");
    fork.stop();
    follower.stop();
    record::check(follower.data());
    follower.start("", &follows);
    assert_eq!(follower.row(&owner.peer)["quarantined"], true, "a restart forgives nothing");

    owner.start("", &tables);
    follower.sees(&owner.peer, "connected");
    let ran = follower.runs(&["peers", "follow", &owner.peer, "--release", "--reason", "the copy is gone"]);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(follower.row(&owner.peer)["quarantined"], false);
    owner.call("tool", json!({"of": "the owner again"}));
    caught_up(&follower, &owner);
    follower.offers("peers_tool");
    until("its tools are called again", || {
        let answer = follower.call("peers_tool", json!({}));
        answer["result"]["content"].is_array().then_some(())
    });
    owner.offers("peers_own");
    until("its own calls are served again", || {
        (owner.call("peers_own", json!({}))["result"]["isError"] != true).then_some(())
    });
    owner.ends_well();
    follower.stop();
    verified(&follower);
    let (code, report) = record::verify(follower.data());
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn an_auditor_walks_from_a_call_into_the_log_of_the_peer_that_ran_it() {
    let upstream = Upstream::new(&["tool"]);
    let (mut ran, mut called) = (Node::new(), Node::new());
    ran.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), called.entry(READS)));
    called.start("", &ran.dialled(""));
    called.offers("peers_tool");
    let answer = called.call("peers_tool", json!({"n": 1}));
    let ended = answer["result"]["_meta"]["io.cairn/event"].as_str().expect("an event").to_owned();
    let (ours, theirs) = (called.events(), ran.events());
    let (remote, _) = remotes(&ours).pop().expect("the call was taken to a peer");
    let start = started(&theirs, "tool", &called.peer);
    let end = ending(&theirs, start.cid());
    let edge = |from: &str, to: String, kind: &str| json!({"from": from, "to": to, "kind": kind});

    let walk = called.server().get(&format!("/v1/provenance/{ended}")).json();
    let edges = walk["edges"].as_array().expect("a list");
    assert!(edges.contains(&edge(&ended, remote.cid().to_string(), "remote")), "{walk}");
    assert!(edges.contains(&edge(&remote.cid().to_string(), end.cid().to_string(), "ref")), "{walk}");
    let node = |walk: &Value, cid: String| {
        walk["nodes"].as_array().and_then(|nodes| nodes.iter().find(|node| node["cid"] == cid).cloned())
    };
    let foreign = node(&walk, end.cid().to_string()).expect("it is named");
    assert_eq!((&foreign["type"], &foreign["peer"]), (&json!("foreign"), &json!(ran.peer)));
    let shown = called.runs(&["trace", &ended]).succeeded();
    assert!(shown.contains("remote.called"), "{shown}");
    assert!(shown.contains(&format!("cairn peers follow {}", ran.peer)), "{shown}");

    called.runs(&["peers", "follow", &ran.peer]).succeeded();
    let receipt = format!("/v1/receipts/{}", end.cid());
    let theirs = until("both have the receipt", || {
        let (theirs, ours) = (ran.server().get(&receipt), called.server().get(&receipt));
        (ours.status == 200 && theirs.body == ours.body).then_some(theirs.body)
    });
    let log = followed(&called);
    ran.kill();
    assert_eq!(called.server().get(&receipt).body, theirs);
    let walk = called.server().get(&format!("/v1/provenance/{ended}")).json();
    for theirs in [&start, &end] {
        let node = node(&walk, theirs.cid().to_string()).expect("it is walked to");
        assert_eq!(
            (&node["type"], &node["log"], &node["origin"]),
            (&json!("event"), &log["log"], &log["origin"])
        );
    }
    let edges = walk["edges"].as_array().expect("a list");
    let cause = remote.fields().cause.expect("it names the call").to_string();
    assert!(edges.contains(&edge(&start.cid().to_string(), cause.clone(), "ref")), "and back: {walk}");
    let tool = called.caller().tell("provenance_trace", json!({"cid": ended}));
    assert_eq!((&tool["nodes"], &tool["edges"]), (&walk["nodes"], &walk["edges"]));
    let after = called.server().get(&format!("/v1/provenance/{}?direction=descendants", start.cid())).json();
    assert!(node(&after, ended.clone()).is_some(), "what came of it here: {after}");
    let whole = called.caller().tell("provenance_receipt", json!({"cid": end.cid().to_string()}));
    assert_eq!((&whole["origin"], &whole["key"]), (&log["origin"], &log["key"]));
    let verdict = called.caller().tell("provenance_verify", json!({"cid": end.cid().to_string()}));
    assert_eq!(verdict["verdict"], "verified", "{verdict}");
    let text = called.runs(&["trace", &ended]).succeeded();
    assert!(text.contains("call.started") && text.contains(log["log"].as_str().expect("text")));

    called.stop();
    let offline = |args: &[&str]| {
        let mut command = crate::harness::cairn(args);
        command.arg("--data").arg(called.data());
        crate::harness::run(command).succeeded()
    };
    assert_eq!(offline(&["trace", &ended]), text, "the files tell the same");
    let (end, key) = (end.cid().to_string(), log["key"].as_str().expect("a key"));
    let file = called.path("receipt.json");
    std::fs::write(&file, offline(&["receipt", &end])).expect("the directory can be written");
    let path = file.to_str().expect("a path is text");
    crate::harness::run(crate::harness::cairn(&["receipt", "verify", path, "--key", key])).succeeded();
    let output = walk["edges"]
        .as_array()
        .and_then(|edges| edges.iter().find(|edge| edge["from"] == *end && edge["kind"] == "output"));
    let output = output.and_then(|edge| edge["to"].as_str()).expect("their output");
    assert!(offline(&["log", "show", output, "--payloads"]).contains("call 1"));
    assert!(offline(&["log", "show", &end]).contains("call.succeeded"));
}

#[test]
fn calls_are_found_by_every_name_of_their_tool() {
    let upstream = Upstream::new(&["tool", "other"]);
    let (mut ran, mut called) = (Node::new(), Node::new());
    ran.start("", &format!("{}{}", upstream.table("up", "prefix = \"our_\""), called.entry(READS)));
    called.start("", &ran.dialled(""));
    called.offers("peers_tool");
    ran.call("our_other", json!({}));
    let contract = called.call("peers_tool", json!({}))["result"]["_meta"]["io.cairn/contract"].clone();
    let contract = contract.as_str().expect("a contract");
    let start = |node: &Node| {
        let is = |event: &&Event| event.fields().tool.is_some_and(|tool| tool.to_string() == contract);
        let events = node.events();
        events.iter().filter(is).map(|event| event.cid().to_string()).collect::<Vec<_>>()
    };
    let names: [(&Node, &[&str]); 2] =
        [(&called, &["peers_tool", contract]), (&ran, &["our_tool", "tool", contract])];
    for (node, names) in names {
        let expected = start(node);
        assert!(expected.len() >= 2, "{expected:?}");
        for name in names {
            let listed = node.server().get(&format!("/v1/events?tool={name}")).json();
            let cids = |listed: &Value| {
                let events = listed["events"].as_array().expect("a list");
                events
                    .iter()
                    .map(|event| event["cid"].as_str().expect("a name").to_owned())
                    .collect::<Vec<_>>()
            };
            assert_eq!(cids(&listed), expected, "{name}");
            assert_eq!(
                cids(&node.caller().tell("provenance_query", json!({"tool": name}))),
                expected,
                "{name}"
            );
            let told = node.runs(&["log", "query", "--tool", name, "--json"]).succeeded();
            assert_eq!(told.lines().count(), expected.len(), "{name}: {told}");
        }
    }
}
