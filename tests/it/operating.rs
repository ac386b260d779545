//! Operating: a node that gets another configuration while it runs, the processes of its upstreams, and what they see of it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, exits, needs, run, temp, text, told},
    record::{self, until},
    speech::{Connection, ask, ask_at, call, result},
    upstream::{Upstream, configure, serve},
};

/// What a stop may take: the node says 10 seconds.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// The names of the tools on offer.
fn tools(server: &Server) -> BTreeSet<String> {
    let answer = ask(server, "tools/list", json!({}));
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
    tools.iter().filter_map(|tool| tool["name"].as_str()).map(str::to_owned).collect()
}

fn joined<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

fn offers(server: &Server, tool: &str, offered: bool) {
    let what = format!("{tool} on offer: {offered}");
    until(&what, || (tools(server).contains(tool) == offered).then_some(()));
}

/// Says that something is over when it is dropped, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls a tool from several threads as long as `work` runs. Returns how many calls there were; each must succeed.
fn under_load(url: &str, tool: &str, work: impl FnOnce()) -> usize {
    let (over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let answer = ask_at(url, "tools/call", call(tool, &json!({})));
                    let result = &answer["result"];
                    assert!(result["isError"] != true && result["content"].is_array(), "{answer}");
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _over = Over(&over);
        work();
    });
    calls.load(Ordering::Relaxed)
}

/// Whether a process runs. One that waits to be reaped does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !(stat.is_empty() || stat.contains(") Z"))
}

fn all_gone(upstream: &Upstream, count: usize) {
    let pids = upstream.pids();
    assert!(pids.len() >= count, "{pids:?}");
    until("the end of every process", || (!pids.iter().any(|pid| runs(*pid))).then_some(()));
}

fn says(server: &Server, words: &str) {
    until(words, || server.process.errors().contains(words).then_some(()));
}

fn send(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(sent.expect("the system has `kill`").success(), "{pid}");
}

/// The processes whose parent this is.
fn children(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("the system tells of processes").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        fields.split_ascii_whitespace().nth(1) == Some(&parent.to_string())
    };
    all.filter(is_child).collect()
}

#[test]
fn a_hangup_brings_another_configuration_and_loses_no_call() {
    let data = temp();
    let (one, two) = (Upstream::new(&["tool"]), Upstream::new(&["tool"]));
    let settings = "[server]\nrate_limit_burst = 100000\n";
    let server = serve(data.path(), &format!("{settings}{}", one.table("one", "")));
    let calls = under_load(&server.url, "one_tool", || {
        configure(data.path(), &format!("{settings}{}{}", two.table("two", ""), one.table("one", "")));
        server.process.signal("HUP");
        offers(&server, "two_tool", true);
        // Its settings changed, and its connection did not.
        let more = "timeout_ms = 59000\nenable = [\"tool\"]";
        configure(data.path(), &format!("{settings}{}", one.table("one", more)));
        server.process.signal("HUP");
        offers(&server, "two_tool", false);
    });
    assert!(calls > 0);
    assert_eq!(one.pids().len(), 1, "who stays is not started again");
    all_gone(&two, 1);

    configure(data.path(), "[server]\nrate_limit_burst = 0\n[[upstream]]\nname = \"x y\"");
    server.process.signal("HUP");
    says(&server, "everything stays as it was");
    assert!(server.process.errors().contains("server.rate_limit_burst"), "{}", server.process.errors());
    result(&server, "one_tool", json!({}));

    let next = format!("[auth]\nmode = \"static\"\n[log]\ngroup_max = 7\n{}", one.table("one", ""));
    configure(data.path(), &next);
    server.process.signal("HUP");
    says(&server, "next start");
    let said = server.process.errors();
    assert!(said.contains("settings=log"), "{said}");
    let refused = server.post(&json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}));
    assert_eq!(refused.status, 401, "the tokens count from now on");
    assert!(server.stop().success());
    let events = record::check(data.path());
    assert!(events.iter().any(|event| record::kind(event) == "config.applied"));
    all_gone(&one, 1);
}

