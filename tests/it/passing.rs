//! What works direct works through: slow servers, long calls, odd results, unlisted pages and clients of every age.

use std::{fs, path::Path};

use cairn::event::Body;
use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, needs, on_path, temp, text},
    lines::Lines,
    record,
    speech::{Connection, call},
};

/// Longer than a node waits for its other upstreams.
const SLOW_START_S: &str = "11";
const PAGE: &str = "ui://a/app.html";
/// More than the connections that are kept beside the first.
const CLIENTS: u64 = 70;
const CONNECTIONS_MAX: usize = 65;

/// Returns the command of the server, which takes this many seconds to start.
fn program(seconds: &str) -> [String; 3] {
    let place = |path: &str| text(&needs(path)).to_owned();
    [place("venv/bin/python"), place("passing.py"), seconds.to_owned()]
}

/// Returns the table of the server as an upstream, with these further keys.
fn table(more: &str) -> String {
    let [command, script, seconds] = program("0");
    format!("[[upstream]]\nname = \"up\"\ncommand = {command:?}\nargs = [{script:?}, {seconds:?}]\n{more}\n")
}

/// Starts a node with this configuration, whose log is in `node`.
fn serve(data: &Path, config: &str) -> Server {
    let file = data.join("cairn.toml");
    fs::write(&file, config).expect("the directory is there");
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data.join("node")).arg("--config").arg(file);
    Server::start_as(command)
}

#[test]
fn a_slow_server_behind_wrap_is_waited_for() {
    let data = temp();
    let program = program(SLOW_START_S);
    let mut lines = Lines::wrap(data.path(), &program.each_ref().map(String::as_str));
    let listed = lines.request("tools/list", json!({}));
    assert_eq!(listed["result"]["tools"][0]["name"], "long", "{listed}");
    lines.finish();
}

#[test]
fn progress_gives_a_call_its_time_again() {
    let data = temp();
    let file = data.path().join("cairn.toml");
    fs::write(&file, table("timeout_ms = 1000")).expect("the directory is there");
    let mut command = cairn(&["stdio", "--data"]);
    command.arg(data.path().join("node")).arg("--config").arg(&file);
    let mut lines = Lines::start(command);
    let mut params = call("up_long", &json!({}));
    let silent = lines.request("tools/call", params.clone());
    assert_eq!(silent["result"]["_meta"]["io.cairn/error"]["code"], "deadline_exceeded", "{silent}");
    params["_meta"] = json!({"progressToken": "p"});
    let told = lines.request("tools/call", params);
    assert_eq!(told["result"]["content"][0]["text"], "done", "{told}");
    lines.finish();
}

#[test]
fn a_session_gets_objects_where_a_server_gives_lists() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    let rows = |listed: &Value| {
        let tools = listed["result"]["tools"].as_array().unwrap_or_else(|| panic!("{listed}"));
        tools.iter().find(|tool| tool["name"] == "up_rows").cloned().expect("it is listed")
    };
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let plain = connection.request(1, "tools/list", json!({}));
    assert_eq!(rows(&plain)["outputSchema"]["type"], "array");
    let given = connection.request(2, "tools/call", call("up_rows", &json!({})));
    assert_eq!(given["result"]["structuredContent"], json!([1, 2]), "{given}");
    let greeted = connection.initialize();
    assert_eq!(greeted["result"]["instructions"], "up: Ask for rows.", "{greeted}");
    let listed = connection.request(3, "tools/list", json!({}));
    assert!(rows(&listed).get("outputSchema").is_none(), "{listed}");
    let given = connection.request(4, "tools/call", call("up_rows", &json!({})));
    assert_eq!(given["result"]["structuredContent"], json!({"result": [1, 2]}), "{given}");
    assert!(given["result"].get("resultType").is_none(), "{given}");
    assert!(server.stop().success());
}

