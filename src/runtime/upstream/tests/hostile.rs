//! Servers with one fault each: it costs only what it touches.
//!
//! Invariants:
//! - what is to end at once is told apart from what a timeout ends by a wide margin.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{PATIENCE, call, odd, ready, script, text, web};
use crate::runtime::upstream::{Failure, Protocol, Reply, State, Upstream};

/// What a request that ends at once may take on a busy machine; what waits for a timeout takes `PATIENCE`.
const AT_ONCE: Duration = Duration::from_secs(20);

/// An upstream at `tests/hostile.py` with these faults, and the server.
async fn hostile(faults: &[&str]) -> (Upstream, Child) {
    let mut command = Command::new("python3");
    command.arg(script("hostile.py")).args(faults).stdout(Stdio::piped()).kill_on_drop(true);
    let mut server = command.spawn().expect("python3 runs");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let port = lines.next_line().await.expect("readable").expect("it says its port");
    (Upstream::start(web(format!("http://127.0.0.1:{port}/mcp"))), server)
}

/// How often each method was asked.
async fn counts(upstream: &Upstream) -> Value {
    let told: Value = serde_json::from_str(&text(&call(upstream, "counts", json!({})).await)).expect("json");
    told["counts"].clone()
}

#[tokio::test]
async fn a_side_list_that_fails_costs_only_itself() {
    let bad = [
        r#""error":{"code":-32603}"#,
        r#""error":{"code":"-32603","message":"no"}"#,
        r#""result":null"#,
        r#""result":{}"#,
        r#""result":{"prompts":null,"resources":null,"resourceTemplates":null}"#,
        r#""result":{"prompts":{},"resources":"","resourceTemplates":1}"#,
        "silent",
    ];
    for said in bad {
        let began = Instant::now();
        let sides = ["prompts", "resources", "templates"].map(|side| format!("{side}={said}"));
        let (upstream, _server) = hostile(&sides.each_ref().map(|side| side.as_str())).await;
        let offered = ready(&upstream).await;
        assert_eq!(offered.tools.len(), 1, "{said}");
        assert!(offered.prompts.is_empty() && offered.resources.is_empty(), "{said}");
        assert!(call(&upstream, "any", json!({})).await.is_ok(), "{said}");
        assert!(began.elapsed() < AT_ONCE, "{said} delays the tools");
        upstream.stop().await;
    }
}

#[tokio::test]
async fn a_side_list_that_failed_is_fetched_again() {
    let (upstream, _server) = hostile(&["prompts=\"result\":null", "once"]).await;
    let offered = ready(&upstream).await;
    assert_eq!((offered.resources.len(), offered.templates.len()), (1, 1));
    let mut offer = upstream.offer();
    let later = timeout(PATIENCE, offer.wait_for(|offered| !offered.prompts.is_empty())).await;
    assert_eq!(later.expect("in time").expect("alive").state, State::Ready);
    assert_eq!(counts(&upstream).await["tools/list"], 1, "the others are not");
    upstream.stop().await;
}

