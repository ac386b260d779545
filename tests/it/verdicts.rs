//! What judges a log, an archive, a receipt, a backup or a run: the code it ends with, what it says, and what it leaves.

use std::{fs, path::Path};

use cairn::block::Cid;
use serde_json::{Value, json};

use crate::{
    harness::{Server, exits, temp, text, told},
    speech::result,
    work::Caller,
};

/// The payload of this role that an event holds.
fn payload(event: &Value, role: &str) -> String {
    let held = event["pay"].as_array().and_then(|held| held.iter().find(|payload| payload["role"] == role));
    held.and_then(|held| held["cid"]["/"].as_str()).unwrap_or_else(|| panic!("no {role}: {event}")).to_owned()
}

#[test]
fn the_exit_code_says_what_was_given_and_what_is_refused_leaves_nothing() {
    let temp = temp();
    let path = |name: &str| text(&temp.path().join(name)).to_owned();
    let [data, other, copy, car, part] = ["data", "other", "copy", "log.car", "part.car"].map(path);
    let event = exits(0, &["call", "tools_list_categories", "--data", &data]).stderr.trim().to_owned();
    exits(0, &["call", "tools_list_categories", "--data", &other]);
    exits(0, &["backup", &copy, "--data", &data]);
    exits(0, &["log", "export", "-o", &car, "--data", &data]);
    exits(0, &["log", "export", "--cid", &event, "-o", &part, "--data", &data]);
    let key =
        |data: &str| told(&["key", "--json", "--data", data])["key"].as_str().expect("a key").to_owned();
    let (own, foreign) = (key(&data), key(&other));
    let receipt = path("receipt.json");
    exits(0, &["receipt", &event, "-o", &receipt, "--data", &data]);

    let [none, dir, prose, empty, cut, flipped, bent] =
        ["none", "dir", "prose", "empty", "cut.car", "flipped.car", "bent.json"].map(path);
    fs::create_dir(&dir).expect("it can be made");
    let whole = fs::read(&car).expect("an archive");
    let mut changed = whole.clone();
    *changed.last_mut().expect("it is not empty") ^= 1;
    let mut proof: Value = serde_json::from_slice(&fs::read(&receipt).expect("a receipt")).expect("json");
    proof["index"] = json!(proof["index"].as_u64().map_or(0, |index| index + 1));
    let rotten = path("rotten");
    fs::create_dir(&rotten).expect("it can be made");
    for (file, bytes) in [
        (&prose, b"nothing of the kind, however long it may be ".repeat(9)),
        (&empty, Vec::new()),
        (&cut, whole[..whole.len() - 3].to_vec()),
        (&flipped, changed),
        (&bent, proof.to_string().into_bytes()),
        (&format!("{rotten}/log.db"), b"this is no database ".repeat(999)),
    ] {
        fs::write(file, bytes).expect("it can be written");
    }

    let new = path("new/below");
    let verify = ["log", "verify", "--data", &data, "--checkpoint"];
    let import = ["log", "import", "--data", &new];
    let prove = ["receipt", "verify", "--key"];
    let restore = ["restore", "--data", &new];
    let erasures = ["restore", &copy, "--data", &new, "--erasures"];
    let cases: [(i32, &[&str], &[&str]); 27] = [
        (50, &verify, &[&none]),
        (50, &verify, &[&dir]),
        (50, &verify, &[&prose]),
        (50, &verify, &[&empty]),
        (50, &["log", "verify"], &["--data", &none]),
        (40, &["log", "verify"], &["--data", &rotten]),
        (50, &import, &[&none]),
        (50, &import, &[&dir]),
        (50, &import, &[&prose]),
        (50, &import, &[&empty]),
        (20, &import, &[&cut]),
        (20, &import, &[&part]),
        (40, &import, &[&flipped]),
        (0, &prove, &[&own, &receipt]),
        (40, &prove, &[&foreign, &receipt]),
        (40, &prove, &[&own, &bent]),
        (50, &prove, &[&own, &none]),
        (50, &prove, &[&own, &prose]),
        (50, &["backup", &new], &["--data", &none]),
        (40, &["backup", &new], &["--data", &rotten]),
        (1, &["backup", &copy], &["--data", &data]),
        (50, &restore, &[&none]),
        (40, &restore, &[&rotten]),
        (50, &erasures, &[&none]),
        (50, &erasures, &[&prose]),
        (40, &erasures, &[&other]),
        (1, &["log", "import", "--data", &data], &[&car]),
    ];
    for (code, args, more) in cases {
        let ran = exits(code, &[args, more].concat());
        let judged =
            code == 0 || ["unreadable", "invalid"].iter().any(|verdict| ran.stdout.starts_with(verdict));
        assert!(judged || ran.stderr.lines().count() == 1, "{args:?} {more:?}: {ran:?}");
        let left = [&path("new"), &none, &format!("{new}.erasures")].map(|dir| Path::new(dir).exists());
        assert_eq!(left, [false; 3], "{args:?} {more:?}: nothing is left of what is refused");
    }
}

