//! Serving this node's log to those who follow it: in ranges, from reading connections, on blocking threads.
//!
//! Invariants:
//! - contracts and the log's head are for everybody; events and content for peers that the owner allows;
//! - no reading of the log stays open while a peer takes its time;
//! - what a peer can hold of ours is bounded: streams, ranges, frames, and how long it may be silent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_bytes::ByteBuf;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::wire::{
    AskHead, AskTail, BLOCK_MAX, BlockAnswer, End, NAMES_MAX, PIECE, Reason, Request, Response,
    TAIL_BYTES_MAX, TAIL_FRAME, TAIL_MAX, ToldHead, WireError, hashes, read, read_frame, write_frame,
};
use crate::{
    block::{Cid, Codec, decode, payload::is_content},
    contract::Contract,
    error,
    event::Genesis,
    log::{Stored, home::Home},
    query::{QueryError, Readers, View, proof::Head},
};

/// Streams of one peer that are served at once.
pub const STREAMS_MAX: usize = 4;
/// How long a stream may be silent between two requests.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long a peer may take to take one frame.
const FRAME_WAIT: Duration = Duration::from_secs(60);

/// Blocks in memory at once: each at most 2 MiB, nearly all far below.
const BLOCKS_AT_ONCE: usize = 16;

/// What a peer may be allowed to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Events, and the plans they name.
    Events,
    /// Payloads and their parts.
    Content,
}

/// Returns whether the peer of this id may read that.
pub type May = Arc<dyn Fn(&str, What) -> bool + Send + Sync>;
/// Returns the last signed head, whose events are all folded.
pub type Last = Arc<dyn Fn() -> Head + Send + Sync>;

/// Serves a log. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    log: Cid,
    readers: Arc<Readers>,
    last: Last,
    may: May,
    streams: Arc<Mutex<HashMap<String, usize>>>,
}

/// What was served on one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub requests: u64,
    pub events: u64,
    pub blocks: u64,
    /// The blocks among them that held content.
    pub contents: u64,
}

impl Server {
    /// Makes a server of the log of `home`, named `log`.
    pub fn new(home: &Home, log: Cid, last: Last, may: May) -> Self {
        let readers = Arc::new(Readers::new(home.clone()));
        Self { log, readers, last, may, streams: Arc::default() }
    }

    /// Answers what `peer` asks, until it closes the stream. Safe to drop midway.
    pub async fn serve<S>(&self, stream: S, peer: &str) -> Result<Served, WireError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut served = Served::default();
        self.serve_into(stream, peer, &mut served).await?;
        Ok(served)
    }

    /// Like [`Self::serve`], but counts into `served`, which is right also if the stream breaks off.
    pub async fn serve_into<S>(&self, mut stream: S, peer: &str, served: &mut Served) -> Result<(), WireError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(_place) = StreamPermit::take(&self.streams, peer) else {
            return write(&mut stream, &Response::Refused(Reason::Busy)).await;
        };
        while let Some(frame) =
            timeout(IDLE_MAX, read_frame(&mut stream)).await.map_err(|_| WireError::Idle)??
        {
            let Ok(request) = read(&frame) else {
                write(&mut stream, &Response::Refused(Reason::Malformed)).await?;
                return Err(WireError::Malformed);
            };
            served.requests += 1;
            let answered = match request {
                Request::Head(ask) => self.head(&mut stream, ask).await?,
                Request::Tail(ask) => self.tail(&mut stream, peer, ask, served).await?,
                Request::Blocks(ask) => self.blocks(&mut stream, peer, ask.cids, served).await?,
            };
            if let Err(reason) = answered {
                write(&mut stream, &Response::Refused(reason)).await?;
            }
        }
        Ok(())
    }

    async fn head<S: AsyncWrite + Unpin>(&self, stream: &mut S, ask: AskHead) -> Answered {
        let (head, log) = ((self.last)(), self.log);
        let note = head.note.clone();
        let found = self.ask(move |view| {
            let (_, genesis) = view.genesis(&log)?;
            let (root, proof) = view.extension(ask.held.min(head.size), head.size)?;
            let first = view.keys(&log)?.first().vkey();
            Ok((genesis, first, view.key_changes(head.size)?, root, proof))
        });
        let (genesis, vkey, rotations, root, proof) = match found.await {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        let told = ToldHead {
            genesis: ByteBuf::from(genesis),
            vkey,
            checkpoint: note,
            root: ByteBuf::from(root.to_vec()),
            proof: hashes(&proof),
            rotations: rotations.iter().map(|event| ByteBuf::from(event.bytes())).collect(),
        };
        write(stream, &Response::Head(Box::new(told))).await.map(Ok)
    }

    async fn tail<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        peer: &str,
        ask: AskTail,
        served: &mut Served,
    ) -> Answered {
        if !(self.may)(peer, What::Events) {
            return Ok(Err(Reason::Denied));
        }
        if ask.max == 0 || ask.from >= ask.size || ask.size > (self.last)().size {
            return Ok(Err(Reason::Malformed));
        }
        let to = ask.size.min(ask.from + ask.max.min(TAIL_MAX));
        let (mut next, mut left) = (ask.from, TAIL_BYTES_MAX);
        while next < to && left > 0 {
            let from = next;
            let events = match self.ask(move |view| view.event_bytes(from, to, TAIL_FRAME)).await {
                Ok(events) if events.is_empty() => return Ok(Err(Reason::Unavailable)),
                Ok(events) => events,
                Err(reason) => return Ok(Err(reason)),
            };
            next += events.len() as u64;
            served.events += events.len() as u64;
            left = left.saturating_sub(events.iter().map(Vec::len).sum());
            write(stream, &Response::Events(events.into_iter().map(ByteBuf::from).collect())).await?;
        }
        match self.ask(move |view| view.extension(next, ask.size)).await {
            Ok((_, proof)) => {
                write(stream, &Response::End(End { next, proof: hashes(&proof) })).await.map(Ok)
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    async fn blocks<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        peer: &str,
        cids: Vec<Cid>,
        served: &mut Served,
    ) -> Answered {
        if cids.is_empty() || cids.len() > NAMES_MAX {
            return Ok(Err(Reason::Malformed));
        }
        let rights =
            Rights { events: (self.may)(peer, What::Events), content: (self.may)(peer, What::Content) };
        let mut cids = cids.into_iter().peekable();
        while cids.peek().is_some() {
            let asked: Vec<Cid> = cids.by_ref().take(BLOCKS_AT_ONCE).collect();
            let found = self.ask(move |view| {
                let answers = asked.iter().map(|cid| Ok((*cid, found(view, cid, rights)?)));
                answers.collect::<Result<Vec<_>, QueryError>>()
            });
            let answers = match found.await {
                Ok(answers) => answers,
                Err(reason) => return Ok(Err(reason)),
            };
            for (cid, answer) in answers {
                served.blocks += 1;
                if let BlockAnswer::Present(bytes) = &answer {
                    served.contents += u64::from(is_content(&cid, bytes));
                }
                for piece in pieces(answer) {
                    write(stream, &Response::Block(piece)).await?;
                }
            }
        }
        Ok(Ok(()))
    }

    /// Asks the log on a blocking thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Reason> {
        let readers = Arc::clone(&self.readers);
        match tokio::task::spawn_blocking(move || readers.ask(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(err)) => {
                tracing::error!(err = %error::chain(&err), "a follower's request failed");
                Err(Reason::Unavailable)
            }
            Err(err) => {
                tracing::error!(%err, "a follower's request broke off");
                Err(Reason::Unavailable)
            }
        }
    }
}

