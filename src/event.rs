//! Events: sealed facts, and the only two ways to make one.
//!
//! Invariants:
//! - an event's id is the hash of its canonical bytes, which are kept as written and never made again;
//! - only [`Event::seal`] and [`Event::open`] make an event, so nobody checks its hash again;
//! - a body of a known kind is small, typed and closed; content is in payloads, because an event can never be erased.

pub mod keeping;
pub mod peer;
pub mod rules;
pub mod strict;
pub mod follows;
pub mod work;
pub mod body;

use std::collections::BTreeMap;

use ipld_core::ipld::Ipld;
use serde::{Deserialize, Deserializer, Serialize};

pub use self::body::{Body, Kind};
use crate::{
    block::{Cid, Codec, DecodeError, decode, decode_exactly, encode, payload::PAYLOAD_MAX},
    identity::{KeyError, Verifier},
    words::words,
};

/// This build writes events of this version, and reads bodies of no other.
pub const VERSION: u64 = 1;
/// An event has at most this many bytes.
pub const EVENT_MAX: usize = 16 * 1024;
/// An event has at most this many refs, which are causal parents besides its cause.
pub const REFS_MAX: usize = 32;
/// An event names at most this many payloads.
pub const PAYLOADS_MAX: usize = 16;
/// A call has at most this many questions on record.
pub const QUESTIONS_MAX: u64 = 64;
/// The name of a kind has at most this many bytes.
pub const KIND_MAX: usize = 32;

/// Says who asked for what an event records.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    pub id: String,
    pub role: String,
    #[serde(deserialize_with = "present")]
    pub proof: Option<Cid>,
}

words! {
    /// What a payload is to its event.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Role {
        Input = "input",
        Output = "output",
        Error = "error",
        Log = "log",
        Artifact = "artifact",
        Note = "note",
    }
}

/// Names a payload and states how many bytes of content it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadRef {
    pub cid: Cid,
    pub len: u64,
    pub role: Role,
}

/// The block whose CID is the log's name. A key is no name, because keys rotate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    pub v: u64,
    pub origin: String,
    /// The Ed25519 public key that signed the log's first heads.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Microseconds since the Unix epoch.
    pub created: u64,
    #[serde(with = "serde_bytes")]
    pub nonce: Vec<u8>,
}

/// Says why bytes are not a genesis block.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    #[error("genesis block cannot be read")]
    Decode(#[from] DecodeError),
    #[error("genesis block is of version {v}, which is not known")]
    Version { v: u64 },
    #[error("genesis block holds no usable key")]
    Key(#[from] KeyError),
}

/// What happened, without its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub cause: Option<Cid>,
    pub refs: Vec<Cid>,
    pub actor: Actor,
    pub subject: String,
    pub tool: Option<Cid>,
    pub payloads: Vec<PayloadRef>,
    pub body: Body,
}

/// Says in which log, at which seq and when a fact is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub log: Cid,
    pub seq: u64,
    pub prev: Option<Cid>,
    /// Microseconds since the Unix epoch, at least those of the previous event.
    pub ts: u64,
}

/// The map that is hashed, which has exactly these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    pub v: u64,
    pub kind: String,
    pub log: Cid,
    pub seq: u64,
    #[serde(deserialize_with = "present")]
    pub prev: Option<Cid>,
    #[serde(deserialize_with = "present")]
    pub cause: Option<Cid>,
    pub refs: Vec<Cid>,
    pub actor: Actor,
    pub subject: String,
    #[serde(deserialize_with = "present")]
    pub tool: Option<Cid>,
    pub pay: Vec<PayloadRef>,
    pub body: BTreeMap<String, Ipld>,
    pub ts: u64,
}

/// A sealed fact: its canonical bytes, its id, and its decoded fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    cid: Cid,
    bytes: Vec<u8>,
    fields: Fields,
}

