//! Peers of other makes: written in JavaScript and in Python, well behaved and not, dialling this node and dialled by it.
//!
//! Invariant: a stream that breaks the rules ends; the connection it was on, and the node, go on.

use cairn::block::{Cid, Codec};
use serde_json::{Value, json};

use crate::{
    peers::nodes::{Foreign, Node, entry, started},
    record::{self, until},
    upstream::Upstream,
};

const CALLS: &str = "scopes = [\"mcp:call\"]";

fn request(id: u64, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn initialize() -> Value {
    let client = json!({"name": "outside", "version": "1"});
    request(
        1,
        "initialize",
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}),
    )
}

/// A node that grants nothing to strangers, and what an outside peer does there by hand.
fn speaks(node: &Node, mut peer: Foreign) {
    assert!(peer.said["agent"].as_str().is_some_and(|agent| agent.starts_with("cairn/")), "{}", peer.said);
    let protocols = peer.said["protocols"].as_array().expect("a list");
    assert!(protocols.contains(&json!("/mcp+p2p/1.0.0")), "{}", peer.said);
    assert!(peer.said["ping_ms"].is_number() || peer.said["ping_us"].is_number(), "{}", peer.said);
    let hello = peer.asks(&initialize());
    assert_eq!(hello["result"]["serverInfo"]["name"], "cairn", "{hello}");
    peer.process.tell(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string());
    let listed = peer.asks(&request(2, "tools/list", json!({})));
    let tools = listed["result"]["tools"].as_array().unwrap_or_else(|| panic!("{listed}"));
    let tool = tools.iter().find(|tool| tool["name"] == "tool").expect("it is listed");
    assert!(tool["_meta"]["io.cairn/contract"].is_string(), "{tool}");
    let called = peer.asks(&request(3, "tools/call", json!({"name": "tool", "arguments": {}})));
    assert!(called["error"]["message"].as_str().is_some_and(|said| said.contains("mcp:call")), "{called}");
    assert_eq!(peer.asks(&request(4, "ping", json!({})))["id"], 4);
    node.sees(peer.peer(), "connected");
}

#[test]
fn outside_peers_dial_in_and_list_and_call_nothing_without_an_entry() {
    let upstream = Upstream::new(&["tool"]);
    let mut node = Node::new();
    node.start("", &upstream.table("up", "prefix = \"\""));
    let full = node.full();
    speaks(&node, Foreign::js(&[&full]));
    speaks(&node, Foreign::js(&["--bytewise", &full]));
    speaks(&node, Foreign::py(&[&full]));
    assert!(upstream.calls().is_empty());
    let parallel = Foreign::js(&["--parallel", "30", &full]);
    assert_eq!(parallel.next(), json!({"answered": 30}), "every stream is answered");
    node.ends_well();
}

/// A node with a token for whoever calls its tools; gives the token.
fn visited(tables: &str) -> (Node, String) {
    let mut node = Node::new();
    let mut create = crate::harness::cairn(&["token", "add", "visitor", "--scope", "mcp:call", "--data"]);
    create.arg(node.data());
    let token = crate::harness::run(create).succeeded().trim().to_owned();
    node.start("", &format!("{tables}[auth]\nmode = \"static\"\n"));
    (node, token)
}

#[test]
fn frames_up_to_the_bound_pass_both_ways_and_the_connection_stays() {
    const FRAME_MAX: usize = 16 * 1024 * 1024;
    let upstream = Upstream::new(&["tool"]);
    let vast = "v".repeat(5_000_000);
    upstream.write("tool.result", &json!({"content": [{"type": "text", "text": vast}]}).to_string());
    let (node, token) = visited(&upstream.table("up", "prefix = \"\""));
    for mut peer in [Foreign::js(&[&node.full()]), Foreign::py(&[&node.full()])] {
        peer.asks(&initialize());
        let params = json!({"name": "tool", "arguments": {"text": vast}, "_meta": {"io.cairn/token": token}});
        let answer = peer.asks(&request(2, "tools/call", params));
        assert!(answer["result"]["content"][0]["text"] == *vast, "{:.300}", answer.to_string());
        let filled = |bytes: usize| request(3, "ping", json!({"_meta": {"filling": "f".repeat(bytes)}}));
        let longest = filled(FRAME_MAX - filled(0).to_string().len());
        assert_eq!(longest.to_string().len(), FRAME_MAX);
        assert_eq!(peer.asks(&longest)["id"], 3);
        assert_eq!(peer.asks(&request(4, "ping", json!({})))["id"], 4);
    }
    node.ends_well();
}

