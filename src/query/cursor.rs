//! Cursors: the seq, or the rank and row, a list goes on from, bound to the filter it was asked with.
//!
//! Invariant: a cursor goes on with the query that gave it and with no other.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::QueryError;
use crate::block::encode;

/// Bytes of a filter's digest in its cursors.
const BOUND_LEN: usize = 8;

/// Returns a cursor to the next seq of this query.
pub(super) fn name(filter: &impl Serialize, seq: u64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([&seq.to_be_bytes()[..], &bound(filter)].concat())
}

pub(super) fn open(filter: &impl Serialize, cursor: &str) -> Result<u64, QueryError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
    match bytes.split_first_chunk() {
        Some((seq, rest)) if rest == bound(filter) => Ok(u64::from_be_bytes(*seq)),
        _ => Err(strange()),
    }
}

/// Returns a cursor to the row after the one with this rank and number.
pub(super) fn name_ranked(filter: &impl Serialize, rank: i64, id: u64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([&rank.to_be_bytes()[..], &id.to_be_bytes(), &bound(filter)].concat())
}

pub(super) fn open_ranked(filter: &impl Serialize, cursor: &str) -> Result<(i64, u64), QueryError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap_or_default();
    let (rank, rest) = bytes.split_first_chunk().ok_or_else(strange)?;
    match rest.split_first_chunk() {
        Some((id, rest)) if rest == bound(filter) => Ok((i64::from_be_bytes(*rank), u64::from_be_bytes(*id))),
        _ => Err(strange()),
    }
}

fn strange() -> QueryError {
    QueryError::Invalid("cursor is not one of this query; ask for the first page again".to_owned())
}

fn bound(filter: &impl Serialize) -> [u8; BOUND_LEN] {
    let digest: [u8; 32] = Sha256::digest(encode(filter)).into();
    let mut bound = [0; BOUND_LEN];
    bound.copy_from_slice(&digest[..BOUND_LEN]);
    bound
}
