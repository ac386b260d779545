//! Receipts: one file with which an auditor checks an event without us.
//!
//! Invariants:
//! - [`Receipt::verify`] needs the receipt and the log's verifier key, and trusts nothing else in it;
//! - a receipt is read from its text, so that no key can stand twice and mean another thing to another reader.

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

/// The version of the receipt's form.
pub const VERSION: u64 = 1;

/// An event, the log it claims to stand in, and the proof. Bytes are base64 in JSON.
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
    /// The leaf's place in the tree, which is the event's `seq`.
    pub index: u64,
    #[serde(with = "base64_hashes")]
    pub proof: Vec<Hash>,
    /// A signed head whose tree holds the leaf.
    pub checkpoint: String,
    /// The changes of keys under the head, in order: they lead from the genesis's key to the one that signed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Rotated>,
}

/// One change of keys, and the proof that it is under the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotated {
    /// The `log.key_rotated`.
    #[serde(with = "base64_bytes")]
    pub event: Vec<u8>,
    #[serde(with = "base64_hashes")]
    pub proof: Vec<Hash>,
}

/// What a receipt has been shown to prove.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    pub origin: String,
    /// Events under the signed head.
    pub size: u64,
    pub seq: u64,
    pub event: Event,
}

/// Why a receipt proves nothing.
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

    /// Reads the text of a receipt, which says everything once.
    pub fn read(text: &[u8]) -> Result<Self, ReceiptError> {
        json::check(text)?;
        serde_json::from_slice(text).map_err(ReceiptError::Malformed)
    }

    /// Checks that the event is exactly these bytes, and that the log signed a tree which has it at its `seq`.
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

    /// The head, signed by `verifier` or, where keys have changed, by the key of its size, to which `verifier` belongs.
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

/// A CID as its text.
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

/// Bytes as padded base64.
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

/// Hashes as an array of padded base64.
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