#[test]
fn vast_calls_pass_from_node_to_node() {
    let upstream = Upstream::new(&["tool"]);
    let vast = "v".repeat(12_000_000);
    upstream.write("tool.result", &json!({"content": [{"type": "text", "text": vast}]}).to_string());
    let (mut a, mut b) = (Node::new(), Node::new());
    b.start("", &format!("{}{}", upstream.table("up", "prefix = \"\""), a.entry(CALLS)));
    a.start("", &format!("{}[server]\nmax_body_bytes = 67108864\n", b.dialled("")));
    a.offers("peers_tool");
    let answer = a.call("peers_tool", json!({"text": vast}));
    assert!(answer["result"]["content"][0]["text"] == *vast, "{:.300}", answer.to_string());
    a.ends_well();
    b.ends_well();
}

#[test]
fn outside_peers_that_are_dialled_offer_their_tools_and_call_ours_as_their_entry_says() {
    let upstream = Upstream::new(&["tool"]);
    let (js, py) = (Foreign::js(&[]), Foreign::py(&[]));
    let mut node = Node::new();
    let tables = [
        upstream.table("up", "prefix = \"\""),
        entry(js.peer(), &format!("{CALLS}\naddrs = [{:?}]", js.address())),
        entry(py.peer(), &format!("{CALLS}\naddrs = [{:?}]", py.address())),
    ];
    node.start("", &tables.concat());
    for peer in [&js, &py] {
        node.sees(peer.peer(), "connected");
    }
    let shouts = until("both shout", || {
        let tools = node.tools();
        let shouts: Vec<String> = tools.into_iter().filter(|name| name.starts_with("peers_shout")).collect();
        (shouts.len() == 2).then_some(shouts)
    });
    for tool in &shouts {
        let answer = node.call(tool, json!({"text": "hello"}));
        assert_eq!(answer["result"]["content"][0]["text"], "HELLO", "{answer}");
    }
    let events = node.events();
    let called = crate::peers::nodes::remotes(&events);
    let mut peers: Vec<&str> = called.iter().map(|(_, facts)| facts.peer.as_str()).collect();
    peers.sort_unstable();
    let mut expected = [js.peer(), py.peer()];
    expected.sort_unstable();
    assert_eq!(peers, expected, "each was asked once");
    assert!(called.iter().all(|(event, facts)| facts.ok && event.fields().refs.is_empty()));
    drop(js);
    until("one shouts", || {
        let heard = shouts.iter().map(|tool| node.call(tool, json!({"text": "hello"})));
        (heard.filter(|answer| answer["result"]["isError"] != true).count() == 1).then_some(())
    });
    node.ends_well();
}

#[test]
fn a_stranger_that_is_dialled_offers_nothing_here() {
    let js = Foreign::js(&[]);
    let node = Node::running();
    let asked = json!({"peer_id": js.peer(), "multiaddr": js.address(), "persist": false});
    let made = node.caller().tell("peer_connect", asked);
    assert!(made["agent"].as_str().is_some_and(|agent| agent.contains("js-libp2p")), "{made}");
    assert!(!node.tools().iter().any(|name| name.starts_with("peers_")));
    let error = node.caller().tell("peer_metrics", json!({"peer_id": js.peer()}));
    assert_eq!(error["connection_info"]["status"], "connected", "{error}");
    node.ends_well();
}

