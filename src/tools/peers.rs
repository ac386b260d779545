//! The peer tools: find other nodes, connect, part, and see how they do.
//!
//! Invariants:
//! - without a network every one of them says so, and names the setting; no peer is ever invented;
//! - what is told of a peer is read from the log; what was not measured is null.

mod metrics;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

pub use self::metrics::AskMetrics;
use self::metrics::latency;
use self::metrics::measured;
use self::metrics::metrics;
use self::metrics::whole;
use crate::{
    caller::By,
    clock::now_ms,
    error::{Code, Refusal},
    event::peer::Source,
    ledger::{Command, Ruling, peers::Peering},
    peer::{self, News, Peer, Status},
    query::{
        QueryError, View,
        peers::{Filter, Sort},
        work::At,
    },
    router::Invocation,
    tools::{
        Builtin, arguments,
        desk::{Desk, Paging, Told, page, seen, told, unexpected},
        doing::{definition, does},
        network::{
            Bootstrap, Connect, Disconnect, Disconnected, Discover, Discovered, Following, Network, Search,
            Tried,
        },
        reading::time,
    },
};

const LISTER: &str = "peer_list";
const PEERS: u64 = 10;
const TIMEOUT_MS: u64 = 30_000;
const RETRIES: u32 = 3;
const BOOTSTRAP_MS: u64 = 60_000;
const CONNECTIONS_MIN: u64 = 1;
const CONNECTIONS_MAX: u64 = 10;

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("peers", definition, does);
    vec![
        tool(definition!("peer_discover"), does!(discover)),
        tool(definition!("peer_connect"), does!(connect)),
        tool(definition!("peer_disconnect"), does!(disconnect)),
        tool(definition!("peer_list"), does!(list)),
        tool(definition!("peer_metrics"), does!(metrics)),
        tool(definition!("bootstrap_network"), does!(bootstrap)),
        tool(definition!("peer_follow"), does!(follow)),
        tool(definition!("peer_unfollow"), does!(unfollow)),
    ]
}

fn network(desk: &Desk) -> Result<Arc<dyn Network>, Refusal> {
    desk.network
        .get()
        .cloned()
        .ok_or_else(|| Refusal::new(Code::Unavailable, "this node has no network").hint(peer::TO_JOIN))
}

fn by(desk: &Desk, call: &Invocation, reason: Option<&str>) -> Result<By, Refusal> {
    let note = reason.map(|reason| desk.seal_text(reason)).transpose()?;
    Ok(By { actor: call.caller.actor.clone(), cause: call.started, note })
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Deserialize)]
struct AskDiscover {
    #[serde(default)]
    capability_filter: Vec<String>,
    max_peers: Option<u64>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    include_metrics: bool,
    #[serde(default)]
    sources: Vec<String>,
}

async fn discover(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let asked: AskDiscover = arguments(call)?;
    // The schema closes the list; `all` is every source, as is none.
    let named = |name: &String| serde_json::from_value::<Source>(json!(name)).ok();
    let all = asked.sources.iter().any(|name| name == "all");
    let sources = if all { Vec::new() } else { asked.sources.iter().filter_map(named).collect() };
    let ask = Discover {
        capabilities: asked.capability_filter,
        max: asked.max_peers.unwrap_or(PEERS) as usize,
        timeout: Duration::from_millis(asked.timeout_ms.unwrap_or(TIMEOUT_MS)),
        sources,
    };
    let Discovered { peers, sources, took } = network.discover(ask, by(desk, call, None)?).await?;
    let mut shown = Vec::with_capacity(peers.len());
    for found in peers {
        let mut peer = json!({
            "peer_id": found.peer,
            "multiaddrs": found.addrs,
            "capabilities": found.capabilities,
            "source": found.source,
            "last_seen": time(found.seen_ms),
        });
        if asked.include_metrics {
            peer["metrics"] =
                known(desk, &found.peer, None).await?.map_or(Value::Null, |at| measured(&at.what, now_ms()));
        }
        shown.push(peer);
    }
    let sources: BTreeMap<String, Value> = sources
        .into_iter()
        .map(|(name, Search { found, error })| match error {
            Some(error) => (name, json!({"found": found, "error": error})),
            None => (name, json!({"found": found})),
        })
        .collect();
    told(&json!({
        "discovered_count": shown.len(),
        "peers": shown,
        "search_time_ms": millis(took),
        "sources": sources,
    }))
}

