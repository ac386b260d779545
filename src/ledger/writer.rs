//! The writing thread: takes what waits, rules, seals, appends, answers.
//!
//! Invariants:
//! - the signed head over every event is committed with it, so that none ever stands under no head;
//! - rulings of one commit see each other; nobody outside sees any of them before all are durable;
//! - a command that is denied has left nothing in the log; a commit that fails ends the thread.

use std::{
    sync::{Arc, mpsc::SyncSender},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    error::Chain,
    event::{Body, Event, body::AccessExported},
    ledger::{
        Ask, Command, Ruling, Sealed,
        claims::{Ruled, claims_of},
        clock::Alarm,
        commit::{Drafted, Fault, Stop, log_fact, node},
        concluding::Conclude,
        holding::{agenda::Due, tasks::Tasks},
        loading::Loading,
        work::{GiveBack, Wish, Work},
        world::World,
    },
    log::Log,
    metrics::Metrics,
    queue::Rates,
};

pub(super) struct Writer {
    pub log: Box<dyn Log>,
    pub world: World,
    /// Set to the time at which the next entity is due.
    pub alarm: Alarm,
    pub fold: SyncSender<Committed>,
    /// The number of committed events.
    pub committed: watch::Sender<u64>,
    pub group_max: usize,
    /// How often tasks of a rate key may start.
    pub rates: Rates,
    pub metrics: Option<Arc<Metrics>>,
}

/// A durable commit on its way to the fold.
pub(super) struct Committed {
    pub events: Vec<Event>,
    /// The signed head over everything up to the last of them.
    pub note: String,
}

impl Writer {
    /// Rules until every handle is dropped or a commit fails. Closing the inbox tells everybody who waits.
    pub fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut asks = Vec::with_capacity(self.group_max);
        self.set_alarm();
        while inbox.blocking_recv_many(&mut asks, self.group_max) > 0 {
            let closing = asks.iter().position(|ask| matches!(ask, Ask::Close));
            asks.truncate(closing.unwrap_or(asks.len()));
            let committed = self.rule_all(asks.drain(..)).and_then(|()| self.give_back_unheard());
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
        while !self.world.holding.tasks.unheard.is_empty() {
            let claims = std::mem::take(&mut self.world.holding.tasks.unheard);
            let wish = Wish::GiveBack(GiveBack { claims });
            let work = Work { wish, actor: node(), cause: None, note: None };
            let (reply, _) = oneshot::channel();
            let command = Command::Work(Box::new(work));
            self.rule_all(std::iter::once(Ask::Rule { command, reply, again: false }))?;
        }
        Ok(())
    }

    fn set_alarm(&self) {
        self.alarm.set(self.world.holding.next_ms());
    }

    /// Rules what waits, in order and in one commit.
    fn rule_all(&mut self, asks: impl Iterator<Item = Ask>) -> Result<(), Fault> {
        for ask in asks {
            self.world.commit.sealer.look();
            match ask {
                Ask::Rule { command, reply, again } => self.answer(command, reply, again)?,
                Ask::Tick => self.world.tick().map_err(Stop::fault)?,
                Ask::Close => {}
            }
            if self.world.stale {
                self.commit()?;
                self.load_again()?;
            }
        }
        self.world.serve_parked().map_err(Stop::fault)?;
        self.commit()
    }

    /// Rules a command. Its answer leaves with the commit, or waits for work if it is a claim that found none.
    fn answer(&mut self, command: Command, reply: oneshot::Sender<Ruling>, again: bool) -> Result<(), Fault> {
        let mark = self.world.commit.mark();
        let ruling = match self.world.answer(command, again) {
            Ok(Ruled::Now(ruling)) => ruling,
            Ok(Ruled::Later(waiting)) => {
                let parked = waiting.park(reply, self.world.commit.now_ms());
                self.world.holding.tasks.park(parked, &mut self.world.holding.agenda);
                return Ok(());
            }
            Err(stop) => Ruling::Denied(self.world.take_back(mark, stop)?),
        };
        self.world.commit.replies.push((reply, ruling));
        Ok(())
    }

    /// Makes what was ruled durable, and then answers.
    fn commit(&mut self) -> Result<(), Fault> {
        let Drafted { batch, after, erasures, recorded, replies } = self.world.commit.finish();
        if !batch.events.is_empty() {
            // A crash before this returns loses the whole group; nobody has been answered.
            let begun = Instant::now();
            self.log.append(after, &batch)?;
            if let Some(metrics) = &self.metrics {
                metrics.commit(batch.events.len(), begun.elapsed().as_secs_f64());
            }
            // A crash from here on loses no answer: the state catches up from the log at start.
            self.committed.send_replace(self.world.commit.sealer.next_seq());
            let committed = Committed { events: batch.events, note: batch.head.unwrap_or_default() };
            self.fold.send(committed).map_err(|_| Fault::Fold)?;
        }
        // A crash before this leaves an erasure on record and the bytes in place; the next start repeats it.
        self.log.erase(&erasures)?;
        if !self.world.holding.contents.lost.is_empty() {
            self.world.give_back_contents(&recorded)?;
        }
        for (reply, ruling) in replies {
            // Whoever asked may have gone away; the ruling stands all the same, but what it hands out is given back.
            if let Err(unheard) = reply.send(ruling) {
                self.world.holding.tasks.unheard.extend(claims_of(unheard));
            }
        }
        let folded = self.world.folded();
        self.world.holding.forget(folded);
        Ok(())
    }

