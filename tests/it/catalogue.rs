//! Who sees which tools: what each principal lists, calls and finds, from outside.

mod finding;
mod places;
mod scopes;
mod skills;

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, run, temp},
    record,
    speech::{Connection, ask, call, modern},
    upstream::{Upstream, configure, serve},
};

/// Bytes of the list of this node's own tools before it was cut to half.
const LISTED_BEFORE: usize = 194_699;

/// Makes a token for a principal with these scopes.
fn token(data: &Path, name: &str, scopes: &[&str]) -> String {
    let mut command = cairn(&["token", "add", name, "--data"]);
    command.arg(data);
    for scope in scopes {
        command.args(["--scope", scope]);
    }
    let said = run(command).succeeded();
    said.split_whitespace().max_by_key(|word| word.len()).expect("a token").to_owned()
}

/// Somebody who asks with a token.
struct Principal<'a> {
    server: &'a Server,
    bearer: String,
}

impl<'a> Principal<'a> {
    fn new(server: &'a Server, token: &str) -> Self {
        Self { server, bearer: format!("Bearer {token}") }
    }

    fn ask(&self, method: &str, params: Value) -> Value {
        let message = modern(1, method, params);
        let name = message["params"]["name"].as_str().or_else(|| message["params"]["uri"].as_str());
        let headers = [
            ("authorization", self.bearer.as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", method),
            ("mcp-name", name.unwrap_or_default()),
        ];
        let headers = &headers[..if name.is_some() { 6 } else { 5 }];
        self.server.send("POST", "/mcp", headers, message.to_string().as_bytes()).json()
    }

    /// The names of the tools that it lists.
    fn lists(&self) -> Vec<String> {
        names(&self.ask("tools/list", json!({})))
    }

    /// The tools of the upstream `up` that it lists.
    fn lists_up(&self) -> Vec<String> {
        self.lists().into_iter().filter(|name| name.starts_with("up_")).collect()
    }

    fn call(&self, name: &str, arguments: Value) -> Value {
        self.ask("tools/call", call(name, &arguments))
    }

    /// The code of the domain error that a builtin tool answers with.
    fn code(&self, name: &str, arguments: Value) -> String {
        let answer = self.call(name, arguments);
        let error = &answer["result"]["structuredContent"]["error"];
        error["code"].as_str().unwrap_or_else(|| panic!("{name}: {answer}")).to_owned()
    }

    /// The message of the JSON-RPC error for a tool that it does not see.
    fn unknown(&self, name: &str) -> String {
        let answer = self.call(name, json!({}));
        assert_eq!(answer["error"]["code"], -32602, "{name}: {answer}");
        answer["error"]["message"].as_str().expect("a message").to_owned()
    }
}

fn names(answer: &Value) -> Vec<String> {
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
    tools.iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect()
}

#[test]
fn what_is_denied_is_not_there_by_whatever_way() {
    let data = temp();
    let upstream = Upstream::new(&["alpha", "beta", "secret_one"]);
    let tokens = ["ann", "bob"].map(|name| token(data.path(), name, &["mcp:call"]));
    let carol = token(data.path(), "carol", &["tools:up_a*", "tools:up_s*", "tasks:admin"]);
    let config = format!(
        "[auth]\nmode = \"static\"\n[tools]\ndeny = [\"*secret*\"]\n\
         [[tools.rules]]\nprincipals = [\"b*\"]\ndeny = [\"up_beta\"]\n{}",
        upstream.table("up", "")
    );
    let server = serve(data.path(), &config);
    let [ann, bob] = tokens.map(|token| Principal::new(&server, &token));
    let carol = Principal::new(&server, &carol);
    assert_eq!(ann.lists_up(), ["up_alpha", "up_beta"]);
    assert_eq!(bob.lists_up(), ["up_alpha"]);
    assert_eq!(carol.lists_up(), ["up_alpha"], "a scope allows nothing that is denied");

    // The same answer as for a tool that nobody has, and no suggestion that names it.
    for (who, hidden) in
        [(&ann, "up_secret_one"), (&bob, "up_beta"), (&carol, "up_beta"), (&carol, "up_secret_one")]
    {
        let absent = who.unknown("up_zzzz_nothing");
        let said = who.unknown(hidden);
        assert!(said.starts_with(&format!("unknown tool: {hidden}")), "{said}");
        assert!(absent.starts_with("unknown tool: "), "{absent}");
        assert!(!who.unknown(&format!("{hidden}x")).contains(&format!("`{hidden}`")));
        assert_eq!(who.code("tools_dispatch", json!({"tool": hidden})), "not_found");
        assert_eq!(who.code("tools_get_schema", json!({"tool": hidden})), "not_found");
        let found = who.call("tools_list_tools", json!({"limit": 1000}));
        assert!(!found.to_string().contains(hidden), "{found}");
        let task = json!({"task_id": "t", "task_type": format!("tool:{hidden}"), "payload": {}});
        assert_eq!(who.code("task_submit", task.clone()), "invalid_argument");
        let worker = json!({"worker_id": "w", "capabilities": [format!("tool:{hidden}")]});
        assert_eq!(who.code("worker_register", worker), "permission_denied");
        let task = json!({"task_type": format!("tool:{hidden}"), "payload": {}});
        let schedule = json!({"schedule_id": "s", "every_ms": 3_600_000, "task": task});
        assert_eq!(who.code("schedule_create", schedule), "invalid_argument");
    }
    let steps = json!([{"step_id": "a", "action": "up_beta", "inputs": {}}]);
    let submit = |who: &Principal<'_>, id: &str| {
        who.call("workflow_submit", json!({"workflow_id": id, "name": "n", "steps": steps}))
    };
    let refused = submit(&bob, "of-bob");
    assert_eq!(refused["result"]["structuredContent"]["error"]["code"], "invalid_argument", "{refused}");
    assert!(!refused.to_string().contains("did you mean `up_beta`"), "{refused}");
    let submitted = submit(&ann, "of-ann");
    assert_eq!(submitted["result"]["structuredContent"]["success"], true, "{submitted}");
    upstream.reached("beta", 1);
    let fork = json!({"workflow_id": "of-ann", "new_workflow_id": "again"});
    assert_eq!(bob.code("workflow_fork", fork), "permission_denied");
    let replay = json!({"workflow_id": "of-ann", "mode": "rerun"});
    assert_eq!(bob.code("workflow_replay", replay), "permission_denied");

