//! Nodes that meet: connected by a tool, found by every source, joined by a bootstrap, kept over restarts.

use std::{
    fs,
    net::TcpStream,
    time::{Duration, Instant},
};

use cairn::event::{Body, Event, peer::Parting};
use serde_json::{Value, json};

use crate::{
    harness::{cairn, run, temp},
    peers::{
        nodes::{Foreign, Node, entry},
        registry::{REPOSITORY, Registry, TOKEN},
    },
    record::{self, until},
    work::put,
};

/// Two looks of a node at who is missing, and a little more.
const TWO_LOOKS: Duration = Duration::from_millis(4_500);

fn names(found: &Value) -> Vec<&str> {
    found["peers"].as_array().expect("a list").iter().filter_map(|peer| peer["peer_id"].as_str()).collect()
}

#[test]
fn two_nodes_meet_and_part_and_are_not_dialled_again() {
    let (mut a, b) = (Node::new(), Node::running());
    a.start("min_connections = 1", "");
    let mut caller = a.caller();
    let asked = json!({"peer_id": b.peer, "multiaddr": b.full(), "reason": "to see it"});
    let made = caller.tell("peer_connect", asked.clone());
    assert_eq!(
        (&made["peer_id"], &made["transport"], &made["reused"]),
        (&json!(b.peer), &json!("tcp"), &json!(false))
    );
    assert!(made["agent"].as_str().is_some_and(|agent| agent.starts_with("cairn/")), "{made}");
    assert_eq!(made["attempts"], 1, "{made}");
    let again = caller.tell("peer_connect", asked);
    assert_eq!((&again["reused"], &again["connection_id"]), (&json!(true), &made["connection_id"]));
    let row = a.sees(&b.peer, "connected");
    assert!(row["connected_since"].is_string() && row["latency_ms"].is_null(), "{row}");
    b.sees(&a.peer, "connected");
    let metrics = caller.tell("peer_metrics", json!({"peer_id": b.peer, "include_history": true}));
    let info = &metrics["connection_info"];
    assert_eq!(
        (&info["status"], &info["direction"], &info["connections"]),
        (&json!("connected"), &json!("out"), &json!(1))
    );
    assert!(
        info["protocols"].as_array().is_some_and(|names| names.contains(&json!("/mcp+p2p/1.0.0"))),
        "{info}"
    );
    assert_eq!(metrics["current_metrics"]["latency_ms"], json!({"p50": null, "p99": null}), "{metrics}");
    let theirs = b.caller().tell("peer_metrics", json!({"peer_id": a.peer}));
    assert_eq!(theirs["connection_info"]["direction"], "in", "{theirs}");

    let parted = caller.tell("peer_disconnect", json!({"peer_id": b.peer, "reason": "seen"}));
    assert_eq!(parted["was_connected"], true, "{parted}");
    a.sees(&b.peer, "disconnected");
    b.sees(&a.peer, "disconnected");
    let since = Instant::now();
    until("two looks at who is missing", || (since.elapsed() > TWO_LOOKS).then_some(()));
    assert_eq!(a.about(&b.peer, "peer.connected").len(), 1, "it is not dialled again");
    let again = caller.tell("peer_disconnect", json!({"peer_id": b.peer}));
    assert_eq!(again["was_connected"], false, "{again}");
    caller.refused("peer_metrics", json!({"peer_id": crate::peers::PEER}), "not_found");
    caller.refused("peer_connect", json!({"peer_id": a.peer}), "invalid_argument");

    let events = a.events();
    let first = |name: &str| {
        let named =
            |event: &&Event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == name);
        events.iter().find(named).map(Event::cid)
    };
    for (kind, tool) in [("peer.connected", "peer_connect"), ("peer.disconnected", "peer_disconnect")] {
        let told = a.about(&b.peer, kind);
        assert_eq!((told.len(), told[0].fields().cause), (1, first(tool)), "{kind}");
        assert_eq!(told[0].fields().pay.len(), 1, "the reason is kept with it");
    }
    a.ends_well();
    b.ends_well();
}

