//! Upstreams on the official SDKs, of both eras.
//!
//! Invariant: asked direct, they keep every required scenario, so that what fails behind us is ours.

use std::process::Command;

use super::{failed, required, suite};
use crate::harness::{Ran, Server, needs, on_path};

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
