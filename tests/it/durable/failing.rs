//! Failures, retries, timeouts and cancels.

use super::*;

#[test]
fn failures_are_retried_after_growing_pauses_until_the_task_is_dead_and_can_be_revived() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let policy = json!({"max_retries": 2, "backoff_ms": 100, "backoff_factor": 3, "jitter": false});
    caller.submit("t", "a", json!({"retry_policy": policy}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    for attempt in 1..=3 {
        let task = worker.take();
        assert_eq!((&task["attempt"], &task["fence"]), (&json!(attempt), &json!(attempt)), "{task}");
        let failed = worker.fail(&task, "boom", true);
        assert_eq!(failed["retry_at"].is_string(), attempt < 3, "{failed}");
        assert_eq!(failed["status"], if attempt < 3 { "queued" } else { "dead" }, "{failed}");
        assert!(worker.claim(1).is_empty(), "a pause is kept");
    }
    let dead = caller.tell("task_list", json!({"status_filter": "dead"}));
    assert_eq!(ids(&dead["tasks"]), ["t"]);
    assert_eq!(caller.task("t")["dead_reason"], "retries_spent");
    let events = history(data.path(), "t");
    let pauses: Vec<u64> = events
        .iter()
        .filter_map(|event| match event.body() {
            Some(Body::TaskFailed(TaskFailed { retry_at_ms: Some(at_ms), .. })) => {
                Some(at_ms - event.fields().at_ms())
            }
            _ => None,
        })
        .collect();
    assert_eq!(pauses, [100, 300]);
    let retries: Vec<u64> = events
        .iter()
        .filter_map(|event| match event.body() {
            Some(Body::TaskFailed(facts)) => facts.retry_at_ms,
            _ => None,
        })
        .collect();
    let claims = claims_ms(&events, |_| true);
    assert!(claims[1..].iter().zip(&retries).all(|(claim, at)| claim >= at), "{claims:?} {retries:?}");
    assert_eq!(caller.tell("task_retry", json!({"task_id": "t"}))["retry_count"], 1);
    let task = worker.take();
    assert_eq!((&task["attempt"], &task["fence"]), (&json!(1), &json!(4)), "{task}");
    worker.complete(&task, json!(7));
    assert_eq!(caller.output("t"), json!(7));
    caller.refused("task_retry", json!({"task_id": "t"}), "failed_precondition");
    ended_well(server, &data);
}

#[test]
fn a_failure_that_is_not_retryable_ends_the_task_at_once() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({"retry_policy": {"max_retries": 5}}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let task = worker.take();
    assert_eq!(worker.fail(&task, "bad_input", false)["status"], "failed");
    let task = caller.task("t");
    assert_eq!(task["error"]["code"], "bad_input", "{task}");
    assert_eq!(task["error"]["message"], "as the test says", "{task}");
    assert_eq!(kinds(data.path(), "t"), ["task.submitted", "task.claimed", "task.failed"]);
    ended_well(server, &data);
}

#[test]
fn a_result_says_how_the_last_attempt_failed_and_how_long_all_took() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let policy = json!({"max_retries": 1, "backoff_ms": 300, "jitter": false});
    caller.submit("t", "a", json!({"retry_policy": policy}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    for code in ["first", "second"] {
        let task = worker.take();
        let since = Instant::now();
        until("a while", || (since.elapsed() > Duration::from_millis(50)).then_some(()));
        worker.fail(&task, code, true);
    }
    let told = caller.tell("task_result", json!({"task_id": "t"}));
    let expected = json!({"code": "second", "message": "as the test says", "retryable": true});
    assert_eq!((&told["status"], &told["result"]["error"]), (&json!("dead"), &expected), "{told}");
    let status = caller.task("t");
    assert_eq!(status["error"], expected, "{status}");
    assert_eq!(told["execution_time_ms"], status["metrics"]["execution_time_ms"]);
    let claims = claims_ms(&history(data.path(), "t"), |_| true);
    let time = |ms: u64| format!("{:.3}", jiff::Timestamp::from_millisecond(ms as i64).expect("a time"));
    assert_eq!(status["start_time"], time(claims[1]), "{status}");
    let listed = caller.tell("task_list", json!({}));
    assert_eq!(listed["tasks"][0]["start_time"], status["start_time"], "{listed}");
    let took = told["execution_time_ms"].as_u64().expect("a number");
    assert!(took >= 100, "both attempts count: {took}");
    caller.submit("good", "a", json!({}));
    worker.does("good", json!(1));
    let told = caller.tell("task_result", json!({"task_id": "good"}));
    assert_eq!(told["result"]["error"], Value::Null, "{told}");
    ended_well(server, &data);
}

#[test]
fn a_cancelled_run_shows_how_far_it_came() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let step = |id: &str, after: Value| json!({"step_id": id, "action": "worker:a", "depends_on": after});
    let steps = json!([step("one", json!([])), step("two", json!(["one"])), step("three", json!(["two"]))]);
    let submitted = caller.run("wf", steps, json!({}));
    assert_eq!(submitted["estimated_start_time"], Value::Null, "{submitted}");
    worker.does("wf#one", json!(1));
    caller.tell("workflow_cancel", json!({"workflow_id": "wf", "force": true}));
    let ended = caller.run_until("wf", "cancelled");
    assert_eq!(ended["progress"], 33, "{ended}");
    let listed = caller.tell("workflow_list", json!({}));
    assert_eq!(listed["workflows"][0]["progress"], 33, "{listed}");
    ended_well(server, &data);
}

#[test]
fn pauses_with_jitter_stay_between_half_and_the_whole() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 100);
    for n in 0..20 {
        let policy = json!({"max_retries": 1, "backoff_ms": 10_000});
        caller.submit(&format!("t{n}"), "a", json!({"retry_policy": policy}));
    }
    for task in worker.claim(20) {
        worker.fail(&task, "boom", true);
    }
    let pauses: BTreeSet<u64> = record::events(data.path())
        .iter()
        .filter_map(|event| match event.body() {
            Some(Body::TaskFailed(facts)) => Some(facts.retry_at_ms? - event.fields().at_ms()),
            _ => None,
        })
        .collect();
    assert!(pauses.iter().all(|pause| (5_000..=10_000).contains(pause)), "{pauses:?}");
    assert!(pauses.len() > 10, "{pauses:?}");
    ended_well(server, &data);
}

