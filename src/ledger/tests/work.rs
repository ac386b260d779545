//! Durable work at the ledger's door: what is said again, what nobody hears, and what is cleared.
//!
//! Invariants:
//! - every test works on a real directory, and looks into the log for what was recorded.

use std::{path::Path, sync::Arc};

use serde_json::json;

use super::{closed, kinds, open_with, opened, sealed, start};
use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Actor,
        work::{Handle, RetryPolicy, Rhythm, TaskSubmitted, WorkerRegistered},
    },
    ledger::{
        Ask, Command, Ledger, Ruling,
        commit::node,
        opening::Settings,
        work::{
            CancelRun, CancelTask, Check, Claim, ClearQueue, Complete, CreateSchedule, Fail, Hand, Handed,
            Made, NewRun, RegisterWorker, Reprioritise, RescheduleRun, RetryTask, Signal, SubmitTask,
            UnregisterWorker, Wish, Work, Worked,
        },
    },
    task::{FOLLOWED_MAX, Limits, Status},
    workflow::{fields, plan},
};

pub fn facts(task_type: &str) -> TaskSubmitted {
    TaskSubmitted {
        task_type: task_type.to_owned(),
        priority: 50,
        order: 0,
        not_before_ms: None,
        timeout_ms: None,
        retry: RetryPolicy {
            max_retries: 3,
            backoff_ms: 60_000,
            factor_milli: 1000,
            max_backoff_ms: 60_000,
            jitter: false,
        },
        tags: Vec::new(),
        requires: Vec::new(),
        unique_key: None,
        concurrency_key: None,
        rate_key: None,
        run: None,
        step: None,
        part: Default::default(),
        hold: None,
        repeatable: false,
        reuse: false,
        handle: None,
    }
}

fn command(wish: Wish, cause: Option<Cid>) -> Command {
    Command::Work(Box::new(Work { wish, actor: super::someone(), cause, note: None }))
}

pub fn wish(ledger: &Ledger, wish: Wish) -> Result<Worked, Refusal> {
    worked(ledger.submit_blocking(command(wish, None)).expect("the ledger runs"))
}

fn worked(ruling: Ruling) -> Result<Worked, Refusal> {
    match ruling {
        Ruling::Worked(worked) => Ok(*worked),
        Ruling::Denied(refusal) => Err(refusal),
        other => panic!("not about work: {other:?}"),
    }
}

/// Says a command as a guest does that had no answer from the owner before.
pub fn again(ledger: &Ledger, command: Command) -> Ruling {
    let (reply, ruling) = tokio::sync::oneshot::channel();
    ledger.inbox.blocking_send(Ask::Rule { command, reply, again: true }).expect("the ledger runs");
    ruling.blocking_recv().expect("the ledger runs")
}

pub fn submit(ledger: &Ledger, id: &str, facts: TaskSubmitted) -> Result<Worked, Refusal> {
    let input = sealed("{}");
    wish(
        ledger,
        Wish::SubmitTask(Box::new(SubmitTask {
            id: id.to_owned(),
            facts,
            tool: None,
            input,
            metadata: None,
        })),
    )
}

pub fn register(ledger: &Ledger, id: &str) {
    let facts = WorkerRegistered {
        capabilities: vec!["a".to_owned()],
        max_concurrent: 100,
        cpu_milli: None,
        memory_mb: None,
    };
    wish(ledger, Wish::RegisterWorker(RegisterWorker { worker: id.to_owned(), facts, metadata: None }))
        .expect("registers");
}

pub fn claim(max: usize) -> Wish {
    Wish::Claim(Claim { worker: "w".to_owned(), max, wait_ms: 0, hand: None })
}

pub fn take(ledger: &Ledger) -> Handed {
    match wish(ledger, claim(1)) {
        Ok(Worked::Claimed(mut handed)) if handed.len() == 1 => handed.remove(0),
        other => panic!("nothing is handed out: {other:?}"),
    }
}

