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
    assert!(said.contains("0 failed"), "{said}");
    assert!(server.stop().success());
    crate::record::check(data.path());
}

#[test]
fn revision_2025_11_25_is_served_as_required() {
    check("2025-11-25");
}

#[test]
fn revision_2026_07_28_is_served_as_required() {
    check("2026-07-28");
}
