//! The official MCP conformance suite, whole, for both revisions: at our own tools, at upstreams through us, and at us
//! as the client of an upstream.

mod leg;
mod pairings;

use std::collections::BTreeMap;

use crate::harness::{Ran, Server, node, temp};

const SUITE: &str = "node_modules/@modelcontextprotocol/conformance/dist/index.js";

fn check(revision: &str) {
    let data = temp();
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    let ran = suite(&server.mcp(), revision);
    let required = required(&ran.stdout);
    let failed = failed(&required);
    assert!(required.len() >= 25 && failed.is_empty(), "{failed:?} are not kept: {ran:?}");
    assert!(server.stop().success());
    crate::record::check(data.path());
}

/// Runs all server scenarios of a revision.
fn suite(url: &str, revision: &str) -> Ran {
    let results = temp();
    let results = results.path().to_str().expect("temporary paths are text");
    node(SUITE, &["server", "--url", url, "--requirements", revision, "-o", results])
}

/// What came of one scenario.
#[derive(Debug, PartialEq, Eq)]
struct Outcome<'a> {
    kept: bool,
    /// How many checks passed and failed, in the suite's words. A check that warns does neither.
    counts: &'a str,
}

/// Returns what came of the required scenarios, by their names.
///
/// The suite prints a line `✓ NAME: N passed, M failed` for each scenario, with another mark where one failed, and lists at
/// its end those that are extensions or pending: `  ✗ NAME (extension)`.
fn required(said: &str) -> BTreeMap<&str, Outcome<'_>> {
    let (run, unscored) = said.split_once("Not scored").unwrap_or((said, ""));
    let unscored: Vec<&str> = unscored.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let results = run.lines().filter_map(|line| {
        let (name, counts) = line.split_once(": ")?;
        let (mark, name) = (name.chars().next()?, name.trim_start_matches(['✓', '✗', ' ']));
        matches!(mark, '✓' | '✗').then_some((name, Outcome { kept: mark == '✓', counts }))
    });
    results.filter(|(name, _)| !unscored.contains(name)).collect()
}

/// Returns the names of those that are not kept.
fn failed<'a>(required: &BTreeMap<&'a str, Outcome<'_>>) -> Vec<&'a str> {
    required.iter().filter(|(_, outcome)| !outcome.kept).map(|(name, _)| *name).collect()
}

#[test]
fn a_failure_of_a_required_scenario_is_seen_and_no_other() {
    let said = "✓ a: 10 passed, 0 failed\n✗ b: 1 passed, 10 failed\n✗ c: 0 passed, 1 failed\n\nTotal: 11 passed, 11 failed\n\n\
                Not scored for now: 1 scenario(s) run, 1 failing.\n  ✗ c (extension)\n";
    let required = required(said);
    assert_eq!(required["a"], Outcome { kept: true, counts: "10 passed, 0 failed" });
    assert_eq!((required.len(), failed(&required)), (2, vec!["b"]));
}

#[test]
fn revision_2025_11_25_is_served_as_required() {
    check("2025-11-25");
}

#[test]
fn revision_2026_07_28_is_served_as_required() {
    check("2026-07-28");
}