/// A call that began, as what a wish is caused by.
fn call(ledger: &Ledger, id: &str) -> Cid {
    match ledger.submit_blocking(start(id, None)).expect("the ledger runs") {
        Ruling::Run(started) => started.cid,
        other => panic!("it does not begin: {other:?}"),
    }
}

fn count(dir: &Path, kind: &str) -> usize {
    kinds(dir).iter().filter(|known| *known == kind).count()
}

/// Rules a wish, loses the answer with its owner, and says it again to the next one: the answer is the first one's,
/// and nothing more of these kinds is in the log.
fn check_again(prepare: impl Fn(&Ledger) -> Wish, kinds_of: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let wished = prepare(&ledger);
    let command = command(wished, Some(call(&ledger, "c")));
    let first = ledger.submit_blocking(command.clone()).expect("the ledger runs");
    closed((ledger, running));
    let mark = crate::log::home::Home::open(dir.path()).and_then(|home| home.enrol("gone")).expect("enrols");
    let before: Vec<usize> = kinds_of.iter().map(|kind| count(dir.path(), kind)).collect();
    let (ledger, running) = opened(dir.path());
    assert_eq!(again(&ledger, command), first);
    closed((ledger, running));
    let after: Vec<usize> = kinds_of.iter().map(|kind| count(dir.path(), kind)).collect();
    assert_eq!(after, before, "{kinds_of:?}");
    drop(mark);
}

#[test]
fn a_claim_said_again_is_answered_with_the_same_leases() {
    check_again(
        |ledger| {
            submit(ledger, "t1", facts("a")).expect("submits");
            submit(ledger, "t2", facts("a")).expect("submits");
            submit(ledger, "t3", facts("a")).expect("submits");
            claim(2)
        },
        &["task.claimed"],
    );
}

#[test]
fn endings_said_again_are_known_with_what_was_claimed_with_them() {
    let fail = |ledger: &Ledger| {
        submit(ledger, "t", facts("a")).expect("submits");
        let Handed { task, fence, .. } = take(ledger);
        let (worker, error, code) = ("w".to_owned(), sealed("{}"), "x".to_owned());
        Wish::Fail(Fail { worker, task, fence, error, code, retryable: true })
    };
    check_again(fail, &["task.failed"]);
    let complete = |ledger: &Ledger| {
        submit(ledger, "t", facts("a")).expect("submits");
        submit(ledger, "next", facts("a")).expect("submits");
        let Handed { task, fence, .. } = take(ledger);
        Wish::Complete(Complete {
            worker: "w".to_owned(),
            task,
            fence,
            output: sealed("{}"),
            claim_next: true,
        })
    };
    check_again(complete, &["task.succeeded", "task.claimed"]);
}

#[test]
fn changes_of_a_task_said_again_are_known() {
    let failed = |ledger: &Ledger| {
        submit(ledger, "t", facts("a")).expect("submits");
        let Handed { task, fence, .. } = take(ledger);
        let (worker, error, code) = ("w".to_owned(), sealed("{}"), "x".to_owned());
        wish(ledger, Wish::Fail(Fail { worker, task, fence, error, code, retryable: false }))
            .expect("it ends");
        Wish::RetryTask(RetryTask { task: "t".to_owned(), max_retries: None, timeout_ms: None })
    };
    check_again(failed, &["task.retried"]);
    let waiting = |ledger: &Ledger| {
        submit(ledger, "t", facts("a")).expect("submits");
        Wish::Reprioritise(Reprioritise { task: "t".to_owned(), priority: 90 })
    };
    check_again(waiting, &["task.reprioritised"]);
}

/// A run of one step that waits for a signal.
pub fn submit_run(ledger: &Ledger, id: &str) {
    let step = json!({"step_id": "s", "action": "wait:signal", "inputs": {"signal": "go"}});
    let definition = json!({"workflow_id": id, "name": "n", "steps": [step]});
    let planned = plan::plan(&definition, &NoTools).expect("sound");
    let new = NewRun {
        id: id.to_owned(),
        inputs: sealed(&planned.inputs.to_string()),
        plan: planned.plan,
        priority: 50,
        tags: Vec::new(),
        dependencies: Vec::new(),
        max_parallel: None,
        deadline_ms: None,
        peer: None,
    };
    wish(ledger, Wish::SubmitRun(Box::new(new))).expect("submits");
}

