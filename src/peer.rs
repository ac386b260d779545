//! Peers: what is known of another node, and what of the news about it is worth an event.
//!
//! Invariants:
//! - a peer is the fold of its events, in whole numbers: every fold gives the same;
//! - news that changes nothing is not recorded;
//! - what other nodes say is cut to its bounds before it is recorded, never after.

pub mod score;
pub mod choice;

use serde::{Deserialize, Serialize};

use crate::{
    block::Cid,
    event::{
        Body, Event,
        peer::{
            ADDR_MAX, ADDRS_MAX, ATTEMPTS_MAX, BootstrapFinished, BootstrapStarted, CAPABILITIES_BYTES_MAX,
            CAPABILITIES_MAX, Direction, LogFollowed, PROTOCOLS_MAX, Parting, PeerConnected,
            PeerDisconnected, PeerDiscovered, PeerForked, PeerMeasured, PeerReleased, PeerUnreachable,
            RemoteCalled, Source, Transport,
        },
    },
    peer::score::Score,
    words::words,
};

/// The role of callers that are other nodes.
pub const ROLE: &str = "peer";
/// What a program says that was built without the network of nodes.
pub const BUILT_WITHOUT: &str = "this program was built without peers; build it with the feature `p2p`";
/// What to do where a node has no network and is to have one.
pub const TO_JOIN: &str = if cfg!(feature = "p2p") {
    "set p2p.enable = true in the configuration and start without --no-p2p"
} else {
    BUILT_WITHOUT
};
/// Services that may be named to tell a node its own address.
pub const SERVICES_MAX: usize = 8;
/// Bytes of a peer's name, and of any other word another node says.
pub const WORD_MAX: usize = 128;
/// Bytes that a bootstrap's attempts may come to in its event.
const ATTEMPTS_BYTES_MAX: usize = 12 * 1024;
/// A peer that stays unreachable for the same cause is told of this often.
const UNREACHABLE_EVERY_MS: u64 = 10 * 60_000;
/// A log that grows is told of this often.
const FOLLOWED_EVERY_MS: u64 = 60_000;
/// The weight of the newest call in the running mean of their times: a fifth.
const NEWEST_ONE_IN: u64 = 5;

words! {
    /// How a peer stands.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Status {
        Connected = "connected",
        /// Known, and neither connected nor tried in vain since.
        Disconnected = "disconnected",
        Unreachable = "unreachable",
    }
}

/// The connection with a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub address: String,
    pub transport: Transport,
    pub direction: Direction,
    pub runner: String,
    pub since_ms: u64,
    pub took_us: Option<u64>,
}

/// The last measure of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    pub at_ms: u64,
    pub latency_p50_us: Option<u64>,
    pub latency_p99_us: Option<u64>,
    /// Bytes a second, both ways, while there was a connection.
    pub bandwidth: Option<u64>,
}

/// Sums over all that was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub connections: u64,
    pub connected_ms: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub served: u64,
    pub sent: u64,
    pub failures: u64,
    /// Calls of this node that were tried at the peer, and those it did not answer.
    pub calls: u64,
    pub calls_failed: u64,
}

/// A log of the peer that is kept here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Followed {
    pub log: Cid,
    pub origin: String,
    pub size: u64,
    pub at_ms: u64,
}

/// Why a peer takes no part until somebody releases it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The event that holds the evidence.
    pub event: Cid,
    pub log: Cid,
    pub size_a: u64,
    pub size_b: u64,
}

/// Another node, as the log knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub id: String,
    /// The first and the last event about it.
    pub seq: u64,
    pub last_seq: u64,
    pub status: Status,
    /// Newest first.
    pub addrs: Vec<String>,
    pub source: Option<Source>,
    /// None where nobody has said.
    pub capabilities: Option<Vec<String>>,
    pub agent: Option<String>,
    pub protocols: Vec<String>,
    pub discovered_ms: Option<u64>,
    /// When it was last discovered, connected, measured or parted from.
    pub last_seen_ms: Option<u64>,
    pub link: Option<Link>,
    pub unreachable: Option<(PeerUnreachable, u64)>,
    pub counters: Counters,
    pub measure: Option<Measure>,
    /// Calls that it answered or did not.
    pub success: Score,
    /// Connections that held or did not.
    pub links: Score,
    /// The running mean of how long its answers took.
    pub call_us: Option<u64>,
    pub followed: Vec<Followed>,
    pub quarantine: Option<Quarantine>,
}

