//! Bad input at the door, and bad days of the data directory: each is refused in words, and leaves no trace it should not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

use crate::{
    harness::{Process, Reply, Server, cairn, run, temp},
    record,
    speech::{Connection, ask, call, keyed, modern, result},
    upstream::{Upstream, serve},
};

const FIXTURES: &[&str] = &["--conformance-fixtures"];

fn post(server: &Server, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let usual = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    server.send("POST", "/mcp", &[&usual[..], headers].concat(), body)
}

/// A tool call around this text for its arguments.
fn around(arguments: &str) -> Vec<u8> {
    let message = modern(1, "tools/call", call("test_simple_text", &json!({}))).to_string();
    message.replace("\"arguments\":{}", &format!("\"arguments\":{arguments}")).into_bytes()
}

#[test]
fn bytes_that_make_no_sense_are_answered_and_not_recorded() {
    let data = temp();
    let server = Server::start(data.path(), FIXTURES);
    let recorded = record::events(data.path()).len();
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "test_simple_text"),
    ];
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for (what, body, code) in [
        ("a duplicate key", around(r#"{"a":1,"a":2}"#), -32600),
        ("a duplicate key behind an escape", around(r#"{"a":1,"\u0061":2}"#), -32600),
        ("depth", around(&deep), -32600),
        ("a lone surrogate", around(r#"{"a":"\ud800"}"#), -32700),
        ("invalid utf-8", [around(r#"{"a":""#), vec![0xff]].concat(), -32700),
        ("trailing data", [around("{}"), b"{}".to_vec()].concat(), -32700),
        ("no end", b"{\"jsonrpc\":".to_vec(), -32700),
        ("nothing", Vec::new(), -32700),
        ("a batch", b"[]".to_vec(), -32600),
        ("another version", br#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#.to_vec(), -32600),
        ("an odd id", br#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#.to_vec(), -32600),
    ] {
        let reply = post(&server, &headers, &body);
        assert_eq!(reply.status, 400, "{what}: {}", reply.text());
        assert_eq!(reply.json()["error"]["code"], code, "{what}: {}", reply.text());
    }
    for (what, arguments) in [("a list", "[]"), ("a text", "\"x\""), ("a number", "1"), ("null", "null")] {
        let answer = post(&server, &headers, &around(arguments)).json();
        assert_eq!(answer["error"]["code"], -32602, "{what}: {answer}");
    }
    let vast = vec![b' '; 5 * 1024 * 1024];
    let reply = post(&server, &headers, &vast);
    assert_eq!(reply.status, 413, "{}", reply.text());
    assert_eq!(post(&server, &headers, &around("{}")).status, 200, "the server is well");
    assert!(server.stop().success());
    assert_eq!(record::check(data.path()).len(), recorded + 2, "one call was good");
}

#[test]
fn strange_hosts_and_origins_are_turned_away_unread() {
    let data = temp();
    let server = Server::start(data.path(), FIXTURES);
    for (name, value, status) in [
        ("origin", "null", 403),
        ("origin", "https://evil.example", 403),
        ("origin", "http://localhost.evil.example", 403),
        ("host", "evil.example", 403),
        ("host", "evil.example:80", 403),
        ("host", "localhost", 400),
        ("origin", server.url.as_str(), 400),
    ] {
        let reply = post(&server, &[(name, value)], b"{");
        assert_eq!(reply.status, status, "{name}: {value}: {}", reply.text());
    }
    let two = server.exchange(b"POST /mcp HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert!(two.status == 400 || two.status == 403, "{two:?}");
}

#[test]
fn wrong_calls_are_told_what_is_wrong() {
    let data = temp();
    let upstream = Upstream::new(&[
        r#"{"name":"strict","inputSchema":{"type":"object","additionalProperties":false,"properties":{"deep":{"type":"object","properties":{"count":{"type":"integer"}}},"colour":{"type":"string"}}}}"#,
    ]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let unknown = ask(&server, "tools/call", call("up_strickt", &json!({})));
    assert_eq!(unknown["error"]["code"], -32602);
    assert!(unknown.to_string().contains("did you mean `up_strict`"), "{unknown}");

    let refusal = |arguments: Value| {
        let refused = result(&server, "up_strict", arguments);
        assert_eq!(refused["isError"], true, "{refused}");
        let error = &refused["_meta"]["io.cairn/error"];
        assert_eq!(error["code"], "invalid_argument", "{error}");
        error.to_string()
    };
    let violated = refusal(json!({"deep": {"count": "seven"}}));
    assert!(violated.contains("/deep/count"), "the place is named: {violated}");
    let misspelt = refusal(json!({"color": "red"}));
    assert!(misspelt.contains("`colour`"), "the nearest field is named: {misspelt}");
    assert!(upstream.calls().is_empty(), "nothing ran");

    let bad = |meta: Value| {
        let mut params = call("up_strict", &json!({}));
        params["_meta"] = meta;
        ask(&server, "tools/call", params)["error"]["code"].clone()
    };
    assert_eq!(bad(json!({"io.cairn/contract": "bafynot"})), -32602);
    assert_eq!(bad(json!({"io.cairn/idempotency-key": ""})), -32602);
    assert_eq!(bad(json!({"io.cairn/idempotency-key": "k".repeat(129)})), -32602);
    assert!(server.stop().success());
    let kinds: Vec<_> = record::endings(&record::check(data.path()), "up_strict")
        .iter()
        .map(|event| record::kind(event).to_owned())
        .collect();
    assert_eq!(kinds, ["call.refused", "call.refused"], "an auditor sees what was refused");
}

#[test]
fn a_key_with_other_content_is_refused() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let first = ask(&server, "tools/call", keyed("up_tool", &json!({"n": 1}), "k"));
    let again = ask(&server, "tools/call", keyed("up_tool", &json!({"n": 1}), "k"));
    assert_eq!(first["result"]["content"], again["result"]["content"]);
    assert_eq!(again["result"]["_meta"]["io.cairn/replayed"], true);
    let other = ask(&server, "tools/call", keyed("up_tool", &json!({"n": 2}), "k"));
    assert_eq!(other["result"]["_meta"]["io.cairn/error"]["code"], "already_exists", "{other}");
    assert_eq!(upstream.calls().len(), 1);
}

#[test]
fn a_secret_is_in_no_file_and_in_no_error() {
    const SECRETS: [&str; 3] = ["hunter2-password", "tok-4815162342", "-deep-secret-"];
    let data = temp();
    let upstream = Upstream::new(&[
        r#"{"name":"login","inputSchema":{"type":"object","properties":{"user":{"type":"string"},"password":{"type":"string","x-secret":true},"token":{"type":"string","writeOnly":true,"maxLength":20},"list":{"type":"array","items":{"type":"object","properties":{"key":{"type":"string","x-secret":true}}}}}}}"#,
    ]);
    upstream.write("login.result", r#"{"content":[{"type":"text","text":"welcome, hunter2-password"}]}"#);
    let mut server = serve(data.path(), &upstream.table("up", ""));
    let [password, token, deep] = SECRETS;
    let arguments = json!({"user": "ada", "password": password, "token": token, "list": [{"key": deep}]});
    let told = result(&server, "up_login", arguments.clone());
    assert!(told.to_string().contains("welcome"), "{told}");
    for secret in SECRETS {
        assert!(upstream.calls()[0].contains(secret), "the tool still receives {secret}");
    }
    let dispatched = result(&server, "tools_dispatch", json!({"tool": "up_login", "params": arguments}));
    assert!(dispatched.to_string().contains("welcome"), "{dispatched}");
    let step = json!({"step_id": "in", "action": "up_login", "inputs": arguments});
    let plan = json!({"workflow_id": "w", "name": "w", "steps": [step]});
    let task = json!({"task_id": "t", "task_type": "tool:up_login", "payload": arguments});
    for (tool, given) in [("workflow_submit", plan.clone()), ("task_submit", task)] {
        let inner = json!({"tool": tool, "params": given});
        for refused in [result(&server, tool, given), result(&server, "tools_dispatch", inner)] {
            assert_eq!(refused["isError"], true, "durable work cannot keep a secret: {refused}");
        }
    }
    let from = json!({"step_id": "from", "action": "worker:any"});
    let later = json!({"step_id": "in", "action": "up_login", "inputs": {"token": {"$from": "from"}}});
    let plan = json!({"workflow_id": "w", "name": "w", "steps": [from, later]});
    let refused = result(&server, "workflow_submit", plan);
    assert_eq!(refused["isError"], true, "nor what another step brings: {refused}");
    let never = json!({"step_id": "never", "action": "worker:nobody"});
    let open =
        json!({"step_id": "in", "action": "up_login", "inputs": {"user": "ada"}, "depends_on": ["never"]});
    let plan = json!({"workflow_id": "open", "name": "open", "steps": [never, open]});
    assert_eq!(result(&server, "workflow_submit", plan)["structuredContent"]["success"], true);
    let fork = json!({"workflow_id": "open", "new_workflow_id": "new", "overrides": {"in": arguments}});
    let inner = json!({"tool": "workflow_fork", "params": fork});
    for refused in [result(&server, "workflow_fork", fork), result(&server, "tools_dispatch", inner)] {
        assert!(refused.to_string().contains("secret"), "{refused}");
        assert_eq!(refused["structuredContent"]["error"]["code"], "invalid_argument", "{refused}");
    }
    let again = ask(&server, "tools/call", keyed("up_login", &arguments, "secret-key-of-caller"));
    assert!(again["result"].is_object(), "{again}");
    let long = format!("{token}{token}{token}");
    let refused = result(&server, "up_login", json!({"token": long, "password": 7}));
    assert!(!refused.to_string().contains(token), "a refusal repeats no secret: {refused}");
    let never = SECRETS.into_iter().chain(["secret-key-of-caller"]);
    for secret in never.clone() {
        no_file_holds(data.path(), secret);
    }
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    for secret in never {
        no_file_holds(data.path(), secret);
    }
    let said = server.process.last_errors();
    assert!(!SECRETS.iter().any(|secret| said.contains(secret)), "{said}");
}

#[test]
fn work_that_is_kept_whole_cannot_do_tools_of_which_less_may_be_kept() {
    let data = temp();
    let upstream = Upstream::new(&["digested", "redacted", "plain"]);
    let captures = "[capture.tools]\nup_digested = \"digest\"\nup_redacted = \"redacted\"\n";
    let mut server = serve(data.path(), &format!("{captures}{}", upstream.table("up", "")));
    let arguments = json!({"said": "between-us-only"});
    let refused = |tool: &str, given: Value, setting: &str| {
        let answer = result(&server, tool, given);
        let error = &answer["structuredContent"]["error"];
        assert_eq!(error["code"], "failed_precondition", "{answer}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains(setting)), "{answer}");
    };
    for tool in ["up_digested", "up_redacted"] {
        let setting = format!("capture.tools.{tool}");
        let task = json!({"task_id": "t", "task_type": format!("tool:{tool}"), "payload": arguments});
        let every = json!({"schedule_id": "s", "every_ms": 60_000,
            "task": {"task_type": format!("tool:{tool}"), "payload": arguments}});
        let step = json!({"step_id": "one", "action": tool, "inputs": arguments});
        let child = json!({"name": "child", "steps": [step]});
        let parent = json!({"step_id": "run", "action": "workflow:run", "inputs": child});
        let undo = json!({"step_id": "one", "action": "up_plain",
            "compensate": {"action": tool, "inputs": arguments}});
        refused("task_submit", task, &setting);
        refused("schedule_create", every, &setting);
        for step in [step, parent, undo] {
            let plan = json!({"workflow_id": "w", "name": "w", "steps": [step]});
            refused("workflow_submit", plan, &setting);
        }
    }
    assert!(upstream.calls().is_empty());
    let plain = json!({"task_id": "p", "task_type": "tool:up_plain", "payload": {}});
    assert_eq!(result(&server, "task_submit", plain)["structuredContent"]["success"], true);
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    no_file_holds(data.path(), "between-us-only");
}

/// Reads every file under `dir`, whatever it is.
pub fn no_file_holds(dir: &Path, secret: &str) {
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("the directory is there").path();
        if path.is_dir() {
            no_file_holds(&path, secret);
            continue;
        }
        // A file that is gone by now holds nothing.
        let bytes = fs::read(&path).unwrap_or_default();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{} holds {secret}", path.display());
    }
}

#[test]
fn a_second_server_on_the_directory_names_the_first() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut second = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    second.arg(data.path());
    let ran = run(second);
    assert!(!ran.status.success());
    assert!(ran.stderr.contains(&server.url), "the first is named: {}", ran.stderr);
    assert!(ran.stderr.contains(&server.process.id().to_string()), "{}", ran.stderr);
    result(&server, "tools_list_categories", json!({}));
}

/// Starts a server that must refuse to; gives what it says.
fn refused(data: &Path) -> String {
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data).args(FIXTURES);
    let ran = run(command);
    assert!(!ran.status.success(), "it started: {}", ran.stdout);
    ran.stderr
}

/// Some calls, then a stop: the log is at rest in its file.
fn at_rest(data: &Path) {
    let server = Server::start(data, FIXTURES);
    for _ in 0..5 {
        result(&server, "test_simple_text", json!({}));
    }
    assert!(server.stop().success());
}

#[test]
fn an_older_copy_of_the_log_is_not_opened() {
    let data = temp();
    at_rest(data.path());
    let log = data.path().join("log.db");
    let copy = data.path().join("copy.db");
    fs::copy(&log, &copy).expect("the log is at rest");
    at_rest(data.path());
    for file in ["log.db-wal", "log.db-shm"] {
        let _ = fs::remove_file(data.path().join(file));
    }
    fs::copy(&copy, &log).expect("the log is at rest");
    let said = refused(data.path());
    assert!(said.contains("older copy"), "{said}");
    record::forget_state(data.path());
    let said = refused(data.path());
    assert!(said.contains("older copy"), "{said}");
}

/// Runs SQL on the log, as one who can write its file can.
fn tamper(data: &Path, sql: &str) {
    let log = rusqlite::Connection::open(data.join("log.db")).expect("the log is at rest");
    let triggers: Vec<String> = log
        .prepare("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        .and_then(|mut names| names.query_map([], |row| row.get(0))?.collect())
        .expect("the schema can be read");
    assert!(log.execute_batch(sql).is_err(), "the triggers let it pass: {sql}");
    for trigger in triggers {
        log.execute_batch(&format!("DROP TRIGGER {trigger}")).expect("the trigger is there");
    }
    log.execute_batch(sql).expect("nothing refuses any more");
}

#[test]
fn a_log_without_its_last_event_is_not_opened() {
    let data = temp();
    at_rest(data.path());
    tamper(data.path(), "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)");
    assert!(refused(data.path()).contains("events were lost"));
}

#[test]
fn a_log_with_another_event_in_it_is_not_opened() {
    for sql in
        ["DELETE FROM event WHERE seq = 3", "UPDATE event SET bytes = zeroblob(length(bytes)) WHERE seq = 3"]
    {
        let data = temp();
        at_rest(data.path());
        tamper(data.path(), sql);
        // With its state in place a start trusts what it has folded; without, it reads every event again.
        record::forget_state(data.path());
        let said = refused(data.path());
        assert!(said.starts_with("cairn: "), "{said}");
    }
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    let flip =
        |column: &str| format!("cast(substr({column}, 1, 40) || x'ff' || substr({column}, 42) AS BLOB)");
    for (what, sql) in [
        ("an event", format!("UPDATE event SET bytes = {} WHERE seq = 4", flip("bytes"))),
        ("a block", format!("UPDATE block SET bytes = {} WHERE id = 4", flip("bytes"))),
        ("an event's digest", "UPDATE event SET digest = zeroblob(32) WHERE seq = 4".to_owned()),
        ("a middle event", "DELETE FROM event WHERE seq = 4".to_owned()),
        ("the last event", "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)".to_owned()),
        ("a block that is gone", "DELETE FROM block WHERE id = 4".to_owned()),
    ] {
        let data = temp();
        at_rest(data.path());
        let (code, report) = record::verify(data.path());
        assert_eq!(code, Some(0), "before {what}: {report}");
        tamper(data.path(), &sql);
        let (code, report) = record::verify(data.path());
        assert!(matches!(code, Some(20 | 30 | 40 | 50)), "{what}: {code:?} {report}");
    }
    let data = temp();
    at_rest(data.path());
    let state = rusqlite::Connection::open(data.path().join("state.db")).expect("the state is at rest");
    state.execute_batch("UPDATE tally SET n = n + 1").expect("nothing guards the state");
    drop(state);
    let (code, report) = record::verify(data.path());
    assert_ne!(code, Some(0), "a state row: {report}");
    let mut rebuild = cairn(&["rebuild", "--data"]);
    rebuild.arg(data.path());
    run(rebuild).succeeded();
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "after a rebuild: {report}");
}

/// A file system of its own, small enough to fill; none where this user may not mount.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, bytes: usize) -> Option<Self> {
        fs::create_dir(&at).expect("the directory is new");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at);
        run(mount).status.success().then_some(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Calls until the server stops answering; gives the events it answered with.
fn fill(server: &Server) -> Vec<String> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let callers = (0..4).map(|caller| {
        let (events, url) = (Arc::clone(&events), server.url.clone());
        thread::spawn(move || {
            let Some(mut connection) = Connection::open(&url) else {
                return;
            };
            for n in 0..100_000 {
                let arguments = json!({"n": n, "caller": caller, "text": "x".repeat(20_000)});
                let Some(reply) =
                    connection.ask(&modern(n, "tools/call", call("test_simple_text", &arguments)))
                else {
                    return;
                };
                let answer = reply.json();
                let Some(event) = answer["result"]["_meta"]["io.cairn/event"].as_str() else {
                    return;
                };
                events.lock().expect("no caller panics").push(event.to_owned());
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.join().expect("a caller only calls");
    }
    Arc::into_inner(events).and_then(|events| events.into_inner().ok()).expect("all callers have ended")
}

#[test]
fn a_full_disk_stops_the_server_and_loses_no_answer() {
    let place = temp();
    let data = place.path().join("data");
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    // Where nothing can be mounted, a bound on the size of its files fills the disk for this process alone.
    let small = Small::mount(data.clone(), 24 * 1024 * 1024);
    if small.is_none() {
        let shell = format!(
            "ulimit -f 8192; trap '' XFSZ; exec {:?} serve --listen 127.0.0.1:0 \"$@\"",
            env!("CARGO_BIN_EXE_cairn")
        );
        command = Command::new("bash");
        command.args(["-c", &shell, "bash", "--data"]);
    }
    command.arg(&data).args(FIXTURES);
    let mut server = Server::start_as(command);
    let answered = fill(&server);
    assert!(answered.len() > 10, "only {} answers fitted", answered.len());
    let status = server.process.wait(record::PATIENCE);
    assert!(!status.success(), "a server that cannot write ends with an error");
    let said = server.process.last_errors();
    assert!(said.contains("disk is full") || said.contains("could not be written"), "{said}");

    let kept = place.path().join("kept");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(&data).arg(&kept);
    run(copy).succeeded();
    let server = Server::start(&kept, FIXTURES);
    result(&server, "test_simple_text", json!({}));
    assert!(server.stop().success());
    let stored: Vec<String> = record::check(&kept).iter().map(|event| event.cid().to_string()).collect();
    for event in answered {
        assert!(stored.contains(&event), "{event} was answered and is gone");
    }
}

/// A reader of standard output that goes away does not take the server along.
#[test]
fn a_reader_of_the_ready_line_may_leave() {
    let data = temp();
    let mut command = Command::new("bash");
    let shell = format!(
        "{:?} serve --listen 127.0.0.1:0 --data {:?} | head -n 1; sleep 1000",
        env!("CARGO_BIN_EXE_cairn"),
        data.path()
    );
    command.args(["-c", &shell]);
    let process = Process::start(command);
    let ready = process.line(record::PATIENCE).expect("the ready line");
    let url = ready.split("http=").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    let mut connection = Connection::open(url).expect("the server listens");
    let answer = connection.request(1, "tools/list", json!({}));
    assert!(answer["result"].is_object(), "{answer}");
}

#[test]
fn a_dispatch_under_a_pin_that_cannot_be_read_runs_nothing() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    // 58 characters of base32, as the schema wants, and no CID of ours.
    let pin = format!("b{}", "a".repeat(58));
    let refused =
        result(&server, "tools_dispatch", json!({"tool": "tools_list_categories", "contract": pin}));
    assert_eq!(refused["structuredContent"]["error"]["code"], "invalid_argument", "{refused}");
}
