//! Sessions of the older era: what abandoned ones cost, and what a call in one takes.

use std::{fs, time::Instant};

use serde_json::json;

use crate::{
    harness::{Server, temp},
    speech::{Connection, call},
};

const ABANDONED: usize = 10_000;
/// Bytes that all of them together may hold.
const GROWTH_MAX: usize = 64 * 1024 * 1024;
/// The longest that the quicker tenth of calls in a session may take: half of the 40 that Nagle's algorithm alone would
/// make it, so that a busy machine does not look like one.
const QUICK_MAX_MS: u128 = 20;
const CALLS: usize = 200;

/// Resident bytes of a process.
fn resident(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.process.id()));
    let status = status.expect("the server runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.expect("the system tells") * 1024
}

#[test]
fn abandoned_sessions_stay_small() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    connection.initialize();
    let before = resident(&server);
    let mut first = None;
    for _ in 0..ABANDONED {
        connection.session = None;
        connection.initialize();
        first = first.or_else(|| connection.session.clone());
    }
    let grown = resident(&server).saturating_sub(before);
    println!("{ABANDONED} abandoned sessions: {} KiB", grown / 1024);
    assert!(grown < GROWTH_MAX, "{ABANDONED} sessions hold {grown} bytes");
    let answer = connection.request(1, "tools/call", call("test_simple_text", &json!({})));
    assert!(answer["result"].is_object(), "the last session works: {answer}");
    connection.session = first;
    let gone = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    assert_eq!(connection.ask(&gone).expect("the server answers").status, 404, "the first made room");
}

#[test]
fn a_call_in_a_session_is_quick() {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    connection.initialize();
    let mut took: Vec<u128> = (0..CALLS)
        .map(|id| {
            let begun = Instant::now();
            connection.request(id as u64, "tools/call", call("test_simple_text", &json!({})));
            begun.elapsed().as_micros()
        })
        .collect();
    took.sort_unstable();
    let (quick, median) = (took[CALLS / 10], took[CALLS / 2]);
    println!("a call in a session: p10 {quick} us, p50 {median} us, p99 {} us", took[CALLS * 99 / 100]);
    // What delays packets (no TCP_NODELAY: 40 ms) delays every call; what other tests take, only some.
    assert!(quick < QUICK_MAX_MS * 1000, "p10 {quick} us, p50 {median} us");
}
