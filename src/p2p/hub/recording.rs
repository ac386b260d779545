//! Recording: the swarm's events become news in the log, the rule of dialling is driven, and connections are
//! measured.
//!
//! Invariants:
//! - a peer's connection is recorded once it has said who it is, its end after that;
//! - whom to dial, and when, is the rule's to say.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinSet,
};

use super::{Goal, Hub, Traffic, carried};
use crate::{
    caller::Peer,
    clock::now_ms,
    event::peer::{Direction, Parting, PeerConnected, PeerMeasured, PeerUnreachable},
    p2p::{
        self, Cause, Link, NetEvent,
        dialling::{Input, Keeping, Output},
        discovery::{Found, Origin},
    },
    peer::News,
};

/// The pause between two looks at which kept peers are missing.
const KEEP_PAUSE: Duration = Duration::from_secs(2);
/// The longest dial of a kept peer.
const DIAL_MAX: Duration = Duration::from_secs(15);
const JOIN_MAX: Duration = Duration::from_secs(60);
/// Peers whose calls are remembered from one measure to the next.
const TOLD_MAX: usize = 10_000;
/// The window of one measure, and of the first.
const MEASURE: Duration = Duration::from_secs(60);
const MEASURE_FIRST: Duration = Duration::from_secs(5);

/// Takes in the swarm's events until it has ended.
pub(super) async fn events(hub: Hub, mut events: broadcast::Receiver<NetEvent>) {
    loop {
        match events.recv().await {
            Ok(event) => heard(&hub, event).await,
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events of the network were missed; asking how it stands");
                reconcile(&hub).await;
            }
            Err(RecvError::Closed) => return,
        }
    }
}

async fn heard(hub: &Hub, event: NetEvent) {
    match event {
        NetEvent::Found { peer, addrs, source } => {
            if let Some(origin) = Origin::parse(source) {
                if origin == Origin::Mdns {
                    hub.inner.parts.neighbours.hear(&peer, addrs.clone(), now_ms());
                }
                let found = Found { peer, addrs, capabilities: BTreeSet::new(), origin, seen_ms: now_ms() };
                hub.found(found).await;
            }
        }
        NetEvent::Connected(connected) => {
            let inbound = connected.direction == p2p::Direction::In;
            let facts = PeerConnected {
                address: bare(&connected.address),
                transport: carried(connected.transport),
                direction: direction(connected.direction),
                runner: hub.inner.parts.runner.clone(),
                took_us: Some(connected.took.as_micros() as u64),
                agent: connected.agent.clone(),
                protocols: connected.protocols.clone(),
            };
            let by = hub.asked_no_more(&connected.peer).filter(|_| facts.direction == Direction::Out);
            if !inbound || hub.worth_telling(&connected.peer) {
                hub.record_by(&connected.peer, News::Connected(facts), by).await;
            }
            hub.inner.connected.send_modify(|peers| {
                peers.insert(connected.peer.clone());
            });
        }
        NetEvent::Disconnected { peer, cause } => parted(hub, &peer, cause).await,
        NetEvent::Unreachable { peer, address, cause } => {
            let facts =
                PeerUnreachable { address: bare(&address), cause: cause.as_str().to_owned(), attempts: 1 };
            // A further try may follow: who asked is not forgotten.
            hub.record(&peer, News::Unreachable(facts)).await;
        }
        // Who speaks is recorded with the connection; what a limit turned away is counted in the snapshot.
        NetEvent::Identified { .. } | NetEvent::Limited { .. } => {}
    }
}

async fn parted(hub: &Hub, peer: &str, cause: Cause) {
    hub.inner.connected.send_modify(|peers| {
        peers.remove(peer);
    });
    let cause = match cause {
        Cause::Closed => Parting::Closed,
        Cause::Local | Cause::Denied => Parting::Local,
        Cause::Idle => Parting::Idle,
        Cause::Stopped => Parting::Stopped,
        Cause::Error | Cause::Refused | Cause::Timeout | Cause::WrongPeer | Cause::Address => Parting::Error,
    };
    let by = hub.asked_no_more(peer).filter(|_| cause == Parting::Local);
    hub.record_by(peer, News::Disconnected(cause), by).await;
}

/// Records the difference between the connections on record and those that exist.
async fn reconcile(hub: &Hub) {
    let links = hub.net().snapshot().await.connections;
    let standing: BTreeSet<Peer> = links.iter().map(|link| link.peer.clone()).collect();
    let gone: Vec<Peer> = hub.inner.connected.borrow().difference(&standing).cloned().collect();
    for peer in gone {
        parted(hub, &peer, Cause::Error).await;
    }
    for link in links {
        let facts = PeerConnected {
            address: bare(&link.address),
            transport: carried(link.transport),
            direction: direction(link.direction),
            runner: hub.inner.parts.runner.clone(),
            took_us: None,
            agent: link.agent,
            protocols: link.protocols,
        };
        hub.record(&link.peer, News::Connected(facts)).await;
        hub.inner.connected.send_modify(|peers| {
            peers.insert(link.peer.clone());
        });
    }
}

