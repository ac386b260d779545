//! Facts about the log itself: its keys, who took it over, who may come in, and what was read.
//!
//! Invariants:
//! - no secret key, no token and no digest of a token is recorded, only public keys, ids and one-way commitments;
//! - reads and refusals are counted by actor and minute, so that requests cannot fill the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    event::{Body, Event},
    identity::rotation::Rotation,
};

/// A `config.applied` lists at most this many settings. Only its digest covers the rest.
pub const SETTINGS_MAX: usize = 64;
/// A setting is listed if its name and value together have at most this many bytes. Only the digest covers a longer
/// one.
pub const SETTING_BYTES_MAX: usize = 160;

/// An operator signed events that no head covered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogTakenOver {
    /// The first event that no head covered.
    pub from_seq: u64,
    /// Counts these events. It is 0 if only the head was lost.
    pub events: u64,
}

/// Records which key salts this log's payloads, in a log whose first event does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSalted {
    pub commitment: ByteArray<16>,
}

/// Another key signs the heads over this event and later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogKeyRotated {
    /// The new Ed25519 public key.
    pub key: ByteArray<32>,
    /// A signature of the key before, over the statement of `identity::rotation`.
    pub signature: ByteArray<64>,
}

/// Returns the key rotation that an event records; returns none for other events.
pub fn rotation(event: &Event) -> Option<Rotation> {
    match event.body() {
        Some(Body::LogKeyRotated(facts)) => {
            Some(Rotation { seq: event.fields().seq, key: *facts.key, signature: *facts.signature })
        }
        _ => None,
    }
}

/// A token now lets its bearer in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAdded {
    /// The id by which the token is revoked. It tells nothing about the token.
    pub token: String,
    /// Names the actor of what the bearer asks for.
    pub name: String,
    pub scopes: Vec<String>,
    /// Seconds since the Unix epoch. Without it, the token does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// A token lets nobody in any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRevoked {
    pub token: String,
}

/// The actor read content of payloads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRead {
    /// Counts the payloads whose content was handed out.
    pub reads: u64,
    /// Minutes since the Unix epoch.
    pub minute: u64,
}

/// Says why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The request had no token.
    Missing,
    /// The token is unknown, expired or revoked.
    Invalid,
    /// The token is valid, but its scopes do not allow the request.
    Scope,
}

/// Requests of the actor were refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRefused {
    pub refusals: u64,
    /// Minutes since the Unix epoch.
    pub minute: u64,
    pub reason: Reason,
}

/// A door was opened under settings that differ from its last ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigApplied {
    /// Maps names to values, without secrets. Holds at most [`SETTINGS_MAX`] entries.
    pub settings: BTreeMap<String, String>,
    /// The SHA-256 of all settings as one DAG-CBOR map of text to text, including those that are not listed.
    pub digest: ByteArray<32>,
    /// Counts the settings that are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
