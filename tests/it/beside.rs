//! What passes beside calls, at the door: levels, roots, questions and log lines of a server whose client is one alone,
//! and calls that wait for their clients.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, needs, temp},
    record,
    speech::{Connection, LEGACY, call, modern},
    upstream::serve,
};

const ROOTS: &str = r#"{"roots":[{"uri":"file:///work","name":"work"}]}"#;

/// A client in a session over lines that keeps what it is told.
struct Client {
    process: Process,
    asked: u64,
    told: Vec<Value>,
}

impl Client {
    fn start(command: Command) -> Self {
        let mut client = Self { process: Process::start(command), asked: 0, told: Vec::new() };
        let capabilities = json!({"roots": {"listChanged": true}, "elicitation": {}});
        let params = json!({"protocolVersion": LEGACY, "capabilities": capabilities,
                            "clientInfo": {"name": "tests", "version": "1"}});
        client.request("initialize", params);
        client.notify("notifications/initialized");
        client
    }

    fn notify(&mut self, method: &str) {
        self.process.tell(&json!({"jsonrpc": "2.0", "method": method}).to_string());
    }

    fn request(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.process.tell(&message.to_string());
        self.until(|message| message["id"] == id && message.get("method").is_none())
    }

    /// Reads on, and answers what is asked.
    fn until(&mut self, like: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.process.line(record::PATIENCE);
            let line = line.unwrap_or_else(|| panic!("it ended: {}", self.process.last_errors()));
            let message: Value = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
            if message["method"] == "roots/list" {
                let id = &message["id"];
                self.process.tell(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{ROOTS}}}"#));
            }
            self.told.push(message.clone());
            if like(&message) {
                return message;
            }
        }
    }

    fn seen(&mut self) -> Value {
        said(&self.request("tools/call", call("seen", &json!({}))))
    }

    /// Asks again and again until the server has seen this.
    fn sees(&mut self, like: impl Fn(&Value) -> bool) -> Value {
        loop {
            let seen = self.seen();
            if like(&seen) {
                return seen;
            }
        }
    }

    fn logged(&self, text: &str) -> usize {
        self.told.iter().filter(|message| message["params"]["data"] == text).count()
    }
}

fn said(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).expect("the tool says JSON")
}

fn program() -> [String; 2] {
    [needs("venv/bin/python"), needs("beside.py")].map(|path| path.to_str().expect("a text").to_owned())
}

fn wrap(data: &Path) -> Command {
    let mut command = cairn(&["wrap", "--data"]);
    command.arg(data).arg("--").args(program());
    command
}

fn table(more: &str) -> String {
    let [python, script] = program();
    format!(
        "[[upstream]]\nname = \"beside\"\nprefix = \"\"\ncommand = {python:?}\nargs = [{script:?}]\n{more}\n"
    )
}

#[test]
fn a_wrapped_server_reaches_its_client_outside_of_calls() {
    let data = temp();
    let mut client = Client::start(wrap(data.path()));
    let seen = client.sees(|seen| !seen["roots"].is_null());
    assert_eq!(seen["roots"], serde_json::from_str::<Value>(ROOTS).expect("JSON")["roots"]);
    assert_eq!(seen["level"], Value::Null, "nobody named one");
    assert_eq!(client.logged("initialised"), 1, "{:?}", client.told);

    client.notify("notifications/roots/list_changed");
    client.sees(|seen| seen["changes"] == 1);
    client.request("logging/setLevel", json!({"level": "warning"}));
    assert_eq!(client.seen()["level"], "warning", "it is set before the client goes on");
    client.request("tools/call", call("later", &json!({})));
    client.request("tools/call", call("slow", &json!({"seconds": 0.5})));
    client.request("logging/setLevel", json!({"level": "debug"}));
    assert_eq!(client.seen()["level"], "debug");
    client.request("tools/call", call("later", &json!({})));
    client.until(|message| message["params"]["data"] == "said later");
    assert_eq!(client.logged("said later"), 1, "what is below the level is left out");
    client.process.hang_up();
    assert!(client.process.wait(record::PATIENCE).success(), "{}", client.process.last_errors());
    let kinds: Vec<String> =
        record::check(data.path()).iter().map(|event| record::kind(event).to_owned()).collect();
    assert!(!kinds.contains(&"call.asked".to_owned()), "what belongs to no call is on no record");
}

