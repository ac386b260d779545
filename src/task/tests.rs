//! The rules of tasks as data: given events, when somebody asks, then events or a refusal.
//!
//! A story's clock is told by each event; its task is folded from the sealed events alone.

mod folding;
mod submitting;

use super::*;
use crate::{
    block::Codec,
    event::{
        Position,
        work::{
            RetryPolicy, TaskCancelRequested, TaskCancelled, TaskCleared, TaskDead, TaskInterrupted,
            TaskLeaseExpired, TaskRenewed, TaskReprioritised, TaskRetried, TaskSucceeded,
        },
    },
};

const LIMITS: Limits = Limits { lease_ms: 100, ageing_ms: 10, queue_max: 5, attempts_max: 3 };

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

fn actor() -> Actor {
    Actor { id: "ada".into(), role: "client".into(), proof: None }
}

fn pay(text: &str, role: Role) -> PayloadRef {
    PayloadRef { cid: cid(text), len: text.len() as u64, role }
}

fn at(now_ms: u64) -> Moment {
    Moment { now_ms, limits: LIMITS }
}

fn facts() -> TaskSubmitted {
    TaskSubmitted { retry: retries(0), ..TaskSubmitted::plain("mail") }
}

fn retries(max_retries: u64) -> RetryPolicy {
    RetryPolicy { max_retries, backoff_ms: 10, factor_milli: 2000, max_backoff_ms: 35, jitter: false }
}

fn held(hold: Hold) -> TaskSubmitted {
    TaskSubmitted { task_type: "wait:signal".into(), hold: Some(hold), run: Some("wf".into()), ..facts() }
}

/// What has happened to a task, in a word: the events are what the rules answer.
#[derive(Clone, Copy, Debug)]
enum When {
    /// By worker `w1`.
    Claim,
    /// By the node's own executor.
    ClaimHere,
    Renew(u64),
    Complete,
    Fail,
    FailForGood,
    /// The time passes.
    Lapse,
    Release,
    Interrupt,
    Cancel,
    Kill,
    Priority(u64),
    Retry,
    Clear,
    Settle,
    Unsettle,
    Reuse,
}

use When::*;

struct Story {
    events: Vec<Event>,
    task: Task,
}

impl Story {
    /// Submitted at 1000.
    fn new(facts: TaskSubmitted) -> Self {
        let input = pay("input", Role::Input);
        let submitted = submit(None, "t1", facts, &input, 0, &at(1000)).expect("it is accepted");
        let Submitted::New(facts) = submitted else { panic!("it is new") };
        let event = sealed(
            Fact {
                cause: None,
                refs: Vec::new(),
                actor: actor(),
                subject: subject("t1"),
                tool: None,
                payloads: vec![input],
                body: Body::TaskSubmitted(*facts),
            },
            1,
            1000,
        );
        Self { task: Task::begun(&event).expect("it begins a task"), events: vec![event] }
    }

    fn told(facts: TaskSubmitted, whens: &[(u64, When)]) -> Self {
        let mut story = Self::new(facts);
        for (now_ms, when) in whens {
            let bodies = story.ask(*when, *now_ms).expect("the story may happen");
            bodies.into_iter().for_each(|body| story.then(body, *now_ms));
        }
        story
    }

