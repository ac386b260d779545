//! The audit API from outside: what an auditor asks for over HTTP, checked with programs that are not ours.

use std::fs;

use cairn::block::{Cid, Codec};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Reply, Server, node, python, temp},
    record,
    speech::{Connection, call, event, modern, result},
};

/// Enough for a whole tile of 256 and a part of the next.
const CALLS: u64 = 150;

/// A server with some calls behind it.
struct Audited {
    server: Server,
    data: TempDir,
    /// The ending of each call.
    events: Vec<String>,
}

fn audited(calls: u64) -> Audited {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let events = (0..calls).map(|n| {
        let params = call("test_simple_text", &json!({"n": n}));
        event(&connection.request(n, "tools/call", params)).to_owned()
    });
    let events = events.collect();
    Audited { server, data, events }
}

fn get(server: &Server, path: &str) -> Value {
    let reply = server.get(path);
    let errors = server.process.errors();
    assert_eq!(reply.status, 200, "{path}: {}\n{errors}", reply.text());
    reply.json()
}

/// A problem document of this status.
fn problem(reply: &Reply, status: u16) -> String {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let problem = reply.json();
    assert_eq!(problem["status"], status);
    problem["detail"].to_string()
}

fn cids(page: &Value) -> Vec<String> {
    let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
    assert_eq!(page["returned_count"], events.len());
    events.iter().filter_map(|event| event["cid"].as_str()).map(str::to_owned).collect()
}

#[test]
fn pages_hold_every_event_once_while_others_write() {
    let Audited { server, data, events } = audited(12);
    let mut seen = Vec::new();
    let mut path = "/v1/events?limit=7".to_owned();
    loop {
        let page = get(&server, &path);
        seen.extend(cids(&page));
        if seen.len() < 30 {
            result(&server, "test_simple_text", json!({"between": "pages"}));
        }
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(page["has_more"], false);
            break;
        };
        assert_eq!(page["has_more"], true);
        path = format!("/v1/events?limit=7&cursor={cursor}");
    }
    assert!(events.iter().all(|event| seen.contains(event)));
    let cursor = path.split("cursor=").nth(1).expect("there was a second page");
    for (query, detail) in [
        (format!("kind=call.started&cursor={cursor}"), "cursor"),
        ("cursor=nonsense".to_owned(), "cursor"),
        ("limit=0".to_owned(), "limit"),
        ("limit=1001".to_owned(), "limit"),
        ("limit=many".to_owned(), ""),
        ("sort=asc".to_owned(), "sort"),
        ("after=yesterday".to_owned(), ""),
    ] {
        let said = problem(&server.get(&format!("/v1/events?{query}")), 400);
        assert!(said.contains(detail), "{query}: {said}");
    }
    assert!(server.stop().success());
    let stored: Vec<String> =
        record::check(data.path()).iter().map(|event| event.cid().to_string()).collect();
    assert_eq!(seen, stored);
}

#[test]
fn filters_find_what_an_event_says_of_itself() {
    let Audited { server, events, data: _data } = audited(3);
    let last = get(&server, &format!("/v1/events/{}", events[2]));
    assert_eq!(last["cid"], events[2].as_str());
    assert_eq!(last["kind"], "call.succeeded");
    let link = |value: &Value| value["/"].as_str().unwrap_or_else(|| panic!("no link: {value}")).to_owned();
    let subject = last["subject"].as_str().expect("an event has a subject");
    let one = cids(&get(&server, &format!("/v1/events?subject={subject}")));
    assert_eq!(one, [link(&last["cause"]), events[2].clone()]);
    let payload = link(&last["pay"][0]["cid"]);
    for (query, count) in [
        ("kind=call.succeeded".to_owned(), 3),
        ("kind=call.failed".to_owned(), 0),
        ("tool=test_simple_text&kind=call.started".to_owned(), 3),
        (format!("contract={}&kind=call.succeeded", link(&last["tool"])), 3),
        (format!("payload={payload}"), 3),
        (format!("from_seq={}", last["seq"]), 1),
        ("actor=nobody".to_owned(), 0),
        ("before=2020-01-01T00:00:00Z".to_owned(), 0),
    ] {
        assert_eq!(cids(&get(&server, &format!("/v1/events?{query}"))).len(), count, "{query}");
    }
    assert_eq!(last["pay"][0]["media"], "application/json");
    let inline = get(&server, &format!("/v1/events/{}?payloads=inline", events[2]));
    assert!(inline["pay"][0].to_string().contains("simple text response"), "{inline}");
}

