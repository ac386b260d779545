//! Work that one node does for another: real processes, whose tools leave their effects outside, killed and cut off.
//!
//! What holds afterwards: every run comes to its end, no task has two successes, nothing that may not run twice did, each
//! side names the other's events, and both logs verify.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::ExitStatus,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use cairn::event::{Body, Event, peer::Transport};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Server, temp},
    namespaces::{Space, allowed},
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
        Server::start(self.path(), &["--config", &self.configure(more)])
    }

    /// The same in a namespace.
    fn start_in(&self, space: &Space, more: &str) -> Server {
        let config = self.configure(more);
        let data = self.path().to_str().expect("temporary paths are text");
        Server::start_as(space.cairn(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data",
            data,
            "--config",
            &config,
        ]))
    }

    fn configure(&self, more: &str) -> String {
        configure(self.path(), &format!("{}{more}", p2p(&self.address)))
    }

    fn port(&self) -> &str {
        self.address.rsplit('/').next().expect("an address ends in its port")
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
        let upstream = Upstream::new(&["wait_once", AGAIN, "count", "broken"]);
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
        self.does.start(&self.doing(address))
    }

    fn doing(&self, address: &str) -> String {
        let peer = &self.asks.peer;
        let types = r#"["up_wait_once", "up_wait_again", "up_count", "up_broken"]"#;
        let upstream = self.upstream.table("up", "");
        format!(
            "[[p2p.peers]]\nid = {peer:?}\naddrs = [{address:?}]\noffer = false\nwork = {types}\n{upstream}"
        )
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
    let error = r#"{"code":"unavailable","message":"as the test says","retryable":true}"#;
    let broken = format!(r#"{{"content":[],"isError":true,"structuredContent":{{"error":{error}}}}}"#);
    pair.upstream.write("broken.result", &broken);
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
    caller.submit("odd", "up_broken", json!({"retry_policy": {"max_retries": 1, "backoff_ms": 1}}));
    caller.task_until("odd", "dead");
    assert_eq!(pair.effects("broken", "odd"), 2, "a failure that was told is tried again");
    caller.tell("task_retry", json!({"task_id": "odd"}));
    caller.task_until("odd", "dead");
    assert_eq!(pair.effects("broken", "odd"), 4, "and again when its attempts are counted anew");
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
            && ["up_count", "up_wait_once"].contains(&facts.name.as_str())
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
    assert_eq!(claims, 3);
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

/// A cable that can be cut: what is sent meanwhile is held back, as by a network that says nothing.
struct Cable {
    port: u16,
    held: Arc<(Mutex<bool>, Condvar)>,
}

impl Cable {
    /// Carries to this port of loopback.
    fn to(port: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let held: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let (far, gate) = (format!("127.0.0.1:{port}"), held.clone());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&far) else { continue };
                let ends = || Some((near.try_clone().ok()?, far.try_clone().ok()?));
                let Some((there, back)) = ends().zip(ends()) else { continue };
                for (from, to) in [there, (back.1, back.0)] {
                    let gate = gate.clone();
                    thread::spawn(move || carry(from, to, &gate));
                }
            }
        });
        Self { port: own, held }
    }

    fn set(&self, cut: bool) {
        *self.held.0.lock().expect("nobody who holds it panics") = cut;
        self.held.1.notify_all();
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, (held, changed): &(Mutex<bool>, Condvar)) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let cut = held.lock().expect("nobody who holds it panics");
        drop(changed.wait_while(cut, |cut| *cut).expect("nobody who holds it panics"));
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Cuts the two nodes of a pair apart while work is under way, and joins them again.
fn part_and_heal(pair: &Pair, asks: Server, does: Server, set: impl Fn(bool)) {
    let mut caller = Caller::new(&asks);
    // First the calls end while nobody can be told; then they are still under way when the other side is back.
    for (round, ends_apart) in [("1", true), ("2", false)] {
        let [once, again, last] = ["once", "again", "last"].map(|name| format!("{name}-{round}"));
        let steps = json!([
            step(&once, "wait_once", &[]),
            step(&again, "wait_again", &[]),
            step(&last, "count", &[&once, &again]),
        ]);
        let before = pair.effects("wait_", "");
        let begun = || pair.upstream.calls().iter().filter(|call| call.starts_with("wait_")).count();
        caller.run(round, steps, json!({}));
        until("both calls", || (begun() >= before + 2).then_some(()));
        let ended = pair.endings();
        set(true);
        until("both leases to run out", || {
            let gone = |name: &str| pair.told(name, |body| matches!(body, Body::TaskLeaseExpired(_))) > 0;
            (gone(&once) && gone(&again)).then_some(())
        });
        if ends_apart {
            pair.upstream.write("go", "");
            until("both calls to end", || (pair.endings() >= ended + 2).then_some(()));
        }
        set(false);
        if !ends_apart {
            let given = |name: &str| pair.told(name, |body| matches!(body, Body::TaskRenewed(_)));
            let (first, second) = (given(&once), given(&again));
            until("both to be kept again", || (given(&once) > first && given(&again) > second).then_some(()));
            pair.upstream.write("go", "");
        }
        caller.run_until(round, "succeeded");
        pair.upstream.remove("go");
        assert_eq!(pair.effects("wait_once", &once), 1, "round {round}: {:?}", pair.upstream.calls());
        assert_eq!(pair.effects("count", &last), 1, "round {round}");
        assert!(pair.effects("wait_again", &again) <= 2, "round {round}: {:?}", pair.upstream.calls());
    }
    pair.check([does, asks]);
}

impl Pair {
    /// Calls of the waiting tools that have ended, by the record of the working node.
    fn endings(&self) -> usize {
        let events = record::events(self.does.path());
        ["up_wait_once", "up_wait_again"].iter().map(|name| record::endings(&events, name).len()).sum()
    }

