//! Durable work as told to a real log: what the tables say of it, and how they say it while more is told.

use std::{collections::BTreeMap, path::Path};

use ipld_core::ipld;
use tempfile::TempDir;

use super::{
    At, events_of, live_unique, open_runs,
    page::{From, RunFilter, TaskFilter},
    paused, reusable, running_tasks, schedules, waiting_tasks, workers,
};
use crate::{
    block::{Block, Cid, Codec},
    event::{
        Actor, Body, Event, Fact, PayloadRef, Position, Role,
        work::{
            Hold, QueuePaused, QueueResumed, RetryPolicy, Rhythm, ScheduleCreated, ScheduleDeleted,
            ScheduleFired, StepSkipped, TaskCancelled, TaskClaimed, TaskCleared, TaskDead, TaskFailed,
            TaskInterrupted, TaskLeaseExpired, TaskReprioritised, TaskRetried, TaskSubmitted, TaskSucceeded,
            TaskTimedOut, WorkerLost, WorkerRegistered, WorkflowStarted, WorkflowSubmitted,
            WorkflowSucceeded,
        },
    },
    log::{
        Batch, Log,
        sqlite::{SqliteLog, SqliteReader},
    },
    query::{QueryError, View},
    state::{self, counts::MINUTES_MAX, digest, fold::Folder},
};

const START_MS: u64 = 1_767_225_600_000;

/// A log, and the state folded from it as it grows.
struct Told {
    dir: TempDir,
    log: SqliteLog,
    events: Vec<Event>,
    folder: Folder,
    blocks: [Block; 2],
    /// Milliseconds after the start.
    now_ms: u64,
}

impl Told {
    fn begin() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = SqliteLog::open(&dir.path().join("log.db"), false).expect("opens");
        let contract = Block::encode(&ipld!({"what": "a contract"}));
        let plan = Block::encode(&ipld!({"v": 1, "name": "greet", "steps": [], "limits": {}}));
        let blocks = [contract, plan];
        log.append(None, &Batch { blocks: blocks.to_vec(), ..Batch::default() }).expect("appends");
        let folder = folder(dir.path(), "state.db");
        Self { dir, log, events: Vec::new(), folder, blocks, now_ms: 0 }
    }

    /// Appends and folds one event; answers its seq.
    fn tell(&mut self, subject: &str, body: Body) -> u64 {
        let seq = self.events.len() as u64;
        let prev = self.events.last().map(Event::cid);
        let place = Position { log: no_block(), seq, prev, ts: (START_MS + self.now_ms) * 1_000 };
        let contract = self.blocks[0].cid();
        let tool = matches!(&body, Body::TaskSubmitted(facts) if facts.task_type.starts_with("tool:"));
        let input = PayloadRef { cid: contract, len: 1, role: Role::Input };
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: Actor { id: "alice".into(), role: "user".into(), proof: None },
            subject: subject.into(),
            tool: tool.then_some(contract),
            payloads: if tool { vec![input] } else { Vec::new() },
            body,
        };
        let event = Event::seal(fact, place).expect("a fact that keeps every rule");
        let events = vec![event.clone()];
        self.log.append(prev, &Batch { events: events.clone(), ..Batch::default() }).expect("appends");
        self.folder.apply(&events).expect("folds");
        self.events.push(event);
        seq
    }

    fn submit(&mut self, id: &str, facts: TaskSubmitted) -> u64 {
        self.tell(&format!("task/{id}"), Body::TaskSubmitted(facts))
    }

    fn claim(&mut self, id: &str, worker: &str, fence: u64) {
        self.tell(&format!("task/{id}"), claimed(worker, fence));
    }

    fn view(&self) -> View {
        View::of_files(&self.dir.path().join("state.db"), &self.dir.path().join("log.db")).expect("opens")
    }

    fn run(&self) -> WorkflowSubmitted {
        WorkflowSubmitted {
            plan: self.blocks[1].cid(),
            steps: 2,
            priority: 50,
            tags: Vec::new(),
            dependencies: Vec::new(),
            max_parallel: None,
            deadline_ms: None,
            origin: None,
            parent: None,
            peer: None,
        }
    }

    /// The digests of the same events folded in groups of `size`.
    fn derived(&self, size: usize) -> BTreeMap<String, String> {
        let mut folder = folder(self.dir.path(), &format!("state.{size}.db"));
        for events in self.events.chunks(size) {
            folder.apply(events).expect("folds");
        }
        digest::tables(folder.state()).expect("reads")
    }
}

