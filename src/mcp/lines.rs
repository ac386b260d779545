//! Lines: one JSON message a line.
//!
//! Invariants:
//! - each message is written on one line;
//! - a line that is no message is answered and skipped; reading goes on after it.

use std::io;

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    sync::mpsc,
};

use super::{
    envelope::Fault,
    outlet::{Frame, one_line},
    pipe::Framing,
};
use crate::router::codes::INVALID_REQUEST;

/// Bytes of one line.
pub const LINE_MAX: usize = 16 * 1024 * 1024;

/// The lines of one stdio client.
pub struct Lines<R> {
    reader: BufReader<R>,
    /// The part of the next line that has been read, kept here so that reading may be dropped midway.
    line: Vec<u8>,
    /// Whether `line` outgrew its bound and is being skipped.
    overlong: bool,
}

impl<R: AsyncRead + Send + Unpin> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new(), overlong: false }
    }

    /// Returns the next whole line, without its end; `None` at the end of input. Safe to drop midway.
    async fn next_line(&mut self) -> Option<Result<Vec<u8>, Fault>> {
        loop {
            let chunk = self.reader.fill_buf().await.ok()?;
            if chunk.is_empty() {
                return None;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            if self.overlong || self.line.len() + part.len() > LINE_MAX {
                self.overlong = true;
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return Some(match std::mem::take(&mut self.overlong) {
                    true => Err(Fault::malformed(INVALID_REQUEST, "the line is longer than 16 MiB")),
                    false => Ok(line),
                });
            }
        }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Framing for Lines<R> {
    const LENIENT: bool = true;

    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        loop {
            let line = self.next_line().await?;
            let blank = |line: &Vec<u8>| line.trim_ascii().is_empty();
            if !line.as_ref().is_ok_and(blank) {
                return Some(line.map(Bytes::from));
            }
        }
    }

    fn writer(&self) -> Frame {
        |message| {
            let mut message = message.into_bytes();
            one_line(&mut message);
            message.push(b'\n');
            message.into()
        }
    }
}

/// Writes lines until their queue ends, flushing whenever nothing more waits.
pub async fn write(mut lines: mpsc::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        to.write_all(&line).await?;
        while let Ok(line) = lines.try_recv() {
            to.write_all(&line).await?;
        }
        to.flush().await?;
    }
    to.shutdown().await
}
