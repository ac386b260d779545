//! Commands as people use them: short names, moments, columns, pipes that close, variables, directories that can only be
//! read, and what `status`, `doctor` and `config` say.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{Ran, Server, cairn, exits, run, temp, text, told};

/// A user who owns nothing here.
const NOBODY: u32 = 65_534;

/// Makes a log of one call; returns the CID of its last event.
fn logged(data: &str) -> String {
    exits(0, &["call", "tools_list_categories", "--data", data]).stderr.trim().to_owned()
}

#[test]
fn a_part_of_a_cid_or_a_seq_is_as_good_as_all_of_it() {
    let temp = temp();
    let data = text(temp.path());
    let event = logged(data);
    let whole = told(&["log", "show", &event, "--json", "--data", data]);
    let seq = whole["seq"].to_string();
    let payload = whole["pay"][0]["cid"]["/"].as_str().expect("an output").to_owned();
    let server = Server::start(temp.path(), &[]);
    let end = &event[event.len() - 12..];
    let shown = format!("\u{2026}{end}");
    for place in [["--data", data], ["--url", &server.url]] {
        for name in [&event[event.len() - 8..], &event[..24], end, &shown, &seq] {
            let found = told(&[&["log", "show", name, "--json"][..], &place].concat());
            assert_eq!(found, whole, "{name}");
        }
        let of_payload =
            told(&[&["log", "show", &payload[payload.len() - 10..], "--json"][..], &place].concat());
        assert_eq!(of_payload["cid"], *payload);
        exits(0, &[&["trace", end][..], &place].concat());
        exits(0, &[&["trace", &seq, "--json"][..], &place].concat());
        exits(0, &[&["receipt", end, "-o", text(&temp.path().join("r"))][..], &place].concat());
        let held = exits(0, &[&["log", "query", "--payload", &payload[40..], "--json"][..], &place].concat());
        assert!(held.stdout.contains(&event), "{held:?}");
        // All CIDs begin alike.
        let several = exits(2, &[&["log", "show", "bafyreia"][..], &place].concat());
        assert!(several.stderr.contains("bafyreia"), "{several:?}");
        exits(2, &[&["log", "show", "zzzzzzzzzz"][..], &place].concat());
        exits(2, &[&["log", "show", "abc"][..], &place].concat());
        exits(1, &[&["log", "show", "99999999"][..], &place].concat());
    }
    server.kill();
    let erased = told(&["erase", &payload[payload.len() - 9..], "--basis", "test", "--json", "--data", data]);
    assert_eq!(erased["payload"], *payload);
}

#[test]
fn the_tail_has_the_tools_name_and_any_length() {
    let temp = temp();
    let data = text(temp.path());
    logged(data);
    let tail = exits(0, &["log", "tail", "-n", "1", "--data", data]).stdout;
    assert!(tail.contains("call.succeeded") && tail.contains("tools_list_categories"), "{tail}");
    let all = exits(0, &["log", "tail", "-n", "100000", "--data", data, "--json"]).stdout;
    let first: Value = serde_json::from_str(all.lines().next().expect("a line")).expect("json");
    assert_eq!(first["seq"], 0);
    let after =
        |moment: &str| exits(0, &["log", "query", "--after", moment, "--json", "--data", data]).stdout;
    assert_eq!(after("1h"), all);
    assert_eq!(after("2020-01-01"), all);
    assert_eq!(after("2100-01-01T00:00:00Z"), "");
    exits(2, &["log", "query", "--after", "yesterday", "--data", data]);
}

