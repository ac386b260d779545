//! What the node does on every connection, in the order in which each part may refuse it.
//!
//! Invariants:
//! - limits and lists come first, so that nothing else sees a connection they refuse;
//! - what is switched off is absent, not idle;
//! - gossip goes on only after its verdict, and the table holds providers only.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, atomic::AtomicU64},
};

use libp2p::{
    PeerId, StreamProtocol, Swarm, Transport as _,
    allow_block_list::{self, AllowedPeers, BlockedPeers},
    autonat::v2 as autonat,
    connection_limits::{self, ConnectionLimits},
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    dcutr, dns, gossipsub, identify,
    identity::Keypair,
    kad, mdns, memory_connection_limits, noise, ping, quic, relay,
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, upnp, yamux,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::p2p::{
    Inbound, NetError, Settings, limits,
    swarm::{addresses, links, probing, quiet, records::Records, streams},
};

/// The agent version that this node sends in `identify`.
const AGENT: &str = concat!("cairn/", env!("CARGO_PKG_VERSION"));
const IDENTIFY_PROTOCOL: &str = "/cairn/1.0.0";

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    allowed: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    pub blocked: allow_block_list::Behaviour<BlockedPeers>,
    relay_client: relay::client::Behaviour,
    relay: Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    autonat: probing::Behaviour,
    autonat_server: autonat::server::Behaviour,
    upnp: Toggle<upnp::tokio::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub kad: Toggle<kad::Behaviour<Records>>,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub gossip: quiet::Behaviour,
    pub streams: streams::Behaviour,
}

/// Counters that parts of the behaviour keep.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub streams: Arc<AtomicU64>,
    pub records: Arc<AtomicU64>,
}

/// The topic of signed heads.
pub fn heads() -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(limits::HEADS_TOPIC)
}

/// Makes a swarm that listens nowhere yet.
pub fn swarm(
    settings: &Settings,
    inbound: mpsc::Sender<Inbound>,
    counters: &Counters,
) -> Result<Swarm<Behaviour>, NetError> {
    let key = addresses::keypair(&settings.seed);
    let (transport, relay_client) = transport(&key)?;
    let behaviour = behaviour(settings, &key, relay_client, inbound, counters)?;
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(settings.idle)
        .with_max_negotiating_inbound_streams(limits::STREAMS_NEGOTIATING_MAX)
        .with_substream_upgrade_protocol_override(Version::V1Lazy);
    Ok(Swarm::new(transport, behaviour, key.public().to_peer_id(), config))
}

fn transport(key: &Keypair) -> Result<(Boxed<(PeerId, StreamMuxerBox)>, relay::client::Behaviour), NetError> {
    let noise = noise::Config::new(key).map_err(|err| failed("the noise handshake", err))?;
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(limits::STREAMS_PER_TCP_MAX);
    let mut quic = quic::Config::new(key);
    quic.max_concurrent_stream_limit = limits::STREAMS_PER_CONNECTION_MAX;
    let direct = || {
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .map_err(links::Socket)
            .upgrade(Version::V1Lazy)
            .authenticate(noise.clone())
            .multiplex(yamux.clone());
        let quic = quic::tokio::Transport::new(quic.clone()).map_err(|err| match err {
            quic::Error::HandshakeTimedOut => links::Socket(io::ErrorKind::TimedOut.into()),
            err => links::Socket(io::Error::other(err)),
        });
        quic.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .or_transport(tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))))
            .map(|either, _| either.into_inner())
            .boxed()
    };
    let named = match dns::tokio::Transport::system(direct()) {
        Ok(named) => named.boxed(),
        Err(err) => {
            tracing::warn!(%err, "no name resolution; only peers at numeric addresses can be dialled");
            direct()
        }
    };
    let (relay, relay_client) = relay::client::new(key.public().to_peer_id());
    let relayed = relay.upgrade(Version::V1Lazy).authenticate(noise).multiplex(yamux);
    let transport = relayed
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed()
        .or_transport(named)
        .map(|either, _| either.into_inner())
        .map_err(|either| either.into_inner())
        .boxed();
    Ok((TransportTimeout::new(transport, limits::HANDSHAKE_MAX).boxed(), relay_client))
}