#[test]
fn a_contract_that_a_peer_names_and_cannot_show_is_not_offered() {
    let upstream = Upstream::new(&["tool"]);
    let mut node = Node::new();
    let own = upstream.table("up", "prefix = \"\"");
    node.start("", &own);
    let held = node.call("tool", json!({}))["result"]["_meta"]["io.cairn/contract"].clone();
    node.stop();
    let unknown = Cid::of(Codec::DagCbor, b"nobody has this").to_string();
    let claims = [held.as_str().expect("text"), &unknown].map(|cid| Foreign::js(&["--contract", cid]));
    let entries =
        claims.each_ref().map(|peer| entry(peer.peer(), &format!("addrs = [{:?}]", peer.address())));
    node.start("", &format!("{own}{}", entries.concat()));
    for peer in &claims {
        node.sees(peer.peer(), "connected");
    }
    until("it is told of", || node.server().process.errors().contains("no contract came").then_some(()));
    let tools = node.tools();
    assert!(!tools.iter().any(|name| name.starts_with("peers_")), "{tools:?}");
    assert_eq!(node.call("tool", json!({}))["result"]["content"][0]["text"], "call 2", "ours is ours");
    node.ends_well();
}

#[test]
fn frames_that_break_the_rules_end_their_stream_and_nothing_else() {
    let node = Node::running();
    let full = node.full();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let framed = |text: &[u8]| hex(&[&(text.len() as u32).to_be_bytes()[..], text].concat());
    let ping = request(9, "ping", json!({})).to_string();
    let two = [ping.as_bytes(), b"\n", ping.as_bytes()].concat();
    let cases: [(&str, String, bool); 7] = [
        ("a length of nothing", hex(&[0, 0, 0, 0]), false),
        ("a length over the bound", hex(&[0x7f, 0xff, 0xff, 0xff, b'{']), false),
        ("two messages in one frame", framed(&two), true),
        ("no JSON", framed(b"nonsense"), true),
        ("no UTF-8", framed(&[b'"', 0xff, 0xfe, b'"']), true),
        ("a message of no protocol", framed(b"[1,2,3]"), true),
        ("nothing of a message", framed(b" "), true),
    ];
    for (what, bytes, told) in cases {
        let mut peer = Foreign::js(&[&full]);
        peer.process.tell(&format!("hex:{bytes}"));
        let first = peer.next();
        if told {
            assert!(first["error"]["code"].is_i64(), "{what}: {first}");
        }
        let last = if told { peer.next() } else { first };
        assert_eq!(last, json!({"closed": true}), "{what}");
        assert_eq!(node.row(peer.peer())["status"], "connected", "{what}: the connection stays");
    }
    // A length that promises more than comes holds a stream and nothing else.
    let mut patient = Foreign::js(&[&full]);
    patient.process.tell(&format!("hex:{}", hex(&[0, 0, 1, 0, b'{'])));
    speaks_still(&full);
    drop(patient);
    // Two frames in one write, and one frame in many.
    let mut peer = Foreign::js(&[&full]);
    peer.process.tell(&format!("hex:{}{}", framed(ping.as_bytes()), framed(ping.as_bytes())));
    assert_eq!((&peer.next()["id"], &peer.next()["id"]), (&json!(9), &json!(9)));
    node.ends_well();
}

fn speaks_still(full: &str) {
    let mut peer = Foreign::js(&[full]);
    assert_eq!(peer.asks(&request(5, "ping", json!({})))["id"], 5);
}

#[test]
fn a_token_in_a_request_grants_what_it_says_and_is_in_no_file() {
    let upstream = Upstream::new(&["tool"]);
    let (mut node, token) = visited(&upstream.table("up", "prefix = \"\""));
    let mut peer = Foreign::js(&[&node.full()]);
    peer.asks(&initialize());
    let with = |id: u64, token: &str| {
        request(
            id,
            "tools/call",
            json!({"name": "tool", "arguments": {}, "_meta": {"io.cairn/token": token}}),
        )
    };
    let refused = peer.asks(&with(2, "nonsense"));
    assert!(refused["error"].is_object(), "{refused}");
    let answer = peer.asks(&with(3, &token));
    assert_eq!(answer["result"]["content"][0]["text"], "call 1", "{answer}");
    let called = started(&node.events(), "tool", peer.peer());
    assert_eq!(called.fields().actor.role, "peer");
    node.stop();
    crate::bad_input::no_file_holds(node.data(), &token);
    record::check(node.data());
}