    /// Loads the entities again, as a start would, once the fold has caught up. Claims that wait go on waiting.
    fn load_again(&mut self) -> Result<(), Fault> {
        let committed = self.world.commit.sealer.next_seq();
        let waiting = tokio::runtime::Builder::new_current_thread().build().map_err(|_| Fault::Fold)?;
        let mut applied = self.world.applied.clone();
        waiting.block_on(applied.wait_for(|reach| reach.applied >= committed)).map_err(|_| Fault::Fold)?;
        let world = &mut self.world;
        let now_ms = world.commit.now_ms();
        let loading = Loading { state: &world.state, log: world.reader.as_ref(), now_ms };
        let Tasks { parked, unheard, .. } =
            std::mem::replace(&mut world.holding, loading.holding(&self.rates)?).tasks;
        world.contracts = loading.contracts()?;
        for parked in &parked {
            world.holding.agenda.put(parked.until_ms, Due::Claims);
        }
        (world.holding.tasks.parked, world.holding.tasks.unheard) = (parked, unheard);
        world.stale = false;
        Ok(())
    }
}

impl World {
    /// Rules a command, or answers one that an earlier owner has committed.
    fn answer(&mut self, command: Command, again: bool) -> Result<Ruled, Stop> {
        if again && let Some(ruling) = self.ruled(&command)? {
            return Ok(Ruled::Now(ruling));
        }
        match command {
            Command::Work(work) => self.work(*work),
            command => Ok(Ruled::Now(self.rule(command)?)),
        }
    }

    fn rule(&mut self, command: Command) -> Result<Ruling, Stop> {
        match command {
            Command::Start { start, input, refused } => self.start(*start, input, refused),
            Command::Ask { ask, question } => self.ask(&ask, question),
            Command::Answer { answer, content } => self.record_answer(&answer, content),
            Command::End { end, output, attempt } => self.end(&end, output, attempt.as_deref()),
            Command::Begin { start, work, conclude } => self.begin(*start, *work, conclude.as_ref()),
            Command::Work(_) => Ok(Ruling::Unchanged),
            Command::Peer(peering) => self.peering(*peering),
            Command::Recover { runners } => self.recover(&runners),
            Command::Publish { contract, actor } => self.publish(contract, &actor),
            Command::Adopt { contract, name, actor } => self.adopt(contract, name, &actor),
            Command::Retain { source, names, actor } => self.retain(&source, &names, &actor),
            Command::Erase { payload, basis, actor } => self.erase(payload, basis, actor),
            Command::Export { format, from_seq, to_seq, actor } => {
                let body = Body::AccessExported(AccessExported { format, from_seq, to_seq });
                Ok(Ruling::Done(self.commit.seal(log_fact(actor, body))?.into()))
            }
            Command::Keep { keeping, actor } => self.keep(keeping, &actor),
        }
    }

    /// Starts a call, makes its change, and ends it if the ruling is all that its ending needs. A start that is
    /// refused or answered already changes nothing.
    fn begin(&mut self, start: Command, work: Work, conclude: Option<&Conclude>) -> Result<Ruling, Stop> {
        let Command::Start { start, input, refused } = start else { return Ok(Ruling::Unchanged) };
        let id = start.id.clone();
        let started = match self.start(*start, input, refused)? {
            Ruling::Run(started) => started,
            other => return Ok(other),
        };
        let ruled = self.change_for(started, work)?;
        let ended = self.conclude(id, conclude, &ruled)?;
        Ok(Ruling::Began { started, ruled: Box::new(ruled), ended })
    }

    /// Makes the change that the call with this start asks for. The start stays where the change is refused.
    pub(super) fn change_for(&mut self, started: Sealed, work: Work) -> Result<Ruling, Fault> {
        let mark = self.commit.mark();
        match self.work(Work { cause: Some(started.cid), ..work }) {
            Ok(Ruled::Now(ruling)) => Ok(ruling),
            // A claim that is made with its call does not wait.
            Ok(Ruled::Later(_)) => Ok(Ruling::Unchanged),
            Err(stop) => Ok(Ruling::Denied(self.take_back(mark, stop)?)),
        }
    }
}
