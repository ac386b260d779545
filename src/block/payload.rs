//! Payloads: the only blocks that may hold what users wrote.
//!
//! Invariants:
//! - content is stored as it came; payloads and parts are salted under a key, so without the key a CID does not confirm
//!   a guess of the content (parts of version 1, in old logs, have no salt);
//! - the same media type, content and key give the same CID;
//! - [`Payload::content`] alone joins parts, and never holds more than one payload may have.

use std::convert::Infallible;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::block::{Block, Cid, Codec, decode};

/// Content of at most this many bytes is stored in the payload block itself. Longer content is cut into raw blocks of
/// this size.
pub const INLINE_MAX: usize = 256 * 1024;
/// A payload has at most this many bytes of content.
pub const PAYLOAD_MAX: usize = 64 * 1024 * 1024;
/// The media type of JSON that is stored as it came.
pub const JSON: &str = "application/json";

/// Stands in place of a media type in the commitment to the key itself.
const SALTED: &str = "cairn salt key";
/// A payload has at most this many parts.
pub const PARTS_MAX: usize = PAYLOAD_MAX / INLINE_MAX;
/// A salt, like every other keyed commitment, has this many bytes.
pub const SALT_LEN: usize = 16;

/// In this version parts are plain content. Payloads without parts still have it.
const PLAIN: u64 = 1;
/// In this version each part begins with a salt of its own.
const SALTED_PARTS: u64 = 2;
/// The domain of the commitments that salt parts.
const PART_DOMAIN: &str = "cairn/part/2";

/// The key that salts payloads and makes commitments. It is stored in a file beside the log, never in a database.
#[derive(Clone)]
pub struct SaltKey([u8; 32]);

impl SaltKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Returns the first 16 bytes of HMAC-SHA256(key, `media` 00 `data`), a keyed commitment to `data`.
    pub fn commit(&self, media: &str, data: &[u8]) -> [u8; SALT_LEN] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("hmac takes a key of any length");
        mac.update(media.as_bytes());
        mac.update(&[0]);
        mac.update(data);
        let full = mac.finalize().into_bytes();
        full[..SALT_LEN].try_into().expect("sha-256 gives 32 bytes")
    }

    /// Returns a commitment that identifies this key in the events of `log` and tells nothing about the key.
    pub fn commitment_for(&self, log: &Cid) -> [u8; SALT_LEN] {
        self.commit(SALTED, &log.to_bytes())
    }

    /// Returns a keyed commitment to `fields` in their order: the first 16 bytes of HMAC-SHA256 over `domain`, a zero
    /// byte, and each field with its length before it in 8 bytes, big-endian.
    ///
    /// The lengths keep two lists of fields from having the same bytes. No media type equals a domain, so the result
    /// never equals a [`SaltKey::commit`].
    pub fn bind(&self, domain: &str, fields: &[&[u8]]) -> [u8; SALT_LEN] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("hmac takes a key of any length");
        mac.update(domain.as_bytes());
        mac.update(&[0]);
        for field in fields {
            mac.update(&(field.len() as u64).to_be_bytes());
            mac.update(field);
        }
        let full = mac.finalize().into_bytes();
        full[..SALT_LEN].try_into().expect("sha-256 gives 32 bytes")
    }
}

/// The block of one payload, as it is stored.
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

/// Says why content cannot be a payload.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    #[error("payload of {len} bytes is over the bound of 67108864")]
    TooLarge { len: usize },
}

/// A payload ready to be stored: its envelope, and the raw parts if it has any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPayload {
    pub envelope: Block,
    pub parts: Vec<Block>,
    /// Counts the bytes of content.
    pub len: u64,
}

/// Says which rule of the format an envelope breaks.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadFault {
    #[error("the payload is of an unknown version")]
    Version,
    #[error("the payload's salt has not 16 bytes")]
    Salt,
    #[error("the payload has neither content nor parts, or both")]
    Content,
    #[error("the payload's content is over the bound of 262144 bytes for one block")]
    Inline,
    #[error("the payload has no part, one part alone, or over 256")]
    Count,
    #[error("a part of the payload is no raw block")]
    Codec,
    #[error("the payload's content has another length than its event says")]
    Length,
}

/// Says why a payload's content cannot be joined.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Gap {
    #[error(transparent)]
    Envelope(#[from] PayloadFault),
    #[error("the payload's part {0} is not there")]
    Absent(Cid),
    #[error("the payload's part {0} has a wrong length")]
    Length(Cid),
}

/// Describes one part as its payload's envelope demands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub cid: Cid,
    /// Bounds the bytes of the part's block, its salt included: `least` and `most` are both allowed.
    pub least: usize,
    pub most: usize,
}