#[test]
fn who_is_not_there_is_told_with_the_cause() {
    let (a, mut b) = (Node::running(), Node::new());
    let mut caller = a.caller();
    let error = caller.refused("peer_connect", json!({"peer_id": b.peer}), "not_found");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("peer_discover")), "{error}");
    assert_eq!(error["message"], "no address known of this peer", "it is not looked up again and again");
    let nobody = json!({"peer_id": b.peer, "multiaddr": b.full(), "retry_count": 1, "timeout_ms": 5000});
    let error = caller.refused("peer_connect", nobody, "unavailable");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("tried 2 times")), "{error}");
    a.sees(&b.peer, "unreachable");
    b.start("", "");
    let other = Node::new();
    let wrong = json!({"peer_id": other.peer, "multiaddr": b.address(), "timeout_ms": 5000});
    let told = caller.try_call("peer_connect", &wrong).expect("it answers");
    assert_eq!(told["success"], false, "another peer answers there: {told}");
    for unusable in ["/nonsense", "/ip4/999.0.0.1/tcp/1"] {
        let asked = json!({"peer_id": b.peer, "multiaddr": unusable});
        caller.refused("peer_connect", asked, "invalid_argument");
    }
    caller.tell("peer_connect", json!({"peer_id": b.peer, "multiaddr": b.full()}));
    a.sees(&b.peer, "connected");
}

#[test]
fn every_source_finds_and_says_how_it_fared() {
    let (mut a, mut b, mut c) = (Node::new(), Node::new(), Node::new());
    let shared = temp();
    let file = shared.path().join("peers.json");
    let bad = json!({"peers": [7, {"peer_id": "x"}, {"peer_id": b.peer, "multiaddrs": "no"}]});
    fs::write(&file, bad.to_string()).expect("the directory can be written");
    let registry = Registry::start(vec![
        Registry::issue(1, "Peer: nonsense", "not JSON"),
        Registry::issue(
            2,
            &format!("Peer: {}", a.peer),
            &json!({"peer_id": b.peer, "multiaddrs": []}).to_string(),
        ),
    ]);
    b.start(&format!("dht = true\npeers_file = {file:?}"), "");
    let github = format!("dht = true\ngithub = {REPOSITORY:?}\ngithub_api = {:?}", registry.url);
    c.start_with(&github, "", |mut command| {
        command.env("CAIRN_GITHUB_TOKEN", TOKEN);
        command
    });
    until("c stands in the registry", || {
        let issues = registry.issues();
        issues.iter().any(|issue| issue["title"] == format!("Peer: {}", c.peer)).then_some(())
    });
    until("b stands in the file", || {
        fs::read_to_string(&file).ok().filter(|text| text.contains(&b.address()))
    });
    let p2p = format!("{github}\npeers_file = {file:?}\nbootstrap = [{:?}]", b.full());
    a.start(&p2p, "");
    let mut caller = a.caller();
    let mut discover = |more: Value| {
        let mut asked = json!({"timeout_ms": 10_000, "max_peers": 100});
        put(&mut asked, more);
        caller.tell("peer_discover", asked)
    };
    let found = discover(json!({"sources": ["bootstrap"]}));
    assert_eq!(
        (names(&found), &found["sources"]["bootstrap"]["found"]),
        (vec![&b.peer[..]], &json!(1)),
        "{found}"
    );
    let found = discover(json!({"sources": ["file"], "capability_filter": ["task_submit", "peer_list"]}));
    assert_eq!(names(&found), [b.peer.as_str()], "{found}");
    let said = found["sources"]["file"]["error"].as_str().expect("bad entries are told of");
    assert!(said.starts_with("2 of its entries"), "{found}");
    let found = discover(json!({"sources": ["file"], "capability_filter": ["no_such_tool"]}));
    assert!(names(&found).is_empty(), "{found}");
    let found = discover(json!({"sources": ["github"]}));
    assert_eq!(names(&found), [c.peer.as_str()], "{found}");
    assert!(
        found["sources"]["github"]["error"].as_str().is_some_and(|said| said.starts_with("2 of")),
        "{found}"
    );
    let found = discover(json!({"sources": ["mdns"]}));
    assert!(
        found["sources"]["mdns"]["error"].as_str().is_some_and(|said| said.contains("not configured")),
        "{found}"
    );
    discover(json!({"sources": ["github"]}));
    assert!(registry.asked().iter().any(|asked| asked.ends_with(" 304")), "{:?}", registry.asked());
    registry.limits(true);
    let found = discover(json!({"include_metrics": true}));
    assert!(found["sources"]["github"]["error"].is_string(), "{found}");
    let mut all = names(&found);
    all.sort_unstable();
    let mut expected = [&b.peer[..], &c.peer];
    expected.sort_unstable();
    assert_eq!(all, expected, "what was found before is still known: {found}");
    let asked = registry.asked().len();
    registry.limits(false);
    discover(json!({"sources": ["github"]}));
    assert_eq!(registry.asked().len(), asked, "it is left alone for as long as it asked for");

    // By the table: a meets b, c meets b, and a finds c by what it offers.
    a.connect(&b);
    c.connect(&b);
    until("c is found in the table", || {
        let found = discover(json!({"sources": ["dht"], "capability_filter": ["queue_stats"]}));
        names(&found).contains(&&c.peer[..]).then_some(())
    });
    let ran = a.runs(&["peers", "connect", &c.peer]);
    assert!(ran.stdout.contains(&c.address()), "where it is was found out: {ran:?}");
    for (args, said) in
        [(&["peers", "list", "--wide"][..], "connected"), (&["peers", "discover", "--wide"], "dht found")]
    {
        let told = a.runs(args).succeeded();
        assert!(told.contains(&c.peer) && told.contains(said), "{told}");
    }
    b.stop();
    let text = fs::read_to_string(&file).expect("the file is there");
    assert!(!text.contains(&b.address()) && text.contains("\"x\""), "b withdrew its own entry alone: {text}");
    a.ends_well();
    c.ends_well();
}