#[test]
fn attempts_that_end_without_an_outcome_poison_a_task() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nlease_ms = 100\nmax_attempts = 2\n");
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({"retry_policy": {"max_retries": 9}}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    worker.take();
    worker.take();
    let task = caller.task_until("t", "dead");
    assert_eq!(task["dead_reason"], "poison", "{task}");
    ended_well(server, &data);
}

#[test]
fn an_attempt_that_takes_too_long_is_timed_out_and_tried_again() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let policy = json!({"max_retries": 1, "backoff_ms": 0});
    caller.submit("t", "a", json!({"timeout_ms": 150, "retry_policy": policy}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let first = worker.take();
    let second = worker.take();
    assert_eq!(second["attempt"], 2);
    worker.refused("task_complete", &first, json!({"output": 1}), "conflict");
    caller.task_until("t", "dead");
    let ended = kinds(data.path(), "t");
    assert_eq!(ended.iter().filter(|kind| *kind == "task.timed_out").count(), 2, "{ended:?}");
    caller.submit("once", "a", json!({"timeout": 1}));
    worker.take();
    caller.task_until("once", "timed_out");
    ended_well(server, &data);
}

#[test]
fn cancels_end_what_waits_ask_what_runs_and_force_what_must_end() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    let mut cancel = |id: &str, force: bool| {
        caller.tell("task_cancel", json!({"task_id": id, "force": force, "reason": "not needed"}))
    };
    let mut submitter = Caller::new(&server);
    submitter.submit("waits", "a", json!({}));
    let told = cancel("waits", false);
    assert_eq!((&told["status"], &told["cleanup_required"]), (&json!("cancelled"), &json!(false)), "{told}");
    assert!(worker.claim(10).is_empty());
    assert_eq!(cancel("waits", false)["status"], "cancelled", "again is known");

    for id in ["obeys", "goes on", "forced"].map(|id| id.replace(' ', "-")) {
        submitter.submit(&id, "a", json!({"retry_policy": {"max_retries": 3, "backoff_ms": 0}}));
    }
    let tasks = worker.claim(10);
    assert_eq!(tasks.len(), 3);
    let told = cancel("obeys", false);
    assert_eq!((&told["status"], &told["cancelled_at"]), (&json!("running"), &Value::Null), "{told}");
    assert_eq!(worker.beat(&tasks[0])["cancel_requested"], true);
    assert_eq!(worker.fail(&tasks[0], "stopped", true)["status"], "cancelled", "not tried again");
    cancel("goes-on", false);
    assert_eq!(worker.complete(&tasks[1], json!(1))["status"], "succeeded", "it was done already");
    let told = cancel("forced", true);
    assert_eq!((&told["status"], &told["cleanup_required"]), (&json!("cancelled"), &json!(true)), "{told}");
    worker.refused("task_complete", &tasks[2], json!({"output": 1}), "conflict");
    submitter.refused("task_cancel", json!({"task_id": "goes-on"}), "failed_precondition");
    assert!(worker.claim(10).is_empty());
    ended_well(server, &data);
}