    /// What the rules say to the holder of the latest fence, or to anybody.
    fn ask(&self, when: When, now_ms: u64) -> Result<Vec<Body>, Refusal> {
        let (task, moment) = (&self.task, &at(now_ms));
        let worker = task.lease.as_ref().map_or("w1", |lease| lease.worker.as_str());
        let one = |body| vec![body];
        match when {
            Claim => Ok(one(Body::TaskClaimed(task.claim("w1", None, None, moment)))),
            ClaimHere => Ok(one(Body::TaskClaimed(task.claim("node/r1", Some("r1"), None, moment)))),
            Renew(progress) => {
                let renewed = task.renew(worker, task.fence, Some(progress), moment);
                renewed.map(|facts| one(Body::TaskRenewed(facts)))
            }
            Complete => {
                let completed = task.complete(worker, task.fence, &pay("output", Role::Output));
                completed.map(|completed| match completed {
                    Completed::New(body) => one(body),
                    Completed::Known => Vec::new(),
                })
            }
            Fail => task.fail(worker, task.fence, "unavailable", true, moment),
            FailForGood => task.fail(worker, task.fence, "invalid_argument", false, moment),
            Lapse => Ok(task.lapse(moment)),
            Release => Ok(task.release(moment)),
            Interrupt => Ok(task.interrupt(moment)),
            Cancel => task.cancel(false),
            Kill => task.cancel(true),
            Priority(priority) => task.reprioritise(priority, moment).map(one),
            Retry => task.retry(None, None, moment).map(one),
            Clear => Ok(task.clear().into_iter().collect()),
            Settle => task.settle(Settlement::Succeeded).map(one),
            Unsettle => task.settle(Settlement::Failed { code: "step_failed" }).map(one),
            Reuse => task.settle(Settlement::Reused).map(one),
        }
    }

    fn then(&mut self, body: Body, now_ms: u64) {
        let payloads = match &body {
            Body::TaskSucceeded(_) => vec![pay("output", Role::Output)],
            Body::TaskFailed(_) => vec![pay("error", Role::Error)],
            _ => Vec::new(),
        };
        let fact = self.task.fact(body, actor(), Some(cid("call")), Vec::new(), payloads);
        let event = sealed(fact, self.events.len() as u64 + 1, now_ms);
        self.task.apply(&event);
        self.events.push(event);
    }
}

fn sealed(fact: Fact, seq: u64, now_ms: u64) -> Event {
    let place = Position { log: cid("genesis"), seq, prev: Some(cid("before")), ts: now_ms * 1000 + 999 };
    Event::seal(fact, place).expect("the story's facts are small")
}

/// After `given`, asking `when` at `now_ms` gives `then`.
fn check(
    facts: TaskSubmitted,
    given: &[(u64, When)],
    now_ms: u64,
    when: When,
    then: Result<Vec<Body>, Code>,
) {
    let story = Story::told(facts, given);
    let told = story.ask(when, now_ms).map_err(|refusal| refusal.code);
    assert_eq!(told, then, "{given:?}, then {when:?} at {now_ms}");
}

/// After `given`, the task stands so.
fn stands(facts: TaskSubmitted, given: &[(u64, When)], status: Status) -> Task {
    let story = Story::told(facts, given);
    assert_eq!(story.task.status, status, "{given:?}");
    story.task
}

fn failed(attempt: u64, retry_at_ms: Option<u64>) -> Body {
    let (fence, code) = (attempt, "unavailable".to_owned());
    Body::TaskFailed(TaskFailed { fence, attempt, code, retryable: true, retry_at_ms })
}

fn timed_out(attempt: u64, retry_at_ms: Option<u64>) -> Body {
    Body::TaskTimedOut(TaskTimedOut { fence: attempt, attempt, retry_at_ms })
}

fn expired(attempt: u64) -> Body {
    Body::TaskLeaseExpired(TaskLeaseExpired { worker: "w1".into(), fence: attempt, attempt, unheard: false })
}

fn interrupted(attempt: u64, again: bool) -> Body {
    Body::TaskInterrupted(TaskInterrupted { runner: "r1".into(), fence: attempt, attempt, again })
}

fn succeeded(attempt: u64, reused: bool) -> Body {
    Body::TaskSucceeded(TaskSucceeded { fence: attempt, attempt, reused })
}

fn dead(reason: &str) -> Body {
    Body::TaskDead(TaskDead { reason: reason.into() })
}

fn requested(force: bool) -> Body {
    Body::TaskCancelRequested(TaskCancelRequested { force })
}

fn cancelled(running: bool) -> Body {
    Body::TaskCancelled(TaskCancelled { running })
}

