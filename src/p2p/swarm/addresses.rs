//! Addresses and ids as text, and what an address tells: whose it is, how it is spoken to, how far it reaches.
//!
//! Invariants:
//! - what is accepted as a peer's address names that peer or none;
//! - an address is never passed on to where it cannot be reached: loopback stays on loopback, private in private.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use sha2::{Digest as _, Sha256};

use crate::p2p::{BadPeer, NetError, Transport};

/// The domain under which the node's identity is derived from the log's signing key.
const KEY_DOMAIN: &[u8] = b"cairn p2p identity v1";

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Loopback,
    Private,
    Public,
}

/// Returns the node's identity, which is stable for a log and differs from the key that signs its heads. It is
/// derived, so that there is one secret to back up, and neither key can be used for the other.
pub fn keypair(seed: &[u8; 32]) -> Keypair {
    let derived: [u8; 32] = Sha256::new().chain_update(KEY_DOMAIN).chain_update(seed).finalize().into();
    Keypair::ed25519_from_bytes(derived).expect("every 32 bytes are an ed25519 seed")
}

pub fn peer(text: &str) -> Result<PeerId, BadPeer> {
    text.parse().map_err(|_| BadPeer { text: text.chars().take(128).collect() })
}

pub fn address(text: &str) -> Result<Multiaddr, NetError> {
    text.parse().map_err(|err: libp2p::multiaddr::Error| bad(text, err.to_string()))
}

/// An address that this node can listen on. Errors: it is of no transport that is spoken here.
pub fn to_listen(text: &str) -> Result<Multiaddr, NetError> {
    let read = address(text)?;
    match read.iter().collect::<Vec<_>>()[..] {
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)]
        | [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_), Protocol::QuicV1] => Ok(read),
        _ => Err(bad(text, "is not /ip4 or /ip6 with /tcp, or with /udp and /quic-v1".to_owned())),
    }
}

/// An address that can be dialled, with or without the peer at its end. Errors: it is of no transport that is
/// spoken here.
pub fn to_dial(text: &str) -> Result<Multiaddr, NetError> {
    let read = address(text)?;
    let parts: Vec<_> = read.iter().collect();
    let behind = match &parts[..] {
        [
            Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_),
            behind @ ..,
        ] => match behind {
            [Protocol::Tcp(_), behind @ ..] | [Protocol::Udp(_), Protocol::QuicV1, behind @ ..] => behind,
            _ => return Err(bad(text, "has no /tcp, and no /udp with /quic-v1".to_owned())),
        },
        [Protocol::Dnsaddr(_), behind @ ..] => behind,
        _ => return Err(bad(text, "begins with no /ip4, /ip6 or name".to_owned())),
    };
    match behind {
        []
        | [Protocol::P2p(_)]
        | [Protocol::P2p(_), Protocol::P2pCircuit]
        | [Protocol::P2p(_), Protocol::P2pCircuit, Protocol::P2p(_)] => Ok(read),
        _ => Err(bad(text, "ends in what this node does not speak".to_owned())),
    }
}

/// The address without the peer at its end. Errors: it names another peer.
pub fn address_of(peer: &PeerId, text: &str) -> Result<Multiaddr, NetError> {
    let mut address = address(text)?;
    let Some(Protocol::P2p(named)) = address.iter().last() else {
        return Ok(address);
    };
    if named != *peer {
        return Err(bad(text, format!("names the peer {named}")));
    }
    address.pop();
    if address.is_empty() {
        return Err(bad(text, "names a peer but no place".to_owned()));
    }
    Ok(address)
}

/// The address with the peer at its end.
pub fn with_peer(address: &Multiaddr, peer: &PeerId) -> Multiaddr {
    match address.iter().last() {
        Some(Protocol::P2p(named)) if named == *peer => address.clone(),
        _ => address.clone().with(Protocol::P2p(*peer)),
    }
}

pub fn transport(address: &Multiaddr) -> Transport {
    let mut transport = Transport::Tcp;
    for part in address {
        match part {
            Protocol::P2pCircuit => return Transport::Relay,
            Protocol::Quic | Protocol::QuicV1 => transport = Transport::Quic,
            _ => {}
        }
    }
    transport
}

/// Returns how far the address reaches. A DNS name counts as public.
pub fn reach(address: &Multiaddr) -> Reach {
    let ip = match address.iter().next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        _ => return Reach::Public,
    };
    match ip {
        ip if ip.is_loopback() => Reach::Loopback,
        IpAddr::V4(ip) if local_v4(ip) => Reach::Private,
        IpAddr::V6(ip) if local_v6(ip) => Reach::Private,
        _ => Reach::Public,
    }
}

/// Returns the address of a peer that came in through this node's reservation at a relay. The peer's own address says
/// only who it is.
pub fn circuit(place: &Multiaddr, peer: &Multiaddr) -> Multiaddr {
    let relay = place.iter().take_while(|part| *part != Protocol::P2pCircuit);
    relay.chain([Protocol::P2pCircuit]).chain(peer.iter()).collect()
}

/// Returns a listening address of this node with its IP replaced by the one seen outside; `None` if it cannot be
/// reached there.
pub fn seen(own: &Multiaddr, ip: IpAddr) -> Option<Multiaddr> {
    let mut parts = own.iter();
    let seen = match (parts.next()?, ip) {
        (Protocol::Ip4(_), IpAddr::V4(ip)) => Protocol::Ip4(ip),
        (Protocol::Ip6(_), IpAddr::V6(ip)) => Protocol::Ip6(ip),
        _ => return None,
    };
    let seen: Multiaddr = [seen].into_iter().chain(parts).collect();
    (own_reach(own)? > Reach::Loopback && reach(&seen) == Reach::Public).then_some(seen)
}

/// Returns how far one of this node's own addresses reaches; `None` for an address at a relay.
pub fn own_reach(address: &Multiaddr) -> Option<Reach> {
    (transport(address) != Transport::Relay).then(|| reach(address))
}

/// Returns whether a peer that is connected at `over` may claim the address `claimed`: it must be specific, and reach
/// as far as `over`.
pub fn plausible(claimed: &Multiaddr, over: &Multiaddr) -> bool {
    let unspecified = claimed.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        Protocol::Ip6(ip) => ip.is_unspecified() || ip.is_multicast(),
        Protocol::Tcp(port) | Protocol::Udp(port) => port == 0,
        _ => false,
    });
    !unspecified && (transport(over) == Transport::Relay || reach(claimed) >= reach(over))
}

/// Returns whether an address is not global, by the registries of special-purpose addresses (RFC 6890), or is a
/// multicast group.
fn local_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240
}

/// The same for IPv6. Global unicast is 2000::/3 so far (RFC 4291), without the ranges for documentation and for
/// protocols.
fn local_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    a & 0xe000 != 0x2000 || (a == 0x2001 && (b < 0x200 || b == 0xdb8)) || (a == 0x3fff && b < 0x1000)
}

fn bad(text: &str, reason: String) -> NetError {
    NetError::BadAddress { address: text.chars().take(256).collect(), reason }
}
