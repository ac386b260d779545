//! What is accepted as a task, and what is refused.
//!
//! A refusal is told with its code and the field that it is about.

use super::*;
use crate::{event::work::Handle, task::CAPABILITIES_MAX};

#[test]
fn the_same_submission_is_known_and_another_is_not() {
    let story = Story::told(facts(), &[(1001, Claim), (1002, Complete)]);
    let again = |facts, input| {
        let submitted = submit(Some(&story.task), "t1", facts, &pay(input, Role::Input), 99, &at(2000));
        submitted.map_err(|refusal| refusal.code)
    };
    assert_eq!(again(facts(), "input"), Ok(Submitted::Known));
    assert_eq!(again(facts(), "other"), Err(Code::AlreadyExists));
    assert_eq!(again(TaskSubmitted { priority: 51, ..facts() }, "input"), Err(Code::AlreadyExists));
}

#[test]
fn a_full_queue_refuses_new_work_but_no_step_of_accepted_work() {
    let ask = |facts| submit(None, "t2", facts, &pay("input", Role::Input), LIMITS.queue_max, &at(2000));
    let refusal = ask(facts()).expect_err("it is full");
    assert_eq!((refusal.code, refusal.retryable), (Code::ResourceExhausted, true));
    assert!(refusal.hint.is_some());
    assert!(ask(TaskSubmitted { run: Some("wf".into()), ..facts() }).is_ok());
    assert!(ask(held(Hold::Run { run: "child".into() })).is_ok());
}

#[test]
fn a_later_time_is_its_place_in_the_line() {
    let later = Story::new(TaskSubmitted { not_before_ms: Some(5000), ..facts() }).task;
    assert_eq!((later.ready_ms, later.facts.order), (5000, 5000 - 500));
    let past = Story::new(TaskSubmitted { not_before_ms: Some(5), ..facts() }).task;
    assert_eq!((past.ready_ms, past.facts.order), (1000, 1000 - 500));
}

#[test]
fn what_is_over_a_bound_is_refused_with_its_field() {
    let long = || "x".repeat(NAME_MAX + 1);
    let retry = |retry: RetryPolicy| TaskSubmitted { retry, ..facts() };
    let handle = |ttl_ms, len| Some(Handle { ttl_ms, capabilities: Some("x".repeat(len)) });
    let table = [
        ("t#1", facts(), "task_id:"),
        ("", facts(), "task_id:"),
        ("t1", TaskSubmitted { task_type: "a b".into(), ..facts() }, "task_type:"),
        ("t1", TaskSubmitted { task_type: "wait:signal".into(), ..facts() }, "task_type:"),
        ("t1", TaskSubmitted { priority: 101, ..facts() }, "priority:"),
        ("t1", TaskSubmitted { tags: vec!["t".into(); TAGS_MAX + 1], ..facts() }, "tags:"),
        ("t1", TaskSubmitted { tags: vec!["t".repeat(TAG_MAX + 1)], ..facts() }, "tags:"),
        ("t1", TaskSubmitted { tags: vec!["t\u{1b}[2J".into()], ..facts() }, "tags:"),
        ("t1", TaskSubmitted { requires: vec!["r".into(); REQUIRES_MAX + 1], ..facts() }, "requires:"),
        ("t1", TaskSubmitted { requires: vec![String::new()], ..facts() }, "requires:"),
        ("t1", TaskSubmitted { unique_key: Some(long()), ..facts() }, "unique_key:"),
        ("t1", TaskSubmitted { concurrency_key: Some(long()), ..facts() }, "concurrency_key:"),
        ("t1", TaskSubmitted { rate_key: Some(long()), ..facts() }, "rate_key:"),
        ("t1", TaskSubmitted { handle: handle(u64::MAX, 0), ..facts() }, "ttl_ms:"),
        ("t1", TaskSubmitted { handle: handle(1, CAPABILITIES_MAX + 1), ..facts() }, "capabilities:"),
        ("t1", retry(retries(RETRIES_MAX + 1)), "max_retries:"),
        ("t1", retry(RetryPolicy { factor_milli: 999, ..retries(1) }), "backoff_factor:"),
        ("t1", retry(RetryPolicy { backoff_ms: u64::MAX, ..retries(1) }), "backoff_ms:"),
        ("t1", retry(RetryPolicy { max_backoff_ms: u64::MAX, ..retries(1) }), "max_backoff_ms:"),
        ("t1", TaskSubmitted { timeout_ms: Some(0), ..facts() }, "timeout_ms:"),
        ("t1", TaskSubmitted { timeout_ms: Some(u64::MAX), ..facts() }, "timeout_ms:"),
        ("t1", TaskSubmitted { not_before_ms: Some(u64::MAX), ..facts() }, "not_before:"),
    ];
    for (id, facts, field) in table {
        let refusal = submit(None, id, facts, &pay("input", Role::Input), 0, &at(0)).expect_err(field);
        assert_eq!(refusal.code, Code::InvalidArgument, "{field}");
        assert!(refusal.message.starts_with(field), "{field} {}", refusal.message);
    }
}
