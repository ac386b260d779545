//! `/cairn/log/1.0.0`: frames of a big-endian `u32` length and strict DAG-CBOR, and what may stand in them.
//!
//! Invariants:
//! - a length over [`FRAME_MAX`], or of nothing, ends the stream before anything is allocated for it;
//! - a buffer grows with the bytes that have come, never with what a peer says will come.

use std::{fmt, io};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    block::{Cid, decode, encode},
    merkle::Hash,
    words::words,
};

/// Bytes of one frame, without its length.
pub const FRAME_MAX: usize = 1024 * 1024;
/// Names in one request for blocks.
pub const NAMES_MAX: usize = 64;
/// Events of one tail.
pub const TAIL_MAX: u64 = 4096;
/// Bytes of the events in one tail: what a follower holds before it can check the root.
pub const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the events in one frame.
pub const TAIL_FRAME: usize = 256 * 1024;
/// Bytes of one block in one frame; a contract may be larger and comes in several.
pub const PIECE: usize = 512 * 1024;
/// Bytes of one block.
pub const BLOCK_MAX: usize = 2 * 1024 * 1024;

/// The steps in which a buffer grows.
const STEP: usize = 64 * 1024;

/// A request of the follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// The log's name, key and last signed head, compared with the head over `held` events.
    Head(AskHead),
    Tail(AskTail),
    /// Blocks by name, at most [`NAMES_MAX`].
    Blocks(AskBlocks),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskHead {
    pub held: u64,
}

/// Events from `from` on, at most `max` and none at or after `size`, with the proof that the tree over `size` has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskTail {
    pub from: u64,
    pub max: u64,
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskBlocks {
    pub cids: Vec<Cid>,
}

/// A response. A head request gets one head, a tail request any number of events and an end, a block request one
/// answer for each block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Head(Box<ToldHead>),
    Events(Vec<ByteBuf>),
    End(End),
    Block(BlockAnswer),
    Refused(Reason),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToldHead {
    /// The genesis block, whose CID is the log's name.
    pub genesis: ByteBuf,
    /// The verifier key of the genesis block.
    pub vkey: String,
    pub checkpoint: String,
    /// The root over the first `held` events, or over all if there are fewer.
    pub root: ByteBuf,
    /// The proof that the checkpoint's tree begins with them.
    pub proof: Vec<ByteBuf>,
    /// The events that changed the log's keys, in order; left out if there are none, so that older followers can read
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<ByteBuf>,
}

/// The end of a tail: the proof that the tree asked for begins with all events up to here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub next: u64,
    pub proof: Vec<ByteBuf>,
}

/// The answer about one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockAnswer {
    /// A piece of the block; more of it follows.
    Piece(ByteBuf),
    /// The block, or its last piece.
    Present(ByteBuf),
    Erased,
    /// It may be there, but this peer may not read it.
    Withheld,
    Unknown,
}

impl fmt::Display for BlockAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Piece(_) => "piece",
            Self::Present(_) => "present",
            Self::Erased => "erased",
            Self::Withheld => "withheld",
            Self::Unknown => "unknown",
        })
    }
}

words! {
    /// Why a request is not answered.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Reason {
        /// The owner does not let this peer read it.
        Denied = "denied",
        /// The peer has as many streams open as it may.
        Busy = "busy",
        /// The request makes no sense.
        Malformed = "malformed",
        /// The log cannot be read at the moment.
        Unavailable = "unavailable",
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the wire gave no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {len} bytes, where 1 to 1048576 are allowed")]
    Length { len: u32 },
    #[error("the stream ended within a frame")]
    Cut,
    #[error("a frame holds no message of this protocol")]
    Malformed,
    #[error("the peer neither sent nor took anything for too long")]
    Idle,
    #[error("the stream failed")]
    Io(#[source] io::Error),
}

/// Reads the next frame; `None` if the stream ended between two frames. Dropping it midway loses what was read.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, WireError> {
    let mut head = [0; 4];
    let mut got = 0;
    while got < head.len() {
        match stream.read(&mut head[got..]).await.map_err(WireError::Io)? {
            0 if got == 0 => return Ok(None),
            0 => return Err(WireError::Cut),
            more => got += more,
        }
    }
    let len = u32::from_be_bytes(head);
    if len == 0 || len as usize > FRAME_MAX {
        return Err(WireError::Length { len });
    }
    let len = len as usize;
    let mut frame = Vec::new();
    while frame.len() < len {
        let at = frame.len();
        frame.resize(len.min(at + STEP), 0);
        let read = stream.read(&mut frame[at..]).await.map_err(WireError::Io)?;
        if read == 0 {
            return Err(WireError::Cut);
        }
        frame.truncate(at + read);
    }
    Ok(Some(frame))
}

/// Writes `message` as one frame. Messages of ours are below the bound by how they are made.
pub async fn write_frame<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), WireError> {
    let body = encode(message);
    debug_assert!(body.len() <= FRAME_MAX, "a message of {} bytes", body.len());
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    stream.write_all(&frame).await.map_err(WireError::Io)?;
    stream.flush().await.map_err(WireError::Io)
}

/// Parses a frame as a message.
pub fn read<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    decode(frame).map_err(|_| WireError::Malformed)
}

pub fn hashes(proof: &[Hash]) -> Vec<ByteBuf> {
    proof.iter().map(|hash| ByteBuf::from(hash.to_vec())).collect()
}

/// Parses a proof; `None` if an element is no hash.
pub fn proof(hashes: &[ByteBuf]) -> Option<Vec<Hash>> {
    hashes.iter().map(|hash| hash.as_slice().try_into().ok()).collect()
}
