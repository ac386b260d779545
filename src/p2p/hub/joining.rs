//! Joining: the bootstrap rule, driven with real dials.
//!
//! Invariants:
//! - one bootstrap at a time; a second one asked for meanwhile waits for it, then runs;
//! - both its ends are recorded, and so is every attempt up to the bound of an event.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::Hub;
use crate::{
    caller::{By, Peer},
    clock::now_ms,
    event::peer::{self, BootstrapFinished, BootstrapStarted},
    p2p::{
        Nat,
        bootstrap::{Bootstrap, Goal as Rule, Input, Method, Node, Output},
        discovery::{Origin, Wanted},
    },
    peer::News,
};

/// Peers known from before that are tried.
const KNOWN_MAX: usize = 10;
/// One dial of a bootstrap, however long the whole may take.
const DIAL_MAX: Duration = Duration::from_secs(10);

/// The goal of a bootstrap.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Multiaddrs that end in `/p2p/<peer id>`; if empty, those of the configuration.
    pub nodes: Vec<String>,
    pub min: usize,
    pub max: usize,
    pub timeout: Duration,
}

/// One address tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    pub address: String,
    pub method: &'static str,
    pub error: Option<String>,
    pub took: Duration,
}

/// The result of a bootstrap.
#[derive(Clone, Debug)]
pub struct Joined {
    pub ready: bool,
    pub attempts: Vec<Tried>,
    pub connected: Vec<Peer>,
    pub external: Vec<String>,
    pub nat: Nat,
    pub took: Duration,
}

impl Hub {
    /// Connects until `goal.min` is reached, nobody is left to try, or the time is over.
    pub async fn bootstrap(&self, goal: Goal, by: Option<By>) -> Joined {
        let _one = self.inner.joining.lock().await;
        let begun = Instant::now();
        let id = uuid::Uuid::now_v7().simple().to_string();
        let named = |nodes: &[String]| nodes.iter().filter_map(|address| node_of(address)).collect();
        let configured: Vec<Node> = match goal.nodes.is_empty() {
            true => self.welcome(named(&self.inner.parts.bootstrap)),
            false => named(&goal.nodes),
        };
        let started = BootstrapStarted {
            nodes: configured.len() as u64,
            min: goal.min as u64,
            max: goal.max as u64,
            timeout_ms: goal.timeout.as_millis() as u64,
        };
        self.record_by(&id, News::BootstrapStarted(started), by.clone()).await;
        let rule =
            Rule { min: goal.min, max: goal.max, deadline_ms: now_ms() + goal.timeout.as_millis() as u64 };
        let connected = self.connected().borrow().clone();
        let rule = Bootstrap::new(rule, &Method::ALL, connected);
        let (rule, ()) = tokio::join!(self.drive(rule, &configured, goal.timeout), async {
            // Who does not answer by then has not answered.
            let _ = tokio::time::timeout(goal.timeout, self.look_from_outside()).await;
        });
        let snapshot = self.net().snapshot().await;
        self.inner.parts.metrics.peers.bootstrapped(rule.ready());
        let attempts: Vec<Tried> = rule.attempts().map(tried).collect();
        let joined = Joined {
            ready: rule.ready(),
            connected: rule.connected().iter().cloned().collect(),
            external: snapshot.external,
            nat: snapshot.nat,
            took: begun.elapsed(),
            attempts,
        };
        self.record_by(&id, News::BootstrapFinished(joined.facts()), by).await;
        if joined.ready {
            // Who is connected can tell of others: the table fills while nobody waits for it.
            let hub = self.clone();
            self.spawn(async move {
                if let Err(err) = hub.net().bootstrap_dht().await {
                    tracing::debug!(%err, "the table was not walked");
                }
            });
        }
        joined
    }

    /// Asks the configured services for this node's address as seen from outside.
    pub(super) async fn look_from_outside(&self) {
        let Some(outside) = &self.inner.parts.outside else {
            return;
        };
        let mut seen = Vec::new();
        for (url, told) in outside.ask().await {
            match told {
                Ok(ip) => seen.push(ip),
                Err(err) => tracing::warn!(%err, host = host(url), "a service does not tell our address"),
            }
        }
        if !seen.is_empty() {
            self.net().seen(seen).await;
        }
    }

