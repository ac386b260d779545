//! Standard input and output: this node itself, wrapped servers, and several of them on one data directory.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use cairn::event::Body;
use serde_json::{Value, json};

use crate::{
    crashes::Random,
    harness::{Process, Server, cairn, needs, on_path, temp},
    record::{self, until},
    speech::{LEGACY, ask, call, event, keyed, modern, result},
    upstream::Upstream,
};

const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";

/// A server on standard input and output, with a session open.
pub struct Lines {
    process: Process,
    asked: u64,
}

impl Lines {
    pub fn start(command: Command) -> Self {
        let mut lines = Self { process: Process::start(on_path(command)), asked: 0 };
        let params = json!({"protocolVersion": LEGACY, "capabilities": {},
                            "clientInfo": {"name": "tests", "version": "1"}});
        let answer = lines.request("initialize", params);
        assert!(answer["result"]["serverInfo"].is_object(), "{answer}");
        lines.process.tell(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        lines
    }

    pub fn wrap(data: &Path, program: &[&str]) -> Self {
        let mut command = cairn(&["wrap", "--data"]);
        command.arg(data).arg("--").args(program);
        Self::start(command)
    }

    fn send(&mut self, method: &str, params: &Value) {
        assert!(self.try_send(method, params), "{}", self.process.last_errors());
    }

    /// False where the server has ended.
    fn try_send(&mut self, method: &str, params: &Value) -> bool {
        self.asked += 1;
        let message = json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params});
        self.process.try_tell(&message.to_string())
    }

    /// The answer to the last request; notifications before it are passed over.
    fn answer(&mut self) -> Value {
        let answer = self.answered();
        answer.unwrap_or_else(|| panic!("it ended: {}", self.process.last_errors()))
    }

    /// The same; none where the server ends first.
    fn answered(&mut self) -> Option<Value> {
        loop {
            let line = self.process.line(record::PATIENCE)?;
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
            if message["id"] == self.asked && message.get("method").is_none() {
                return Some(message);
            }
        }
    }

    pub fn request(&mut self, method: &str, params: Value) -> Value {
        self.send(method, &params);
        self.answer()
    }

    pub fn call(&mut self, name: &str, arguments: Value) -> Value {
        self.request("tools/call", call(name, &arguments))
    }

    /// Closes its input, as a client does that is done.
    pub fn finish(mut self) {
        self.process.hang_up();
        let status = self.process.wait(record::PATIENCE);
        assert!(status.success(), "{status}: {}", self.process.last_errors());
    }
}

fn names(answer: &Value) -> Vec<String> {
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
    tools.iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect()
}

#[test]
fn a_wrapped_server_is_the_server_with_every_call_recorded() {
    let data = temp();
    let (node, script) = (needs("node_modules/node/bin/node"), needs(EVERYTHING));
    let program = [node.to_str().expect("a text"), script.to_str().expect("a text"), "stdio"];
    let mut bare = Command::new(program[0]);
    bare.args(&program[1..]);
    let mut bare = Lines::start(bare);
    let mut wrapped = Lines::wrap(data.path(), &program);
    let list = |lines: &mut Lines| names(&lines.request("tools/list", json!({})));
    assert_eq!(list(&mut wrapped), list(&mut bare), "the same tools under the same names");
    let answer = wrapped.call("echo", json!({"message": "hello"}));
    let expected = bare.call("echo", json!({"message": "hello"}));
    assert_eq!(answer["result"]["content"], expected["result"]["content"]);
    let event = event(&answer).to_owned();
    wrapped.finish();
    let events = record::check(data.path());
    assert!(events.iter().any(|own| own.cid().to_string() == event));
}

#[test]
fn this_node_speaks_both_eras_on_standard_output() {
    let data = temp();
    let mut command = cairn(&["stdio", "--data"]);
    command.arg(data.path());
    let mut lines = Lines::start(command);
    assert!(names(&lines.request("tools/list", json!({}))).contains(&"tools_get_schema".to_owned()));
    let answer = lines.call("tools_list_categories", json!({}));
    event(&answer);
    lines.process.tell("{ not json");
    let line = lines.process.line(record::PATIENCE).expect("an answer");
    assert!(line.contains("-32700"), "{line}");
    assert_eq!(
        lines.call("tools_list_categories", json!({}))["result"]["structuredContent"]["success"],
        true
    );
    lines.finish();

    let mut command = cairn(&["stdio", "--data"]);
    command.arg(data.path());
    let mut process = Process::start(command);
    process.tell(&modern(1, "tools/call", call("tools_list_categories", &json!({}))).to_string());
    let line = process.line(record::PATIENCE).expect("an answer");
    let answer: Value = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
    assert_eq!(answer["result"]["resultType"], "complete", "{answer}");
    process.hang_up();
    assert!(process.wait(record::PATIENCE).success(), "{}", process.last_errors());
    assert_eq!(record::kinds(data.path(), "tools_list_categories"), ["call.succeeded"; 3]);
    record::check(data.path());
}

