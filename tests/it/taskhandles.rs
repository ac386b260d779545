//! Calls that clients follow as tasks, in both eras: on this node's queue, and at servers behind it.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, needs, node, run, temp, text},
    record::{self, until},
    speech::{Connection, call, modern, request},
    upstream::{configure, serve},
    work::kinds,
};

const SUITE: &str = "node_modules/@modelcontextprotocol/conformance/dist/index.js";
/// The scenarios of the suite that say something of tasks. That of notifications is skipped by the suite itself.
const SCENARIOS: [&str; 9] = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
];
const EXTENSION: &str = "io.modelcontextprotocol/tasks";

fn passes_the_scenarios(url: &str) {
    let results = temp();
    let failed: Vec<String> = SCENARIOS
        .iter()
        .filter_map(|name| {
            let ran = node(SUITE, &["server", "--url", url, "--scenario", name, "-o", text(results.path())]);
            (!ran.status.success()).then(|| format!("{name}:\n{}\n{}", ran.stdout, ran.stderr))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A node whose fixtures are behind another, over HTTP.
struct Pair {
    behind: Server,
    before: Server,
    data: tempfile::TempDir,
    behind_data: tempfile::TempDir,
}

impl Pair {
    fn start(more: &str) -> Self {
        let (data, behind_data) = (temp(), temp());
        let behind = Server::start(behind_data.path(), &["--conformance-fixtures"]);
        let config = format!("{more}[[upstream]]\nname = \"up\"\nurl = {:?}\nprefix = \"\"\n", behind.mcp());
        let before = serve(data.path(), &config);
        Self { behind, before, data, behind_data }
    }

    /// Kills the node in front and starts it again.
    fn kill(self) -> Self {
        let Self { behind, before, data, behind_data } = self;
        before.kill();
        let config = data.path().join("test.toml");
        let before = Server::start(data.path(), &["--config", text(&config)]);
        Self { behind, before, data, behind_data }
    }
}

/// A client of revision 2026-07-28 that knows tasks and can be asked.
struct Client<'a> {
    server: &'a Server,
    token: Option<String>,
}

impl Client<'_> {
    fn ask(&self, method: &str, mut params: Value) -> Value {
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
            json!({"elicitation": {}, "extensions": {EXTENSION: {}}});
        let message = modern(1, method, params);
        let host = self.server.url.trim_start_matches("http://");
        let bytes = String::from_utf8(request(host, None, &message)).expect("a request is text");
        let token = self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n"));
        let more = format!("\r\n{}connection: close\r\n", token.unwrap_or_default());
        self.server.exchange(bytes.replacen("\r\n", &more, 1).as_bytes()).json()
    }

    fn task(&self, tool: &str, arguments: &Value) -> String {
        let told = self.ask("tools/call", call(tool, arguments));
        assert_eq!(told["result"]["resultType"], "task", "{told}");
        told["result"]["taskId"].as_str().expect("a task has an id").to_owned()
    }

    fn get(&self, task: &str) -> Value {
        self.ask("tasks/get", json!({"taskId": task}))
    }

    /// Looks until the task has this status.
    fn until(&self, task: &str, status: &str) -> Value {
        until(&format!("{task} is {status}"), || {
            let told = self.get(task)["result"].clone();
            (told["status"] == status).then_some(told)
        })
    }
}

fn token(data: &Path, name: &str) -> Option<String> {
    let mut command = cairn(&["token", "add", name, "--scope", "mcp:call", "--data"]);
    command.arg(data);
    Some(run(command).succeeded().trim().to_owned())
}

#[test]
fn the_scenarios_of_the_suite_pass_at_our_own_tools() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    passes_the_scenarios(&server.mcp());
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn the_scenarios_of_the_suite_pass_through_us() {
    let pair = Pair::start("");
    passes_the_scenarios(&pair.before.mcp());
    assert!(pair.before.stop().success());
    assert!(pair.behind.stop().success());
    record::check(pair.data.path());
}

#[test]
fn a_servers_task_is_followed_by_our_handle_through_a_kill_and_by_nobody_else() {
    let pair = Pair::start("[auth]\nmode = \"static\"\n");
    let (ada, bob) = (token(pair.data.path(), "ada"), token(pair.data.path(), "bob"));
    let client = |pair: &Pair, token: &Option<String>, method: &str, params: Value| {
        Client { server: &pair.before, token: token.clone() }.ask(method, params)
    };
    let slow = |seconds: u64, label: &str| json!({"seconds": seconds, "label": label});
    // A token counts once its file was looked at again.
    until("both are known", || {
        let known = |token| client(&pair, token, "server/discover", json!({}))["result"].is_object();
        (known(&ada) && known(&bob)).then_some(())
    });
    let asked = Client { server: &pair.before, token: ada.clone() };
    let (task, long) =
        (asked.task("slow_compute", &slow(3, "kept")), asked.task("slow_compute", &slow(600, "x")));
    let of_kind = |data: &Path, kind: &str| {
        record::events(data).iter().filter(|event| record::kind(event) == kind).count()
    };
    until("both are followed", || (of_kind(pair.data.path(), "task.claimed") == 2).then_some(()));
    let pair = pair.kill();
    let asked = Client { server: &pair.before, token: ada.clone() };
    for method in ["tasks/get", "tasks/cancel", "tasks/update"] {
        let params = json!({"taskId": task, "inputResponses": {}});
        assert_eq!(client(&pair, &bob, method, params)["error"]["code"], -32602, "{method}");
    }
    let done = asked.until(&task, "completed");
    assert_eq!(done["result"]["content"][0]["text"], "Computed kept.", "{done}");
    assert!(asked.ask("tasks/cancel", json!({"taskId": long}))["result"].is_object());
    asked.until(&long, "cancelled");
    let behind = pair.behind_data.path();
    until("the server's task is cancelled", || (of_kind(behind, "task.cancelled") == 1).then_some(()));
    assert_eq!(of_kind(behind, "task.submitted"), 2, "nothing ran twice");
    assert_eq!(of_kind(pair.data.path(), "task.interrupted"), 2, "both were followed when the node died");
    assert!(pair.before.stop().success());
    record::check(pair.data.path());
}

#[test]
fn what_runs_here_ends_with_the_node_that_is_killed_unless_it_may_run_again() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let client = Client { server: &server, token: None };
    let task = client.task("slow_compute", &json!({"seconds": 600}));
    until("it runs", || kinds(data.path(), &task).contains(&"task.claimed".to_owned()).then_some(()));
    server.kill();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let client = Client { server: &server, token: None };
    let failed = client.until(&task, "failed");
    assert!(
        failed["error"]["message"].as_str().is_some_and(|said| said.contains("may have taken")),
        "{failed}"
    );
    assert_eq!(kinds(data.path(), &task), ["task.submitted", "task.claimed", "task.interrupted"]);
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn what_a_task_asks_and_is_answered_is_on_record() {
    let pair = Pair::start("");
    let client = Client { server: &pair.before, token: None };
    let task = client.task("confirm_delete", &json!({"filename": "a.txt"}));
    let asking = client.until(&task, "input_required");
    let requests = asking["inputRequests"].as_object().expect("what is asked");
    let (key, question) = requests.iter().next().expect("one question");
    assert_eq!(question["method"], "elicitation/create");
    let answer = json!({"action": "accept", "content": {"confirm": true}});
    let responses = json!({key: answer, "unknown": {}});
    client.ask("tasks/update", json!({"taskId": task, "inputResponses": responses}));
    let done = client.until(&task, "completed");
    assert_eq!(done["result"]["content"][0]["text"], "a.txt is deleted.");
    assert!(pair.before.stop().success());
    let events = record::check(pair.data.path());
    for kind in ["call.asked", "call.answered"] {
        assert_eq!(events.iter().filter(|event| record::kind(event) == kind).count(), 1, "{kind}");
    }
}

#[test]
fn tasks_of_sessions_are_followed_with_the_typescript_sdk() {
    let (data, files) = (temp(), temp());
    let calls = files.path().join("calls");
    let config = format!(
        "[[upstream]]\nname = \"up\"\ncommand = {:?}\nargs = [{:?}, {:?}]\nprefix = \"\"\n",
        needs("node_modules/node/bin/node"),
        needs("tasks.mjs"),
        calls
    );
    let config = configure(data.path(), &config);
    let server = Server::start(data.path(), &["--conformance-fixtures", "--config", &config]);
    let plan = json!({
        "calls": [
            {"name": "job", "arguments": {"ms": 50, "text": "done"}},
            {"name": "ask", "arguments": {}},
            {"name": "slow_compute", "arguments": {"seconds": 0, "label": "own"}},
            {"name": "greet", "arguments": {"name": "you"}, "task": {"ttl": 60000}},
            {"name": "failing_job", "arguments": {}},
        ],
        "cancel": {"name": "job", "arguments": {"ms": 600_000, "text": "never"}},
        "when": files.path().join("followed"),
        "plain": {"name": "job", "arguments": {"ms": 1, "text": "x"}},
    });
    let said = std::thread::scope(|scope| {
        // A server can be told of a cancellation once it has named its task: those of three calls are followed then.
        scope.spawn(|| {
            let follows = |event: &&cairn::event::Event| {
                record::kind(event) == "task.claimed" && event.fields().subject.ends_with(".f")
            };
            until("the server's tasks are followed", || {
                let events = record::events(data.path());
                (events.iter().filter(follows).count() == 3).then_some(())
            });
            fs::write(files.path().join("followed"), "").expect("the directory can be written");
        });
        node("follow.mjs", &[&server.mcp(), &plan.to_string()]).succeeded()
    });
    let seen: Value = serde_json::from_str(&said).expect("one line of JSON");
    assert_eq!(seen["capabilities"]["requests"]["tools"]["call"], json!({}), "{seen}");
    let calls_seen = seen["calls"].as_array().expect("a list");
    let texts: Vec<_> = calls_seen.iter().map(|call| call["text"].as_str().unwrap_or("none")).collect();
    assert_eq!(texts, ["done", "Hello, Ada!", "Computed own.", "Hello, you!", "The job failed."], "{seen}");
    for followed in calls_seen {
        assert_eq!(followed["kinds"][0], "taskCreated", "{seen}");
        assert_eq!(followed["related"], followed["task"]["taskId"], "{seen}");
    }
    assert_eq!(calls_seen[3]["task"]["ttl"], 60_000);
    assert_eq!(calls_seen[4]["task"]["status"], "failed", "a result that is an error fails its task: {seen}");
    assert_eq!(seen["asked"][0]["message"], "Who are you?", "{seen}");
    assert_eq!(seen["asked"][0]["task"], calls_seen[1]["task"]["taskId"], "it names our task: {seen}");
    assert_eq!(
        (&seen["cancelled"], &seen["after"], &seen["again"]),
        (&json!("cancelled"), &json!("cancelled"), &json!(-32602))
    );
    assert_eq!(seen["plain"], -32601, "it must be called as a task: {seen}");
    assert_eq!(seen["listed"].as_array().map(Vec::len), Some(6), "{seen}");
    until("the server hears of the cancellation", || {
        fs::read_to_string(&calls).unwrap_or_default().contains("cancelled job").then_some(())
    });
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn a_handle_lasts_as_long_as_its_client_was_told_and_there_are_only_so_many() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let mut keyed = |id: u64, label: &str| {
        let mut params = call("slow_compute", &json!({"seconds": 0, "label": label}));
        params["task"] = json!({});
        params["_meta"] = json!({"io.cairn/idempotency-key": "once"});
        session.request(id, "tools/call", params)
    };
    let (once, again) = (keyed(400, "a"), keyed(401, "a"));
    let id = &once["result"]["task"]["taskId"];
    assert!(id.is_string() && *id == again["result"]["task"]["taskId"], "{once} {again}");
    assert_eq!(keyed(402, "b")["error"]["code"], -32602, "a key is for one call");
    let mut called = |id: u64, seconds: u64, ttl: u64| {
        let mut params = call("slow_compute", &json!({"seconds": seconds}));
        params["task"] = json!({"ttl": ttl});
        session.request(id, "tools/call", params)
    };
    let brief = called(1, 0, 1)["result"]["task"].clone();
    assert_eq!(brief["ttl"], 1_000, "no less than a second: {brief}");
    for id in 2..258 {
        let made = called(id, 600, 3_600_000);
        assert!(made["result"]["task"]["taskId"].is_string(), "{id}: {made}");
    }
    assert_eq!(called(258, 600, 1_000)["error"]["code"], -32010, "256 have not ended");
    let told = until("the first has expired", || {
        let told = session.request(300, "tasks/get", json!({"taskId": brief["taskId"]}));
        told.get("error").cloned()
    });
    assert_eq!(told["code"], -32602, "{told}");
    // An older client knows no tasks: a tool that must be one is called, and awaited.
    let awaited = session.request(301, "tools/call", call("failing_job", &json!({})));
    assert_eq!(awaited["result"]["isError"], true, "{awaited}");
    assert!(server.stop().success());
    record::check(data.path());
}