/// Says why a fact cannot be sealed, or why bytes are not an event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("event of {len} bytes is over the bound of 16384")]
    TooLarge { len: usize },
    #[error("event breaks the rule of its field `{field}`")]
    Field { field: &'static str },
    #[error("event bytes cannot be read")]
    Decode(#[from] DecodeError),
}

impl Genesis {
    /// Decodes a genesis block from any source, and returns it with the key of the log's first heads.
    pub fn open(bytes: &[u8]) -> Result<(Self, Verifier), GenesisError> {
        let genesis: Self = decode_exactly(bytes)?;
        if genesis.v != 1 {
            return Err(GenesisError::Version { v: genesis.v });
        }
        let key = genesis.key.as_slice().try_into().map_err(|_| KeyError::Key)?;
        let verifier = Verifier::from_key(&genesis.origin, key)?;
        Ok((genesis, verifier))
    }
}

impl Event {
    /// Seals `fact` at `place`. Errors: over [`EVENT_MAX`] bytes, or a field breaks a rule of all events.
    pub fn seal(fact: Fact, place: Position) -> Result<Self, EventError> {
        let mut refs = fact.refs;
        refs.sort_unstable();
        refs.dedup();
        let fields = Fields {
            v: VERSION,
            kind: fact.body.kind().as_str().to_owned(),
            log: place.log,
            seq: place.seq,
            prev: place.prev,
            cause: fact.cause,
            refs,
            actor: fact.actor,
            subject: fact.subject,
            tool: fact.tool,
            pay: fact.payloads,
            body: fact.body.into_map(),
            ts: place.ts,
        };
        fields.check()?;
        let bytes = encode(&fields);
        if bytes.len() > EVENT_MAX {
            return Err(EventError::TooLarge { len: bytes.len() });
        }
        Ok(Self { cid: Cid::of(Codec::DagCbor, &bytes), bytes, fields })
    }

    /// Decodes an event from any source. Errors: over [`EVENT_MAX`] bytes, not strict DAG-CBOR of the thirteen keys, or
    /// a field breaks a rule of all events.
    pub fn open(bytes: Vec<u8>) -> Result<Self, EventError> {
        if bytes.len() > EVENT_MAX {
            return Err(EventError::TooLarge { len: bytes.len() });
        }
        let fields: Fields = decode(&bytes)?;
        fields.check()?;
        Ok(Self { cid: Cid::of(Codec::DagCbor, &bytes), bytes, fields })
    }

    pub fn cid(&self) -> Cid {
        self.cid
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Returns the facts of a known kind and version; returns none for another kind, version or shape.
    pub fn body(&self) -> Option<Body> {
        let known = self.fields.v == VERSION;
        known.then(|| Body::read(&self.fields.kind, &self.fields.body)).flatten()
    }
}

impl Fields {
    /// Returns when it was sealed, in milliseconds since the epoch: the moment that the rules were told.
    pub fn at_ms(&self) -> u64 {
        self.ts / 1000
    }

    /// Returns its first payload in this role.
    pub fn payload(&self, role: Role) -> Option<PayloadRef> {
        self.pay.iter().find(|pay| pay.role == role).copied()
    }

    /// Checks the rules that hold for every kind and version.
    fn check(&self) -> Result<(), EventError> {
        let rule = |holds: bool, field| {
            if holds { Ok(()) } else { Err(EventError::Field { field }) }
        };
        rule(self.v >= 1, "v")?;
        rule(!self.kind.is_empty() && self.kind.len() <= KIND_MAX, "kind")?;
        rule((self.seq == 0) == self.prev.is_none(), "prev")?;
        rule(self.refs.len() <= REFS_MAX && self.refs.is_sorted_by(|a, b| a < b), "refs")?;
        let held = self.pay.iter().all(|pay| pay.len <= PAYLOAD_MAX as u64);
        rule(self.pay.len() <= PAYLOADS_MAX && held, "pay")?;
        rule(!self.body.values().any(has_float), "body")
    }
}

/// Reads a key that may be null but must be there. Encoding then gives back the same bytes.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cid>, D::Error> {
    Option::deserialize(deserializer)
}

fn has_float(value: &Ipld) -> bool {
    match value {
        Ipld::Float(_) => true,
        Ipld::List(items) => items.iter().any(has_float),
        Ipld::Map(entries) => entries.values().any(has_float),
        Ipld::Null | Ipld::Bool(_) | Ipld::Integer(_) | Ipld::String(_) | Ipld::Bytes(_) | Ipld::Link(_) => {
            false
        }
    }
}

#[cfg(test)]
mod tests;
