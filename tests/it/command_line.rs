//! The command line as a person and a script meet it: what is printed where, and the exit codes.
//!
//! One server, then its files once it was killed: both must be read the same.

use std::{fs, path::Path};

use crate::harness::{Server, cairn, exits, temp, text, told};

/// A CID that names nothing here.
const UNKNOWN: &str = "bafyreigd5574isnriyjfykehmwmup74chj4tvmank42ixq6yiwhkoqvs24";

#[test]
fn a_call_can_be_followed_from_its_answer_to_its_proof() {
    let temp = temp();
    let data = temp.path().join("data");
    let data = text(&data);
    let server = Server::start(Path::new(data), &[]);
    let url = server.url.clone();

    let called = exits(0, &["call", "tools_list_categories", "--url", &url]);
    assert!(called.stdout.contains("\"success\":true"), "{called:?}");
    let event = called.stderr.trim().to_owned();
    let refused = exits(1, &["call", "tools_get_schema", r#"{"tool":"none"}"#, "--url", &url]);
    assert!(refused.stdout.contains("not_found"), "{refused:?}");
    exits(1, &["call", "no_such_tool", "--url", &url]);
    exits(2, &["call", "tools_list_tools", "[1]", "--url", &url]);
    // A directory in use is shared; only a rebuild needs it alone.
    exits(0, &["call", "tools_list_categories", "--data", data]);
    let owned = exits(1, &["rebuild", "--data", data]);
    assert!(owned.stderr.contains("`cairn serve`"), "{owned:?}");

    for args in [
        ["log", "show", &event, "--json"],
        ["log", "query", "--limit=3", "--json"],
        ["trace", &event, "--format", "json"],
        ["trace", &event, "--format", "dot"],
        ["trace", &event, "--format", "text"],
    ] {
        let of_server = exits(0, &[&args[..], &["--url", &url]].concat());
        let of_files = exits(0, &[&args[..], &["--data", data]].concat());
        assert_eq!(of_server.stdout, of_files.stdout, "{args:?}");
    }
    exits(1, &["log", "show", UNKNOWN, "--url", &url]);
    exits(1, &["log", "show", UNKNOWN, "--data", data]);
    exits(2, &["log", "show", "nonsense", "--data", data]);

    let key = told(&["key", "--data", data, "--json"])["key"].clone();
    let key = key.as_str().expect("a key is text");
    server.kill();

    let receipt = temp.path().join("receipt.json");
    let receipt = text(&receipt);
    exits(0, &["receipt", &event, "--data", data, "-o", receipt]);
    let verified = told(&["receipt", "verify", receipt, "--key", key, "--json"]);
    assert_eq!(verified["cid"], *event);

    exits(0, &["log", "verify", "--data", data, "--key", key, "--state"]);
    let rebuilt = exits(0, &["rebuild", "--data", data]).stdout;
    let same = rebuilt.lines().skip(1).all(|row| row.ends_with("yes"));
    assert!(same, "{rebuilt}");
}

#[test]
fn an_exported_log_becomes_a_directory_that_answers_the_same() {
    let temp = temp();
    let [data, copy, car] = ["data", "copy", "log.car"].map(|name| temp.path().join(name));
    let [data, copy, car] = [&data, &copy, &car].map(|path| text(path));
    exits(0, &["call", "tools_list_categories", "--data", data]);
    exits(0, &["log", "export", "-o", car, "--data", data]);
    exits(0, &["log", "import", car, "--data", copy]);
    exits(1, &["log", "import", car, "--data", copy]);
    exits(0, &["log", "verify", "--data", copy]);
    let of = |data| exits(0, &["log", "query", "--json", "--data", data]).stdout;
    assert_eq!(of(data), of(copy));
}

#[test]
fn an_erased_payload_is_gone_and_the_log_still_verifies() {
    let temp = temp();
    let data = temp.path().join("data");
    let data = text(&data);
    let called = exits(0, &["call", "tools_list_categories", "--data", data]);
    let event = told(&["log", "show", called.stderr.trim(), "--json", "--data", data]);
    let payload = event["pay"][0]["cid"]["/"].as_str().expect("an output");
    exits(0, &["log", "show", payload, "--data", data]);
    exits(0, &["erase", payload, "--basis", "secret", "--data", data]);
    let shown = exits(1, &["log", "show", payload, "--data", data]);
    assert!(shown.stderr.contains("erased"), "{shown:?}");
    exits(0, &["log", "verify", "--data", data]);
}

#[test]
fn tokens_are_shown_once() {
    let temp = temp();
    let data = text(temp.path());
    let add = ["token", "add", "alice", "--scope", "mcp:call", "--expires", "30d", "--data", data];
    let token = exits(0, &add).stdout;
    assert!(token.starts_with("cairn_"), "{token}");
    let list = told(&["token", "list", "--json", "--data", data]);
    assert!(!list.to_string().contains(token.trim()));
    let id = list[0]["id"].as_str().expect("an id");
    exits(0, &["token", "revoke", id, "--data", data]);
    exits(1, &["token", "revoke", id, "--data", data]);
}

#[test]
fn what_is_not_there_is_said_in_one_line() {
    let temp = temp();
    let none = temp.path().join("none");
    let none = text(&none);
    for (code, args) in [
        (50, &["log", "verify"][..]),
        (1, &["log", "tail"]),
        (1, &["rebuild"]),
        (1, &["key"]),
        (1, &["token", "list"]),
        (1, &["trace", UNKNOWN]),
        (1, &["receipt", UNKNOWN]),
    ] {
        let ran = exits(code, &[args, &["--data", none]].concat());
        assert_eq!(ran.stderr.lines().count(), 1, "{args:?}: {ran:?}");
    }
    assert!(!Path::new(none).exists());
    let closed = exits(1, &["call", "x", "--url", "http://127.0.0.1:1"]);
    assert!(closed.stderr.contains("cairn serve"), "{closed:?}");
}

#[test]
fn a_configuration_is_good_when_its_callers_could_be_let_in() {
    let temp = temp();
    let at = |name: &str| temp.path().join(name);
    let jwt = |file: &str| {
        let keys = at(file);
        format!("[auth]\nmode = 'jwt'\nissuer = 'i'\naudience = 'a'\njwks_file = '{}'\n", text(&keys))
    };
    fs::write(at("none.json"), r#"{"keys": []}"#).expect("the file can be written");
    let key =
        r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    fs::write(at("keys.json"), key).expect("the file can be written");
    fs::write(at("tokens.json"), "[").expect("the file can be written");
    let (config, elsewhere) = (at("cairn.toml"), at("elsewhere"));
    let tokens = "auth.mode = 'static'".to_owned();
    for (toml, data, code, said) in [
        (jwt("missing.json"), &elsewhere, 1, "missing.json"),
        (jwt("none.json"), &elsewhere, 1, "none.json"),
        (jwt("keys.json"), &elsewhere, 0, ""),
        (tokens.clone(), &temp.path().to_owned(), 1, "tokens.json"),
        (tokens, &elsewhere, 0, ""),
    ] {
        fs::write(&config, &toml).expect("the file can be written");
        let ran = exits(code, &["config", "check", text(&config), "--data", text(data)]);
        assert!(ran.stderr.contains(said) && (code == 0) == (ran.stdout == "ok\n"), "{toml}: {ran:?}");
    }
    assert!(!elsewhere.exists());
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let temp = temp();
    let data = text(temp.path());
    exits(0, &["call", "tools_list_tools", "--data", data]);
    for args in [
        &["log", "query", "--json", "--limit", "1000"][..],
        &["log", "export", "--format", "jsonl", "-o", "-"],
    ] {
        let mut command = cairn(&[args, &["--data", data]].concat());
        let (reader, writer) = std::io::pipe().expect("the system has pipes");
        drop(reader);
        let ran =
            command.stdout(writer).stderr(std::process::Stdio::piped()).output().expect("cairn was built");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
    }
}
