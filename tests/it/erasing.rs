//! Erasing, at the door of a running node: what it holds for, what is content again, what archives and guesses are told.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cairn::{
    block::{
        Cid, Codec,
        car::{Limits, Reader, SECTION_MAX},
    },
    event::Event,
};
use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, exits, run, temp, text},
    minted::archive,
    record::{self, PATIENCE, until},
    speech::result,
    work::{Caller, Worker},
};

/// The name of what the last task was submitted with.
fn last_payload(server: &Server) -> String {
    let listed = server.get("/v1/events?kind=task.submitted").json();
    let last = listed["events"].as_array().and_then(|events| events.last()).expect("a task").clone();
    last["pay"][0]["cid"]["/"].as_str().expect("a payload").to_owned()
}

#[test]
fn a_task_submitted_after_its_payload_was_erased_has_it() {
    let temp = temp();
    let [data, copy] = ["data", "copy"].map(|name| temp.path().join(name));
    let archive = temp.path().join("all.car");
    let [data, copy, archive] = [&data, &copy, &archive].map(|path| text(path));
    let server = Server::start(Path::new(data), &[]);
    let mut caller = Caller::new(&server);
    let small = json!({"x": "nightly"});
    let large = json!({"x": "n".repeat(600 * 1024)});
    let mut names = Vec::new();
    for (id, payload) in [("a", &small), ("la", &large)] {
        caller.submit(id, "t", json!({"payload": payload}));
        let name = last_payload(&server);
        exits(0, &["erase", &name, "--basis", "asked", "--data", data]);
        let gone = server.get(&format!("/v1/blocks/{name}"));
        assert_eq!(gone.status, 410, "{}", gone.text());
        let erased = server.get("/v1/events?kind=payload.erased").json();
        let by =
            erased["events"].as_array().and_then(|events| events.last()).expect("it is on record").clone();
        assert_eq!(gone.json()["erased_seq"], by["seq"], "{}", gone.text());
        assert_eq!(gone.json()["erased_by"], by["cid"], "{}", gone.text());
        let told = run(cairn(&["log", "show", &name, "--data", data])).stderr;
        assert!(told.contains(&format!("at seq {}", by["seq"])), "{told}");
        let asked = result(&server, "provenance_get", json!({"cid": name}));
        assert!(asked.to_string().contains(&format!("at seq {}", by["seq"])), "{asked}");
        caller.submit(&format!("{id}2"), "t", json!({"payload": payload}));
        assert_eq!(last_payload(&server), name, "the same content has the same name");
        assert_eq!(server.get(&format!("/v1/blocks/{name}")).status, 200);
        names.push(name);
    }
    server.kill();
    let server = Server::start(Path::new(data), &[]);
    let mut worker = Worker::register(&server, "w", &["t"], 5);
    // Under one name there is one content: the tasks submitted before have it again too.
    for (id, payload) in [("a", &small), ("a2", &small), ("la", &large), ("la2", &large)] {
        let task = worker.take();
        assert_eq!(task["task_id"], id, "{task}");
        assert!(task["payload"] == *payload, "{id} has another payload");
        worker.complete(&task, json!({}));
    }
    assert!(server.stop().success());
    exits(0, &["export", "-o", archive, "--data", data]);
    exits(0, &["log", "import", archive, "--data", copy]);
    let (code, report) = record::verify(Path::new(data));
    assert_eq!(code, Some(0), "{report}");
    for data in [data, copy] {
        exits(0, &["log", "verify", "--data", data]);
        for name in &names {
            exits(0, &["log", "show", name, "--data", data]);
        }
    }
}

#[test]
fn nobody_learns_of_a_part_that_was_erased() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let mut caller = Caller::new(&server);
    caller.submit("a", "t", json!({"payload": {"x": "n".repeat(600 * 1024)}}));
    let name = last_payload(&server);
    let block = server.get(&format!("/v1/blocks/{name}")).json();
    let part = block["value"]["parts"][0]["/"].as_str().expect("it is in parts").to_owned();
    assert_eq!(server.get(&format!("/v1/blocks/{part}")).status, 200);
    exits(0, &["erase", &name, "--basis", "asked", "--data", text(data.path())]);
    let unknown = Cid::of(Codec::Raw, b"never here").to_string();
    let paths = [
        "/v1/blocks/{}",
        "/v1/events/{}",
        "/v1/events?payload={}",
        "/v1/events?contract={}",
        "/ipfs/{}?format=raw",
        "/ipfs/{}?format=car",
        "/v1/provenance/{}",
        "/v1/proof/{}",
        "/v1/receipts/{}",
        "/v1/contracts/{}",
        "/v1/export?cid={}",
    ];
    for path in paths {
        let [erased, never] = [&part, &unknown].map(|cid| server.get(&path.replace("{}", cid)));
        assert_eq!(erased.status, never.status, "{path}");
        assert_eq!(erased.text().replace(&part, ""), never.text().replace(&unknown, ""), "{path}");
    }
    for tool in ["provenance_get", "provenance_trace", "provenance_verify", "provenance_receipt"] {
        let [erased, never] = [&part, &unknown].map(|cid| {
            let mut told = result(&server, tool, json!({"cid": cid}));
            told["_meta"] = Value::Null;
            told.to_string().replace(cid.as_str(), "")
        });
        assert_eq!(erased, never, "{tool}");
    }
    assert_eq!(server.get(&format!("/v1/blocks/{name}")).status, 410);
}