    async fn drive(&self, mut rule: Bootstrap, configured: &[Node], timeout: Duration) -> Bootstrap {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut running: JoinSet<Input> = JoinSet::new();
        let mut input = Input::Tick;
        loop {
            for output in rule.handle(input, now_ms()) {
                match output {
                    Output::Ask(method) => {
                        let (hub, configured) = (self.clone(), configured.to_vec());
                        running.spawn(async move {
                            let nodes = hub.nodes(method, configured).await;
                            Input::Named { method, nodes }
                        });
                    }
                    Output::Try { attempt, node } => {
                        let hub = self.clone();
                        running
                            .spawn(async move { Input::Ended { attempt, with: hub.try_node(node).await } });
                    }
                    // Dials under way are dropped with their set.
                    Output::Finish => return rule,
                }
            }
            input = tokio::select! {
                Some(joined) = running.join_next() => match joined {
                    Ok(input) => input,
                    Err(err) => {
                        tracing::error!(%err, "an attempt to join failed");
                        Input::Tick
                    }
                },
                // The rule's clock and this one may differ by a moment.
                () = tokio::time::sleep_until(deadline + Duration::from_millis(5)) => Input::Tick,
            };
        }
    }

    async fn try_node(&self, node: Node) -> Result<Peer, String> {
        let peer = node.peer.ok_or_else(|| "the address names no peer".to_owned())?;
        let dialled = self.net().dial(&peer, node.addrs, DIAL_MAX).await;
        dialled.map(|connected| connected.peer).map_err(|err| err.to_string())
    }

    async fn nodes(&self, method: Method, configured: Vec<Node>) -> Vec<Node> {
        let origin = match method {
            Method::Configured => return configured,
            Method::Known => return self.welcome(self.met()),
            Method::File => Origin::File,
            Method::Github => Origin::Github,
            Method::Mdns => Origin::Mdns,
            Method::Dht => Origin::Dht,
        };
        let source = self.inner.parts.sources.iter().find(|source| source.origin() == origin).map(Arc::clone);
        let Some(source) = source else {
            return Vec::new();
        };
        let looked = source.look(Wanted::default(), now_ms()).await;
        self.inner.parts.metrics.peers.searched(origin.as_str(), looked.is_ok());
        match looked {
            Ok(looked) => {
                for found in looked.found.clone() {
                    self.found(found).await;
                }
                let own = self.net().local();
                let others = looked.found.into_iter().filter(|found| found.peer != own);
                self.welcome(
                    others.map(|found| Node { peer: Some(found.peer), addrs: found.addrs }).collect(),
                )
            }
            Err(err) => {
                tracing::debug!(%err, source = origin.as_str(), "a source of peers gave nothing");
                Vec::new()
            }
        }
    }

    /// Drops the nodes that a caller has parted from.
    fn welcome(&self, mut nodes: Vec<Node>) -> Vec<Node> {
        nodes.retain(|node| node.peer.as_ref().is_none_or(|peer| !self.inner.kept.is_apart(peer)));
        nodes
    }

    /// Returns the kept peers, and those heard of last.
    pub(super) fn met(&self) -> Vec<Node> {
        let kept = self.inner.kept.peers().into_iter().map(|(peer, addrs)| Node { peer: Some(peer), addrs });
        let book = self.book();
        let booked = book.with(&Default::default(), now_ms()).into_iter().take(KNOWN_MAX);
        let booked = booked.map(|known| Node { peer: Some(known.peer.clone()), addrs: known.addrs.clone() });
        kept.chain(booked).filter(|node| !node.addrs.is_empty()).collect()
    }
}

impl Joined {
    fn facts(&self) -> BootstrapFinished {
        let attempt = |tried: &Tried| peer::Attempt {
            address: tried.address.clone(),
            method: tried.method.to_owned(),
            ok: tried.error.is_none(),
            cause: tried.error.clone(),
            took_us: tried.took.as_micros() as u64,
        };
        BootstrapFinished {
            connected: self.connected.len() as u64,
            failed: self.attempts.iter().filter(|tried| tried.error.is_some()).count() as u64,
            ready: self.ready,
            nat: match self.nat {
                Nat::Public => peer::Nat::Public,
                Nat::Private => peer::Nat::Private,
                Nat::Unknown => peer::Nat::Unknown,
            },
            took_us: self.took.as_micros() as u64,
            attempts: self.attempts.iter().take(peer::ATTEMPTS_MAX).map(attempt).collect(),
        }
    }
}

fn tried(attempt: &crate::p2p::bootstrap::Attempt) -> Tried {
    let ended_ms = attempt.ended_ms.unwrap_or(attempt.began_ms);
    Tried {
        address: attempt.node.addrs.first().cloned().unwrap_or_default(),
        method: attempt.method.as_str(),
        error: attempt.with.as_ref().and_then(|with| with.as_ref().err().cloned()),
        took: Duration::from_millis(ended_ms.saturating_sub(attempt.began_ms)),
    }
}

/// Returns the host of a URL, because the rest may contain a key.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn node_of(address: &str) -> Option<Node> {
    let (bare, peer) = address.rsplit_once("/p2p/")?;
    Some(Node { peer: Some(peer.to_owned()), addrs: vec![bare.to_owned()] })
}