#[test]
fn a_bootstrap_connects_within_its_bounds_and_tells_what_failed() {
    let (mut a, b, c) = (Node::new(), Node::running(), Node::running());
    let gone = Node::new();
    a.start("", "");
    let mut caller = a.caller();
    caller.refused(
        "bootstrap_network",
        json!({"min_connections": 3, "max_connections": 2}),
        "invalid_argument",
    );
    let nodes = json!([gone.full(), b.full(), c.full()]);
    let asked = json!({"bootstrap_nodes": nodes, "min_connections": 2, "timeout_ms": 20_000});
    let joined = caller.tell("bootstrap_network", asked);
    assert_eq!((&joined["network_ready"], &joined["connected_count"]), (&json!(true), &json!(2)), "{joined}");
    let attempts = joined["attempts"].as_array().expect("a list");
    for attempt in attempts {
        assert_eq!(attempt["ok"] == true, attempt["error"].is_null(), "{attempt}");
    }
    assert_eq!(attempts.iter().filter(|attempt| attempt["method"] == "bootstrap").count(), 3, "{joined}");
    let failed: Vec<_> = attempts.iter().filter(|attempt| attempt["ok"] == false).collect();
    assert!(failed[0]["multiaddr"].as_str().is_some_and(|at| at.starts_with(&gone.address())), "{joined}");
    assert!(failed[0]["error"].is_string(), "{joined}");
    let asked = json!({"bootstrap_nodes": [gone.full()], "min_connections": 3, "timeout_ms": 3_000});
    let told = caller.try_call("bootstrap_network", &asked).expect("it answers");
    assert_eq!((&told["success"], &told["network_ready"]), (&json!(false), &json!(false)), "{told}");
    assert_eq!(told["failed_count"], 1, "{told}");
    let kinds: Vec<String> = a
        .events()
        .iter()
        .filter(|event| event.fields().subject.starts_with("bootstrap/"))
        .map(|event| record::kind(event).to_owned())
        .collect();
    assert_eq!(kinds, ["bootstrap.started", "bootstrap.finished", "bootstrap.started", "bootstrap.finished"]);
    a.ends_well();
}