#[test]
fn a_signal_and_a_cancel_of_a_run_said_again_are_known() {
    let signal = |ledger: &Ledger| {
        submit_run(ledger, "r");
        Wish::Signal(Signal { run: "r".to_owned(), signal: "other".to_owned(), input: sealed("{}") })
    };
    check_again(signal, &["workflow.signalled"]);
    let cancel = |ledger: &Ledger| {
        submit_run(ledger, "r");
        Wish::CancelRun(CancelRun { run: "r".to_owned(), force: true })
    };
    check_again(cancel, &["workflow.cancelled", "task.cancelled"]);
    let reschedule = |ledger: &Ledger| {
        submit_run(ledger, "r");
        wish(ledger, Wish::CancelRun(CancelRun { run: "r".to_owned(), force: true })).expect("cancels");
        Wish::RescheduleRun(RescheduleRun { run: "r".to_owned(), from_step: None, priority: None })
    };
    check_again(reschedule, &["workflow.rescheduled", "task.retried"]);
}

#[test]
fn a_nodes_claim_said_again_is_given_what_it_was_given_and_nothing_it_had_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = crate::log::home::Home::open(dir.path()).and_then(|home| home.enrol("n")).expect("enrols");
    let (ledger, running) = opened(dir.path());
    let claim = |ledger: &Ledger| {
        let hand = Hand {
            runner: "n".to_owned(),
            lane: "l".to_owned(),
            capabilities: Arc::new(["a".to_owned()].into()),
            since: *ledger.committed().borrow(),
            openings: Arc::default(),
        };
        let wish = Wish::Claim(Claim { worker: "node/n".to_owned(), max: 1, wait_ms: 0, hand: Some(hand) });
        Command::Work(Box::new(Work { wish, actor: node(), cause: None, note: None }))
    };
    submit(&ledger, "t1", facts("a")).expect("submits");
    submit(&ledger, "t2", facts("a")).expect("submits");
    let heard = claim(&ledger);
    let heard = worked(ledger.submit_blocking(heard).expect("the ledger runs"));
    assert!(matches!(heard, Ok(Worked::Claimed(handed)) if handed[0].task == "t1"));
    let lost = claim(&ledger);
    let first = ledger.submit_blocking(lost.clone()).expect("the ledger runs");
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    assert_eq!(again(&ledger, lost), first);
    closed((ledger, running));
    assert_eq!(count(dir.path(), "task.claimed"), 2);
    drop(mark);
}

#[test]
fn a_call_that_began_with_its_change_is_known_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = crate::log::home::Home::open(dir.path()).and_then(|home| home.enrol("gone")).expect("enrols");
    let (ledger, running) = opened(dir.path());
    submit(&ledger, "t", facts("a")).expect("submits");
    let wish = Wish::Reprioritise(Reprioritise { task: "t".to_owned(), priority: 90 });
    let work = Work { wish, actor: super::someone(), cause: None, note: None };
    let begin = Command::Begin { start: Box::new(start("c", None)), work: Box::new(work), conclude: None };
    let first = ledger.submit_blocking(begin.clone()).expect("the ledger runs");
    assert!(matches!(&first, Ruling::Began { .. }), "{first:?}");
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    assert_eq!(again(&ledger, begin), first);
    closed((ledger, running));
    assert_eq!(count(dir.path(), "task.reprioritised"), 1);
    drop(mark);
}

#[test]
fn a_claim_that_nobody_hears_of_is_given_back_and_does_not_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    submit(&ledger, "t", facts("a")).expect("submits");
    for _ in 0..5 {
        let (reply, _) = tokio::sync::oneshot::channel();
        let command = command(claim(1), None);
        ledger.inbox.blocking_send(Ask::Rule { command, reply, again: false }).expect("the ledger runs");
        // What was handed out is back before the next commit.
        wish(&ledger, Wish::Check(Check { worker: "w".to_owned(), attempts: Vec::new() }))
            .expect("it is ruled");
    }
    let Handed { fence, attempt, .. } = take(&ledger);
    assert_eq!((fence, attempt), (6, 1));
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    let known = wish(&ledger, Wish::Reprioritise(Reprioritise { task: "t".to_owned(), priority: 1 }));
    assert!(matches!(known, Ok(Worked::Task { task, .. }) if task.lapses == 0 && task.attempt == 1));
    closed((ledger, running));
    assert_eq!(count(dir.path(), "task.lease_expired"), 5);
}