#[test]
fn upstreams_come_and_go_by_command_and_no_call_is_lost() {
    let data = temp();
    let (one, two) = (Upstream::new(&["tool"]), Upstream::new(&["a", "b"]));
    let file = format!("# kept\n{}\n[tasks] # kept, too\nlease_ms = 30000\n", one.table("one", ""));
    let server = serve(data.path(), &file);
    let place = ["--data", text(data.path())];
    let upstream = |args: &[&str]| told(&joined(&[&["upstream"], args, &["--json"], &place[..]]));
    let state = |name: &str| {
        let all = upstream(&["list"]);
        let all = all.as_array().expect("a list").clone();
        all.into_iter().find(|one| one["name"] == name)
    };
    let written = || fs::read_to_string(data.path().join("test.toml")).expect("it is there");
    let (python, script) = (needs("venv/bin/python"), needs("upstream.py"));
    let calls = under_load(&server.url, "one_tool", || {
        let mut command = cairn(&["upstream", "add", "two", "--prefix", "", "--disable", "b", "--json"]);
        command.args(place).arg("--").arg(&python).arg(&script).arg(two.dir());
        let added: Value = serde_json::from_str(&run(command).succeeded()).expect("json");
        assert_eq!((&added["upstream"]["state"], &added["upstream"]["tools"]), (&json!("ready"), &json!(2)));
        offers(&server, "a", true);
        offers(&server, "b", false);
        assert!(written().contains("# kept\n") && written().contains("[tasks] # kept, too"), "{}", written());
        let restarted = upstream(&["restart", "one"]);
        assert_eq!(restarted["upstream"]["state"], "ready", "{restarted}");
        until("another process", || (one.pids().len() == 2).then_some(()));
        exits(0, &joined(&[&["upstream", "remove", "two"], &place[..]]));
        offers(&server, "a", false);
    });
    assert!(calls > 0);
    assert!(state("two").is_none() && state("one").expect("it is followed")["state"] == "ready");
    assert_eq!(written(), file, "what was added is gone, and the rest is as it was");
    all_gone(&two, 1);
    for (args, words) in [
        (&["remove", "three"][..], "names no upstream three"),
        (&["restart", "three"], "no upstream three"),
        (&["add", "x y", "--", "cat"], "upstream[1].name"),
        (&["add", "one", "--", "cat"], "already"),
    ] {
        let refused = exits(1, &joined(&[&["upstream"], args_before(args), &place[..], args_after(args)]));
        assert!(refused.stderr.contains(words), "{args:?}: {refused:?}");
        assert_eq!(written(), file, "{args:?}");
    }
    assert!(server.stop().success());
    // Without a node, the file alone is changed.
    let config = data.path().join("test.toml");
    let named = ["--config", text(&config)];
    exits(
        0,
        &joined(&[&["upstream", "add", "web", "--url", "http://127.0.0.1:1/mcp"], &place[..], &named[..]]),
    );
    assert!(written().contains("http://127.0.0.1:1/mcp"), "{}", written());
    let listed = exits(0, &joined(&[&["upstream", "list"], &place[..], &named[..]]));
    assert!(listed.stdout.contains("not running") && !listed.stdout.contains("/mcp"), "{listed:?}");
    exits(2, &joined(&[&["upstream", "remove", "web"], &place[..]]));
}

