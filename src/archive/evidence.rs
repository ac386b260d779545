//! Evidence that events are those a log's key signed: a signed head, and a Merkle proof from all of the events to it.
//!
//! Invariants:
//! - `verified` holds for all given events under one head, or it is not reported;
//! - a proof that does not lead to the head is an error and is never ignored.

use std::fmt;

use serde::Serialize;

use crate::{
    archive::writing::{Manifest, PROOF_BLOCK, PROOF_BLOCKS_MAX},
    block::{Cid, Codec},
    event::{Event, Genesis, keeping::rotation},
    identity::{Checkpoint, rotation::Keys},
    merkle::{HASH_LEN, Hash, leaf_hash, several},
    query::{
        QueryError, View,
        lookup::corrupt,
        proof::{Head, broken},
    },
};

/// Says whether all of some events are under one head that the log's key signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Evidence {
    /// The key of the log named `origin` signed a head over `head` events, and each of these events is under it.
    Verified { head: u64, origin: String },
    /// Nothing shows that any key signed these events.
    Unsigned,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified { head, origin } => write!(f, "verified under head {head} of {origin}"),
            Self::Unsigned => f.write_str("unsigned"),
        }
    }
}

/// Collects the proof of an archive while the archive is read. Its blocks follow the manifest, in the order in which
/// the manifest lists them.
#[derive(Debug)]
pub struct Proof<'a> {
    /// Lists the blocks that are still to come.
    wanted: &'a [Cid],
    hashes: Vec<Hash>,
}

impl<'a> Proof<'a> {
    pub fn of(manifest: &'a Manifest) -> Result<Self, &'static str> {
        let wanted = manifest.proof.as_deref().unwrap_or_default();
        match wanted.len() <= PROOF_BLOCKS_MAX && wanted.iter().all(|name| name.codec() == Codec::Raw) {
            true => Ok(Self { wanted, hashes: Vec::new() }),
            false => Err("its proof is over the bound of 256 raw blocks"),
        }
    }

    /// Returns whether the next block of the archive belongs to the proof.
    pub fn open(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Adds the next block. Errors: it is not the listed block, or has a wrong length.
    pub fn take(&mut self, cid: Cid, bytes: &[u8]) -> Result<(), &'static str> {
        let Some((wanted, rest)) = self.wanted.split_first() else {
            return Err("the proof is whole already");
        };
        self.wanted = rest;
        let fits = match rest.is_empty() {
            true => !bytes.is_empty() && bytes.len() <= PROOF_BLOCK && bytes.len().is_multiple_of(HASH_LEN),
            false => bytes.len() == PROOF_BLOCK,
        };
        if cid != *wanted || !fits {
            return Err("it stands where a block of the proof should");
        }
        self.hashes.extend(bytes.chunks_exact(HASH_LEN).filter_map(|hash| Hash::try_from(hash).ok()));
        Ok(())
    }
}

/// Returns the head in a manifest. Errors: the key that is in force at its size did not sign it, or it is not over the
/// archive's last event.
pub fn head_of(manifest: &Manifest, keys: &Keys) -> Result<Checkpoint, &'static str> {
    let head = keys
        .open(&manifest.checkpoint)
        .map_err(|_| "the manifest's checkpoint is not signed with the log's key")?;
    match head.size > manifest.to {
        true => Ok(head),
        false => Err("the manifest's checkpoint does not reach the archive's last event"),
    }
}

/// Returns what an archive's proof shows of its events, whose leaves are given with rising seqs. Without a proof,
/// events that do not make up the head's tree are unsigned; with one, they are an error.
pub fn judge(
    manifest: &Manifest,
    head: &Checkpoint,
    leaves: &[(u64, Hash)],
    proof: &Proof<'_>,
) -> Result<Evidence, &'static str> {
    if several::root_of(leaves, head.size, &proof.hashes) == Some(head.root) {
        return Ok(Evidence::Verified { head: head.size, origin: head.origin.clone() });
    }
    match &manifest.proof {
        None => Ok(Evidence::Unsigned),
        Some(_) => Err("the proof does not lead from its events to the manifest's checkpoint"),
    }
}

/// Returns what the proof of an archive shows that was read whole. The events are given with rising seqs.
pub fn judge_read(
    manifest: &Manifest,
    genesis: &[u8],
    events: &[Event],
    proof: &Proof<'_>,
) -> Result<Evidence, &'static str> {
    let (_, key) = Genesis::open(genesis).map_err(|_| "its genesis block is none")?;
    let mut keys = Keys::new(manifest.log, key);
    for rotation in events.iter().filter_map(rotation) {
        keys.rotate(&rotation).map_err(|_| "the key before it did not sign for a key of the log")?;
    }
    let leaves: Vec<(u64, Hash)> = events.iter().map(leaf).collect();
    judge(manifest, &head_of(manifest, &keys)?, &leaves, proof)
}

/// Returns an event's index in the tree, and its leaf hash.
pub fn leaf(event: &Event) -> (u64, Hash) {
    (event.fields().seq, leaf_hash(&event.cid()))
}

impl View {
    /// Returns what the log's signed head shows of events of this log, which are given with rising seqs.
    pub fn evidence(&self, events: &[Event], head: &Head) -> Result<Evidence, QueryError> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Ok(Evidence::Unsigned);
        };
        let signed = self.keys(&first.fields().log)?.open(&head.note).ok();
        let Some(signed) = signed.filter(|signed| signed.size > last.fields().seq) else {
            return Ok(Evidence::Unsigned);
        };
        let leaves: Vec<(u64, Hash)> = events.iter().map(leaf).collect();
        let holds = |start: u64, end: u64| {
            let first = leaves.partition_point(|(seq, _)| *seq < start);
            leaves.get(first).is_some_and(|(seq, _)| *seq < end)
        };
        let proof = several::inclusion_of(&self.tiles(), signed.size, &holds).map_err(broken)?;
        match several::root_of(&leaves, signed.size, &proof) == Some(signed.root) {
            true => Ok(Evidence::Verified { head: signed.size, origin: signed.origin }),
            false => Err(corrupt("events that are not under the signed head")),
        }
    }
}