#[test]
fn a_unique_key_is_asked_by_retries_and_by_the_ticks_of_schedules() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let keyed = || TaskSubmitted { unique_key: Some("k".to_owned()), ..facts("a") };
    submit(&ledger, "t1", keyed()).expect("submits");
    let cancel = |task: &str| Wish::CancelTask(CancelTask { task: task.to_owned(), force: true });
    wish(&ledger, cancel("t1")).expect("cancels");
    submit(&ledger, "t2", keyed()).expect("submits");
    let retry = || Wish::RetryTask(RetryTask { task: "t1".to_owned(), max_retries: None, timeout_ms: None });
    let refused = wish(&ledger, retry()).expect_err("the key is held");
    assert_eq!((refused.code, refused.message.contains("`t2`")), (Code::Conflict, true));
    wish(&ledger, cancel("t2")).expect("cancels");
    wish(&ledger, retry()).expect("the key is free");
    let refused = submit(&ledger, "t3", keyed()).expect_err("the retried one holds it");
    assert_eq!((refused.code, refused.message.contains("`t1`")), (Code::AlreadyExists, true));
    let makes = Made::Task { facts: keyed(), tool: None, input: "{}".to_owned() };
    let create = Wish::CreateSchedule(CreateSchedule {
        schedule: "s".to_owned(),
        rhythm: Rhythm::Every { ms: 100 },
        catch_up: true,
        makes: Box::new(makes),
    });
    wish(&ledger, create).expect("creates");
    while count(dir.path(), "schedule.fired") < 2 {
        std::thread::yield_now();
    }
    assert_eq!(count(dir.path(), "task.submitted"), 2);
    wish(&ledger, cancel("t1")).expect("cancels");
    while count(dir.path(), "task.submitted") < 3 {
        std::thread::yield_now();
    }
    closed((ledger, running));
    let state = crate::state::open(&dir.path().join("state.db")).expect("opens");
    let schedule = crate::query::work::schedules(&state).expect("reads").remove(0);
    assert!(schedule.skipped >= 2 && schedule.fired == 1, "{schedule:?}");
}

#[test]
fn workers_that_have_gone_are_forgotten_and_still_their_owners() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let leave =
        Wish::UnregisterWorker(UnregisterWorker { worker: "w".to_owned(), graceful: false, timeout_ms: 0 });
    wish(&ledger, leave.clone()).expect("it leaves");
    // Once the state has it, the writer lets go of it.
    let reach = ledger.reach();
    while reach.borrow().applied < *ledger.committed().borrow() {
        std::thread::yield_now();
    }
    submit(&ledger, "t", facts("a")).expect("submits");
    let gone = wish(&ledger, claim(1)).expect_err("it has left");
    assert_eq!(gone.code, Code::FailedPrecondition);
    wish(&ledger, leave).expect("it has left already");
    register(&ledger, "w");
    assert_eq!(take(&ledger).task, "t");
    closed((ledger, running));
    assert_eq!(count(dir.path(), "worker.unregistered"), 1);
}

