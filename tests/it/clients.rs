//! Other people's clients in front, other people's servers behind: each client does the same round at each server.
//!
//! The servers: the fixtures of this node, `server-everything` over stdio and over HTTP, `server-filesystem`.

use std::{fs, net::TcpListener, path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Process, Server, cairn, needs, node, on_path, python, temp},
    record::{self, until},
    upstream::configure,
    work::Caller,
};

const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
const FILESYSTEM: &str = "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js";
const INSPECTOR: &str = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js";
/// A tool of `server-everything` that reports progress and can be stopped.
const LONG: &str = "trigger-long-running-operation";

/// One Cairn in front of all the servers.
struct House {
    server: Server,
    data: TempDir,
    files: TempDir,
    _web: Process,
}

fn node_program() -> String {
    needs("node_modules/node/bin/node").to_string_lossy().into_owned()
}

/// `server-everything` over HTTP, at a port that was free a moment ago.
fn everything_over_http() -> (Process, String) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("loopback has a free port").port();
    let mut command = Command::new(node_program());
    command.arg(needs(EVERYTHING)).arg("streamableHttp").env("PORT", port.to_string());
    let process = Process::start(on_path(command));
    until("server-everything over HTTP", || process.errors().contains("listening").then_some(()));
    (process, format!("http://127.0.0.1:{port}/mcp"))
}

fn house() -> House {
    let (web, url) = everything_over_http();
    let (data, files) = (temp(), temp());
    fs::write(files.path().join("note.txt"), "a note").expect("the directory can be written");
    let stdio = |name: &str, script: &str, argument: &Path| {
        let (command, script) = (node_program(), needs(script));
        format!("[[upstream]]\nname = {name:?}\ncommand = {command:?}\nargs = [{script:?}, {argument:?}]\n")
    };
    let config = [
        stdio("io", EVERYTHING, Path::new("stdio")),
        format!("[[upstream]]\nname = \"web\"\nurl = {url:?}\n"),
        stdio("files", FILESYSTEM, files.path()),
    ];
    let config = configure(data.path(), &config.concat());
    let server = Server::start(data.path(), &["--conformance-fixtures", "--config", &config]);
    House { server, data, files, _web: web }
}

/// What a client does at each server, and what it must have seen.
fn rounds(house: &House) -> Vec<(Value, Value)> {
    let everything = |prefix: &str| {
        let long = format!("{prefix}_{LONG}");
        let complete = json!({"ref": {"type": "ref/prompt", "name": format!("{prefix}_completable-prompt")},
                              "argument": {"name": "department", "value": "E"}});
        (
            json!({
                "call": {"name": format!("{prefix}_echo"), "arguments": {"message": "hello"}},
                "read": "demo://resource/dynamic/text/1",
                "get": {"name": format!("{prefix}_simple-prompt")},
                "complete": complete,
                "progress": {"name": long, "arguments": {"duration": 0.2, "steps": 2}},
                "cancel": {"name": long, "arguments": {"duration": 600, "steps": 6000}},
            }),
            json!({"called": "Echo: hello", "read": "Resource 1", "got": "simple prompt",
                   "completed": "Engineering", "cancelled": "cancelled"}),
        )
    };
    let note = house.files.path().join("note.txt");
    let note = note.canonicalize().expect("the note was written");
    vec![
        (
            json!({
                "call": {"name": "test_simple_text", "arguments": {}},
                "read": "test://static-text",
                "get": {"name": "test_simple_prompt"},
                "progress": {"name": "test_tool_with_progress", "arguments": {}},
            }),
            json!({"called": "simple text", "read": "static", "got": "simple prompt"}),
        ),
        everything("io"),
        everything("web"),
        (
            json!({"call": {"name": "files_read_text_file", "arguments": {"path": note}}}),
            json!({"called": "a note"}),
        ),
    ]
}

/// Takes a client through every round. `version` is what it must have agreed on.
fn check(version: &str, run: impl Fn(&str, &str) -> String) {
    let house = house();
    for (plan, expected) in rounds(&house) {
        let said = run(&house.server.mcp(), &plan.to_string());
        let seen: Value = serde_json::from_str(&said).unwrap_or_else(|err| panic!("{err}: {said}"));
        assert_eq!(seen["version"], version);
        for (key, part) in expected.as_object().expect("expectations are an object") {
            let part = part.as_str().expect("expectations are texts");
            assert!(seen[key].to_string().contains(part), "{key}: {seen}");
        }
        if !plan["progress"].is_null() {
            assert!(seen["progress"].as_u64() >= Some(1), "no progress: {seen}");
        }
        let lists = |list: &str, name: &Value| seen[list].as_array().is_some_and(|list| list.contains(name));
        assert!(lists("tools", &plan["call"]["name"]), "{seen}");
        assert!(plan["get"].is_null() || lists("prompts", &plan["get"]["name"]), "{seen}");
        assert!(lists("resources", &json!("test://static-text")), "{seen}");
        assert!(lists("templates", &json!("demo://resource/dynamic/text/{resourceId}")), "{seen}");
    }
    for prefix in ["io", "web"] {
        let long = format!("{prefix}_{LONG}");
        let kinds = || {
            let endings = record::endings(&record::events(house.data.path()), &long);
            endings.iter().map(|event| record::kind(event).to_owned()).collect::<Vec<_>>()
        };
        until(&format!("the end of {long}"), || {
            (kinds() == ["call.succeeded", "call.cancelled"]).then_some(())
        });
    }
    assert!(house.server.stop().success());
    record::check(house.data.path());
}

