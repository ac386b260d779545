//! The ledger: the one writer. Commands come in, rulings go out, and what a ruling says is durable.
//!
//! Invariants:
//! - one thread writes; commands that wait share one commit and one fsync;
//! - a reply leaves only after the commit that makes it true;
//! - a failed commit stops the ledger: nothing is built on what may not be there.

mod clock;
pub mod progress;
pub mod fitting;
mod sealer;
pub mod commit;
pub mod upkeep;
pub mod work;
mod holding;
mod loading;
mod world;
mod calls;
mod claims;
pub mod concluding;
mod crew;
mod erasing;
pub mod keeping;
mod offering;
pub mod peers;
mod queueing;
mod resent;
mod schedules;
mod tasks;
mod deciding;
mod runs;
mod ticking;
mod wishes;
mod writer;
mod folding;
pub mod heads;
pub mod opening;
pub mod restoring;
pub mod rotating;
pub mod sharing;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    block::{Cid, payload::SealedPayload},
    call::{
        End, Ending, Start,
        asking::{Answer, Inquiry},
    },
    contract::Contract,
    error::Refusal,
    event::Actor,
    ledger::{
        concluding::Conclude,
        keeping::Keeping,
        peers::Peering,
        upkeep::Wal,
        work::{Attempt, Work, Worked},
    },
    log::home::Home,
    workflow::plan::Tools,
};

/// Commands that may wait for the writer; more wait at the door.
pub const WAITING_MAX: usize = 8 * 1024;
/// Commands in one commit by default.
pub const GROUP_MAX: usize = 1024;

/// The catalogue that plans are checked against. It is empty until a room above fills it in, once.
pub type Shelf = Arc<std::sync::OnceLock<Box<dyn Tools + Send + Sync>>>;

/// A command: what somebody asks the writer to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Offer a tool under this contract; its `prev` is set by the rules.
    Publish { contract: Contract, actor: Actor },
    /// Offer another node's tool under the contract it has there, which is kept as it is.
    Adopt { contract: Contract, name: String, actor: Actor },
    /// Retire the contracts of all tools of a source except those named.
    Retain { source: String, names: Vec<String>, actor: Actor },
    /// Start a call. `refused` is the answer that is recorded if `start.refusal` is set.
    Start { start: Box<Start>, input: Option<SealedPayload>, refused: Option<SealedPayload> },
    /// Start a call whose whole effect is one change of durable work. Start and change are one commit; if `conclude`
    /// makes an ending, that is in it too.
    Begin {
        start: Box<Command>,
        work: Box<Work>,
        #[serde(skip)]
        conclude: Option<Conclude>,
    },
    /// Record what a running call asks its caller's client.
    Ask { ask: Inquiry, question: SealedPayload },
    /// Record what a running call was answered.
    Answer { answer: Answer, content: SealedPayload },
    /// End a running call, and the attempt it was made for.
    End { end: End, output: Option<SealedPayload>, attempt: Option<Box<Attempt>> },
    /// Change durable work.
    Work(Box<Work>),
    /// Record news about another node, if it changes anything.
    Peer(Box<Peering>),
    /// End every running call and attempt of processes that have ended, and record how many there were.
    Recover { runners: Vec<String> },
    /// Delete a payload's content, keeping its name and every proof.
    Erase { payload: Cid, basis: String, actor: Actor },
    /// Record that part of the log was handed out.
    Export { format: String, from_seq: u64, to_seq: u64, actor: Actor },
    /// Record a fact about the log's own keeping, unless it is on record already.
    Keep { keeping: Keeping, actor: Actor },
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub cid: Cid,
    pub seq: u64,
}

/// The writer's answer to a command. It is durable before anybody sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ruling {
    /// The tool stands under this contract; `contract` is as published, its `prev` set.
    Published { cid: Cid, contract: Box<Contract>, new: bool },
    /// Run the call; its start is this event.
    Run(Sealed),
    /// The call has begun. `ruled` is the ruling on the change it asks for; `ended` is its ending, if the same commit
    /// holds one.
    Began { started: Sealed, ruled: Box<Ruling>, ended: Option<Sealed> },
    /// The call was recorded as refused; its ending is this event.
    Refused(Sealed),
    /// The answer that the first call with this idempotency key got.
    Answered(Ending),
    /// The rules forbid it; nothing was recorded.
    Denied(Refusal),
    /// What was ruled about durable work.
    Worked(Box<Worked>),
    /// Recorded by this event.
    Done(Sealed),
    /// Nothing had to change.
    Unchanged,
}