fn folder(dir: &Path, name: &str) -> Folder {
    let reader = SqliteReader::open(&dir.join("log.db")).expect("opens");
    Folder::resume(state::open(&dir.join(name)).expect("opens"), Box::new(reader)).expect("resumes")
}

fn no_block() -> Cid {
    Cid::from_digest(Codec::DagCbor, [0; 32])
}

fn task(task_type: &str) -> TaskSubmitted {
    let retry = RetryPolicy {
        max_retries: 1,
        backoff_ms: 1_000,
        factor_milli: 2_000,
        max_backoff_ms: 60_000,
        jitter: true,
    };
    TaskSubmitted { retry, ..TaskSubmitted::plain(task_type) }
}

fn claimed(worker: &str, fence: u64) -> Body {
    Body::TaskClaimed(TaskClaimed {
        worker: worker.into(),
        runner: None,
        attempt: fence,
        fence,
        lease_until_ms: START_MS,
        effective: 50,
        rate_until_ms: None,
    })
}

fn succeeded() -> Body {
    Body::TaskSucceeded(TaskSucceeded { fence: 1, attempt: 1, reused: false })
}

fn failed(retry_at_ms: Option<u64>) -> Body {
    let code = "unavailable".to_owned();
    Body::TaskFailed(TaskFailed { fence: 1, attempt: 1, code, retryable: true, retry_at_ms })
}

fn timed_out(retry_at_ms: Option<u64>) -> Body {
    Body::TaskTimedOut(TaskTimedOut { fence: 1, attempt: 1, retry_at_ms })
}

fn lease_expired() -> Body {
    Body::TaskLeaseExpired(TaskLeaseExpired { worker: "w1".into(), fence: 1, attempt: 1, unheard: false })
}

fn interrupted(again: bool) -> Body {
    Body::TaskInterrupted(TaskInterrupted { runner: "r".into(), fence: 1, attempt: 1, again })
}

fn dead() -> Body {
    Body::TaskDead(TaskDead { reason: "poison".into() })
}

fn cancelled() -> Body {
    Body::TaskCancelled(TaskCancelled { running: false })
}

fn retried() -> Body {
    Body::TaskRetried(TaskRetried { hold: None, order: -7, max_retries: None, timeout_ms: None })
}

fn ids(page: &At<super::page::Page<super::page::TaskRow>>) -> Vec<&str> {
    page.what.rows.iter().map(|row| row.id.as_str()).collect()
}

/// Tells of a task, then of `events`, and expects its row.
#[track_caller]
fn check(events: &[Body], status: &str, ready_after_ms: u64, worker: Option<&str>) {
    let mut told = Told::begin();
    told.submit("t", task("resize"));
    for event in events {
        told.now_ms += 10;
        told.tell("task/t", event.clone());
    }
    let page = told.view().tasks(&TaskFilter::default(), 10, From::Offset(0)).expect("lists");
    let row = &page.what.rows[0];
    assert_eq!((row.status, row.worker.as_deref()), (status, worker));
    assert_eq!(row.ready_ms, START_MS + ready_after_ms);
    assert_eq!(page.applied, events.len() as u64 + 1);
    let counts = super::counts(told.folder.state()).expect("counts");
    assert_eq!((counts.tasks_of(status), counts.tasks.iter().sum::<u64>()), (1, 1));
}

#[test]
fn a_task_stands_where_its_events_put_it() {
    let later = Some(START_MS + 5_000);
    check(&[], "queued", 0, None);
    check(&[claimed("w1", 1)], "running", 0, Some("w1"));
    check(&[claimed("w1", 1), succeeded()], "succeeded", 0, Some("w1"));
    check(&[succeeded()], "succeeded", 0, None);
    check(&[claimed("w1", 1), failed(later)], "queued", 5_000, None);
    check(&[claimed("w1", 1), failed(None)], "failed", 0, Some("w1"));
    check(&[claimed("w1", 1), failed(None), dead()], "dead", 0, Some("w1"));
    check(&[claimed("w1", 1), timed_out(later)], "queued", 5_000, None);
    check(&[claimed("w1", 1), timed_out(None)], "timed_out", 0, Some("w1"));
    check(&[claimed("w1", 1), lease_expired()], "queued", 0, None);
    check(&[claimed("w1", 1), lease_expired(), dead()], "dead", 0, None);
    check(&[claimed("w1", 1), interrupted(true)], "queued", 0, None);
    check(&[claimed("w1", 1), interrupted(false)], "failed", 0, Some("w1"));
    check(&[cancelled()], "cancelled", 0, None);
    check(&[cancelled(), retried()], "queued", 20, None);
}