#[test]
fn the_python_sdk_on_its_own_terms() {
    check("2026-07-28", |url, plan| python("drive.py", &["auto", url, plan]).succeeded());
}

#[test]
fn the_python_sdk_with_a_session() {
    check("2025-11-25", |url, plan| python("drive.py", &["legacy", url, plan]).succeeded());
}

#[test]
fn the_typescript_client_on_its_own_terms() {
    check("2026-07-28", |url, plan| node("drive.mjs", &["client", "auto", url, plan]).succeeded());
}

#[test]
fn the_typescript_client_with_a_session() {
    check("2025-11-25", |url, plan| node("drive.mjs", &["client", "legacy", url, plan]).succeeded());
}

#[test]
fn the_typescript_client_pinned() {
    check("2026-07-28", |url, plan| node("drive.mjs", &["client", "2026-07-28", url, plan]).succeeded());
}

#[test]
fn the_first_typescript_sdk() {
    check("session", |url, plan| node("drive.mjs", &["sdk", "", url, plan]).succeeded());
}

#[test]
fn the_inspector_in_both_eras() {
    let house = house();
    let url = house.server.mcp();
    for era in ["legacy", "modern"] {
        let inspect = |method: &str, more: &[&str]| {
            let args = [
                "--cli",
                "--server-url",
                &url,
                "--transport",
                "http",
                "--protocol-era",
                era,
                "-q",
                "--method",
                method,
            ];
            let said = node(INSPECTOR, &[&args[..], more].concat()).succeeded();
            serde_json::from_str::<Value>(&said).unwrap_or_else(|err| panic!("{era} {method}: {err}: {said}"))
        };
        let tools = inspect("tools/list", &[]);
        let names = tools["tools"].to_string();
        for tool in ["tools_get_schema", "test_simple_text", "io_echo", "web_echo", "files_read_text_file"] {
            assert!(names.contains(&format!("{tool:?}")), "{tool} is not in {names}");
        }
        assert!(inspect("prompts/list", &[])["prompts"].to_string().contains("io_simple-prompt"));
        assert!(inspect("resources/list", &[])["resources"].to_string().contains("test://static-text"));
        for prefix in ["io", "web"] {
            let echo = format!("{prefix}_echo");
            let called = inspect("tools/call", &["--tool-name", &echo, "--tool-arg", "message=hello"]);
            assert_eq!(called["content"][0]["text"], "Echo: hello");
            assert!(called["_meta"]["io.cairn/event"].is_string(), "{called}");
            let prompt = format!("{prefix}_simple-prompt");
            let got = inspect("prompts/get", &["--prompt-name", &prompt]);
            assert!(got["messages"][0]["content"]["text"].is_string(), "{got}");
        }
        let read = inspect("resources/read", &["--uri", "test://static-text"]);
        assert!(read["contents"][0]["text"].is_string(), "{read}");
    }
}

/// The first block of `docs/tasks.md` in this language.
fn documented(language: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let block = include_str!("../../docs/tasks.md").split_once(&fence).map(|(_, rest)| rest);
    block.and_then(|rest| rest.split_once("```")).expect("the page has such a block").0
}

#[test]
fn the_documented_worker_goes_on_when_its_server_starts_again() {
    let data = temp();
    let script = data.path().join("worker.py");
    fs::write(&script, documented("python")).expect("the directory can be written");
    let server = Server::start(data.path(), &[]);
    let mut worker = Command::new(needs("venv/bin/python"));
    worker.arg(&script).args([&server.mcp(), "notes-1"]);
    let mut worker = Process::start(on_path(worker));
    let summarised = |server: &Server, id: &str| {
        let mut caller = Caller::new(server);
        caller.submit(id, "summarise", json!({"payload": {"text": format!("the  text of {id}")}}));
        caller.task_until(id, "succeeded");
        assert_eq!(caller.output(id), json!({"summary": format!("the text of {id}")}));
    };
    summarised(&server, "before");
    // Its slots wait for work when the connection breaks.
    let address = server.url.trim_start_matches("http://").to_owned();
    server.kill();
    let mut again = cairn(&["serve", "--listen", &address, "--data"]);
    again.arg(data.path());
    let server = Server::start_as(again);
    summarised(&server, "after");
    worker.signal("TERM");
    assert!(worker.wait(record::PATIENCE).success(), "{}", worker.errors());
    let left = Caller::new(&server).tell("worker_status", json!({"worker_id": "notes-1"}));
    assert_eq!(left["status"], "offline", "{left}");
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn a_worker_over_the_typescript_sdk_claims_and_completes() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut caller = Caller::new(&server);
    for id in ["t1", "t2", "t3"] {
        caller.submit(id, "echo", json!({}));
    }
    let said = node("worker.mjs", &[&server.mcp(), "ts-1", "echo", "3"]).succeeded();
    assert_eq!(serde_json::from_str::<Value>(&said).ok(), Some(json!(["t1", "t2", "t3"])), "{said}");
    for id in ["t1", "t2", "t3"] {
        let task = caller.task_until(id, "succeeded");
        assert_eq!(task["worker_id"], "ts-1", "{task}");
        assert_eq!(caller.output(id), json!({"given": {"of": id}}));
    }
    assert!(server.stop().success());
    record::check(data.path());
}
