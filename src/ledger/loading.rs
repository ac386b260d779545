//! Loading: the entities that the rules need at once, from the state and the log, at start.
//!
//! Invariants:
//! - an entity is the fold of its events: what is loaded is what was there before.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use crate::{
    block::{Cid, decode, payload::Payload},
    event::{Body, Event, Role},
    ledger::{
        holding::{Due, Holding, LiveRun, Timetable},
        opening::OpenError,
        work::Made,
    },
    log::{LogError, Reader, Stored},
    query::{self, work::Waiting as WaitingRow},
    queue::{Class, Queue, Rates, Waiting},
    schedule::Schedule,
    state::{Database, StateError},
    task::Task,
    worker::Worker,
    workflow::{
        plan::Plan,
        run::{Run, status::Status},
    },
};

/// How the state calls a worker that has left or is lost.
const OFFLINE: &str = "offline";

/// The state and the log, as they stand when nobody writes.
pub(super) struct Loading<'a> {
    pub state: &'a Database,
    pub log: &'a dyn Reader,
    pub now_ms: u64,
}

impl Loading<'_> {
    pub fn holding(&self, rates: &Rates) -> Result<Holding, OpenError> {
        let mut holding = Holding::default();
        holding.queue = Queue::new(rates.clone());
        for (key, until_ms) in query::work::rates(self.state)? {
            holding.queue.charged(&key, until_ms, self.now_ms);
        }
        self.waiting(&mut holding)?;
        // A run that has ended still hears of its tasks that run: they must not start again.
        let mut runs = BTreeSet::new();
        for first in query::work::running_tasks(self.state)? {
            if let Some(task) = self.fold_from(first, Task::begun, Task::apply)? {
                runs.extend(task.facts.run.clone());
                holding.index(&task, self.now_ms);
                holding.keep(task, None);
            }
        }
        let there = query::work::workers(self.state)?.into_iter();
        // Those that have gone are loaded when they come back.
        for query::work::Worker { id, .. } in there.filter(|worker| worker.status != OFFLINE) {
            if let Some(mut worker) = self.fold(&crate::worker::subject(&id), Worker::begun, Worker::apply)? {
                // Nobody was heard while the node was down; their silence counts from now.
                worker.heard(self.now_ms);
                holding.due.push(std::cmp::Reverse((self.now_ms, Due::Worker(id))));
                holding.hold_worker(worker);
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
                holding.hold_run(live);
            }
        }
        self.dependencies(&mut holding)?;
        for query::work::Schedule { id, .. } in query::work::schedules(self.state)? {
            if let Some(timetable) = self.timetable(&id)? {
                let next = timetable.schedule.next_ms;
                holding.due.push(std::cmp::Reverse((next, Due::Schedule(id.clone()))));
                holding.schedules.insert(id, timetable);
            }
        }
        if query::work::paused(self.state)?.is_some() {
            holding.queue.pause();
        }
        Ok(holding)
    }

    /// Tells runs of those they wait for that have ended.
    fn dependencies(&self, holding: &mut Holding) -> Result<(), OpenError> {
        let ended = holding.dependents.keys().filter(|other| !holding.runs.contains_key(*other));
        let ended: Vec<String> = ended.cloned().collect();
        for other in ended {
            let status = load_run(self.state, self.log, &other)?.map(|live| live.run.status());
            let succeeded = status == Some(Status::Succeeded);
            for id in holding.dependents.remove(&other).unwrap_or_default() {
                if let Some(live) = holding.runs.get_mut(&id) {
                    live.run.dependency_ended(&other, succeeded);
                    holding.due.push(std::cmp::Reverse((self.now_ms, Due::Run(id))));
                }
            }
        }
        Ok(())
    }

    fn waiting(&self, holding: &mut Holding) -> Result<(), OpenError> {
        let now_ms = self.now_ms;
        let queue = &mut holding.queue;
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

    fn timetable(&self, id: &str) -> Result<Option<Timetable>, OpenError> {
        let mut what = None;
        for seq in query::work::events_of(self.state, &crate::schedule::subject(id))? {
            let Some(event) = self.log.event_at(seq)? else { continue };
            if let Some(Body::ScheduleCreated(_)) = event.body() {
                what = crate::call::payload(&event, &[Role::Input]);
            }
        }
        let schedule = self.fold(&crate::schedule::subject(id), Schedule::begun, Schedule::apply)?;
        let Some(bytes) = what.map(|what| content(self.log, &what)).transpose()?.flatten() else {
            tracing::warn!(schedule = id, "what the schedule makes was erased; it does not fire");
            return Ok(None);
        };
        let makes: Option<Made> = decode(&bytes).ok();
        Ok(schedule.zip(makes).map(|(schedule, makes)| Timetable { schedule, makes }))
    }

    fn fold<T>(
        &self,
        subject: &str,
        begun: fn(&Event) -> Option<T>,
        apply: fn(&mut T, &Event),
    ) -> Result<Option<T>, OpenError> {
        match query::work::first_of(self.state, subject)? {
            Some(first) => self.fold_from(first, begun, apply),
            None => Ok(None),
        }
    }

    fn fold_from<T>(
        &self,
        first: u64,
        begun: fn(&Event) -> Option<T>,
        apply: fn(&mut T, &Event),
    ) -> Result<Option<T>, OpenError> {
        let mut entity = None;
        for seq in query::work::events_from(self.state, first)? {
            let Some(event) = self.log.event_at(seq)? else { continue };
            match &mut entity {
                None => entity = begun(&event),
                Some(entity) => apply(entity, &event),
            }
        }
        Ok(entity)
    }
}