/// Logs of one peer that are remembered with it.
const FOLLOWED_MAX: usize = 8;

/// News about a peer or the network, before it is known whether it changes anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum News {
    /// `ttl_ms`: after how long a peer that is heard of again is worth telling of.
    Discovered {
        facts: PeerDiscovered,
        ttl_ms: u64,
    },
    Connected(PeerConnected),
    Disconnected(Parting),
    Unreachable(PeerUnreachable),
    Measured(PeerMeasured),
    Forked(PeerForked),
    Released,
    Followed {
        log: Cid,
        origin: String,
        size: u64,
    },
    BootstrapStarted(BootstrapStarted),
    BootstrapFinished(BootstrapFinished),
}

/// Whose events news makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Peer,
    Bootstrap,
}

impl News {
    pub fn subject(&self) -> Subject {
        match self {
            Self::BootstrapStarted(_) | Self::BootstrapFinished(_) => Subject::Bootstrap,
            Self::Discovered { .. }
            | Self::Connected(_)
            | Self::Disconnected(_)
            | Self::Unreachable(_)
            | Self::Measured(_)
            | Self::Forked(_)
            | Self::Released
            | Self::Followed { .. } => Subject::Peer,
        }
    }
}

/// The subject of a peer's events.
pub fn subject(id: &str) -> String {
    ["peer/", id].concat()
}

/// What of the news is worth an event; none where nothing changes by it.
pub fn told(known: Option<&Peer>, id: &str, news: News, now_ms: u64) -> Option<Body> {
    let connected = known.is_some_and(|peer| peer.link.is_some());
    match news {
        News::Discovered { facts, ttl_ms } => {
            let facts = bounded_discovery(facts);
            let fresh = known.is_none_or(|peer| peer.is_news(&facts, ttl_ms, now_ms));
            fresh.then_some(Body::PeerDiscovered(facts))
        }
        News::Connected(facts) => {
            let link = known.and_then(|peer| peer.link.as_ref());
            let news = link.is_none_or(|link| link.transport != facts.transport);
            news.then(|| Body::PeerConnected(bounded_connection(facts)))
        }
        News::Disconnected(cause) => connected.then_some(Body::PeerDisconnected(PeerDisconnected { cause })),
        News::Unreachable(facts) => {
            let PeerUnreachable { address, cause, attempts } = facts;
            let (address, cause) = (cut(address, ADDR_MAX), cut(cause, WORD_MAX));
            let told = known.and_then(|peer| peer.unreachable.as_ref());
            let again = told.is_some_and(|(last, at_ms)| {
                last.address == address && last.cause == cause && at_ms + UNREACHABLE_EVERY_MS > now_ms
            });
            let facts = PeerUnreachable { address, cause, attempts };
            (!connected && !again).then_some(Body::PeerUnreachable(facts))
        }
        News::Measured(facts) => {
            let idle = [facts.samples, facts.bytes_in, facts.bytes_out, facts.served, facts.sent];
            (known.is_some() && idle != [0; 5]).then_some(Body::PeerMeasured(facts))
        }
        News::Forked(facts) => {
            let same = |held: &Quarantine| {
                (held.log, held.size_a, held.size_b) == (facts.log, facts.size_a, facts.size_b)
            };
            let known = known.and_then(|peer| peer.quarantine.as_ref()).is_some_and(same);
            (!known).then(|| Body::PeerForked(PeerForked { origin: cut(facts.origin, WORD_MAX), ..facts }))
        }
        News::Released => known.and_then(|peer| peer.quarantine).map(|_| Body::PeerReleased(PeerReleased {})),
        News::Followed { log, origin, size } => {
            let held = known.and_then(|peer| peer.followed.iter().find(|followed| followed.log == log));
            let soon = held.is_some_and(|held| size <= held.size || held.at_ms + FOLLOWED_EVERY_MS > now_ms);
            let facts = LogFollowed { peer: id.to_owned(), log, origin: cut(origin, WORD_MAX), size };
            (!soon).then_some(Body::LogFollowed(facts))
        }
        News::BootstrapStarted(facts) => Some(Body::BootstrapStarted(facts)),
        News::BootstrapFinished(facts) => Some(Body::BootstrapFinished(bounded_bootstrap(facts))),
    }
}

