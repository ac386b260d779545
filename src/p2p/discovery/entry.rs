//! One entry of a list of peers, as JSON: what files and registries hold.
//!
//! Invariants:
//! - an entry says all of it or nothing: one with a wrong part is no entry;
//! - an address that names another peer is wrong.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{ADDR_MAX, Found, Origin};

/// Returns the entry of a peer.
pub fn write(found: &Found, ttl_ms: u64) -> Value {
    json!({
        "peer_id": found.peer,
        "multiaddrs": found.addrs,
        "capabilities": found.capabilities,
        "last_seen_ms": found.seen_ms,
        "ttl_s": ttl_ms / 1_000,
    })
}

/// Reads an entry. Returns the peer and the entry's time to live, at most `ttl_ms`.
pub fn read(entry: &Value, ttl_ms: u64, origin: Origin) -> Option<(Found, u64)> {
    let peer = peer_of(entry["peer_id"].as_str()?)?;
    let addrs = entry["multiaddrs"].as_array()?.iter().map(|address| address_of(address.as_str()?, &peer));
    let addrs = addrs.collect::<Option<Vec<_>>>()?;
    let capabilities = match &entry["capabilities"] {
        Value::Null => BTreeSet::new(),
        Value::Array(names) => {
            names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<BTreeSet<_>>>()?
        }
        _ => return None,
    };
    let ttl_ms = match &entry["ttl_s"] {
        Value::Null => ttl_ms,
        seconds => seconds.as_u64()?.saturating_mul(1_000).min(ttl_ms),
    };
    let seen_ms = entry["last_seen_ms"].as_u64()?;
    Some((Found { peer, addrs, capabilities, origin, seen_ms }, ttl_ms))
}

/// Returns the text if it has the form of a peer id: base58 of a multihash.
fn peer_of(text: &str) -> Option<String> {
    const BASE58: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let formed = (40..=64).contains(&text.len()) && text.chars().all(|letter| BASE58.contains(letter));
    formed.then(|| text.to_owned())
}

/// Returns a multiaddr without the peer's id at its end; `None` if it names another peer or is no multiaddr.
fn address_of(text: &str, peer: &str) -> Option<String> {
    let bare = match text.rsplit_once("/p2p/") {
        Some((bare, named)) if named == peer => bare,
        Some((_, named)) if !named.contains('/') => return None,
        _ => text,
    };
    (bare.starts_with('/') && bare.len() <= ADDR_MAX).then(|| bare.to_owned())
}
