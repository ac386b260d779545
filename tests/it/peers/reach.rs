//! How nodes are reached: on one link, behind routers, at a relay; each host a network namespace of its own.
//!
//! Invariant: where namespaces are not allowed nothing here is tried, and that has been said.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    harness::{Process, needs},
    namespaces::{Space, allowed},
    peers::nodes::Node,
    record::{PATIENCE, until},
};

/// A network that is part of the world as far as addresses tell; it ends at the namespaces' cables.
const WORLD: &str = "45.10";

/// A node in a namespace.
struct Host {
    space: Space,
    node: Node,
}

impl Host {
    fn new(space: Space) -> Self {
        Self { space, node: Node::new() }
    }

    /// Starts it with these lines of `[p2p]`, on every address it has.
    fn start(&mut self, p2p: &str) {
        let listen = format!("listen = [\"/ip4/0.0.0.0/tcp/{}\"]", self.node.port);
        let enter = |command| self.space.enter(&command);
        self.node.start_with(&format!("{listen}\n{p2p}"), "", enter);
    }

    /// Calls a tool of it from within.
    fn ask(&self, tool: &str, arguments: &Value) -> Value {
        let ran = self.space.ran(&["call", tool, &arguments.to_string(), "--url", &self.node.server().url]);
        serde_json::from_str(&ran.stdout).unwrap_or_default()
    }

    /// Where it is, at this address.
    fn at(&self, ip: &str) -> String {
        format!("/ip4/{ip}/tcp/{}", self.node.port)
    }

    fn full(&self, ip: &str) -> String {
        format!("{}/p2p/{}", self.at(ip), self.node.peer)
    }

    /// Waits until it is connected with a node.
    fn meets(&self, other: &Host) {
        until("they meet", || {
            let listed = self.ask("peer_list", &json!({"status_filter": "connected"}));
            let mut rows = listed["peers"].as_array().into_iter().flatten();
            rows.any(|row| row["peer_id"] == *other.node.peer).then_some(())
        });
    }

    /// Waits until it knows whether others reach it; gives that and where.
    fn reached(&self) -> (String, Value) {
        until("others confirm or deny", || {
            let joined = self.ask("bootstrap_network", &json!({"min_connections": 1, "timeout_ms": 5_000}));
            let nat = joined["nat_status"].as_str().filter(|nat| *nat != "unknown")?;
            Some((nat.to_owned(), joined["public_addrs"].clone()))
        })
    }
}

/// A router with a cable to the world, and a host behind it.
fn behind(world: &Space, number: u8) -> (Space, Space) {
    let (router, host) = (Space::new(), Space::new());
    router.connect(&format!("{WORLD}.{number}.2/24"), Some(world), &format!("{WORLD}.{number}.1/24"));
    router.route_by(&format!("{WORLD}.{number}.1"));
    host.connect(&format!("192.168.{number}.2/24"), Some(&router), &format!("192.168.{number}.1/24"));
    host.route_by(&format!("192.168.{number}.1"));
    (router, host)
}

#[test]
fn neighbours_on_one_link_find_each_other() {
    if !allowed() {
        return;
    }
    let (one, two) = (Space::new(), Space::new());
    one.connect("10.7.0.1/24", Some(&two), "10.7.0.2/24");
    let (mut one, mut two) = (Host::new(one), Host::new(two));
    one.start("mdns = true\nmin_connections = 1");
    two.start("mdns = true\nmin_connections = 1");
    one.meets(&two);
    two.meets(&one);
    let found = one.ask("peer_discover", &json!({"sources": ["mdns"]}));
    assert_eq!(found["peers"][0]["peer_id"], *two.node.peer, "{found}");
    assert_eq!(found["peers"][0]["multiaddrs"], json!([two.at("10.7.0.2")]), "{found}");
    one.node.ends_well();
    two.node.ends_well();
}

#[test]
fn whether_a_node_is_reached_is_what_others_confirm() {
    if !allowed() {
        return;
    }
    let (world, open) = (Space::new(), Space::new());
    world.forwards();
    let (router, hidden) = behind(&world, 1);
    router.hides("192.168.1.0/24");
    open.connect(&format!("{WORLD}.2.2/24"), Some(&world), &format!("{WORLD}.2.1/24"));
    open.route_by(&format!("{WORLD}.2.1"));
    let [mut world, mut open, mut hidden] = [world, open, hidden].map(Host::new);
    world.start("");
    for host in [&mut open, &mut hidden] {
        host.start(&format!("min_connections = 1\nbootstrap = [{:?}]", world.full(&format!("{WORLD}.2.1"))));
    }
    assert_eq!(open.reached(), ("public".to_owned(), json!([open.full(&format!("{WORLD}.2.2"))])));
    assert_eq!(hidden.reached(), ("private".to_owned(), json!([])));
    for host in [world, open, hidden] {
        host.node.ends_well();
    }
}