/// A story of many tasks over more than a day, drawn from a seed.
fn drawn(seed: u64) -> Told {
    let mut told = Told::begin();
    let mut state = seed;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let run = told.run();
    told.tell("workflow/r", Body::WorkflowSubmitted(run));
    for n in 0..600 {
        told.now_ms += draw(600_000);
        let id = format!("t{}", draw(60));
        let subject = format!("task/{id}");
        if events_of(told.folder.state(), &subject).expect("reads").is_empty() {
            let facts = TaskSubmitted {
                priority: draw(3) * 50,
                tags: if draw(2) == 0 { vec!["red".into()] } else { Vec::new() },
                run: (draw(3) == 0).then(|| "r".into()),
                hold: (draw(5) == 0).then_some(Hold::Time { until_ms: 1 }),
                ..task(if draw(2) == 0 { "tool:echo" } else { "resize" })
            };
            told.submit(&id, facts);
            continue;
        }
        let later = Some(START_MS + told.now_ms + draw(9_000));
        let body = match draw(12) {
            0..3 => claimed(["w1", "w2"][n % 2], n as u64),
            3 => succeeded(),
            4 => failed(later),
            5 => failed(None),
            6 => timed_out(None),
            7 => lease_expired(),
            8 => cancelled(),
            9 => retried(),
            10 => Body::TaskCleared(TaskCleared {}),
            _ => Body::TaskReprioritised(TaskReprioritised { from: 50, to: draw(3) * 50, order: 1 }),
        };
        told.tell(&subject, body);
    }
    told
}

#[test]
fn the_tables_are_the_same_however_events_are_grouped() {
    for seed in 0..4 {
        let told = drawn(seed);
        let live = digest::tables(told.folder.state()).expect("reads");
        for size in [7, 100, told.events.len()] {
            assert_eq!(told.derived(size), live, "seed {seed}, groups of {size}");
        }
        let minutes = told.view().minutes(0).expect("reads").what;
        let (first, last) = (minutes[0].minute, minutes[minutes.len() - 1].minute);
        assert!(last - first < MINUTES_MAX && told.now_ms / 60_000 > MINUTES_MAX);
    }
}

#[test]
fn lists_and_counts_are_what_looking_at_every_row_gives() {
    let told = drawn(9);
    let view = told.view();
    let all = view.tasks(&TaskFilter::default(), 1000, From::Offset(0)).expect("lists").what;
    assert_eq!(all.total, all.rows.len() as u64);
    assert!(all.rows.is_sorted_by(|a, b| a.seq < b.seq));
    for status in [None, Some("queued"), Some("failed"), Some("dead")] {
        for worker in [None, Some("w1"), Some("nobody")] {
            for tags in [vec![], vec!["red".to_owned()], vec!["red".to_owned(), "blue".to_owned()]] {
                for priority_min in [None, Some(50)] {
                    let (status, worker) = (status.map(str::to_owned), worker.map(str::to_owned));
                    let filter = TaskFilter { status, worker, tags: tags.clone(), priority_min };
                    let fits = all.rows.iter().filter(|row| {
                        filter.status.as_ref().is_none_or(|status| row.status == status)
                            && (filter.worker.is_none() || row.worker == filter.worker)
                            && tags.iter().all(|tag| row.facts.tags.contains(tag))
                            && row.priority >= priority_min.unwrap_or(0)
                    });
                    let wanted: Vec<u64> = fits.map(|row| row.seq).collect();
                    let page = view.tasks(&filter, 1000, From::Offset(0)).expect("lists").what;
                    assert_eq!(page.total, wanted.len() as u64, "{filter:?}");
                    assert!(page.rows.iter().map(|row| row.seq).eq(wanted.iter().copied()), "{filter:?}");
                    let second = view.tasks(&filter, 1, From::Offset(1)).expect("lists").what;
                    assert_eq!(second.rows.first().map(|row| row.seq), wanted.get(1).copied());
                }
            }
        }
    }
}

