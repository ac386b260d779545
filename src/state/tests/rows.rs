//! What the rows have to be, said from entities that are folded here.
//!
//! Every column is compared; of a tally, the counts that are not nought.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Folded, given};
use crate::{
    block::{Cid, encode},
    call::Call,
    entity,
    event::{
        Actor, Body, Event,
        body::CallAsked,
        work::{Part, Rhythm},
    },
    log::Log,
    peer::Peer,
    schedule::Schedule,
    state::{
        peers::PEER_STATUSES,
        work::{RUN_STATUSES, TASK_STATUSES, WORKER_STATUSES},
    },
    task::{Status, Task},
    worker::{Presence, Worker},
    workflow::{plan::Plan, run::Run},
};

/// What the tables count of a worker's attempts.
#[derive(Default)]
struct Load {
    running: i64,
    succeeded: i64,
    failed: i64,
    execution_ms: u64,
}

/// The tasks and workers of a log, and what is counted of them.
#[derive(Default)]
struct Work {
    tasks: BTreeMap<String, Task>,
    workers: BTreeMap<String, (u64, Worker)>,
    /// By the name of the worker.
    loads: BTreeMap<String, Load>,
    /// When each rate key next allows a claim.
    rates: BTreeMap<String, u64>,
    /// The last success by contract and input.
    outcomes: BTreeMap<(Cid, Cid), u64>,
    runs: BTreeMap<String, u64>,
}

impl Work {
    fn of(events: &[Event]) -> Self {
        let mut work = Self::default();
        for event in events {
            let fields = event.fields();
            match fields.subject.split_once('/') {
                Some(("task", _)) => work.task(event),
                Some(("worker", id)) => match work.workers.get_mut(id) {
                    Some((_, worker)) => worker.apply(event),
                    None => work
                        .workers
                        .extend(Worker::begun(event).map(|worker| (id.to_owned(), (fields.seq, worker)))),
                },
                Some(("workflow", id)) => {
                    work.runs.entry(id.to_owned()).or_insert(fields.seq);
                }
                _ => {}
            }
        }
        work
    }

    fn task(&mut self, event: &Event) {
        let fields = event.fields();
        let Some(task) = self.tasks.get_mut(&fields.subject) else {
            self.tasks.extend(Task::begun(event).map(|task| (fields.subject.clone(), task)));
            return;
        };
        let before = task.clone();
        task.apply(event);
        let Some(body) = event.body() else { return };
        if let Body::TaskClaimed(facts) = &body {
            self.loads.entry(facts.worker.clone()).or_default().running += 1;
            self.rates.extend(task.facts.rate_key.clone().zip(facts.rate_until_ms));
        }
        if let (Some(tool), Some(input), Body::TaskSucceeded(_), false) =
            (task.tool, task.input, &body, task.reused)
        {
            self.outcomes.insert((tool, input.cid), fields.seq);
        }
        let Some(lease) = before.lease.filter(|_| before.status == Status::Running) else { return };
        if task.status == Status::Running {
            return;
        }
        let load = self.loads.entry(lease.worker).or_default();
        load.running -= 1;
        let counted = match body {
            Body::TaskSucceeded(_) => &mut load.succeeded,
            Body::TaskFailed(_) | Body::TaskTimedOut(_) => &mut load.failed,
            _ => return,
        };
        *counted += 1;
        load.execution_ms += (fields.ts / 1000).saturating_sub(lease.claimed_ms);
    }
}

/// The number of a block, by its name.
fn number(folded: &Folded, cid: Option<Cid>) -> Json {
    let reader = folded.log.reader().expect("opens");
    json!(cid.and_then(|cid| reader.number_of(&cid).expect("reads")))
}

/// Numbers in a row, as words.
fn words(folded: &Folded) -> BTreeMap<u64, String> {
    let rows = folded.rows("SELECT id, text FROM word");
    rows.into_iter().map(|row| serde_json::from_value(row).expect("a word")).collect()
}

fn tags_of(task: &Task) -> Vec<String> {
    let mut tags = task.facts.tags.clone();
    tags.sort_unstable();
    tags.dedup();
    tags
}