/// The events of an archive, and the names of its other blocks.
fn contents(archive: &Path) -> (Vec<Event>, Vec<Cid>) {
    let file = fs::File::open(archive).expect("it is kept");
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let (mut events, mut blocks) = (Vec::new(), Vec::new());
    for section in Reader::new(std::io::BufReader::new(file), limits).expect("an archive") {
        let (cid, bytes) = section.expect("a whole archive");
        match Event::open(bytes) {
            Ok(event) => events.push(event),
            Err(_) => blocks.push(cid),
        }
    }
    (events, blocks)
}

/// A step that lists so many tools.
fn lists(id: &str, limit: u64) -> Value {
    json!({"step_id": id, "action": "tools_list_tools", "inputs": {"limit": limit}})
}

/// A server that ran `wf` with these steps and was given its archive: its data, the archive's file, and the kept one.
fn archived(dir: &Path, steps: &Value) -> (Server, [PathBuf; 3]) {
    let [data, file] = ["data", "wf.car"].map(|name| dir.join(name));
    let server = Server::start(&data, &[]);
    let definition = json!({"workflow_id": "wf", "name": "lists", "steps": steps});
    assert_ne!(result(&server, "workflow_submit", definition)["isError"], true);
    exits(0, &["workflow", "watch", "wf", "--url", &server.url]);
    exits(0, &["log", "export", "--subject", "workflow/wf", "-o", text(&file), "--url", &server.url]);
    exits(0, &["log", "import", text(&file), "--data", text(&data)]);
    let mut archives = fs::read_dir(data.join("archives")).expect("it is kept");
    let kept = archives.next().expect("one").expect("a file").path();
    (server, [data, file, kept])
}

/// The payloads that the steps of an archived run were given.
fn inputs(events: &[Event]) -> Vec<Cid> {
    let submitted = events.iter().filter(|event| event.fields().kind == "task.submitted");
    submitted.map(|event| event.fields().pay[0].cid).collect()
}

/// The replay of an archived run in a data directory that has nothing else.
fn replayed_elsewhere(dir: &Path, kept: &Path) -> Value {
    let elsewhere = dir.join("elsewhere");
    fs::create_dir_all(elsewhere.join("archives")).expect("a directory");
    fs::copy(kept, elsewhere.join("archives").join(kept.file_name().expect("a name"))).expect("copied");
    let ran = run(cairn(&["replay", "wf", "--json", "--data", text(&elsewhere)]));
    serde_json::from_str(&ran.stdout).unwrap_or_else(|err| panic!("{err}: {ran:?}"))
}

/// Takes the turn of whoever imports or erases archives; they wait until it is dropped.
fn turn(kept: &Path) -> fs::File {
    let archives = fs::File::open(kept.parent().expect("a directory")).expect("it is there");
    archives.lock().expect("nobody else has it");
    archives
}