#[derive(Deserialize)]
struct AskConnect {
    peer_id: String,
    multiaddr: Option<String>,
    timeout_ms: Option<u64>,
    retry_count: Option<u32>,
    persist: Option<bool>,
    reason: Option<String>,
}

async fn connect(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let asked: AskConnect = arguments(call)?;
    let persist = asked.persist.unwrap_or(true);
    let ask = Connect {
        peer: asked.peer_id,
        address: asked.multiaddr,
        timeout: Duration::from_millis(asked.timeout_ms.unwrap_or(TIMEOUT_MS)),
        retries: asked.retry_count.unwrap_or(RETRIES),
        persist,
    };
    let made = network.connect(ask, by(desk, call, asked.reason.as_deref())?).await?;
    told(&json!({
        "peer_id": made.peer,
        "multiaddr": made.address,
        "connection_id": made.connection_id,
        "connection_time_ms": millis(made.took),
        "protocol_version": made.protocol_version,
        "agent": made.agent,
        "peer_capabilities": made.capabilities,
        "persist": persist,
        "attempts": made.attempts,
        "transport": made.transport,
        "reused": made.reused,
    }))
}

#[derive(Deserialize)]
struct AskDisconnect {
    peer_id: String,
    reason: Option<String>,
    graceful: Option<bool>,
}

async fn disconnect(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let AskDisconnect { peer_id, reason, graceful } = arguments(call)?;
    let graceful = graceful.unwrap_or(true);
    let ask = Disconnect { peer: peer_id.clone(), graceful };
    let by = by(desk, call, reason.as_deref())?;
    let Disconnected { was_connected, took } = network.disconnect(ask, by).await?;
    told(&json!({
        "peer_id": peer_id,
        "was_connected": was_connected,
        "graceful": graceful,
        "reason": reason,
        "disconnection_time_ms": millis(took),
    }))
}

#[derive(Deserialize)]
struct AskBootstrap {
    bootstrap_nodes: Option<Vec<String>>,
    timeout_ms: Option<u64>,
    min_connections: Option<u64>,
    max_connections: Option<u64>,
}

async fn bootstrap(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let asked: AskBootstrap = arguments(call)?;
    let min = asked.min_connections.unwrap_or(CONNECTIONS_MIN);
    let max = asked.max_connections.unwrap_or(CONNECTIONS_MAX.max(min));
    if min > max {
        let message = format!("min_connections is {min}, which is over max_connections, {max}");
        return Err(Refusal::new(Code::InvalidArgument, message).hint("raise max_connections").into());
    }
    let timeout = Duration::from_millis(asked.timeout_ms.unwrap_or(BOOTSTRAP_MS));
    let ask = Bootstrap { nodes: asked.bootstrap_nodes, timeout, min, max };
    let done = network.bootstrap(ask, by(desk, call, None)?).await?;
    let attempt = |tried: &Tried| {
        let mut attempt = json!({
            "multiaddr": tried.address,
            "method": tried.method,
            "ok": tried.ok,
            "duration_ms": millis(tried.took),
        });
        if let Some(error) = &tried.error {
            attempt["error"] = json!(error);
        }
        attempt
    };
    // A bootstrap that did not come to a network is told in full: its attempts say why.
    let shown = json!({
        "success": done.ready,
        "connected_count": done.connected.len(),
        "failed_count": done.attempts.iter().filter(|tried| !tried.ok).count(),
        "attempts": done.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "connected_peers": done.connected,
        "network_ready": done.ready,
        "public_addrs": done.public_addrs,
        "nat_status": done.nat,
        "bootstrap_time_ms": millis(done.took),
    });
    Ok(shown.to_string())
}

/// The arguments of `peer_list`.
#[derive(Deserialize)]
pub struct AskList {
    status_filter: Option<String>,
    #[serde(default)]
    capability_filter: Vec<String>,
    sort_by: Option<String>,
    #[serde(flatten)]
    paging: Paging,
}

