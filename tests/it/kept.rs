//! What is on record of how a log is kept, seen at the doors: tokens, settings, reads, refusals and the salt key.

use std::{fs, path::Path};

use cairn::event::{Body, Event, keeping::Reason};
use serde_json::json;

use crate::{
    harness::{Ran, Server, cairn, run, temp},
    record::{events, kind, until},
    speech::{self, keyed},
    upstream::serve,
};

const STATIC: &str = "[auth]\nmode = \"static\"\n";

fn command(data: &Path, args: &[&str]) -> Ran {
    let mut command = cairn(args);
    command.arg("--data").arg(data);
    run(command)
}

fn token(data: &Path, name: &str, scopes: &[&str]) -> String {
    let mut args = vec!["token", "add", name];
    for scope in scopes {
        args.extend(["--scope", scope]);
    }
    command(data, &args).succeeded().trim().to_owned()
}

/// The events of these kinds, in order.
fn of(data: &Path, kinds: &[&str]) -> Vec<Event> {
    events(data).into_iter().filter(|event| kinds.contains(&kind(event))).collect()
}

fn ask(server: &Server, token: Option<&str>, path: &str) -> u16 {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    server.send("GET", path, &headers, b"").status
}

/// Tokens from before the log, made and revoked beside a running server, and taken out of the file by hand.
#[test]
fn tokens_are_on_record_however_they_came_and_went() {
    let data = temp();
    let early = token(data.path(), "early", &["audit:read"]);
    let server = serve(data.path(), STATIC);
    let of_tokens = || of(data.path(), &["token.added", "token.revoked"]);
    let names = |events: &[Event]| -> Vec<String> {
        let name = |event: &Event| match event.body() {
            Some(Body::TokenAdded(facts)) => format!("+{} by {}", facts.name, event.fields().actor.id),
            Some(Body::TokenRevoked(_)) => format!("-{}", event.fields().actor.id),
            _ => String::new(),
        };
        events.iter().map(name).collect()
    };
    assert_eq!(names(&of_tokens()), ["+early by cairn"]);
    let late = token(data.path(), "late", &["mcp:call"]);
    assert_eq!(names(&of_tokens()), ["+early by cairn", "+late by local"]);
    let late_id = of_tokens()[1].fields().subject.trim_start_matches("token/").to_owned();
    command(data.path(), &["token", "revoke", &late_id]).succeeded();
    assert_eq!(names(&of_tokens()).last().map(String::as_str), Some("-local"));
    fs::write(data.path().join("tokens.json"), "[]").expect("the file can be written");
    until("the token that was taken out of the file", || (of_tokens().len() == 4).then_some(()));
    assert_eq!(names(&of_tokens()).last().map(String::as_str), Some("-cairn"));
    assert!(server.stop().success());
    // No token and no digest of one is anywhere in the log.
    let tokens = [early, late];
    for event in events(data.path()) {
        let text = String::from_utf8_lossy(event.bytes()).into_owned();
        assert!(tokens.iter().all(|token| !text.contains(token.as_str())));
    }
}

/// A call under an idempotency key, which is answered.
fn called(server: &Server, key: &str) {
    let answer = speech::ask(server, "tools/call", keyed("queue_stats", &json!({}), key));
    assert!(answer["result"].is_object(), "{answer}");
}

#[test]
fn refusals_and_reads_are_counted_by_principal_and_settings_stand_beside_them() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    called(&server, "k1");
    let ended = until("the call's events", || of(data.path(), &["call.succeeded"]).pop());
    let named = format!("/v1/events/{}", ended.cid());
    assert_eq!(ask(&server, None, &format!("{named}?payloads=inline")), 200);
    assert!(server.stop().success());
    let read = of(data.path(), &["access.read"]);
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].fields().actor.id, "local");
    assert!(matches!(read[0].body(), Some(Body::AccessRead(facts)) if facts.reads == 1));
    assert!(of(data.path(), &["config.applied"]).is_empty(), "nobody changed a setting");

    let auditor = token(data.path(), "auditor", &["audit:read"]);
    let server = serve(data.path(), STATIC);
    for _ in 0..3 {
        assert_eq!(ask(&server, Some("cairn_wrong"), &named), 401);
    }
    assert_eq!(ask(&server, None, &named), 401);
    assert_eq!(ask(&server, Some(&auditor), &named), 200);
    assert_eq!(ask(&server, Some(&auditor), "/mcp"), 403);
    let payload = ended.fields().pay[0].cid;
    let raw = format!("/ipfs/{payload}?format=raw");
    for _ in 0..2 {
        assert_eq!(ask(&server, Some(&auditor), &raw), 200);
    }
    assert!(server.stop().success());
    // Counts of two minutes are two events; they are added up here.
    let refusals = |reason: Reason| -> (u64, String) {
        let mut found = (0, String::new());
        for event in of(data.path(), &["access.refused"]) {
            if let Some(Body::AccessRefused(facts)) = event.body()
                && facts.reason == reason
            {
                found = (found.0 + facts.refusals, event.fields().actor.id.clone());
            }
        }
        found
    };
    assert_eq!(refusals(Reason::Invalid), (3, "unknown".to_owned()));
    assert_eq!(refusals(Reason::Missing), (1, "unknown".to_owned()));
    assert_eq!(refusals(Reason::Scope), (1, "auditor".to_owned()));
    let reads: u64 = of(data.path(), &["access.read"])
        .iter()
        .filter(|event| event.fields().actor.id == "auditor")
        .filter_map(|event| match event.body() {
            Some(Body::AccessRead(facts)) => Some(facts.reads),
            _ => None,
        })
        .sum();
    assert_eq!(reads, 2);
    let applied = of(data.path(), &["config.applied"]);
    assert_eq!(applied.len(), 1);
    let Some(Body::ConfigApplied(facts)) = applied[0].body() else { panic!("its kind says so") };
    assert_eq!(facts.settings.get("auth.mode").map(String::as_str), Some("static"));
}