#[track_caller]
fn same(folded: &Folded, sql: &str, mut expected: Vec<Json>) {
    let mut rows = folded.rows(sql);
    let text = |row: &Json| row.to_string();
    rows.sort_by_key(text);
    expected.sort_by_key(text);
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(row, expected, "{sql}");
    }
    assert_eq!(rows.len(), expected.len(), "{sql}");
}

pub(super) fn check_tasks(folded: &Folded) {
    let work = Work::of(&folded.events);
    let words = words(folded);
    let mut rows = folded.rows(
        "SELECT task.id, status, cleared, held, priority, class.text, ord, ready_ms, attempt, retries, part,
         worker.text, started_ms, ended_ms, run, tool, input, concurrency_key, rate_key, unique_key, tags
         FROM task JOIN word AS class ON class.id = class LEFT JOIN word AS worker ON worker.id = worker
         ORDER BY task.id",
    );
    for row in &mut rows {
        let status = row[1].as_u64().expect("a status") as usize;
        row[1] = json!(TASK_STATUSES[status]);
        let tags = row[20].as_str().unwrap_or_default().split(' ').filter_map(|tag| tag.parse().ok());
        let mut tags: Vec<&String> = tags.map(|tag: u64| &words[&tag]).collect();
        tags.sort_unstable();
        row[20] = json!(tags);
    }
    let mut expected: Vec<&Task> = work.tasks.values().collect();
    expected.sort_by_key(|task| task.seq);
    assert_eq!(rows.len(), expected.len());
    for (row, task) in rows.iter().zip(expected) {
        assert_eq!(*row, task_row(folded, &work, task), "{task:?}");
    }
    check_lists(folded, &work);
    let rates = work.rates.iter().map(|(key, until_ms)| json!([key, until_ms]));
    same(folded, "SELECT key, until_ms FROM rate", rates.collect());
    let outcomes = work
        .outcomes
        .iter()
        .map(|((tool, input), seq)| json!([number(folded, Some(*tool)), number(folded, Some(*input)), seq]));
    same(folded, "SELECT tool, input, seq FROM outcome", outcomes.collect());
}

fn task_row(folded: &Folded, work: &Work, task: &Task) -> Json {
    let facts = &task.facts;
    let mut requires = facts.requires.clone();
    requires.sort_unstable();
    requires.dedup();
    let class = [vec![facts.task_type.clone()], requires].concat().join(" ");
    let part = match facts.part {
        Part::Whole => 0,
        Part::Each { .. } => 1,
        Part::Undo => 2,
    };
    json!([
        task.seq,
        task.status.as_str(),
        u8::from(task.cleared),
        u8::from(facts.hold.is_some()),
        facts.priority,
        class,
        facts.order,
        task.ready_ms,
        task.attempt,
        task.retries,
        part,
        task.lease.as_ref().map(|lease| &lease.worker),
        task.started_ms,
        task.ended_ms,
        facts.run.as_ref().and_then(|run| work.runs.get(run)),
        number(folded, task.tool),
        number(folded, task.input.map(|input| input.cid)),
        facts.concurrency_key,
        facts.rate_key,
        facts.unique_key,
        tags_of(task),
    ])
}

fn check_lists(folded: &Folded, work: &Work) {
    let mut listed = Vec::new();
    let mut tally = BTreeMap::<(String, usize, u64), u64>::new();
    for task in work.tasks.values().filter(|task| !task.cleared) {
        let status = TASK_STATUSES.iter().position(|status| *status == task.status.as_str());
        let (status, priority) = (status.expect("a status"), task.facts.priority);
        for tag in [vec![String::new()], tags_of(task)].concat() {
            listed.push(json!([tag, status, priority, task.seq]));
            *tally.entry((tag, status, priority)).or_default() += 1;
        }
    }
    let from = "LEFT JOIN word ON word.id = tag";
    let sql = format!("SELECT coalesce(text, ''), status, priority, task FROM task_listed {from}");
    same(folded, &sql, listed);
    let tally = tally.into_iter().map(|((tag, status, priority), n)| json!([tag, status, priority, n]));
    let sql = format!("SELECT coalesce(text, ''), status, priority, n FROM task_tally {from} WHERE n <> 0");
    same(folded, &sql, tally.collect());
}

