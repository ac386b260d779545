//! Sources over real files and sockets, and the book as data.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, patch},
};
use serde_json::{Value, json};

use super::{
    Book, Configured, Found, LookError, Looked, Origin, Source, Wanted, ask, book, file::PeersFile,
    github::Github,
};
use crate::router::BoxFuture;

const A: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
const B: &str = "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust";
const NOW: u64 = 1_800_000_000_000;
const TTL_MS: u64 = 3_600_000;

fn found(peer: &str, origin: Origin, seen_ms: u64) -> Found {
    Found {
        peer: peer.to_owned(),
        addrs: vec!["/ip4/192.0.2.1/tcp/4001".to_owned()],
        capabilities: BTreeSet::from(["echo".to_owned()]),
        origin,
        seen_ms,
    }
}

fn entry(peer: &str, seen_ms: u64) -> Value {
    json!({"peer_id": peer, "multiaddrs": ["/ip4/192.0.2.1/tcp/4001"], "capabilities": ["echo"], "last_seen_ms": seen_ms})
}

fn names(looked: &Looked) -> Vec<&str> {
    looked.found.iter().map(|found| found.peer.as_str()).collect()
}

#[test]
fn one_peer_of_two_sources_is_one_entry() {
    let mut book = Book::new(TTL_MS);
    assert!(book.put(found(A, Origin::File, NOW - 10), NOW));
    let other = Found { addrs: vec!["/ip4/192.0.2.2/tcp/1".to_owned()], ..found(A, Origin::Dht, NOW - 5) };
    assert!(book.put(other, NOW));
    assert!(!book.put(found(A, Origin::File, NOW - 10), NOW), "nothing of it is new");
    let known = book.get(A).expect("it was put");
    assert_eq!(known.addrs, ["/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.2/tcp/1"]);
    assert_eq!((known.origin, known.seen_ms), (Origin::Dht, NOW - 5));
    assert_eq!(known.origins, BTreeSet::from([Origin::File, Origin::Dht]));
}

#[test]
fn what_nobody_confirms_is_dropped_and_the_future_is_now() {
    let mut book = Book::new(TTL_MS);
    assert!(!book.put(found(A, Origin::File, NOW - TTL_MS - 1), NOW), "it is past already");
    book.put(found(A, Origin::File, NOW + TTL_MS), NOW);
    assert_eq!(book.get(A).map(|known| known.seen_ms), Some(NOW));
    let every = BTreeSet::new();
    assert_eq!(book.with(&every, NOW + TTL_MS).len(), 1);
    assert_eq!(book.with(&every, NOW + TTL_MS + 1).len(), 0);
    assert_eq!((book.sweep(NOW + TTL_MS), book.sweep(NOW + TTL_MS + 1), book.len()), (0, 1, 0));
}

#[test]
fn all_capabilities_must_fit_and_the_book_is_bounded() {
    let mut book = Book::new(TTL_MS);
    book.put(found(A, Origin::File, NOW), NOW);
    let both = BTreeSet::from(["echo".to_owned(), "read".to_owned()]);
    assert_eq!(book.with(&both, NOW).len(), 0);
    book.offers(A, both.clone());
    assert_eq!(book.with(&both, NOW).len(), 1);
    for n in 0..book::PEERS_MAX {
        book.put(found(&format!("{n}"), Origin::Dht, NOW + 1), NOW + 1);
    }
    assert_eq!(book.len(), book::PEERS_MAX);
    assert!(book.get(A).is_none(), "whom nobody confirmed for longest is forgotten");
    let long =
        Found { addrs: vec![format!("/dns4/{}/tcp/1", "x".repeat(600))], ..found(B, Origin::Dht, NOW + 2) };
    book.put(long, NOW + 2);
    assert!(book.get(B).is_some_and(|known| known.addrs.is_empty()));
}

async fn look(source: &dyn Source) -> Result<Looked, LookError> {
    source.look(Wanted::default(), NOW).await
}

fn peers_file(directory: &Path) -> PeersFile {
    PeersFile::new(directory.join("peers.json"), TTL_MS)
}

