//! What the swarm tells: connections that come and go, what peers say of themselves, what time alone decides.
//!
//! Invariants:
//! - a peer is announced once, when it has said who it is or had time to, and its end is told only after that;
//! - a claimed address goes into the table only where it can be true and the peer speaks the table's protocol.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, allow_block_list,
    autonat::v2 as autonat,
    connection_limits,
    core::ConnectedPoint,
    gossipsub, identify, kad,
    kad::store::RecordStore as _,
    mdns, memory_connection_limits,
    metrics::{Metrics, Recorder as _},
    multiaddr::Protocol,
    ping,
    swarm::{
        ConnectionDenied, ConnectionId, DialError, ListenError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use crate::p2p::{
    Cause, Direction, Head, NetEvent, Refused, Transport, limits,
    swarm::{
        addresses::{self, Reach},
        behaviour::BehaviourEvent,
        driver::Driver,
        links::{self, Connection, Peering},
        relays,
    },
};

/// How often the slower timers are looked at.
const SLOW_SWEEP: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        if let Some(metrics) = &self.metrics {
            record(metrics, &event);
        }
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, established_in, ..
            } => {
                self.connected(peer_id, connection_id, &endpoint, established_in);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                self.closed(peer_id, connection_id, num_established == 0, links::closed(cause.as_ref()));
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), connection_id, error } => {
                self.not_reached(peer, connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error: ListenError::Denied { cause }, .. } => {
                self.denied(&cause)
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                tracing::info!(%address, "listening for peers");
                self.relays.given(listener_id);
                self.listening();
            }
            SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ExternalAddrConfirmed { .. }
            | SwarmEvent::ExternalAddrExpired { .. } => self.listening(),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if self.relays.lost(listener_id, Instant::now()) {
                    tracing::info!(?reason, "a relay carries for this node no more");
                } else if let Some(address) = self.listeners.remove(&listener_id) {
                    tracing::warn!(%address, ?reason, "listener lost; it is tried again");
                    self.lost.push((Instant::now() + limits::RELISTEN_AFTER, address));
                }
                self.listening();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener failed to accept"),
            SwarmEvent::NewExternalAddrOfPeer { peer_id, address } => self.note(peer_id, [address]),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.identified(peer_id, connection_id, &info);
            }
            BehaviourEvent::Identify(identify::Event::Error { peer_id, .. }) => self.announce(peer_id),
            BehaviourEvent::Identify(identify::Event::Sent { .. } | identify::Event::Pushed { .. }) => {}
            BehaviourEvent::Ping(ping) => self.pinged(&ping),
            BehaviourEvent::Kad(event) => self.on_table(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.found(found),
            BehaviourEvent::Mdns(mdns::Event::Expired(_)) => {}
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_head(propagation_source, message_id, message);
            }
            BehaviourEvent::Autonat(autonat::client::Event { result, .. }) => {
                self.unreachable = result.is_err()
            }
            BehaviourEvent::Gossip(_)
            | BehaviourEvent::RelayClient(_)
            | BehaviourEvent::Relay(_)
            | BehaviourEvent::Dcutr(_)
            | BehaviourEvent::AutonatServer(_)
            | BehaviourEvent::Upnp(_) => {}
            BehaviourEvent::Limits(never)
            | BehaviourEvent::Memory(never)
            | BehaviourEvent::Allowed(never)
            | BehaviourEvent::Blocked(never)
            | BehaviourEvent::Streams(never) => match never {},
        }
    }

    fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, took: Duration) {
        let now = Instant::now();
        self.relays.returned(&peer, now);
        let wished = self.dials.get(&peer).filter(|dial| dial.attempt == Some(id));
        let took = wished.map_or(took, |dial| now.duration_since(dial.began));
        let link = self.links.entry(peer).or_insert_with(|| Peering::new(took, now));
        let before = link.transport();
        link.connections.push(Connection::new(id, endpoint));
        self.moved(peer, before);
    }

    /// Reports a peer again whose best connection uses another transport now.
    fn moved(&self, peer: PeerId, before: Option<Transport>) {
        if let Some(link) = self.links.get(&peer)
            && link.announced
            && link.transport() != before
            && let Some(connected) = link.connected(&peer, false)
        {
            self.tell(NetEvent::Connected(connected));
        }
    }

    fn closed(&mut self, peer: PeerId, id: ConnectionId, last: bool, cause: Cause) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let before = link.transport();
        link.connections.retain(|connection| connection.id != id);
        if !last {
            return self.moved(peer, before);
        }
        let (announced, leaving) = (link.announced, link.leaving);
        let cause = leaving.unwrap_or(cause);
        self.links.remove(&peer);
        if announced {
            self.tell(NetEvent::Disconnected { peer: peer.to_base58(), cause });
        }
        if leaving.is_some() {
            // Who asks for a peer that is being let go asks for a new connection.
            self.attempt(peer);
        } else {
            self.given_up(peer, cause);
        }
    }

    fn not_reached(&mut self, peer: PeerId, id: ConnectionId, error: &DialError) {
        let Some(dial) = self.dials.get(&peer) else {
            return;
        };
        match dial.attempt {
            Some(attempt) if attempt == id => self.undialled(peer, error),
            Some(_) => {}
            // Another part's attempt has failed at its addresses; now come the wished ones.
            None if !self.links.contains_key(&peer) => self.attempt(peer),
            None => {}
        }
    }

    fn denied(&mut self, cause: &ConnectionDenied) {
        let listed = cause.downcast_ref::<allow_block_list::Blocked>().is_some()
            || cause.downcast_ref::<allow_block_list::NotAllowed>().is_some();
        let limited = cause.downcast_ref::<connection_limits::Exceeded>().is_some()
            || cause.downcast_ref::<memory_connection_limits::MemoryUsageLimitExceeded>().is_some();
        self.refused.peers += u64::from(listed);
        self.refused.connections += u64::from(limited);
    }

    fn listening(&mut self) {
        let local = *self.swarm.local_peer_id();
        let listeners: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        let external = self.swarm.external_addresses().cloned();
        let all = listeners.iter().cloned().chain(external);
        let mut addrs: Vec<_> =
            all.map(|address| addresses::with_peer(&address, &local).to_string()).collect();
        addrs.sort_unstable();
        addrs.dedup();
        self.outlets.addrs.send_replace(addrs);
        // Whom nobody can reach must not be asked for records: behind a router, only what others confirm counts.
        let mode = match listeners.iter().filter_map(addresses::own_reach).max() {
            Some(Reach::Loopback | Reach::Public) => Some(kad::Mode::Server),
            Some(Reach::Private) if self.mdns => Some(kad::Mode::Server),
            Some(Reach::Private) | None => None,
        };
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.set_mode(mode);
        }
    }

    fn identified(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let Some(over) = link.connections.iter().find(|connection| connection.id == id) else {
            return;
        };
        let over = over.address.clone();
        let new = link.identify(info);
        let claimed = info.listen_addrs.iter().filter(|claimed| addresses::plausible(claimed, &over));
        let addrs: Vec<_> = claimed.take(limits::ADDRESSES_PER_PEER_MAX).cloned().collect();
        let in_table = info.protocols.iter().any(|protocol| *protocol == self.dht_protocol.as_str());
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut()
            && in_table
        {
            for address in &addrs {
                kad.add_address(&peer, address.clone());
            }
        }
        let told = addrs.iter().map(ToString::to_string).collect();
        self.note(peer, addrs);
        self.announce(peer);
        if new {
            self.tell(NetEvent::Identified {
                peer: peer.to_base58(),
                agent: info.agent_version.chars().take(limits::AGENT_MAX).collect(),
                protocol_version: info.protocol_version.chars().take(limits::AGENT_MAX).collect(),
                protocols: info
                    .protocols
                    .iter()
                    .take(limits::PROTOCOLS_MAX)
                    .map(ToString::to_string)
                    .collect(),
                addrs: told,
            });
        }
    }

    /// Reports a peer, once, and answers those who dialled it.
    fn announce(&mut self, peer: PeerId) {
        let Some(connected) = self.links.get(&peer).and_then(|link| link.connected(&peer, false)) else {
            return;
        };
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.leaving.is_none()) else {
            return;
        };
        if !link.announced {
            link.announced = true;
            self.tell(NetEvent::Connected(connected.clone()));
        }
        for waiter in self.dials.remove(&peer).into_iter().flat_map(|dial| dial.waiters) {
            let _ = waiter.send(Ok(connected.clone()));
        }
    }

    fn pinged(&mut self, ping: &ping::Event) {
        let Some(link) = self.links.get_mut(&ping.peer) else {
            return;
        };
        match &ping.result {
            Ok(round_trip) => link.pinged(*round_trip),
            Err(ping::Failure::Unsupported) => {}
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => {
                if link.missed() {
                    link.leaving.get_or_insert(Cause::Error);
                    self.swarm.close_connection(ping.connection);
                }
            }
        }
    }

    fn on_table(&mut self, event: kad::Event) {
        let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() else {
            return;
        };
        match event {
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(record) },
            } => {
                // The table has checked that the sender is the provider; what does not fit is counted there.
                let _ = kad.store_mut().add_provider(record);
            }
            kad::Event::InboundRequest {
                request: kad::InboundRequest::PutRecord { record: Some(record), .. },
            } => {
                let _ = kad.store_mut().put(record);
            }
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.questions.progressed(id, result, step.last);
            }
            kad::Event::RoutingUpdated { peer, is_new_peer, addresses, .. } => {
                let addrs: Vec<_> = addresses.into_vec();
                if is_new_peer {
                    self.tell_again.get_or_insert_with(|| Instant::now() + limits::TELL_AGAIN_AFTER);
                    self.tell(NetEvent::Found {
                        peer: peer.to_base58(),
                        addrs: addrs.iter().map(ToString::to_string).collect(),
                        source: "dht",
                    });
                }
                self.note(peer, addrs);
            }
            kad::Event::InboundRequest { .. }
            | kad::Event::UnroutablePeer { .. }
            | kad::Event::RoutablePeer { .. }
            | kad::Event::PendingRoutablePeer { .. }
            | kad::Event::ModeChanged { .. } => {}
        }
    }

    fn found(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let mut peers: HashMap<PeerId, Vec<Multiaddr>> = HashMap::new();
        for (peer, address) in found {
            let addrs = peers.entry(peer).or_default();
            if let Ok(address) = addresses::address_of(&peer, &address.to_string())
                && addrs.len() < limits::ADDRESSES_PER_PEER_MAX
            {
                addrs.push(address);
            }
        }
        for (peer, addrs) in peers {
            self.tell(NetEvent::Found {
                peer: peer.to_base58(),
                addrs: addrs.iter().map(ToString::to_string).collect(),
                source: "mdns",
            });
            self.note(peer, addrs);
        }
    }

    fn on_head(&mut self, from: PeerId, id: gossipsub::MessageId, message: gossipsub::Message) {
        let author = message.source.unwrap_or(from);
        let head = Head {
            author: author.to_base58(),
            from: from.to_base58(),
            bytes: message.data,
            id: id.0.clone(),
        };
        if self.outlets.heads.send(head).is_err() {
            self.refused.heads += 1;
            let ignored = gossipsub::MessageAcceptance::Ignore;
            self.swarm.behaviour_mut().gossip.0.report_message_validation_result(&id, &from, ignored);
        }
    }

    /// Remembers where a peer was last known to listen, the newest first.
    fn note(&mut self, peer: PeerId, addrs: impl IntoIterator<Item = Multiaddr>) {
        if self.book.len() >= limits::BOOK_MAX && !self.book.contains_key(&peer) {
            let Some(other) = self.book.keys().find(|other| !self.links.contains_key(other)).copied() else {
                return;
            };
            self.book.remove(&other);
        }
        let known = self.book.entry(peer).or_default();
        for address in addrs {
            known.retain(|other| *other != address);
            known.insert(0, address);
        }
        known.truncate(limits::ADDRESSES_PER_PEER_MAX);
        if known.is_empty() {
            self.book.remove(&peer);
        }
    }

    /// Fails the dials of a peer whose connection closed before it was reported.
    fn given_up(&mut self, peer: PeerId, cause: Cause) {
        let Some(dial) = self.dials.remove(&peer) else {
            return;
        };
        let address = dial.addrs.first().map(ToString::to_string).unwrap_or_default();
        self.tell(NetEvent::Unreachable { peer: peer.to_base58(), address, cause });
        let reason = "connection closed before the peer said who it is".to_owned();
        for waiter in dial.waiters {
            let peer = peer.to_base58();
            let _ =
                waiter.send(Err(crate::p2p::NetError::Unreachable { peer, cause, reason: reason.clone() }));
        }
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.dials.retain(|_, dial| {
            dial.waiters.retain(|waiter| !waiter.is_closed());
            !dial.waiters.is_empty()
        });
        let silent = self.links.iter().filter(|(_, link)| {
            !link.announced && now.duration_since(link.established) >= limits::IDENTIFY_WAIT
        });
        for peer in silent.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.announce(peer);
        }
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            self.questions.sweep(kad, now);
            if self.tell_again.is_some_and(|at| now >= at) {
                self.tell_again = None;
                self.questions.tell_again(kad);
            }
        }
        if now.duration_since(self.swept_slowly) >= SLOW_SWEEP {
            self.swept_slowly = now;
            self.sweep_slowly(now);
        }
    }

    /// Asks relays for a reservation while this node can be reached only through one. A relay that gave one and is
    /// gone is dialled first.
    fn reserve(&mut self, now: Instant) {
        let own = self.swarm.listeners().chain(self.swarm.external_addresses());
        if own.filter_map(addresses::own_reach).max() != Some(Reach::Private) {
            return;
        }
        let over = |(peer, link): (&PeerId, &Peering)| {
            let best = link.best().filter(|best| best.direction == Direction::Out)?;
            let direct = addresses::transport(&best.address) != Transport::Relay;
            let asked = direct && link.names(relays::HOP) && self.relays.wants(peer, now);
            asked.then(|| (*peer, addresses::with_peer(&best.address, peer)))
        };
        for (relay, address) in self.links.iter().filter_map(over).collect::<Vec<_>>() {
            let listening = self.swarm.listen_on(address.clone().with(Protocol::P2pCircuit));
            let listening = listening.inspect_err(|err| tracing::warn!(%relay, %err, "no place at a relay"));
            self.relays.asked(relay, address, listening.ok(), now);
        }
        for (relay, address) in self.relays.missed(|relay| !self.links.contains_key(relay), now) {
            let options = DialOpts::peer_id(relay).condition(PeerCondition::DisconnectedAndNotDialing);
            if let Err(err) = self.swarm.dial(options.addresses(vec![address]).build()) {
                tracing::debug!(%relay, %err, "a relay is not dialled");
            }
        }
    }

    fn sweep_slowly(&mut self, now: Instant) {
        self.reserve(now);
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            kad.store_mut().expire(now);
        }
        let refused = self.refused();
        let Refused { connections, peers, streams, records, heads } = self.told;
        let limits = [
            ("connections", refused.connections > connections),
            ("peers", refused.peers > peers),
            ("streams", refused.streams > streams),
            ("records", refused.records > records),
            ("heads", refused.heads > heads),
        ];
        self.told = refused;
        for (what, _) in limits.into_iter().filter(|(_, more)| *more) {
            self.tell(NetEvent::Limited { what });
        }
        for (at, address) in std::mem::take(&mut self.lost) {
            if now < at {
                self.lost.push((at, address));
                continue;
            }
            match self.swarm.listen_on(address.clone()) {
                Ok(listener) => drop(self.listeners.insert(listener, address)),
                Err(err) => {
                    tracing::warn!(%address, %err, "still cannot listen");
                    self.lost.push((now + limits::RELISTEN_AFTER, address));
                }
            }
        }
    }
}

fn record(metrics: &Metrics, event: &SwarmEvent<BehaviourEvent>) {
    metrics.record(event);
    match event {
        SwarmEvent::Behaviour(BehaviourEvent::Dcutr(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Identify(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => metrics.record(event),
        SwarmEvent::Behaviour(BehaviourEvent::Relay(event)) => metrics.record(event),
        _ => {}
    }
}