pub(super) fn check_workers(folded: &Folded) {
    let work = Work::of(&folded.events);
    let expected = work.workers.iter().map(|(id, (seq, worker))| {
        let (status, until_ms) = match worker.presence {
            Presence::Registered => ("active", None),
            Presence::Draining { until_ms } => ("draining", Some(until_ms)),
            Presence::Lost | Presence::Unregistered => ("offline", None),
        };
        let status = WORKER_STATUSES.iter().position(|known| *known == status);
        let capabilities = json!(worker.facts.capabilities).to_string();
        let max = worker.facts.max_concurrent;
        json!([seq, id, status, capabilities, max, worker.registered_ms, until_ms, worker.last_seq])
    });
    let sql = "SELECT worker.id, text, status, capabilities, max_concurrent, registered_ms, until_ms, seq
               FROM worker JOIN word ON word.id = name";
    same(folded, sql, expected.collect());
    let loads = work
        .loads
        .iter()
        .map(|(worker, load)| json!([worker, load.running, load.succeeded, load.failed, load.execution_ms]));
    let sql = "SELECT text, running, succeeded, failed, execution_ms
               FROM worker_tally JOIN word ON word.id = worker";
    same(folded, sql, loads.collect());
}

pub(super) fn check_run(folded: &Folded, plan: &Plan) {
    let run: Run = entity::folded(&folded.events, &given(plan)).expect("it begins with a run");
    let status = run.status();
    let place = RUN_STATUSES.iter().position(|known| *known == status.as_str());
    let expected = json!([
        run.seq,
        place,
        plan.name,
        run.facts.priority,
        number(folded, Some(run.facts.plan)),
        run.facts.steps,
        run.steps.iter().filter(|step| step.done()).count(),
        run.started_ms,
        run.ended_ms,
        run.facts.peer,
    ]);
    let sql = "SELECT workflow.id, status, name, priority, plan, steps, done, started_ms, ended_ms, text
               FROM workflow LEFT JOIN word ON word.id = peer";
    same(folded, sql, vec![expected]);
    let tags = run.facts.tags.iter().map(|tag| json!([tag, run.seq]));
    let sql = "SELECT text, workflow FROM workflow_tag JOIN word ON word.id = tag";
    same(folded, sql, tags.collect());
    same(folded, "SELECT status, n FROM workflow_tally WHERE n <> 0", vec![json!([place, 1])]);
    check_minutes(folded);
}

/// Each end of the run is counted, and no more.
fn check_minutes(folded: &Folded) {
    let (mut open, mut ended, mut failed) = (true, 0, 0);
    for event in folded.events.iter().filter(|event| event.fields().subject.starts_with("workflow/")) {
        match event.body() {
            Some(Body::WorkflowFailed(_) | Body::WorkflowTimedOut(_)) => {
                ended += 1;
                failed += 1;
                open = false;
            }
            Some(Body::WorkflowSucceeded(_)) => {
                ended += 1;
                open = false;
            }
            Some(Body::WorkflowCancelled(_)) => {
                ended += i32::from(open);
                open = false;
            }
            Some(Body::WorkflowRescheduled(_)) => open = true,
            _ => {}
        }
    }
    let sql = "SELECT coalesce(sum(runs_ended), 0), coalesce(sum(runs_failed), 0) FROM minute";
    same(folded, sql, vec![json!([ended, failed])]);
}