/// A request was answered, or refused for a reason that the peer is told, or the stream has failed.
type Answered = Result<Result<(), Reason>, WireError>;

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, response: &Response) -> Result<(), WireError> {
    timeout(FRAME_WAIT, write_frame(stream, response)).await.map_err(|_| WireError::Idle)?
}

/// What a peer may read.
#[derive(Clone, Copy)]
struct Rights {
    events: bool,
    content: bool,
}

/// Returns the answer about a block. A peer that may not read content does not learn whether it exists.
fn found(view: &View, cid: &Cid, rights: Rights) -> Result<BlockAnswer, QueryError> {
    Ok(match view.block(cid)? {
        Some(Stored::Present(bytes)) if bytes.len() > BLOCK_MAX => BlockAnswer::Unknown,
        Some(Stored::Present(bytes)) if rights.content || open(cid, &bytes, rights) => {
            BlockAnswer::Present(bytes.into())
        }
        // Of a part nobody learns that it was ever here: its name is the hash of plain content.
        Some(Stored::Erased) if rights.content && cid.codec() == Codec::DagCbor => BlockAnswer::Erased,
        None | Some(Stored::Erased) if rights.content => BlockAnswer::Unknown,
        None | Some(Stored::Erased | Stored::Present(_)) => BlockAnswer::Withheld,
    })
}

/// Returns whether a block is open to this peer: contracts and genesis are for everybody, all else that is no content
/// for readers of events.
fn open(cid: &Cid, bytes: &[u8], rights: Rights) -> bool {
    if is_content(cid, bytes) {
        return false;
    }
    rights.events || decode::<Contract>(bytes).is_ok() || decode::<Genesis>(bytes).is_ok()
}

/// Splits an answer into pieces that fit into frames.
fn pieces(answer: BlockAnswer) -> Vec<BlockAnswer> {
    let BlockAnswer::Present(bytes) = answer else {
        return vec![answer];
    };
    let mut rest = bytes.into_vec();
    let mut pieces = Vec::new();
    while rest.len() > PIECE {
        let tail = rest.split_off(PIECE);
        pieces.push(BlockAnswer::Piece(std::mem::replace(&mut rest, tail).into()));
    }
    pieces.push(BlockAnswer::Present(rest.into()));
    pieces
}

/// A peer's right to one stream, given back on drop.
struct StreamPermit {
    streams: Arc<Mutex<HashMap<String, usize>>>,
    peer: String,
}

impl StreamPermit {
    fn take(streams: &Arc<Mutex<HashMap<String, usize>>>, peer: &str) -> Option<Self> {
        let mut open = streams.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer.to_owned()).or_default();
        if *count >= STREAMS_MAX {
            return None;
        }
        *count += 1;
        Some(Self { streams: Arc::clone(streams), peer: peer.to_owned() })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut open = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}