#[test]
fn a_tool_that_fails_fails_its_task_and_is_tried_again_where_it_may() {
    let data = temp();
    let upstream = Upstream::new(&["bad"]);
    upstream.write("bad.result", r#"{"content": [{"type": "text", "text": "no luck"}], "isError": true}"#);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    let policy = json!({"max_retries": 2, "backoff_ms": 10});
    caller.submit("once", "tool:up_bad", json!({"payload": {}}));
    caller.submit("often", "tool:up_bad", json!({"payload": {}, "retry_policy": policy}));
    let once = caller.task_until("once", "failed");
    assert_eq!(once["error"]["message"], "no luck", "{once}");
    let often = caller.task_until("often", "dead");
    assert_eq!(often["attempt"], 3, "{often}");
    assert_eq!(upstream.calls().len(), 4);
    ended_well(server, &data);
}

#[test]
fn what_a_tool_says_of_its_failure_is_recorded_and_kept_to() {
    let data = temp();
    let upstream = Upstream::new(&["denied", "busy", "odd", "mute"]);
    let says = |tool: &str, error: Value| {
        let content = json!([{"type": "text", "text": "as the test says"}]);
        let structured = json!({"success": false, "error": error});
        let result = json!({"content": content, "structuredContent": structured, "isError": true});
        upstream.write(&format!("{tool}.result"), &result.to_string());
    };
    says("denied", json!({"code": "permission_denied", "message": "not you", "retryable": false}));
    says("busy", json!({"code": "unavailable", "message": "not now", "retryable": true}));
    says("odd", json!({"code": "no_such_code", "message": 7, "retryable": false}));
    says("mute", json!("no object"));
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    for (tool, status, code, message, attempts) in [
        ("denied", "failed", "permission_denied", "not you", 1),
        ("busy", "dead", "unavailable", "not now", 2),
        ("odd", "failed", "internal", "as the test says", 1),
        ("mute", "dead", "internal", "as the test says", 2),
    ] {
        let policy = json!({"max_retries": 1, "backoff_ms": 0});
        caller.submit(tool, &format!("tool:up_{tool}"), json!({"payload": {}, "retry_policy": policy}));
        let task = caller.task_until(tool, status);
        assert_eq!(task["error"]["code"], code, "{task}");
        assert_eq!(task["error"]["message"], message, "{task}");
        assert_eq!(task["attempt"], attempts, "{task}");
        let recorded = history(data.path(), tool).iter().rev().find_map(|event| match event.body() {
            Some(Body::TaskFailed(facts)) => Some((facts.code, facts.retryable)),
            _ => None,
        });
        assert_eq!(recorded, Some((code.to_owned(), status == "dead")), "{tool}");
    }
    ended_well(server, &data);
}

#[test]
fn a_restart_keeps_tasks_leases_cancels_and_the_order_of_the_line() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    for id in ["held", "asked", "retried"] {
        caller.submit(id, "a", json!({"retry_policy": {"max_retries": 1, "backoff_ms": 60_000}}));
    }
    let tasks = worker.claim(10);
    caller.tell("task_cancel", json!({"task_id": "asked"}));
    worker.fail(&tasks[2], "boom", true);
    for (id, priority) in [("low", 10), ("high", 90), ("middle", 50)] {
        caller.submit(id, "a", json!({"priority": priority}));
    }
    let before: Vec<Value> =
        ["held", "asked", "retried", "low", "high"].iter().map(|id| shown(&mut caller, id)).collect();
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    let after: Vec<Value> =
        ["held", "asked", "retried", "low", "high"].iter().map(|id| shown(&mut caller, id)).collect();
    assert_eq!(before, after);
    assert_eq!(worker.beat(&tasks[1])["cancel_requested"], true);
    worker.complete(&tasks[0], json!("kept"));
    assert_eq!(caller.output("held"), "kept");
    assert_eq!(ids(&json!(worker.claim(10))), ["high", "middle", "low"]);
    ended_well(server, &data);
}

#[test]
fn a_running_tool_is_stopped_by_a_cancel_and_by_its_timeout() {
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    for (id, more) in [("asked", json!({})), ("forced", json!({})), ("slow", json!({"timeout_ms": 1500}))] {
        let mut more = more;
        crate::work::put(&mut more, json!({"payload": {}}));
        caller.submit(id, "tool:up_wait", more);
    }
    upstream.reached("wait", 3);
    caller.tell("task_cancel", json!({"task_id": "asked"}));
    caller.tell("task_cancel", json!({"task_id": "forced", "force": true}));
    let since = Instant::now();
    caller.task_until("asked", "cancelled");
    assert!(since.elapsed() < Duration::from_secs(15), "no lease of 30 s is waited for");
    caller.task_until("slow", "timed_out");
    assert_eq!(caller.task_stands("forced"), "cancelled");
    upstream.reached("cancelled", 3);
    ended_well(server, &data);
}
