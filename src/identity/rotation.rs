//! The successive keys of one log, and which of them signs a head of which size.
//!
//! Invariants:
//! - the first key is in the genesis block; each later key was signed by the key before it, for this log and this seq;
//! - a head of `size` events is signed by the key of the last rotation at a seq below `size`, and by no other;
//! - no key is used again after it was replaced, so it cannot sign for later heads.

use ed25519_dalek::{Signature, Signer as _};

use super::{Checkpoint, CheckpointError, KeyError, Signer, Verifier, claimed_size, open_checkpoint};
use crate::block::Cid;

/// A log has at most this many rotations, which allows one a day for over two years.
pub const ROTATIONS_MAX: usize = 1000;

/// A key rotation, as the event at `seq` records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub seq: u64,
    pub key: [u8; 32],
    pub signature: [u8; 64],
}

/// Says why a log's keys cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RotationError {
    #[error("the key of a rotation cannot be used")]
    Key(#[from] KeyError),
    #[error("the rotation at seq {seq} is not signed by the key before it")]
    Signature { seq: u64 },
    #[error("the rotation at seq {seq} brings back a key that the log had before")]
    Again { seq: u64 },
    #[error("rotations are out of order at seq {seq}")]
    Order { seq: u64 },
    #[error("the log has over 1000 rotations")]
    TooMany,
}

/// The keys of one log in the order in which they came into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    log: Cid,
    first: Verifier,
    /// Holds the seq of each rotation, and the key from there on.
    later: Vec<(u64, Verifier)>,
    /// Holds the same rotations as their events record them.
    told: Vec<Rotation>,
}

impl Keys {
    /// Returns the keys of a log that has only its first one.
    pub fn new(log: Cid, first: Verifier) -> Self {
        Self { log, first, later: Vec::new(), told: Vec::new() }
    }

    /// Returns the keys of a log whose genesis block holds `origin` and `key`.
    pub fn of_genesis(log: Cid, origin: &str, key: &[u8]) -> Result<Self, KeyError> {
        let key = key.try_into().map_err(|_| KeyError::Key)?;
        Ok(Self::new(log, Verifier::from_key(origin, key)?))
    }

    /// Adds the next rotation. Errors: out of order, over [`ROTATIONS_MAX`], a key that was used before, or a signature
    /// that the key before it did not make.
    pub fn rotate(&mut self, rotation: &Rotation) -> Result<(), RotationError> {
        let seq = rotation.seq;
        if seq == 0 || self.later.last().is_some_and(|(last, _)| *last >= seq) {
            return Err(RotationError::Order { seq });
        }
        if self.later.len() >= ROTATIONS_MAX {
            return Err(RotationError::TooMany);
        }
        let next = Verifier::from_key(self.first.origin(), rotation.key)?;
        if self.holds(&next) {
            return Err(RotationError::Again { seq });
        }
        let said = statement(&self.log, seq, &next);
        self.current()
            .key
            .verify_strict(said.as_bytes(), &Signature::from_bytes(&rotation.signature))
            .map_err(|_| RotationError::Signature { seq })?;
        self.later.push((seq, next));
        self.told.push(*rotation);
        Ok(())
    }

    /// Returns the log whose keys these are.
    pub fn log(&self) -> Cid {
        self.log
    }

    pub fn origin(&self) -> &str {
        self.first.origin()
    }

    /// Returns the key in the genesis block.
    pub fn first(&self) -> &Verifier {
        &self.first
    }

    /// Returns the last key, which signs the next head.
    pub fn current(&self) -> &Verifier {
        self.later.last().map_or(&self.first, |(_, key)| key)
    }

    /// Returns the key that signs a head of `size` events.
    pub fn at(&self, size: u64) -> &Verifier {
        let rotated = self.later.partition_point(|(seq, _)| *seq < size);
        rotated.checked_sub(1).map_or(&self.first, |last| &self.later[last].1)
    }

    /// Returns the rotations that lead from the first key to the last.
    pub fn rotations(&self) -> &[Rotation] {
        &self.told
    }

    /// Returns the key that the event at `seq` puts in force; returns none if that event is no rotation.
    pub fn rotated_at(&self, seq: u64) -> Option<&Verifier> {
        let at = self.later.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(&self.later[at].1)
    }

    /// Returns whether this log has or had that key.
    pub fn holds(&self, key: &Verifier) -> bool {
        self.all().any(|(_, known)| known == key)
    }

    /// Returns each key with the size of the first head it may sign, which is 0 for the first key.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Verifier)> {
        let later = self.later.iter().map(|(seq, key)| (seq + 1, key));
        std::iter::once((0, &self.first)).chain(later)
    }

    /// Opens a head that any key of this log signed, whatever its size.
    ///
    /// A head that this accepts and [`Self::open`] refuses says nothing about this log, because its key was not in
    /// force at that size. If its root is another one, it proves a fork: one key stands for two histories.
    pub fn open_out_of_force(&self, note: &str) -> Option<Checkpoint> {
        self.all().find_map(|(_, key)| open_checkpoint(note, key).ok())
    }

    /// Opens a head that the key of its size signed.
    pub fn open(&self, note: &str) -> Result<Checkpoint, CheckpointError> {
        open_checkpoint(note, self.at(claimed_size(note)))
    }
}

/// Returns what the key before signs for the next one: four lines, each with its line break.
fn statement(log: &Cid, seq: u64, next: &Verifier) -> String {
    format!("cairn key rotation\n{log}\n{seq}\n{}\n", next.vkey())
}

impl Signer {
    /// Returns the rotation to `next` for an event at `seq` of `log`, signed by this key.
    pub fn sign_rotation(&self, log: &Cid, seq: u64, next: &Verifier) -> Rotation {
        let signature = self.key.sign(statement(log, seq, next).as_bytes()).to_bytes();
        Rotation { seq, key: next.public_key(), signature }
    }
}

#[cfg(test)]
mod tests;