#[test]
fn many_share_one_directory_and_take_over_from_one_that_is_killed() {
    let data = temp();
    let (python, script) = (needs("venv/bin/python"), needs("upstream.py"));
    let upstreams = [Upstream::new(&["tool", "wait"]), Upstream::new(&["tool"]), Upstream::new(&["tool"])];
    let mut wraps: Vec<Lines> = upstreams
        .iter()
        .enumerate()
        .map(|(n, upstream)| {
            let mut command = cairn(&["wrap", "--name", &format!("w{n}"), "--data"]);
            command.arg(data.path()).arg("--").arg(&python).arg(&script).arg(upstream.dir());
            Lines::start(command)
        })
        .collect();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let mut answered = Vec::new();
    for wrap in &mut wraps {
        answered.push(event(&wrap.call("tool", json!({}))).to_owned());
    }
    let answer = ask(&server, "tools/call", call("test_simple_text", &json!({})));
    answered.push(event(&answer).to_owned());

    // The first one owns the log. It is killed in the middle of a call.
    let mut owner = wraps.remove(0);
    owner.send("tools/call", &call("wait", &json!({})));
    upstreams[0].reached("wait", 1);
    owner.process.kill();
    for wrap in &mut wraps {
        answered.push(event(&wrap.call("tool", json!({}))).to_owned());
    }
    result(&server, "test_simple_text", json!({}));
    until("the end of the interrupted call", || {
        (record::kinds(data.path(), "wait") == ["call.interrupted"]).then_some(())
    });
    for wrap in wraps {
        wrap.finish();
    }
    answered.push(event(&ask(&server, "tools/call", call("test_simple_text", &json!({})))).to_owned());
    assert!(server.stop().success());

    let events = record::check(data.path());
    let stored: Vec<String> = events.iter().map(|event| event.cid().to_string()).collect();
    for event in &answered {
        assert!(stored.contains(event), "{event} was answered and is gone");
    }
    let sources = events.iter().filter_map(|event| match event.body() {
        Some(Body::CallStarted(facts)) => Some(facts.source),
        _ => None,
    });
    let mut sources: Vec<String> = sources.collect();
    sources.sort();
    sources.dedup();
    assert_eq!(sources, ["conformance", "w0", "w1", "w2"]);
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

/// Nodes that are killed one after another, whether they own the log or reach it through another.
#[test]
fn kills_of_any_of_many_lose_and_double_nothing() {
    const NODES: usize = 4;
    const KILLS: usize = 20;
    const ANSWERS_MAX: usize = 40;
    let mut random = Random::seeded();
    let data = temp();
    let done = AtomicBool::new(false);
    let answered = Mutex::new(HashMap::new());
    let running = [const { AtomicU32::new(0) }; NODES];
    thread::scope(|scope| {
        for (node, pid) in running.iter().enumerate() {
            let (data, done, answered) = (data.path(), &done, &answered);
            scope.spawn(move || {
                for life in 0.. {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    live(data, &format!("{node}/{life}"), done, pid, answered);
                }
            });
        }
        let count = || answered.lock().expect("no node panics").len();
        for _ in 0..KILLS {
            let enough = count() + 1 + random.below(ANSWERS_MAX);
            until("enough answers", || (count() >= enough).then_some(()));
            let victim = &running[random.below(NODES)];
            let pid =
                until("a node to kill", || Some(victim.swap(0, Ordering::SeqCst)).filter(|pid| *pid > 0));
            let kill = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
            assert!(kill.is_ok_and(|killed| killed.success()), "the node ran");
        }
        done.store(true, Ordering::SeqCst);
    });
    // Whoever starts next ends what the killed left open.
    assert!(Server::start(data.path(), &[]).stop().success());
    let events = record::check(data.path());
    crate::crashes::once(&events);
    let stored: HashSet<String> = events.iter().map(|event| event.cid().to_string()).collect();
    let answered = answered.into_inner().expect("no node panics");
    for (key, event) in &answered {
        assert!(stored.contains(event), "{key} was answered with {event}, which is gone");
    }
    let distinct: HashSet<&String> = answered.values().collect();
    assert_eq!(distinct.len(), answered.len(), "two keys have one answer");
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

/// One life of a node: calls, each with a key of its own, until it is killed or all is done.
fn live(
    data: &Path,
    name: &str,
    done: &AtomicBool,
    pid: &AtomicU32,
    answered: &Mutex<HashMap<String, String>>,
) {
    let mut command = cairn(&["stdio", "--data"]);
    command.arg(data);
    let mut lines = Lines::start(command);
    pid.store(lines.process.id(), Ordering::SeqCst);
    for n in 0.. {
        if done.load(Ordering::SeqCst) {
            // Whoever took the process id has killed it.
            if pid.swap(0, Ordering::SeqCst) > 0 {
                lines.finish();
            }
            return;
        }
        let key = format!("{name}/{n}");
        let params = keyed("tools_list_categories", &json!({}), &key);
        if !lines.try_send("tools/call", &params) {
            return;
        }
        let Some(answer) = lines.answered() else {
            return;
        };
        let event = event(&answer).to_owned();
        answered.lock().expect("no node panics").insert(key, event);
    }
}