/// Another valid key would make every idempotency key unknown, so that calls ran twice.
#[test]
fn an_exchanged_salt_key_is_a_refusal_to_start_and_to_join() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    called(&server, "k1");
    let key = data.path().join("keys/salt.key");
    let own = fs::read(&key).expect("the key is there");
    fs::write(&key, format!("{}\n", "cd".repeat(32))).expect("the key can be written");
    let says = "the salt key does not fit the log; restore keys/salt.key";
    let joined = command(data.path(), &["call", "queue_stats"]);
    assert!(!joined.status.success() && joined.stderr.contains(says), "{joined:?}");
    assert!(server.stop().success());
    let before = events(data.path()).len();
    let started = command(data.path(), &["serve", "--listen", "127.0.0.1:0"]);
    assert!(!started.status.success() && started.stderr.contains(says), "{started:?}");
    assert_eq!(events(data.path()).len(), before);
    fs::write(&key, own).expect("the key can be written");
    let server = Server::start(data.path(), &[]);
    called(&server, "k1");
    assert!(server.stop().success());
    assert_eq!(of(data.path(), &["call.started"]).len(), 1, "the call ran once");
}

/// Receipts from before and after, the checks of the log, and the server go on across a change of keys.
#[test]
fn a_log_goes_on_across_a_change_of_its_key() {
    let data = temp();
    let said = |args: &[&str]| command(data.path(), args);
    let receipt = |name: &str, event: &Event| {
        let file = data.path().join(name);
        let path = file.to_str().expect("temporary paths are text").to_owned();
        said(&["receipt", &event.cid().to_string(), "--output", &path]).succeeded();
        path
    };
    let key = || {
        let shown: serde_json::Value =
            serde_json::from_str(&said(&["key", "--json"]).succeeded()).expect("json");
        shown
    };
    let server = Server::start(data.path(), &[]);
    called(&server, "k1");
    let refused = said(&["key", "rotate"]);
    assert!(!refused.status.success() && refused.stderr.contains("in use by"), "{refused:?}");
    assert!(server.stop().success());
    let (old, first) = (key(), of(data.path(), &["call.succeeded"]).remove(0));
    let before = receipt("before.json", &first);
    let new = said(&["key", "rotate"]).succeeded().trim().to_owned();
    let server = Server::start(data.path(), &[]);
    assert!(server.ready.contains(&new), "{}", server.ready);
    called(&server, "k2");
    assert!(server.stop().success());
    let last = of(data.path(), &["call.succeeded"]).pop().expect("two calls");
    let after = receipt("after.json", &last);
    let old_key = old["key"].as_str().expect("a key").to_owned();
    for (file, vkey) in [(&before, &old_key), (&after, &old_key), (&after, &new)] {
        let mut check = cairn(&["receipt", "verify", file.as_str(), "--key", vkey.as_str()]);
        check.current_dir(data.path());
        assert!(run(check).succeeded().contains("verified"), "{file} with {vkey}");
    }
    let now = key();
    assert_eq!(now["key"], new);
    assert_eq!((&now["log"], &now["origin"], &now["peer"]), (&old["log"], &old["origin"], &old["peer"]));
    assert_eq!(now["former"][0]["key"], old_key);
    for vkey in [&old_key, &new] {
        assert!(said(&["log", "verify", "--key", vkey]).succeeded().contains("verified"));
    }
    assert_eq!(of(data.path(), &["log.key_rotated"]).len(), 1);
}