#[test]
fn a_replay_says_of_erased_content_that_it_was_erased() {
    let temp = temp();
    let server = Server::start(temp.path(), &[]);
    let (data, url) = (text(temp.path()), server.url.as_str());
    let mut caller = Caller::new(&server);
    // The same content has the same name: each run is asked for something of its own.
    for (run, limit) in [("whole", 3), ("half", 4)] {
        let steps = json!([
            {"step_id": "list", "action": "tools_list_tools", "inputs": {"limit": limit}},
            {"step_id": "again", "action": "tools_list_tools", "depends_on": ["list"],
             "inputs": {"limit": {"$from": "list", "pointer": "/none", "default": 2}}},
        ]);
        caller.run(run, steps, json!({}));
        caller.run_until(run, "succeeded");
        let matched = told(&["replay", run, "--json", "--url", url]);
        assert_eq!((&matched["verdict"], &matched["erased"]), (&json!("matched"), &json!([])), "{matched}");
    }
    let first = |path: &str| server.get(path).json()["events"][0].clone();
    let replayed = |run: &str, erased: &str| {
        exits(0, &["erase", erased, "--basis", "asked", "--data", data]);
        let shown = exits(20, &["replay", run, "--url", url]).stdout;
        assert!(shown.contains(&format!("{run}  incomplete")), "{shown}");
        assert!(shown.contains(&format!("the content of {erased} was erased")), "{shown}");
        assert!(!shown.contains("differs") && !shown.contains("otherwise"), "{shown}");
        let report = exits(20, &["replay", run, "--json", "--url", url]).stdout;
        let report: Value = serde_json::from_str(&report).expect("it is json");
        assert_eq!(
            (&report["verdict"], &report["erased"]),
            (&json!("incomplete"), &json!([erased])),
            "{report}"
        );
        report["steps"]
            .as_array()
            .expect("steps")
            .iter()
            .map(|step| step["verdict"].clone())
            .collect::<Vec<_>>()
    };
    let input = payload(&first("/v1/events?subject=workflow/whole&kind=workflow.submitted"), "input");
    assert_eq!(replayed("whole", &input), ["unverifiable", "unverifiable"]);

    let output = payload(&first("/v1/events?subject=task/half%23list&kind=task.succeeded"), "output");
    assert_eq!(replayed("half", &output), ["match", "unverifiable"]);
    assert!(server.stop().success());
}

#[test]
fn erased_payloads_are_told_from_those_that_are_there() {
    let temp = temp();
    let data = text(temp.path());
    let called = exits(0, &["call", "tools_list_categories", "--data", data]).stderr.trim().to_owned();
    let output = payload(&told(&["log", "show", &called, "--json", "--data", data]), "output");
    let before = told(&["log", "verify", "--json", "--data", data]);
    let whole = before["checked_payloads"].as_u64().expect("a number");
    assert!(before["erased_payloads"] == 0 && whole > 0 && before["takeovers"].is_null(), "{before}");
    let trace = |format: &str| exits(0, &["trace", &called, "--format", format, "--data", data]).stdout;
    for format in ["text", "json", "dot", "mermaid"] {
        assert!(!trace(format).contains("erased"), "{format}");
    }

    exits(0, &["erase", &output, "--basis", "asked", "--data", data]);
    let after = told(&["log", "verify", "--json", "--data", data]);
    assert_eq!(
        (&after["checked_payloads"], &after["erased_payloads"]),
        (&json!(whole - 1), &json!(1)),
        "{after}"
    );
    assert_eq!(after["checked_blocks"].as_u64(), before["checked_blocks"].as_u64().map(|blocks| blocks - 1));
    let said = exits(0, &["log", "verify", "--data", data]).stdout;
    assert!(said.contains(&format!(", {} payloads, 1 erased", whole - 1)), "{said}");
    let said = exits(0, &["log", "verify", "--no-payloads", "--data", data]).stdout;
    assert!(said.contains("payloads not checked") && !said.contains("erased"), "{said}");
    for format in ["text", "json", "dot", "mermaid"] {
        assert_eq!(trace(format).matches("erased").count(), 1, "{format}");
    }
}

