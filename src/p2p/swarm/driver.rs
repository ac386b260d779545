//! The one task that owns the swarm: takes wishes, answers them, tells what happens.
//!
//! Invariants:
//! - no arm of the loop awaits: every output is sent without waiting, and counted where it did not fit;
//! - a dial, a question or a stream under way is kept under its id until it is answered, refused or given up.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::ListenerId,
    futures::StreamExt as _,
    gossipsub,
    metrics::Metrics,
    swarm::{
        ConnectionId, DialError, FromSwarm, NetworkBehaviour as _, NewExternalAddrCandidate,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    time,
};

use crate::{
    block::Cid,
    p2p::{
        Cause, Connected, Head, Nat, NetError, NetEvent, Refused, Settings, Snapshot, Stream, Verdict, Wire,
        handle::Command,
        limits,
        swarm::{
            addresses::{self, Reach},
            behaviour::{Behaviour, Counters, heads},
            links::{self, Peering},
            relays::Relays,
            table::{self, Questions},
        },
    },
};

mod events;

/// The channels that the driver writes to.
pub struct Outlets {
    pub events: broadcast::Sender<NetEvent>,
    pub heads: broadcast::Sender<Head>,
    pub addrs: watch::Sender<Vec<String>>,
}

/// A dial that somebody asked for.
struct Dial {
    began: Instant,
    /// The attempt at the given addresses; `None` while another part of the swarm is dialling the peer.
    attempt: Option<ConnectionId>,
    addrs: Vec<Multiaddr>,
    waiters: Vec<oneshot::Sender<Result<Connected, NetError>>>,
}

pub struct Driver {
    swarm: Swarm<Behaviour>,
    wishes: mpsc::Receiver<Command>,
    outlets: Outlets,
    counters: Counters,
    refused: Refused,
    told: Refused,
    links: HashMap<PeerId, Peering>,
    dials: HashMap<PeerId, Dial>,
    questions: Questions,
    /// Where peers were last known to listen.
    book: HashMap<PeerId, Vec<Multiaddr>>,
    listeners: HashMap<ListenerId, Multiaddr>,
    lost: Vec<(Instant, Multiaddr)>,
    /// Whether somebody tried to reach this node from outside and could not.
    unreachable: bool,
    /// Addresses under which this node is said to be seen, confirmed or not.
    seen: BTreeSet<Multiaddr>,
    /// When own keys are to be published again, because the neighbourhood in the table has changed.
    tell_again: Option<Instant>,
    swept_slowly: Instant,
    dht_protocol: String,
    mdns: bool,
    metrics: Option<Metrics>,
    relays: Relays,
}

impl Driver {
    pub fn new(
        swarm: Swarm<Behaviour>,
        wishes: mpsc::Receiver<Command>,
        outlets: Outlets,
        counters: Counters,
        listeners: HashMap<ListenerId, Multiaddr>,
        settings: &Settings,
        metrics: Option<Metrics>,
    ) -> Result<Self, NetError> {
        let relays = settings.relays.iter().map(|peer| addresses::peer(peer));
        Ok(Self {
            swarm,
            wishes,
            outlets,
            counters,
            refused: Refused::default(),
            told: Refused::default(),
            links: HashMap::new(),
            dials: HashMap::new(),
            questions: Questions::default(),
            book: HashMap::new(),
            listeners,
            lost: Vec::new(),
            unreachable: false,
            seen: BTreeSet::new(),
            tell_again: None,
            swept_slowly: Instant::now(),
            dht_protocol: settings.dht_protocol.clone(),
            mdns: settings.mdns,
            metrics,
            relays: Relays::new(relays.collect::<Result<_, _>>()?),
        })
    }

    pub async fn run(mut self) {
        let mut sweep = time::interval(limits::SWEEP_EVERY);
        sweep.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let stopped = loop {
            tokio::select! {
                wish = self.wishes.recv() => match wish {
                    Some(Command::Stop { answer }) => break Some(answer),
                    Some(wish) => self.obey(wish),
                    None => break None,
                },
                event = self.swarm.select_next_some() => self.on_swarm(event),
                _ = sweep.tick() => self.sweep(Instant::now()),
            }
        };
        for (peer, link) in self.links.drain().filter(|(_, link)| link.announced) {
            let cause = link.leaving.unwrap_or(Cause::Stopped);
            let _ = self.outlets.events.send(NetEvent::Disconnected { peer: peer.to_base58(), cause });
        }
        drop(self.swarm);
        if let Some(answer) = stopped {
            let _ = answer.send(());
        }
    }