#[tokio::test]
async fn a_list_ends_where_it_repeats_and_items_that_are_none_are_left_out() {
    for (faults, tools) in [
        (["cursor=empty"], 1),
        (["cursor=null"], 1),
        (["cursor=same"], 2),
        (["pages=tools"], 3),
        ([r#"items=[null, 7, "x", [], {"name": "more"}]"#], 2),
    ] {
        let (upstream, _server) = hostile(&faults).await;
        assert_eq!(ready(&upstream).await.tools.len(), tools, "{faults:?}");
        upstream.stop().await;
    }
}

#[tokio::test]
async fn named_events_and_events_that_are_no_message_are_skipped() {
    let (upstream, _server) = hostile(&["events"]).await;
    ready(&upstream).await;
    assert_eq!(counts(&upstream).await["tools/list"], 1);
    upstream.stop().await;
}

#[tokio::test]
async fn a_refused_session_is_opened_once_for_all_and_requests_run_once() {
    let named = ["400", "404", "410", "503"].map(|status| (status, "named=any"));
    for (status, more) in named.into_iter().chain([("400", "bare"), ("404", "bare")]) {
        let (upstream, _server) = hostile(&[&format!("refuses={status}"), more]).await;
        ready(&upstream).await;
        assert!(call(&upstream, "forget", json!({})).await.is_ok());
        let calls = (0..8).map(|_| call(&upstream, "run", json!({})));
        for answer in futures_util::future::join_all(calls).await {
            assert!(matches!(answer, Ok(Reply::Result(_))), "{status} {more}: {answer:?}");
        }
        let counts = counts(&upstream).await;
        assert_eq!(
            (&counts["initialize"], &counts["runs"]),
            (&json!(2), &json!(9)),
            "{status} {more}: {counts}"
        );
        upstream.stop().await;
    }
}

#[tokio::test]
async fn a_request_that_is_always_refused_costs_no_session() {
    for status in ["400", "410", "503"] {
        let (upstream, _server) = hostile(&[&format!("refuses={status}"), "never=poor"]).await;
        ready(&upstream).await;
        for _ in 0..3 {
            let refused = call(&upstream, "poor", json!({})).await;
            assert!(matches!(refused, Err(Failure::Unavailable { .. })), "{status}: {refused:?}");
        }
        let counts = counts(&upstream).await;
        assert_eq!(
            (&counts["initialize"], &counts["tools/call"]),
            (&json!(1), &json!(7)),
            "{status}: {counts}"
        );
        upstream.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_at_once_costs_no_reading_of_lists_a_second() {
    let (upstream, _server) = hostile(&["ends"]).await;
    ready(&upstream).await;
    // Eight openings take about six seconds, for the pause doubles.
    let mut seen = counts(&upstream).await;
    let began = Instant::now();
    while seen["GET"].as_u64() < Some(8) {
        assert!(began.elapsed() < PATIENCE, "{seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen = counts(&upstream).await;
    }
    assert!(began.elapsed() > Duration::from_secs(3), "the stream is opened ever more rarely");
    assert_eq!(seen["tools/list"], 2, "at first, and after the first reopening: {seen}");
    upstream.stop().await;
}

#[tokio::test]
async fn packed_answers_are_read_within_the_bound() {
    for pack in ["gzip", "deflate"] {
        for events in [None, Some("events")] {
            let faults: Vec<String> =
                [format!("pack={pack}")].into_iter().chain(events.map(str::to_owned)).collect();
            let (upstream, _server) = hostile(&faults.iter().map(String::as_str).collect::<Vec<_>>()).await;
            ready(&upstream).await;
            assert_eq!(counts(&upstream).await["tools/list"], 1);
            let vast = call(&upstream, "vast", json!({})).await;
            assert_eq!(vast.err(), Some(Failure::TooLarge), "{pack}");
            upstream.stop().await;
        }
    }
}

#[tokio::test]
async fn what_only_reads_is_asked_again_over_a_connection_that_ended() {
    let (upstream, _server) = hostile(&["drops=tools/list,prompts/list,resources/list,tools/call"]).await;
    let offered = ready(&upstream).await;
    assert_eq!((offered.tools.len(), offered.prompts.len(), offered.resources.len()), (1, 1, 1));
    assert_eq!(call(&upstream, "run", json!({})).await.err(), Some(Failure::Died), "it may have run");
    assert_eq!(counts(&upstream).await["initialize"], 1);
    upstream.stop().await;
}

#[tokio::test]
async fn the_older_transport_is_spoken_where_the_newer_is_refused() {
    for status in ["400", "404", "405", "406"] {
        let (upstream, _server) = hostile(&[&format!("older={status}")]).await;
        let offered = ready(&upstream).await;
        assert_eq!(offered.protocol, Some(Protocol::Session("2025-06-18")));
        assert_eq!((offered.tools.len(), offered.templates.len()), (1, 1));
        let calls = (0..8).map(|_| call(&upstream, "run", json!({})));
        for answer in futures_util::future::join_all(calls).await {
            assert!(matches!(answer, Ok(Reply::Result(_))), "{status}: {answer:?}");
        }
        assert_eq!(counts(&upstream).await["GET"], 1, "one stream carries everything");
        upstream.stop().await;
    }
    for faults in ["older=abroad", "older=401"] {
        let (upstream, _server) = hostile(&[faults]).await;
        let mut offer = upstream.offer();
        let failed = offer.wait_for(|offered| matches!(offered.state, State::Failed { .. }));
        assert!(timeout(PATIENCE, failed).await.is_ok(), "{faults}");
        upstream.stop().await;
    }
}

/// Answers that are none, and what is said of each.
const NO_ANSWERS: [(&str, &str); 9] = [
    (r#"{"jsonrpc":"2.0","id":ID,"error":{"code":"-32603","message":"no"}}"#, "an error that is none"),
    (r#"{"jsonrpc":"2.0","id":ID,"error":"no"}"#, "an error that is none"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":null}"#, "neither a result nor an error"),
    (r#"{"jsonrpc":"2.0","id":ID}"#, "neither a result nor an error"),
    (r#"{"jsonrpc":"2.0","id":ID,"answer":{}}"#, "neither a result nor an error"),
    (r#"{"jsonrpc":"2.0","id":"ID","result":{}}"#, "another id"),
    (r#"{"jsonrpc":"2.0","id":ID.0,"result":{}}"#, "another id"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{},"error":{"code":1,"message":"no"}}"#, "both"),
    (r#"{"jsonrpc":"2.0","id":{},"result":null}"#, "neither a result nor an error"),
];
/// Errors without an id: of the one request whose response they are.
const NAMELESS: [&str; 2] =
    [r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603}}"#, r#"{"error":{"code":-32603,"message":""}}"#];

/// Checks that an answer that is none ends its call at once, and that an error without a message is one.
async fn ends_at_once(upstream: &Upstream, nameless: &[&str]) {
    ready(upstream).await;
    let began = Instant::now();
    for (said, why) in NO_ANSWERS {
        match call(upstream, "says", json!({"text": said})).await {
            Err(Failure::Broken(told)) => assert!(told.contains(why), "{said}: {told}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    let named = r#"{"jsonrpc":"2.0","id":ID,"error":{"code":-32603}}"#;
    for said in nameless.iter().chain([&named]) {
        match call(upstream, "says", json!({"text": said})).await {
            Ok(Reply::Error { code: -32603, message, data: None }) if message.is_empty() => {}
            other => panic!("{said}: {other:?}"),
        }
    }
    let unread = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"unread"}}"#;
    let unread = call(upstream, "says", json!({"text": unread})).await;
    assert!(matches!(unread, Ok(Reply::Error { code: -32700, .. })), "{unread:?}");
    let whole = r#"{"jsonrpc":"2.0","id":ID,"result":{"a":1},"error":null}"#;
    assert_eq!(text(&call(upstream, "says", json!({"text": whole})).await), r#"{"a":1}"#);
    assert!(began.elapsed() < AT_ONCE);
    upstream.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_none_ends_the_call_at_once() {
    let (json, _server) = hostile(&[]).await;
    ends_at_once(&json, &NAMELESS).await;
    let (events, _server) = hostile(&["events"]).await;
    ends_at_once(&events, &NAMELESS).await;
    let (older, _server) = hostile(&["older=405"]).await;
    ends_at_once(&older, &[]).await;
    ends_at_once(&Upstream::start(odd("session")), &[]).await;
}

#[tokio::test]
async fn what_answers_a_notification_is_no_answer_to_the_request_that_waits() {
    let upstream = Upstream::start(odd("chatty"));
    ready(&upstream).await;
    assert_eq!(text(&call(&upstream, "twice", json!({})).await), r#"{"n":1}"#);
    upstream.stop().await;
}