impl Payload {
    /// Salts and names `data`. Errors: over [`PAYLOAD_MAX`] bytes.
    pub fn seal(key: &SaltKey, media: &str, data: &[u8]) -> Result<SealedPayload, PayloadError> {
        if data.len() > PAYLOAD_MAX {
            return Err(PayloadError::TooLarge { len: data.len() });
        }
        let salt = key.commit(media, data).to_vec();
        let inline = data.len() <= INLINE_MAX;
        // The salt is bound to the whole content and to the place, so that a guess of one part cannot be tested without
        // the others.
        let part = |(at, content): (usize, &[u8])| {
            let salt = key.bind(PART_DOMAIN, &[&salt, &(at as u64).to_be_bytes()]);
            Block::new(Codec::Raw, [&salt, content].concat())
        };
        let parts: Vec<Block> = match inline {
            true => Vec::new(),
            false => data.chunks(INLINE_MAX).enumerate().map(part).collect(),
        };
        let payload = Self {
            v: if inline { PLAIN } else { SALTED_PARTS },
            media: media.to_owned(),
            data: inline.then(|| data.to_vec()),
            parts: (!inline).then(|| parts.iter().map(Block::cid).collect()),
            salt,
        };
        Ok(SealedPayload { envelope: Block::encode(&payload), parts, len: data.len() as u64 })
    }

    /// Checks the envelope against the rules of the format, and against `len` bytes of content if an event states that.
    /// Returns the parts in order, with the lengths that their blocks may have.
    pub fn layout(&self, len: Option<u64>) -> Result<Vec<Part>, PayloadFault> {
        let rule = |holds: bool, fault| if holds { Ok(()) } else { Err(fault) };
        rule(self.salt.len() == SALT_LEN, PayloadFault::Salt)?;
        let parts = match (&self.data, &self.parts) {
            (Some(data), None) => {
                rule(self.v == PLAIN, PayloadFault::Version)?;
                rule(data.len() <= INLINE_MAX, PayloadFault::Inline)?;
                rule(len.is_none_or(|len| len == data.len() as u64), PayloadFault::Length)?;
                return Ok(Vec::new());
            }
            (None, Some(parts)) => parts,
            (Some(_), Some(_)) | (None, None) => return Err(PayloadFault::Content),
        };
        rule(self.v == PLAIN || self.v == SALTED_PARTS, PayloadFault::Version)?;
        rule((2..=PARTS_MAX).contains(&parts.len()), PayloadFault::Count)?;
        rule(parts.iter().all(|part| part.codec() == Codec::Raw), PayloadFault::Codec)?;
        let before = ((parts.len() - 1) * INLINE_MAX) as u64;
        let rest =
            len.map(|len| len.checked_sub(before).filter(|rest| (1..=INLINE_MAX as u64).contains(rest)));
        let (least, most) = match rest {
            None => (1, INLINE_MAX),
            Some(Some(rest)) => (rest as usize, rest as usize),
            Some(None) => return Err(PayloadFault::Length),
        };
        let salt = self.part_salt_len();
        let part = |(at, cid): (usize, &Cid)| match at + 1 == parts.len() {
            true => Part { cid: *cid, least: salt + least, most: salt + most },
            false => Part { cid: *cid, least: salt + INLINE_MAX, most: salt + INLINE_MAX },
        };
        Ok(parts.iter().enumerate().map(part).collect())
    }

    /// Returns how many bytes of salt stand before the content of each part.
    pub fn part_salt_len(&self) -> usize {
        if self.v == SALTED_PARTS { SALT_LEN } else { 0 }
    }

    /// Returns the content, joined from its parts, which `read` returns by their CIDs. Fails at the first part that is
    /// missing or has a wrong length.
    ///
    /// The outer error is that of `read`.
    pub fn content<E>(
        self,
        len: Option<u64>,
        mut read: impl FnMut(&Cid) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Result<Vec<u8>, Gap>, E> {
        let layout = match self.layout(len) {
            Ok(layout) => layout,
            Err(fault) => return Ok(Err(fault.into())),
        };
        let salt = self.part_salt_len();
        let mut content = self.data.unwrap_or_default();
        for Part { cid, least, most } in layout {
            let Some(block) = read(&cid)? else { return Ok(Err(Gap::Absent(cid))) };
            match (least..=most).contains(&block.len()) {
                true => content.extend_from_slice(&block[salt..]),
                false => return Ok(Err(Gap::Length(cid))),
            }
        }
        Ok(Ok(content))
    }
}

impl SealedPayload {
    /// Returns the content; returns none if this value was not made by [`Payload::seal`].
    pub fn content(&self) -> Option<Vec<u8>> {
        let payload: Payload = decode(self.envelope.bytes()).ok()?;
        let block = |cid: &Cid| self.parts.iter().find(|part| part.cid() == *cid);
        let read = |cid: &Cid| Ok::<_, Infallible>(block(cid).map(|block| block.bytes().to_vec()));
        let Ok(content) = payload.content(Some(self.len), read);
        content.ok()
    }
}

/// Returns the content of the payload with this CID, put together from the blocks that `read` gives.
///
/// `None` if one of them is not there, or if they are no payload by the format's rules.
pub fn join<E>(
    cid: &Cid,
    mut read: impl FnMut(&Cid) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<Vec<u8>>, E> {
    match read(cid)?.and_then(|bytes| decode::<Payload>(&bytes).ok()) {
        Some(payload) => Ok(payload.content(None, read)?.ok()),
        None => Ok(None),
    }
}

/// Returns whether these bytes of a block are content: a payload, or a part of one.
pub fn is_content(cid: &Cid, bytes: &[u8]) -> bool {
    cid.codec() == Codec::Raw || decode::<Payload>(bytes).is_ok()
}

#[cfg(test)]
pub mod tests;
