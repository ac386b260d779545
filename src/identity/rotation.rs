//! The keys of one log, one after another: which of them signs a head of which size.
//!
//! Invariants:
//! - the first key is the genesis block's; each later one was signed for by the key before it, for this log and this place;
//! - a head of `size` events is signed by the key after the last rotation at a seq below `size`, and by no other;
//! - no key comes back: one that was given up says nothing about later heads.

use ed25519_dalek::{Signature, Signer as _};

use super::{Checkpoint, CheckpointError, KeyError, Signer, Verifier, claimed_size, open_checkpoint};
use crate::block::Cid;

/// Rotations of one log that are followed: one a day for over two years.
pub const ROTATIONS_MAX: usize = 1000;

/// A change of keys, as an event at `seq` records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub seq: u64,
    pub key: [u8; 32],
    pub signature: [u8; 64],
}

/// Why a log's keys cannot be followed.
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
    /// The seq of each rotation, and the key from there on.
    later: Vec<(u64, Verifier)>,
    /// The same as they were told.
    told: Vec<Rotation>,
}

impl Keys {
    /// The keys of a log that has only its first.
    pub fn new(log: Cid, first: Verifier) -> Self {
        Self { log, first, later: Vec::new(), told: Vec::new() }
    }

    /// The keys of a log whose genesis says `origin` and `key`.
    pub fn of_genesis(log: Cid, origin: &str, key: &[u8]) -> Result<Self, KeyError> {
        let key = key.try_into().map_err(|_| KeyError::Key)?;
        Ok(Self::new(log, Verifier::from_key(origin, key)?))
    }

    /// Takes in the next rotation, once it is found to be signed by the key before it.
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

    /// The log whose keys these are.
    pub fn log(&self) -> Cid {
        self.log
    }

    pub fn origin(&self) -> &str {
        self.first.origin()
    }

    /// The genesis block's key.
    pub fn first(&self) -> &Verifier {
        &self.first
    }

    /// The last key: the one that signs the next head.
    pub fn current(&self) -> &Verifier {
        self.later.last().map_or(&self.first, |(_, key)| key)
    }

    /// The key that signs a head of this many events.
    pub fn at(&self, size: u64) -> &Verifier {
        let rotated = self.later.partition_point(|(seq, _)| *seq < size);
        rotated.checked_sub(1).map_or(&self.first, |last| &self.later[last].1)
    }

    /// The changes that led from the first key to the last.
    pub fn rotations(&self) -> &[Rotation] {
        &self.told
    }

    /// The key that the event at `seq` puts in force, if it does.
    pub fn rotated_at(&self, seq: u64) -> Option<&Verifier> {
        let at = self.later.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        Some(&self.later[at].1)
    }

    /// Whether this log had, or has, that key.
    pub fn holds(&self, key: &Verifier) -> bool {
        self.all().any(|(_, known)| known == key)
    }

    /// Each key with the size of the first head it signs: 0 for the genesis's.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Verifier)> {
        let later = self.later.iter().map(|(seq, key)| (seq + 1, key));
        std::iter::once((0, &self.first)).chain(later)
    }

    /// Reads a head that some key of this log signed, whatever its size.
    ///
    /// A head that [`Self::open`] refuses and this accepts is no word about this log: its key was not in force at that
    /// size. It proves a fork where its root is another one: then one key stands for two histories.
    pub fn open_out_of_force(&self, note: &str) -> Option<Checkpoint> {
        self.all().find_map(|(_, key)| open_checkpoint(note, key).ok())
    }

    /// Reads a head that the key of its size signed.
    pub fn open(&self, note: &str) -> Result<Checkpoint, CheckpointError> {
        open_checkpoint(note, self.at(claimed_size(note)))
    }
}

/// What the key before signs for the next one: four lines, each with its line break.
fn statement(log: &Cid, seq: u64, next: &Verifier) -> String {
    format!("cairn key rotation\n{log}\n{seq}\n{}\n", next.vkey())
}

impl Signer {
    /// The rotation to `next` as an event at `seq` of `log` records it, signed by this key.
    pub fn sign_rotation(&self, log: &Cid, seq: u64, next: &Verifier) -> Rotation {
        let signature = self.key.sign(statement(log, seq, next).as_bytes()).to_bytes();
        Rotation { seq, key: next.public_key(), signature }
    }
}

#[cfg(test)]
mod tests;