#[test]
fn a_claim_gives_a_lease_a_fence_and_the_priority_it_grew_to() {
    let claim = Story::new(facts()).task.claim("w1", None, Some(7), &at(1035));
    assert_eq!((claim.attempt, claim.fence, claim.lease_until_ms), (1, 1, 1135));
    assert_eq!((claim.effective, claim.rate_until_ms), (53, Some(7)));
    let old = Story::new(facts()).task.claim("w1", None, None, &at(9_999_999));
    assert_eq!(old.effective, PRIORITY_MAX);
    let early = Story::new(facts()).task.claim("w1", None, None, &at(5));
    assert_eq!(early.effective, 50, "a clock that went back takes nothing away");
}

#[test]
fn an_attempt_ends_by_who_holds_its_latest_fence() {
    let conflict = Err(Code::Conflict);
    check(facts(), &[(1001, Claim)], 1002, Complete, Ok(vec![succeeded(1, false)]));
    check(facts(), &[(1001, Claim)], 9999, Complete, Ok(vec![succeeded(1, false)]));
    check(facts(), &[], 1002, Complete, conflict.clone());
    check(facts(), &[(1001, Claim), (1002, Fail)], 1003, Complete, conflict.clone());
    check(facts(), &[(1001, Claim), (1002, Kill)], 1003, Complete, conflict.clone());
    check(facts(), &[(1001, Claim), (1101, Lapse)], 1102, Complete, conflict.clone());
    check(facts(), &[(1001, Claim), (1101, Lapse)], 1102, Renew(1), conflict.clone());
    let story = Story::told(facts(), &[(1001, Claim), (1101, Lapse), (1102, ClaimHere)]);
    let task = &story.task;
    assert_eq!((task.fence, task.attempt, task.lapses), (2, 2, 1));
    let output = pay("output", Role::Output);
    for (worker, fence) in [("w1", 1), ("w1", 2), ("node/r1", 1), ("node/r1", 3)] {
        let told = task.complete(worker, fence, &output).map_err(|refusal| refusal.code);
        assert_eq!(told, Err(Code::Conflict), "{worker} with fence {fence}");
        let told = task.fail(worker, fence, "internal", true, &at(1103)).map_err(|refusal| refusal.code);
        assert_eq!(told, conflict, "{worker} with fence {fence}");
    }
}

#[test]
fn completing_again_is_known_with_the_same_output_only() {
    let story = Story::told(facts(), &[(1001, Claim), (1002, Complete)]);
    let again = |worker, output| story.task.complete(worker, 1, &pay(output, Role::Output));
    assert_eq!(again("w1", "output"), Ok(Completed::Known));
    assert_eq!(again("w1", "other").map_err(|refusal| refusal.code), Err(Code::Conflict));
    assert_eq!(again("w2", "output").map_err(|refusal| refusal.code), Err(Code::Conflict));
}

#[test]
fn a_failure_is_repeated_until_its_retries_are_spent() {
    let twice = TaskSubmitted { retry: retries(2), ..facts() };
    let once_failed = [(1001, Claim), (1002, Fail)];
    let twice_failed = [(1001, Claim), (1002, Fail), (1020, Claim), (1021, Fail), (1050, Claim)];
    check(facts(), &once_failed[..1], 1002, Fail, Ok(vec![failed(1, None)]));
    check(twice.clone(), &once_failed[..1], 1002, Fail, Ok(vec![failed(1, Some(1012))]));
    check(twice.clone(), &twice_failed[..3], 1021, Fail, Ok(vec![failed(2, Some(1041))]));
    check(twice.clone(), &twice_failed, 1051, Fail, Ok(vec![failed(3, None), dead(RETRIES_SPENT)]));
    let task = stands(twice.clone(), &once_failed, Status::Queued);
    assert_eq!((task.ready_ms, task.code.as_deref()), (1012, Some("unavailable")));
    assert_eq!(task.facts.order, order(1012, 50, LIMITS.ageing_ms));
    let task = stands(twice.clone(), &[&twice_failed[..], &[(1051, Fail)]].concat(), Status::Dead);
    assert_eq!((task.code.as_deref(), task.output), (Some("unavailable"), Some(pay("error", Role::Error))));
    let told = Story::told(twice.clone(), &once_failed[..1]).ask(FailForGood, 1002);
    assert!(
        matches!(&told.expect("w1 has it")[..], [Body::TaskFailed(facts)] if facts.retry_at_ms.is_none())
    );
    stands(twice, &[(1001, Claim), (1002, FailForGood)], Status::Failed);
}