    /// Events of this kind about the task of a step.
    fn told(&self, step: &str, wanted: impl Fn(&Body) -> bool) -> usize {
        let of = |event: &Event| {
            let subject = &event.fields().subject;
            subject.starts_with("task/")
                && subject.contains(step)
                && event.body().is_some_and(|body| wanted(&body))
        };
        record::events(self.asks.path()).iter().filter(|event| of(event)).count()
    }
}

/// How long a lease is while the two are parted now and then.
const PARTED_LEASE_MS: u64 = 700;

#[test]
fn a_cut_cable_loses_and_doubles_no_work() {
    let pair = Pair::new();
    let cable = Cable::to(pair.asks.port());
    let asks = pair.start_asking(PARTED_LEASE_MS);
    let does = pair.start_doing(&format!("/ip4/127.0.0.1/tcp/{}", cable.port));
    part_and_heal(&pair, asks, does, |cut| cable.set(cut));
}

/// The same where packets are dropped between two hosts.
#[test]
fn a_partition_between_two_hosts_loses_and_doubles_no_work() {
    if !allowed() {
        // What the cable's test shows holds here too; what it cannot show has been said not to be shown.
        return;
    }
    let mut pair = Pair::new();
    let space = Space::new();
    // Another run of the tests on this machine has another number.
    let net = format!("10.213.{}", std::process::id() % 250);
    space.connect(&format!("{net}.2/30"), None, &format!("{net}.1/30"));
    pair.asks.address = format!("/ip4/0.0.0.0/tcp/{}", pair.asks.port());
    let asks = pair.start_asking(PARTED_LEASE_MS);
    let address = format!("/ip4/{net}.1/tcp/{}", pair.asks.port());
    let does = pair.does.start_in(&space, &pair.doing(&address));
    part_and_heal(&pair, asks, does, |cut| if cut { space.cut() } else { space.heal() });
}

/// Two hosts behind routers that hide them meet at a relay, and then without it.
#[test]
fn hosts_behind_routers_meet_at_a_relay_and_then_directly() {
    if !allowed() {
        return;
    }
    let (net, homes) = (Space::new(), [Space::new(), Space::new()]);
    let hosts = [Space::new(), Space::new()];
    net.forwards();
    let wide = ["198.51.100", "203.0.113"];
    for ((home, host), (wide, inside)) in homes.iter().zip(&hosts).zip(wide.iter().zip([11, 22])) {
        home.connect(&format!("{wide}.2/24"), Some(&net), &format!("{wide}.1/24"));
        home.route_by(&format!("{wide}.1"));
        host.connect(&format!("192.168.{inside}.2/24"), Some(home), &format!("192.168.{inside}.1/24"));
        host.route_by(&format!("192.168.{inside}.1"));
        home.hides(&format!("192.168.{inside}.0/24"));
    }
    let [mut relay, mut left, mut right] = [Node::new(), Node::new(), Node::new()];
    for node in [&mut relay, &mut left, &mut right] {
        node.address = format!("/ip4/0.0.0.0/tcp/{}", node.port());
    }
    let public = format!("/ip4/198.51.100.1/tcp/{}", relay.port());
    let at_relay = format!("{public}/p2p/{}", relay.peer);
    let start_relay = || relay.start_in(&net, &format!("relay = true\nannounce_addrs = [{public:?}]\n"));
    let relaying = start_relay();
    let kept = format!("[[p2p.peers]]\nid = {:?}\naddrs = [{public:?}]\noffer = false\n", relay.peer);
    let joined = format!("bootstrap = [{at_relay:?}]\n");
    let servers = [left.start_in(&hosts[0], &kept), right.start_in(&hosts[1], &joined)];

    let circuit = format!("{at_relay}/p2p-circuit/p2p/{}", right.peer);
    let ask = |n: usize, tool: &str, arguments: Value| {
        let ran = hosts[n].ran(&["call", tool, &arguments.to_string(), "--url", &servers[n].url]);
        serde_json::from_str::<Value>(&ran.stdout).unwrap_or_default()
    };
    let asked = json!({"peer_id": right.peer, "multiaddr": circuit, "timeout_ms": 2_000});
    let made = until("a connection through the relay", || {
        Some(ask(0, "peer_connect", asked.clone())).filter(|made| made["success"] == true)
    });
    assert_eq!(made["transport"], "relay", "{made}");
    for (n, other) in [(0, &right.peer), (1, &left.peer)] {
        until("a direct connection", || {
            let metrics = ask(n, "peer_metrics", json!({"peer_id": other}));
            (metrics["connection_info"]["transport"] == "tcp").then_some(())
        });
    }
    let places = || {
        let errors = servers[0].process.errors();
        errors
            .lines()
            .filter(|line| line.contains("listening for peers") && line.contains("/p2p-circuit"))
            .count()
    };
    let before = places();
    relaying.kill();
    let relaying = start_relay();
    until("a place at the relay that is back", || (places() > before).then_some(()));
    for server in servers.into_iter().chain([relaying]) {
        assert!(server.stop().success());
    }
    for node in [&left, &right] {
        let events = record::events(node.path());
        let ways = events.iter().filter_map(Event::body).filter_map(|body| match body {
            Body::PeerConnected(facts) => Some(facts.transport),
            _ => None,
        });
        let ways: Vec<Transport> = ways.collect();
        let punched = ways.windows(2).any(|ways| ways == [Transport::Relay, Transport::Tcp]);
        assert!(punched, "each side saw the one way and then the other: {ways:?}");
    }
    for node in [&relay, &left, &right] {
        record::check(node.path());
        let (code, report) = record::verify(node.path());
        assert_eq!(code, Some(0), "{report}");
    }
}
