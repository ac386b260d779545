//! The official MCP conformance suite, whole, for both revisions.

use crate::harness::{Server, node, temp};

fn check(revision: &str) {
    let data = temp();
    let results = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let results = results.path().to_str().expect("temporary paths are text");
    let url = server.mcp();
    let args = ["server", "--url", &url, "--requirements", revision, "-o", results];
    let said = node("node_modules/@modelcontextprotocol/conformance/dist/index.js", &args).succeeded();
    let failures = failures(&said);
    assert!(!failures.is_empty() && failures.iter().all(|count| *count == 0), "{said}");
    assert!(server.stop().success());
    crate::record::check(data.path());
}

/// The counts that the suite says failed: each number before the word.
fn failures(said: &str) -> Vec<u64> {
    let words: Vec<&str> =
        said.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let counts = words.windows(2).filter(|pair| pair[1] == "failed").filter_map(|pair| pair[0].parse().ok());
    counts.collect()
}

#[test]
fn ten_failures_are_not_none() {
    assert_eq!(failures("10 passed, 10 failed"), [10]);
    assert_eq!(failures("Passed: 37/37, 0 failed, 1 warnings\n12 failed"), [0, 12]);
    assert_eq!(failures("nothing was said"), [0_u64; 0]);
}

#[test]
fn revision_2025_11_25_is_served_as_required() {
    check("2025-11-25");
}

#[test]
fn revision_2026_07_28_is_served_as_required() {
    check("2026-07-28");
}