#[test]
fn names_that_make_no_sense_are_400_and_unknown_ones_404() {
    let Audited { server, events, data: _data } = audited(1);
    let good = &events[0];
    let unknown = Cid::of(Codec::DagCbor, b"nobody has this").to_string();
    let last = good.chars().next_back().expect("a cid is not empty");
    // 36 bytes leave two bits over in the last of 58 digits; set, they name nothing.
    const DIGITS: &str = "abcdefghijklmnopqrstuvwxyz234567";
    let value = DIGITS.find(last).expect("a cid is base32");
    let spare = DIGITS.chars().nth(value | 1).expect("five bits");
    let trailing = format!("{}{spare}", &good[..good.len() - 1]);
    assert_ne!(&trailing, good, "the spare bits of a good cid are zero");
    for path in ["events", "blocks", "provenance", "proof", "receipts"] {
        for bad in [
            trailing.as_str(),
            &good.to_uppercase(),
            &format!("{good}a"),
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
            "x",
        ] {
            problem(&server.get(&format!("/v1/{path}/{bad}")), 400);
        }
        problem(&server.get(&format!("/v1/{path}/{unknown}")), 404);
    }
    problem(&server.get(&format!("/ipfs/{trailing}")), 400);
    problem(&server.get(&format!("/ipfs/{unknown}")), 404);
    let said = problem(&server.get("/v1/events?kind=call.suceeded"), 400);
    assert!(said.contains("`call.succeeded`"), "{said}");
    problem(&server.get("/v1/nothing"), 404);
    problem(&server.send("POST", "/v1/events", &[], b""), 405);
}

#[test]
fn an_event_is_served_as_its_bytes_and_never_twice() {
    let Audited { server, events, data: _data } = audited(1);
    let path = format!("/v1/events/{}", events[0]);
    let tag = format!("\"{}\"", events[0]);
    for form in ["application/json", "application/vnd.ipld.dag-json", "application/vnd.ipld.raw"] {
        let reply = server.send("GET", &path, &[("accept", form)], b"");
        assert_eq!(reply.header("etag"), Some(tag.as_str()));
        assert!(reply.header("cache-control").is_some_and(|cache| cache.contains("immutable")));
        assert_eq!(reply.header("content-type"), Some(form));
        if form.ends_with("raw") {
            assert_eq!(Cid::of(Codec::DagCbor, &reply.body).to_string(), events[0]);
        }
        let again = server.send("GET", &path, &[("accept", form), ("if-none-match", &tag)], b"");
        assert_eq!((again.status, again.body.len()), (304, 0));
    }
    problem(&server.send("GET", &path, &[("accept", "image/png")], b""), 406);
    let block = server.get(&format!("/ipfs/{}?format=raw", events[0]));
    assert_eq!(Cid::of(Codec::DagCbor, &block.body).to_string(), events[0]);
}