#[test]
fn a_node_told_to_have_no_network_has_none() {
    let mut node = Node::new();
    node.start_with("", "", |mut command| {
        command.arg("--no-p2p");
        command
    });
    assert!(!node.server().ready.contains("peer="), "{}", node.server().ready);
    assert!(TcpStream::connect(("127.0.0.1", node.port)).is_err(), "nobody listens");
    let error = node.caller().refused("peer_list", json!({}), "unavailable");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("--no-p2p")), "{error}");
    node.ends_well();
}

#[test]
fn kept_peers_are_connected_again_and_what_a_killed_process_had_is_parted_from() {
    let (mut a, mut b) = (Node::new(), Node::running());
    a.start("", "");
    a.connect(&b);
    b.sees(&a.peer, "connected");
    a.kill();
    a.start("", "");
    a.sees(&b.peer, "connected");
    let parted: Vec<Parting> = a
        .about(&b.peer, "peer.disconnected")
        .iter()
        .filter_map(|event| match event.body() {
            Some(Body::PeerDisconnected(facts)) => Some(facts.cause),
            _ => None,
        })
        .collect();
    assert_eq!(parted, [Parting::Stopped]);
    b.kill();
    a.sees(&b.peer, "disconnected");
    b.start("", "");
    a.sees(&b.peer, "connected");
    let once = json!({"peer_id": b.peer, "multiaddr": b.full(), "persist": false});
    a.caller().tell("peer_disconnect", json!({"peer_id": b.peer}));
    a.caller().tell("peer_connect", once);
    a.stop();
    a.start("", "");
    let since = Instant::now();
    until("two looks at who is missing", || (since.elapsed() > TWO_LOOKS).then_some(()));
    assert_ne!(a.row(&b.peer)["status"], "connected", "it was not to be kept");
    a.ends_well();
    b.ends_well();
}

#[test]
fn a_thousand_that_knock_are_held_to_the_bound_and_the_node_goes_on() {
    let (mut a, mut b) = (Node::new(), Node::new());
    a.start("max_connections = 4", &b.entry(""));
    let knocking: Vec<TcpStream> =
        (0..1_000).filter_map(|_| TcpStream::connect(("127.0.0.1", a.port)).ok()).collect();
    assert!(knocking.len() > 4);
    assert_eq!(a.call("tools_list_categories", json!({}))["result"]["structuredContent"]["success"], true);
    drop(knocking);
    b.start("", "");
    until("b is let in", || {
        let asked = json!({"peer_id": a.peer, "multiaddr": a.full(), "retry_count": 0, "timeout_ms": 2_000});
        b.caller().try_call("peer_connect", &asked).filter(|told| told["success"] == true)
    });
    a.sees(&b.peer, "connected");
    let others: Vec<Node> = (0..4).map(|_| Node::running()).collect();
    let met = others.iter().filter(|other| {
        let asked = json!({"peer_id": a.peer, "multiaddr": a.full(), "retry_count": 0, "persist": false});
        other.caller().try_call("peer_connect", &asked).is_some_and(|told| told["success"] == true)
    });
    assert!(met.count() <= 4);
    let connected = a.caller().tell("peer_list", json!({"status_filter": "connected"}));
    assert!(connected["peers"].as_array().expect("a list").len() <= 4, "{connected}");
    a.ends_well();
}

#[test]
fn whom_the_lists_keep_out_is_out_both_ways() {
    let (mut a, mut b, mut c) = (Node::new(), Node::new(), Node::new());
    b.start("", "");
    c.start("", "");
    let meets = |from: &Node, to: &Node| {
        let asked = json!({"peer_id": to.peer, "multiaddr": to.full(), "retry_count": 0, "persist": false});
        from.caller().try_call("peer_connect", &asked).is_some_and(|told| told["success"] == true)
    };
    for lists in [format!("allow = [{:?}]", b.peer), format!("block = [{:?}]", c.peer)] {
        a.start(&lists, "");
        assert!(!meets(&c, &a) && !meets(&a, &c), "{lists}: c is kept out");
        assert!(meets(&b, &a), "{lists}: b is let in");
        a.sees(&b.peer, "connected");
        let listed = a.caller().tell("peer_list", json!({"status_filter": "connected"}));
        assert_eq!(names(&listed), [b.peer.as_str()], "{lists}");
        a.stop();
    }
}