#[test]
fn each_session_of_a_served_server_is_reached_for_itself() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    let open = || {
        let mut session = Connection::open(&server.url).expect("the server listens");
        let capabilities = json!({"roots": {"listChanged": true}});
        let params = json!({"protocolVersion": LEGACY, "capabilities": capabilities,
                            "clientInfo": {"name": "tests", "version": "1"}});
        let message = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let reply = session.ask(&message).expect("the server answers");
        session.session = reply.header("mcp-session-id").map(str::to_owned);
        let mut listening = Connection::open(&server.url).expect("the server listens");
        listening.session.clone_from(&session.session);
        let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        session.ask(&note).expect("the server answers");
        listening.listen();
        (session, listening)
    };
    let (mut one, mut of_one) = open();
    let (mut other, mut of_other) = open();
    let answers = |session: &mut Connection, listening: &mut Connection, uri: &str| {
        let heard = listening.until("roots/list");
        let data = heard.lines().filter_map(|line| line.strip_prefix("data:"));
        let mut asked = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let asked = asked.find(|asked| asked["method"] == "roots/list").expect("the question");
        let result = json!({"roots": [{"uri": uri}]});
        session.ask(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": result})).expect("it is taken");
    };
    answers(&mut other, &mut of_other, "file:///other");
    answers(&mut one, &mut of_one, "file:///one");
    let seen = |session: &mut Connection, id: u64| loop {
        let seen = said(&session.request(id, "tools/call", call("seen", &json!({}))));
        if !seen["roots"].is_null() {
            return seen;
        }
    };
    let (first, second) = (seen(&mut one, 1), seen(&mut other, 1));
    assert_eq!(
        (&first["roots"][0]["uri"], &second["roots"][0]["uri"]),
        (&json!("file:///one"), &json!("file:///other"))
    );
    assert_ne!(first["pid"], second["pid"]);
    one.request(2, "logging/setLevel", json!({"level": "error"}));
    assert_eq!((&seen(&mut one, 3)["level"], &seen(&mut other, 3)["level"]), (&json!("error"), &json!(null)));
    assert!(server.stop().success());
}

/// A request of a client without a session that can be asked.
fn round(server: &Server, mut params: Value) -> Value {
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}});
    let mut connection = Connection::open(&server.url).expect("the server listens");
    connection.ask(&modern(1, "tools/call", params)).expect("the server answers").json()
}

fn again(first: &Value, tool: &str, name: &str) -> Value {
    let requests = first["result"]["inputRequests"].as_object().unwrap_or_else(|| panic!("{first}"));
    let key = requests.keys().next().expect("a question");
    let mut params = call(tool, &json!({}));
    params["requestState"] = first["result"]["requestState"].clone();
    params["inputResponses"] = json!({key.as_str(): {"action": "accept", "content": {"name": name}}});
    params
}

#[test]
fn calls_of_several_clients_are_asked_each_for_itself_and_a_lost_answer_is_given_again() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    round(&server, call("seen", &json!({})));
    let open: Vec<Value> = (0..3).map(|_| round(&server, call("ask", &json!({})))).collect();
    for (n, first) in open.iter().enumerate().rev() {
        let params = again(first, "ask", &format!("client {n}"));
        let told = round(&server, params.clone());
        assert_eq!(said(&told)["content"]["name"], format!("client {n}"), "{told}");
        let repeated = round(&server, params.clone());
        assert_eq!(said(&repeated), said(&told), "its answer was lost on its way");
        for other in [again(first, "ask", "somebody else"), again(first, "count", &format!("client {n}"))] {
            assert_eq!(round(&server, other)["error"]["code"], -32602);
        }
    }
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn progress_is_told_as_it_came_under_the_token_of_the_request_that_waits() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    let told = |mut params: Value, token: &str| {
        params["_meta"]["progressToken"] = json!(token);
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({"elicitation": {}});
        let mut connection = Connection::open(&server.url).expect("the server listens");
        let reply = connection.ask(&modern(1, "tools/call", params)).expect("the server answers");
        let text = String::from_utf8(reply.body.clone()).expect("text");
        (reply.json(), text)
    };
    let (first, said) = told(call("count", &json!({})), "first");
    for number in ["1", "2.50"] {
        let progress = format!(r#""progressToken":"first","progress":{number},"total":10"#);
        assert!(said.contains(&progress), "{said}");
    }
    let (_, said) = told(again(&first, "count", "ada"), "second");
    assert!(said.contains(r#""progressToken":"second","progress":3e0"#) && !said.contains("first"), "{said}");
    assert!(server.stop().success());
}

#[test]
fn a_call_that_takes_long_is_a_stream_that_stays_alive() {
    let data = temp();
    let server = serve(data.path(), &format!("[server]\nrequest_timeout_ms = 1000\n{}", table("")));
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let slow = call("slow", &json!({"seconds": 7}));
    let reply = connection.ask(&modern(1, "tools/call", slow)).expect("the server answers");
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert!(reply.body.starts_with(b":\n\n"), "{reply:?}");
    assert_eq!(reply.json()["result"]["content"][0]["text"], "{}");
    assert!(server.stop().success());
}