#[test]
fn what_lies_in_archives_beside_the_log_is_erased_too() {
    let temp = temp();
    let (server, [data, file, kept]) = archived(temp.path(), &json!([lists("list", 3)]));
    let [data, file] = [&data, &file].map(|path| text(path));
    let (events, blocks) = contents(&kept);
    let input = inputs(&events)[0];
    assert!(blocks.contains(&input));
    let genesis = events[0].fields().log.to_string();
    exits(1, &["erase", &genesis, "--basis", "asked", "--data", data]);
    let moment = fs::metadata(&kept).and_then(|about| about.modified()).expect("a moment");

    exits(0, &["erase", &input.to_string(), "--basis", "asked", "--data", data]);
    let (left_events, left) = contents(&kept);
    assert_eq!(left_events, events, "events stay");
    let without: Vec<Cid> = blocks.iter().copied().filter(|cid| *cid != input).collect();
    assert_eq!(left, without, "nothing but the payload goes");
    assert_eq!(fs::metadata(&kept).and_then(|about| about.modified()).expect("a moment"), moment);
    // Said again, there is nothing left to do; a part that a crash left goes.
    let crashed = kept.with_extension("erasing");
    fs::copy(&kept, &crashed).expect("it is left behind");
    exits(0, &["erase", &input.to_string(), "--basis", "asked", "--data", data]);
    assert!(!crashed.exists());

    let refused = exits(1, &["log", "import", file, "--data", data]);
    assert!(!contents(&kept).1.contains(&input), "it came back: {refused:?}");

    // Where the run never ran, the archive says that it cannot be told any more, and nothing worse.
    let replayed = replayed_elsewhere(temp.path(), &kept);
    assert_eq!(replayed["steps"][0]["verdict"], "unverifiable", "{replayed}");
    assert_eq!(replayed["compared_steps"], 0, "{replayed}");
    assert!(server.stop().success());
}

#[test]
fn two_erasures_at_once_in_one_archive_both_hold() {
    let temp = temp();
    let steps = json!([lists("one", 3), lists("two", 4), lists("left", 5)]);
    let (server, [data, _, kept]) = archived(temp.path(), &steps);
    assert!(server.stop().success());
    let (events, blocks) = contents(&kept);
    let inputs = inputs(&events);
    let gone = &inputs[..2];
    assert!(inputs.len() == 3 && inputs.iter().all(|input| blocks.contains(input)), "{inputs:?}");

    // Both have done their part in the log before either comes to the archive.
    let turn = turn(&kept);
    let running = gone.iter().map(|input| {
        Process::start(cairn(&["erase", &input.to_string(), "--basis", "asked", "--data", text(&data)]))
    });
    let running: Vec<Process> = running.collect();
    until("both are on record", || {
        let events = record::events(&data);
        let erased = events.iter().filter(|event| record::kind(event) == "payload.erased");
        (erased.count() == 2).then_some(())
    });
    assert_eq!(contents(&kept).1, blocks, "nobody waited for their turn");
    drop(turn);
    for mut process in running {
        assert!(process.wait(PATIENCE).success(), "{}", process.last_errors());
    }

    let (left_events, left) = contents(&kept);
    assert_eq!(left_events, events, "events stay");
    let without: Vec<Cid> = blocks.iter().copied().filter(|cid| !gone.contains(cid)).collect();
    assert_eq!(left, without, "both payloads go, and nothing else");
    assert_eq!(fs::read_dir(kept.parent().expect("a directory")).expect("it is there").count(), 1);
    let replayed = replayed_elsewhere(temp.path(), &kept);
    for step in replayed["steps"].as_array().unwrap_or_else(|| panic!("no steps: {replayed}")) {
        assert_eq!(step["verdict"] == "unverifiable", step["step_id"] != "left", "{replayed}");
    }
    exits(0, &["log", "verify", "--data", text(&data)]);
}

/// Whether this process waits for a lock on a file.
fn waits(process: &Process) -> bool {
    let locks = fs::read_to_string("/proc/locks").expect("the kernel tells of locks");
    let id = process.id().to_string();
    locks.lines().any(|line| line.contains("->") && line.split_whitespace().any(|word| word == id))
}

#[test]
fn an_import_does_not_bring_back_what_was_erased_while_it_ran() {
    let temp = temp();
    let (server, [data, file, kept]) = archived(temp.path(), &json!([lists("list", 3)]));
    assert!(server.stop().success());
    let whole = fs::File::open(&kept).expect("it is kept");
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let sections: Vec<_> =
        Reader::new(whole, limits).and_then(|archive| archive.collect()).expect("a whole archive");
    let input = inputs(&contents(&kept).0)[0];
    let turn = turn(&kept);
    let mut import = Process::start(cairn(&["log", "import", text(&file), "--data", text(&data)]));
    until("the import waits for its turn", || waits(&import).then_some(()));
    // An erasure takes the archive's place at once.
    let without: Vec<_> = sections.into_iter().filter(|(cid, _)| *cid != input).collect();
    fs::write(kept.with_extension("erasing"), archive(&without)).expect("written");
    fs::rename(kept.with_extension("erasing"), &kept).expect("in its place");
    drop(turn);
    assert_eq!(import.wait(PATIENCE).code(), Some(1), "{}", import.last_errors());
    assert!(import.last_errors().contains("an archive of this root is kept already"));
    assert!(!contents(&kept).1.contains(&input), "it came back");
}