#[test]
fn what_a_peer_offers_is_known_though_this_node_offers_the_same() {
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &a.entry("scopes = [\"mcp:call\"]"));
    a.start("", &b.dialled(""));
    let offered = |word: &str| {
        let row = a.row(&b.peer);
        row["capabilities"].as_array().into_iter().flatten().any(|known| known == word)
    };
    until("its own tools are known", || offered("task_submit").then_some(()));
    let listed = a.caller().tell("peer_list", json!({"capability_filter": ["peer_list", "task_submit"]}));
    assert_eq!(names(&listed), [b.peer.as_str()], "{listed}");
    a.ends_well();
    b.ends_well();
}

#[test]
fn a_node_that_knows_nobody_has_failed_at_nothing() {
    let mut alone = Node::new();
    for _ in 0..2 {
        alone.start("dht = true\nmin_connections = 1", "");
        let started = Instant::now();
        until("it has looked for whom to join by", || (started.elapsed() > TWO_LOOKS).then_some(()));
        let metrics = alone.server().get("/metrics").text().to_owned();
        assert!(!metrics.contains(r#"cairn_alert{name="bootstrap_failures"} 1"#), "{metrics}");
        alone.stop();
    }
    assert!(alone.events().iter().all(|event| record::kind(event) != "bootstrap.started"), "nobody to try");
}

#[test]
fn nodes_are_joined_by_their_names() {
    let (mut a, b) = (Node::new(), Node::running());
    let named = b.full().replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    a.start(&format!("min_connections = 1\nbootstrap = [{named:?}]"), "");
    a.sees(&b.peer, "connected");
    a.ends_well();
    b.ends_well();
}

#[test]
fn a_connection_that_carries_nothing_is_closed_unless_it_is_kept_or_tells_of_heads() {
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("idle_ms = 1000", "");
    a.start("idle_ms = 1000", "");
    let (kept, idle) = (Foreign::js(&[]), Foreign::js(&[]));
    let once = |peer: &str, address: &str, persist: bool| {
        a.caller().tell("peer_connect", json!({"peer_id": peer, "multiaddr": address, "persist": persist}));
    };
    once(&b.peer, &b.address(), false);
    once(kept.peer(), &kept.address(), true);
    once(idle.peer(), &idle.address(), false);
    let parted = until("the idle one is parted from", || a.about(idle.peer(), "peer.disconnected").pop());
    let cause = match parted.body() {
        Some(Body::PeerDisconnected(facts)) => Some(facts.cause),
        _ => None,
    };
    assert_eq!(cause, Some(Parting::Idle));
    for stays in [&b.peer[..], kept.peer()] {
        assert_eq!(a.about(stays, "peer.disconnected"), []);
    }
    a.ends_well();
    b.ends_well();
}

#[test]
fn entries_that_make_no_sense_are_told_of_by_their_place() {
    let node = Node::new();
    let tables = format!(
        "[p2p]\nenable = true\n{}{}{}",
        entry("not a peer", ""),
        node.entry("scopes = [\"everything\"]"),
        node.entry("addrs = [\"127.0.0.1\"]"),
    );
    let path = node.path("bad.toml");
    fs::write(&path, tables).expect("the directory can be written");
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(node.data()).arg("--config").arg(&path);
    let ran = run(command);
    assert!(!ran.status.success());
    for place in ["peers[0].id", "peers[1].scopes[0]", "peers[2].id", "peers[2].addrs[0]"] {
        assert!(ran.stderr.contains(place), "{place}: {}", ran.stderr);
    }
}