#[test]
fn what_is_no_payload_is_named_where_it_is_to_be_erased() {
    let temp = temp();
    let server = Server::start(temp.path(), &[]);
    let data = text(temp.path());
    let steps = json!([{"step_id": "list", "action": "tools_list_tools", "inputs": {"limit": 3}}]);
    result(&server, "workflow_submit", json!({"workflow_id": "wf", "name": "lists", "steps": steps}));
    Caller::new(&server).run_until("wf", "succeeded");
    let first = |path: &str| server.get(path).json()["events"][0].clone();
    let link = |value: &Value| value["/"].as_str().unwrap_or_else(|| panic!("no link: {value}")).to_owned();
    let submitted = first("/v1/events?kind=workflow.submitted");
    let event = submitted["cid"].as_str().expect("a name").to_owned();
    for (cid, what) in [
        (event.clone(), "this is an event: only payloads"),
        (link(&submitted["log"]), "this is the genesis block of a log: only payloads"),
        (link(&submitted["body"]["plan"]), "this is a plan of a workflow: only payloads"),
        (
            link(&first("/v1/events?kind=contract.published")["body"]["contract"]),
            "this is a contract: only payloads",
        ),
        (Cid::of(cairn::block::Codec::DagCbor, b"never here").to_string(), "no payload of this cid"),
    ] {
        let refused = exits(1, &["erase", &cid, "--basis", "asked", "--data", data]);
        assert!(
            refused.stderr.contains(what) && refused.stderr.contains("`cairn trace EVENT --wide`"),
            "{refused:?}"
        );
    }
    // Which does name them.
    let named = exits(0, &["trace", &event, "--wide", "--data", data]).stdout;
    assert!(named.contains(&payload(&submitted, "input")), "{named}");
    assert!(server.stop().success());
}

#[test]
fn a_watch_tells_all_of_a_failure_and_its_last_line_once() {
    let temp = temp();
    let server = Server::start(temp.path(), &[]);
    let unknown = "x".repeat(100);
    let steps = json!([{"step_id": "a", "action": "tools_get_schema", "inputs": {"tool": unknown}}]);
    let mut caller = Caller::new(&server);
    caller.run("wf", steps, json!({}));
    caller.run_until("wf", "failed");
    let ran = exits(1, &["workflow", "watch", "wf", "--url", &server.url]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let [head, why] = &lines[..] else { panic!("{lines:?}") };
    assert!(head.starts_with("wf  failed  1/1 steps"), "{lines:?}");
    assert!(why.contains(&unknown), "{lines:?}");
    assert!(server.stop().success());
}

#[test]
fn no_token_is_in_force_that_cannot_be_recorded() {
    let temp = temp();
    let data = text(temp.path());
    exits(0, &["call", "tools_list_categories", "--data", data]);
    let key = temp.path().join("keys/log.key");
    let good = fs::read(&key).expect("a key");
    fs::write(&key, "no key").expect("it can be written");
    let add = ["token", "add", "alice", "--scope", "mcp:call", "--data", data];
    let refused = exits(1, &add);
    assert!(refused.stderr.contains("so none was made") && refused.stdout.is_empty(), "{refused:?}");
    assert!(!temp.path().join("tokens.json").exists(), "it was never in force");
    fs::write(&key, good).expect("it can be written");
    exits(0, &add);
    let recorded = exits(0, &["log", "query", "--kind", "token.added", "--json", "--data", data]).stdout;
    assert_eq!(recorded.lines().count(), 1, "{recorded}");
}
