//! An upstream at the other end of a stream: one JSON-RPC message a frame, both ways.
//!
//! Invariants:
//! - when the stream ends or breaks, everything that waits on it ends at once;
//! - a frame that is no message ends the stream: whoever frames has nothing else to say on it;
//! - a peer's request that came wrapped gets a wrapped answer;
//! - no request leaves that is longer than what the other side takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, split},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    frames::{self, FRAME_MAX, Frames},
    runtime::upstream::{Duplex, Failure, inbox::Inbox, wrapped},
};

/// Bytes of a frame for a peer that has not said how much it takes.
const UNTOLD_MAX: usize = 1024 * 1024;
/// Messages written but not yet taken by the peer; beyond this, callers wait.
const OUTBOX_MAX: usize = 64;
/// How long the peer may take to take one message.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Stream {
    pub outbox: mpsc::Sender<Bytes>,
    /// Bytes of one frame that the other side takes.
    taken: AtomicUsize,
    closing: CancellationToken,
    gone: CancellationToken,
    _guard: DropGuard,
}

impl Stream {
    /// Speaks on an open stream. Must be called on a runtime.
    pub fn new(stream: Box<dyn Duplex>, inbox: Arc<Inbox>) -> Self {
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let (closing, gone) = (CancellationToken::new(), CancellationToken::new());
        let (reader, writer) = split(stream);
        let reading = read(reader, Arc::clone(&inbox), outbox.downgrade());
        let (asked, finished) = (closing.clone(), gone.clone());
        // Joined by `close`, through `gone`; ended by `closing`, which also fires when this is dropped.
        tokio::spawn(async move {
            let (failure, reason) = tokio::select! {
                biased;
                () = asked.cancelled() => (Failure::Died, "stopped".to_owned()),
                end = reading => end,
                // A peer that cannot be told anything is of no use, though it talks.
                _ = frames::write(messages, writer, PATIENCE) => closed(),
            };
            inbox.drain(|| failure.clone());
            inbox.lose(reason);
            finished.cancel();
        });
        let guard = closing.clone().drop_guard();
        Self { outbox, taken: AtomicUsize::new(UNTOLD_MAX), closing, gone, _guard: guard }
    }

    /// Learns how long a frame the other side takes.
    pub fn learn(&self, max: usize) {
        self.taken.store(max.min(FRAME_MAX), Ordering::Relaxed);
    }

    /// Sends a request. Errors: it is longer than the other side takes, or the stream has ended.
    pub async fn send(&self, body: String) -> Result<(), Failure> {
        let (len, max) = (body.len(), self.taken.load(Ordering::Relaxed));
        if len > max {
            return Err(Failure::Oversize { len, max });
        }
        self.outbox.send(body.into()).await.map_err(|_| Failure::Gone)
    }

    /// Ends the stream. Returns when nothing of ours holds it any more.
    pub async fn close(&self) {
        self.closing.cancel();
        self.gone.cancelled().await;
    }
}

/// Delivers frame after frame. Returns the failure of the requests that still wait, and why the stream ended.
async fn read(
    reader: impl AsyncRead + Unpin,
    inbox: Arc<Inbox>,
    outbox: mpsc::WeakSender<Bytes>,
) -> (Failure, String) {
    let mut frames = Frames::new(reader, FRAME_MAX);
    let broken = |how: String| (Failure::Broken(how.clone()), how);
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(frames::Broken::Cut | frames::Broken::Unreadable(_)) => return closed(),
            Err(how @ (frames::Broken::Empty | frames::Broken::TooLarge { .. })) => {
                return broken(how.to_string());
            }
        };
        let inside = wrapped::unwrap(&frame);
        let wraps = inside.is_some();
        let frame = inside.map_or(frame, Bytes::from);
        let delivered = str::from_utf8(&frame).ok().and_then(|text| inbox.deliver(text, None).ok());
        let Some(back) = delivered else {
            return broken("a frame is no json-rpc message".to_owned());
        };
        for answer in back {
            let answer = match wraps {
                true => wrapped::wrap(answer.as_bytes()).map_or(answer.into(), Bytes::from),
                false => answer.into(),
            };
            // A peer that asks and does not read loses the answer.
            let _ = outbox.upgrade().map(|outbox| outbox.try_send(answer));
        }
    }
}

fn closed() -> (Failure, String) {
    (Failure::Died, "the stream ended".to_owned())
}

#[cfg(test)]
mod tests;