#[test]
fn a_lapse_uses_up_no_retry_and_too_many_are_poison() {
    let once = TaskSubmitted { retry: retries(1), ..facts() };
    let lapses = [(1001, Claim), (1101, Lapse), (1102, Claim), (1202, Lapse), (1203, Claim)];
    check(facts(), &lapses[..1], 1100, Lapse, Ok(vec![]));
    check(facts(), &lapses[..1], 1101, Lapse, Ok(vec![expired(1)]));
    check(facts(), &lapses[..1], 1002, Release, Ok(vec![expired(1)]));
    check(facts(), &lapses, 1303, Lapse, Ok(vec![expired(3), dead(POISON)]));
    check(once.clone(), &lapses, 1204, Fail, Ok(vec![failed(3, Some(1214))]));
    let task = stands(facts(), &lapses[..2], Status::Queued);
    assert_eq!((task.ready_ms, task.facts.order), (1000, order(1000, 50, LIMITS.ageing_ms)));
    let task = stands(facts(), &[&lapses[..], &[(1303, Lapse)]].concat(), Status::Dead);
    assert_eq!((task.code.as_deref(), task.lapses), (Some(POISON), 3));
    check(facts(), &[(1001, Claim), (1050, Renew(40))], 1149, Lapse, Ok(vec![]));
    check(facts(), &[(1001, Claim), (1050, Renew(40))], 1150, Lapse, Ok(vec![expired(1)]));
}

#[test]
fn what_the_node_ran_runs_again_only_where_that_is_allowed() {
    let repeatable = TaskSubmitted { repeatable: true, ..facts() };
    let twice =
        [(1001, ClaimHere), (1002, Interrupt), (1003, ClaimHere), (1004, Interrupt), (1005, ClaimHere)];
    check(facts(), &twice[..1], 1002, Interrupt, Ok(vec![interrupted(1, false)]));
    check(facts(), &twice[..1], 1101, Lapse, Ok(vec![interrupted(1, false)]));
    check(facts(), &[(1001, Claim)], 1002, Interrupt, Ok(vec![]));
    check(repeatable.clone(), &twice[..1], 1002, Interrupt, Ok(vec![interrupted(1, true)]));
    check(repeatable.clone(), &twice, 1006, Interrupt, Ok(vec![interrupted(3, false), dead(POISON)]));
    let task = stands(facts(), &twice[..2], Status::Failed);
    assert_eq!(task.code.as_deref(), Some(INTERRUPTED));
    stands(repeatable, &twice[..2], Status::Queued);
}

#[test]
fn an_attempt_over_its_time_counts_as_a_failure() {
    let timed = TaskSubmitted { timeout_ms: Some(30), ..facts() };
    let again = TaskSubmitted { retry: retries(1), ..timed.clone() };
    check(timed.clone(), &[(1001, Claim)], 1030, Lapse, Ok(vec![]));
    check(timed.clone(), &[(1001, Claim)], 1031, Lapse, Ok(vec![timed_out(1, None)]));
    check(timed.clone(), &[(1001, Claim), (1020, Renew(1))], 1031, Lapse, Ok(vec![timed_out(1, None)]));
    check(again.clone(), &[(1001, Claim)], 1031, Lapse, Ok(vec![timed_out(1, Some(1041))]));
    let spent = [(1001, Claim), (1031, Lapse), (1041, Claim)];
    check(again, &spent, 1071, Lapse, Ok(vec![timed_out(2, None), dead(RETRIES_SPENT)]));
    let task = stands(timed, &[(1001, Claim), (1031, Lapse)], Status::TimedOut);
    assert_eq!(task.code.as_deref(), Some("deadline_exceeded"));
    let longer = TaskSubmitted { timeout_ms: Some(300), ..facts() };
    check(longer, &[(1001, Claim)], 1301, Lapse, Ok(vec![expired(1)]));
}

