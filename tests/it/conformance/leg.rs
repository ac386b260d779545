//! The suite's client leg: this node as the client of the suite's own servers.
//!
//! Invariant: `tests/clients/conformance/client.mjs` uses all that an upstream has; what the suite sees is this node's.

use super::SUITE;
use crate::harness::{needs, node, temp, text};

/// Runs one client scenario, and fails with what the suite and the command said where it is not kept.
fn keeps(revision: &str, scenario: &str) {
    let results = temp();
    let command = format!(
        "{} {} {}",
        needs("node_modules/node/bin/node").display(),
        needs("conformance/client.mjs").display(),
        env!("CARGO_BIN_EXE_cairn")
    );
    let args = ["client", "--command", &command, "--scenario", scenario, "--spec-version", revision];
    let ran = node(SUITE, &[&args[..], &["-o", text(results.path())]].concat());
    assert!(ran.status.success(), "{scenario}, {revision}:\n{}\n{}", ran.stdout, ran.stderr);
}

#[test]
fn the_client_scenarios_of_sessions_are_kept() {
    for scenario in ["initialize", "tools_call", "elicitation-sep1034-client-defaults", "sse-retry"] {
        keeps("2025-11-25", scenario);
    }
}

#[test]
fn the_client_scenarios_of_the_stateless_revision_are_kept() {
    let scenarios = [
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
    ];
    for scenario in scenarios {
        keeps("2026-07-28", scenario);
    }
}

#[test]
fn authorization_servers_are_found_and_this_client_is_known_there() {
    let found = [
        "metadata-default",
        "metadata-var1",
        "metadata-var2",
        "metadata-var3",
        "authorization-server-migration",
    ];
    let known = ["basic-cimd", "pre-registration", "token-endpoint-auth-basic", "token-endpoint-auth-post"];
    for scenario in found.into_iter().chain(known).chain(["token-endpoint-auth-none"]) {
        keeps("2026-07-28", &format!("auth/{scenario}"));
    }
}

#[test]
fn this_node_gets_tokens_in_its_own_name() {
    for scenario in ["client-credentials-jwt", "client-credentials-basic"] {
        keeps("2026-07-28", &format!("auth/{scenario}"));
    }
}

#[test]
fn scopes_are_asked_for_as_far_as_they_are_wanted() {
    let scenarios = [
        "scope-from-www-authenticate",
        "scope-from-scopes-supported",
        "scope-omitted-when-undefined",
        "scope-step-up",
        "scope-retry-limit",
        "offline-access-scope",
        "offline-access-not-supported",
    ];
    for scenario in scenarios {
        keeps("2026-07-28", &format!("auth/{scenario}"));
    }
}

#[test]
fn nothing_is_taken_from_or_given_to_a_server_of_another_name() {
    let issuers =
        ["supported", "not-advertised", "supported-missing", "wrong-issuer", "unexpected", "normalized"];
    for scenario in issuers.map(|issuer| format!("iss-{issuer}")) {
        keeps("2026-07-28", &format!("auth/{scenario}"));
    }
    for scenario in ["resource-mismatch", "metadata-issuer-mismatch"] {
        keeps("2026-07-28", &format!("auth/{scenario}"));
    }
}