async fn list(desk: &Desk, call: &Invocation) -> Told {
    let dialling = network(desk)?.dialling();
    let asked: AskList = arguments(call)?;
    told(&desk.ask(move |view| asked.of(view, &dialling)).await?)
}

impl AskList {
    /// Lists the peers that a log knows of; those in `dialling` show as connecting.
    pub fn of(self, view: &View, dialling: &[String]) -> Result<Value, QueryError> {
        let sort = self.sort_by.as_deref().and_then(Sort::parse);
        let sort = sort.unwrap_or_default();
        let connecting = self.status_filter.as_deref() == Some("connecting");
        let filter = Filter {
            status: self.status_filter.as_deref().and_then(Status::parse),
            capabilities: self.capability_filter,
            among: connecting.then(|| dialling.to_vec()),
            sort,
        };
        let listed = view.peers(&filter, self.paging.from(), self.paging.limit())?;
        let mut shown = page("peers", listed, |peer| {
            let status = match peer.status {
                Status::Disconnected | Status::Unreachable if dialling.contains(&peer.id) => "connecting",
                status => status.as_str(),
            };
            row(&peer, status)
        });
        shown["sort_by"] = json!(sort.as_str());
        Ok(shown)
    }
}

fn row(peer: &Peer, status: &str) -> Value {
    json!({
        "peer_id": peer.id,
        "multiaddrs": peer.addrs,
        "status": status,
        "capabilities": peer.capabilities.as_deref().unwrap_or_default(),
        "last_seen": peer.last_seen_ms.map(time),
        "connected_since": peer.link.as_ref().map(|link| time(link.since_ms)),
        "latency_ms": latency(peer).0,
        "reliability_score": peer.reliability().map(whole),
        "quarantined": peer.quarantine.is_some(),
    })
}

/// Returns the peer as the log knows it, and the seq it was read at; `None` if it was never heard of.
async fn known(desk: &Desk, id: &str, as_of: Option<u64>) -> Result<Option<At<Peer>>, Refusal> {
    let id = id.to_owned();
    desk.ask(move |view| match view.peer(&id, as_of) {
        Ok(at) => Ok(Some(At { applied: seen(at.applied, as_of)?, what: at.what })),
        Err(QueryError::NotFound(_)) => Ok(None),
        Err(err) => Err(err),
    })
    .await
}

#[derive(Deserialize)]
struct AskFollow {
    peer_id: String,
    #[serde(default)]
    release: bool,
    reason: Option<String>,
}

async fn follow(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let AskFollow { peer_id, release, reason } = arguments(call)?;
    let by = by(desk, call, reason.as_deref())?;
    let held = known(desk, &peer_id, None).await?.is_some_and(|at| at.what.quarantine.is_some());
    if held && !release {
        let message = "this peer signed two histories of its log and takes no part until it is released";
        let hint = "look at its peer.forked event, then ask again with release: true";
        return Err(Refusal::new(Code::FailedPrecondition, message).hint(hint).into());
    }
    if held {
        let By { actor, cause, note } = by.clone();
        let peering = Peering { actor, cause, note, ..Peering::new(peer_id.clone(), News::Released) };
        match desk.router.ledger().submit(Command::Peer(Box::new(peering))).await {
            Ok(Ruling::Done(_) | Ruling::Unchanged) => {}
            Ok(Ruling::Denied(refusal)) => return Err(refusal.into()),
            Ok(_) => return Err(unexpected().into()),
            Err(stopped) => return Err(Refusal::new(Code::Unavailable, stopped.to_string()).into()),
        }
    }
    let Following { log, size } = network.follow(peer_id.clone(), by).await?;
    told(&json!({
        "peer_id": peer_id,
        "following": true,
        "released": held,
        "log": log.map(|log| log.to_string()),
        "size": size,
    }))
}

#[derive(Deserialize)]
struct AskUnfollow {
    peer_id: String,
    reason: Option<String>,
}

async fn unfollow(desk: &Desk, call: &Invocation) -> Told {
    let network = network(desk)?;
    let AskUnfollow { peer_id, reason } = arguments(call)?;
    let by = by(desk, call, reason.as_deref())?;
    let was_following = network.unfollow(peer_id.clone(), by).await?;
    told(&json!({"peer_id": peer_id, "following": false, "was_following": was_following}))
}
