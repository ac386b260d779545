//! A run handed on: exported from the node that ran it, imported by one that never heard of it, replayed there.

use std::{fs, path::Path};

use cairn::{
    archive::{
        evidence::{Evidence, Proof, judge_read},
        writing::Manifest,
    },
    block::{
        Block, Codec,
        car::{Limits, Reader, SECTION_MAX},
        decode,
        payload::Payload,
    },
    event::Event,
    workflow::plan::Plan,
};
use serde_json::{Value, json};

use crate::{
    harness::{Server, exits, temp, text, told},
    minted::{Section, archive},
    record,
    speech::result,
};

/// Lists tools, reads the contract of each, then one of them through another tool.
fn definition(id: &str) -> Value {
    let each = json!({"$from": "list", "pointer": "/tools", "max": 5});
    json!({"workflow_id": id, "name": "contracts", "steps": [
        {"step_id": "list", "action": "tools_list_tools", "inputs": {"limit": 3}},
        {"step_id": "read", "action": "tools_get_schema", "depends_on": ["list"], "for_each": each,
         "inputs": {"tool": {"$item": "/name"}}},
        {"step_id": "again", "action": "tools_dispatch", "depends_on": ["read"],
         "inputs": {"tool": "tools_get_schema", "params": {"tool": {"$from": "list", "pointer": "/tools/1/name"}}}},
    ]})
}

/// A node that ran `wf`, and `wf/b`, which takes the list over from it.
fn ran(data: &Path) -> Server {
    let server = Server::start(data, &[]);
    let done = |name: &str, arguments: Value| {
        let answer = result(&server, name, arguments);
        assert_ne!(answer["isError"], true, "{name}: {answer}");
    };
    done("workflow_submit", definition("wf"));
    exits(0, &["workflow", "watch", "wf", "--url", &server.url]);
    done("workflow_fork", json!({"workflow_id": "wf", "new_workflow_id": "wf/b", "from_step": "read"}));
    exits(0, &["workflow", "watch", "wf/b", "--url", &server.url]);
    server
}

#[test]
fn a_run_is_replayed_where_it_never_ran() {
    let temp = temp();
    let [one, other, whole] = ["one", "other", "whole"].map(|name| temp.path().join(name));
    let [first, fork, again, all] =
        ["wf.car", "fork.car", "again.car", "all.car"].map(|name| temp.path().join(name));
    let [one, other, whole] = [&one, &other, &whole].map(|path| text(path));
    let [first, fork, again, all] = [&first, &fork, &again, &all].map(|path| text(path));
    let server = ran(Path::new(one));
    let at_home = told(&["replay", "wf", "--json", "--url", &server.url]);
    assert_eq!(at_home["evidence"]["state"], "verified", "{at_home}");
    assert_eq!((&at_home["matched"], &at_home["compared_steps"]), (&json!(true), &json!(3)), "{at_home}");
    exits(0, &["log", "export", "--subject", "workflow/wf", "-o", first, "--url", &server.url]);
    exits(0, &["export", "--subject", "workflow/wf", "-o", again, "--url", &server.url]);
    exits(1, &["export", "--subject", "workflow/nobody", "-o", fork, "--url", &server.url]);
    server.kill();
    exits(0, &["export", "--subject", "workflow/wf/b", "-o", fork, "--data", one]);
    exits(0, &["export", "-o", all, "--data", one]);

    // Nothing of a log is written; what is imported twice is kept once.
    for (file, runs) in [(first, 1), (first, 1), (again, 1), (fork, 2)] {
        let said = exits(0, &["log", "import", file, "--data", other]).stderr;
        assert!(said.contains(": verified under head "), "{said}");
        let kept = fs::read_dir(Path::new(other).join("archives")).expect("archives are kept");
        assert!(kept.count() >= runs, "{file}");
        assert!(!Path::new(other).join("log.db").exists());
    }
    for run in ["wf", "wf/b"] {
        let there = told(&["replay", run, "--json", "--data", other]);
        assert_eq!((&there["matched"], &there["steps"]), (&json!(true), &at_home["steps"]), "{run}: {there}");
        assert_eq!(there["evidence"]["state"], "verified", "{run}: {there}");
        let said = exits(0, &["replay", run, "--data", other]).stdout;
        assert!(said.contains("matched, verified under head "), "{said}");
    }
    exits(0, &["workflow", "graph", "wf", "--data", other]);
    exits(0, &["workflow", "status", "wf/b", "--data", other]);
    // Beside a log too, which neither takes them in nor runs them.
    let server = Server::start(Path::new(other), &[]);
    exits(0, &["log", "import", first, "--data", other]);
    assert_eq!(told(&["replay", "wf", "--json", "--url", &server.url])["matched"], true);
    exits(1, &["replay", "nobody", "--url", &server.url]);
    let status = told(&["workflow", "status", "wf", "--json", "--url", &server.url]);
    assert_eq!((&status["status"], &status["progress"]), (&json!("succeeded"), &json!(100)), "{status}");
    let result: Value =
        serde_json::from_str(&exits(0, &["workflow", "result", "wf", "--url", &server.url]).stdout)
            .expect("a result is json");
    assert!(result["outputs"]["read"].is_object(), "{result}");
    exits(0, &["workflow", "graph", "wf", "--url", &server.url]);
    exits(0, &["diff", "wf", "wf", "--url", &server.url]);
    exits(0, &["diff", "wf", "wf/b", "--url", &server.url]);
    exits(1, &["replay", "wf", "--rerun", "--url", &server.url]);
    assert!(server.stop().success());
    exits(0, &["log", "verify", "--data", other]);

    // A whole log brings its runs with their plans.
    exits(0, &["log", "import", all, "--data", whole]);
    exits(0, &["log", "verify", "--data", whole]);
    let keys = Path::new(whole).join("keys");
    fs::create_dir(&keys).expect("a directory");
    for key in ["log.key", "salt.key"] {
        fs::copy(Path::new(one).join("keys").join(key), keys.join(key)).expect("a key");
    }
    assert_eq!(told(&["replay", "wf", "--json", "--data", whole])["matched"], true);
}

