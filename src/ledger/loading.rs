//! Loading: the entities that the rules need at once, from the state and the log, at start.
//!
//! Invariants:
//! - an entity is the fold of its events: what is loaded is what was there before.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    block::{Cid, decode},
    call::Call,
    catalogue::Entry,
    contract::Contract,
    entity::{self, Entity},
    event::Event,
    ledger::{
        holding::{Holding, agenda::Due, calls::Calls, crew::Timetable, runs::LiveRun},
        work::Made,
    },
    log::{LogError, Reader, Stored},
    query::{
        self, QueryError,
        source::{self, Source},
        work::Waiting as WaitingRow,
    },
    queue::{Class, Queue, Rates, Waiting},
    schedule::Schedule,
    state::{Database, StateError},
    task::Task,
    worker::Worker,
    workflow::run::status::Status,
};

/// The state's word for a worker that has left or is lost.
const OFFLINE: &str = "offline";

/// The state and the log, as they stand when nobody writes.
pub(super) struct Loading<'a> {
    pub state: &'a Database,
    pub log: &'a dyn Reader,
    pub now_ms: u64,
}

impl Loading<'_> {
    pub fn holding(&self, rates: &Rates) -> Result<Holding, StateError> {
        let mut holding = Holding { calls: self.calls()?, ..Holding::default() };
        holding.tasks.queue = Queue::new(rates.clone());
        for (key, until_ms) in query::work::rates(self.state)? {
            holding.tasks.queue.charged(&key, until_ms, self.now_ms);
        }
        self.waiting(&mut holding)?;
        // A run that has ended still hears of its tasks that run: they must not start again.
        let mut runs = BTreeSet::new();
        for first in query::work::running_tasks(self.state)? {
            if let Some(task) = self.fold_from::<Task>(first)? {
                runs.extend(task.facts.run.clone());
                holding.tasks.index(&task, &mut holding.agenda, self.now_ms);
                holding.tasks.keep(task, None);
            }
        }
        let there = query::work::workers(self.state)?.into_iter();
        // Those that have gone are loaded when they come back.
        for query::work::Worker { id, .. } in there.filter(|worker| worker.status != OFFLINE) {
            if let Some(mut worker) = self.fold::<Worker>(&id)? {
                // Nobody was heard while the node was down; their silence counts from now.
                worker.heard(self.now_ms);
                holding.agenda.put(self.now_ms, Due::Worker(id));
                let running = holding.tasks.held.get(&worker.id).map_or(0, |held| held.len() as u64);
                holding.crew.hold(worker, running);
            }
        }
        for first in query::work::open_runs(self.state)? {
            let subject = self.log.event_at(first)?.map(|event| event.fields().subject.clone());
            runs.extend(
                subject.as_deref().and_then(|subject| subject.strip_prefix("workflow/")).map(str::to_owned),
            );
        }
        for id in runs {
            if let Some(live) = load_run(self.state, self.log, &id)? {
                holding.runs.hold(live, &mut holding.agenda, &mut holding.contents);
            }
        }
        self.dependencies(&mut holding)?;
        for query::work::Schedule { id, .. } in query::work::schedules(self.state)? {
            if let Some(timetable) = self.timetable(&id)? {
                let next = timetable.schedule.next_ms;
                match timetable.makes {
                    Some(_) => holding.agenda.put(next, Due::Schedule(id.clone())),
                    None => holding.contents.lost.extend(timetable.schedule.input.map(|input| input.cid)),
                }
                holding.crew.schedules.insert(id, timetable);
            }
        }
        for peer in query::peers::connected(self.state)? {
            holding.peers.live.insert(peer.id.clone(), peer);
        }
        if query::work::paused(self.state)?.is_some() {
            holding.tasks.queue.pause();
        }
        Ok(holding)
    }

    fn calls(&self) -> Result<Calls, StateError> {
        let mut calls = Calls::default();
        for seq in query::open_calls(self.state)? {
            let Some(mut call) = self.log.event_at(seq)?.as_ref().and_then(Call::begun) else { continue };
            for seq in query::work::events_from(self.state, seq)?.into_iter().skip(1) {
                if let Some(event) = self.log.event_at(seq)? {
                    call.apply(&event);
                }
            }
            calls.begin(call);
        }
        Ok(calls)
    }

    /// Returns the current contract of each source and name.
    pub fn contracts(&self) -> Result<HashMap<(String, String), Entry>, StateError> {
        let mut contracts = HashMap::new();
        for query::Current { source, name, block, offered } in query::current_contracts(self.state)? {
            let missing = LogError::Corrupt { what: "a published contract's block is missing" };
            let cid: Cid = self.log.block_named(block)?.ok_or(missing)?;
            let Some(Stored::Present(bytes)) = self.log.block(&cid)? else {
                continue;
            };
            let contract: Contract =
                decode(&bytes).map_err(|_| LogError::Corrupt { what: "a contract cannot be read" })?;
            contracts.insert((source, name), Entry { cid, contract, offered });
        }
        Ok(contracts)
    }

    /// Tells each run which of the runs it waits for have ended.
    fn dependencies(&self, holding: &mut Holding) -> Result<(), StateError> {
        let ended = holding.runs.dependents.keys().filter(|other| !holding.runs.live.contains_key(*other));
        let ended: Vec<String> = ended.cloned().collect();
        for other in ended {
            let status = load_run(self.state, self.log, &other)?.map(|live| live.run.status());
            let succeeded = status == Some(Status::Succeeded);
            for id in holding.runs.dependents.remove(&other).unwrap_or_default() {
                if let Some(live) = holding.runs.live.get_mut(&id) {
                    live.run.dependency_ended(&other, succeeded);
                    holding.agenda.put(self.now_ms, Due::Run(id));
                }
            }
        }
        Ok(())
    }

    fn waiting(&self, holding: &mut Holding) -> Result<(), StateError> {
        let now_ms = self.now_ms;
        let queue = &mut holding.tasks.queue;
        // Rows come class by class.
        let mut class = Class::new("", []);
        let mut requires = String::new();
        query::work::waiting_tasks(self.state, &mut |row: WaitingRow<'_>| {
            if class.task_type != row.task_type || requires != row.requires {
                class = Class::new(row.task_type, row.requires.split_whitespace().map(str::to_owned));
                row.requires.clone_into(&mut requires);
            }
            queue.put(
                Waiting {
                    seq: row.seq,
                    order: row.order,
                    ready_ms: row.ready_ms,
                    class: &class,
                    concurrency_key: row.concurrency_key,
                    rate_key: row.rate_key,
                },
                now_ms,
            );
        })?;
        Ok(())
    }

    fn timetable(&self, id: &str) -> Result<Option<Timetable>, StateError> {
        let schedule = self.fold::<Schedule>(id)?;
        let Some(schedule) = schedule else { return Ok(None) };
        let what = schedule.input.map(|input| makes(self.state, self.log, &input.cid)).transpose()?.flatten();
        if what.is_none() {
            tracing::warn!(schedule = id, "what the schedule makes was erased; it does not fire");
        }
        Ok(Some(Timetable { schedule, makes: what }))
    }

    fn fold<E: Entity<Given = ()>>(&self, id: &str) -> Result<Option<E>, StateError> {
        match query::work::first_of(self.state, &E::subject(id))? {
            Some(first) => self.fold_from(first),
            None => Ok(None),
        }
    }

    fn fold_from<E: Entity<Given = ()>>(&self, first: u64) -> Result<Option<E>, StateError> {
        let seqs = query::work::events_from(self.state, first)?.into_iter();
        Ok(entity::try_folded(seqs.filter_map(|seq| self.log.event_at(seq).transpose()), &())?)
    }
}