/// Returns an address without the peer's own id at its end; a relay's id stays.
fn bare(address: &str) -> String {
    match address.rsplit_once("/p2p/") {
        Some((bare, peer)) if !peer.contains('/') => bare.to_owned(),
        _ => address.to_owned(),
    }
}

fn direction(direction: p2p::Direction) -> Direction {
    match direction {
        p2p::Direction::In => Direction::In,
        p2p::Direction::Out => Direction::Out,
    }
}

/// Drives the rule of dialling until it is dropped.
pub(super) async fn keep(hub: Hub) {
    let begun = Instant::now();
    let (min, max) = hub.inner.parts.goal;
    let mut rule = Keeping::new(min, seed_of(&hub.inner.parts.runner));
    let (mut dials, mut dialled) = (JoinSet::new(), HashMap::new());
    let mut looks = tokio::time::interval(KEEP_PAUSE);
    let looking = hub.clone();
    hub.spawn(async move { looking.look_from_outside().await });
    loop {
        let outputs = tokio::select! {
            _ = looks.tick() => {
                hub.book().sweep(now_ms());
                let connected = hub.inner.connected.borrow().clone();
                let kept: BTreeSet<Peer> = hub.hold().await.into_keys().collect();
                let look = Input::Look { kept: &kept, connected: &connected, joinable: hub.may_join() };
                rule.handle(look, begun.elapsed().as_millis() as u64)
            }
            Some(ended) = dials.join_next_with_id() => {
                // A dial that panicked has ended too.
                let id = ended.map_or_else(|err| err.id(), |(id, ())| id);
                let peer: Option<Peer> = dialled.remove(&id);
                let now_ms = begun.elapsed().as_millis() as u64;
                peer.map(|peer| rule.handle(Input::Ended(&peer), now_ms)).unwrap_or_default()
            }
        };
        for output in outputs {
            match output {
                Output::Dial(peer) => {
                    let dial = dials.spawn(redial(hub.clone(), peer.clone()));
                    dialled.insert(dial.id(), peer);
                }
                Output::Join => {
                    let goal = Goal { nodes: Vec::new(), min, max, timeout: JOIN_MAX };
                    let hub = hub.clone();
                    hub.clone().spawn(async move {
                        hub.bootstrap(goal, None).await;
                    });
                }
            }
        }
    }
}

async fn redial(hub: Hub, peer: Peer) {
    let addrs = hub.addresses(&peer, DIAL_MAX).await;
    if let Err(err) = hub.net().dial(&peer, addrs, DIAL_MAX).await {
        tracing::debug!(peer, %err, "a kept peer is not reached");
    }
}

/// Returns a number that differs from process to process.
fn seed_of(runner: &str) -> u64 {
    runner.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

/// Records a measure of every connected peer once a window, until it is dropped.
pub(super) async fn measure(hub: Hub) {
    let mut before: BTreeMap<Peer, (Link, Instant)> = BTreeMap::new();
    // Calls are counted for longer than a connection lasts.
    let mut told: HashMap<Peer, Traffic> = HashMap::new();
    let mut pause = MEASURE_FIRST;
    loop {
        tokio::time::sleep(std::mem::replace(&mut pause, MEASURE)).await;
        let mut now = BTreeMap::new();
        for link in hub.net().snapshot().await.connections {
            let traffic = (hub.inner.parts.traffic)(&link.peer);
            let last = before.get(&link.peer).filter(|(last, _)| last.since == link.since);
            let window =
                last.map_or_else(|| link.since.elapsed().unwrap_or_default(), |(_, at)| at.elapsed());
            let (bytes_in, bytes_out) = last.map_or((0, 0), |(last, _)| (last.bytes_in, last.bytes_out));
            let old = told.insert(link.peer.clone(), traffic).unwrap_or_default();
            let stood = link.since.elapsed().unwrap_or_default().min(window);
            let (p50, p99) = percentiles(&link.ping_us);
            let facts = PeerMeasured {
                window_ms: window.as_millis() as u64,
                latency_p50_us: p50,
                latency_p99_us: p99,
                samples: link.ping_us.len() as u64,
                bytes_in: link.bytes_in.saturating_sub(bytes_in),
                bytes_out: link.bytes_out.saturating_sub(bytes_out),
                served: traffic.served.saturating_sub(old.served),
                sent: traffic.sent.saturating_sub(old.sent),
                failures: traffic.failures.saturating_sub(old.failures),
                connected_ms: stood.as_millis() as u64,
            };
            hub.record(&link.peer, News::Measured(facts)).await;
            now.insert(link.peer.clone(), (link, Instant::now()));
        }
        if told.len() > TOLD_MAX {
            told.retain(|peer, _| now.contains_key(peer));
        }
        before = now;
    }
}

/// Returns the median and the 99th percentile, by nearest rank.
fn percentiles(values: &[u64]) -> (Option<u64>, Option<u64>) {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    };
    (at(50), at(99))
}
