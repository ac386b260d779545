//! The roster: the upstreams that a node follows, which may come, go and be replaced while calls run.
//!
//! Invariants:
//! - an upstream whose way to it stays the same stays connected, whatever else of it changes;
//! - where the way changes, or a restart is asked for, calls stay with the connections before until the next have settled;
//! - what is told of an upstream holds neither its URL, its arguments, its headers nor its environment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, value::RawValue};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::upstreams;
use crate::{
    config,
    log::home::Home,
    metrics::Metrics,
    router::Router,
    runtime::{
        fleet::Fleet,
        following::{Course, Until, follow},
        gateway,
        upstream::{self, State},
    },
};

/// How long a change of upstreams waits until those that are new are connected.
const SETTLE_MAX: Duration = Duration::from_secs(15);

/// The upstreams of one node.
pub struct Roster {
    home: Home,
    router: Router,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    followed: BTreeMap<String, Entry>,
    /// Those that were removed and still have calls.
    leaving: Vec<JoinHandle<()>>,
}

struct Entry {
    /// What the configuration says of it; `None` if it says nothing, as of a wrapped server.
    config: Option<config::Upstream>,
    course: watch::Sender<Course>,
    settled: watch::Receiver<Option<(Arc<Fleet>, State)>>,
    removed: CancellationToken,
    task: JoinHandle<()>,
}

/// What a change of upstreams has done, by their names.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Those that are reached in another way now.
    pub replaced: Vec<String>,
    pub kept: Vec<String>,
}

/// How an upstream stands.
#[derive(Debug, Serialize)]
pub struct UpstreamStatus {
    pub name: String,
    /// `command`, `url`, or `wrapped`.
    pub transport: &'static str,
    /// `connecting`, `ready` or `failed`.
    pub state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Value>,
    pub prefix: String,
    pub tools: usize,
}

impl Roster {
    pub fn new(home: Home, router: Router, metrics: Arc<Metrics>, stop: CancellationToken) -> Self {
        Self { home, router, metrics, stop, entries: Mutex::default() }
    }

    /// Follows an upstream that no configuration names.
    pub async fn add(&self, at: upstream::Settings, shown: gateway::Settings) {
        let name = shown.name.clone();
        let entry = self.entry(None, at, shown);
        self.entries.lock().await.followed.insert(name, entry);
    }

    /// Follows these upstreams and, of those that a configuration named before, no others.
    pub async fn apply(&self, configured: &[config::Upstream]) -> Applied {
        let mut entries = self.entries.lock().await;
        entries.leaving.retain(|task| !task.is_finished());
        let mut applied = Applied::default();
        let gone = |name: &String, entry: &mut Entry| {
            entry.config.is_some() && configured.iter().all(|upstream| upstream.name != *name)
        };
        let gone: Vec<(String, Entry)> = entries.followed.extract_if(.., gone).collect();
        for (name, entry) in gone {
            entry.removed.cancel();
            entries.leaving.push(entry.task);
            applied.removed.push(name);
        }
        for (n, upstream) in configured.iter().enumerate() {
            let name = upstream.name.clone();
            let (at, settings) = upstreams::settings(&self.home, n, upstream);
            let Some(entry) = entries.followed.get_mut(&name) else {
                let entry = self.entry(Some(upstream.clone()), at, settings);
                entries.followed.insert(name.clone(), entry);
                applied.added.push(name);
                continue;
            };
            if entry.config.as_ref().is_some_and(|before| is_reached_alike(before, upstream)) {
                entry.course.send_modify(|course| course.settings = settings);
                applied.kept.push(name);
            } else {
                entry.course.send_replace(Course { fleet: Arc::new(Fleet::start(at)), settings });
                applied.replaced.push(name);
            }
            entry.config = Some(upstream.clone());
        }
        applied
    }

    /// Connects to an upstream anew: a process is started beside the one before, which ends with its calls. Returns
    /// false if there is no upstream of this name.
    pub async fn restart(&self, name: &str) -> bool {
        let entries = self.entries.lock().await;
        let Some(entry) = entries.followed.get(name) else { return false };
        entry.course.send_modify(|course| course.fleet = Arc::new(course.fleet.anew()));
        true
    }

