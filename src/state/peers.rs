//! The rows of peers: each is folded from the peer's events, with the columns by which lists are sorted and filtered.
//!
//! Invariant: a row is written once a batch and depends only on the events, and not on how they were grouped.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    block::{decode, encode},
    entity,
    event::Event,
    peer::{Peer, Status},
    state::StateError,
};

/// Lists the statuses of peers. A row stores the index of one.
pub const PEER_STATUSES: [Status; 3] = [Status::Connected, Status::Disconnected, Status::Unreachable];

/// Folds an event about a peer into the peers that changed in this batch.
pub(super) fn remember(
    state: &Connection,
    changed: &mut HashMap<u64, Peer>,
    event: &Event,
    subject: u64,
) -> Result<(), StateError> {
    let mut peer = match changed.remove(&subject) {
        Some(peer) => Some(peer),
        None => stored(state, subject)?,
    };
    entity::follow(&mut peer, event, &());
    changed.extend(peer.map(|peer| (subject, peer)));
    Ok(())
}

/// Writes and empties the peers that changed in this batch.
pub(super) fn write(state: &Connection, changed: &mut HashMap<u64, Peer>) -> Result<(), StateError> {
    let mut row = state.prepare_cached(
        "INSERT INTO peer (id, name, status, last_seen_ms, latency_us, bandwidth, reliability, entity)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (id) DO UPDATE SET status = ?3, last_seen_ms = ?4, latency_us = ?5, bandwidth = ?6,
         reliability = ?7, entity = ?8",
    )?;
    let mut forget = state.prepare_cached("DELETE FROM peer_capability WHERE peer = ?1")?;
    let mut capability =
        state.prepare_cached("INSERT OR IGNORE INTO peer_capability (capability, peer) VALUES (?1, ?2)")?;
    for (id, peer) in changed.drain() {
        let status = PEER_STATUSES.iter().position(|status| *status == peer.status);
        let latency = peer.measure.and_then(|measure| measure.latency_p50_us);
        let bandwidth = peer.measure.and_then(|measure| measure.bandwidth);
        row.execute(params![
            id,
            peer.id,
            status,
            peer.last_seen_ms,
            latency.map(stored_number),
            bandwidth.map(stored_number),
            peer.reliability(),
            encode(&peer)
        ])?;
        forget.execute([id])?;
        for word in peer.capabilities.iter().flatten() {
            capability.execute(params![word, id])?;
        }
    }
    Ok(())
}

/// Returns the peer of a row.
fn stored(state: &Connection, id: u64) -> Result<Option<Peer>, StateError> {
    let mut find = state.prepare_cached("SELECT entity FROM peer WHERE id = ?1")?;
    let bytes: Option<Vec<u8>> = find.query_row([id], |row| row.get(0)).optional()?;
    bytes.map(|bytes| read(&bytes)).transpose()
}

/// Decodes the peer in a row's column `entity`.
pub fn read(entity: &[u8]) -> Result<Peer, StateError> {
    decode(entity).map_err(|_| StateError::Broken { what: "a peer's row cannot be read" })
}

/// Returns a number as SQLite can store it. A peer may report any number, and those from 2^63 on are stored as 2^63 -
/// 1.
fn stored_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