/// The words of a command before those after `--`.
fn args_before<'a>(args: &'a [&'a str]) -> &'a [&'a str] {
    &args[..args.iter().position(|arg| *arg == "--").unwrap_or(args.len())]
}

fn args_after<'a>(args: &'a [&'a str]) -> &'a [&'a str] {
    &args[args.iter().position(|arg| *arg == "--").unwrap_or(args.len())..]
}

#[test]
fn no_process_outlives_a_stop_or_a_crash() {
    for how in ["TERM", "KILL"] {
        let data = temp();
        let upstream = Upstream::new(&["tool"]);
        upstream.write("brood", "");
        upstream.write("stubborn", "");
        let server = serve(data.path(), &upstream.table("up", ""));
        result(&server, "up_tool", json!({}));
        let begun = Instant::now();
        match how {
            "KILL" => server.kill(),
            _ => assert!(server.stop().success()),
        }
        assert!(begun.elapsed() < STOP_MAX, "{how}: {:?}", begun.elapsed());
        all_gone(&upstream, 3);
    }
}

#[test]
fn a_wrapped_server_ends_with_its_client_however_that_ends() {
    for how in ["TERM", "INT", "HUP", "KILL", "end of input"] {
        let data = temp();
        let upstream = Upstream::new(&["tool"]);
        upstream.write("brood", "");
        upstream.write("stubborn", "");
        let (python, script) = (needs("venv/bin/python"), needs("upstream.py"));
        let mut command = cairn(&["wrap", "--data"]);
        command.arg(data.path()).args(["--", "sh", "-c", "\"$@\"; true", "sh"]);
        command
            .arg(python)
            .arg(script)
            .arg(upstream.dir())
            .env("OF_THE_CLIENT", "1")
            .env("CAIRN_TOKEN", "hush");
        let mut process = Process::start(command);
        let params = json!({"protocolVersion": "2025-06-18", "capabilities": {},
                            "clientInfo": {"name": "tests", "version": "1"}});
        process
            .tell(&json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).to_string());
        process.line(record::PATIENCE).expect("it answers");
        let environment: Value = serde_json::from_str(&upstream.read("environment")).expect("json");
        assert_eq!((&environment["OF_THE_CLIENT"], &environment["CAIRN_TOKEN"]), (&json!("1"), &Value::Null));
        match how {
            "end of input" => process.hang_up(),
            signal => process.signal(signal),
        }
        process.wait(STOP_MAX);
        all_gone(&upstream, 3);
    }
}

#[test]
fn what_a_crash_left_is_killed_by_the_next_start() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    upstream.write("brood", "");
    upstream.write("stubborn", "");
    let server = serve(data.path(), &upstream.table("up", ""));
    result(&server, "up_tool", json!({}));
    let wardens = children(server.process.id());
    assert!(!wardens.is_empty());
    // As if everything of ours were killed at once: who is stopped does not see it.
    server.process.signal("STOP");
    wardens.iter().for_each(|warden| send(*warden, "KILL"));
    server.kill();
    let left = upstream.pids();
    assert!(left.iter().any(|pid| runs(*pid)), "nobody was there to end them");
    let server = serve(data.path(), &upstream.table("up", ""));
    until("the end of what was left", || (!left.iter().any(|pid| runs(*pid))).then_some(()));
    result(&server, "up_tool", json!({}));
    says(&server, "a former run had left");
    // A warden that is killed alone costs its own upstream, and leaves nothing either.
    let now: Vec<u32> = upstream.pids().split_off(left.len());
    children(server.process.id()).iter().for_each(|warden| send(*warden, "KILL"));
    until("the end of what it watched over", || (!now.iter().any(|pid| runs(*pid))).then_some(()));
    assert!(server.stop().success());
}

#[test]
fn a_call_just_after_a_crash_of_its_server_waits_for_the_next() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    for _ in 0..3 {
        let pid = *upstream.pids().last().expect("it runs");
        send(pid, "KILL");
        // What was in its input when it died may have been begun; what comes after it has died was not.
        until("its end", || (!runs(pid)).then_some(()));
        let result = result(&server, "up_tool", json!({}));
        assert_eq!(result["isError"], Value::Null, "{result}");
    }
    assert!(server.stop().success());
    let kinds: BTreeSet<String> = record::kinds(data.path(), "up_tool").into_iter().collect();
    assert_eq!(kinds, BTreeSet::from(["call.succeeded".to_owned()]));
}