    // Neither its contract's name nor a pin is a way to it.
    let schema = ann.call("tools_get_schema", json!({"tool": "up_beta"}));
    let contract = schema["result"]["structuredContent"]["contract"].as_str().expect("a contract");
    assert!(bob.unknown(contract).starts_with("unknown tool"));
    let mut pinned = call("elsewhere", &json!({}));
    pinned["_meta"] = json!({"io.cairn/contract": contract});
    assert_eq!(bob.ask("tools/call", pinned.clone())["error"]["code"], -32602);
    assert_eq!(ann.ask("tools/call", pinned)["result"]["isError"], Value::Null);
    assert_eq!(bob.code("tools_get_schema", json!({"tool": contract})), "not_found");
    assert!(server.stop().success());
    let calls = upstream.calls();
    assert!(calls.iter().all(|call| call.starts_with("beta")) && calls.len() == 2, "{calls:?}");
    record::check(data.path());
}

#[test]
fn hints_name_only_what_the_caller_has() {
    let data = temp();
    let config = "[tools]\ndeny = [\"tools_*\", \"workflow_list\"]\n";
    let server = serve(data.path(), config);
    let hint = |name: &str, arguments: Value| {
        let answer = ask(&server, "tools/call", call(name, &arguments));
        let error = answer["result"]["structuredContent"]["error"].clone();
        assert!(error["code"].is_string(), "{answer}");
        assert!(
            !answer.to_string().contains("tools_") && !answer.to_string().contains("workflow_list"),
            "{answer}"
        );
        error["hint"].clone()
    };
    let task = json!({"task_id": "t", "task_type": "tool:nothing", "payload": {}});
    assert_eq!(hint("task_submit", task), Value::Null);
    assert_eq!(hint("workflow_status", json!({"workflow_id": "nothing"})), Value::Null);
    assert!(hint("task_status", json!({"task_id": "nothing"})).to_string().contains("task_list"));
    assert_eq!(hint("task_status", json!({"task": 7})), "see the tool's input schema");
    assert!(server.stop().success());
}

