//! The event format as its document tells it: the program printed there verifies the golden events.

use std::{fs, path::Path, process::Command};

use crate::harness;

#[test]
fn the_documents_program_verifies_the_golden_events() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| {
        fs::read_to_string(root.join(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
    };
    let document = read("docs/event-format.md");
    let program = document
        .split_once("```python\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(program, _)| program)
        .expect("the document holds a python program");
    let golden: serde_json::Value =
        serde_json::from_str(&read("schemas/golden.json")).expect("golden.json is json");
    let events = golden["events"].as_array().expect("a list of events");
    let mut command = Command::new(harness::needs("venv/bin/python"));
    command.args(["-c", program]);
    for event in events {
        command.args([&event["cid"], &event["hex"]].map(|part| part.as_str().expect("text")));
    }
    let said = harness::run(command).succeeded();
    assert_eq!(said.lines().count(), events.len(), "{said}");
}