/// The ledger has ended: nothing more can be recorded by this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger has stopped; look for the reason in the server's log, then start it again")]
pub struct Stopped;

/// What the log is, for whoever asks.
#[derive(Clone, Debug)]
pub struct About {
    /// The genesis block's CID: the log's name.
    pub log: Cid,
    pub origin: String,
    /// The signed-note verifier key of the log's heads.
    pub vkey: String,
    /// A commitment to the key that salts its payloads.
    pub salted: [u8; 16],
}

/// How far the log is written, folded and signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Events folded into the state.
    pub applied: u64,
    /// The signed checkpoint over exactly those.
    pub checkpoint: String,
}

/// The handle: cheap to clone, safe to drop.
#[derive(Clone)]
pub struct Ledger {
    inbox: mpsc::Sender<Ask>,
    committed: watch::Receiver<u64>,
    reach: watch::Receiver<Reach>,
    /// `None` if another process owns the log.
    wal: Option<watch::Receiver<Wal>>,
    about: Arc<About>,
    home: Home,
}

/// What reaches the writer.
#[expect(clippy::large_enum_variant, reason = "all but one of a process's asks are rules")]
enum Ask {
    /// A command, and where its ruling goes. `again` is set if an earlier owner may have committed it already.
    Rule { command: Command, reply: oneshot::Sender<Ruling>, again: bool },
    /// Look at what is due.
    Tick,
    /// Commit what came before this, and end.
    Close,
}

impl Ledger {
    /// Asks for a ruling. When this returns, the ruling's events are durable.
    ///
    /// Safe to drop midway: the command may still be carried out.
    pub async fn submit(&self, command: Command) -> Result<Ruling, Stopped> {
        self.enqueue(command, false).await?.await.map_err(|_| Stopped)
    }

    /// Puts a command in line, and returns where its ruling will arrive. Commands that one task enqueues one after
    /// another are ruled in that order.
    async fn enqueue(&self, command: Command, again: bool) -> Result<oneshot::Receiver<Ruling>, Stopped> {
        let (reply, ruling) = oneshot::channel();
        self.inbox.send(Ask::Rule { command, reply, again }).await.map_err(|_| Stopped)?;
        Ok(ruling)
    }

    /// Ends the ledger once everything submitted before is committed.
    pub async fn close(&self) {
        // A ledger that takes no more is closed already.
        let _ = self.inbox.send(Ask::Close).await;
    }

    /// Like [`Ledger::submit`], for threads outside the runtime.
    pub fn submit_blocking(&self, command: Command) -> Result<Ruling, Stopped> {
        let (reply, ruling) = oneshot::channel();
        self.inbox.blocking_send(Ask::Rule { command, reply, again: false }).map_err(|_| Stopped)?;
        ruling.blocking_recv().map_err(|_| Stopped)
    }

    /// Waits until what is committed now is folded, so that a question sees every answer given before it.
    pub async fn settled(&self) -> Result<Reach, Stopped> {
        let committed = *self.committed.borrow();
        let mut reach = self.reach.clone();
        let reached = reach.wait_for(|reach| reach.applied >= committed).await.map_err(|_| Stopped)?;
        Ok(reached.clone())
    }

    /// Events committed so far; changes at each commit.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.committed.clone()
    }

    /// What is folded and signed; changes after each fold.
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.clone()
    }

    /// Returns what is known of the log's write-ahead file, or `None` if another process owns the log: that one
    /// reports it.
    pub fn wal(&self) -> Option<Wal> {
        Some(*self.wal.as_ref()?.borrow())
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Commands waiting for the writer.
    pub fn waiting(&self) -> usize {
        self.inbox.max_capacity() - self.inbox.capacity()
    }

    /// Whether commands are still taken.
    pub fn runs(&self) -> bool {
        !self.inbox.is_closed()
    }

    /// Waits until the ledger takes no more commands.
    pub async fn stopped(&self) {
        self.inbox.closed().await;
    }
}

#[cfg(test)]
mod tests;
