//! Logs that earlier versions wrote: opened, verified, asked, replayed and gone on with.
//!
//! `tests/old/<version>/` holds a data directory as that version left it (`log.db`, `head`, `keys/`), exports of it that
//! it made (`whole.car`, `run.car`), a receipt, and the key of the log (`vkey`). Its log has calls with a large answer, a
//! secret and an idempotency key, a workflow, two tasks with the payload of one erased. Such a directory never changes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp, text},
    speech::{ask, keyed, result},
};

/// The versions that have written logs.
const VERSIONS: &[&str] = &["0.1"];

fn kept(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old").join(version)
}

fn vkey(version: &str) -> String {
    fs::read_to_string(kept(version).join("vkey")).expect("a key").trim().to_owned()
}

/// The data directory as that version left it.
fn data(version: &str) -> tempfile::TempDir {
    let dir = temp();
    fs::create_dir(dir.path().join("keys")).expect("a directory");
    for file in ["log.db", "head", "keys/log.key", "keys/salt.key"] {
        fs::copy(kept(version).join(file), dir.path().join(file)).expect("a copy");
    }
    dir
}

/// The report of `log verify` with the log's key.
fn verified(data: &Path, key: &str) -> Value {
    let ran = run(cairn(&["log", "verify", "--json", "--key", key, "--data", text(data)]));
    assert!(ran.status.success(), "{ran:?}");
    serde_json::from_str(&ran.stdout).expect("a report")
}

#[test]
fn an_old_log_is_verified_as_it_lies() {
    for version in VERSIONS {
        let dir = data(version);
        let report = verified(dir.path(), &vkey(version));
        assert_eq!(report["head"]["size"], report["checked_events"], "{version}: {report}");
    }
}

#[test]
fn an_old_log_is_gone_on_with_and_answers_what_it_answered() {
    for version in VERSIONS {
        let dir = data(version);
        let before = verified(dir.path(), &vkey(version))["checked_events"].as_u64().expect("a number");
        let server = Server::start(dir.path(), &["--no-p2p"]);
        let call = |tool: &str, arguments: &Value| result(&server, tool, arguments.clone());
        let run_of = |tool: &str| call(tool, &json!({"workflow_id": "old/1"}));
        assert_eq!(run_of("workflow_result")["structuredContent"]["status"], "succeeded", "{version}");
        let replay = run_of("workflow_replay");
        assert_eq!(replay["structuredContent"]["matched"], true, "{version}: {replay}");
        // The payload of `t1` is erased, that of `t2` is there.
        call("worker_register", &json!({"worker_id": "w", "capabilities": ["mail"]}));
        let claimed = call("task_claim", &json!({"worker_id": "w", "max_tasks": 2}));
        let tasks = claimed["structuredContent"]["tasks"].as_array().expect("tasks");
        let payload = |id: &str| {
            let task = tasks.iter().find(|task| task["task_id"] == id);
            task.map(|task| task["payload"].clone()).unwrap_or_default()
        };
        assert_eq!(payload("t2"), json!({"to": "b"}), "{version}: {claimed}");
        assert_eq!(payload("t1"), Value::Null, "{version}: {claimed}");
        // Content in parts is put together as it was.
        let events = server.get("/v1/events?kind=call.succeeded&tool=old_big&payloads=inline&limit=1").json();
        let large = events["events"][0]["pay"][0]["len"].as_u64().expect("a length");
        assert!(large > 300_000, "{version}: {events}");
        assert!(events.to_string().len() > 300_000, "{version}: the content is shown");
        let keyless = ask(&server, "tools/call", keyed("tools_list_categories", &json!({}), "new"));
        assert!(keyless["result"]["structuredContent"]["success"].as_bool() == Some(true), "{keyless}");
        assert!(server.stop().success());
        let after = verified(dir.path(), &vkey(version))["checked_events"].as_u64().expect("a number");
        assert!(after > before, "{version}: {before} events, then {after}");
    }
}

#[test]
fn old_archives_and_receipts_are_taken() {
    for version in VERSIONS {
        let (key, into, other) = (vkey(version), temp(), temp());
        let receipt = kept(version).join("last.receipt");
        run(cairn(&["receipt", "verify", text(&receipt), "--key", &key])).succeeded();
        let import = |archive: &str, into: &Path| {
            let archive = kept(version).join(archive);
            let ran = run(cairn(&["log", "import", text(&archive), "--data", text(into)]));
            assert!(ran.status.success(), "{ran:?}");
            ran.stderr
        };
        import("whole.car", into.path());
        verified(into.path(), &key);
        // The record of a run is replayed beside whatever log is there. It was made without a proof.
        run(cairn(&["call", "tools_list_categories", "--data", text(other.path())])).succeeded();
        let said = import("run.car", other.path());
        assert!(said.contains("unsigned"), "{version}: {said}");
        let replay = run(cairn(&["replay", "old/1", "--json", "--data", text(other.path())])).succeeded();
        let replay: Value = serde_json::from_str(&replay).expect("json");
        assert_eq!(replay["matched"], true, "{version}: {replay}");
        assert_eq!(replay["evidence"]["state"], "unsigned", "{version}: {replay}");
    }
}
