//! The audit language: what its paths answer over a log that a real ledger wrote.
//!
//! Invariant: requests go through the router that is served, with the caller that its door would name.

use axum::{Router, body::Body};
use cairn::{
    audit::routes,
    block::{Cid, car, decode, payload::Payload},
    caller::{Caller, Scope},
    identity::Verifier,
    ledger::Command,
    questions::Audit,
    receipt::Receipt,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::Service;

use crate::{
    dag,
    questions::{Kept, actor},
};

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|err| panic!("{err}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// A runtime, and the routes as they are served.
struct Served {
    runtime: tokio::runtime::Runtime,
    router: Router,
}

impl Served {
    fn new(kept: &Kept) -> Self {
        let caller = Caller { actor: actor("auditor"), scopes: vec![Scope::Audit] };
        Self {
            runtime: tokio::runtime::Runtime::new().expect("a runtime"),
            router: routes(Audit::new(kept.ledger.clone())).layer(axum::Extension(caller)),
        }
    }

    fn ask(&self, request: Request<Body>) -> Answer {
        self.runtime.block_on(async {
            let Ok(response) = self.router.clone().call(request).await;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            Answer { status: parts.status, headers: parts.headers, body: body.to_vec() }
        })
    }

    fn get(&self, path: &str) -> Answer {
        self.with(path, &[])
    }

    fn with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(Request::get(path), |r, (n, v)| r.header(*n, *v));
        self.ask(request.body(Body::empty()).expect("a request"))
    }
}

#[test]
fn blocks_come_in_the_form_that_was_asked_for() {
    let mut kept = Kept::new();
    let call = kept.call("ada", r#"{"a":1}"#, None);
    let served = Served::new(&kept);
    let path = format!("/v1/events/{}", call.started.cid);
    let event = served.get(&path);
    assert_eq!(event.header("content-type"), "application/json");
    assert_eq!(event.header("etag"), format!("\"{}\"", call.started.cid));
    assert!(event.header("cache-control").contains("immutable"));
    assert_eq!(event.json()["kind"], "call.started");
    let raw = served.with(&path, &[("accept", "text/html;q=0.9, application/vnd.ipld.raw")]);
    assert!(call.started.cid.names(&raw.body));
    let shown = served.with(&path, &[("accept", "application/vnd.ipld.dag-json")]);
    assert_eq!(dag::block(&shown.json()).cid(), call.started.cid);
    assert_eq!(served.with(&path, &[("accept", "text/html")]).status, 406);
    let tag = event.header("etag").to_owned();
    let known = served.with(&path, &[("if-none-match", &tag)]);
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    let head = Request::head(&path).body(Body::empty()).expect("a request");
    let head = served.ask(head);
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let inline = served.get(&format!("{path}?payloads=inline"));
    assert_eq!(inline.json()["pay"][0]["content"]["a"], 1);
    assert_eq!(inline.header("cache-control"), "no-store");
    let payload = served.get(&format!("/v1/blocks/{}", call.input)).json();
    assert_eq!((payload["type"].as_str(), &payload["value"]["len"]), (Some("payload"), &7.into()));
    assert_eq!(payload["value"].get("content"), None);
}

#[test]
fn no_cache_may_keep_content_that_can_be_erased() {
    let mut kept = Kept::new();
    let large = format!("\"{}\"", "x".repeat(300_000));
    let call = kept.call("ada", &large, None);
    let contract = kept.publish("other");
    let served = Served::new(&kept);
    let raw = served.with(&format!("/v1/blocks/{}", call.input), &[("accept", "application/vnd.ipld.raw")]);
    let payload: Payload = decode(&raw.body).expect("a payload");
    let part = payload.parts.expect("it is large")[0];
    let cached = |path: &str, headers: &[(&str, &str)]| {
        let answer = served.with(path, headers);
        assert!(answer.status == 200 || answer.status == 304, "{path}: {}", answer.status);
        answer.header("cache-control").to_owned()
    };
    for (cid, content) in [(call.input, true), (part, true), (contract, false)] {
        let tag = format!("\"{cid}\"");
        let block = format!("/v1/blocks/{cid}");
        let gateway = format!("/ipfs/{cid}?format=raw");
        for form in ["application/vnd.ipld.raw", "application/vnd.ipld.dag-json"] {
            for (path, headers) in [
                (&block, vec![("accept", form)]),
                (&block, vec![("accept", form), ("if-none-match", &tag)]),
                (&gateway, vec![]),
                (&gateway, vec![("if-none-match", tag.as_str())]),
            ] {
                let said = cached(path, &headers);
                assert_eq!(said == "no-store", content, "{path} {headers:?}: {said}");
                assert_eq!(said.contains("immutable"), !content, "{path} {headers:?}: {said}");
            }
        }
    }
    assert_eq!(cached(&format!("/ipfs/{}?format=car", call.input), &[]), "no-store");
    let event = format!("/v1/events/{}", call.started.cid);
    assert!(cached(&event, &[("accept", "application/vnd.ipld.raw")]).contains("immutable"));
}

#[test]
fn what_cannot_be_answered_says_why() {
    let mut kept = Kept::new();
    let call = kept.call("ada", "1", None);
    let erase = Command::Erase { payload: call.input, basis: "test".to_owned(), actor: actor("operator") };
    kept.ledger.submit_blocking(erase).expect("it runs");
    let served = Served::new(&kept);
    let unknown = Cid::of(cairn::block::Codec::DagCbor, b"nothing");
    let upper = call.input.to_string().to_uppercase();
    let mut trailing = call.input.to_string();
    trailing.replace_range(58.., "b");
    let cases = [
        (format!("/v1/events/{unknown}"), 404),
        (format!("/v1/events/{}", call.input), 404),
        (format!("/v1/blocks/{unknown}"), 404),
        (format!("/v1/blocks/{}", call.input), 410),
        (format!("/ipfs/{}?format=raw", call.input), 410),
        (format!("/v1/blocks/{upper}"), 400),
        (format!("/v1/blocks/{trailing}"), 400),
        ("/v1/blocks/hello".to_owned(), 400),
        ("/v1/events?limit=0".to_owned(), 400),
        ("/v1/events?limit=1001".to_owned(), 400),
        ("/v1/events?colour=blue".to_owned(), 400),
        ("/v1/events?after=yesterday".to_owned(), 400),
        ("/v1/events?cursor=AAAAAAAAAAAAAAAAAAAAAA".to_owned(), 400),
        (format!("/v1/provenance/{unknown}"), 404),
        (format!("/v1/provenance/{}?depth=0", call.started.cid), 400),
        (format!("/v1/provenance/{}?direction=up", call.started.cid), 400),
        (format!("/v1/proof/{unknown}"), 404),
        ("/v1/consistency?old=3&new=2".to_owned(), 400),
        ("/v1/consistency?old=0&new=99".to_owned(), 400),
        ("/v1/consistency".to_owned(), 400),
        (format!("/v1/contracts/{}", call.output), 404),
        ("/v1/export?subject=nobody".to_owned(), 404),
        ("/v1/export?format=zip".to_owned(), 400),
        ("/log/tile/0/000.p/255".to_owned(), 404),
        ("/log/tile/0/0".to_owned(), 400),
        (format!("/ipfs/{}?format=raw&dag-scope=all", call.output), 400),
    ];
    for (path, status) in cases {
        let answer = served.get(&path);
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
        assert_eq!(answer.json()["status"], status, "{path}");
    }
}

#[test]
fn an_auditor_checks_the_log_with_what_is_served() {
    let mut kept = Kept::new();
    let first = kept.call("ada", "1", None);
    let call = kept.call("ada", "2", Some(first.ended.cid));
    let served = Served::new(&kept);
    let verifier = Verifier::from_vkey(&kept.ledger.about().vkey).expect("a key");

    let receipt = served.get(&format!("/v1/receipts/{}", call.ended.cid)).json();
    let verified = Receipt::read(receipt.to_string().as_bytes()).expect("a receipt").verify(&verifier);
    assert_eq!(verified.expect("it holds").size, 6);
    let note = String::from_utf8(served.get("/log/checkpoint").body).expect("text");
    let head = cairn::identity::open_checkpoint(&note, &verifier).expect("it is signed");
    assert_eq!(head.size, 6);
    let state = served.get("/v1/state").json();
    assert_eq!(state["root"], data_encoding::HEXLOWER.encode(&head.root));
    assert_eq!((&state["seq"], &state["counts"]["call.started"]), (&5.into(), &2.into()));
    let digests = state["digests"].as_object().expect("digests");
    assert!(["entry", "task", "tile"].iter().all(|table| digests.contains_key(*table)));
    assert_eq!(served.get("/log/tile/0/000.p/6").body.len(), 6 * 32);
    assert_eq!(served.get("/v1/consistency?old=3").json()["proof"].as_array().map(Vec::len), Some(4));

    let list = served.get("/v1/events?kind=call.started&limit=1").json();
    assert_eq!((&list["returned_count"], &list["has_more"]), (&1.into(), &true.into()));
    let cursor = list["next_cursor"].as_str().expect("more");
    let list = served.get(&format!("/v1/events?kind=call.started&limit=1&cursor={cursor}")).json();
    assert_eq!(list["events"][0]["seq"], 4);
    assert_eq!(list["has_more"], false);
    let contracts = served.get("/v1/contracts").json();
    let contract = contracts["contracts"][0]["cid"].as_str().expect("a name").to_owned();
    let contract = served.get(&format!("/v1/contracts/{contract}")).json();
    assert_eq!(contract["input"]["type"], "object");

    let walk = format!("/v1/provenance/{}", call.ended.cid);
    assert_eq!(served.get(&walk).json()["truncated"], false);
    let dot = String::from_utf8(served.get(&format!("{walk}?format=dot")).body).expect("text");
    assert!(dot.starts_with("digraph") && dot.contains("call.succeeded"), "{dot}");
    let mermaid = served.get(&format!("{walk}?format=mermaid")).body;
    assert!(mermaid.starts_with(b"flowchart"));
    assert_eq!(blocks(&served.get(&format!("{walk}?format=car")).body).len(), 9);
}

#[test]
fn archives_hold_what_they_are_named_for_and_exports_are_recorded() {
    let mut kept = Kept::new();
    let call = kept.call("ada", "1", None);
    let served = Served::new(&kept);
    let ipfs = format!("/ipfs/{}", call.ended.cid);
    let raw = served.with(&ipfs, &[("accept", "application/vnd.ipld.raw")]);
    assert!(call.ended.cid.names(&raw.body));
    assert_eq!(blocks(&served.get(&format!("{ipfs}?format=car")).body), [call.ended.cid]);
    // The whole log hangs on its last event: four events, a genesis, a contract, two payloads.
    let all = served.get(&format!("{ipfs}?format=car&dag-scope=all"));
    assert_eq!(blocks(&all.body).len(), 8);
    let export = served.get("/v1/export?format=car");
    assert_eq!(blocks(&export.body).len(), 9);
    let lines = served.get(&format!("/v1/export?format=jsonl&cid={}", call.ended.cid));
    assert_eq!(String::from_utf8(lines.body).expect("text").lines().count(), 2);
    let recorded = served.get("/v1/events?kind=access.exported").json();
    assert_eq!(recorded["returned_count"], 2);
    assert_eq!(recorded["events"][0]["actor"]["id"], "auditor");
    assert_eq!(recorded["events"][0]["body"]["to_seq"], 3);
}

fn blocks(archive: &[u8]) -> Vec<Cid> {
    let limits = car::Limits { section_max: car::SECTION_MAX, total_max: u64::MAX };
    let reader = car::Reader::new(archive, limits).expect("an archive");
    reader.map(|section| section.expect("a block").0).collect()
}

#[test]
fn the_stream_goes_on_where_its_reader_left_it() {
    let mut kept = Kept::new();
    kept.call("ada", "1", None);
    let served = Served::new(&kept);
    let open = |headers: &[(&str, &str)]| {
        let request =
            headers.iter().fold(Request::get("/v1/events/stream?from_seq=1"), |r, (n, v)| r.header(*n, *v));
        let request = request.body(Body::empty()).expect("a request");
        served.runtime.block_on(async {
            let Ok(response) = served.router.clone().call(request).await;
            response.into_body()
        })
    };
    let next = |body: &mut Body| -> Vec<u64> {
        let frame = served.runtime.block_on(async {
            let wait = std::time::Duration::from_secs(60);
            tokio::time::timeout(wait, body.frame()).await.expect("in time")
        });
        let frame = frame.expect("more").expect("a frame").into_data().expect("data");
        let text = String::from_utf8(frame.to_vec()).expect("text");
        text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect()
    };
    let mut first = open(&[]);
    assert_eq!(next(&mut first), [1, 2, 3]);
    let mut second = open(&[("last-event-id", "2")]);
    assert_eq!(next(&mut second), [3]);
    kept.publish("more");
    assert_eq!(next(&mut first), [4]);
    assert_eq!(next(&mut second), [4]);
}