    /// Waits until every upstream's connection is on the board or has failed once, at most for `patience`. Returns why
    /// the first of them failed, if one did. Errors: some are not connected yet.
    pub async fn settled(&self, patience: Duration) -> Result<Option<String>, Unsettled> {
        let waiting: Vec<_> = {
            let entries = self.entries.lock().await;
            let entries = entries.followed.values();
            entries.map(|entry| (entry.settled.clone(), entry.course.borrow().fleet.clone())).collect()
        };
        let settled = waiting.into_iter().map(async |(mut settled, fleet)| {
            let own = settled.wait_for(|settled| {
                settled.as_ref().is_some_and(|(settled, _)| Arc::ptr_eq(settled, &fleet))
            });
            own.await.ok().and_then(|settled| Some(settled.as_ref()?.1.clone()))
        });
        let all = timeout(patience, futures_util::future::join_all(settled)).await.map_err(|_| Unsettled)?;
        Ok(all.into_iter().flatten().find_map(|state| match state {
            State::Failed { message } => Some(message),
            State::Ready | State::Connecting => None,
        }))
    }

    /// Returns how each upstream stands, in the order of their ranks, once those that are new are connected or a bound
    /// is over.
    pub async fn standing(&self) -> Vec<UpstreamStatus> {
        // Those that are not connected yet are told as that.
        let _ = self.settled(SETTLE_MAX).await;
        let entries = self.entries.lock().await;
        let mut all: Vec<(u32, UpstreamStatus)> = entries.followed.values().map(Entry::standing).collect();
        all.sort_by_key(|(rank, _)| *rank);
        all.into_iter().map(|(_, standing)| standing).collect()
    }

    /// Waits until all have ended, after the node was told to stop.
    pub async fn end(&self) {
        let mut entries = self.entries.lock().await;
        let Entries { followed, leaving } = std::mem::take(&mut *entries);
        let tasks = followed.into_values().map(|entry| entry.task).chain(leaving);
        futures_util::future::join_all(tasks).await;
    }

    fn entry(
        &self,
        config: Option<config::Upstream>,
        at: upstream::Settings,
        settings: gateway::Settings,
    ) -> Entry {
        let (course, following) = watch::channel(Course { fleet: Arc::new(Fleet::start(at)), settings });
        let (settled_to, settled) = watch::channel(None);
        let removed = CancellationToken::new();
        let until = Until { stop: self.stop.clone(), removed: removed.clone() };
        // Ended by `stop` or `removed`, and joined by `end`.
        let task =
            tokio::spawn(follow(following, self.router.clone(), self.metrics.clone(), until, settled_to));
        Entry { config, course, settled, removed, task }
    }
}

/// Some upstreams are not connected yet.
#[derive(Debug, thiserror::Error)]
#[error("some upstreams are not connected yet")]
pub struct Unsettled;

impl Entry {
    fn standing(&self) -> (u32, UpstreamStatus) {
        let Course { fleet, settings } = self.course.borrow().clone();
        let offered = fleet.first.offer().borrow().clone();
        let (state, reason) = match &offered.state {
            State::Connecting => ("connecting", None),
            State::Ready => ("ready", None),
            State::Failed { message } => ("failed", Some(message.clone())),
        };
        let transport = match &self.config {
            None => "wrapped",
            Some(config::Upstream { command: Some(_), .. }) => "command",
            Some(_) => "url",
        };
        let server = offered.server.as_deref().map(RawValue::get);
        let standing = UpstreamStatus {
            name: settings.name,
            transport,
            state,
            reason,
            protocol: offered.protocol.map(upstream::Protocol::version),
            server: server.and_then(|server| serde_json::from_str(server).ok()),
            prefix: settings.prefix,
            tools: offered.tools.len(),
        };
        (settings.rank, standing)
    }
}

/// Returns whether two configurations lead to the same server in the same way, though its offer may appear otherwise.
fn is_reached_alike(before: &config::Upstream, now: &config::Upstream) -> bool {
    let way = |upstream: &config::Upstream| config::Upstream {
        prefix: None,
        enable: Vec::new(),
        disable: Vec::new(),
        timeout_ms: None,
        lane: None,
        ..upstream.clone()
    };
    way(before) == way(now)
}
