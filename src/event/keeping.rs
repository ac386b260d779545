//! The facts of the log's own keeping: its keys, who took it over, who is let in, and what was read.
//!
//! Invariants:
//! - no key that is secret, no token and no digest of one: only public keys, ids and one-way commitments;
//! - reads and refusals are counted by whom and minute, so that nobody fills the log by asking.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    event::{Body, Event},
    identity::rotation::Rotation,
};

/// Settings that one `config.applied` names; what is beyond them stands in its digest alone.
pub const SETTINGS_MAX: usize = 64;
/// Bytes of one setting, its name and its value together, that is named; a longer one stands in the digest alone.
pub const SETTING_BYTES_MAX: usize = 160;

/// An operator signed events that no head covered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogTakenOver {
    /// The first event that no head covered.
    pub from_seq: u64,
    /// How many there were; none where only the head was lost.
    pub events: u64,
}

/// Which key salts this log's payloads, for a log whose first event does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSalted {
    pub commitment: ByteArray<16>,
}

/// Heads over this event and those after it are signed by another key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogKeyRotated {
    /// The Ed25519 public key from now on.
    pub key: ByteArray<32>,
    /// By the key before, over the statement of `identity::rotation`.
    pub signature: ByteArray<64>,
}

/// The change of keys that an event records, if it records one.
pub fn rotation(event: &Event) -> Option<Rotation> {
    match event.body() {
        Some(Body::LogKeyRotated(facts)) => {
            Some(Rotation { seq: event.fields().seq, key: *facts.key, signature: *facts.signature })
        }
        _ => None,
    }
}

/// Whoever has this token is let in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAdded {
    /// The id it is revoked by; tells nothing about the token.
    pub token: String,
    /// The actor of what it asks for.
    pub name: String,
    pub scopes: Vec<String>,
    /// Seconds since the epoch; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// The token lets nobody in any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRevoked {
    pub token: String,
}

/// The actor read content of payloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRead {
    /// Payloads whose content was given out.
    pub reads: u64,
    /// Minutes since the epoch.
    pub minute: u64,
}

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// No token was shown.
    Missing,
    /// The token is not one that lets anybody in.
    Invalid,
    /// The token is good, but not for this.
    Scope,
}

/// The actor was not let in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRefused {
    pub refusals: u64,
    /// Minutes since the epoch.
    pub minute: u64,
    pub reason: Reason,
}

/// A door was opened under settings that are not those it had before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigApplied {
    /// By name, without secrets; no more than [`SETTINGS_MAX`].
    pub settings: BTreeMap<String, String>,
    /// SHA-256 of all of them as one DAG-CBOR map of text to text, also of those that are left out here.
    pub digest: ByteArray<32>,
    /// How many are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
