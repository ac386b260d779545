//! Upstreams on the official SDKs behind this node, in all pairings of a client's era and an upstream's.
//!
//! Invariant: what passes through is held against a server of the client's own era, asked direct: every required
//! scenario is kept, and no check only warns that does not warn there.

use std::process::Command;

use super::{failed, required, suite};
use crate::{
    harness::{Ran, Server, needs, on_path, temp},
    record,
    upstream::serve,
};

const SESSIONS: &str = "2025-11-25";
const STATELESS: &str = "2026-07-28";

/// The servers of `tests/clients/conformance`.
#[derive(Clone, Copy, Debug)]
enum Upstream {
    /// The TypeScript SDK 1.x.
    Session,
    /// The TypeScript SDK 2.x, which refuses sessions.
    Stateless,
    /// The Python SDK, which speaks both.
    Python,
    /// The same, as before it knew of the stateless revision.
    PythonSession,
}

impl Upstream {
    fn start(self) -> Server {
        let (program, args): (_, &[&str]) = match self {
            Self::Session => ("node_modules/node/bin/node", &["session.mjs"]),
            Self::Stateless => ("node_modules/node/bin/node", &["modern.mjs"]),
            Self::Python => ("venv/bin/python", &["server.py"]),
            Self::PythonSession => ("venv/bin/python", &["server.py", "session"]),
        };
        let mut command = Command::new(needs(program));
        command.args(args).current_dir(needs("conformance"));
        Server::start_as(on_path(command))
    }

    fn direct(self, revision: &str) -> Ran {
        let own = self.start();
        suite(&own.mcp(), revision)
    }

    fn through(self, revision: &str) -> Ran {
        let own = self.start();
        let data = temp();
        let server = serve(
            data.path(),
            &format!("[[upstream]]\nname = \"up\"\nurl = {:?}\nprefix = \"\"\n", own.mcp()),
        );
        let ran = suite(&server.mcp(), revision);
        assert!(server.stop().success());
        record::check(data.path());
        ran
    }
}

/// Runs the suite direct, and through this node at an upstream, and compares.
fn compare(revision: &str, upstream: Upstream) {
    let own = if revision == SESSIONS { Upstream::Session } else { Upstream::Stateless };
    let (direct, through) = (own.direct(revision), upstream.through(revision));
    let (expected, got) = (required(&direct.stdout), required(&through.stdout));
    assert!(expected.len() >= 25 && failed(&expected).is_empty(), "direct: {direct:?}");
    let differ = expected.iter().filter(|(name, outcome)| got.get(*name) != Some(*outcome));
    let differ: Vec<String> = differ
        .map(|(name, outcome)| {
            let through = got.get(name).map_or("not run", |outcome| outcome.counts);
            format!("{name}: {} direct, {through} through us", outcome.counts)
        })
        .collect();
    assert!(differ.is_empty(), "{upstream:?} is not as direct: {differ:#?}\n{}", through.stdout);
}

#[test]
fn the_servers_pass_the_suite_direct() {
    let own = [
        (Upstream::Session, SESSIONS),
        (Upstream::Stateless, STATELESS),
        (Upstream::Python, SESSIONS),
        (Upstream::Python, STATELESS),
        (Upstream::PythonSession, SESSIONS),
    ];
    for (upstream, revision) in own {
        let ran = upstream.direct(revision);
        let required = required(&ran.stdout);
        let failed = failed(&required);
        assert!(required.len() >= 25 && failed.is_empty(), "{upstream:?}, {revision}: {failed:?}, {ran:?}");
    }
}

#[test]
fn a_client_of_sessions_reaches_an_upstream_of_sessions() {
    compare(SESSIONS, Upstream::Session);
    compare(SESSIONS, Upstream::PythonSession);
}

#[test]
fn a_stateless_client_reaches_an_upstream_of_sessions() {
    compare(STATELESS, Upstream::Session);
    compare(STATELESS, Upstream::PythonSession);
}

#[test]
fn a_client_of_sessions_reaches_a_stateless_upstream() {
    compare(SESSIONS, Upstream::Stateless);
    compare(SESSIONS, Upstream::Python);
}

#[test]
fn a_stateless_client_reaches_a_stateless_upstream() {
    compare(STATELESS, Upstream::Stateless);
    compare(STATELESS, Upstream::Python);
}