#[tokio::test]
async fn a_bad_entry_of_a_file_hides_no_other() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = peers_file(directory.path());
    assert_eq!(look(&file).await, Ok(Looked::default()), "no file is no peers");
    let mut named_other = entry(A, NOW);
    named_other["multiaddrs"] = json!([format!("/ip4/192.0.2.1/tcp/1/p2p/{B}")]);
    let mut short_lived = entry(A, NOW - 2_000);
    short_lived["ttl_s"] = json!(1);
    let bad = json!([7, {}, entry("x", NOW), named_other, short_lived, entry(A, NOW), {"peer_id": B, "multiaddrs": "no"}]);
    std::fs::write(directory.path().join("peers.json"), bad.to_string())
        .expect("a file can be written there");
    let looked = look(&file).await.expect("it can be read");
    assert_eq!((names(&looked), looked.bad), (vec![A], 5));
    std::fs::write(directory.path().join("peers.json"), "{").expect("a file can be written there");
    let failed = look(&file).await.expect_err("it is no JSON").to_string();
    assert_eq!(failed, "the file of peers is not a JSON list of them");
}

#[tokio::test]
async fn many_announce_in_one_file_and_none_is_lost() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let directory = directory.path();
            scope.spawn(move || {
                let peer = format!("{}{n}", &A[..A.len() - 1]).replace('0', "z");
                for _ in 0..10 {
                    peers_file(directory)
                        .announce(&found(&peer, Origin::File, NOW))
                        .expect("it can be written");
                }
            });
        }
    });
    let file = peers_file(directory.path());
    assert_eq!(look(&file).await.expect("it is whole").found.len(), 8);
    file.announce(&found(B, Origin::File, NOW + TTL_MS + 1)).expect("it can be written");
    let later = file.look(Wanted::default(), NOW + TTL_MS + 1).await.expect("it is whole");
    assert_eq!(names(&later), [B], "entries past their time are gone");
    file.withdraw(B, NOW).expect("it can be written");
    assert!(look(&file).await.expect("it is whole").found.is_empty());
}

/// A source that never answers.
struct Silent;

impl Source for Silent {
    fn origin(&self) -> Origin {
        Origin::Mdns
    }