#[test]
fn a_server_sees_of_the_environment_what_is_named() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let more = "env = { SET = \"${SECRET_OF_OURS}!\" }\ninherit_env = [\"NAMED\", \"NOT_THERE\"]";
    let config = configure(data.path(), &upstream.table("up", more));
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--config", &config, "--data"]);
    command.arg(data.path());
    for (name, value) in
        [("SECRET_OF_OURS", "hush"), ("NAMED", "yes"), ("CAIRN_TOKEN", "hush"), ("TERM", "dumb")]
    {
        command.env(name, value);
    }
    let server = Server::start_as(command);
    result(&server, "up_tool", json!({}));
    let seen: Value = serde_json::from_str(&upstream.read("environment")).expect("json");
    let names: BTreeSet<&str> = seen.as_object().expect("an object").keys().map(String::as_str).collect();
    let usual = [
        "HOME",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TERM",
        "USER",
        "SET",
        "NAMED",
        "CAIRN_CHILD",
        "LC_CTYPE",
        "PWD",
    ];
    assert!(names.is_subset(&BTreeSet::from(usual)), "{names:?}");
    assert_eq!(
        (&seen["SET"], &seen["NAMED"], &seen["TERM"]),
        (&json!("hush!"), &json!("yes"), &json!("dumb"))
    );
    for (folder, mode) in [("keys", 0o700), ("keys/log.key", 0o600), ("keys/salt.key", 0o600)] {
        let rights = fs::metadata(data.path().join(folder)).expect("it is there").permissions().mode();
        assert_eq!(rights & 0o777, mode, "{folder}");
    }
    assert!(server.stop().success());
    // Rights that were opened by a copy are closed at a start.
    for (folder, mode) in [("keys", 0o755), ("keys/log.key", 0o644)] {
        fs::set_permissions(data.path().join(folder), fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    assert!(Server::start(data.path(), &[]).stop().success());
    let rights = fs::metadata(data.path().join("keys/log.key")).expect("it is there").permissions().mode();
    assert_eq!(rights & 0o777, 0o600);
}

#[test]
fn a_server_runs_as_the_user_that_is_named() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let root = is_root();
    fs::set_permissions(upstream.dir(), fs::Permissions::from_mode(0o777)).expect("it is ours");
    let script =
        "import os;open('who','w').write('%d %d %s' % (os.getuid(), os.getgid(), os.environ.get('USER')))";
    let config = format!(
        "[[upstream]]\nname = \"up\"\ncommand = \"python3\"\nargs = [\"-c\", {script:?}]\ncwd = {:?}\nuser = \"nobody\"\n",
        upstream.dir()
    );
    let server = serve(data.path(), &config);
    match root {
        true => {
            let who =
                until("the program", || Some(upstream.read("who")).filter(|who| who.ends_with("nobody")));
            assert!(!who.starts_with("0 ") && who.contains(" "), "{who}");
        }
        false => {
            let place = ["--data", text(data.path()), "--json"];
            let listed = told(&joined(&[&["upstream", "list"], &place[..]]));
            let reason = listed[0]["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("only a node that runs as root"), "{listed}");
        }
    }
    assert!(server.stop().success());
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("the system has `id`");
    id.stdout.trim_ascii() == b"0"
}

#[test]
fn a_server_of_the_same_user_reads_neither_memory_nor_environment() {
    /// Reads what the kernel tells of the node: the parent of the parent.
    const SCRIPT: &str = "import os
def parent(pid): return open('/proc/%s/stat' % pid).read().rsplit(')', 1)[1].split()[1]
node = parent(os.getppid())
said = [open('/proc/%s/comm' % node).read().strip()]
for name in ('environ', 'mem', 'maps'):
    try: said.append(name + ' ' + str(len(open('/proc/%s/%s' % (node, name), 'rb').read(1))))
    except OSError as error: said.append(name + ' ' + str(error.errno))
open('said.new', 'w').write('\\n'.join(said)); os.rename('said.new', 'said')";
    let (data, upstream) = (temp(), Upstream::new(&[]));
    let config = format!(
        "[[upstream]]\nname = \"up\"\ncommand = \"python3\"\nargs = [\"-c\", {SCRIPT:?}]\ncwd = {:?}\n",
        upstream.dir()
    );
    let config = configure(data.path(), &config);
    let args = ["serve", "--listen", "127.0.0.1:0", "--config", &config, "--data", text(data.path())];
    let command = match is_root() {
        // Root reads everything: somebody else must try.
        true => {
            for path in [data.path(), upstream.dir()] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_cairn")]);
            command.args(args);
            command
        }
        false => cairn(&args),
    };
    let server = Server::start_as(command);
    let said = until("the program", || Some(upstream.read("said")).filter(|said| !said.is_empty()));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, ["cairn", "environ 13", "mem 13", "maps 13"], "13 is: permission denied");
    assert!(server.stop().success());
}

#[test]
fn what_a_server_says_on_standard_error_is_bounded_and_harmless() {
    let data = temp();
    let upstream = Upstream::new(&["flood"]);
    upstream.write("flood", "60000");
    let server = serve(data.path(), &upstream.table("up", ""));
    // Where the machine is busy, a first call may come before the server is ready.
    until("the flood", || (result(&server, "up_flood", json!({}))["isError"] != true).then_some(()));
    let pid = *upstream.pids().last().expect("it runs");
    send(pid, "KILL");
    says(&server, "left out of the log");
    let said = server.process.errors();
    assert!(said.len() < 512 * 1024, "60 MB came to {}", said.len());
    let acts = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
    assert!(!said.contains(acts), "no character acts on the terminal");
    assert!(said.contains(r"\u{1b}[31m\u{202e} line 0"), "{said}");
    assert!(server.stop().success());
}

#[test]
fn an_open_stream_of_events_delays_no_stop() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut stream = Connection::open(&server.url).expect("the server listens");
    stream.stream("/v1/events/stream", &[]);
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    session.listen();
    let begun = Instant::now();
    assert!(server.stop().success());
    assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
}
