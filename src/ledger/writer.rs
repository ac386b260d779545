//! The writing thread: takes what waits, rules, seals, appends, answers.
//!
//! Invariants:
//! - the signed head over every event is committed with it, so that none ever stands under no head;
//! - rulings of one commit see each other; nobody outside sees any of them before all are durable;
//! - a command whose event cannot be sealed is refused alone; a commit that fails ends the thread.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, mpsc::SyncSender},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    block::{
        Block, Cid, Codec,
        payload::{SaltKey, SealedPayload},
    },
    call::Call,
    catalogue::{self, Entry},
    error::{self, Chain, Refusal},
    event::{Actor, Body, Event, EventError, Fact, PayloadRef, Role, body::AccessExported},
    ledger::{
        Ask, Command, Ruling, Sealed, Shelf,
        claims::{Answer, claims_of},
        clock::Alarm,
        concluding::Conclude,
        holding::Holding,
        sealer::Sealer,
        work::{Wish, Work},
    },
    log::{Batch, Log, LogError, Reader},
    metrics::Metrics,
    query,
    state::Database,
    task::Limits,
};

/// The actor of events that the node makes of its own accord.
pub fn node() -> Actor {
    Actor { id: "cairn".to_owned(), role: "system".to_owned(), proof: None }
}

/// The actor of events made from the command line.
pub fn operator() -> Actor {
    Actor { id: "local".to_owned(), role: "operator".to_owned(), proof: None }
}

