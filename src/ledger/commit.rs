//! The commit that is being made: facts are sealed into it, and it goes back to its mark where a command fails midway.
//!
//! Invariants:
//! - a command whose second event cannot be sealed leaves nothing in the commit, its first event included;
//! - a commit keeps its events and blocks in the order they were recorded.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use crate::{
    block::{Block, Cid, Codec, payload::SealedPayload},
    error::{Code, Refusal},
    event::{Actor, Body, Event, EventError, Fact, PayloadRef, Role},
    ledger::{Ruling, Sealed, sealer::Sealer},
    log::{Batch, LogError, Tip},
    merkle::Growing,
    query,
    state::StateError,
};

/// Returns the actor of events that the node makes of its own accord.
pub fn node() -> Actor {
    Actor { id: "cairn".to_owned(), role: "system".to_owned(), proof: None }
}

/// Returns the actor of events made from the command line.
pub fn operator() -> Actor {
    Actor { id: "local".to_owned(), role: "operator".to_owned(), proof: None }
}

/// Returns the reference by which an event names a sealed payload.
pub fn payload_ref(payload: &SealedPayload, role: Role) -> PayloadRef {
    PayloadRef { cid: payload.envelope.cid(), len: payload.len, role }
}

/// Makes a fact about the log itself.
pub(super) fn log_fact(actor: Actor, body: Body) -> Fact {
    By::new(actor).fact("log".to_owned(), body, Vec::new())
}

