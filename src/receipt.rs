//! Receipts: a file with which an auditor checks one event without any node.
//!
//! Invariants:
//! - [`Receipt::verify`] uses only the receipt and a verifier key of the log, and checks every field of the receipt;
//! - a receipt with a duplicate JSON key is refused, since two parsers could read it as two receipts.

use serde::{Deserialize, Serialize};

use crate::{
    block::{Cid, Codec, json},
    event::{Event, EventError, Genesis, GenesisError, keeping::rotation, rules},
    identity::{
        Checkpoint, CheckpointError, Verifier, open_checkpoint,
        rotation::{Keys, RotationError},
    },
    merkle::{Hash, leaf_hash, verify_inclusion},
};

/// The version of this format.
pub const VERSION: u64 = 1;

/// An event, its log's genesis block, and the proof that the log has it. Bytes are base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub v: u64,
    #[serde(with = "cid_text")]
    pub cid: Cid,
    #[serde(with = "base64_bytes")]
    pub event: Vec<u8>,
    /// The genesis block of the event's log.
    #[serde(with = "base64_bytes")]
    pub genesis: Vec<u8>,
    /// The index of the leaf in the Merkle tree, which is the event's `seq`.
    pub index: u64,
    #[serde(with = "base64_hashes")]
    pub proof: Vec<Hash>,
    /// A signed head whose tree has the leaf, as a C2SP signed note.
    pub checkpoint: String,
    /// The key rotations below the head, in order. They lead from the genesis block's key to the key that signed the
    /// head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Rotated>,
}

/// One key rotation, and the proof that it is below the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotated {
    /// The bytes of the `log.key_rotated` event.
    #[serde(with = "base64_bytes")]
    pub event: Vec<u8>,
    #[serde(with = "base64_hashes")]
    pub proof: Vec<Hash>,
}

/// What a valid receipt proves.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    pub origin: String,
    /// The number of events under the signed head.
    pub size: u64,
    pub seq: u64,
    pub event: Event,
}

/// Why a receipt is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    #[error("not a receipt")]
    Malformed(#[source] serde_json::Error),
    #[error("not a receipt")]
    Text(#[from] json::Fault),
    #[error("receipt version {v} is not known")]
    Version { v: u64 },
    #[error("cid does not name the event's bytes")]
    Cid,
    #[error("event cannot be read")]
    Event(#[source] EventError),
    #[error("event is number {seq} of its log, not {index}")]
    Index { seq: u64, index: u64 },
    #[error("event is of another log than the genesis block")]
    Log,
    #[error("event breaks a rule of its kind: {fault}")]
    Rule { fault: &'static str },
    #[error("genesis block cannot be read")]
    Genesis(#[source] GenesisError),
    #[error("checkpoint is not a signed head of the log")]
    Checkpoint(#[source] CheckpointError),
    #[error("checkpoint is of {checkpoint}, genesis block of {genesis}")]
    Origin { checkpoint: String, genesis: String },
    #[error("inclusion proof does not lead to the checkpoint's root")]
    Inclusion,
    #[error("rotation {nth} is no change of this log's keys under the checkpoint")]
    Rotation { nth: usize },
    #[error("rotation {nth} cannot be followed")]
    Chain {
        nth: usize,
        #[source]
        source: RotationError,
    },
    #[error("the key given is none of this log's")]
    Key,
}

impl Receipt {
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a receipt has string keys and no other fallible values")
    }

    /// Parses a receipt. A duplicate key is an error.
    pub fn read(text: &[u8]) -> Result<Self, ReceiptError> {
        json::check(text)?;
        serde_json::from_slice(text).map_err(ReceiptError::Malformed)
    }

    /// Checks that the log signed a tree with exactly this event at its `seq`. `verifier` is a key of the log, known
    /// beforehand.
    pub fn verify(&self, verifier: &Verifier) -> Result<Verified, ReceiptError> {
        if self.v != VERSION {
            return Err(ReceiptError::Version { v: self.v });
        }
        let event = Event::open(self.event.clone()).map_err(ReceiptError::Event)?;
        if event.cid() != self.cid {
            return Err(ReceiptError::Cid);
        }
        let (seq, index) = (event.fields().seq, self.index);
        if seq != index {
            return Err(ReceiptError::Index { seq, index });
        }
        if event.fields().log != Cid::of(Codec::DagCbor, &self.genesis) {
            return Err(ReceiptError::Log);
        }
        rules::check_event(&event).map_err(|fault| ReceiptError::Rule { fault })?;
        let (genesis, _) = Genesis::open(&self.genesis).map_err(ReceiptError::Genesis)?;
        let head = self.head(&genesis, event.fields().log, verifier)?;
        if head.origin != genesis.origin {
            return Err(ReceiptError::Origin { checkpoint: head.origin, genesis: genesis.origin });
        }
        if !verify_inclusion(&leaf_hash(&self.cid), index, head.size, &self.proof, &head.root) {
            return Err(ReceiptError::Inclusion);
        }
        Ok(Verified { origin: head.origin, size: head.size, seq, event })
    }

    /// Returns the head. Without rotations, `verifier` must have signed it. With them, `verifier` may be any key of the
    /// log, and the key in force at the head's size must have signed it.
    fn head(&self, genesis: &Genesis, log: Cid, verifier: &Verifier) -> Result<Checkpoint, ReceiptError> {
        if self.rotations.is_empty() {
            return open_checkpoint(&self.checkpoint, verifier).map_err(ReceiptError::Checkpoint);
        }
        let chain = |nth, source| ReceiptError::Chain { nth, source };
        let mut keys = Keys::of_genesis(log, &genesis.origin, &genesis.key)
            .map_err(|err| chain(0, RotationError::Key(err)))?;
        let mut rotated = Vec::with_capacity(self.rotations.len());
        for (nth, told) in self.rotations.iter().enumerate() {
            let event = Event::open(told.event.clone()).map_err(ReceiptError::Event)?;
            let change = rotation(&event).filter(|_| event.fields().log == log);
            let change = change.ok_or(ReceiptError::Rotation { nth })?;
            keys.rotate(&change).map_err(|source| chain(nth, source))?;
            rotated.push((nth, change.seq, event.cid(), &told.proof));
        }
        if !keys.holds(verifier) {
            return Err(ReceiptError::Key);
        }
        let head = keys.open(&self.checkpoint).map_err(ReceiptError::Checkpoint)?;
        for (nth, seq, cid, proof) in rotated {
            if !verify_inclusion(&leaf_hash(&cid), seq, head.size, proof, &head.root) {
                return Err(ReceiptError::Rotation { nth });
            }
        }
        Ok(head)
    }
}

/// Serializes a CID as its text.
mod cid_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::block::Cid;

    pub fn serialize<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cid)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Serializes bytes as padded base64.
mod base64_bytes {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(D::Error::custom)
    }
}

/// Serializes hashes as an array of padded base64.
mod base64_hashes {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::merkle::Hash;

    pub fn serialize<S: Serializer>(hashes: &[Hash], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(|hash| BASE64_STANDARD.encode(hash)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Hash>, D::Error> {
        let read = |text: &String| BASE64_STANDARD.decode(text).ok()?.try_into().ok();
        let texts = Vec::<String>::deserialize(deserializer)?;
        let hashes: Option<Vec<Hash>> = texts.iter().map(read).collect();
        hashes.ok_or_else(|| D::Error::custom("expected 32 bytes of base64"))
    }
}

#[cfg(test)]
mod tests;