#[test]
fn a_followed_tail_ends_with_its_reader_though_nothing_comes() {
    let temp = temp();
    let data = text(temp.path());
    logged(data);
    let server = Server::start(temp.path(), &[]);
    for place in [["--data", data], ["--url", &server.url]] {
        let args = [&["log", "tail", "-f", "-n", "1"][..], &place].concat();
        let mut tail =
            cairn(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it was built");
        let mut out = tail.stdout.take().expect("it is piped");
        let mut first = [0; 8];
        std::io::Read::read_exact(&mut out, &mut first).expect("a header comes");
        drop(out);
        let deadline = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            match tail.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("it goes on"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        assert!(ended.success(), "{ended}");
    }
    // Standard error that nobody reads is no reason to fail either.
    let mut command = cairn(&["log", "query", "--limit", "1", "--data", data]);
    let (reader, writer) = std::io::pipe().expect("the system has pipes");
    drop(reader);
    let ended = command.stdout(Stdio::null()).stderr(writer).status().expect("it was built");
    assert!(ended.success(), "{ended}");
    server.kill();
}

#[test]
fn variables_stand_for_flags() {
    let temp = temp();
    let data = temp.path().join("data");
    let event = logged(text(&data));
    let with = |args: &[&str], env: &[(&str, &str)]| -> Ran {
        let mut command = cairn(args);
        command.current_dir(temp.path()).envs(env.iter().copied());
        run(command)
    };
    let of_files = with(&["log", "show", &event], &[("CAIRN_DATA", text(&data))]);
    assert!(of_files.status.success(), "{of_files:?}");
    let called = with(&["call", "tools_list_categories"], &[("CAIRN_DATA", text(&data))]);
    assert!(called.status.success(), "{called:?}");
    let server = Server::start(&data, &[]);
    for env in [&[("CAIRN_URL", &*server.url)][..], &[("CAIRN_DATA", text(&data))]] {
        for args in
            [&["call", "tools_list_categories"][..], &["log", "show", &event], &["tools"], &["status"]]
        {
            let ran = with(args, env);
            assert!(ran.status.success(), "{args:?} {env:?}: {ran:?}");
        }
    }
    // A flag wins over a variable, and an empty variable is none.
    let none = with(&["log", "show", &event, "--data", "none"], &[("CAIRN_URL", &server.url)]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    let flagged = with(&["log", "show", &event, "--data", text(&data)], &[("CAIRN_URL", "")]);
    assert!(flagged.status.success(), "{flagged:?}");
    server.kill();
    let config = temp.path().join("c.toml");
    fs::write(&config, "log.group_max = 0").expect("it can be written");
    let checked = with(&["config", "check"], &[("CAIRN_CONFIG", text(&config))]);
    assert!(
        checked.stderr.contains("log.group_max: is 0; it must be a whole number from 1 to 1024"),
        "{checked:?}"
    );
    let refused = with(&["serve"], &[("CAIRN_CONFIG", text(&config))]);
    assert!(refused.stderr.contains("log.group_max"), "{refused:?}");
}

#[test]
fn a_configuration_that_init_writes_is_good_and_replaces_none() {
    let temp = temp();
    let file = temp.path().join("cairn.toml");
    let data = temp.path().join("data");
    exits(0, &["config", "init", text(&file)]);
    let checked = told(&["config", "check", text(&file), "--json", "--data", text(&data)]);
    assert_eq!(checked["ok"], true, "{checked}");
    let mode = fs::metadata(&file).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    exits(1, &["config", "init", text(&file)]);
    let printed = exits(0, &["config", "init", "-"]).stdout;
    assert_eq!(printed, fs::read_to_string(&file).expect("it can be read"));
    // An address that another program has is found before a start finds it.
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = other.local_addr().expect("it has an address");
    fs::write(&file, format!("server.listen = \"{address}\"")).expect("it can be written");
    let taken = exits(1, &["config", "check", text(&file), "--data", text(&data)]);
    assert!(taken.stderr.contains("another program listens"), "{taken:?}");
}

#[test]
fn status_tells_how_a_node_is() {
    let temp = temp();
    let data = text(temp.path());
    logged(data);
    let stopped = exits(1, &["status", "--json", "--data", data]);
    let stopped: Value = serde_json::from_str(&stopped.stdout).expect("json");
    assert_eq!((&stopped["running"], &stopped["ready"]), (&false.into(), &false.into()));
    let config = temp.path().join("cairn.toml");
    fs::write(&config, "[[upstream]]\nname = \"gone\"\nurl = \"http://127.0.0.1:1/mcp\"")
        .expect("it can be written");
    let server = Server::start(temp.path(), &["--config", text(&config)]);
    let status = told(&["status", "--json", "--data", data]);
    assert_eq!((&status["running"], &status["ready"]), (&true.into(), &true.into()), "{status}");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["log"]["events"], status["log"]["head"], "{status}");
    assert_eq!(
        (&status["upstreams"][0]["name"], &status["upstreams"][0]["up"]),
        (&"gone".into(), &false.into())
    );
    let shown = exits(0, &["status", "--url", &server.url]).stdout;
    for word in ["ready", "version", "events", "gone", "away"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    server.kill();
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let temp = temp();
    let data = temp.path().join("data");
    logged(text(&data));
    let level = |report: &Value, what: &str| -> String {
        let found =
            report["findings"].as_array().expect("a list").iter().find(|finding| finding["what"] == *what);
        found.unwrap_or_else(|| panic!("{what}: {report}"))["level"].as_str().expect("a word").to_owned()
    };
    let well = told(&["doctor", "--json", "--data", text(&data)]);
    for what in ["configuration", "directory", "permissions", "keys", "head", "clock", "state"] {
        assert_eq!(level(&well, what), "ok", "{what}: {well}");
    }
    let config = temp.path().join("cairn.toml");
    let upstreams = "[[upstream]]\nname = \"a\"\ncommand = \"no-such-program\"\n[[upstream]]\nname = \"b\"\nurl = \"http://127.0.0.1:1/mcp\"";
    fs::write(&config, upstreams).expect("it can be written");
    fs::set_permissions(data.join("log.db"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let args = ["doctor", "--json", "--data", text(&data), "--config", text(&config)];
    let ill: Value = serde_json::from_str(&exits(1, &args).stdout).expect("json");
    assert_eq!(
        (level(&ill, "upstream a"), level(&ill, "upstream b")),
        ("fail".to_owned(), "fail".to_owned())
    );
    assert_eq!(level(&ill, "permissions"), "warn");
    let todo = ill["findings"].as_array().into_iter().flatten().filter(|finding| finding["level"] != "ok");
    assert!(
        todo.clone().count() >= 3 && todo.into_iter().all(|finding| finding["todo"].is_string()),
        "{ill}"
    );
    fs::remove_file(data.join("keys/log.key")).expect("it is there");
    let lost = exits(1, &["doctor", "--data", text(&data)]).stdout;
    assert!(lost.contains("fail") && lost.contains("log.key") && lost.contains("restore"), "{lost}");
}

#[test]
fn a_log_of_a_newer_program_is_called_that() {
    let temp = temp();
    let data = text(temp.path());
    logged(data);
    let script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA user_version = 99'); db.commit()";
    let mut python = Command::new("python3");
    python.args(["-c", script, text(&temp.path().join("log.db"))]);
    run(python).succeeded();
    for (code, args) in
        [(50, &["log", "verify"][..]), (1, &["log", "tail"]), (1, &["call", "tools_list_tools"])]
    {
        let ran = exits(code, &[args, &["--data", data]].concat());
        let told = format!("{}{}", ran.stdout, ran.stderr);
        assert!(told.contains("newer cairn"), "{args:?}: {ran:?}");
    }
}

/// Copies a directory for a user who may read and not write it, or as whom this runs without rights anyway.
fn only_readable(from: &Path, to: &Path) {
    fs::create_dir(to).expect("there is room");
    for entry in fs::read_dir(from).expect("it can be read").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match source.is_dir() {
            true => only_readable(&source, &target),
            false if source.is_file() => {
                fs::copy(&source, &target).expect("it can be copied");
                fs::set_permissions(&target, fs::Permissions::from_mode(0o444)).expect("it is ours");
            }
            // A socket.
            false => {}
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o555)).expect("it is ours");
}

/// Runs a command as a user without rights, where this user has them all.
fn as_reader(args: &[&str]) -> Ran {
    let mut command = cairn(args);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    run(command)
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

#[test]
fn a_directory_that_cannot_be_written_is_read_by_every_reading_command() {
    let temp = temp();
    // The readers' programs and directories must be reached by whoever they are.
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let data = temp.path().join("data");
    let event = logged(text(&data));
    let still = temp.path().join("still");
    only_readable(&data, &still);
    let stateless = temp.path().join("stateless");
    fs::remove_file(data.join("state.db")).expect("it is there");
    only_readable(&data, &stateless);
    for dir in [&still, &stateless] {
        let out = temp.path().join(format!("out-{}", dir.file_name().expect("a name").display()));
        fs::create_dir(&out).expect("there is room");
        fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).expect("it is ours");
        let (car, receipt, copy) = (out.join("log.car"), out.join("receipt"), out.join("copy"));
        for args in [
            &["log", "show", &event][..],
            &["log", "tail", "-n", "3"],
            &["log", "query", "--kind", "call.started"],
            &["log", "verify"],
            &["trace", &event[48..]],
            &["key"],
            &["peers", "list"],
            &["log", "export", "-o", text(&car)],
            &["receipt", &event, "-o", text(&receipt)],
        ] {
            let ran = as_reader(&[args, &["--data", text(dir)]].concat());
            assert!(ran.status.success(), "{args:?} of {}: {ran:?}", dir.display());
        }
        let copied = as_reader(&["backup", text(&copy), "--data", text(dir)]);
        assert!(copied.status.success(), "{copied:?}");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let verified = as_reader(&["log", "verify", "--state", "--data", text(&still)]);
    assert!(verified.status.success(), "{verified:?}");
}