#[test]
fn pages_stay_as_they_are_while_others_write() {
    let mut told = Told::begin();
    for n in 0..5 {
        told.submit(&format!("t{n}"), TaskSubmitted { priority: n * 20, ..task("resize") });
    }
    let view = told.view();
    let all = TaskFilter::default();
    let first = view.tasks(&all, 2, From::Offset(0)).expect("lists");
    assert_eq!(ids(&first), ["t0", "t1"]);
    told.claim("t0", "w1", 1);
    told.claim("t3", "w1", 1);
    told.tell("task/t3", succeeded());
    told.submit("t5", TaskSubmitted { priority: 100, ..task("resize") });
    let cursor = first.what.next_cursor.expect("there is more");
    let second = view.tasks(&all, 2, From::Cursor(&cursor)).expect("lists");
    assert_eq!((ids(&second), second.what.total), (vec!["t2", "t3"], 6));
    let cursor = second.what.next_cursor.expect("there is more");
    let last = view.tasks(&all, 2, From::Cursor(&cursor)).expect("lists");
    assert_eq!((ids(&last), &last.what.next_cursor), (vec!["t4", "t5"], &None));
    let queued = TaskFilter { status: Some("queued".into()), ..all };
    let foreign = view.tasks(&queued, 2, From::Cursor(&cursor));
    assert!(matches!(foreign, Err(QueryError::Invalid(_))));
    let unknown = TaskFilter { status: Some("sleeping".into()), ..queued };
    assert!(matches!(view.tasks(&unknown, 2, From::Offset(0)), Err(QueryError::Invalid(_))));
}

#[test]
fn a_start_finds_what_waits_what_runs_and_what_may_be_reused() {
    let mut told = Told::begin();
    let keyed = TaskSubmitted {
        order: 5,
        requires: vec!["gpu".into(), "disk".into()],
        concurrency_key: Some("c".into()),
        unique_key: Some("u".into()),
        ..task("resize")
    };
    let late = told.submit("late", keyed);
    let soon = told.submit("soon", TaskSubmitted { order: -5, ..task("resize") });
    let soonest = told.submit("soonest", TaskSubmitted { order: -9, ..task("resize") });
    let held =
        told.submit("held", TaskSubmitted { hold: Some(Hold::Time { until_ms: 1 }), ..task("wait:time") });
    let echo = told.submit("echo", task("tool:echo"));
    told.claim("echo", "w1", 1);
    let state = told.folder.state();
    let mut waiting = Vec::new();
    waiting_tasks(state, &mut |row| {
        waiting.push((
            row.seq,
            row.task_type.to_owned(),
            row.requires.to_owned(),
            row.concurrency_key.is_some(),
        ));
    })
    .expect("reads");
    let plain = |seq| (seq, "resize".to_owned(), String::new(), false);
    let last = (late, "resize".to_owned(), "disk gpu".to_owned(), true);
    // The class of the first was seen first.
    assert_eq!(waiting, [last, plain(soonest), plain(soon)]);
    assert_eq!(running_tasks(state).expect("reads"), [held, echo]);
    assert_eq!(live_unique(state, "u").expect("reads"), Some(late));

    let done = told.tell("task/echo", succeeded());
    told.tell("task/late", cancelled());
    let contract = told.blocks[0].cid();
    let (state, log) = (told.folder.state(), told.log.reader().expect("opens"));
    assert_eq!(reusable(state, log.as_ref(), &contract, &contract).expect("reads"), Some(done));
    assert_eq!(reusable(state, log.as_ref(), &contract, &no_block()).expect("reads"), None);
    assert_eq!(live_unique(state, "u").expect("reads"), None);
}