impl Peer {
    /// The peer that its first event begins, whatever that tells.
    pub fn begun(event: &Event) -> Option<Self> {
        let fields = event.fields();
        let mut peer = Self {
            id: fields.subject.strip_prefix("peer/")?.to_owned(),
            seq: fields.seq,
            last_seq: fields.seq,
            status: Status::Disconnected,
            addrs: Vec::new(),
            source: None,
            capabilities: None,
            agent: None,
            protocols: Vec::new(),
            discovered_ms: None,
            last_seen_ms: None,
            link: None,
            unreachable: None,
            counters: Counters::default(),
            measure: None,
            success: Score::default(),
            links: Score::default(),
            call_us: None,
            followed: Vec::new(),
            quarantine: None,
        };
        peer.apply(event);
        Some(peer)
    }

    /// Folds a later event about this peer.
    pub fn apply(&mut self, event: &Event) {
        let fields = event.fields();
        let now_ms = fields.at_ms();
        self.last_seq = fields.seq;
        match event.body() {
            Some(Body::PeerDiscovered(facts)) => {
                self.source = Some(facts.source);
                self.learn(facts.addrs);
                self.capabilities = facts.capabilities.or(self.capabilities.take());
                self.discovered_ms = Some(now_ms);
                self.last_seen_ms = Some(now_ms);
            }
            Some(Body::PeerConnected(facts)) => self.connected(facts, now_ms),
            Some(Body::PeerDisconnected(facts)) => {
                self.status = Status::Disconnected;
                self.link = None;
                self.last_seen_ms = Some(now_ms);
                if facts.cause == Parting::Error {
                    self.links.count(false, now_ms);
                }
            }
            Some(Body::PeerUnreachable(facts)) => {
                self.status = Status::Unreachable;
                self.links.count(false, now_ms);
                self.unreachable = Some((facts, now_ms));
            }
            Some(Body::PeerMeasured(facts)) => self.measured(&facts, now_ms),
            Some(Body::PeerForked(facts)) => {
                let PeerForked { log, size_a, size_b, .. } = facts;
                self.quarantine = Some(Quarantine { event: event.cid(), log, size_a, size_b });
            }
            Some(Body::PeerReleased(_)) => self.quarantine = None,
            Some(Body::RemoteCalled(facts)) => self.called(&facts, now_ms),
            Some(Body::LogFollowed(facts)) => {
                let LogFollowed { log, origin, size, .. } = facts;
                self.followed.retain(|followed| followed.log != log);
                self.followed.insert(0, Followed { log, origin, size, at_ms: now_ms });
                self.followed.truncate(FOLLOWED_MAX);
            }
            // Other kinds are not about peers.
            Some(_) | None => {}
        }
    }

    /// What share of calls it answers at least, in parts per million, as its last event left it; none before any call.
    pub fn reliability(&self) -> Option<u64> {
        (self.success.samples() > 0).then(|| self.success.lower_bound())
    }

    /// How good its connection is, in parts per million; none where no latency was measured.
    pub fn connection_quality(&self) -> Option<u64> {
        let latency = self.measure?.latency_p50_us?;
        Some(score::connection_quality(&self.links, latency))
    }

    fn is_news(&self, facts: &PeerDiscovered, ttl_ms: u64, now_ms: u64) -> bool {
        let known = facts.addrs.iter().all(|addr| self.addrs.contains(addr));
        let same = facts.capabilities.is_none() || facts.capabilities == self.capabilities;
        let heard_ms = self.discovered_ms.map(|_| self.last_seen_ms.unwrap_or(0));
        let silent = heard_ms.is_none_or(|heard_ms| heard_ms.saturating_add(ttl_ms) <= now_ms);
        !known || !same || (silent && self.link.is_none())
    }

    fn learn(&mut self, addrs: Vec<String>) {
        let older: Vec<String> = std::mem::replace(&mut self.addrs, addrs);
        let new = older.into_iter().filter(|addr| !self.addrs.contains(addr)).collect::<Vec<_>>();
        self.addrs.extend(new);
        self.addrs.truncate(ADDRS_MAX);
    }

    fn connected(&mut self, facts: PeerConnected, now_ms: u64) {
        let PeerConnected { address, transport, direction, runner, took_us, agent, protocols } = facts;
        self.status = Status::Connected;
        self.last_seen_ms = Some(now_ms);
        self.unreachable = None;
        self.agent = agent.or(self.agent.take());
        if !protocols.is_empty() {
            self.protocols = protocols;
        }
        if direction == Direction::Out {
            // Where the peer dialled, the other end's port is not one to dial.
            self.learn(vec![address.clone()]);
        }
        self.links.count(true, now_ms);
        self.counters.connections += 1;
        self.link = Some(Link { address, transport, direction, runner, since_ms: now_ms, took_us });
    }