/// Why the writer has to stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the commit failed")]
    Log(#[from] LogError),
    #[error("an event that no command asked for could not be sealed")]
    Seal(#[from] EventError),
    #[error("the derived state could not be read")]
    State(#[from] StateError),
    #[error("the fold has stopped")]
    Fold,
    #[error("the entities do not fit the log: {what}")]
    Broken { what: &'static str },
}

/// Why a command is not carried out.
#[derive(Debug)]
pub(super) enum Stop {
    /// The rules forbid it. Nothing was recorded.
    Refused(Refusal),
    /// One of its events cannot be sealed. The commit has to go back to the mark before the command.
    Unsealed(EventError),
    /// The writer cannot go on.
    Fault(Fault),
}

impl Stop {
    /// Returns the fault of what no command asked for: nobody is there to be refused.
    pub fn fault(self) -> Fault {
        match self {
            Stop::Refused(_) => Fault::Broken { what: "the rules forbid what they decided" },
            Stop::Unsealed(err) => Fault::Seal(err),
            Stop::Fault(fault) => fault,
        }
    }

    /// Returns the refusal of a command that the rules forbid. Errors: everything else that stops it.
    pub fn refusal(self) -> Result<Refusal, Stop> {
        match self {
            Stop::Refused(refusal) => Ok(refusal),
            Stop::Unsealed(_) | Stop::Fault(_) => Err(self),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

impl From<EventError> for Stop {
    fn from(err: EventError) -> Self {
        Stop::Unsealed(err)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<LogError> for Stop {
    fn from(err: LogError) -> Self {
        Stop::Fault(Fault::Log(err))
    }
}

impl From<StateError> for Stop {
    fn from(err: StateError) -> Self {
        Stop::Fault(Fault::State(err))
    }
}

/// Returns the refusal of a command whose event cannot be sealed.
pub(super) fn unsealed(err: &EventError) -> Refusal {
    Refusal::new(Code::InvalidArgument, format!("it cannot be recorded: {err}")).hint("use shorter names")
}

/// The actor, cause, reason and refs of the events that a command makes.
#[derive(Clone)]
pub(super) struct By {
    pub actor: Actor,
    pub cause: Option<Cid>,
    /// The reason given, as a payload.
    pub note: Option<PayloadRef>,
    /// Other events it follows from.
    pub refs: Vec<Cid>,
}

impl By {
    pub fn new(actor: Actor) -> Self {
        Self { actor, cause: None, note: None, refs: Vec::new() }
    }

    /// Returns the same without the reason, for events that follow from the one that carries it.
    pub fn quietly(&self) -> Self {
        Self { note: None, ..self.clone() }
    }

    /// Returns the payloads of an event that carries the reason.
    pub fn noted(&self, mut payloads: Vec<PayloadRef>) -> Vec<PayloadRef> {
        payloads.extend(self.note);
        payloads
    }

    /// Makes a fact about `subject`.
    pub fn fact(&self, subject: String, body: Body, payloads: Vec<PayloadRef>) -> Fact {
        Fact {
            cause: self.cause,
            refs: self.refs.clone(),
            actor: self.actor.clone(),
            subject,
            tool: None,
            payloads,
            body,
        }
    }
}

/// The commit that is being made, and the answers that wait for it.
pub(super) struct Commit {
    pub sealer: Sealer,
    pub batch: Batch,
    pub replies: Vec<(oneshot::Sender<Ruling>, Ruling)>,
    /// Payloads and parts that this commit erases and does not record again afterwards.
    pub erasures: Vec<Cid>,
    /// The index in the batch of each payload block that is still in it.
    stored: HashMap<Cid, usize>,
    /// Where the tree and the tip stood before the first event of the batch.
    began: (Option<Tip>, Growing),
}

/// How much of a commit was there before a command.
pub(super) struct Mark {
    events: usize,
    blocks: usize,
    erasures: Vec<Cid>,
}

/// What a finished commit hands on.
pub(super) struct Drafted {
    pub batch: Batch,
    /// The last event before the batch.
    pub after: Option<Cid>,
    pub erasures: Vec<Cid>,
    pub recorded: HashSet<Cid>,
    pub replies: Vec<(oneshot::Sender<Ruling>, Ruling)>,
}

impl Commit {
    pub fn new(sealer: Sealer) -> Self {
        let began = (sealer.tip, sealer.tree.clone());
        Self {
            sealer,
            batch: Batch::default(),
            replies: Vec::new(),
            erasures: Vec::new(),
            stored: HashMap::new(),
            began,
        }
    }

    /// Returns the time of the next event in milliseconds since the epoch, never before the last event's.
    pub fn now_ms(&self) -> u64 {
        self.sealer.now_us() / 1000
    }

    /// Seals a fact as the next event. Errors: the event breaks a bound of the format.
    pub fn seal(&mut self, fact: Fact) -> Result<&Event, EventError> {
        let event = self.sealer.seal(fact)?;
        self.batch.events.push(event);
        Ok(self.batch.events.last().expect("one was pushed on the line before"))
    }

    /// Stores a payload that an event of this commit is to name.
    pub fn store(&mut self, payload: Option<SealedPayload>) {
        let Some(payload) = payload else { return };
        for block in std::iter::once(payload.envelope).chain(payload.parts) {
            // What was erased before it in this commit is content again.
            self.erasures.retain(|erased| *erased != block.cid());
            if self.block(&block.cid()).is_none() {
                self.stored.insert(block.cid(), self.batch.blocks.len());
                self.batch.blocks.push(block);
            }
        }
    }

    /// Returns whether this commit erases the block and does not record it again afterwards.
    pub fn is_erased(&self, cid: &Cid) -> bool {
        self.erasures.contains(cid)
    }

    /// Returns the parts of the payloads that this commit records and does not erase.
    pub fn parts_recorded(&self) -> impl Iterator<Item = Cid> {
        let kept = self.stored.keys().filter(|cid| cid.codec() == Codec::DagCbor && !self.is_erased(cid));
        let blocks = kept.filter_map(|cid| self.block(cid));
        blocks.filter_map(|block| query::payload_parts(block.bytes())).flatten()
    }

    /// Returns a payload block of this commit.
    pub fn block(&self, cid: &Cid) -> Option<&Block> {
        let block = self.batch.blocks.get(*self.stored.get(cid)?)?;
        (block.cid() == *cid).then_some(block)
    }

    /// Returns the place to go back to if the next command fails midway.
    pub fn mark(&self) -> Mark {
        Mark {
            events: self.batch.events.len(),
            blocks: self.batch.blocks.len(),
            erasures: self.erasures.clone(),
        }
    }

    /// Goes back to the mark: events, blocks and erasures from after it are dropped. Returns whether there were events;
    /// entities that have folded one of them have to be loaded again.
    pub fn back_to(&mut self, mark: Mark) -> bool {
        self.batch.blocks.truncate(mark.blocks);
        self.erasures = mark.erasures;
        if self.batch.events.len() == mark.events {
            return false;
        }
        self.batch.events.truncate(mark.events);
        (self.sealer.tip, self.sealer.tree) = self.began.clone();
        for event in &self.batch.events {
            self.sealer.follow(event);
        }
        true
    }

    /// Signs the head of the batch and hands everything out; what is recorded next is the next commit's.
    pub fn finish(&mut self) -> Drafted {
        let after = self.began.0.map(|tip| tip.cid);
        let mut batch = std::mem::take(&mut self.batch);
        if !batch.events.is_empty() {
            batch.head = Some(self.sealer.sign());
            self.began = (self.sealer.tip, self.sealer.tree.clone());
        }
        Drafted {
            batch,
            after,
            erasures: std::mem::take(&mut self.erasures),
            recorded: std::mem::take(&mut self.stored).into_keys().collect(),
            replies: std::mem::take(&mut self.replies),
        }
    }
}

impl From<&Event> for Sealed {
    fn from(event: &Event) -> Self {
        Self { cid: event.cid(), seq: event.fields().seq }
    }
}
