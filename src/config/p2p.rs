//! `[p2p]`: the network of nodes, and what each known peer may do here.
//!
//! Invariants:
//! - a peer id alone grants only to list tools: anything more stands in the peer's entry;
//! - every address that is dialled has a peer id that must answer there: in the address, or as that of its entry.

#[cfg(feature = "p2p")]
mod addresses;
#[cfg(not(feature = "p2p"))]
#[path = "p2p/unread.rs"]
mod addresses;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use self::addresses::{dials, is_peer, listens};
use super::read::Report;
use crate::{
    caller::Scope,
    config::bounds::{DAY_MS, LISTED_MAX, bound, is_name, is_url},
    follow::driver::Erasures,
    peer::{BUILT_WITHOUT, SERVICES_MAX},
};

/// The largest number of peers with an entry.
const ENTRIES_MAX: usize = 1_000;
/// The largest number of characters of a protocol's name.
const PROTOCOL_MAX: usize = 128;

/// `[p2p]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct P2p {
    /// Default false: no socket is opened, and the peer tools answer `unavailable`.
    pub enable: bool,
    /// Multiaddrs. Default `/ip4/127.0.0.1/tcp/0`.
    pub listen: Vec<String>,
    /// Multiaddrs that others are told beside what is found out; for nodes with a fixed public address.
    pub announce_addrs: Vec<String>,
    /// Nodes to join by, each with `/p2p/<peer id>`. Default none: no public network is ever joined unasked.
    pub bootstrap: Vec<String>,
    /// Default false: neighbours are neither asked nor told.
    pub mdns: bool,
    /// Default true: a Kademlia table under `dht_protocol`.
    pub dht: bool,
    /// Default `/cairn/kad/1.0.0`; nodes of other names do not meet.
    pub dht_protocol: String,
    /// Whether this node carries others' circuits. Default false.
    pub relay: bool,
    /// Default false: routers are not asked to open ports.
    pub upnp: bool,
    /// A JSON file of peers, shared by nodes that can write it.
    pub peers_file: Option<PathBuf>,
    /// `owner/repository` of a registry of peers kept as issues. The token stands in `CAIRN_GITHUB_TOKEN`.
    pub github: Option<String>,
    /// Where that registry's API is. Default the public one.
    pub github_api: Option<String>,
    /// URLs that answer with our public address as text; false, the default, asks nobody.
    pub external_services: Services,
    /// What is done about erasures in followed logs, where a peer's entry does not say. Default `follow`.
    pub erasures: Erasures,
    /// Whether contracts on offer are announced in the table. Default true.
    pub announce: bool,
    /// How long what was discovered is kept unseen, in seconds. Default 3600; 10 to 604,800.
    pub ttl_s: u64,
    /// Connections to keep up. Default 1; 0 to 1000.
    pub min_connections: u32,
    /// Default 64; 1 to 1000.
    pub max_connections: u32,
    /// One call by a peer, or of one. Default 60,000; 100 to 86,400,000.
    pub request_timeout_ms: u64,
    /// How long a connection may carry nothing. Default 300,000; 1,000 to 86,400,000.
    pub idle_ms: u64,
    /// Peer ids that are let in; empty lets all in.
    pub allow: Vec<String>,
    /// Peer ids that are kept out.
    pub block: Vec<String>,
    /// `[[p2p.peers]]`
    #[serde(skip)]
    pub peers: Vec<Entry>,
}

/// `[[p2p.peers]]`: one peer, and what it may do here.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Its peer id.
    pub id: String,
    /// Where it is dialled.
    pub addrs: Vec<String>,
    /// What it may do; default nothing beyond listing tools.
    pub scopes: Vec<String>,
    /// The tools it may call, by name; empty allows those that its scopes do. A trailing `*` stands for any ending.
    pub tools: Vec<String>,
    /// Whether a log it may read is read with the content of its payloads. Default true; else it has the events alone.
    pub payloads: bool,
    /// Whether its log is followed. Default false.
    pub follow: bool,
    /// What is done about erasures in its log. Default as `p2p.erasures` says.
    pub erasures: Option<Erasures>,
    /// Whether its tools are on offer here. Default true.
    pub offer: bool,
    /// Task types that this node takes from its queue; `tool:<name>` runs a tool of ours.
    pub work: Vec<String>,
}

impl P2p {
    /// Returns what is done about erasures in the logs of peers whose entries say so, by peer id.
    pub fn erasures_of(&self) -> BTreeMap<String, Erasures> {
        let said = self.peers.iter().filter_map(|entry| Some((entry.id.clone(), entry.erasures?)));
        said.collect()
    }
}

/// Services to ask for our public address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Services {
    Any(bool),
    Urls(Vec<String>),
}

impl Services {
    pub fn urls(&self) -> &[String] {
        match self {
            Self::Any(_) => &[],
            Self::Urls(urls) => urls,
        }
    }
}

impl Default for P2p {
    fn default() -> Self {
        Self {
            enable: false,
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            announce_addrs: Vec::new(),
            bootstrap: Vec::new(),
            mdns: false,
            dht: true,
            dht_protocol: "/cairn/kad/1.0.0".to_owned(),
            relay: false,
            upnp: false,
            peers_file: None,
            github: None,
            github_api: None,
            external_services: Services::Any(false),
            erasures: Erasures::default(),
            announce: true,
            ttl_s: 3_600,
            min_connections: 1,
            max_connections: 64,
            request_timeout_ms: 60_000,
            idle_ms: 300_000,
            allow: Vec::new(),
            block: Vec::new(),
            peers: Vec::new(),
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            id: String::new(),
            addrs: Vec::new(),
            scopes: Vec::new(),
            tools: Vec::new(),
            payloads: true,
            follow: false,
            erasures: None,
            offer: true,
            work: Vec::new(),
        }
    }
}