pub(super) fn check_schedules(folded: &Folded) {
    let mut known = BTreeMap::<String, (u64, u64, Schedule)>::new();
    for event in &folded.events {
        let (id, seq) = (event.fields().subject.clone(), event.fields().seq);
        match known.get_mut(&id) {
            Some((_, created, schedule)) => {
                schedule.apply(event);
                *created = if schedule.created == event.cid() { seq } else { *created };
            }
            None => known.extend(Schedule::begun(event).map(|schedule| (id, (seq, seq, schedule)))),
        }
    }
    let expected = known.values().map(|(seq, created, schedule)| {
        let (cron, every_ms) = match &schedule.facts.rhythm {
            Rhythm::Cron { line } => (Some(line), None),
            Rhythm::Every { ms } => (None, Some(ms)),
        };
        let counts = (schedule.fired, schedule.missed, schedule.skipped, u8::from(schedule.deleted));
        json!([
            seq,
            schedule.id,
            created,
            cron,
            every_ms,
            schedule.facts.makes,
            schedule.next_ms,
            schedule.last_tick_ms,
            counts.0,
            counts.1,
            counts.2,
            counts.3,
        ])
    });
    let sql = "SELECT schedule.id, text, created, cron, every_ms, makes, next_ms, last_ms, fired, missed,
               skipped, deleted FROM schedule JOIN word ON word.id = name";
    same(folded, sql, expected.collect());
}

pub(super) fn check_peers(folded: &Folded) {
    let mut known = BTreeMap::<String, Peer>::new();
    for event in &folded.events {
        let id = &event.fields().subject;
        match known.get_mut(id) {
            Some(peer) => peer.apply(event),
            None => known.extend(Peer::begun(event).map(|peer| (id.clone(), peer))),
        }
    }
    let stored = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let expected = known.values().map(|peer| {
        let latency = peer.measure.and_then(|measure| measure.latency_p50_us).map(stored);
        let bandwidth = peer.measure.and_then(|measure| measure.bandwidth).map(stored);
        let status = PEER_STATUSES.iter().position(|status| *status == peer.status);
        let entity = data_encoding::HEXLOWER.encode(&encode(peer));
        json!([peer.seq, peer.id, status, peer.last_seen_ms, latency, bandwidth, peer.reliability(), entity])
    });
    let sql = "SELECT id, name, status, last_seen_ms, latency_us, bandwidth, reliability, entity FROM peer";
    same(folded, sql, expected.collect());
    let able = known
        .values()
        .flat_map(|peer| peer.capabilities.iter().flatten().map(|word| json!([peer.seq, word])));
    same(folded, "SELECT peer, capability FROM peer_capability", able.collect());
}

pub(super) fn check_calls(folded: &Folded) {
    let mut known = BTreeMap::<String, (u64, Call)>::new();
    let mut keys = BTreeMap::<(String, String, Vec<u8>), u64>::new();
    for event in &folded.events {
        let (id, seq) = (event.fields().subject.clone(), event.fields().seq);
        if let Some((_, call)) = known.get_mut(&id) {
            call.apply(event);
            continue;
        }
        let Some(call) = Call::begun(event) else { continue };
        let Actor { id: actor, .. } = call.actor.clone();
        keys.extend(call.key.clone().map(|key| ((actor, call.name.clone(), key), seq)));
        known.insert(id, (seq, call));
    }
    let mut asked = BTreeMap::<String, u64>::new();
    for event in &folded.events {
        if let Some(Body::CallAsked(CallAsked { state: Some(state), .. })) = event.body() {
            asked.insert(data_encoding::HEXLOWER.encode(&*state), event.fields().seq);
        }
    }
    let asked = asked.into_iter().map(|(state, seq)| json!([state, seq]));
    same(folded, "SELECT state, seq FROM asked", asked.collect());
    let open = known.values().filter(|(_, call)| call.ending.is_none());
    let open = open.map(|(seq, call)| json!([seq, call.runner]));
    same(folded, "SELECT running.id, text FROM running JOIN word ON word.id = runner", open.collect());
    let keys = keys
        .into_iter()
        .map(|((actor, name, key), seq)| json!([actor, name, data_encoding::HEXLOWER.encode(&key), seq]));
    let sql = "SELECT actor.text, name.text, key, call FROM call_key
               JOIN word AS actor ON actor.id = actor JOIN word AS name ON name.id = name";
    same(folded, sql, keys.collect());
    let mut called: Vec<Json> =
        known.values().map(|(_, call)| json!([call.name, number(folded, call.tool)])).collect();
    called.sort_by_key(Json::to_string);
    called.dedup();
    same(folded, "SELECT text, block FROM called JOIN word ON word.id = name", called);
}