#[test]
fn a_router_that_opens_ports_is_asked_for_one() {
    if !allowed() {
        return;
    }
    let world = Space::new();
    let (router, inside) = behind(&world, 3);
    let outside = format!("{WORLD}.3.2");
    let mut gateway = Command::new(needs("venv/bin/python"));
    gateway.arg(needs("gateway.py")).args(["192.168.3.1", &outside]);
    let gateway = Process::start(router.enter(&gateway));
    gateway.line(PATIENCE).unwrap_or_else(|| panic!("it ended: {}", gateway.last_errors()));
    let mut inside = Host::new(inside);
    inside.start("upnp = true");
    let asked = gateway.line(PATIENCE).expect("a mapping is asked for");
    let asked: Value = serde_json::from_str(&asked).expect("it speaks JSON");
    assert_eq!(asked["NewExternalPort"], inside.node.port.to_string(), "{asked}");
    assert_eq!((&asked["NewProtocol"], &asked["NewInternalClient"]), (&json!("TCP"), &json!("192.168.3.2")));
    let expected = json!([inside.full(&outside)]);
    until("it tells where it is reached", || {
        let joined = inside.ask("bootstrap_network", &json!({"min_connections": 1, "timeout_ms": 1_000}));
        (joined["public_addrs"] == expected).then_some(())
    });
    inside.node.ends_well();
}

/// Answers every request with its second argument.
const SERVICE: &str = r"
import http.server, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())

server = http.server.HTTPServer((sys.argv[1], 8080), Answer)
print('ready', flush=True)
server.serve_forever()
";

#[test]
fn a_service_that_is_configured_says_where_a_node_is_seen() {
    if !allowed() {
        return;
    }
    let world = Space::new();
    let (router, inside) = behind(&world, 5);
    let outside = format!("{WORLD}.5.2");
    let mut service = Command::new(needs("venv/bin/python"));
    service.args(["-c", SERVICE, "192.168.5.1", &outside]);
    let service = Process::start(router.enter(&service));
    service.line(PATIENCE).unwrap_or_else(|| panic!("it ended: {}", service.last_errors()));
    let mut inside = Host::new(inside);
    inside.start("external_services = [\"http://192.168.5.1:8080/\", \"http://192.168.5.1:1/\"]");
    let joined = inside.ask("bootstrap_network", &json!({"min_connections": 1, "timeout_ms": 1_000}));
    assert_eq!(joined["public_addrs"], json!([inside.full(&outside)]), "{joined}");
    assert_eq!(joined["nat_status"], "unknown", "a service confirms nothing: {joined}");
    inside.node.ends_well();
}

#[test]
fn a_place_at_a_relay_is_renewed_when_the_relay_is_back() {
    if !allowed() {
        return;
    }
    let world = Space::new();
    world.forwards();
    let (router, hidden) = behind(&world, 4);
    router.hides("192.168.4.0/24");
    let (mut relay, mut hidden) = (Host::new(world), Host::new(hidden));
    let public = relay.at(&format!("{WORLD}.4.1"));
    let relaying = format!("relay = true\nannounce_addrs = [{public:?}]");
    let full = relay.full(&format!("{WORLD}.4.1"));
    relay.start(&relaying);
    hidden.start(&format!("bootstrap = [{full:?}]"));
    let asked = json!({"peer_id": relay.node.peer, "multiaddr": full, "persist": false});
    assert_eq!(hidden.ask("peer_connect", &asked)["success"], true);
    let places = |hidden: &Host| {
        let errors = hidden.node.server().process.errors();
        let given = |line: &&str| line.contains("listening for peers") && line.contains("/p2p-circuit");
        errors.lines().filter(given).count()
    };
    until("a place at the relay", || (places(&hidden) > 0).then_some(()));
    relay.node.kill();
    until("the place is lost", || {
        hidden.node.server().process.errors().contains("carries for this node no more").then_some(())
    });
    let before = places(&hidden);
    relay.start(&relaying);
    until("a place at the relay that is back", || (places(&hidden) > before).then_some(()));
    relay.node.ends_well();
    hidden.node.ends_well();
}
