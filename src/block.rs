//! Blocks: content-addressed bytes and their names.
//!
//! Invariants:
//! - a [`Cid`] is CIDv1, `dag-cbor` or `raw`, sha2-256: 36 bytes or 59 characters, and nothing else parses;
//! - DAG-CBOR is strict: [`encode`] gives back byte for byte what [`decode_ipld`] and [`decode_exactly`] accept.

pub mod car;
pub mod json;
pub mod payload;
pub mod splice;

use std::{fmt, str::FromStr};

use ipld_core::ipld::Ipld;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// A DAG-CBOR block nests at most this deep; the outermost container is at depth 1.
pub const DEPTH_MAX: usize = 16;
/// A binary CID has this many bytes.
pub const CID_LEN: usize = 36;
/// A CID as text has this many characters: `b` and 58 of base32.
const CID_TEXT_LEN: usize = 59;

const SHA2_256: u8 = 0x12;
const DIGEST_LEN: u8 = 32;
/// A link in CBOR begins with these bytes: tag 42, a byte string of 37 bytes, the multibase prefix 0 of binary.
const LINK_HEAD: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];

/// A SHA-256 digest has 32 bytes.
pub type Sha256Digest = [u8; 32];

/// Says how a block's bytes are read. The values are multicodec codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Codec {
    Raw = 0x55,
    DagCbor = 0x71,
}

impl Codec {
    pub fn from_code(code: u64) -> Option<Self> {
        match code {
            0x55 => Some(Self::Raw),
            0x71 => Some(Self::DagCbor),
            _ => None,
        }
    }
}

/// The name of a block: its codec and the SHA-256 of its bytes.
///
/// CIDs are ordered as their binary forms are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid {
    codec: Codec,
    digest: Sha256Digest,
}

/// Says why bytes or text are not a CID of the allowed form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CidError {
    #[error("not a cid: expected 59 characters of base32 (b...) naming a sha2-256 block in dag-cbor or raw")]
    Malformed,
}

impl Cid {
    /// Returns the name of `bytes` under `codec`.
    pub fn of(codec: Codec, bytes: &[u8]) -> Self {
        Self { codec, digest: Sha256::digest(bytes).into() }
    }

    pub fn from_digest(codec: Codec, digest: Sha256Digest) -> Self {
        Self { codec, digest }
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    pub fn digest(&self) -> &Sha256Digest {
        &self.digest
    }

    /// Returns whether `bytes` hash to this CID.
    pub fn names(&self, bytes: &[u8]) -> bool {
        Sha256::digest(bytes)[..] == self.digest
    }

    /// Returns the binary form of 36 bytes.
    pub fn to_bytes(&self) -> [u8; CID_LEN] {
        let mut bytes = [0; CID_LEN];
        bytes[..4].copy_from_slice(&[1, self.codec as u8, SHA2_256, DIGEST_LEN]);
        bytes[4..].copy_from_slice(&self.digest);
        bytes
    }

    /// Parses a binary form of exactly 36 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        let &[1, codec, SHA2_256, DIGEST_LEN, ref digest @ ..] = bytes else {
            return Err(CidError::Malformed);
        };
        let codec = Codec::from_code(codec.into()).ok_or(CidError::Malformed)?;
        let digest = digest.try_into().map_err(|_| CidError::Malformed)?;
        Ok(Self { codec, digest })
    }
}

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Self, CidError> {
        if text.len() != CID_TEXT_LEN || !text.starts_with('b') {
            return Err(CidError::Malformed);
        }
        // BASE32_NOPAD refuses trailing bits that are not zero, so each CID has one text.
        let upper = text[1..].bytes().map(|c| match c {
            b'a'..=b'z' => Ok(c.to_ascii_uppercase()),
            b'2'..=b'7' => Ok(c),
            _ => Err(CidError::Malformed),
        });
        let upper: Vec<u8> = upper.collect::<Result<_, _>>()?;
        let bytes = data_encoding::BASE32_NOPAD.decode(&upper).map_err(|_| CidError::Malformed)?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'b'; CID_TEXT_LEN];
        data_encoding::BASE32_NOPAD.encode_mut(&self.to_bytes(), &mut text[1..]);
        text.make_ascii_lowercase();
        f.write_str(std::str::from_utf8(&text).expect("base32 is ascii"))
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Cid> for cid::Cid {
    fn from(cid: Cid) -> Self {
        let hash = multihash::Multihash::wrap(SHA2_256.into(), &cid.digest)
            .expect("a 32-byte digest fits a 64-byte multihash");
        Self::new_v1(cid.codec as u64, hash)
    }
}

impl TryFrom<&cid::Cid> for Cid {
    type Error = CidError;

    fn try_from(cid: &cid::Cid) -> Result<Self, CidError> {
        Self::from_bytes(&cid.to_bytes())
    }
}

impl Serialize for Cid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        cid::Cid::from(*self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Cid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let cid = cid::Cid::deserialize(deserializer)?;
        Self::try_from(&cid).map_err(serde::de::Error::custom)
    }
}

