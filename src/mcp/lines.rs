//! Lines: MCP over a pair of streams, one JSON message a line.
//!
//! Invariants:
//! - only messages are written, each on one line, by one task;
//! - a line that is no message is answered and skipped; reading goes on after it.

use std::{io, sync::Arc};

use bytes::Bytes;
use rmcp::{
    RoleServer,
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::Transport,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    sync::mpsc,
};

use super::{
    Shared,
    envelope::{self, Fault, Message},
    offering::header_tool,
    raw::{one_line, unpack},
};
use crate::{
    block::json,
    problem::{INVALID_REQUEST, json_code},
    router::Caller,
};

/// Bytes of one line.
pub const LINE_MAX: usize = 16 * 1024 * 1024;
/// Lines waiting to be written.
const WRITE_QUEUE_MAX: usize = 64;

/// The transport of one stdio client.
pub struct Lines<R> {
    shared: Arc<Shared>,
    caller: Caller,
    reader: BufReader<R>,
    /// What has been read of the line that is not yet whole; kept here so that reading may be dropped midway.
    line: Vec<u8>,
    /// Whether `line` outgrew its bound and is being skipped.
    overlong: bool,
    /// An answer to a faulty line, not yet handed to the writer.
    fault: Option<Bytes>,
    out: mpsc::Sender<Bytes>,
}

impl<R: AsyncRead + Send + Unpin> Lines<R> {
    /// The transport, and the queue that [`write`] must drain.
    pub fn new(shared: Arc<Shared>, caller: Caller, reader: R) -> (Self, mpsc::Receiver<Bytes>) {
        let (out, written) = mpsc::channel(WRITE_QUEUE_MAX);
        let lines = Self {
            shared,
            caller,
            reader: BufReader::new(reader),
            line: Vec::new(),
            overlong: false,
            fault: None,
            out,
        };
        (lines, written)
    }

    /// The next whole line, without its end; none at the end of input. Safe to drop midway.
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
                    true => Err(fault(INVALID_REQUEST, "the line is longer than 16 MiB")),
                    false => Ok(line),
                });
            }
        }
    }

    fn read(&self, line: &[u8]) -> Result<ClientJsonRpcMessage, Fault> {
        json::check(line).map_err(|found| fault(json_code(&found), &found.to_string()))?;
        let unread = |_| fault(INVALID_REQUEST, "the line is not a message of this protocol");
        match envelope::read(line, &self.caller)? {
            Message::Answers => serde_json::from_slice(line).map_err(unread),
            Message::Asks { asked, slim, .. } => {
                let offer = self.shared.router.offer();
                let slim = slim.filter(|_| header_tool(&offer, &asked.name).is_none());
                let mut message: ClientJsonRpcMessage = match slim {
                    Some(slim) => serde_json::from_slice(&slim.to_json()),
                    None => serde_json::from_slice(line),
                }
                .map_err(unread)?;
                message.insert_extension(asked);
                Ok(message)
            }
        }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> Transport<RoleServer> for Lines<R> {
    type Error = io::Error;

    fn send(
        &mut self,
        message: ServerJsonRpcMessage,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let out = self.out.clone();
        async move {
            let line = serde_json::to_vec(&message)?;
            let mut line = unpack(&line).unwrap_or(line);
            one_line(&mut line);
            line.push(b'\n');
            out.send(line.into()).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            if self.fault.is_some() {
                let permit = self.out.reserve().await.ok()?;
                permit.send(self.fault.take()?);
            }
            let out = self.out.clone();
            let line = tokio::select! {
                line = self.next_line() => line,
                // Nobody reads what we write any more.
                () = out.closed() => None,
            };
            let Some(line) = line else {
                self.shared.settings.shutdown.cancel();
                return None;
            };
            let blank = |line: &Vec<u8>| line.trim_ascii().is_empty();
            if line.as_ref().is_ok_and(blank) {
                continue;
            }
            match line.and_then(|line| self.read(&line)) {
                Ok(message) => return Some(message),
                Err(fault) => {
                    let mut line = fault.to_json();
                    line.push(b'\n');
                    self.fault = Some(line.into());
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        Ok(())
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

fn fault(code: i64, message: &str) -> Fault {
    Fault { id: "null".to_owned(), code, message: message.to_owned(), malformed: true }
}
