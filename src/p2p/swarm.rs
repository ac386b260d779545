//! The swarm: libp2p, composed, driven by one task, and told in this crate's own words.
//!
//! Invariants:
//! - this folder alone names libp2p's types;
//! - one task owns the swarm and awaits nothing but its next input;
//! - the task ends when it is asked to or when nobody holds a handle.

use std::collections::HashMap;

use libp2p::{Multiaddr, Swarm, core::transport::ListenerId, metrics::Metrics, multiaddr::Protocol};
use prometheus_client::registry::Registry;
use tokio::sync::{broadcast, mpsc, watch};

use crate::p2p::{Inbound, NetError, Settings, handle::Net, limits};

pub mod addresses;
mod links;
mod probing;
mod quiet;
mod records;
mod relays;
mod streams;
mod behaviour;
mod table;
mod driver;

/// Starts to listen and spawns the task.
pub fn start(
    settings: &Settings,
    registry: Option<&mut Registry>,
) -> Result<(Net, mpsc::Receiver<Inbound>), NetError> {
    let counters = behaviour::Counters::default();
    let (inbound, streams) = mpsc::channel(limits::INBOUND_MAX);
    let mut swarm = behaviour::swarm(settings, inbound, &counters)?;
    let listeners = listen(&mut swarm, settings)?;
    for external in &settings.external {
        swarm.add_external_address(addresses::address_of(swarm.local_peer_id(), external)?);
    }
    let (commands, wishes) = mpsc::channel(limits::COMMANDS_MAX);
    let (addrs, told) = watch::channel(Vec::new());
    let net = Net {
        local: swarm.local_peer_id().to_base58(),
        commands,
        addrs: told,
        events: broadcast::Sender::new(limits::EVENTS_MAX),
        heads: broadcast::Sender::new(limits::HEADS_MAX),
    };
    let outlets = driver::Outlets { events: net.events.clone(), heads: net.heads.clone(), addrs };
    let metrics = registry.map(Metrics::new);
    let driver = driver::Driver::new(swarm, wishes, outlets, counters, listeners, settings, metrics)?;
    tokio::spawn(driver.run());
    Ok((net, streams))
}

fn listen(
    swarm: &mut Swarm<behaviour::Behaviour>,
    settings: &Settings,
) -> Result<HashMap<ListenerId, Multiaddr>, NetError> {
    let listening = settings.listen.iter().map(|text| {
        let address = addresses::to_listen(text)?;
        free(&address)
            .map_err(|err| NetError::BadAddress { address: text.clone(), reason: err.to_string() })?;
        let listener = swarm
            .listen_on(address.clone())
            .map_err(|err| NetError::BadAddress { address: text.clone(), reason: links::reason(&err) })?;
        Ok((listener, address))
    });
    listening.collect()
}

/// Checks that nobody listens at a TCP address. libp2p shares its ports, so two nodes could otherwise take each
/// other's peers.
fn free(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let ip: Option<std::net::IpAddr> = match parts.next() {
        Some(Protocol::Ip4(ip)) => Some(ip.into()),
        Some(Protocol::Ip6(ip)) => Some(ip.into()),
        _ => None,
    };
    match (ip, parts.next()) {
        (Some(ip), Some(Protocol::Tcp(port))) if port != 0 => {
            std::net::TcpListener::bind((ip, port)).map(drop)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