#[test]
fn a_lost_worker_stays_its_owners_when_an_operator_calls_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = Limits { lease_ms: 1, ..Limits::default() };
    let settings = Settings { limits, ..Settings::default() };
    let (ledger, running) = open_with(dir.path(), &settings).expect("opens");
    register(&ledger, "w");
    while count(dir.path(), "worker.lost") == 0 {
        std::thread::yield_now();
    }
    let actor = Actor { id: "boss".to_owned(), role: "operator".to_owned(), proof: None };
    let work = Work { wish: claim(1), actor, cause: None, note: None };
    let claimed = worked(ledger.submit_blocking(Command::Work(Box::new(work))).expect("the ledger runs"));
    assert_eq!(claimed, Ok(Worked::Claimed(Vec::new())));
    closed((ledger, running));
    let reader = crate::log::sqlite::SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    let events = (0..kinds(dir.path()).len() as u64)
        .filter_map(|seq| crate::log::Reader::event_at(&reader, seq).expect("reads"));
    let owners: Vec<String> = events
        .filter(|event| event.fields().kind == "worker.registered")
        .map(|event| event.fields().actor.id.clone())
        .collect();
    assert_eq!(owners, ["someone", "someone"]);
}

#[test]
fn an_erased_input_is_handed_out_to_nobody_and_refused_wishes_store_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    submit(&ledger, "t", facts("a")).expect("submits");
    let payload = sealed("{}").envelope.cid();
    let erase = Command::Erase { payload, basis: "asked".to_owned(), actor: node() };
    assert!(matches!(ledger.submit_blocking(erase), Ok(Ruling::Done(_))));
    assert_eq!(take(&ledger).input, None);
    let note = sealed(r#""a reason""#);
    let reason = note.envelope.cid();
    let wish = Wish::CancelTask(CancelTask { task: "none".to_owned(), force: false });
    let work = Work { wish, actor: super::someone(), cause: None, note: Some(note) };
    let refused = worked(ledger.submit_blocking(Command::Work(Box::new(work))).expect("the ledger runs"));
    assert_eq!(refused.map_err(|refusal| refusal.code), Err(Code::NotFound));
    closed((ledger, running));
    let reader = crate::log::sqlite::SqliteReader::open(&dir.path().join("log.db")).expect("reads");
    assert_eq!(crate::log::Reader::block(&reader, &reason).expect("reads"), None);
}

#[test]
fn clearing_takes_all_out_in_turns_and_leaves_steps() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let mut step = facts("a");
    (step.run, step.step) = (Some("r".to_owned()), Some("s".to_owned()));
    for n in 0..700 {
        submit(&ledger, &format!("t{n}"), facts("a")).expect("submits");
    }
    submit_run(&ledger, "r");
    submit(&ledger, "r#x", step).expect("submits");
    let (mut from, mut turns) = (Some((0, 0)), Vec::new());
    while let Some(first) = from {
        match wish(&ledger, Wish::ClearQueue(ClearQueue { status: Status::Queued, from: first })) {
            Ok(Worked::Queue { cleared, next, waiting, .. }) => {
                turns.push((cleared, waiting));
                from = next;
            }
            other => panic!("it is not cleared: {other:?}"),
        }
    }
    assert_eq!(turns, [(256, 445), (256, 189), (188, 1)]);
    closed((ledger, running));
}

#[test]
fn one_actors_clients_follow_only_so_many_tasks_that_have_not_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let handle = Some(Handle { ttl_ms: 1_000, capabilities: None });
    let followed = || TaskSubmitted { handle: handle.clone(), ..facts("a") };
    for n in 0..FOLLOWED_MAX {
        submit(&ledger, &format!("t{n}"), followed()).expect("submits");
    }
    submit(&ledger, "t0", followed()).expect("it is known");
    let refused = submit(&ledger, "more", followed()).expect_err("they are too many");
    assert_eq!((refused.code, refused.retryable), (Code::ResourceExhausted, true));
    submit(&ledger, "plain", facts("a")).expect("nobody follows it");
    let cancel = Wish::CancelTask(CancelTask { task: "t0".to_owned(), force: true });
    wish(&ledger, cancel).expect("cancels");
    submit(&ledger, "more", followed()).expect("one has ended");
    closed((ledger, running));
}

/// A node without tools.
pub struct NoTools;

impl plan::Tools for NoTools {
    fn tool(&self, _name: &str) -> Option<plan::ToolFacts> {
        None
    }

    fn check(&self, _name: &str, _input: &serde_json::Value) -> Vec<fields::Fault> {
        Vec::new()
    }

    fn run_exists(&self, _id: &str) -> bool {
        false
    }
}