    fn obey(&mut self, wish: Command) {
        // Whoever no longer waits for an answer does not miss it, here and below.
        match wish {
            Command::Dial { peer, addrs, answer } => self.dial(&peer, &addrs, answer),
            Command::Disconnect { peer, answer } => drop(answer.send(self.disconnect(&peer))),
            Command::Open { peer, wire, answer } => self.open(&peer, wire, answer),
            Command::Provide { keys, answer } => drop(answer.send(self.provide(&keys))),
            Command::StopProviding { keys } => {
                if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
                    self.questions.stop_providing(kad, keys.iter().map(table::key));
                }
            }
            Command::Providers { key, deadline, answer } => {
                self.ask_table(answer, |questions, kad, answer| {
                    questions.providers(kad, table::key(&key), deadline, answer);
                });
            }
            Command::FindPeer { peer, answer } => self.find(&peer, answer),
            Command::BootstrapDht { answer } => {
                let local = *self.swarm.local_peer_id();
                self.ask_table(answer, |questions, kad, answer| questions.walk(kad, local, answer));
            }
            Command::PublishHead { bytes } => {
                if let Err(err) = self.swarm.behaviour_mut().gossip.0.publish(heads(), bytes) {
                    // Nobody to tell, or told already, is no fault; it is a state of the network.
                    tracing::debug!(%err, "head not published");
                }
            }
            Command::Judge { id, from, verdict } => self.judge(id, &from, verdict),
            Command::Seen { ips } => self.seen(&ips),
            Command::Keep { peers } => {
                let peers = peers.iter().filter_map(|peer| addresses::peer(peer).ok());
                self.swarm.behaviour_mut().streams.keep(peers.collect());
            }
            Command::Snapshot { answer } => drop(answer.send(self.snapshot())),
            // Ends the loop before it comes here.
            Command::Stop { answer } => drop(answer),
        }
    }

    fn dial(&mut self, peer: &str, addrs: &[String], answer: oneshot::Sender<Result<Connected, NetError>>) {
        let parsed = addresses::peer(peer).map_err(NetError::from).and_then(|peer| {
            if peer == *self.swarm.local_peer_id() {
                let (_, err) = links::failed(&peer, &DialError::LocalPeerId { address: Multiaddr::empty() });
                return Err(err);
            }
            let addrs = addrs.iter().map(|address| addresses::address_of(&peer, address));
            Ok((peer, addrs.collect::<Result<Vec<_>, _>>()?))
        });
        let (peer, mut addrs) = match parsed {
            Ok(parsed) => parsed,
            Err(err) => return drop(answer.send(Err(err))),
        };
        self.swarm.behaviour_mut().streams.seek(&peer);
        if let Some(link) = self.links.get(&peer)
            && link.announced
            && link.leaving.is_none()
            && let Some(connected) = link.connected(&peer, true)
        {
            return drop(answer.send(Ok(connected)));
        }
        if addrs.is_empty() {
            addrs = self.book.get(&peer).cloned().unwrap_or_default();
        }
        let under_way = self.dials.len();
        let dial = self.dials.entry(peer).or_insert_with(|| Dial {
            began: Instant::now(),
            attempt: None,
            addrs: Vec::new(),
            waiters: Vec::new(),
        });
        if dial.waiters.len() >= limits::WAITERS_MAX || under_way >= limits::DIALS_MAX {
            return drop(answer.send(Err(NetError::Busy)));
        }
        dial.waiters.push(answer);
        let begins = dial.attempt.is_none() && dial.addrs.is_empty();
        dial.addrs.extend(addrs);
        dial.addrs.truncate(limits::ADDRESSES_PER_PEER_MAX);
        if begins && !self.links.contains_key(&peer) {
            self.attempt(peer);
        }
    }

    /// Dials the given addresses. If another part of the swarm is dialling the peer already, waits for that attempt
    /// first.
    fn attempt(&mut self, peer: PeerId) {
        let Some(dial) = self.dials.get_mut(&peer) else {
            return;
        };
        let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
        let options = if dial.addrs.is_empty() {
            options.build()
        } else {
            options.addresses(dial.addrs.clone()).build()
        };
        let connection = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => dial.attempt = Some(connection),
            Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(err) => self.undialled(peer, &err),
        }
    }

    fn undialled(&mut self, peer: PeerId, error: &DialError) {
        let Some(dial) = self.dials.remove(&peer) else {
            return;
        };
        let (address, error) = links::failed(&peer, error);
        if let NetError::Unreachable { cause, .. } = &error {
            let address = address.or_else(|| dial.addrs.first().cloned());
            self.tell(NetEvent::Unreachable {
                peer: peer.to_base58(),
                address: address.map(|address| address.to_string()).unwrap_or_default(),
                cause: *cause,
            });
        }
        for waiter in dial.waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    fn disconnect(&mut self, peer: &str) -> bool {
        let Ok(peer) = addresses::peer(peer) else {
            return false;
        };
        self.swarm.behaviour_mut().streams.leave(peer);
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.remove_peer(&peer);
        }
        if let Some(link) = self.links.get_mut(&peer) {
            link.leaving = Some(Cause::Local);
        }
        self.swarm.disconnect_peer_id(peer).is_ok()
    }

    fn open(&mut self, peer: &str, wire: Wire, answer: oneshot::Sender<Result<Stream, NetError>>) {
        let found = addresses::peer(peer).map_err(NetError::from).and_then(|id| {
            let link = self.links.get(&id).filter(|link| link.leaving.is_none());
            let connection = link.and_then(Peering::best).map(|connection| connection.id);
            match (link, connection) {
                (Some(link), _) if !link.speaks(wire.protocol()) => {
                    Err(NetError::Unsupported { peer: id.to_base58(), protocol: wire.protocol() })
                }
                (Some(_), Some(connection)) => Ok((id, connection)),
                _ => Err(NetError::NotConnected { peer: id.to_base58() }),
            }
        });
        match found {
            Ok((peer, connection)) => {
                self.swarm.behaviour_mut().streams.open(peer, connection, wire, answer);
            }
            Err(err) => drop(answer.send(Err(err))),
        }
    }

    fn provide(&mut self, keys: &[Cid]) -> Result<(), NetError> {
        let kad = self.swarm.behaviour_mut().kad.as_mut().ok_or(NetError::Off("p2p.dht"))?;
        self.questions.provide(kad, keys.iter().map(table::key))
    }

    fn find(&mut self, peer: &str, answer: oneshot::Sender<Result<Vec<String>, NetError>>) {
        let peer = match addresses::peer(peer) {
            Ok(peer) => peer,
            Err(err) => return drop(answer.send(Err(err.into()))),
        };
        if let Some(known) = self.book.get(&peer) {
            return drop(answer.send(Ok(known.iter().map(ToString::to_string).collect())));
        }
        self.ask_table(answer, |questions, kad, answer| questions.peer(kad, peer, answer));
    }

    fn ask_table<T>(
        &mut self,
        answer: oneshot::Sender<Result<T, NetError>>,
        ask: impl FnOnce(&mut Questions, &mut table::Kad, oneshot::Sender<Result<T, NetError>>),
    ) {
        match self.swarm.behaviour_mut().kad.as_mut() {
            None => drop(answer.send(Err(NetError::Off("p2p.dht")))),
            Some(_) if self.questions.busy() => drop(answer.send(Err(NetError::Busy))),
            Some(kad) => ask(&mut self.questions, kad, answer),
        }
    }

    fn judge(&mut self, id: Vec<u8>, from: &str, verdict: Verdict) {
        let Ok(from) = addresses::peer(from) else {
            return;
        };
        let acceptance = match verdict {
            Verdict::Accept => gossipsub::MessageAcceptance::Accept,
            Verdict::Reject => gossipsub::MessageAcceptance::Reject,
        };
        let id = gossipsub::MessageId::new(&id);
        // False where the message is forgotten by now: too late to pass it on.
        let _ = self.swarm.behaviour_mut().gossip.0.report_message_validation_result(&id, &from, acceptance);
    }

    /// Replaces the addresses under which this node's listeners are seen from outside.
    fn seen(&mut self, ips: &[IpAddr]) {
        let own = self.swarm.listeners();
        let places = own.flat_map(|own| ips.iter().filter_map(|ip| addresses::seen(own, *ip)));
        let before = std::mem::replace(&mut self.seen, places.take(limits::SEEN_MAX).collect());
        for addr in self.seen.difference(&before) {
            // As when a peer tells so: others are asked to dial it.
            let candidate = NewExternalAddrCandidate { addr };
            self.swarm.behaviour_mut().on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
    }

    fn snapshot(&self) -> Snapshot {
        let streams = &self.swarm.behaviour().streams;
        let links = self.links.iter().filter(|(_, link)| link.announced).filter_map(|(peer, link)| {
            let traffic = streams.traffic(peer);
            let bytes_in = traffic.map_or(0, |traffic| traffic.bytes_in.load(Relaxed));
            let bytes_out = traffic.map_or(0, |traffic| traffic.bytes_out.load(Relaxed));
            link.link(peer, bytes_in, bytes_out)
        });
        let public = |address: &&Multiaddr| addresses::reach(address) == Reach::Public;
        let external: Vec<_> = self.swarm.external_addresses().filter(public).collect();
        let nat = if external.iter().any(|address| addresses::own_reach(address).is_some()) {
            Nat::Public
        } else if self.unreachable {
            Nat::Private
        } else {
            Nat::Unknown
        };
        let local = self.swarm.local_peer_id();
        Snapshot {
            connections: links.collect(),
            external: external
                .into_iter()
                .chain(&self.seen)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(|address| addresses::with_peer(address, local).to_string())
                .collect(),
            nat,
            refused: self.refused(),
        }
    }

    fn refused(&self) -> Refused {
        Refused {
            streams: self.counters.streams.load(Relaxed),
            records: self.counters.records.load(Relaxed),
            ..self.refused
        }
    }

    fn tell(&self, event: NetEvent) {
        // Nobody listens, or will hear that they missed some: never a reason to wait.
        let _ = self.outlets.events.send(event);
    }
}