#[test]
fn own_tools_are_offered_by_category_and_listed_in_half_their_bytes() {
    let data = temp();
    let server = serve(data.path(), "");
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let listed = connection.ask(&modern(1, "tools/list", json!({}))).expect("the server answers").body.len();
    assert!(listed * 2 <= LISTED_BEFORE, "{listed} bytes");
    assert!(server.stop().success());
    let server = serve(data.path(), "[tools]\nbuiltin = [\"provenance\", \"queue\"]\n");
    let offered = names(&ask(&server, "tools/list", json!({})));
    assert_eq!(offered.len(), 12, "{offered:?}");
    assert!(offered.iter().any(|name| name == "queue_stats"));
    for hidden in ["task_submit", "tools_dispatch"] {
        let answer = ask(&server, "tools/call", call(hidden, &json!({})));
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
    }
    assert!(server.stop().success());
    record::check(data.path());
}

/// The names that a wrapped server's client lists.
fn wrapped(config: &str) -> Vec<String> {
    let data = temp();
    let upstream = Upstream::new(&["alpha", "beta"]);
    let table = upstream.table("up", "");
    let line = table.lines().find_map(|line| line.strip_prefix("args = ")).expect("a command");
    let args: Vec<String> = serde_json::from_str(line).expect("a list");
    let config = configure(data.path(), config);
    let mut command = cairn(&["wrap", "--config", &config, "--data"]);
    command.arg(data.path()).arg("--").arg(crate::harness::needs("venv/bin/python")).args(args);
    let mut wrap = Process::start(command);
    wrap.tell(&modern(1, "tools/list", json!({})).to_string());
    let answer = wrap.line(record::PATIENCE).unwrap_or_else(|| panic!("{}", wrap.last_errors()));
    let listed = names(&serde_json::from_str(&answer).expect("an answer"));
    wrap.hang_up();
    assert!(wrap.wait(record::PATIENCE).success());
    listed
}

#[test]
fn a_wrapped_server_is_offered_alone_unless_the_configuration_says_more() {
    assert_eq!(wrapped(""), ["alpha", "beta"]);
    assert_eq!(wrapped("[tools]\ndeny = [\"beta\"]\n"), ["alpha"]);
    let more = wrapped("[tools]\nbuiltin = [\"queue\"]\n");
    assert_eq!(more.len(), 6, "{more:?}");
    assert!(more.iter().any(|name| name == "queue_stats"));
    assert_eq!(wrapped("[tools]\ncatalogue = \"search\"\n"), ["tool_search", "tool_call"]);
}

#[test]
fn faults_of_the_offer_are_told_with_their_places() {
    let data = temp();
    let config = data.path().join("cairn.toml");
    let text = "[tools]\nallow = [\"a b\"]\nbuiltin = [\"task\"]\ncatalogue = \"lazy\"\n[[tools.rules]]\ndeny = [\"\"]\n";
    fs::write(&config, text).expect("the directory is there");
    let mut check = cairn(&["config", "check"]);
    check.arg(&config);
    let out = check.output().expect("cairn runs");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success(), "{said}");
    for place in [
        "tools.allow[0]",
        "tools.builtin[0]",
        "tools.catalogue",
        "tools.rules[0].principals",
        "tools.rules[0].deny[0]",
    ] {
        assert!(said.contains(place), "{place}: {said}");
    }
}
