//! The stdio door: one client on standard input and output, message by message.
//!
//! Invariants:
//! - nothing but messages is written to standard output;
//! - what was read ahead is served like what comes after it.

use std::{
    io::{self, Cursor},
    sync::Arc,
};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Stdin, stdin};

use crate::{caller::Caller, mcp, router::Router};

/// Bytes that are read ahead at most.
const AHEAD_MAX: u64 = 1024 * 1024;

/// Standard input, of which the first message has been read ahead.
pub struct Input {
    /// The first line that is not blank; empty at the end of input.
    pub first: Vec<u8>,
    rest: BufReader<Stdin>,
}

impl Input {
    /// Reads the first message, and waits for it as long as the client takes.
    pub async fn open() -> io::Result<Self> {
        let mut rest = BufReader::new(stdin());
        let mut first = Vec::new();
        while first.trim_ascii().is_empty() {
            first.clear();
            if (&mut rest).take(AHEAD_MAX).read_until(b'\n', &mut first).await? == 0 {
                break;
            }
        }
        Ok(Self { first, rest })
    }

    fn whole(self) -> impl AsyncRead + Send + Unpin + 'static {
        Cursor::new(self.first).chain(self.rest)
    }
}

/// Serves the client on standard input until it closes it, or until `settings.shutdown`.
pub async fn serve(
    router: Arc<Router>,
    settings: mcp::Settings,
    caller: Caller,
    input: Input,
) -> io::Result<()> {
    mcp::serve_stdio(router, settings, caller, input.whole(), tokio::io::stdout()).await
}
