//! Framed: one JSON message a frame, from a client that is held to its word.
//!
//! Invariants:
//! - a frame that breaks the rules is the last one read; what is no message is told so before that.

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::{envelope::Fault, pipe::Framing};
use crate::runtime::frames::{FRAME_MAX, Frames};

/// The messages of one stream.
pub struct Framed<R>(Frames<R>);

impl<R: AsyncRead + Send + Unpin> Framed<R> {
    pub fn new(reader: R) -> Self {
        Self(Frames::new(reader, FRAME_MAX))
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Framing for Framed<R> {
    const LENIENT: bool = false;

    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        // Behind a length that lies nothing can be told apart, so there is nothing to answer either.
        let frame = self.0.next().await.inspect_err(|err| tracing::debug!(%err, "a stream is closed"));
        frame.ok().flatten().map(Ok)
    }

    fn written(message: Vec<u8>) -> Bytes {
        message.into()
    }
}
