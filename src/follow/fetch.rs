//! One block of a peer's log, by its name.
//!
//! Invariants:
//! - no more is taken in than a block may have, and no longer is waited than for one.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Refused,
    wire::{AskBlocks, BLOCK_MAX, BlockAnswer, Request, Response, WireError, read, read_frame, write_frame},
};
use crate::{block::Cid, follow::driver::FollowError};

/// How long the peer may take over the whole.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the peer behind `stream` for a block. The caller must check that the bytes hash to its name.
pub async fn block(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    cid: Cid,
) -> Result<Vec<u8>, FollowError> {
    let asked = async {
        write_frame(&mut stream, &Request::Blocks(AskBlocks { cids: vec![cid] })).await?;
        let mut bytes = Vec::new();
        loop {
            let frame = read_frame(&mut stream).await?.ok_or(FollowError::Closed)?;
            let (piece, last) = match read(&frame)? {
                Response::Block(BlockAnswer::Piece(piece)) => (piece, false),
                Response::Block(BlockAnswer::Present(piece)) => (piece, true),
                Response::Block(answer) => {
                    return Err(Refused::Absent { cid, answer: Box::new(answer) }.into());
                }
                Response::Refused(reason) => return Err(Refused::Declined(reason).into()),
                Response::Head(_) | Response::Events(_) | Response::End(_) => {
                    return Err(Refused::Unasked.into());
                }
            };
            if bytes.len() + piece.len() > BLOCK_MAX {
                return Err(Refused::TooMuch.into());
            }
            bytes.extend_from_slice(&piece);
            if last {
                return Ok(bytes);
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(WireError::Idle.into()))
}
