//! Payloads: the only blocks that may hold what users wrote.
//!
//! Invariants:
//! - the bytes stand as they came; the salt is keyed, so a CID tells nothing to whoever lacks the key;
//! - same media, bytes and key: same CID.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::block::{Block, Cid, Codec};

/// Content up to this many bytes stands in the payload block itself; more is cut into raw blocks of this size.
pub const INLINE_MAX: usize = 256 * 1024;
/// The most content one payload holds.
pub const PAYLOAD_MAX: usize = 64 * 1024 * 1024;
/// The media type of JSON kept as it came.
pub const JSON: &str = "application/json";

const SALT_LEN: usize = 16;
/// In the place of a media type, where what is committed to is the key itself.
const SALTED: &str = "cairn salt key";

/// The key of a scope's payload salts. Kept outside the database.
#[derive(Clone)]
pub struct SaltKey([u8; 32]);

impl SaltKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// A keyed commitment to `data`: the first 16 bytes of HMAC-SHA256(key, `media` 00 `data`).
    pub fn commit(&self, media: &str, data: &[u8]) -> [u8; SALT_LEN] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("hmac takes a key of any length");
        mac.update(media.as_bytes());
        mac.update(&[0]);
        mac.update(data);
        let full = mac.finalize().into_bytes();
        full[..SALT_LEN].try_into().expect("sha-256 gives 32 bytes")
    }

    /// What tells, on record in `log`, that this key salts its payloads, and nothing about the key.
    pub fn commitment_for(&self, log: &Cid) -> [u8; SALT_LEN] {
        self.commit(SALTED, &log.to_bytes())
    }
}

/// The block of one payload, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    pub v: u64,
    pub media: String,
    #[serde(with = "serde_bytes")]
    pub salt: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub data: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<Cid>>,
}

/// Why content cannot be a payload.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    #[error("payload of {len} bytes is over the bound of 67108864")]
    TooLarge { len: usize },
}

/// A payload ready to be stored: its envelope, then the raw parts where it has any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPayload {
    pub envelope: Block,
    pub parts: Vec<Block>,
    /// Bytes of content.
    pub len: u64,
}

impl Payload {
    /// Salts and names `data`.
    pub fn seal(key: &SaltKey, media: &str, data: &[u8]) -> Result<SealedPayload, PayloadError> {
        if data.len() > PAYLOAD_MAX {
            return Err(PayloadError::TooLarge { len: data.len() });
        }
        let salt = key.commit(media, data).to_vec();
        let inline = data.len() <= INLINE_MAX;
        let parts: Vec<Block> = match inline {
            true => Vec::new(),
            false => data.chunks(INLINE_MAX).map(|part| Block::new(Codec::Raw, part.to_vec())).collect(),
        };
        let payload = Self {
            v: 1,
            media: media.to_owned(),
            salt,
            data: inline.then(|| data.to_vec()),
            parts: (!inline).then(|| parts.iter().map(Block::cid).collect()),
        };
        Ok(SealedPayload { envelope: Block::encode(&payload), parts, len: data.len() as u64 })
    }
}