    fn look(&self, _: Wanted, _: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_source_that_hangs_holds_up_no_other() {
    let configured =
        Configured::new(&[format!("/ip4/192.0.2.1/tcp/1/p2p/{A}"), format!("/ip4/192.0.2.2/tcp/1/p2p/{A}")]);
    let sources: [Arc<dyn Source>; 2] = [Arc::new(configured), Arc::new(Silent)];
    let fared = ask(&sources, &Wanted::default(), NOW, Duration::from_millis(50)).await;
    assert_eq!(fared[&Origin::Mdns], Err(LookError::TimedOut));
    let nodes = fared[&Origin::Bootstrap].as_ref().expect("it answered");
    assert_eq!((names(nodes), nodes.found[0].addrs.len()), (vec![A], 2));
}

/// What a stand-in for the API holds: it behaves as the documents of the API say.
#[derive(Clone, Default)]
struct Api(Arc<std::sync::Mutex<Issues>>);

#[derive(Default)]
struct Issues {
    issues: Vec<Value>,
    requests: usize,
    version: usize,
    /// Answers left before the limit.
    left: Option<u64>,
}

async fn list(
    State(api): State<Api>,
    Query(query): Query<std::collections::HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let mut api = api.0.lock().expect("no handler panics");
    api.requests += 1;
    if let Some(left) = &mut api.left {
        if *left == 0 {
            let limits = [
                ("x-ratelimit-remaining", "0".to_owned()),
                ("x-ratelimit-reset", (NOW / 1_000 + 60).to_string()),
            ];
            return (
                StatusCode::FORBIDDEN,
                limits.map(|(name, value)| (header::HeaderName::from_static(name), value)),
                "{}",
            )
                .into_response();
        }
        *left -= 1;
    }
    let etag = format!("\"{}\"", api.version);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let page: usize = query["page"].parse().expect("a page is a number");
    let issues: Vec<Value> = api.issues.iter().skip((page - 1) * 100).take(100).cloned().collect();
    ([(header::ETAG, etag)], Value::from(issues).to_string()).into_response()
}

async fn create(State(api): State<Api>, headers: HeaderMap, body: String) -> Response {
    if headers.get(header::AUTHORIZATION).is_none_or(|token| token != "Bearer sesame") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut issue: Value = serde_json::from_str(&body).expect("a request's body is JSON");
    let mut api = api.0.lock().expect("no handler panics");
    issue["number"] = json!(api.issues.len());
    api.version += 1;
    api.issues.push(issue.clone());
    (StatusCode::CREATED, issue.to_string()).into_response()
}

async fn update(
    State(api): State<Api>,
    axum::extract::Path(number): axum::extract::Path<usize>,
    body: String,
) -> Response {
    let change: Value = serde_json::from_str(&body).expect("a request's body is JSON");
    let mut api = api.0.lock().expect("no handler panics");
    api.version += 1;
    api.issues[number]["body"] = change["body"].clone();
    StatusCode::OK.into_response()
}

async fn serve(api: Api) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let routes = Router::new()
        .route("/repos/o/r/issues", get(list).post(create))
        .route("/repos/o/r/issues/{number}", patch(update))
        .with_state(api);
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

fn issue(title: &str, body: &str) -> Value {
    json!({"number": 1, "title": title, "body": body, "labels": [{"name": "cairn-peer"}], "updated_at": "2027-01-15T08:00:00Z"})
}

#[tokio::test]
async fn a_registry_of_issues_is_read_over_its_pages() {
    let api = Api::default();
    {
        let mut issues = api.0.lock().expect("no handler panics");
        issues.issues.extend((0..100).map(|_| issue("Peer: nobody", "{}")));
        let fenced = format!("```json\n{}\n```", json!({"peer_id": B, "multiaddrs": []}));
        issues.issues.push(issue(&format!("Peer: {A}"), &entry(A, NOW).to_string()));
        issues.issues.push(issue(&format!("Peer: {B}"), &fenced));
        issues.issues.push(issue(&format!("Peer: {B}"), &entry(A, NOW).to_string()));
        issues.issues.push(json!({"number": "one"}));
    }
    let github = Github::new(&serve(api).await, "o/r", None, TTL_MS).expect("a client can be made");
    let looked = look(&github).await.expect("it answers");
    assert_eq!((names(&looked), looked.bad), (vec![A, B], 102));
    let refused = github.announce(&found(A, Origin::Github, NOW), NOW).await.expect_err("there is no token");
    assert_eq!(refused.to_string(), "announcing needs CAIRN_GITHUB_TOKEN");
}

#[tokio::test]
async fn a_change_on_a_later_page_is_seen_though_the_first_is_unchanged() {
    let api = Api::default();
    let issues = |last: &str| {
        let mut issues: Vec<Value> = (0..100).map(|_| issue("Peer: nobody", "{}")).collect();
        issues.push(issue(&format!("Peer: {last}"), &entry(last, NOW).to_string()));
        issues
    };
    let github = Github::new(&serve(api.clone()).await, "o/r", None, TTL_MS).expect("a client can be made");
    for last in [A, B] {
        // The version, and with it the tag of the first page, stays.
        api.0.lock().expect("no handler panics").issues = issues(last);
        assert_eq!(names(&look(&github).await.expect("it answers")), [last]);
    }
}

#[tokio::test]
async fn a_limited_registry_is_left_alone_and_an_unchanged_one_costs_nothing() {
    let api = Api::default();
    let token = Some("sesame".to_owned());
    let github = Github::new(&serve(api.clone()).await, "o/r", token, TTL_MS).expect("a client can be made");
    let own = found(A, Origin::Github, NOW);
    github.announce(&own, NOW).await.expect("it takes the token");
    github.announce(&Found { seen_ms: NOW + 5, ..own }, NOW + 5).await.expect("it takes the token");
    let looked = look(&github).await.expect("it answers");
    assert_eq!(
        (looked.found.len(), looked.found[0].seen_ms),
        (1, NOW + 5),
        "one issue a peer, kept up to date"
    );
    api.0.lock().expect("no handler panics").left = Some(1);
    look(&github).await.expect("one answer is left");
    let limited = look(&github).await.expect_err("the limit is reached");
    assert_eq!(limited, LookError::Limited(Duration::from_secs(60)));
    let requests = api.0.lock().expect("no handler panics").requests;
    assert_eq!(look(&github).await, Err(LookError::Limited(Duration::from_secs(60))));
    assert_eq!(api.0.lock().expect("no handler panics").requests, requests, "it is not asked again");
}