/// Bytes and their name. The name is computed when the block is made, so nobody has to check the hash again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    bytes: Vec<u8>,
}

impl Block {
    pub fn new(codec: Codec, bytes: Vec<u8>) -> Self {
        Self { cid: Cid::of(codec, &bytes), bytes }
    }

    /// Encodes `value` as DAG-CBOR and names it.
    pub fn encode<T: Serialize>(value: &T) -> Self {
        Self::new(Codec::DagCbor, encode(value))
    }

    pub fn cid(&self) -> Cid {
        self.cid
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Serializes codec and bytes, for the socket between processes of one node. The reader computes the name again.
impl Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.cid.codec as u8, serde_bytes::Bytes::new(&self.bytes)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (codec, bytes): (u8, serde_bytes::ByteBuf) = Deserialize::deserialize(deserializer)?;
        let codec =
            Codec::from_code(codec.into()).ok_or_else(|| serde::de::Error::custom("unknown codec"))?;
        Ok(Self::new(codec, bytes.into_vec()))
    }
}

/// Says why bytes are not a valid DAG-CBOR block.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("not strict dag-cbor")]
    Cbor(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("a link is not a cid of this log's profile")]
    Link,
    #[error("nested deeper than 16 levels")]
    Depth,
    #[error("not in the one form of its kind")]
    Form,
}

/// Encodes `value` as canonical DAG-CBOR. `value` must be one of our own types, none of which can fail to encode.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("our own types have string keys and no unsupported values")
}

/// Decodes DAG-CBOR from any source, with shortest forms, sorted keys, links of our CIDs only, and a depth of at most
/// 16. A key with a default may be missing; [`decode_exactly`] refuses that.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    scan(bytes)?;
    serde_ipld_dagcbor::from_slice(bytes).map_err(|err| DecodeError::Cbor(Box::new(err)))
}

/// Decodes a block of a closed form. Errors: not strict DAG-CBOR, or [`encode`] would give other bytes, as where a
/// default is written out.
pub fn decode_exactly<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, DecodeError> {
    let value: T = decode(bytes)?;
    match encode(&value) == bytes {
        true => Ok(value),
        false => Err(DecodeError::Form),
    }
}

/// Decodes any strict DAG-CBOR block as untyped data.
pub fn decode_ipld(bytes: &[u8]) -> Result<Ipld, DecodeError> {
    decode(bytes)
}

/// Returns all links of a block, in the order of its bytes. A raw block has none.
pub fn links(codec: Codec, bytes: &[u8]) -> Result<Vec<Cid>, DecodeError> {
    match codec {
        Codec::Raw => Ok(Vec::new()),
        Codec::DagCbor => scan(bytes),
    }
}

/// Walks one CBOR item without building it, and returns its links. Refuses links with extra bytes (which the decoder
/// accepts), other CIDs than ours, indefinite lengths and nesting over [`DEPTH_MAX`].
fn scan(bytes: &[u8]) -> Result<Vec<Cid>, DecodeError> {
    let truncated = || DecodeError::Cbor("truncated item".into());
    let mut links = Vec::new();
    // Holds the number of items left in each open container.
    let mut open: Vec<u64> = Vec::with_capacity(DEPTH_MAX);
    let mut at = 0;
    loop {
        let head = *bytes.get(at).ok_or_else(truncated)?;
        if head == LINK_HEAD[0] {
            let link = bytes.get(at..at + LINK_HEAD.len() + CID_LEN).ok_or(DecodeError::Link)?;
            if link[..LINK_HEAD.len()] != LINK_HEAD {
                return Err(DecodeError::Link);
            }
            links.push(Cid::from_bytes(&link[LINK_HEAD.len()..]).map_err(|_| DecodeError::Link)?);
            at += link.len();
        } else {
            let (major, argument, width) = read_head(&bytes[at..]).ok_or_else(truncated)?;
            at += width;
            match major {
                2 | 3 => {
                    let len = usize::try_from(argument).map_err(|_| truncated())?;
                    at = at.checked_add(len).filter(|end| *end <= bytes.len()).ok_or_else(truncated)?;
                }
                4 | 5 if open.len() == DEPTH_MAX => return Err(DecodeError::Depth),
                4 | 5 if argument > 0 => {
                    let items = if major == 5 { argument.saturating_mul(2) } else { argument };
                    open.push(items);
                    continue;
                }
                6 => return Err(DecodeError::Link),
                _ => {}
            }
        }
        while let Some(left) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            open.pop();
        }
        if open.is_empty() {
            return if at == bytes.len() {
                Ok(links)
            } else {
                Err(DecodeError::Cbor("bytes after the item".into()))
            };
        }
    }
}

/// Returns major type, argument and width of a CBOR head; returns none if it is cut short or of indefinite length.
fn read_head(bytes: &[u8]) -> Option<(u8, u64, usize)> {
    let (major, info) = (bytes[0] >> 5, bytes[0] & 0x1f);
    let width = match info {
        0..=23 => return Some((major, info.into(), 1)),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let argument = bytes.get(1..1 + width)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some((major, argument, 1 + width))
}

#[cfg(test)]
mod tests;