/// What an archive shows of its events, and their seqs, whatever it is an archive of.
fn shown(archive: &[u8]) -> (Evidence, Vec<u64>) {
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let sections: Vec<Section> =
        Reader::new(archive, limits).and_then(|archive| archive.collect()).expect("an archive");
    let manifest: Manifest = decode(&sections[0].1).expect("a manifest");
    let mut proof = Proof::of(&manifest).expect("a proof");
    let mut blocks = sections[1..].iter();
    while proof.open() {
        let (cid, bytes) = blocks.next().expect("a block of the proof");
        proof.take(*cid, bytes).expect("the next block of the proof");
    }
    let (_, genesis) = blocks.next().expect("a genesis block");
    let events: Vec<Event> = blocks.filter_map(|(_, bytes)| Event::open(bytes.clone()).ok()).collect();
    let seqs: Vec<u64> = events.iter().map(|event| event.fields().seq).collect();
    assert_eq!(manifest.count, seqs.len() as u64);
    assert_eq!((Some(&manifest.from), Some(&manifest.to)), (seqs.first(), seqs.last()));
    (judge_read(&manifest, genesis, &events, &proof).expect("the keys lead to the head"), seqs)
}

#[test]
fn an_archive_of_a_range_leads_to_the_key_of_its_head() {
    let temp = temp();
    let data = text(temp.path());
    let call = || exits(0, &["call", "tools_list_categories", "--data", data]);
    call();
    exits(0, &["key", "rotate", "--data", data]);
    call();
    let rotated = record::events(temp.path())
        .iter()
        .position(|event| event.fields().kind == "log.key_rotated")
        .expect("a change of keys") as u64;
    let server = Server::start(temp.path(), &["--no-p2p"]);
    for (from, to) in [(0, rotated - 1), (1, 2), (rotated + 1, rotated + 2), (rotated - 1, rotated + 1)] {
        let range = format!("from_seq={from}&to_seq={to}");
        let (evidence, seqs) = shown(&server.get(&format!("/v1/export?format=car&{range}")).body);
        assert!(matches!(evidence, Evidence::Verified { .. }), "{range}: {evidence:?}");
        let mut expected: Vec<u64> = (from..=to).chain([rotated]).collect();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(seqs, expected, "{range}");
        // What is no archive has the events that were asked for.
        let lines = server.get(&format!("/v1/export?format=jsonl&{range}"));
        assert_eq!(lines.text().lines().count() as u64, to - from + 1, "{range}");
    }
    assert!(server.stop().success());
}

#[test]
fn a_damaged_record_is_refused_with_its_place() {
    let temp = temp();
    let data = temp.path().join("data");
    let file = temp.path().join("wf.car");
    ran(&data).kill();
    exits(0, &["export", "--subject", "workflow/wf", "-o", text(&file), "--data", text(&data)]);
    let whole = fs::read(&file).expect("an archive");
    let flip = |what: &str| {
        let at = whole.windows(what.len()).position(|bytes| bytes == what.as_bytes());
        let mut bytes = whole.clone();
        bytes[at.unwrap_or_else(|| panic!("{what} is in the archive"))] ^= 1;
        bytes
    };
    // Damage behind right names: blocks left out, moved or slipped in.
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let sections: Vec<Section> =
        Reader::new(&whole[..], limits).and_then(|archive| archive.collect()).expect("an archive");
    let is = |section: &Section, kind: &str| {
        Event::open(section.1.clone()).is_ok_and(|event| event.fields().kind == kind)
    };
    let place = |kind: &str| sections.iter().position(|section| is(section, kind)).expect("there is one");
    let plan = sections.iter().position(|(_, bytes)| decode::<Plan>(bytes).is_ok()).expect("there is one");
    let forged = |change: &dyn Fn(&mut Vec<Section>)| {
        let mut sections = sections.clone();
        change(&mut sections);
        archive(&sections)
    };
    let begun = sections[place("workflow.started")].0;
    let cases = [
        (40, flip("workflow.started"), format!("block {begun} does not have the digest it is named by")),
        (40, flip("\"limit\":3"), "does not have the digest it is named by".to_owned()),
        (20, whole[..whole.len() - 3].to_vec(), "ends within a section at byte".to_owned()),
        (
            20,
            forged(&|all| drop(all.remove(place("workflow.succeeded")))),
            "not those its manifest speaks of".to_owned(),
        ),
        (40, forged(&|all| drop(all.remove(plan))), "its plan is missing".to_owned()),
        (40, forged(&|all| drop(all.remove(plan - 1))), "its contract is missing".to_owned()),
        (
            40,
            forged(&|all| all.swap(place("workflow.started"), place("workflow.succeeded"))),
            "after a later event".to_owned(),
        ),
        (
            40,
            forged(&|all| all.insert(plan + 3, stranger())),
            format!("block {}: it is no event", stranger().0),
        ),
        (40, forged(&|all| all[1] = stranger()), "should".to_owned()),
    ];
    for (code, bytes, why) in cases {
        let other = temp.path().join("other");
        fs::write(&file, bytes).expect("a file");
        let refused = exits(code, &["log", "import", text(&file), "--data", text(&other)]);
        assert!(
            refused.stderr.contains("the archive is refused: ") && refused.stderr.contains(&why),
            "{refused:?}"
        );
        assert!(!other.exists(), "nothing is left of what is refused");
    }
}