fn behaviour(
    settings: &Settings,
    key: &Keypair,
    relay_client: relay::client::Behaviour,
    inbound: mpsc::Sender<Inbound>,
    counters: &Counters,
) -> Result<Behaviour, NetError> {
    let local = key.public().to_peer_id();
    let peers =
        |list: &HashSet<String>| list.iter().map(|peer| addresses::peer(peer)).collect::<Result<Vec<_>, _>>();
    let allowed = peers(&settings.allow)?;
    let allowed = (!allowed.is_empty()).then(|| {
        let mut list = allow_block_list::Behaviour::<AllowedPeers>::default();
        for peer in allowed {
            list.allow_peer(peer);
        }
        list
    });
    let mut blocked = allow_block_list::Behaviour::<BlockedPeers>::default();
    for peer in peers(&settings.block)? {
        blocked.block_peer(peer);
    }
    let mut connections = connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(limits::PENDING_IN_MAX))
            .with_max_pending_outgoing(Some(limits::PENDING_OUT_MAX))
            .with_max_established(Some(settings.connections_max))
            .with_max_established_per_peer(Some(limits::CONNECTIONS_PER_PEER_MAX)),
    );
    for peer in peers(&settings.known)? {
        connections.bypass_peer_id(&peer);
    }
    Ok(Behaviour {
        limits: connections,
        memory: memory_connection_limits::Behaviour::with_max_percentage(settings.memory_share),
        allowed: Toggle::from(allowed),
        blocked,
        relay_client,
        relay: Toggle::from(settings.relay.then(|| relay::Behaviour::new(local, relay_config()))),
        dcutr: dcutr::Behaviour::new(local),
        autonat: probing::Behaviour::default(),
        autonat_server: autonat::server::Behaviour::default(),
        upnp: Toggle::from(settings.upnp.then(upnp::tokio::Behaviour::default)),
        identify: identify::Behaviour::new(
            identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), key.public())
                .with_agent_version(AGENT.to_owned())
                .with_push_listen_addr_updates(true)
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(limits::PING_INTERVAL).with_timeout(limits::PING_TIMEOUT),
        ),
        kad: Toggle::from(if settings.dht { Some(table(settings, local, counters)?) } else { None }),
        mdns: Toggle::from(settings.mdns.then(|| multicast(local)).flatten()),
        gossip: quiet::Behaviour(gossip(key)?),
        streams: streams::Behaviour::new(inbound, Arc::clone(&counters.streams)),
    })
}

fn relay_config() -> relay::Config {
    relay::Config {
        max_circuits: limits::CIRCUITS_MAX,
        max_circuit_duration: limits::CIRCUIT_TIME_MAX,
        max_circuit_bytes: limits::CIRCUIT_BYTES_MAX,
        ..relay::Config::default()
    }
}

fn table(
    settings: &Settings,
    local: PeerId,
    counters: &Counters,
) -> Result<kad::Behaviour<Records>, NetError> {
    let name = settings.dht_protocol.clone();
    let protocol = StreamProtocol::try_from_owned(name)
        .map_err(|_| NetError::BadProtocol { name: settings.dht_protocol.clone() })?;
    let mut config = kad::Config::new(protocol);
    config
        .set_query_timeout(limits::QUERY_MAX)
        .set_replication_factor(limits::REPLICATION)
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(Some(settings.record_ttl))
        .set_provider_publication_interval(Some(settings.record_ttl / 3))
        .set_periodic_bootstrap_interval(Some(limits::DHT_REFRESH))
        .set_caching(kad::Caching::Disabled)
        .set_record_filtering(kad::StoreInserts::FilterBoth);
    let records = Records::new(local, Arc::clone(&counters.records));
    Ok(kad::Behaviour::with_config(local, records, config))
}

/// `None` if the machine has no multicast: the rest of the network works without it.
fn multicast(local: PeerId) -> Option<mdns::tokio::Behaviour> {
    let started: io::Result<_> = mdns::tokio::Behaviour::new(mdns::Config::default(), local);
    started.inspect_err(|err| tracing::warn!(%err, "mdns cannot start; no peers are found by it")).ok()
}

fn gossip(key: &Keypair) -> Result<gossipsub::Behaviour, NetError> {
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(limits::HEAD_BYTES_MAX)
        .message_id_fn(|message| gossipsub::MessageId::new(&Sha256::digest(&message.data)))
        .build()
        .map_err(|err| failed("gossip", err))?;
    let author = gossipsub::MessageAuthenticity::Signed(key.clone());
    let mut gossip = gossipsub::Behaviour::new(author, config).map_err(|err| failed("gossip", err))?;
    let params = gossipsub::PeerScoreParams {
        // Many honest nodes may share an address: one machine, one office.
        ip_colocation_factor_weight: 0.0,
        ..gossipsub::PeerScoreParams::default()
    };
    gossip
        .with_peer_score(params, gossipsub::PeerScoreThresholds::default())
        .map_err(|err| failed("gossip", err))?;
    gossip.subscribe(&heads()).map_err(|err| failed("gossip", err))?;
    Ok(gossip)
}

fn failed(what: &'static str, reason: impl std::fmt::Display) -> NetError {
    NetError::Start { what, reason: reason.to_string() }
}