#[test]
fn a_run_is_loaded_with_its_tasks_as_it_was_at_any_seq() {
    let mut told = Told::begin();
    let plain = told.run();
    let first = told.tell("workflow/a", Body::WorkflowSubmitted(plain.clone()));
    let needs = WorkflowSubmitted { dependencies: vec!["a".into()], tags: vec!["nightly".into()], ..plain };
    let second = told.tell("workflow/b", Body::WorkflowSubmitted(needs));
    let of_run =
        |step: &str| TaskSubmitted { run: Some("a".into()), step: Some(step.into()), ..task("resize") };
    told.submit("a#one", of_run("one"));
    told.submit("other", task("resize"));
    told.claim("a#one", "w1", 1);
    told.tell("workflow/a", Body::WorkflowStarted(WorkflowStarted {}));
    told.tell("task/a#one", succeeded());
    let skipped = StepSkipped { step: "two".into(), reason: "condition".into() };
    told.tell("workflow/a", Body::StepSkipped(skipped));
    let view = told.view();
    let seqs = |as_of| -> Vec<u64> {
        let loaded = view.load_run("a", as_of).expect("loads");
        loaded.what.iter().map(|event| event.fields().seq).collect()
    };
    assert_eq!(seqs(None), [0, 2, 4, 5, 6, 7]);
    assert_eq!(seqs(Some(4)), [0, 2, 4]);
    assert_eq!(view.load("task/a#one", Some(5)).expect("loads").what.len(), 2);
    assert_eq!(view.load("task/none", None).expect("loads"), At { applied: 8, what: Vec::new() });
    let state = told.folder.state();
    assert_eq!(open_runs(state).expect("reads"), [first, second]);

    let status = |filter: &RunFilter| -> Vec<(String, &str, u64)> {
        let page = view.workflows(filter, 10, From::Offset(0)).expect("lists").what;
        assert_eq!(page.total, page.rows.len() as u64);
        assert!(page.rows.iter().all(|row| row.name.as_deref() == Some("greet")));
        page.rows.into_iter().map(|row| (row.id, row.status, row.done)).collect()
    };
    let both = [("a".to_owned(), "running", 2), ("b".to_owned(), "waiting", 0)];
    assert_eq!(status(&RunFilter::default()), both);
    let nightly = RunFilter { tags: vec!["nightly".into()], ..RunFilter::default() };
    assert_eq!(status(&nightly), both[1..]);
    told.tell("workflow/a", Body::WorkflowSucceeded(WorkflowSucceeded {}));
    told.submit("b#one", TaskSubmitted { run: Some("b".into()), ..task("resize") });
    let succeeded = RunFilter { status: Some("succeeded".into()), ..RunFilter::default() };
    assert_eq!(status(&succeeded), [("a".to_owned(), "succeeded", 2)]);
    assert_eq!(status(&nightly), [("b".to_owned(), "submitted", 0)]);
    assert_eq!(open_runs(told.folder.state()).expect("reads"), [second]);
}

#[test]
fn the_queue_its_workers_and_schedules_are_told_of() {
    let mut told = Told::begin();
    let registered = WorkerRegistered {
        capabilities: vec!["resize".into()],
        max_concurrent: 2,
        cpu_milli: None,
        memory_mb: None,
    };
    told.tell("worker/w1", Body::WorkerRegistered(registered));
    let pause = told.tell("queue", Body::QueuePaused(QueuePaused {}));
    let rhythm = Rhythm::Every { ms: 1_000 };
    let created =
        ScheduleCreated { rhythm, makes: "task".into(), catch_up: false, next_ms: START_MS + 1_000 };
    let made = told.tell("schedule/s", Body::ScheduleCreated(created.clone()));
    let fired =
        ScheduleFired { at_ms: START_MS + 1_000, next_ms: START_MS + 2_000, missed: 3, skipped: false };
    told.tell("schedule/s", Body::ScheduleFired(fired));
    told.submit("t1", task("resize"));
    told.now_ms = 40;
    told.submit("t2", task("resize"));
    told.claim("t1", "w1", 1);
    told.now_ms = 100;
    told.tell("task/t1", failed(None));

    let stats = told.view().queue_stats().expect("reads").what;
    assert_eq!(stats.paused.map(|event| event.fields().seq), Some(pause));
    assert_eq!(stats.oldest_queued_ms, Some(START_MS + 40));
    let minute = told.view().minutes(0).expect("reads").what[0];
    assert_eq!((minute.submitted, minute.started, minute.failed, minute.executed), (2, 1, 1, 1));
    assert_eq!((minute.wait_ms, minute.execution_ms), (40, 60));
    let worker = &workers(told.folder.state()).expect("reads")[0];
    let load = super::Load { running: 0, succeeded: 0, failed: 1, execution_ms: 60 };
    assert_eq!((worker.id.as_str(), worker.status, worker.load), ("w1", "active", load));
    let schedule = &schedules(told.folder.state()).expect("reads")[0];
    assert_eq!((schedule.id.as_str(), schedule.created, schedule.fired), ("s", made, 1));
    assert_eq!((schedule.next_ms, schedule.every_ms), (START_MS + 2_000, Some(1_000)));

    told.tell("queue", Body::QueueResumed(QueueResumed {}));
    told.tell("worker/w1", Body::WorkerLost(WorkerLost { last_heard_ms: START_MS }));
    told.tell("schedule/s", Body::ScheduleDeleted(ScheduleDeleted {}));
    let state = told.folder.state();
    assert_eq!(paused(state).expect("reads"), None);
    assert_eq!(workers(state).expect("reads")[0].status, "offline");
    assert_eq!(schedules(state).expect("reads"), []);
}