#[test]
fn a_null_for_an_optional_argument_is_the_servers_to_judge() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let given = connection.request(1, "tools/call", call("up_echo", &json!({"flag": null})));
    assert_eq!(given["result"]["content"][0]["text"], r#"{"flag": null}"#, "{given}");
    let refused = connection.request(2, "tools/call", call("up_echo", &json!({"flag": 7})));
    assert_eq!(refused["result"]["_meta"]["io.cairn/error"]["code"], "invalid_argument", "{refused}");
    assert!(server.stop().success());
    let unchecked =
        record::check(&data.path().join("node")).into_iter().find_map(|event| match event.body() {
            Some(Body::CallStarted(facts)) => facts.input_unchecked,
            _ => None,
        });
    assert_eq!(unchecked.map(|why| why.as_str()), Some("null"));
}

#[test]
fn a_page_in_no_list_is_read_where_a_tool_names_it() {
    let data = temp();
    let other = data.path().join("other");
    fs::create_dir(&other).expect("the directory is there");
    fs::write(other.join("tools"), r#"{"name":"t","inputSchema":{"type":"object"}}"#).expect("room");
    let (python, script) = (needs("venv/bin/python"), needs("upstream.py"));
    // The other one comes first, and answers every read.
    let first = format!(
        "[[upstream]]\nname = \"other\"\ncommand = {:?}\nargs = [{:?}, {:?}]\n",
        text(&python),
        text(&script),
        text(&other)
    );
    let server = serve(data.path(), &(first + &table("")));
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let read = connection.request(1, "resources/read", json!({"uri": PAGE}));
    assert_eq!(read["result"]["contents"][0]["text"], "<p>a page</p>", "{read}");
    let nobodys = connection.request(2, "resources/read", json!({"uri": "ui://b"}));
    assert!(nobodys["error"].is_object(), "where several might have it, none is guessed: {nobodys}");
    assert!(server.stop().success());
}

#[test]
fn the_oldest_clients_are_served_by_wrap() {
    let data = temp();
    let mut command = cairn(&["wrap", "--data"]);
    command.arg(data.path()).arg("--").args(program("0"));
    let mut process = Process::start(on_path(command));
    let params = json!({"protocolVersion": "2024-11-05", "capabilities": {},
                        "clientInfo": {"name": "tests", "version": "1"}});
    process.tell(&json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).to_string());
    let greeted = process.line(record::PATIENCE).expect("it answers");
    let greeted: Value = serde_json::from_str(&greeted).unwrap_or_else(|err| panic!("{err}: {greeted}"));
    assert_eq!(greeted["result"]["protocolVersion"], "2024-11-05", "{greeted}");
    assert_eq!(greeted["result"]["serverInfo"]["name"], "passing", "{greeted}");
    assert_eq!(greeted["result"]["instructions"], "Ask for rows.", "{greeted}");
    process.hang_up();
    assert!(process.wait(record::PATIENCE).success());
}

#[test]
fn ever_other_capabilities_keep_nobody_out() {
    let data = temp();
    let server = serve(data.path(), &table(""));
    let mut connection = Connection::open(&server.url).expect("the server listens");
    for n in 0..CLIENTS {
        let capabilities = json!({"experimental": {"n": {"value": n}}});
        let mut params = call("up_echo", &json!({"flag": true}));
        params["_meta"] = json!({"io.modelcontextprotocol/clientCapabilities": capabilities});
        let given = connection.request(n, "tools/call", params);
        assert_eq!(given["result"]["content"][0]["text"], r#"{"flag": true}"#, "client {n}: {given}");
    }
    // Each thread has the children that it started.
    let threads = fs::read_dir(format!("/proc/{}/task", server.process.id())).expect("the server runs");
    let children = threads.map(|thread| {
        let of_thread = fs::read_to_string(thread.expect("it is there").path().join("children"));
        of_thread.unwrap_or_default().split_whitespace().count()
    });
    let children: usize = children.sum();
    assert!((2..=CONNECTIONS_MAX + 1).contains(&children), "{children} servers are running");
    assert!(server.stop().success());
}
