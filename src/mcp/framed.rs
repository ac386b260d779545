//! Framed: one JSON message a frame, from a client that must keep to the format.
//!
//! Invariants:
//! - a frame that breaks the rules is the last one read; what is no message is told so before that;
//! - a client whose first message is wrapped is answered so from then on.

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::{envelope::Fault, outlet::Frame, pipe::Framing};
use crate::{
    frames::{FRAME_MAX, Frames},
    runtime::upstream::wrapped,
};

/// The messages of one stream.
pub struct Framed<R> {
    frames: Frames<R>,
    /// Whether the client wraps its messages; its first one says so.
    wraps: Option<bool>,
}

impl<R: AsyncRead + Send + Unpin> Framed<R> {
    pub fn new(reader: R) -> Self {
        Self { frames: Frames::new(reader, FRAME_MAX), wraps: None }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Framing for Framed<R> {
    const LENIENT: bool = false;

    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        // Behind a length that lies nothing can be told apart, so there is nothing to answer either.
        let frame = self.frames.next().await.inspect_err(|err| tracing::debug!(%err, "a stream is closed"));
        let frame = frame.ok().flatten()?;
        let inside = wrapped::unwrap(&frame);
        self.wraps.get_or_insert(inside.is_some());
        Some(Ok(inside.map_or(frame, Bytes::from)))
    }

    fn writer(&self) -> Frame {
        match self.wraps {
            Some(true) => |message| {
                let message = message.into_bytes();
                wrapped::wrap(&message).unwrap_or(message).into()
            },
            Some(false) | None => Bytes::from,
        }
    }
}