#[test]
fn after_a_cancel_no_attempt_starts() {
    let twice = TaskSubmitted { retry: retries(2), repeatable: true, timeout_ms: Some(30), ..facts() };
    let asked = [(1001, Claim), (1002, Cancel)];
    check(facts(), &[], 1002, Cancel, Ok(vec![cancelled(false)]));
    check(facts(), &[], 1002, Kill, Ok(vec![cancelled(false)]));
    check(facts(), &asked[..1], 1002, Cancel, Ok(vec![requested(false)]));
    check(facts(), &asked[..1], 1002, Kill, Ok(vec![requested(true), cancelled(true)]));
    check(facts(), &asked, 1003, Cancel, Ok(vec![]));
    check(facts(), &asked, 1003, Kill, Ok(vec![requested(true), cancelled(true)]));
    check(facts(), &asked, 1003, Complete, Ok(vec![succeeded(1, false)]));
    for (now_ms, when) in [(1003, Fail), (1101, Lapse), (1031, Lapse), (1003, Release)] {
        check(twice.clone(), &asked, now_ms, when, Ok(vec![cancelled(true)]));
    }
    check(twice, &[(1001, ClaimHere), (1002, Cancel)], 1003, Interrupt, Ok(vec![cancelled(true)]));
    check(facts(), &[(1001, Cancel)], 1002, Cancel, Ok(vec![]));
    for ending in [Complete, Fail] {
        check(facts(), &[(1001, Claim), (1002, ending)], 1003, Cancel, Err(Code::FailedPrecondition));
    }
}

#[test]
fn a_retry_revives_what_ended_without_success() {
    let retried = TaskRetried { hold: None, order: order(2000, 50, 10), max_retries: None, timeout_ms: None };
    let retried = Ok(vec![Body::TaskRetried(retried)]);
    let no = Err(Code::FailedPrecondition);
    check(facts(), &[(1001, Claim), (1002, Fail)], 2000, Retry, retried.clone());
    check(facts(), &[(1001, Cancel)], 2000, Retry, retried);
    check(facts(), &[], 2000, Retry, no.clone());
    check(facts(), &[(1001, Claim)], 2000, Retry, no.clone());
    check(facts(), &[(1001, Claim), (1002, Complete)], 2000, Retry, no.clone());
    check(facts(), &[(1001, Cancel), (1002, Clear)], 2000, Retry, no);
    let lapsed = [(1001, Claim), (1101, Lapse), (1102, Claim), (1103, Cancel), (1104, Fail), (2000, Retry)];
    let task = stands(facts(), &lapsed, Status::Queued);
    assert_eq!((task.fence, task.attempt, task.lapses, task.retries), (2, 0, 0, 1));
    assert_eq!((task.cancel_requested, task.code, task.ready_ms), (false, None, 2000));
    let task = stands(facts(), &[&lapsed[..], &[(2001, Claim)]].concat(), Status::Running);
    assert_eq!((task.fence, task.attempt, task.started_ms), (3, 1, Some(2001)));
}

#[test]
fn a_retry_may_bring_other_bounds() {
    let mut story = Story::told(facts(), &[(1001, Cancel)]);
    let body = story.task.retry(Some(4), Some(70), &at(2000)).expect("it was cancelled");
    story.then(body, 2000);
    assert_eq!((story.task.facts.retry.max_retries, story.task.facts.timeout_ms), (4, Some(70)));
    let again = submit(Some(&story.task), "t1", facts(), &pay("input", Role::Input), 0, &at(2001));
    assert_eq!(again, Ok(Submitted::Known), "what was submitted stays what it was");
    for (retries, timeout) in [(Some(RETRIES_MAX + 1), None), (None, Some(0)), (None, Some(SPAN_MAX_MS + 1))]
    {
        let refusal = story.task.retry(retries, timeout, &at(2001)).expect_err("over its bounds");
        assert_eq!(refusal.code, Code::InvalidArgument);
    }
}