/// A run with its plan and inputs, folded from its events and those of its tasks.
pub(super) fn load_run(state: &Database, log: &dyn Reader, id: &str) -> Result<Option<LiveRun>, StateError> {
    run_before(state, log, id, u64::MAX)
}

/// As [`load_run`], as the run stood before the event at `end`.
pub(super) fn run_before(
    state: &Database,
    log: &dyn Reader,
    id: &str,
    end: u64,
) -> Result<Option<LiveRun>, StateError> {
    fold_run(state, log, id, end, |run| match &run.facts.origin {
        // What the other run had done by then is all in its events.
        Some(origin) => {
            let old = fold_run(state, log, &origin.run, run.seq, |_| Ok(None))?;
            Ok(old.map(|old| old.run))
        }
        None => Ok(None),
    })
}

/// A run as it stood before `end`. `origin` gives the run it takes over from, if it is to.
fn fold_run(
    state: &Database,
    log: &dyn Reader,
    id: &str,
    end: u64,
    origin: impl Fn(&Run) -> Result<Option<Run>, StateError>,
) -> Result<Option<LiveRun>, StateError> {
    let mut live: Option<LiveRun> = None;
    for seq in query::work::events_of_run(state, id)?.into_iter().filter(|seq| *seq < end) {
        let Some(event) = log.event_at(seq)? else { continue };
        match &mut live {
            None => {
                let Some(mut run) = begin_run(log, &event)? else { return Ok(None) };
                if let Some(old) = origin(&run)? {
                    run.take_over(&old);
                }
                live = Some(LiveRun { run, last: event.cid(), last_seq: seq });
            }
            Some(live) => live.apply(&event),
        }
    }
    Ok(live)
}

/// The run that a submission begins, with its plan and inputs from the log.
fn begin_run(log: &dyn Reader, event: &Event) -> Result<Option<Run>, StateError> {
    let Some(Body::WorkflowSubmitted(facts)) = event.body() else {
        return Ok(None);
    };
    let missing = || StateError::Log(LogError::Corrupt { what: "a run's plan cannot be read" });
    let plan: Plan = match log.block(&facts.plan)? {
        Some(Stored::Present(bytes)) => decode(&bytes).map_err(|_| missing())?,
        Some(Stored::Erased) | None => return Err(missing()),
    };
    // Erased inputs leave a run that can be read; its steps that need them fail with that reason.
    let inputs = crate::call::payload(event, &[Role::Input]);
    let inputs = inputs.map(|inputs| content(log, &inputs)).transpose()?.flatten();
    let inputs: Value = inputs.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    Ok(Run::begun(event, Arc::new(plan), Arc::new(inputs)))
}

/// A payload's content; none where it was erased.
fn content(log: &dyn Reader, payload: &Cid) -> Result<Option<Vec<u8>>, LogError> {
    let Some(Stored::Present(bytes)) = log.block(payload)? else { return Ok(None) };
    let Ok(payload) = decode::<Payload>(&bytes) else { return Ok(None) };
    let mut content = payload.data.unwrap_or_default();
    for part in payload.parts.unwrap_or_default() {
        let Some(Stored::Present(bytes)) = log.block(&part)? else { return Ok(None) };
        content.extend(bytes);
    }
    Ok(Some(content))
}
