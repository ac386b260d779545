//! The eras of the protocol, which answers and envelopes are told apart by.
//!
//! Invariant: nothing here reads a message but its members; which era it is of, the envelope and the door decide.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Revisions we speak. The first one has another transport than HTTP as it is now, so its clients come over lines.
pub const VERSIONS: [&str; 5] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];

/// The two ways of speaking MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// Revision 2026-07-28: each request stands alone.
    Stateless,
    /// Up to 2025-11-25: `initialize`, then a session.
    Session,
}

/// Deserializes `null` as present, unlike an absent field.
pub fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}
