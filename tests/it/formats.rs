//! The event format as its document tells it: what is printed there is the golden log, and its program verifies it.
//!
//! Invariant: `docs/event-format.md` holds no value that `schemas/golden.json` does not.

use std::{fs, path::Path, process::Command};

use cairn::{error, event, peer, query, task, verify, worker};
use serde::Serialize;
use serde_json::Value;

use crate::harness;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|err| panic!("{name}: {err}"))
}

fn document() -> String {
    read("docs/event-format.md")
}

fn golden() -> Value {
    serde_json::from_str(&read("schemas/golden.json")).expect("golden.json is json")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text of golden.json")
}

#[test]
fn the_program_of_the_document_verifies_the_golden_log() {
    let document = document();
    let program = document
        .split_once("```python\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(program, _)| program)
        .expect("the document holds a python program");
    let golden = golden();
    let lines: Vec<&Value> = ["blocks", "events"]
        .iter()
        .flat_map(|list| golden[list].as_array().expect("a list of golden.json"))
        .collect();
    let verify = |change: fn(&str) -> String| {
        let mut command = Command::new(harness::needs("venv/bin/python"));
        command.args(["-c", program]);
        for line in &lines {
            command.arg(text(&line["cid"])).arg(change(text(&line["hex"])));
        }
        harness::run(command)
    };
    let said = verify(str::to_owned).succeeded();
    assert_eq!(said.lines().count(), lines.len(), "{said}");
    // One bit of the last byte.
    let changed =
        verify(|hex| format!("{}{}", &hex[..hex.len() - 1], if hex.ends_with('0') { 1 } else { 0 }));
    assert!(!changed.status.success());
}

#[test]
fn the_document_prints_the_golden_log() {
    let (document, golden) = (document(), golden());
    let first = &golden["events"][0];
    for printed in [&golden["vkey"], &golden["checkpoint"], &first["cid"], &golden["blocks"][0]["cid"]] {
        assert!(document.contains(text(printed)), "not in the document: {printed}");
    }
    let root = text(&golden["checkpoint"]).lines().nth(2).expect("a root");
    let root = data_encoding::BASE64.decode(root.as_bytes()).expect("base64");
    assert!(document.contains(&data_encoding::HEXLOWER.encode(&root)));
    let listing = document
        .split_once("## Example")
        .and_then(|(_, rest)| rest.split("```").nth(1))
        .expect("the document holds the listing");
    // The left columns of each line are hex; a digest is cut as `2d13..2b42`.
    let log = &text(&golden["blocks"][0]["cid"]);
    let digest = data_encoding::BASE32_NOPAD
        .decode(log[1..].to_ascii_uppercase().as_bytes())
        .expect("a cid is base32");
    let digest = data_encoding::HEXLOWER.encode(&digest[4..]);
    let cut = format!("{}..{}", &digest[..4], &digest[60..]);
    let bytes: String = listing
        .lines()
        .flat_map(|line| line.split_whitespace().take_while(|word| is_hex(word) || *word == cut))
        .collect();
    assert_eq!(bytes.replace(&cut, &digest), text(&first["hex"]));
}

fn is_hex(word: &str) -> bool {
    word.len().is_multiple_of(2)
        && word.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
}

#[test]
fn what_is_written_of_a_closed_set_is_its_word() {
    fn check<T: Serialize>(all: &[T], words: &[&str]) {
        assert_eq!(serde_json::json!(all), serde_json::json!(words));
    }
    check(&error::Code::ALL, &error::Code::WORDS);
    check(&event::Role::ALL, &event::Role::WORDS);
    check(&peer::Status::ALL, &peer::Status::WORDS);
    check(&query::peers::Sort::ALL, &query::peers::Sort::WORDS);
    check(&task::Status::ALL, &task::Status::WORDS);
    check(&verify::Verdict::ALL, &verify::Verdict::WORDS);
    check(&worker::Status::ALL, &worker::Status::WORDS);
}