/// The source that the writer reads runs from: the state as far as it is folded, and the log.
struct OnRecord<'a> {
    state: &'a Database,
    log: &'a dyn Reader,
}

impl Source for OnRecord<'_> {
    fn events_of_run(&self, id: &str, as_of: Option<u64>) -> Result<Vec<Event>, QueryError> {
        let seqs = query::work::events_of_run(self.state, id)?.into_iter();
        let seqs = seqs.take_while(|seq| as_of.is_none_or(|as_of| *seq <= as_of));
        seqs.filter_map(|seq| self.log.event_at(seq).transpose()).map(|event| Ok(event?)).collect()
    }

    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        Ok(match self.log.block(cid)? {
            Some(Stored::Present(bytes)) => Some(bytes),
            Some(Stored::Erased) | None => None,
        })
    }
}

/// Returns what a schedule makes, or `None` if its payload was erased.
pub(super) fn makes(state: &Database, log: &dyn Reader, payload: &Cid) -> Result<Option<Made>, StateError> {
    let bytes = source::content(&OnRecord { state, log }, payload).map_err(fault)?;
    Ok(bytes.and_then(|bytes| decode(&bytes).ok()))
}

/// Returns the inputs of a run; JSON null if they were erased.
pub(super) fn inputs(state: &Database, log: &dyn Reader, payload: &Cid) -> Result<Arc<Value>, StateError> {
    let bytes = source::content(&OnRecord { state, log }, payload).map_err(fault)?;
    Ok(Arc::new(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()))
}

/// Returns a run with its plan and inputs, folded from its events and those of its tasks.
pub(super) fn load_run(state: &Database, log: &dyn Reader, id: &str) -> Result<Option<LiveRun>, StateError> {
    run_before(state, log, id, None)
}

/// Like [`load_run`], but as the run stood after the event `as_of`.
pub(super) fn run_before(
    state: &Database,
    log: &dyn Reader,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<LiveRun>, StateError> {
    let found = source::submitted(&OnRecord { state, log }, id, as_of).map_err(fault)?;
    let Some((run, events)) = found else { return Ok(None) };
    let mut live = LiveRun { last: run.last, last_seq: run.last_seq, run };
    events.iter().for_each(|event| live.apply(event));
    Ok(Some(live))
}

fn fault(err: QueryError) -> StateError {
    match err {
        QueryError::Fault(err) => err,
        QueryError::Invalid(_)
        | QueryError::NotFound(_)
        | QueryError::Erased { .. }
        | QueryError::TooMuch(_) => StateError::Broken { what: "a run cannot be read" },
    }
}
