//! Copies of another node's log where its owner erases content, records it again, or changes its key.
//!
//! Invariant: a copy verifies at every stop, whatever its owner did before.

use std::fs;

use cairn::block::Cid;
use serde_json::{Value, json};

use crate::{
    harness::{cairn, run},
    peers::{
        following::{READS, caught_up, directory, followed, grow, verified},
        nodes::Node,
    },
    record::{self, until},
};

/// What stands in each payload that is erased.
const SECRET: &[u8] = b"Rumpelstiltskin is my name";

/// Calls a tool that reads nothing of its arguments, and gives the name of the payload that holds them.
fn called(owner: &Node, arguments: &Value) -> Cid {
    let answer = owner.call("test_simple_text", arguments.clone());
    let ended = answer["result"]["_meta"]["io.cairn/event"].as_str().expect("an event");
    let events = owner.events();
    let named = |cid: &str| events.iter().find(|event| event.cid().to_string() == cid);
    let ended = named(ended).expect("it is on record");
    let started = ended.fields().cause.and_then(|cause| named(&cause.to_string()));
    started.expect("an ending has its start").fields().pay[0].cid
}

fn status(node: &Node, payload: &Cid) -> u16 {
    node.server().get(&format!("/v1/blocks/{payload}")).status
}

/// Waits until the node answers so for each payload.
fn answers(node: &Node, payloads: &[Cid], expected: u16) {
    for payload in payloads {
        until(&format!("{payload} is {expected}"), || (status(node, payload) == expected).then_some(()));
    }
}

/// Whether the secret stands in any file of the copy.
fn is_on_disk(follower: &Node) -> bool {
    let files = fs::read_dir(directory(follower)).expect("the copy can be read");
    let files = files.map(|entry| entry.expect("the copy can be read").path());
    // SQLite takes files of its own away meanwhile.
    let mut bytes = files.filter(|file| file.is_file()).filter_map(|file| fs::read(file).ok());
    bytes.any(|bytes| bytes.windows(SECRET.len()).any(|window| window == SECRET))
}

/// Runs `cairn ARGS... --data` of a node that does not run.
fn offline(node: &Node, args: &[&str]) -> String {
    let mut command = cairn(args);
    command.arg("--data").arg(node.data());
    run(command).succeeded()
}

#[test]
fn what_its_owner_erases_leaves_a_copy_that_follows_erasures_and_stays_in_one_that_keeps() {
    let (mut owner, mut follows, mut keeps) = (Node::new(), Node::new(), Node::new());
    let shows = format!("{}{}", follows.entry(READS), keeps.entry(READS));
    owner.start_with("", &shows, |mut command| {
        command.arg("--conformance-fixtures");
        command
    });
    let dials = |erasures: &str| owner.dialled(&format!("follow = true\nerasures = {erasures:?}"));
    let (follow, keep) = (dials("follow"), dials("keep"));
    follows.start("", &follow);
    keeps.start("", &keep);
    // One block, and one in parts with the secret in each of them.
    let secret = std::str::from_utf8(SECRET).expect("text");
    let many = secret.repeat(600 * 1024 / SECRET.len());
    let contents = [secret, &many].map(|text| json!({"message": text}));
    let payloads = contents.each_ref().map(|content| called(&owner, content));
    for follower in [&follows, &keeps] {
        answers(follower, &payloads, 200);
        assert!(is_on_disk(follower));
    }

    for payload in &payloads {
        offline(&owner, &["erase", &payload.to_string(), "--basis", "asked"]);
    }
    answers(&owner, &payloads, 410);
    answers(&follows, &payloads, 410);
    until("its bytes are gone from the files", || (!is_on_disk(&follows)).then_some(()));
    caught_up(&keeps, &owner);
    for (follower, dials, left) in [(&mut follows, &follow, 410), (&mut keeps, &keep, 200)] {
        follower.stop();
        verified(follower);
        // Neither a pass nor a start changes what was decided.
        follower.start("", dials);
        caught_up(follower, &owner);
        answers(follower, &payloads, left);
        assert_eq!(is_on_disk(follower), left == 200);
    }

    let again = contents.each_ref().map(|content| called(&owner, content));
    assert_eq!(again, payloads, "the same content has the same name");
    for follower in [&mut follows, &mut keeps] {
        caught_up(follower, &owner);
        answers(follower, &payloads, 200);
        for payload in &payloads {
            let block = |node: &Node| node.server().get(&format!("/v1/blocks/{payload}")).body;
            assert_eq!(block(follower), block(&owner), "{payload}");
        }
        follower.stop();
        verified(follower);
        let copy = directory(follower);
        for payload in &payloads {
            assert!(record::content(&copy, payload) == record::content(owner.data(), payload), "{payload}");
        }
        record::check(&copy);
    }
    owner.ends_well();
}

