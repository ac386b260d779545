//! Upstreams from outside: real servers, and small ones for whom every day is a bad one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json, value::RawValue};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::block::splice;
use crate::router::audience::Audience;
use crate::runtime::upstream::{
    Failure, Offered, Options, Protocol, Reply, Settings, Sharing, State, Transport, Upstream, sse, wire,
};

mod hostile;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_edit_leaves_every_other_byte() {
    let check = |object: &str, edited: &str| {
        let one = raw("1.0");
        let set = [("a", &*one), ("b", &*one)];
        let got = splice::edit(&raw(object), &set, |key| key.starts_with("x."));
        assert_eq!(got.expect("an object").get(), edited, "edit of {object}");
    };
    check("{}", r#"{"a":1.0,"b":1.0}"#);
    check("{ }", r#"{"a":1.0,"b":1.0 }"#);
    check(r#"{"x.a":1}"#, r#"{"a":1.0,"b":1.0}"#);
    check(r#"{ "x.a":1 , "c" : 2e0 }"#, r#"{  "c" : 2e0,"a":1.0,"b":1.0 }"#);
    check(r#"{"c":[{}, 1],"x.b":{"a":1}, "\u0061" : 5}"#, r#"{"c":[{}, 1], "\u0061" : 1.0,"b":1.0}"#);
    check(r#"{"a":1,"a":2,"\ud800":3,"b":4}"#, r#"{"a":1.0,"a":1.0,"\ud800":3,"b":1.0}"#);
    for other in ["[]", "1", "null", "\"{}\""] {
        assert!(splice::edit(&raw(other), &[], |_| false).is_err(), "{other}");
    }
}

#[test]
fn events_come_out_the_same_however_the_bytes_are_cut() {
    let stream = "\u{feff}: hello\r\nid: 7\r\ndata: one\r\ndata:two\r\n\r\nevent: x\n\nretry: 20\rdata\r\rdata: end\n\n";
    let expected = ["one\ntwo", "", "end"];
    for cut in 0..stream.len() {
        let mut parser = sse::Parser::new(64);
        let (head, tail) = stream.as_bytes().split_at(cut);
        let mut events = parser.push(head).expect("within bounds");
        events.extend(parser.push(tail).expect("within bounds"));
        let data: Vec<_> = events.iter().map(|event| str::from_utf8(&event.data)).collect();
        assert_eq!(data, expected.map(Ok), "cut at {cut}");
        assert_eq!((parser.last_id(), parser.retry_ms()), (Some("7"), Some(20)));
    }
    assert!(sse::Parser::new(64).push(&[b'a'; 65]).is_err());
    assert!(sse::Parser::new(64).push(format!("data:{}\ndata:{0}\n", "a".repeat(40)).as_bytes()).is_err());
}

#[test]
fn no_text_is_too_odd_to_be_read() {
    let deep = format!(r#"{{"id":1,"result":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(wire::parse(&deep).is_ok());
    for odd in ["", "{", "[", "[1]", "null", "{}", r#"{"id":{},"method":5}"#, r#"{"id":1}"#] {
        assert!(wire::parse(odd).is_err(), "{odd}");
    }
}

#[test]
fn an_answer_that_is_none_is_known_by_its_id() {
    use wire::AnswerId::{Absent, Altered, Foreign, Ours, Unreadable};
    let check = |text: &str, id: wire::AnswerId, good: bool| {
        let read = wire::parse(text).ok().and_then(|mut messages| messages.pop());
        let read = match read {
            Some(wire::Incoming::Answer { id, .. }) => Some((id, true)),
            Some(wire::Incoming::Malformed { id, .. }) => Some((id, false)),
            _ => None,
        };
        assert_eq!(read, Some((id, good)), "{text}");
    };
    check(r#"{"id":7,"error":{"code":-32603}}"#, Ours(7), true);
    check(r#"{"id":7,"error":{"code":-1,"message":"no"},"result":null}"#, Ours(7), true);
    check(r#"{"id":7,"result":{},"error":null}"#, Ours(7), true);
    check(r#"{"id":"7","result":{}}"#, Altered(7), true);
    check(r#"{"id":7.0,"result":{}}"#, Altered(7), true);
    check(r#"{"id":"server-error","error":{}}"#, Foreign, true);
    check(r#"{"id":null,"error":{}}"#, Absent, true);
    check(r#"{"result":{}}"#, Absent, true);
    for malformed in [
        r#"{"id":7,"error":{"code":"-32603","message":"no"}}"#,
        r#"{"id":7,"error":{"code":1.5,"message":"no"}}"#,
        r#"{"id":7,"error":{"code":1,"message":{}}}"#,
        r#"{"id":7,"error":"no"}"#,
        r#"{"id":7,"error":7}"#,
        r#"{"id":7,"result":null}"#,
        r#"{"id":7,"error":null}"#,
        r#"{"id":7,"result":{},"error":{"code":1,"message":"no"}}"#,
        r#"{"id":7,"result":{},"result":{}}"#,
        r#"{"jsonrpc":"2.0","id":7}"#,
        r#"{"jsonrpc":"2.0","id":7,"answer":{}}"#,
        r#"[{"id":7,"error":7},1]"#,
    ] {
        check(malformed, Ours(7), false);
    }
    check(r#"{"jsonrpc":"2.0","id":"7","result":null}"#, Altered(7), false);
    check(r#"{"id":{},"result":null}"#, Unreadable, false);
}

#[test]
fn mutated_messages_are_read_or_refused_and_edits_stay_json() {
    const SEED: u64 = 0x0cab_1e5e_ed00_0001;
    const BYTES: &[u8] = b"{}[]\",:\\u0d8e1.- \n\xff_metan";
    let model = br#"{"id":1,"params":{"_meta":{"progressToken":"\u00e9"},"x.y" : [1.0,{}]},"method":"m"}"#;
    let mut state = SEED;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    for round in 0..50_000 {
        let mut bytes = model.to_vec();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            bytes[at] = BYTES[random(BYTES.len())];
        }
        let _ = sse::Parser::new(32).push(&bytes);
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let _ = wire::parse(&text);
        let Ok(whole) = RawValue::from_string(text) else {
            continue;
        };
        let fitted = wire::outgoing(&whole, 7, Protocol::Modern, false, &Audience::default());
        if let Ok((fitted, _)) = fitted {
            let again = serde_json::from_str::<&RawValue>(fitted.get());
            assert!(again.is_ok(), "seed {SEED:#x}, round {round}: {fitted}");
        }
    }
}

#[test]
fn secrets_are_in_no_debug_text() {
    let settings = Settings {
        transport: Transport::Http {
            url: "http://user:hush@host/?key=hush".to_owned(),
            headers: BTreeMap::from([("authorization".to_owned(), "hush".to_owned())]),
            credentials: None,
        },
        ..odd("session")
    };
    assert!(!format!("{settings:?}").contains("hush"));
}

#[tokio::test]
async fn the_everything_server_is_offered_whole_over_stdio() {
    let upstream = Upstream::start(child(&binary("mcp-server-everything"), &["stdio"]));
    everything(&upstream).await;
    upstream.stop().await;
}

#[tokio::test]
async fn the_everything_server_is_offered_whole_over_http() {
    let port = free_port();
    let mut command = Command::new(binary("mcp-server-everything"));
    command.arg("streamableHttp").env("PORT", port.to_string());
    let mut server = command.kill_on_drop(true).stderr(Stdio::piped()).spawn().expect("node runs");
    let mut lines = BufReader::new(server.stderr.take().expect("piped")).lines();
    while !lines.next_line().await.expect("readable").expect("it says so").contains("listening") {}
    let upstream = Upstream::start(web(format!("http://127.0.0.1:{port}/mcp")));
    everything(&upstream).await;
    upstream.stop().await;
}

/// What must hold of the everything server, whatever it runs over.
async fn everything(upstream: &Upstream) {
    let offered = ready(upstream).await;
    assert_eq!(offered.protocol, Some(Protocol::Session("2025-11-25")));
    assert!(offered.capabilities.completions);
    assert!(offered.tools.len() >= 10 && offered.prompts.len() >= 3);
    assert!(!offered.resources.is_empty() && !offered.templates.is_empty());
    assert!(offered.tools.iter().all(|tool| tool.get().contains(r#""execution":{"taskSupport":"#)));

    let echo = call(upstream, "echo", json!({"message": "hello"})).await;
    assert_eq!(text(&echo), r#"{"content":[{"type":"text","text":"Echo: hello"}]}"#);

    let (to, mut notifications) = mpsc::channel(64);
    let params = raw(r#"{"name":"trigger-long-running-operation","arguments":{"duration":0.4,"steps":4},
            "_meta":{"progressToken":"mine","io.cairn/contract":"x"}}"#);
    let options = Options { notifications: Some(to), ..Options::default() };
    let reply = upstream.request("tools/call", params, options).await;
    assert!(matches!(reply, Ok(Reply::Result(_))));
    for step in 1..=4 {
        let progress = notifications.recv().await.expect("four steps");
        let params: Value = serde_json::from_str(progress.params.get()).expect("json");
        assert_eq!(params["progressToken"], "mine");
        assert_eq!(params["progress"], step);
    }

    let params = raw(r#"{"name":"trigger-long-running-operation","arguments":{"duration":60}}"#);
    let options = Options { timeout: Some(Duration::from_millis(100)), ..Options::default() };
    let late = upstream.request("tools/call", params, options).await;
    assert_eq!(late.err(), Some(Failure::TimedOut));
    let again = call(upstream, "get-sum", json!({"a": 2, "b": 3})).await;
    assert!(text(&again).contains("5"));
}

#[tokio::test]
async fn the_filesystem_server_reads_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("note.txt");
    std::fs::write(&file, "kept").expect("written");
    let folder = folder.path().to_str().expect("utf-8").to_owned();
    let upstream = Upstream::start(child(&binary("mcp-server-filesystem"), &[&folder]));
    ready(&upstream).await;
    let read = call(&upstream, "read_text_file", json!({"path": file})).await;
    assert!(text(&read).contains("kept"));
    upstream.stop().await;
}

#[tokio::test]
async fn unknown_fields_survive_byte_for_byte() {
    let upstream = Upstream::start(odd("session"));
    let offered = ready(&upstream).await;
    assert_eq!(
        offered.tools[0].get(),
        r#"{ "name":"odd",  "inputSchema":{"type":"object","x-n":1.0e2},"unknown":[1,2.50,"\u00e9"]}"#
    );
    assert_eq!(
        text(&call(&upstream, "raw", json!({})).await),
        r#"{ "content" : [ ],"x":1.0e2,"x":2,"\u0041":"\ud800" , "n":12345678901234567890123.10}"#
    );
    match call(&upstream, "no such", json!({})).await {
        Ok(Reply::Error { code: -32602, message, data: Some(data) }) => {
            assert_eq!((message.as_str(), data.get()), ("unknown tool", r#"{"a": 1}"#));
        }
        other => panic!("expected an error, got {other:?}"),
    }
}

#[tokio::test]
async fn params_are_fitted_to_the_era_and_otherwise_kept() {
    let asked = "{\"name\":\"line\",\n \"n\": 1.50, \"_meta\" : {\"progressToken\":\"t\",\"io.cairn/contract\":\"c\",\
                 \"io.modelcontextprotocol/logLevel\":\"info\", \"traceparent\":\"00-1\"}}";
    let session = sent("session", asked).await;
    assert!(
        session.contains("{\"name\":\"line\",  \"n\": 1.50, \"_meta\" : {\"progressToken\":"),
        "{session}"
    );
    assert!(session.contains("\"traceparent\":\"00-1\"}}") && !session.contains("io."), "{session}");
    let modern = sent("modern", asked).await;
    assert!(modern.contains("\"io.modelcontextprotocol/logLevel\":\"info\", \"traceparent\":\"00-1\","));
    assert!(modern.contains("\"io.modelcontextprotocol/clientCapabilities\":{}"), "{modern}");
    let bare = sent("session", r#"{"name":"line"}"#).await;
    assert!(bare.contains(r#""params":{"name":"line"}"#), "{bare}");
}

/// The line that a server of `era` got for a call with `params`.
async fn sent(era: &str, params: &str) -> String {
    let upstream = Upstream::start(odd(era));
    ready(&upstream).await;
    let reply = upstream.request("tools/call", raw(params), Options::default()).await;
    let value: Value = serde_json::from_str(&text(&reply)).expect("json");
    value["line"].as_str().expect("text").to_owned()
}

#[tokio::test]
async fn a_stateless_upstream_tells_of_changes_through_a_subscription() {
    let upstream = Upstream::start(odd("modern"));
    let offered = ready(&upstream).await;
    assert_eq!(offered.protocol, Some(Protocol::Modern));
    assert_eq!(offered.server.as_ref().map(|server| server.get()), Some(r#"{"name": "odd"}"#));
    grows(&upstream).await;
}

#[tokio::test]
async fn a_changed_list_is_fetched_again_page_by_page() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    grows(&upstream).await;
}

async fn grows(upstream: &Upstream) {
    assert!(call(upstream, "grow", json!({})).await.is_ok());
    let mut offer = upstream.offer();
    let grown = timeout(PATIENCE, offer.wait_for(|offered| offered.tools.len() == 2)).await;
    assert_eq!(grown.expect("in time").expect("alive").tools[1].get(), r#"{"name":"grown"}"#);
}

#[tokio::test]
async fn a_server_that_ends_at_the_first_question_is_asked_the_other_one() {
    let upstream = Upstream::start(odd("shy"));
    assert_eq!(ready(&upstream).await.protocol, Some(Protocol::Session("2025-06-18")));
}

#[tokio::test]
async fn a_death_ends_every_call_at_once_and_the_server_comes_back() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    let began = Instant::now();
    let (hanging, dead) = tokio::join!(call(&upstream, "hang", json!({})), call(&upstream, "die", json!({})));
    assert_eq!((hanging.err(), dead.err()), (Some(Failure::Died), Some(Failure::Died)));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(call(&upstream, "twice", json!({})).await.is_ok(), "it waits for the next process");
    ready(&upstream).await;
}

#[tokio::test]
async fn timeouts_cancellations_and_dropped_calls_are_told() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    let hang = || raw(r#"{"name":"hang"}"#);
    let brief = Duration::from_millis(50);
    let options = Options { timeout: Some(brief), ..Options::default() };
    let late = upstream.request("tools/call", hang(), options).await;
    assert_eq!(late.err(), Some(Failure::TimedOut));

    let cancel = CancellationToken::new();
    let options = Options { cancel: cancel.clone(), ..Options::default() };
    let (cancelled, ()) = tokio::join!(upstream.request("tools/call", hang(), options), async {
        call(&upstream, "cancelled", json!({})).await.expect("a reply");
        cancel.cancel();
    });
    assert_eq!(cancelled.err(), Some(Failure::Cancelled));

    let dropped = timeout(brief, upstream.request("tools/call", hang(), Options::default())).await;
    assert!(dropped.is_err());
    let told = text(&call(&upstream, "cancelled", json!({})).await);
    let told: Value = serde_json::from_str(&told).expect("json");
    assert_eq!(told["ids"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn floods_garbage_and_second_answers_harm_nobody() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    let (to, mut notifications) = mpsc::channel(8);
    let options = Options { notifications: Some(to), ..Options::default() };
    let flood = upstream.request("tools/call", raw(r#"{"name":"flood"}"#), options).await;
    assert!(flood.is_ok());
    assert!(notifications.recv().await.is_some());
    assert!(call(&upstream, "garbage", json!({"lines": 900})).await.is_ok());
    assert_eq!(text(&call(&upstream, "twice", json!({})).await), r#"{"n":1}"#);
    let asked = text(&call(&upstream, "ask", json!({})).await);
    assert!(asked.contains(r#"\"id\":\"p\",\"result\":{}"#) && asked.contains("-32601"), "{asked}");
}

#[tokio::test]
async fn endless_garbage_and_huge_lines_end_the_server() {
    let upstream = Upstream::start(odd("session"));
    for (tool, arguments, how) in
        [("garbage", json!({"lines": 100_000}), "no messages"), ("huge", json!({}), "16777216 bytes")]
    {
        ready(&upstream).await;
        match call(&upstream, tool, arguments).await {
            Err(Failure::Broken(message)) => assert!(message.contains(how), "{message}"),
            other => panic!("expected a broken protocol, got {other:?}"),
        }
        let mut offer = upstream.offer();
        let failed = offer.wait_for(|offered| offered.state != State::Ready);
        timeout(PATIENCE, failed).await.expect("in time").expect("alive");
    }
    ready(&upstream).await;
}

#[tokio::test]
async fn a_server_that_no_longer_listens_is_started_again() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    assert!(call(&upstream, "deaf", json!({})).await.is_ok());
    // What could not be given to it is given to the next.
    assert!(call(&upstream, "twice", json!({})).await.is_ok());
    ready(&upstream).await;
    assert!(call(&upstream, "twice", json!({})).await.is_ok());
}

#[tokio::test]
async fn stopping_leaves_no_process_behind() {
    let upstream = Upstream::start(odd("session"));
    ready(&upstream).await;
    let stubborn = text(&call(&upstream, "stay", json!({})).await);
    let pids: Value = serde_json::from_str(&stubborn).expect("json");
    upstream.stop().await;
    for pid in pids["pids"].as_array().expect("two") {
        // Killed processes leave in their own time.
        let gone = async {
            while runs(pid) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("no process is left");
    }
    let refused = call(&upstream, "twice", json!({})).await;
    assert_eq!(refused.err(), Some(Failure::Unavailable { message: "stopped".to_owned() }));
}

/// Whether a process runs still. One that waits to be reaped does not.
fn runs(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !(stat.is_empty() || stat.contains(") Z"))
}

#[tokio::test]
async fn what_cannot_be_reached_says_why_without_secrets() {
    let missing = child(Path::new("/no/such/program"), &["--token=hush"]);
    let closed = web(format!("http://127.0.0.1:{}/?key=hush", free_port()));
    let (upstream, _server, port) = web_server("session").await;
    upstream.stop().await;
    let plain = web(format!("https://127.0.0.1:{port}/?key=hush"));
    for (settings, why) in [(missing, "No such file"), (closed, "refused"), (plain, "cannot")] {
        let upstream = Upstream::start(settings);
        let mut offer = upstream.offer();
        let failed = offer.wait_for(|offered| matches!(offered.state, State::Failed { .. }));
        let failed = timeout(PATIENCE, failed).await.expect("in time").expect("alive").clone();
        let State::Failed { message } = &failed.state else {
            continue;
        };
        assert!(message.contains(why) && !message.contains("hush"), "{message}");
        let refused = call(&upstream, "any", json!({})).await;
        assert!(matches!(refused, Err(Failure::Unavailable { .. })));
    }
}

#[tokio::test]
async fn a_forgotten_session_is_opened_again_and_the_call_runs_once() {
    let (upstream, _server, _) = web_server("session").await;
    assert!(call(&upstream, "forget", json!({})).await.is_ok());
    assert_eq!(text(&call(&upstream, "run", json!({})).await), r#"{"runs": 1}"#);
    upstream.stop().await;
}

#[tokio::test]
async fn http_answers_become_replies_or_the_right_failure() {
    for era in ["session", "modern"] {
        let (upstream, _server, _) = web_server(era).await;
        let check = async |tool: &str, failure: Failure| {
            assert_eq!(call(&upstream, tool, json!({})).await.err(), Some(failure), "{era} {tool}");
        };
        check("other", Failure::Broken("the response answers another request".to_owned())).await;
        check("page", Failure::Broken("the response is no json-rpc message".to_owned())).await;
        let busy = "answered 503 Service Unavailable".to_owned();
        check("busy", Failure::Unavailable { message: busy }).await;
        check("broken", Failure::Broken("it answered 502 Bad Gateway".to_owned())).await;
        check("cut", Failure::Died).await;
        check("vast", Failure::TooLarge).await;
        let resumed = call(&upstream, "resume", json!({})).await;
        assert_eq!(text(&resumed), r#"{"resumed":true}"#);
        let region = json!({"in": {"region": "süd"}});
        let headers = text(&call(&upstream, "headers", region).await);
        let shown = match era {
            "modern" => r#"{"secret": "hush", "region": "=?base64?c8O8ZA==?="}"#,
            _ => r#"{"secret": "hush", "region": null}"#,
        };
        assert_eq!(headers, shown);
        if era == "modern" {
            assert!(matches!(
                call(&upstream, "größe", json!({})).await,
                Ok(Reply::Error { code: -32601, .. })
            ));
        }
        upstream.stop().await;
    }
}

/// An upstream connected to a running server of `tests/web.py`, the server, and its port.
async fn web_server(era: &str) -> (Upstream, Child, String) {
    let mut command = Command::new("python3");
    command.arg(script("web.py")).arg(era).stdout(Stdio::piped()).kill_on_drop(true);
    let mut server = command.spawn().expect("python3 runs");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let port = lines.next_line().await.expect("readable").expect("it says its port");
    let upstream = Upstream::start(web(format!("http://127.0.0.1:{port}/mcp")));
    ready(&upstream).await;
    (upstream, server, port)
}

async fn ready(upstream: &Upstream) -> Arc<Offered> {
    let mut offer = upstream.offer();
    let ready = timeout(PATIENCE, offer.wait_for(|offered| offered.state == State::Ready)).await;
    let ready = ready.unwrap_or_else(|_| panic!("not ready: {:?}", upstream.offer().borrow().state));
    Arc::clone(&*ready.expect("its owner lives"))
}

async fn call(upstream: &Upstream, tool: &str, arguments: Value) -> Result<Reply, Failure> {
    let params = raw(&json!({"name": tool, "arguments": arguments}).to_string());
    upstream.request("tools/call", params, Options::default()).await
}

fn text(reply: &Result<Reply, Failure>) -> String {
    match reply {
        Ok(Reply::Result(result)) => result.get().to_owned(),
        other => panic!("expected a result, got {other:?}"),
    }
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("json")
}

fn odd(era: &str) -> Settings {
    let script = script("odd.py");
    child(Path::new("python3"), &[script.to_str().expect("utf-8"), era])
}

fn child(command: &Path, args: &[&str]) -> Settings {
    Settings {
        capabilities: Audience::default().capabilities,
        sharing: Sharing::ByCapabilities,
        sessions_first: false,
        updates: Default::default(),
        name: "test".to_owned(),
        transport: Transport::Child {
            command: command.to_str().expect("utf-8").to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: BTreeMap::new(),
            directory: None,
            user: None,
        },
        timeout: PATIENCE,
    }
}

fn web(url: String) -> Settings {
    let headers = BTreeMap::from([("X-Secret".to_owned(), "hush".to_owned())]);
    Settings {
        name: "test".to_owned(),
        transport: Transport::Http { url, headers, credentials: None },
        timeout: PATIENCE,
        capabilities: Audience::default().capabilities,
        sharing: Sharing::ByCapabilities,
        sessions_first: false,
        updates: Default::default(),
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime/upstream/tests").join(name)
}

/// A program of the npm packages that the tests run.
fn binary(name: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let modules = std::env::var_os("CAIRN_TEST_NODE_MODULES")
        .map_or_else(|| home.join("tests/clients/node_modules"), PathBuf::from);
    let program = modules.join(".bin").join(name);
    assert!(
        program.exists(),
        "{} is missing; run: npm install --prefix tests/clients \
         @modelcontextprotocol/server-everything @modelcontextprotocol/server-filesystem",
        program.display()
    );
    program
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound").port()
}
