//! Nodes as a test meets them: processes of their own, on loopback, that know each other by peer id.
//!
//! Invariants:
//! - a node keeps its peer id and its address over every restart;
//! - no two nodes of one run of tests listen on one port.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};

use cairn::{
    block::Cid,
    event::{Body, Event, peer::RemoteCalled},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Process, Server, cairn, needs, on_path, run, temp},
    record::{self, PATIENCE, until},
    speech,
    work::Caller,
};

/// Ports below those that the system gives to whoever dials.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// One node.
pub struct Node {
    dir: TempDir,
    pub peer: String,
    pub port: u16,
    server: Option<Server>,
}

impl Node {
    /// One that does not run yet.
    pub fn new() -> Self {
        let mut node = Self { dir: temp(), peer: String::new(), port: free_port(), server: None };
        node.start("", "");
        node.peer = node.state()["peer"]["peer_id"].as_str().expect("a node has a peer id").to_owned();
        node.stop();
        node
    }

    /// One that runs, and knows nobody.
    pub fn running() -> Self {
        let mut node = Self::new();
        node.start("", "");
        node
    }

    /// A copy of the data directory: the same key and address, another history from here on. One of both may run.
    pub fn copy(&self) -> Self {
        let dir = temp();
        copy_files(self.data(), dir.path());
        Self { dir, peer: self.peer.clone(), port: self.port, server: None }
    }

    /// Starts with these lines of `[p2p]` and these further tables.
    pub fn start(&mut self, p2p: &str, tables: &str) {
        self.start_with(p2p, tables, |command| command);
    }

    /// The same, with a hand on the command.
    pub fn start_with(&mut self, p2p: &str, tables: &str, fit: impl FnOnce(Command) -> Command) {
        assert!(self.server.is_none(), "it runs already");
        let listen = format!("[{:?}]", self.address());
        // On loopback, and nobody is dialled by itself, unless the test says so.
        let quiet = [("listen", &listen[..]), ("min_connections", "0"), ("dht", "false")];
        let quiet = quiet.into_iter().filter(|(key, _)| !p2p.contains(&format!("{key} =")));
        let quiet: String = quiet.map(|(key, value)| format!("{key} = {value}\n")).collect();
        let config = format!("[p2p]\nenable = true\n{quiet}{p2p}\n{tables}\n");
        let path = self.path("node.toml");
        fs::write(&path, config).expect("the directory can be written");
        let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(self.data()).arg("--config").arg(path);
        self.server = Some(Server::start_as(fit(command)));
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the node runs")
    }

    pub fn caller(&self) -> Caller {
        Caller::new(self.server())
    }

    /// Asks it to end, and sees that it ends well.
    pub fn stop(&mut self) {
        assert!(self.server.take().expect("the node runs").stop().success());
    }

    pub fn kill(&mut self) {
        self.server.take().expect("the node runs").kill();
    }

    /// Ends it, and holds its log to what holds for every log.
    pub fn ends_well(mut self) -> Vec<Event> {
        self.stop();
        let events = record::check(self.data());
        let (code, report) = record::verify(self.data());
        assert_eq!(code, Some(0), "{report}");
        events
    }

    pub fn data(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn events(&self) -> Vec<Event> {
        record::events(self.data())
    }

    /// The events of this kind about a peer.
    pub fn about(&self, peer: &str, kind: &str) -> Vec<Event> {
        let subject = format!("peer/{peer}");
        let told = |event: &Event| {
            event.fields().subject == subject && (kind.is_empty() || record::kind(event) == kind)
        };
        self.events().into_iter().filter(told).collect()
    }

    /// What it answers at `/v1/state`.
    pub fn state(&self) -> Value {
        self.server().get("/v1/state").json()
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.port)
    }

    /// The same, with the peer that answers there.
    pub fn full(&self) -> String {
        format!("{}/p2p/{}", self.address(), self.peer)
    }

    /// An entry for this node in another's configuration; `more` are further lines of it.
    pub fn entry(&self, more: &str) -> String {
        entry(&self.peer, more)
    }

    /// The same, for a node that dials this one.
    pub fn dialled(&self, more: &str) -> String {
        self.entry(&format!("addrs = [{:?}]\n{more}", self.address()))
    }

    /// The row of a peer in its list.
    pub fn row(&self, peer: &str) -> Value {
        let listed = self.caller().tell("peer_list", json!({"limit": 100}));
        let rows = listed["peers"].as_array().expect("a list").clone();
        rows.into_iter().find(|row| row["peer_id"] == peer).unwrap_or(Value::Null)
    }

    /// Waits until a peer stands so.
    pub fn sees(&self, peer: &str, status: &str) -> Value {
        until(&format!("{peer} is {status}"), || Some(self.row(peer)).filter(|row| row["status"] == status))
    }

    /// Dials another node by its tool.
    pub fn connect(&self, other: &Self) -> Value {
        self.caller().tell("peer_connect", json!({"peer_id": other.peer, "multiaddr": other.full()}))
    }