/// Why the writer had to stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the commit failed")]
    Log(#[from] LogError),
    #[error("an event could not be sealed")]
    Seal(#[from] EventError),
    #[error("the derived state could not be read")]
    State(#[from] crate::state::StateError),
    #[error("the fold has stopped")]
    Fold,
    #[error("the entities do not fit the log: {what}")]
    Broken { what: &'static str },
}

/// The latest call of an idempotency key: actor, name, keyed commitment.
pub(super) type Key = (String, String, Vec<u8>);

/// The entities the rules need at once: running calls, contracts, keys whose calls are not folded yet.
#[derive(Default)]
pub(super) struct Working {
    pub open: HashMap<String, Call>,
    pub contracts: HashMap<(String, String), Entry>,
    pub keyed: HashMap<Key, Call>,
    /// Ended keyed calls by the seq of their ending: dropped once the state has them.
    pub ended: VecDeque<(u64, Key)>,
}

pub(super) struct Writer {
    pub log: Box<dyn Log>,
    /// Sees what is committed.
    pub reader: Box<dyn Reader>,
    /// Answers questions about calls that are folded already.
    pub state: Database,
    pub sealer: Sealer,
    pub working: Working,
    pub holding: Holding,
    pub limits: Limits,
    pub salt: SaltKey,
    /// What the steps of child runs are checked against.
    pub tools: Shelf,
    /// Set to the time at which the next entity is due.
    pub alarm: Alarm,
    pub fold: SyncSender<Committed>,
    pub committed: watch::Sender<u64>,
    pub applied: watch::Receiver<super::Reach>,
    pub group_max: usize,
    pub metrics: Option<Arc<Metrics>>,
}

/// A durable commit on its way to the fold.
pub(super) struct Committed {
    pub events: Vec<Event>,
    /// The signed head over everything up to the last of them.
    pub note: String,
}

/// The commit that is being made, and the answers that wait for it.
#[derive(Default)]
pub(super) struct Draft {
    pub batch: Batch,
    pub replies: Vec<(oneshot::Sender<Ruling>, Ruling)>,
    /// Payloads and parts that this commit erases and does not record again afterwards.
    pub erasures: Vec<Cid>,
    /// The index in the batch of each payload block that is still in it.
    stored: HashMap<Cid, usize>,
}

impl Writer {
    /// Rules until every handle is dropped or a commit fails. Closing the inbox tells everybody who waits.
    pub fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut asks = Vec::with_capacity(self.group_max);
        self.set_alarm();
        while inbox.blocking_recv_many(&mut asks, self.group_max) > 0 {
            let closing = asks.iter().position(|ask| matches!(ask, Ask::Close));
            asks.truncate(closing.unwrap_or(asks.len()));
            let committed = self.commit(asks.drain(..)).and_then(|()| self.give_back_unheard());
            if let Err(fault) = committed {
                tracing::error!(err = %Chain(&fault), "commit failed; ledger stops");
                return;
            }
            self.set_alarm();
            if closing.is_some() {
                return;
            }
        }
    }

    /// Gives back the claims of the last commit whose answer reached nobody.
    fn give_back_unheard(&mut self) -> Result<(), Fault> {
        while !self.holding.unheard.is_empty() {
            let claims = std::mem::take(&mut self.holding.unheard);
            let work = Work { wish: Wish::GiveBack { claims }, actor: node(), cause: None, note: None };
            let (reply, _) = oneshot::channel();
            let command = Command::Work(Box::new(work));
            self.commit(std::iter::once(Ask::Rule { command, reply, again: false }))?;
        }
        Ok(())
    }

    fn set_alarm(&self) {
        self.alarm.set(self.holding.next_ms());
    }

    fn commit(&mut self, asks: impl Iterator<Item = Ask>) -> Result<(), Fault> {
        let expected = self.sealer.tip.map(|tip| tip.cid);
        let mut draft = Draft::default();
        for ask in asks {
            self.sealer.look();
            match ask {
                Ask::Rule { command, reply, again } => {
                    if let Some(ruled) = self.answer(command, reply, again, &mut draft)? {
                        draft.replies.push(ruled);
                    }
                }
                Ask::Tick => self.tick(&mut draft)?,
                Ask::Close => {}
            }
        }
        self.serve_parked(&mut draft)?;
        let Draft { mut batch, replies, erasures, stored } = draft;
        if !batch.events.is_empty() {
            let note = self.sealer.sign();
            batch.head = Some(note.clone());
            // A crash before this returns loses the whole group; nobody has been answered.
            let begun = Instant::now();
            self.log.append(expected, &batch)?;
            if let Some(metrics) = &self.metrics {
                metrics.commit(batch.events.len(), begun.elapsed().as_secs_f64());
            }
            // A crash from here on loses no answer: the state catches up from the log at start.
            self.committed.send_replace(self.sealer.tip.map_or(0, |tip| tip.seq + 1));
            let committed = Committed { events: batch.events, note };
            self.fold.send(committed).map_err(|_| Fault::Fold)?;
        }
        // A crash before this leaves an erasure on record and the bytes in place; the next start repeats it.
        self.log.erase(&erasures)?;
        if !self.holding.lost.is_empty() {
            self.give_back_contents(&stored.into_keys().collect())?;
        }
        for (reply, ruling) in replies {
            // Whoever asked may have gone away; the ruling stands all the same, but what it hands out is given back.
            if let Err(unheard) = reply.send(ruling) {
                self.holding.unheard.extend(claims_of(unheard));
            }
        }
        self.forget();
        Ok(())
    }

    /// Rules a command. Returns `None` if its answer has to wait.
    fn answer(
        &mut self,
        command: Command,
        reply: oneshot::Sender<Ruling>,
        again: bool,
        draft: &mut Draft,
    ) -> Result<Option<(oneshot::Sender<Ruling>, Ruling)>, Fault> {
        if again && let Some(ruling) = self.ruled(&command, draft)? {
            return Ok(Some((reply, ruling)));
        }
        if let Command::Work(work) = command {
            return Ok(match self.work(*work, draft) {
                Ok(Answer::Now(ruling)) => Some((reply, ruling)),
                Ok(Answer::Later(waiting)) => {
                    let parked = waiting.park(reply, self.now_ms());
                    self.holding.park(parked);
                    None
                }
                Err(fault) => Some((reply, unsealed(fault)?)),
            });
        }
        Ok(Some((reply, self.rule(command, draft).or_else(unsealed)?)))
    }

    /// Starts a call, makes its change, and ends it if the ruling is all that its ending needs. A start that is
    /// refused or answered already changes nothing.
    fn begin(
        &mut self,
        start: Command,
        work: Work,
        conclude: Option<&Conclude>,
        draft: &mut Draft,
    ) -> Result<Ruling, Fault> {
        let Command::Start { start, input, refused } = start else { return Ok(Ruling::Unchanged) };
        let id = start.id.clone();
        let started = match self.start(*start, input, refused, draft)? {
            Ruling::Run(started) => started,
            other => return Ok(other),
        };
        let ruled = self.change_for(started, work, draft)?;
        let ended = self.conclude(id, conclude, &ruled, draft)?;
        Ok(Ruling::Began { started, ruled: Box::new(ruled), ended })
    }

    /// Makes the change that the call with this start asks for.
    pub(super) fn change_for(
        &mut self,
        started: Sealed,
        work: Work,
        draft: &mut Draft,
    ) -> Result<Ruling, Fault> {
        match self.work(Work { cause: Some(started.cid), ..work }, draft) {
            Ok(Answer::Now(ruling)) => Ok(ruling),
            // A claim that is made with its call does not wait.
            Ok(Answer::Later(_)) => Ok(Ruling::Unchanged),
            Err(fault) => unsealed(fault),
        }
    }

    fn rule(&mut self, command: Command, draft: &mut Draft) -> Result<Ruling, Fault> {
        match command {
            Command::Start { start, input, refused } => self.start(*start, input, refused, draft),
            Command::End { end, output, attempt } => self.end(&end, output, attempt.as_deref(), draft),
            Command::Begin { start, work, conclude } => self.begin(*start, *work, conclude.as_ref(), draft),
            Command::Work(_) => Ok(Ruling::Unchanged),
            Command::Peer(peering) => self.peering(*peering, draft),
            Command::Recover { runners } => self.recover(&runners, draft),
            Command::Publish { contract, actor } => {
                let id = (contract.source.clone(), contract.name.clone());
                let ruled = catalogue::publish(self.working.contracts.get(&id), contract, &actor);
                self.publish(id, ruled, draft)
            }
            Command::Adopt { contract, name, actor } => {
                let id = (catalogue::PEERS.to_owned(), name);
                let known = self.working.contracts.get(&id);
                let ruled = catalogue::adopt(known, &id.1, contract, &actor);
                self.publish(id, ruled, draft)
            }
            Command::Retain { source, names, actor } => self.retain(&source, &names, &actor, draft),
            Command::Erase { payload, basis, actor } => self.erase(payload, basis, actor, draft),
            Command::Export { format, from_seq, to_seq, actor } => {
                let body = Body::AccessExported(AccessExported { format, from_seq, to_seq });
                Ok(Ruling::Done(self.sealer.seal(log_fact(actor, body), draft)?.into()))
            }
            Command::Keep { keeping, actor } => self.keep(keeping, &actor, draft),
        }
    }

    /// Publishes a contract for the tool of this source and name.
    fn publish(
        &mut self,
        id: (String, String),
        ruled: catalogue::Published,
        draft: &mut Draft,
    ) -> Result<Ruling, Fault> {
        match ruled {
            catalogue::Published::Known(cid) => {
                let contract = self.working.contracts[&id].contract.clone();
                Ok(Ruling::Published { cid, contract: Box::new(contract), new: false })
            }
            catalogue::Published::New { fact, block, contract } => {
                let cid = block.cid();
                draft.batch.blocks.push(block);
                self.sealer.seal(*fact, draft)?;
                let entry = Entry { cid, contract: (*contract).clone(), offered: true };
                self.working.contracts.insert(id, entry);
                Ok(Ruling::Published { cid, contract, new: true })
            }
        }
    }

    /// Stops offering what a source no longer lists.
    fn retain(
        &mut self,
        source: &str,
        names: &[String],
        actor: &Actor,
        draft: &mut Draft,
    ) -> Result<Ruling, Fault> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let gone = |(id, entry): (&(String, String), &Entry)| {
            let listed = id.0 != source || names.contains(id.1.as_str());
            (!listed && entry.offered).then(|| id.clone())
        };
        let mut gone: Vec<_> = self.working.contracts.iter().filter_map(gone).collect();
        // The map has no order of its own; the log must not depend on chance.
        gone.sort_unstable();
        let mut ruling = Ruling::Unchanged;
        for id in gone {
            let entry = self.working.contracts.get(&id);
            let Some(fact) = catalogue::retire((&id.0, &id.1), entry, actor) else {
                continue;
            };
            ruling = Ruling::Done(self.sealer.seal(fact, draft)?.into());
            if let Some(entry) = self.working.contracts.get_mut(&id) {
                entry.offered = false;
            }
        }
        Ok(ruling)
    }

    /// Milliseconds since the epoch, never before the last event.
    pub(super) fn now_ms(&self) -> u64 {
        self.sealer.now_us() / 1000
    }

    /// Drops from memory what the state can answer by now.
    fn forget(&mut self) {
        let applied = self.applied.borrow().applied;
        self.holding.forget(applied);
        while let Some((seq, _)) = self.working.ended.front()
            && *seq < applied
        {
            if let Some((_, key)) = self.working.ended.pop_front()
                && self
                    .working
                    .keyed
                    .get(&key)
                    .is_some_and(|call| call.ending.as_ref().is_some_and(|ending| ending.seq < applied))
            {
                self.working.keyed.remove(&key);
            }
        }
    }
}

/// Refuses a command whose event cannot be sealed, because it is too large for instance. All other faults stop the
/// writer.
pub(super) fn unsealed(fault: Fault) -> Result<Ruling, Fault> {
    match fault {
        Fault::Seal(err) => {
            let refusal = Refusal::new(error::Code::InvalidArgument, format!("it cannot be recorded: {err}"));
            Ok(Ruling::Denied(refusal.hint("use shorter names")))
        }
        Fault::Log(_) | Fault::State(_) | Fault::Fold | Fault::Broken { .. } => Err(fault),
    }
}

impl Draft {
    pub(super) fn store(&mut self, payload: Option<SealedPayload>) {
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
    pub(super) fn is_erased(&self, cid: &Cid) -> bool {
        self.erasures.contains(cid)
    }

    /// Returns the parts of the payloads that this commit records and does not erase.
    pub(super) fn parts_recorded(&self) -> impl Iterator<Item = Cid> {
        let kept = self.stored.keys().filter(|cid| cid.codec() == Codec::DagCbor && !self.is_erased(cid));
        let blocks = kept.filter_map(|cid| self.block(cid));
        blocks.filter_map(|block| query::payload_parts(block.bytes())).flatten()
    }

    /// Returns a payload block of this commit.
    pub(super) fn block(&self, cid: &Cid) -> Option<&Block> {
        let block = self.batch.blocks.get(*self.stored.get(cid)?)?;
        (block.cid() == *cid).then_some(block)
    }
}

impl From<&Event> for Sealed {
    fn from(event: &Event) -> Self {
        Self { cid: event.cid(), seq: event.fields().seq }
    }
}

/// Returns the reference by which an event names a sealed payload.
pub fn payload_ref(payload: &SealedPayload, role: Role) -> PayloadRef {
    PayloadRef { cid: payload.envelope.cid(), len: payload.len, role }
}

/// A fact about the log itself.
pub(super) fn log_fact(actor: Actor, body: Body) -> Fact {
    Fact {
        cause: None,
        refs: Vec::new(),
        actor,
        subject: "log".to_owned(),
        tool: None,
        payloads: Vec::new(),
        body,
    }
}
