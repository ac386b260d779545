//! Frames: messages on a stream, each behind its length as four bytes, most significant first.
//!
//! Invariants:
//! - a length of nothing or over the bound is refused before anything is kept for it;
//! - memory follows the bytes that came, never the length that was announced;
//! - reading may be dropped midway: what has come of a frame is kept for the next time.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter},
    sync::mpsc,
    time::timeout,
};

/// Bytes of one frame's content, for whoever says nothing else.
pub const FRAME_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the length in front of each frame.
const HEAD: usize = 4;
/// Room made for what comes next, at a time.
const STEP: usize = 64 * 1024;

/// Why a stream gives no more frames. None of these can be mended: the stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("a frame is empty")]
    Empty,
    #[error("a frame of {len} bytes is over the bound of {max}")]
    TooLarge { len: usize, max: usize },
    #[error("the stream ended within a frame")]
    Cut,
    #[error("the stream cannot be read")]
    Unreadable(#[from] io::Error),
}

/// The frames of one stream, in order.
pub struct Frames<R> {
    from: R,
    max: usize,
    come: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Reads frames of up to `max` bytes.
    pub fn new(from: R, max: usize) -> Self {
        Self { from, max, come: BytesMut::new() }
    }

    /// The content of the next frame; none where the stream ends between two frames. Safe to drop midway.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            self.come.reserve(STEP);
            if self.from.read_buf(&mut self.come).await? == 0 {
                return if self.come.is_empty() { Ok(None) } else { Err(Broken::Cut) };
            }
        }
    }

    fn whole(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(head) = self.come.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*head) as usize;
        if len == 0 {
            return Err(Broken::Empty);
        }
        if len > self.max {
            return Err(Broken::TooLarge { len, max: self.max });
        }
        if self.come.len() < HEAD + len {
            return Ok(None);
        }
        self.come.advance(HEAD);
        Ok(Some(self.come.split_to(len).freeze()))
    }
}

/// Writes each message as a frame until their queue ends, flushing whenever nothing more waits.
///
/// Ended by a message that is empty or too long for its length to be said, and by a reader who does not take
/// one message within `patience`.
pub async fn write(
    mut messages: mpsc::Receiver<Bytes>,
    to: impl AsyncWrite + Unpin,
    patience: Duration,
) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(STEP, to);
    while let Some(message) = messages.recv().await {
        timeout(patience, put(&mut to, &message)).await??;
        while let Ok(message) = messages.try_recv() {
            timeout(patience, put(&mut to, &message)).await??;
        }
        timeout(patience, to.flush()).await??;
    }
    timeout(patience, to.shutdown()).await?
}

async fn put(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).ok().filter(|len| *len > 0).ok_or(io::ErrorKind::InvalidInput)?;
    to.write_all(&len.to_be_bytes()).await?;
    to.write_all(message).await
}

#[cfg(test)]
mod tests;