#[test]
fn a_priority_moves_a_task_in_the_line() {
    let moved = TaskReprioritised { from: 50, to: 90, order: 1000 - 90 * 10 };
    check(facts(), &[], 1500, Priority(90), Ok(vec![Body::TaskReprioritised(moved)]));
    check(facts(), &[], 1500, Priority(101), Err(Code::InvalidArgument));
    check(facts(), &[(1001, Cancel)], 1500, Priority(90), Err(Code::FailedPrecondition));
    let story = Story::told(facts(), &[(1500, Priority(90))]);
    assert_eq!((story.task.facts.priority, story.task.facts.order), (90, 100));
    let again = submit(Some(&story.task), "t1", facts(), &pay("input", Role::Input), 0, &at(2000));
    assert_eq!(again, Ok(Submitted::Known), "what was submitted stays what it was");
}

#[test]
fn what_holds_a_task_ends_it() {
    let signal = || held(Hold::Signal { name: "go".into(), until_ms: Some(1500) });
    let time = || held(Hold::Time { until_ms: 1500 });
    let run = || held(Hold::Run { run: "child".into() });
    let timed = || TaskSubmitted { timeout_ms: Some(200), ..run() };
    let conflict = Err(Code::Conflict);
    check(signal(), &[], 1001, Settle, Ok(vec![succeeded(0, false)]));
    check(signal(), &[], 1499, Lapse, Ok(vec![]));
    check(signal(), &[], 1500, Lapse, Ok(vec![timed_out(0, None)]));
    check(time(), &[], 1500, Lapse, Ok(vec![succeeded(0, false)]));
    check(run(), &[], 999_999, Lapse, Ok(vec![]));
    check(timed(), &[], 1200, Lapse, Ok(vec![timed_out(0, None)]));
    check(run(), &[], 1001, Cancel, Ok(vec![cancelled(false)]));
    check(run(), &[], 1001, Complete, conflict.clone());
    check(run(), &[(1001, Settle)], 1002, Settle, conflict.clone());
    check(run(), &[(1001, Cancel)], 1002, Settle, conflict.clone());
    check(facts(), &[], 1001, Settle, conflict.clone());
    check(facts(), &[(1001, Claim)], 1001, Settle, conflict.clone());
    check(facts(), &[], 1001, Reuse, Ok(vec![succeeded(0, true)]));
    check(facts(), &[(1001, Claim)], 1001, Reuse, conflict);
    assert_eq!(stands(run(), &[(1001, Unsettle)], Status::Failed).code.as_deref(), Some("step_failed"));
    let again = stands(signal(), &[(1500, Lapse), (2000, Retry)], Status::Running);
    assert_eq!(again.due_ms(), Some(2500), "a revived wait waits as long again");
    assert!(stands(facts(), &[(1001, Reuse)], Status::Succeeded).reused);
}

#[test]
fn clearing_touches_no_running_work() {
    let cleared = || Ok(vec![Body::TaskCleared(TaskCleared {})]);
    check(facts(), &[], 1001, Clear, Ok(vec![cancelled(false)]));
    check(facts(), &[(1001, Claim)], 1002, Clear, Ok(vec![]));
    check(facts(), &[(1001, Claim), (1002, Fail)], 1003, Clear, cleared());
    check(facts(), &[(1001, Cancel), (1002, Clear)], 1003, Clear, Ok(vec![]));
}

#[test]
fn a_renewal_is_bounded() {
    let story = Story::told(facts(), &[(1001, Claim)]);
    let renewed = TaskRenewed { fence: 1, lease_until_ms: 1150, progress: Some(100) };
    assert_eq!(story.ask(Renew(200), 1050), Ok(vec![Body::TaskRenewed(renewed)]));
}
