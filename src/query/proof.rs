//! Proofs against a signed head: inclusion, consistency, receipts, and the tiles they are made from.
//!
//! Invariant: a proof is made for the tree that the given head signs, whatever the log has grown to since.

use rusqlite::params;
use serde_json::{Value, json};

use super::{QueryError, View, keeping, lookup::corrupt};
use crate::{
    block::{Cid, Codec, Sha256Digest, decode},
    event::{Event, Genesis},
    identity::rotation::{Keys, ROTATIONS_MAX},
    merkle::{
        self, HASH_LEN, Hash, Level, ProofError, TILE_WIDTH, TilePath, Tiles, entries_bundle, leaf_hash,
    },
    receipt::{self, Receipt, Rotated},
    state::StateError,
};

/// A signed head: its size and its note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub size: u64,
    pub note: String,
}

impl View {
    /// Returns the inclusion proof of an event under the head, as JSON with hashes in base64.
    pub fn inclusion(&self, cid: &Cid, head: &Head) -> Result<Value, QueryError> {
        let (_, index, proof) = self.proven(cid, head)?;
        Ok(json!({
            "cid": cid.to_string(),
            "index": index,
            "size": head.size,
            "leaf": base64(&leaf_hash(cid)),
            "root": base64(&self.root(head.size)?),
            "proof": proof.iter().map(base64).collect::<Vec<_>>(),
            "checkpoint": head.note,
        }))
    }

    /// Returns the consistency proof from size `old` to size `new`.
    pub fn consistency(&self, old: u64, new: u64, head: &Head) -> Result<Value, QueryError> {
        if old > new || new > head.size {
            return Err(QueryError::Invalid(format!(
                "old must be at most new, and new at most the signed head's {}",
                head.size
            )));
        }
        let proof = merkle::consistency(&self.tiles(), old, new).map_err(broken)?;
        Ok(json!({
            "old": old,
            "new": new,
            "old_root": base64(&self.root(old)?),
            "new_root": base64(&self.root(new)?),
            "proof": proof.iter().map(base64).collect::<Vec<_>>(),
            "checkpoint": head.note,
        }))
    }

    /// Returns the receipt of an event, with which an auditor checks it without this node.
    pub fn receipt(&self, cid: &Cid, head: &Head) -> Result<Receipt, QueryError> {
        let (event, index, proof) = self.proven(cid, head)?;
        let (_, genesis) = self.genesis(&event.fields().log)?;
        Ok(Receipt {
            v: receipt::VERSION,
            cid: *cid,
            event: event.bytes().to_vec(),
            genesis,
            index,
            proof,
            checkpoint: head.note.clone(),
            rotations: self.rotated(head)?,
        })
    }

    /// Returns the rotations of keys under the head, each with its proof.
    fn rotated(&self, head: &Head) -> Result<Vec<Rotated>, QueryError> {
        let told = self.key_changes(head.size)?.into_iter().map(|event| {
            let seq = event.fields().seq;
            let proof = merkle::inclusion(&self.tiles(), seq, head.size).map_err(broken)?;
            Ok(Rotated { event: event.bytes().to_vec(), proof })
        });
        told.collect()
    }

    /// Returns the events among the first `size` that changed the log's keys, in order.
    pub fn key_changes(&self, size: u64) -> Result<Vec<Event>, QueryError> {
        let seqs = keeping::of_kind(&self.state, "log.key_rotated", ROTATIONS_MAX as u64)?;
        let under = seqs.into_iter().rev().filter(|seq| *seq < size);
        let event = |seq| self.log.event_at(seq)?.ok_or_else(|| corrupt("a change of keys is missing"));
        under.map(event).collect()
    }

    /// Returns a tile of the tree under the head; `None` if that has no tile of this width there.
    pub fn tile(&self, path: &TilePath, head: &Head) -> Result<Option<Vec<u8>>, QueryError> {
        let level = match path.level {
            Level::Hashes(level) => level,
            Level::Entries => 0,
        };
        // Each hash of a level stands for 256 of the level below.
        let hashes =
            8_u32.checked_mul(level.into()).and_then(|shift| head.size.checked_shr(shift)).unwrap_or(0);
        let first = path.index.checked_mul(TILE_WIDTH as u64);
        let end = first.and_then(|first| first.checked_add(path.width as u64));
        let (Some(first), Some(end)) = (first, end.filter(|end| *end <= hashes)) else {
            return Ok(None);
        };
        if path.level == Level::Entries {
            return Ok(Some(entries_bundle(&self.names(first, end)?)));
        }
        let stored = self.tiles().tile(level, path.index)?;
        let mut tile = stored.ok_or_else(|| corrupt("a tile is missing"))?;
        let len = path.width * HASH_LEN;
        if tile.len() < len {
            return Err(corrupt("a tile is too short"));
        }
        tile.truncate(len);
        Ok(Some(tile))
    }

    /// Returns the root of the first `size` events.
    pub fn root(&self, size: u64) -> Result<Hash, QueryError> {
        merkle::root_at(&self.tiles(), size).map_err(broken)
    }

    /// Returns the CIDs of the events from `from` to before `to`.
    fn names(&self, from: u64, to: u64) -> Result<Vec<Cid>, QueryError> {
        let sql = "SELECT digest FROM log.event WHERE seq >= ?1 AND seq < ?2 ORDER BY seq";
        let mut statement = self.state.prepare_cached(sql)?;
        let rows = statement.query_map(params![from, to], |row| {
            let digest: Sha256Digest = row.get(0)?;
            Ok(Cid::from_digest(Codec::DagCbor, digest))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns the genesis block, parsed and as bytes.
    pub fn genesis(&self, name: &Cid) -> Result<(Genesis, Vec<u8>), QueryError> {
        let bytes = self.log.bytes(name)?.ok_or_else(|| corrupt("a log without its genesis block"))?;
        let genesis = decode(&bytes).map_err(|_| corrupt("a genesis block"))?;
        Ok((genesis, bytes))
    }

    /// Returns the keys of this log's heads, as far as it is folded.
    pub fn keys(&self, log: &Cid) -> Result<Keys, QueryError> {
        let (genesis, _) = self.genesis(log)?;
        let keys = Keys::of_genesis(*log, &genesis.origin, &genesis.key);
        let mut keys = keys.map_err(|_| corrupt("a genesis block"))?;
        keeping::rotate(&mut keys, &self.state, self.log.as_ref())?;
        Ok(keys)
    }

    fn proven(&self, cid: &Cid, head: &Head) -> Result<(Event, u64, Vec<Hash>), QueryError> {
        let event = self.event(cid)?;
        let event = event.ok_or_else(|| QueryError::NotFound(format!("event {cid}")))?;
        let index = event.fields().seq;
        if index >= head.size {
            return Err(QueryError::NotFound(format!("a signed head over event {cid}")));
        }
        let tiles = self.tiles();
        let proof = merkle::inclusion(&tiles, index, head.size).map_err(broken)?;
        Ok((event, index, proof))
    }
}

pub(crate) fn broken(err: ProofError<StateError>) -> QueryError {
    match err {
        ProofError::Tiles(err) => err.into(),
        ProofError::Range { .. } | ProofError::Missing { .. } => {
            StateError::Broken { what: "the merkle tiles are incomplete" }.into()
        }
    }
}

pub(super) fn base64(hash: &Hash) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(hash)
}
