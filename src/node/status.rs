//! How a running node is, in one document: version, log, upstreams, peers, and what waits.
//!
//! Invariants:
//! - it is gathered from what the node holds anyway: nothing is dialled, asked or written for it;
//! - no URL, header or environment value of an upstream is in it.

use std::{sync::Arc, time::Instant};

use serde_json::{Map, Value, json};

use crate::{
    clock::now_ms,
    identity::claimed_size,
    node::Node,
    query::work::alerts::Seen,
    router::{BoxFuture, SourceStatus},
    state::{
        peers::PEER_STATUSES,
        work::{RUN_STATUSES, TASK_STATUSES},
    },
};

/// Gathers how a node is.
pub type Told = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

impl Node {
    /// Returns what gathers how this node is. Its uptime counts from here; `sessions` returns the number of open sessions.
    pub fn status(&self, sessions: Arc<dyn Fn() -> usize + Send + Sync>) -> Told {
        let (ledger, router, audit) = (self.ledger.clone(), self.router.clone(), self.audit.clone());
        let (began, started_ms) = (Instant::now(), now_ms());
        Arc::new(move || {
            let (ledger, router, audit) = (ledger.clone(), router.clone(), audit.clone());
            let sessions = sessions();
            Box::pin(async move {
                let about = ledger.about();
                let (committed, reach) = (*ledger.committed().borrow(), ledger.reach().borrow().clone());
                let reasons = Self::unready(&ledger);
                let upstreams = router.sources().into_iter().filter(SourceStatus::is_upstream).map(upstream);
                let running: usize = router.loads().iter().map(|(_, load)| load).sum();
                let now = now_ms();
                let work = audit.ask(move |view, _| view.pulse(&[], now)).await.ok();
                json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "process": std::process::id(),
                    "started_ms": started_ms,
                    "uptime_s": began.elapsed().as_secs(),
                    "ready": reasons.is_empty(),
                    "reasons": reasons,
                    "log": {
                        "origin": about.origin,
                        "key": about.vkey,
                        "log": about.log.to_string(),
                        "events": committed,
                        "applied": reach.applied,
                        "head": claimed_size(&reach.checkpoint),
                        "bytes": std::fs::metadata(ledger.home().log_path()).map_or(0, |file| file.len()),
                    },
                    "calls": running,
                    "sessions": sessions,
                    "work": work.map_or(Value::Null, |pulse| counts(&pulse.what.seen)),
                    "upstreams": upstreams.collect::<Vec<_>>(),
                    "peer": audit.peer(),
                })
            })
        })
    }
}

fn upstream(standing: SourceStatus) -> Value {
    json!({
        "name": standing.name,
        "up": standing.away.is_none(),
        "why": standing.away,
        "tools": standing.tools,
        "prompts": standing.prompts,
        "resources": standing.resources,
    })
}

/// Returns the tasks, runs, workers and peers by their statuses; those that are none are left out.
fn counts(seen: &Seen) -> Value {
    fn some<'a>(named: impl Iterator<Item = (&'a str, u64)>) -> Map<String, Value> {
        named.filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n.into())).collect()
    }
    let peers = PEER_STATUSES.iter().zip(seen.peers.standing).map(|(status, n)| (status.as_str(), n));
    json!({
        "tasks": some(TASK_STATUSES.into_iter().zip(seen.counts.tasks)),
        "runs": some(RUN_STATUSES.into_iter().zip(seen.counts.runs)),
        "workers": seen.workers.iter().filter(|worker| worker.status != "offline").count(),
        "peers": some(peers),
    })
}