    /// Names of the tools it lists.
    pub fn tools(&self) -> Vec<String> {
        let answer = speech::ask(self.server(), "tools/list", json!({}));
        let tools = answer["result"]["tools"].as_array().expect("a list");
        tools.iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect()
    }

    /// Waits until it lists a tool.
    pub fn offers(&self, tool: &str) {
        until(&format!("{tool} is listed"), || self.tools().iter().any(|name| name == tool).then_some(()));
    }

    /// Waits until it lists it no more.
    pub fn offers_not(&self, tool: &str) {
        until(&format!("{tool} is gone"), || (!self.tools().iter().any(|name| name == tool)).then_some(()));
    }

    /// The whole answer to a tool call.
    pub fn call(&self, tool: &str, arguments: Value) -> Value {
        speech::ask(self.server(), "tools/call", speech::call(tool, &arguments))
    }

    /// `cairn ARGS... --url` of this node.
    pub fn runs(&self, args: &[&str]) -> crate::harness::Ran {
        run(cairn(&[args, &["--url", &self.server().url]].concat()))
    }
}

/// An entry for a peer; `more` are further lines of it.
pub fn entry(peer: &str, more: &str) -> String {
    format!("[[p2p.peers]]\nid = {peer:?}\n{more}\n")
}

/// Copies every file below a directory; sockets and the like stay.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("the directory can be read") {
        let entry = entry.expect("the directory can be read");
        let (kind, to) = (entry.file_type().expect("it can be looked at"), to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&to).expect("the directory can be written");
            copy_files(&entry.path(), &to);
        } else if kind.is_file() {
            fs::copy(entry.path(), to).expect("a file can be copied");
        }
    }
}

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Other runs of the tests may be under way: each begins elsewhere.
    let base = (std::process::id().wrapping_mul(211) % u32::from(count)) as u16;
    let nth = |nth: u16| PORTS.start + (u32::from(base) + u32::from(nth)).rem_euclid(u32::from(count)) as u16;
    let mut ports = std::iter::repeat_with(|| nth(NEXT.fetch_add(1, Ordering::Relaxed)));
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(free).expect("ports do not end")
}

/// What a node's log tells of its calls at others, in order.
pub fn remotes(events: &[Event]) -> Vec<(Event, RemoteCalled)> {
    let told = |event: &Event| match event.body() {
        Some(Body::RemoteCalled(facts)) => Some((event.clone(), facts.clone())),
        _ => None,
    };
    events.iter().filter_map(told).collect()
}

/// The start of the last call to `name` that a peer made.
pub fn started(events: &[Event], name: &str, peer: &str) -> Event {
    let named = |event: &&Event| {
        event.fields().actor.id == peer
            && matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == name)
    };
    events.iter().rfind(named).unwrap_or_else(|| panic!("{peer} did not call {name}")).clone()
}

/// The ending of the call that this event started.
pub fn ending(events: &[Event], started: Cid) -> Event {
    let ends = |event: &&Event| {
        event.fields().cause == Some(started)
            && matches!(
                event.body(),
                Some(
                    Body::CallSucceeded(_)
                        | Body::CallFailed(_)
                        | Body::CallRefused(_)
                        | Body::CallCancelled(_)
                        | Body::CallInterrupted(_)
                )
            )
    };
    events.iter().find(ends).unwrap_or_else(|| panic!("no ending of {started}")).clone()
}

/// A peer of another make.
pub struct Foreign {
    pub process: Process,
    /// What it says first.
    pub said: Value,
}

impl Foreign {
    /// The peer written in JavaScript.
    pub fn js(args: &[&str]) -> Self {
        let mut command = Command::new(needs("node_modules/node/bin/node"));
        command.arg(needs("peer.mjs")).args(args);
        Self::started(on_path(command))
    }

    /// The peer written in Python.
    pub fn py(args: &[&str]) -> Self {
        let mut command = Command::new(needs("venv/bin/python"));
        command.arg(needs("peer.py")).args(args);
        Self::started(command)
    }

    fn started(command: Command) -> Self {
        let process = Process::start(command);
        let said = process.line(PATIENCE);
        let said = said.unwrap_or_else(|| panic!("it ended: {}", process.last_errors()));
        Self { said: serde_json::from_str(&said).expect("it speaks JSON"), process }
    }

    pub fn peer(&self) -> &str {
        self.said["peer"].as_str().expect("it names itself")
    }

    /// Where it listens, without its name.
    pub fn address(&self) -> String {
        let full = self.said["addrs"][0].as_str().expect("it listens");
        full.split("/p2p/").next().expect("there is a first part").to_owned()
    }

    /// Sends a message as a frame, and gives the next frame that comes.
    pub fn asks(&mut self, message: &Value) -> Value {
        self.process.tell(&message.to_string());
        self.next()
    }

    /// The next frame that comes.
    pub fn next(&self) -> Value {
        let line = self.process.line(PATIENCE);
        let line = line.unwrap_or_else(|| panic!("it ended: {}", self.process.last_errors()));
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"))
    }
}