    fn measured(&mut self, facts: &PeerMeasured, now_ms: u64) {
        let counters = &mut self.counters;
        counters.connected_ms += facts.connected_ms;
        counters.bytes_in += facts.bytes_in;
        counters.bytes_out += facts.bytes_out;
        counters.served += facts.served;
        counters.sent += facts.sent;
        counters.failures += facts.failures;
        let bytes = facts.bytes_in.saturating_add(facts.bytes_out);
        let last = self.measure;
        self.measure = Some(Measure {
            at_ms: now_ms,
            latency_p50_us: facts.latency_p50_us.or(last.and_then(|last| last.latency_p50_us)),
            latency_p99_us: facts.latency_p99_us.or(last.and_then(|last| last.latency_p99_us)),
            bandwidth: bytes.saturating_mul(1000).checked_div(facts.connected_ms),
        });
        self.last_seen_ms = Some(now_ms);
        self.links.count(true, now_ms);
    }

    fn called(&mut self, facts: &RemoteCalled, now_ms: u64) {
        self.success.count(facts.ok, now_ms);
        self.counters.calls += 1;
        match facts.ok {
            true => {
                let mean =
                    self.call_us.map(|mean| mean - mean / NEWEST_ONE_IN + facts.took_us / NEWEST_ONE_IN);
                self.call_us = Some(mean.unwrap_or(facts.took_us));
            }
            false => self.counters.calls_failed += 1,
        }
    }
}

fn bounded_discovery(facts: PeerDiscovered) -> PeerDiscovered {
    let PeerDiscovered { source, addrs, capabilities } = facts;
    let capabilities = capabilities.map(|words| {
        // What does not fit is a contract rather than a name: contracts are asked for where they are served.
        let (contracts, names): (Vec<_>, Vec<_>) =
            words.into_iter().partition(|word| word.parse::<Cid>().is_ok());
        let words = names.into_iter().chain(contracts).collect();
        let mut left = CAPABILITIES_BYTES_MAX;
        let mut words = bounded(words, WORD_MAX, CAPABILITIES_MAX);
        words.retain(|word| {
            let fits = word.len() <= left;
            left -= if fits { word.len() } else { 0 };
            fits
        });
        words.sort_unstable();
        words
    });
    PeerDiscovered { source, addrs: bounded(addrs, ADDR_MAX, ADDRS_MAX), capabilities }
}

fn bounded_connection(facts: PeerConnected) -> PeerConnected {
    PeerConnected {
        address: cut(facts.address, ADDR_MAX),
        agent: facts.agent.map(|agent| cut(agent, WORD_MAX)).filter(|agent| !agent.is_empty()),
        protocols: bounded(facts.protocols, WORD_MAX, PROTOCOLS_MAX),
        ..facts
    }
}

fn bounded_bootstrap(facts: BootstrapFinished) -> BootstrapFinished {
    let mut left = ATTEMPTS_BYTES_MAX;
    let mut attempts = facts.attempts;
    attempts.truncate(ATTEMPTS_MAX);
    for attempt in &mut attempts {
        attempt.address = cut(std::mem::take(&mut attempt.address), ADDR_MAX);
        attempt.method = cut(std::mem::take(&mut attempt.method), WORD_MAX);
        attempt.cause = attempt.cause.take().map(|cause| cut(cause, WORD_MAX));
    }
    let fits = |attempt: &crate::event::peer::Attempt| {
        const KEYS: usize = 48;
        let cause = attempt.cause.as_ref().map_or(0, String::len);
        let len = KEYS + attempt.address.len() + attempt.method.len() + cause;
        left = left.checked_sub(len)?;
        Some(attempt.clone())
    };
    let attempts = attempts.iter().map_while(fits).collect();
    BootstrapFinished { attempts, ..facts }
}

/// The first of the words that are not too long, each once. A word that is too long means nothing when it is cut.
fn bounded(words: Vec<String>, len_max: usize, count_max: usize) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(words.len().min(count_max));
    for word in words {
        if kept.len() == count_max {
            break;
        }
        if !word.is_empty() && word.len() <= len_max && !kept.contains(&word) {
            kept.push(word);
        }
    }
    kept
}

fn cut(mut text: String, len_max: usize) -> String {
    text.truncate(text.floor_char_boundary(len_max));
    text
}

#[cfg(test)]
mod tests;