#[test]
fn a_copy_goes_on_across_a_change_of_its_owners_key_and_takes_no_later_head_of_the_key_before() {
    let (mut owner, mut follower) = (Node::new(), Node::new());
    let shows = follower.entry(READS);
    owner.start("", &shows);
    follower.start("", &owner.dialled("follow = true"));
    owner.call("queue_stats", json!({}));
    let first = caught_up(&follower, &owner)["key"].as_str().expect("a key").to_owned();
    owner.stop();
    // Whoever has the key of before can go on with it, from before the change.
    let mut former = owner.copy();
    grow(&former, 100);
    let second = offline(&owner, &["key", "rotate"]).trim().to_owned();
    assert_ne!(second, first);

    owner.start("", &shows);
    assert!(owner.server().ready.contains(&second), "{}", owner.server().ready);
    let answer = owner.call("queue_stats", json!({}));
    let event = answer["result"]["_meta"]["io.cairn/event"].as_str().expect("an event").to_owned();
    // The connection may break and come back between the last event and the question.
    let held = until("the copy is followed on", || {
        let held = caught_up(&follower, &owner);
        (held["status"] == "following").then_some(held)
    });
    assert_eq!(held["key"], json!(second), "{held}");
    let path = format!("/v1/events/{event}");
    assert_eq!(follower.server().get(&path).body, owner.server().get(&path).body);
    // While more events are under way, the copy stands under no head that it holds whole.
    let receipt = until("the follower proves it", || {
        let receipt = follower.server().get(&format!("/v1/receipts/{event}"));
        (receipt.status == 200).then_some(receipt)
    });
    let file = follower.path("receipt.json");
    fs::write(&file, &receipt.body).expect("the directory can be written");
    for key in [&first, &second] {
        let mut verify = cairn(&["receipt", "verify", "--key", key]);
        verify.arg(&file);
        assert!(run(verify).succeeded().contains("verified"), "with {key}");
    }

    owner.stop();
    former.start("", &shows);
    let held = followed(&follower);
    assert!(former.events().len() as u64 > held["size"].as_u64().expect("a size"), "{held}");
    let refused = until("the head of the key before is refused", || {
        let said = |told: &Value| told["error"].as_str().is_some_and(|error| error.contains("not signed by"));
        Some(followed(&follower)).filter(said)
    });
    assert_eq!(refused["status"], "stalled", "{refused}");
    for what in ["key", "size", "signed"] {
        assert_eq!(refused[what], held[what], "{what}: {refused}");
    }
    assert!(follower.about(&owner.peer, "peer.forked").is_empty());
    former.stop();

    owner.start("", &shows);
    owner.call("queue_stats", json!({}));
    caught_up(&follower, &owner);
    owner.ends_well();
    follower.stop();
    verified(&follower);
    for key in [&first, &second] {
        let mut verify = cairn(&["log", "verify", "--key", key, "--data"]);
        verify.arg(directory(&follower));
        run(verify).succeeded();
    }
}