#[test]
fn an_archive_says_what_it_proves_and_replaces_no_other() {
    let temp = temp();
    let [data, other, bare] = ["data", "other", "bare"].map(|name| temp.path().join(name));
    let [file, less, unsigned, bad] =
        ["wf.car", "less.car", "unsigned.car", "bad.car"].map(|name| temp.path().join(name));
    ran(&data).kill();
    exits(0, &["export", "--subject", "workflow/wf", "-o", text(&file), "--data", text(&data)]);
    let limits = Limits { section_max: SECTION_MAX, total_max: u64::MAX };
    let bytes = fs::read(&file).expect("an archive");
    let sections: Vec<Section> =
        Reader::new(&bytes[..], limits).and_then(|archive| archive.collect()).expect("an archive");
    let manifest: Manifest = decode(&sections[0].1).expect("a manifest");
    let proof = manifest.proof.clone().expect("a run carries its proof");
    let write = |to: &Path, sections: &[Section]| fs::write(to, archive(sections)).expect("a file");

    // Without a payload it has the same root and another content.
    let payload =
        sections.iter().rposition(|(_, bytes)| decode::<Payload>(bytes).is_ok()).expect("there is one");
    let mut fewer = sections.clone();
    fewer.remove(payload);
    write(&less, &fewer);
    let import =
        |file: &Path, data: &Path| told(&["log", "import", text(file), "--json", "--data", text(data)]);
    let first = import(&file, &other);
    assert_eq!((&first["imported"], &first["already"]), (&json!("run"), &json!(false)), "{first}");
    assert_eq!(first["evidence"]["state"], "verified", "{first}");
    assert_eq!(import(&file, &other)["already"], true);
    let refused = exits(1, &["log", "import", text(&less), "--data", text(&other)]);
    assert!(refused.stderr.contains("an archive of this root is kept already"), "{refused:?}");
    let kept = fs::read_dir(other.join("archives")).expect("a directory");
    let kept: Vec<Vec<u8>> =
        kept.map(|entry| fs::read(entry.expect("an entry").path()).expect("a file")).collect();
    assert_eq!(kept, [bytes], "the first stays as it was");

    // As archives were before they had proofs.
    let without = Block::encode(&Manifest { proof: None, ..manifest });
    let mut old = vec![(without.cid(), without.bytes().to_vec())];
    old.extend(sections[1..].iter().filter(|(cid, _)| !proof.contains(cid)).cloned());
    write(&unsigned, &old);
    assert_eq!(import(&unsigned, &bare)["evidence"], json!({"state": "unsigned"}));
    let replayed = told(&["replay", "wf", "--json", "--data", text(&bare)]);
    assert_eq!((&replayed["matched"], &replayed["evidence"]), (&json!(true), &json!({"state": "unsigned"})));
    let said = exits(0, &["replay", "wf", "--data", text(&bare)]).stdout;
    assert!(said.contains("matched, unsigned"), "{said}");

    // A proof that does not lead to the head is no missing one.
    let mut wrong = sections[1].1.clone();
    wrong[0] ^= 1;
    let wrong = Block::new(Codec::Raw, wrong);
    let named = Block::encode(&Manifest {
        proof: Some(vec![wrong.cid()]),
        ..decode(&sections[0].1).expect("a manifest")
    });
    let mut forged = sections.clone();
    forged[0] = (named.cid(), named.bytes().to_vec());
    forged[1] = (wrong.cid(), wrong.bytes().to_vec());
    write(&bad, &forged);
    let refused = exits(40, &["log", "import", text(&bad), "--data", text(&bare)]);
    assert!(refused.stderr.contains("the proof does not lead from its events"), "{refused:?}");
}

fn stranger() -> Section {
    let block = Block::encode(&"a stranger");
    (block.cid(), block.bytes().to_vec())
}