/// The fault of a text that is no peer id.
const PEER: &str = "expected a peer id";

/// Adds a fault for every rule that `p2p` breaks.
pub(super) fn check(p2p: &P2p, report: &mut Report) {
    if p2p.enable && !cfg!(feature = "p2p") {
        report.fault("p2p.enable", BUILT_WITHOUT);
    }
    let listen = "expected /ip4 or /ip6 with /tcp/<port>, or with /udp/<port>/quic-v1";
    list("p2p.listen", &p2p.listen, &listens, listen, report);
    list(
        "p2p.announce_addrs",
        &p2p.announce_addrs,
        &dials,
        "expected a multiaddr such as /ip4/127.0.0.1/tcp/4001",
        report,
    );
    list(
        "p2p.bootstrap",
        &p2p.bootstrap,
        &names_peer,
        "expected a multiaddr that ends in /p2p/<peer id>",
        report,
    );
    list("p2p.allow", &p2p.allow, &is_peer, PEER, report);
    let blocked = |peer: &str| is_peer(peer) && p2p.allow.iter().all(|allowed| allowed != peer);
    list("p2p.block", &p2p.block, &blocked, "expected a peer id that is not in p2p.allow", report);
    let services = p2p.external_services.urls();
    list("p2p.external_services", services, &is_url, "expected an http(s) url", report);
    if services.len() > SERVICES_MAX {
        report.fault("p2p.external_services", format!("more than {SERVICES_MAX} services"));
    }
    if p2p.external_services == Services::Any(true) {
        report.fault("p2p.external_services", "names no service; give a list of urls, or leave it false");
    }
    if p2p.dht_protocol.len() > PROTOCOL_MAX || !p2p.dht_protocol.starts_with('/') {
        report
            .fault("p2p.dht_protocol", "expected a protocol name that begins with a slash, at most 128 long");
    }
    if p2p.github.as_deref().is_some_and(|name| !is_repository(name)) {
        report.fault("p2p.github", "expected owner/repository");
    }
    if p2p.github_api.as_deref().is_some_and(|url| !is_url(url) || url.contains('?')) {
        report.fault("p2p.github_api", "expected an http(s) url without a query");
    }
    bound("p2p.ttl_s", p2p.ttl_s, 10..=7 * 24 * 60 * 60, report);
    bound("p2p.min_connections", p2p.min_connections.into(), 0..=1_000, report);
    bound("p2p.max_connections", p2p.max_connections.into(), 1..=1_000, report);
    if p2p.min_connections > p2p.max_connections {
        report.fault("p2p.min_connections", "is over p2p.max_connections");
    }
    bound("p2p.request_timeout_ms", p2p.request_timeout_ms, 100..=DAY_MS, report);
    bound("p2p.idle_ms", p2p.idle_ms, 1_000..=DAY_MS, report);
    if p2p.peers.len() > ENTRIES_MAX {
        report.fault("p2p.peers", format!("more than {ENTRIES_MAX} entries"));
    }
    for index in 0..p2p.peers.len() {
        check_entry(p2p, index, report);
    }
}

fn check_entry(p2p: &P2p, index: usize, report: &mut Report) {
    let entry = &p2p.peers[index];
    let place = |key: &str| format!("p2p.peers[{index}].{key}");
    if !is_peer(&entry.id) {
        report.fault(&place("id"), PEER);
    }
    if p2p.peers[..index].iter().any(|other| other.id == entry.id) {
        report.fault(&place("id"), "another entry has this peer");
    }
    if p2p.block.contains(&entry.id) || !(p2p.allow.is_empty() || p2p.allow.contains(&entry.id)) {
        report.fault(&place("id"), "p2p.allow or p2p.block keeps this peer out");
    }
    let its = |address: &str| match address.rsplit_once("/p2p/") {
        Some((_, named)) if !named.contains('/') => dials(address) && named == entry.id,
        _ => dials(address),
    };
    list(
        &place("addrs"),
        &entry.addrs,
        &its,
        "expected a multiaddr of this peer, such as /ip4/127.0.0.1/tcp/4001",
        report,
    );
    let scope = |scope: &str| Scope::parse(scope).is_some();
    let wanted = "expected a scope such as mcp:call, audit:read, admin or tools:<pattern>";
    list(&place("scopes"), &entry.scopes, &scope, wanted, report);
    let name = |name: &str| is_name(name.strip_suffix('*').unwrap_or(name), 0, 128, b"._:/-");
    list(&place("tools"), &entry.tools, &name, "expected a tool's name, or its beginning and *", report);
    let kind = |kind: &str| is_name(kind, 1, 128, b"._:/-");
    list(&place("work"), &entry.work, &kind, "expected a task type", report);
}

/// Adds a fault for every item that `keeps` rejects.
fn list(key: &str, list: &[String], keeps: &dyn Fn(&str) -> bool, wanted: &str, report: &mut Report) {
    if list.len() > LISTED_MAX {
        report.fault(key, format!("more than {LISTED_MAX} entries"));
    }
    for (index, _) in list.iter().enumerate().filter(|(_, item)| !keeps(item)) {
        report.fault(&format!("{key}[{index}]"), wanted);
    }
}

fn names_peer(text: &str) -> bool {
    dials(text) && text.rsplit_once("/p2p/").is_some_and(|(_, peer)| is_peer(peer))
}

fn is_repository(text: &str) -> bool {
    let part = |part: &str| is_name(part, 1, 100, b"._-") && !part.starts_with('.');
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}