#[test]
fn a_stream_goes_on_where_its_reader_left_it() {
    let Audited { server, data, events } = audited(5);
    let stored = record::events(data.path());
    let open = |path: &str, headers: &[(&str, &str)]| {
        let mut connection = Connection::open(&server.url).expect("the server listens");
        connection.stream(path, headers);
        connection
    };
    let last = &events[4];
    let whole = open("/v1/events/stream?from_seq=0", &[]).until(&format!(r#""cid":"{last}""#));
    for event in &stored {
        assert!(
            whole.contains(&format!(r#""cid":"{}""#, event.cid())),
            "{} is not in the stream",
            event.cid()
        );
    }
    let seen = stored.len() - 2;
    let mut again = open("/v1/events/stream?from_seq=0", &[("last-event-id", &(seen - 1).to_string())]);
    let rest = again.until(&format!(r#""cid":"{last}""#));
    assert!(rest.starts_with(&format!("id: {seen}\n")), "{rest}");
    let mut live = open("/v1/events/stream", &[]);
    let answer = result(&server, "test_simple_text", json!({"n": "new"}));
    let new = answer["_meta"]["io.cairn/event"].as_str().expect("a result names its event");
    for stream in [&mut again, &mut live] {
        stream.until(&format!(r#""cid":"{new}""#));
    }
    let bad = server.send("GET", "/v1/events/stream", &[("last-event-id", "x")], b"");
    problem(&bad, 400);
}

/// What a check of `tests/clients` says of a file.
fn checked(said: &str) -> Value {
    let report: Value = serde_json::from_str(said).unwrap_or_else(|err| panic!("{err}: {said}"));
    if let Some(skipped) = report["skipped"].as_array() {
        assert!(skipped.is_empty(), "every check has its package: {report}");
    }
    report
}

#[test]
fn proofs_tiles_and_archives_convince_programs_that_are_not_ours() {
    let Audited { server, data, events } = audited(CALLS);
    let state = get(&server, "/v1/state");
    let key = state["key"].as_str().expect("the state names the key");
    assert!(server.ready.contains(key), "the ready line names the same");
    let log = checked(&python("check_log.py", &[&format!("{}/log", server.url), key]).succeeded());
    assert_eq!(log["size"], state["size"], "{log}");
    assert!(log["size"].as_u64() > Some(256), "{log}");

    let files = temp();
    let file = |name: &str, reply: Reply| {
        assert_eq!(reply.status, 200, "{name}: {}", String::from_utf8_lossy(&reply.body));
        let path = files.path().join(name);
        fs::write(&path, reply.body).expect("the directory can be written");
        path.to_str().expect("temporary paths are text").to_owned()
    };
    for (n, event) in [(0, &events[0]), (1, &events[149])] {
        let receipt = file(&format!("{n}.json"), server.get(&format!("/v1/receipts/{event}")));
        let report = checked(&python("check_receipt.py", &[&receipt, key]).succeeded());
        assert_eq!(report["origin"], state["origin"]);
        let text = fs::read_to_string(&receipt).expect("it was just written");
        let other = text.replacen(event.as_str(), &events[70], 1);
        fs::write(&receipt, other).expect("the directory can be written");
        assert!(
            !python("check_receipt.py", &[&receipt, key]).status.success(),
            "a changed receipt proves nothing"
        );
    }
    let proof = get(&server, &format!("/v1/proof/{}", events[3]));
    assert!(proof["proof"].is_array() || proof["hashes"].is_array(), "{proof}");
    let consistency = server.get("/v1/consistency?old=10");
    assert_eq!(consistency.status, 200, "{}", consistency.text());
    problem(&server.get("/v1/consistency?old=100000"), 400);

    let one = &get(&server, &format!("/v1/events/{}", events[9]))["subject"];
    let subject = one.as_str().expect("an event has a subject");
    for (name, path, least) in [
        ("all.car", "/v1/export?format=car".to_owned(), 300),
        ("one.car", format!("/v1/export?format=car&subject={subject}"), 2),
        ("walk.car", format!("/v1/provenance/{}?format=car", events[9]), 2),
        ("block.car", format!("/ipfs/{}?format=car", events[9]), 1),
        ("dag.car", format!("/ipfs/{}?format=car&dag-scope=all", events[9]), 2),
    ] {
        let car = file(name, server.get(&path));
        let report = checked(&node("check_car.mjs", &[&car]).succeeded());
        assert!(report["events"].as_u64() >= Some(least), "{name}: {report}");
        let exported = path.starts_with("/v1/export");
        let proven = if exported { &report["events"] } else { &json!(0) };
        assert_eq!(&report["proven"], proven, "{name}: every event of an export is under one head: {report}");
    }
    let lines = server.get("/v1/export?format=jsonl");
    assert!(lines.text().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(lines.text().contains(&events[9]));
    let prov = server.get(&format!("/v1/export?format=prov-json&subject={subject}"));
    let prov: Value = serde_json::from_str(prov.text()).expect("prov-json is json");
    assert!(
        prov["activity"].is_object() && prov["used"].is_object() && prov["wasGeneratedBy"].is_object(),
        "{prov}"
    );
    assert!(server.stop().success());
    let events = record::check(data.path());
    assert!(events.iter().any(|event| record::kind(event) == "access.exported"), "exports are on record");
}

#[test]
fn a_walk_names_what_an_answer_came_from() {
    let Audited { server, data: _data, .. } = audited(2);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    let params = call("tools_dispatch", &json!({"tool": "test_simple_text", "params": {}}));
    let answer = connection.ask(&modern(1, "tools/call", params)).expect("the server answers").json();
    let outer = event(&answer).to_owned();
    let meta = &answer["result"]["_meta"];
    let walk = get(&server, &format!("/v1/provenance/{outer}?direction=ancestors"));
    for name in ["io.cairn/contract", "io.cairn/output", "io.cairn/event"] {
        let cid = meta[name].as_str().expect("a result names its blocks");
        assert!(walk.to_string().contains(cid), "{name} is not in {walk}");
    }
    let started = get(&server, &format!("/v1/events/{outer}"))["cause"]["/"].as_str().map(str::to_owned);
    let started = started.expect("an ending names its start");
    let down = get(&server, &format!("/v1/provenance/{started}?direction=descendants"));
    assert!(down.to_string().contains(&outer), "{down}");
    let inner = cids(&get(&server, "/v1/events?tool=test_simple_text&kind=call.started"));
    assert!(down.to_string().contains(&inner[2]), "the dispatched call came of it: {down}");
    let short = get(&server, &format!("/v1/provenance/{started}?direction=descendants&limit=1"));
    assert_eq!(short["truncated"], true, "{short}");
    for (format, word) in [("dot", "digraph"), ("mermaid", "flowchart")] {
        let graph = server.get(&format!("/v1/provenance/{outer}?format={format}"));
        assert!(graph.status == 200 && graph.text().contains(word), "{}", graph.text());
    }
    for query in ["direction=up", "depth=0", "limit=1001", "format=png"] {
        problem(&server.get(&format!("/v1/provenance/{outer}?{query}")), 400);
    }
}
