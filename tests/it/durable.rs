//! Tasks, the queue, workers and schedules at the door: what is promised of work that waits, runs, fails and ends.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use cairn::event::{Body, work::TaskFailed};
use serde_json::{Value, json};

use crate::{
    harness::{Server, cairn, run, temp},
    record::{self, until},
    speech::{ask, keyed},
    upstream::{Upstream, serve},
    work::{Caller, Worker, claims_ms, history, ids, kinds},
};

/// Leases short enough to wait for.
const SHORT_LEASES: &str = "[tasks]\nlease_ms = 1000\n";

fn quiet(data: &tempfile::TempDir) -> Server {
    Server::start(data.path(), &[])
}

fn ended_well(server: Server, data: &tempfile::TempDir) {
    assert!(server.stop().success());
    record::check(data.path());
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_task_goes_from_its_submission_by_a_claim_to_its_result() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted = caller.submit("t/1", "resize", json!({"tags": ["nightly"], "metadata": {"why": "test"}}));
    assert_eq!((&submitted["status"], &submitted["replayed"]), (&json!("queued"), &json!(false)));
    caller.refused("task_result", json!({"task_id": "t/1"}), "failed_precondition");
    let mut worker = Worker::register(&server, "w", &["resize"], 5);
    let task = worker.take();
    assert_eq!((&task["task_id"], &task["payload"]), (&json!("t/1"), &json!({"of": "t/1"})), "{task}");
    assert_eq!((&task["attempt"], &task["fence"]), (&json!(1), &json!(1)), "{task}");
    let said = worker.said(&task, json!({"progress": 40, "log": "almost half"}));
    assert_eq!(worker.caller.tell("task_heartbeat", said)["cancel_requested"], false);
    let running = caller.task("t/1");
    assert_eq!((&running["status"], &running["progress"]), (&json!("running"), &json!(40)), "{running}");
    assert_eq!(running["worker_id"], "w", "{running}");
    assert_eq!(worker.complete(&task, json!({"bytes": 12}))["status"], "succeeded");
    let result = caller.tell("task_result", json!({"task_id": "t/1", "include_logs": true}));
    assert_eq!(result["output"], json!({"bytes": 12}), "{result}");
    assert_eq!(result["logs"][0]["message"], "almost half", "{result}");
    let listed = caller.tell("task_list", json!({"tag_filter": ["nightly"], "status_filter": "succeeded"}));
    assert_eq!(ids(&listed["tasks"]), ["t/1"]);
    let expected = ["task.submitted", "task.claimed", "task.renewed", "task.succeeded"];
    assert_eq!(kinds(data.path(), "t/1"), expected);
    ended_well(server, &data);
}

#[test]
fn what_a_worker_says_is_one_commit_with_its_call_and_its_answer() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    for id in ["t1", "t2", "t3"] {
        caller.submit(id, "a", json!({}));
    }
    let commits = || {
        let scrape = server.get("/metrics");
        let line = scrape.text().lines().find_map(|line| line.strip_prefix("cairn_commit_events_count "));
        line.and_then(|count| count.parse::<u64>().ok()).expect("commits are counted")
    };
    let before = commits();
    let tasks = worker.claim(2);
    worker.beat(&tasks[0]);
    worker.fail(&tasks[0], "internal", false);
    let told = worker.said(&tasks[1], json!({"output": {}, "claim_next": true}));
    let told = worker.caller.tell("task_complete", told);
    assert_eq!(told["tasks"][0]["task_id"], "t3", "{told}");
    let refused = worker.refused("task_heartbeat", &tasks[1], json!({}), "conflict");
    assert!(refused["message"].is_string(), "{refused}");
    assert!(worker.claim(1).is_empty());
    assert_eq!(commits() - before, 6);
    ended_well(server, &data);
    let events = record::events(data.path());
    let claimed = events.iter().position(|event| record::kind(event) == "task.claimed").expect("a claim");
    let said: Vec<&str> = events[claimed - 1..].iter().map(record::kind).collect();
    let expected = [
        "call.started",
        "task.claimed",
        "task.claimed",
        "call.succeeded",
        "call.started",
        "task.renewed",
        "call.succeeded",
        "call.started",
        "task.failed",
        "call.succeeded",
        "call.started",
        "task.succeeded",
        "task.claimed",
        "call.succeeded",
        "call.started",
        "call.failed",
        "call.started",
        "call.succeeded",
    ];
    assert_eq!(said, expected);
}

#[test]
fn an_answer_of_one_commit_is_recorded_as_it_was_told_and_given_again_for_its_key() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    caller.submit("t", "a", json!({}));
    let task = worker.take();
    let params = keyed("task_complete", &worker.said(&task, json!({"output": {"n": 1}})), "once");
    let first = ask(&server, "tools/call", params.clone());
    let again = ask(&server, "tools/call", params);
    assert_eq!(first["result"]["structuredContent"]["status"], "succeeded", "{first}");
    assert_eq!(first["result"]["content"], again["result"]["content"]);
    assert_eq!(first["result"]["_meta"]["io.cairn/event"], again["result"]["_meta"]["io.cairn/event"]);
    assert_eq!(kinds(data.path(), "t"), ["task.submitted", "task.claimed", "task.succeeded"]);
    ended_well(server, &data);
}

#[test]
fn an_answer_of_one_commit_is_kept_as_its_tool_says() {
    let data = temp();
    let server = serve(data.path(), "[capture.tools]\ntask_claim = \"digest\"\n");
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    caller.submit("between-us", "a", json!({}));
    assert_eq!(ids(&json!(worker.claim(1))), ["between-us"]);
    let ending = record::ended(data.path(), "task_claim");
    let kept = record::content(data.path(), &ending.fields().pay[0].cid);
    assert!(kept.contains("$redacted") && !kept.contains("between-us"), "{kept}");
    ended_well(server, &data);
}

#[test]
fn the_same_submission_again_is_known_and_another_content_is_refused() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    assert_eq!(caller.submit("t", "a", json!({}))["replayed"], false);
    assert_eq!(caller.submit("t", "a", json!({}))["replayed"], true);
    for other in [json!({"payload": {"of": "another"}}), json!({"priority": 51}), json!({"task_type": "b"})] {
        let mut task = json!({"task_id": "t", "task_type": "a", "payload": {"of": "t"}});
        crate::work::put(&mut task, other);
        caller.refused("task_submit", task, "already_exists");
    }
    assert_eq!(kinds(data.path(), "t"), ["task.submitted"]);
    for tool in ["task_status", "task_result", "task_cancel", "task_retry"] {
        caller.refused(tool, json!({"task_id": "nobody's"}), "not_found");
    }
    ended_well(server, &data);
}

#[test]
fn higher_priorities_run_sooner_and_equal_ones_in_their_order() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    for (id, priority) in [("low", 10), ("first", 50), ("high", 90), ("second", 50)] {
        caller.submit(id, "a", json!({"priority": priority}));
    }
    let raised = caller.tell("task_priority", json!({"task_id": "low", "new_priority": 100}));
    assert_eq!((&raised["old_priority"], &raised["new_queue_position"]), (&json!(10), &json!(0)), "{raised}");
    caller.submit("last", "a", json!({"priority": 0}));
    for (id, position) in [("low", 0), ("high", 1), ("second", 3), ("last", 4)] {
        assert_eq!(caller.task(id)["queue_position"], position, "{id}");
    }
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    assert_eq!(ids(&json!(worker.claim(10))), ["low", "high", "first", "second", "last"]);
    ended_well(server, &data);
}

#[test]
fn waiting_makes_up_for_priority() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nageing_ms = 100\n");
    let mut caller = Caller::new(&server);
    caller.submit("old", "a", json!({"priority": 49}));
    let since = Instant::now();
    until("two ageing intervals", || (since.elapsed() > Duration::from_millis(200)).then_some(()));
    caller.submit("new", "a", json!({"priority": 50}));
    caller.submit("urgent", "a", json!({"priority": 100}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    assert_eq!(ids(&json!(worker.claim(10))), ["urgent", "old", "new"]);
    let grown = history(data.path(), "old").iter().find_map(|event| match event.body() {
        Some(Body::TaskClaimed(facts)) => Some(facts.effective),
        _ => None,
    });
    assert!(grown.expect("it was claimed") >= 51, "{grown:?}");
    ended_well(server, &data);
}

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
                Some(at_ms - event.fields().ts / 1000)
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
fn the_reason_of_a_change_is_told_with_it() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted = caller.submit("t", "a", json!({}));
    assert_eq!(submitted["estimated_start_time"], Value::Null, "nobody can know: {submitted}");
    caller.tell("task_priority", json!({"task_id": "t", "new_priority": 90, "reason": "it is late"}));
    caller.tell("task_cancel", json!({"task_id": "t", "reason": "not needed"}));
    let told = caller.tell("task_status", json!({"task_id": "t", "include_logs": true}));
    let lines: Vec<&str> =
        told["logs"].as_array().expect("lines").iter().flat_map(|line| line["message"].as_str()).collect();
    let [first, second] = lines[..] else { panic!("{told}") };
    assert!(first.starts_with("task.reprioritised by ") && first.ends_with(": it is late"), "{told}");
    assert!(second.starts_with("task.cancelled by ") && second.ends_with(": not needed"), "{told}");
    assert_eq!(told["progress"], 0, "{told}");
    let event = history(data.path(), "t").last().expect("it was cancelled").cid().to_string();
    let directory = data.path().to_str().expect("temporary paths are text");
    for place in [["--url", &server.url], ["--data", directory]] {
        let shown = run(cairn(&[&["log", "show", &event], &place[..]].concat()));
        assert!(
            shown.stdout.lines().any(|line| line.starts_with("reason") && line.ends_with("not needed")),
            "{shown:?}"
        );
        let listed = run(cairn(&[&["log", "query", "--subject", "task/t", "--json"], &place[..]].concat()));
        let reasons: Vec<Value> = listed
            .stdout
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).expect("a JSON document a line")["reason"].clone()
            })
            .collect();
        assert_eq!(reasons, [Value::Null, json!("it is late"), json!("not needed")], "{listed:?}");
    }
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
            Some(Body::TaskFailed(facts)) => Some(facts.retry_at_ms? - event.fields().ts / 1000),
            _ => None,
        })
        .collect();
    assert!(pauses.iter().all(|pause| (5_000..=10_000).contains(pause)), "{pauses:?}");
    assert!(pauses.len() > 10, "{pauses:?}");
    ended_well(server, &data);
}

#[test]
fn a_silent_workers_task_goes_to_another_and_its_late_word_changes_nothing() {
    let data = temp();
    let server = serve(data.path(), SHORT_LEASES);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut late = Worker::register(&server, "late", &["a"], 5);
    let mut other = Worker::register(&server, "other", &["a"], 5);
    let old = late.take();
    let new = other.take();
    assert_eq!(new["task_id"], "t");
    assert!(new["fence"].as_u64() > old["fence"].as_u64(), "{old} {new}");
    late.refused("task_complete", &old, json!({"output": "late"}), "conflict");
    late.refused("task_fail", &old, json!({"error": {"code": "late", "message": ""}}), "conflict");
    late.refused("task_heartbeat", &old, json!({}), "conflict");
    other.complete(&new, json!("in time"));
    late.refused("task_complete", &old, json!({"output": "late"}), "conflict");
    assert_eq!(caller.output("t"), "in time");
    let expected = ["task.submitted", "task.claimed", "task.lease_expired", "task.claimed", "task.succeeded"];
    assert_eq!(kinds(data.path(), "t"), expected);
    ended_well(server, &data);
}

#[test]
fn heartbeats_keep_a_task_far_beyond_its_first_lease() {
    let data = temp();
    let server = serve(data.path(), SHORT_LEASES);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let task = worker.take();
    let since = Instant::now();
    until("more than two leases", || {
        worker.beat(&task);
        (since.elapsed() > Duration::from_millis(2_200)).then_some(())
    });
    worker.complete(&task, json!(null));
    assert_eq!(caller.task("t")["attempt"], 1);
    ended_well(server, &data);
}

#[test]
fn only_the_holder_of_the_fence_may_end_a_task_and_only_once() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    caller.submit("waiting", "b", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let mut other = Worker::register(&server, "other", &["a"], 5);
    let task = worker.take();
    let mut lie = task.clone();
    for fence in [2, 99, u64::MAX >> 1] {
        lie["fence"] = json!(fence);
        worker.refused("task_complete", &lie, json!({"output": 1}), "conflict");
        worker.refused("task_heartbeat", &lie, json!({}), "conflict");
    }
    other.refused("task_complete", &task, json!({"output": 1}), "conflict");
    other.refused("task_fail", &task, json!({"error": {"code": "x", "message": ""}}), "conflict");
    let unclaimed = json!({"task_id": "waiting", "fence": 1});
    worker.refused("task_complete", &unclaimed, json!({"output": 1}), "conflict");
    let unknown = json!({"task_id": "nobody's", "fence": 1});
    worker.refused("task_complete", &unknown, json!({"output": 1}), "not_found");
    caller.refused(
        "task_complete",
        json!({"worker_id": "never", "task_id": "t", "fence": 1, "output": 1}),
        "not_found",
    );
    assert_eq!(kinds(data.path(), "t"), ["task.submitted", "task.claimed"]);
    worker.complete(&task, json!({"n": 1}));
    assert_eq!(worker.complete(&task, json!({"n": 1}))["status"], "succeeded", "the same again is known");
    worker.refused("task_complete", &task, json!({"output": {"n": 2}}), "conflict");
    worker.refused("task_fail", &task, json!({"error": {"code": "x", "message": ""}}), "conflict");
    assert_eq!(caller.output("t"), json!({"n": 1}));
    assert_eq!(kinds(data.path(), "t"), ["task.submitted", "task.claimed", "task.succeeded"]);
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
fn a_paused_queue_starts_nothing_over_a_restart_too_and_goes_on_when_resumed() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("runs", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    let running = worker.take();
    let paused = caller.tell("queue_pause", json!({"reason": "maintenance"}));
    assert_eq!(paused["running_tasks"], 1, "{paused}");
    caller.submit("waits", "a", json!({}));
    caller.submit("tool", "tool:tools_list_categories", json!({"payload": {}}));
    assert!(worker.claim(10).is_empty());
    worker.complete(&running, json!(1));
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    assert_eq!(caller.tell("queue_stats", json!({}))["paused"], true);
    assert!(worker.claim(10).is_empty());
    assert_eq!(caller.task_stands("tool"), "queued");
    let resumed = caller.tell("queue_resume", json!({}));
    assert_eq!(resumed["status"], "active", "{resumed}");
    worker.does("waits", json!(1));
    caller.task_until("tool", "succeeded");
    ended_well(server, &data);
}

#[test]
fn clearing_takes_out_what_waits_and_never_what_runs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    for id in ["fails", "runs", "waits-1", "waits-2"] {
        caller.submit(id, "a", json!({}));
    }
    let tasks = worker.claim(2);
    worker.fail(&tasks[0], "boom", false);
    caller.refused("queue_clear", json!({"confirm": false}), "invalid_argument");
    let cleared = caller.tell("queue_clear", json!({"confirm": true, "status_filter": "queued"}));
    assert_eq!((&cleared["cleared_count"], &cleared["remaining_count"]), (&json!(2), &json!(0)), "{cleared}");
    assert!(worker.claim(10).is_empty());
    assert_eq!(caller.task_stands("waits-1"), "cancelled");
    let cleared = caller.tell("queue_clear", json!({"confirm": true, "status_filter": "failed"}));
    assert_eq!(cleared["cleared_count"], 1, "{cleared}");
    assert!(ids(&caller.tell("task_list", json!({"status_filter": "failed"}))["tasks"]).is_empty());
    assert_eq!(caller.task_stands("fails"), "failed", "its history stays");
    caller.submit("waits-3", "a", json!({}));
    let cleared = caller.tell("queue_clear", json!({"confirm": true}));
    assert_eq!(cleared["cleared_count"], 3, "two that were cancelled, and one that waits: {cleared}");
    let listed = caller.tell("task_list", json!({}));
    assert_eq!(ids(&listed["tasks"]), ["runs", "waits-3"], "{listed}");
    worker.complete(&tasks[1], json!(1));
    assert_eq!(caller.task_stands("runs"), "succeeded");
    ended_well(server, &data);
}

#[test]
fn a_unique_key_is_held_until_its_task_has_ended() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let keyed = |id: &str| json!({"task_id": id, "task_type": "a", "payload": {}, "unique_key": "invoice-7"});
    caller.tell("task_submit", keyed("one"));
    caller.refused("task_submit", keyed("two"), "already_exists");
    assert_eq!(caller.tell("task_submit", keyed("one"))["replayed"], true);
    server.kill();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.refused("task_submit", keyed("two"), "already_exists");
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    worker.does("one", json!(1));
    caller.tell("task_submit", keyed("two"));
    ended_well(server, &data);
}

#[test]
fn of_one_concurrency_key_one_task_runs_at_a_time() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    for id in ["x1", "x2", "x3"] {
        caller.submit(id, "a", json!({"concurrency_key": "x"}));
    }
    caller.submit("y1", "a", json!({"concurrency_key": "y"}));
    caller.submit("free", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    let first = worker.claim(10);
    assert_eq!(ids(&json!(first)), ["x1", "y1", "free"]);
    assert!(worker.claim(10).is_empty());
    worker.complete(&first[0], json!(1));
    let second = worker.claim(10);
    assert_eq!(ids(&json!(second)), ["x2"]);
    caller.tell("task_cancel", json!({"task_id": "x2", "force": true}));
    assert_eq!(ids(&json!(worker.claim(10))), ["x3"]);
    ended_well(server, &data);
}

#[test]
fn a_rate_key_lets_through_a_burst_and_then_one_an_interval() {
    let data = temp();
    let server = serve(data.path(), "[tasks.rates.mail]\ninterval_ms = 200\nburst = 2\n");
    let mut caller = Caller::new(&server);
    for n in 0..5 {
        caller.submit(&format!("mail-{n}"), "a", json!({"rate_key": "mail"}));
    }
    caller.submit("other", "a", json!({"rate_key": "not-bounded"}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    let claimed: Vec<String> =
        (0..6).map(|_| worker.take()["task_id"].as_str().expect("text").to_owned()).collect();
    assert_eq!(&claimed[..3], ["mail-0", "mail-1", "other"]);
    let starts = claims_ms(&record::events(data.path()), |task| task.starts_with("mail"));
    for (n, at_ms) in starts.iter().enumerate().skip(2) {
        let earliest = starts[0] + 200 * (n as u64 - 1);
        assert!(*at_ms >= earliest, "claim {n} came {} ms too soon: {starts:?}", earliest - at_ms);
    }
    ended_well(server, &data);
}

#[test]
fn a_rate_key_is_kept_over_a_kill() {
    let data = temp();
    let config = "[tasks.rates.mail]\ninterval_ms = 60000\nburst = 2\n";
    let server = serve(data.path(), config);
    let mut caller = Caller::new(&server);
    for n in 0..5 {
        caller.submit(&format!("mail-{n}"), "a", json!({"rate_key": "mail"}));
    }
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    assert_eq!(worker.claim(10).len(), 2);
    server.kill();
    let server = serve(data.path(), config);
    assert!(worker.back(&server).claim(10).is_empty(), "the burst was spent before");
    ended_well(server, &data);
}

#[test]
fn a_restart_counts_what_a_worker_has_against_its_bound() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    for id in ["t1", "t2", "t3"] {
        caller.submit(id, "a", json!({}));
    }
    let mut worker = Worker::register(&server, "w", &["a"], 2);
    let tasks = worker.claim(10);
    server.kill();
    let server = quiet(&data);
    let mut worker = worker.back(&server);
    assert!(worker.claim(10).is_empty());
    worker.complete(&tasks[0], json!(1));
    assert_eq!(ids(&json!(worker.claim(10))), ["t3"]);
    ended_well(server, &data);
}

#[test]
fn a_task_waits_for_a_worker_with_every_capability_it_requires() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "render", json!({"requires": ["gpu", "avx"]}));
    for (id, capabilities) in
        [("plain", vec!["render"]), ("half", vec!["render", "gpu"]), ("no", vec!["gpu", "avx"])]
    {
        assert!(Worker::register(&server, id, &capabilities, 5).claim(1).is_empty(), "{id}");
    }
    Worker::register(&server, "whole", &["avx", "gpu", "render"], 5).does("t", json!(1));
    assert_eq!(caller.task_stands("t"), "succeeded");
    ended_well(server, &data);
}

#[test]
fn a_task_does_not_start_before_its_time() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(400);
    caller.submit("t", "a", json!({"not_before": at.to_string()}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    assert!(worker.claim(1).is_empty());
    worker.does("t", json!(1));
    let claimed = claims_ms(&history(data.path(), "t"), |_| true);
    assert!(claimed[0] as i64 >= at.as_millisecond(), "{claimed:?}");
    ended_well(server, &data);
}

#[test]
fn a_full_queue_refuses_with_a_hint_and_takes_again_when_there_is_room() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nmax_queue = 3\n");
    let mut caller = Caller::new(&server);
    for n in 0..3 {
        caller.submit(&format!("t{n}"), "a", json!({}));
    }
    let over = json!({"task_id": "over", "task_type": "a", "payload": {}});
    let error = caller.refused("task_submit", over.clone(), "resource_exhausted");
    assert_eq!(error["retryable"], true, "{error}");
    assert!(error["hint"].is_string(), "{error}");
    Worker::register(&server, "w", &["a"], 5).take();
    caller.tell("task_submit", over);
    ended_well(server, &data);
}

#[test]
fn a_worker_has_no_more_at_once_than_it_said_and_may_take_the_next_with_a_completion() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    for n in 0..4 {
        caller.submit(&format!("t{n}"), "a", json!({}));
    }
    let mut worker = Worker::register(&server, "w", &["a"], 2);
    let tasks = worker.claim(100);
    assert_eq!(ids(&json!(tasks)), ["t0", "t1"]);
    assert!(worker.claim(100).is_empty());
    let said = worker.said(&tasks[0], json!({"output": 1, "claim_next": true}));
    assert_eq!(ids(&worker.caller.tell("task_complete", said)["tasks"]), ["t2"]);
    let busy = caller.tell("worker_status", json!({"worker_id": "w", "include_tasks": true}));
    assert_eq!((&busy["status"], &busy["running_tasks"]), (&json!("busy"), &json!(2)), "{busy}");
    let mut held = ids(&busy["tasks"]);
    held.sort();
    assert_eq!(held, ["t1", "t2"]);
    ended_well(server, &data);
}

#[test]
fn a_claim_that_waits_is_answered_when_work_comes_and_empty_when_its_time_is_over() {
    let data = temp();
    let server = quiet(&data);
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let since = Instant::now();
    let nothing = worker.caller.tell("task_claim", json!({"worker_id": "w", "wait_ms": 200}));
    assert!(ids(&nothing["tasks"]).is_empty());
    assert!(since.elapsed() >= Duration::from_millis(200));
    let waiting = thread::spawn(move || {
        let task = worker.take();
        (task, Instant::now())
    });
    let mut caller = Caller::new(&server);
    let asked = |data: &tempfile::TempDir| {
        let started = |event: &cairn::event::Event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == "task_claim");
        record::events(data.path()).iter().filter(|event| started(event)).count()
    };
    until("the second claim", || (asked(&data) == 2).then_some(()));
    caller.submit("other", "b", json!({}));
    let submitted = Instant::now();
    caller.submit("t", "a", json!({}));
    let (task, at) = waiting.join().expect("the worker only claims");
    assert_eq!(task["task_id"], "t");
    assert!(at.saturating_duration_since(submitted) < Duration::from_secs(5));
    ended_well(server, &data);
}

#[test]
fn a_task_is_handed_to_one_of_many_who_ask_at_once() {
    let data = temp();
    let server = quiet(&data);
    let workers: Vec<Worker> =
        (0..8).map(|n| Worker::register(&server, &format!("w{n}"), &["a"], 100)).collect();
    let mut caller = Caller::new(&server);
    let threads: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            thread::spawn(move || {
                let mut done = Vec::new();
                loop {
                    let task = worker.take();
                    if task["payload"]["stop"] == true {
                        worker.complete(&task, json!(1));
                        return done;
                    }
                    done.push(task["task_id"].as_str().expect("text").to_owned());
                    worker.complete(&task, json!(1));
                }
            })
        })
        .collect();
    for n in 0..100 {
        caller.submit(&format!("t{n}"), "a", json!({}));
    }
    for n in 0..8 {
        caller.submit(&format!("stop{n}"), "a", json!({"payload": {"stop": true}, "priority": 0}));
    }
    let done: Vec<String> =
        threads.into_iter().flat_map(|worker| worker.join().expect("a worker only works")).collect();
    assert_eq!(done.len(), 100);
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), 100);
    ended_well(server, &data);
}

#[test]
fn a_draining_worker_finishes_and_takes_nothing_new() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t1", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let task = worker.take();
    let told = caller.tell("worker_unregister", json!({"worker_id": "w"}));
    assert_eq!((&told["status"], &told["unregistered_at"]), (&json!("draining"), &Value::Null), "{told}");
    caller.submit("t2", "a", json!({}));
    assert!(worker.claim(5).is_empty());
    worker.complete(&task, json!(1));
    until("the worker has left", || {
        let told = caller.tell("worker_status", json!({"worker_id": "w"}));
        (told["status"] == "offline").then_some(())
    });
    assert_eq!(caller.task_stands("t1"), "succeeded");
    assert_eq!(caller.task_stands("t2"), "queued");
    ended_well(server, &data);
}

#[test]
fn a_worker_that_leaves_at_once_gives_back_what_it_has() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    let task = worker.take();
    let told = caller.tell("worker_unregister", json!({"worker_id": "w", "graceful": false}));
    assert_eq!((&told["status"], &told["abandoned_tasks"]), (&json!("offline"), &json!(1)), "{told}");
    worker.refused("task_complete", &task, json!({"output": 1}), "failed_precondition");
    Worker::register(&server, "other", &["a"], 5).does("t", json!(1));
    ended_well(server, &data);
}

#[test]
fn a_worker_that_is_not_heard_of_is_lost_and_welcome_again() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nlease_ms = 700\n");
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 5);
    worker.take();
    until("the worker is lost", || {
        let told = caller.tell("worker_status", json!({"worker_id": "w"}));
        (told["status"] == "offline").then_some(())
    });
    assert_eq!(caller.task_stands("t"), "queued");
    worker.does("t", json!(1));
    assert_eq!(caller.tell("worker_status", json!({"worker_id": "w"}))["status"], "idle");
    ended_well(server, &data);
}

#[test]
fn a_task_that_names_a_tool_is_run_by_the_node_and_its_call_is_on_record() {
    let data = temp();
    let upstream = Upstream::new(&["count"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    caller.submit("t", "tool:up_count", json!({"payload": {"n": 7}}));
    let task = caller.task_until("t", "succeeded");
    assert!(task["worker_id"].as_str().is_some_and(|id| id.starts_with("node/")), "{task}");
    assert_eq!(caller.output("t"), json!({"text": "call 1"}));
    assert_eq!(upstream.calls(), [r#"count {"n": 7}"#]);
    let events = record::events(data.path());
    let claim = history(data.path(), "t")[1].cid();
    let call = events
        .iter()
        .find(|event| matches!(event.body(), Some(Body::CallStarted(facts)) if facts.name == "up_count"));
    assert_eq!(call.and_then(|call| call.fields().cause), Some(claim), "the claim caused the call");
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "tool:nobody_has_this", "payload": {}}),
        "invalid_argument",
    );
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "tool:tools_get_schema", "payload": {"tol": 1}}),
        "invalid_argument",
    );
    caller.refused(
        "task_submit",
        json!({"task_id": "u", "task_type": "wait:time", "payload": {}}),
        "invalid_argument",
    );
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
fn what_the_nodes_own_executor_held_when_it_died_is_void_at_once() {
    let data = temp();
    let once = r#"{"name":"wait_once","inputSchema":{"type":"object"}}"#;
    let again =
        r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&[once, again]);
    let config = upstream.table("up", "");
    let server = serve(data.path(), &config);
    let mut caller = Caller::new(&server);
    for tool in ["wait_once", "wait_again"] {
        caller.submit(tool, &format!("tool:up_{tool}"), json!({"payload": {}}));
        upstream.reached(tool, 1);
    }
    server.kill();
    upstream.write("go", "");
    let since = Instant::now();
    let server = serve(data.path(), &config);
    let mut caller = Caller::new(&server);
    let failed = caller.task_until("wait_once", "failed");
    assert_eq!(failed["error"]["code"], "interrupted", "{failed}");
    caller.task_until("wait_again", "succeeded");
    assert!(since.elapsed() < Duration::from_secs(20), "no lease of 30 s is waited for");
    assert_eq!(upstream.calls().iter().filter(|call| call.starts_with("wait_once")).count(), 1);
    assert_eq!(upstream.calls().iter().filter(|call| call.starts_with("wait_again")).count(), 2);
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

/// What a task looks like, without when it was asked.
fn shown(caller: &mut Caller, id: &str) -> Value {
    let mut task = caller.task(id);
    task["seq"] = Value::Null;
    task
}

#[test]
fn a_task_can_be_seen_as_it_stood_after_any_event() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    let mut worker = Worker::register(&server, "w", &["a"], 10);
    worker.does("t", json!(1));
    let seen: Vec<String> = history(data.path(), "t")
        .iter()
        .map(|event| {
            let asked = json!({"task_id": "t", "as_of_seq": event.fields().seq});
            caller.tell("task_status", asked)["status"].as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(seen, ["queued", "running", "succeeded"]);
    caller.refused("task_status", json!({"task_id": "t", "as_of_seq": 0}), "not_found");
    ended_well(server, &data);
}

#[test]
fn pages_of_a_list_hold_every_task_once_while_others_write() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let submitted: Vec<String> = (0..60).map(|n| format!("t{n:02}")).collect();
    for id in &submitted {
        caller.submit(id, "a", json!({}));
    }
    let mut worker = Worker::register(&server, "w", &["a"], 100);
    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    for n in 0.. {
        let mut asked = json!({"limit": 7});
        if !cursor.is_null() {
            asked["cursor"] = cursor;
        }
        let page = caller.tell("task_list", asked);
        seen.extend(ids(&page["tasks"]));
        caller.submit(&format!("later{n}"), "a", json!({"priority": 100}));
        for task in worker.claim(3) {
            worker.complete(&task, json!(1));
        }
        cursor = page["next_cursor"].clone();
        if page["has_more"] == false {
            break;
        }
    }
    let mut old: Vec<String> = seen.iter().filter(|id| id.starts_with('t')).cloned().collect();
    old.sort();
    assert_eq!(old, submitted, "each once");
    ended_well(server, &data);
}

#[test]
fn a_schedule_fires_each_tick_once_over_a_kill_too_and_stops_when_deleted() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let schedule = json!({"schedule_id": "s", "every_ms": 1000, "catch_up": true,
                          "task": {"task_type": "a", "payload": {"n": 1}}});
    assert_eq!(caller.tell("schedule_create", schedule.clone())["replayed"], false);
    assert_eq!(caller.tell("schedule_create", schedule)["replayed"], true);
    let listed = caller.tell("schedule_list", json!({}))["schedules"][0].clone();
    assert_eq!((&listed["missed_count"], &listed["skipped_count"]), (&json!(0), &json!(0)), "{listed}");
    let fired = || {
        let ticks = record::events(data.path()).into_iter().filter_map(|event| match event.body() {
            Some(Body::ScheduleFired(facts)) => Some(facts.at_ms),
            _ => None,
        });
        ticks.collect::<Vec<u64>>()
    };
    until("the first tick", || (!fired().is_empty()).then_some(()));
    server.kill();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    until("the third tick", || (fired().len() >= 3).then_some(()));
    caller.tell("schedule_delete", json!({"schedule_id": "s"}));
    let ticks = fired();
    assert!(ticks.windows(2).all(|two| two[1] - two[0] == 1000), "{ticks:?}");
    let tasks = caller.tell("task_list", json!({}));
    assert_eq!(tasks["total_count"].as_u64(), Some(ticks.len() as u64), "{tasks}");
    assert!(
        ids(&caller.tell("schedule_list", json!({}))["schedules"]
            .as_array()
            .map_or(json!([]), |list| json!(list)))
        .is_empty()
    );
    for bad in [json!({"cron": "61 * * * *"}), json!({}), json!({"every_ms": 1000, "cron": "* * * * *"})] {
        let mut asked = json!({"schedule_id": "bad", "task": {"task_type": "a", "payload": {}}});
        crate::work::put(&mut asked, bad);
        caller.refused("schedule_create", asked, "invalid_argument");
    }
    ended_well(server, &data);
}

#[test]
fn a_schedule_counts_what_it_missed_and_may_make_runs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let steps = json!([{"step_id": "s", "action": "tools_list_categories"}]);
    caller.tell(
        "schedule_create",
        json!({"schedule_id": "runs", "every_ms": 1000, "catch_up": false,
                                          "workflow": {"name": "tick", "steps": steps}}),
    );
    let fired = |data: &tempfile::TempDir| {
        let ticks = record::events(data.path()).into_iter().filter_map(|event| match event.body() {
            Some(Body::ScheduleFired(facts)) => Some((facts.at_ms, facts.missed)),
            _ => None,
        });
        ticks.collect::<Vec<(u64, u64)>>()
    };
    until("the first tick", || (!fired(&data).is_empty()).then_some(()));
    server.kill();
    let down = Instant::now();
    until("two ticks to be missed", || (down.elapsed() > Duration::from_millis(2_300)).then_some(()));
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    until("a tick after that", || (fired(&data).iter().any(|(_, missed)| *missed > 0)).then_some(()));
    caller.tell("schedule_delete", json!({"schedule_id": "runs"}));
    let ticks = fired(&data);
    for two in ticks.windows(2) {
        assert_eq!(two[1].0 - two[0].0, 1000 * (1 + two[1].1), "{ticks:?}");
    }
    let runs = caller.tell("workflow_list", json!({}));
    assert_eq!(runs["total_count"].as_u64(), Some(ticks.len() as u64), "{runs}");
    until("the end of all runs", || {
        let ended = caller.tell("workflow_list", json!({"status_filter": "succeeded"}));
        (ended["total_count"] == runs["total_count"]).then_some(())
    });
    ended_well(server, &data);
}

#[test]
fn a_task_whose_tool_is_gone_waits_until_it_is_offered_again() {
    let data = temp();
    let upstream = Upstream::new(&["count"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    caller.tell("queue_pause", json!({}));
    caller.submit("t", "tool:up_count", json!({"payload": {}}));
    assert!(server.stop().success());
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.tell("queue_resume", json!({}));
    caller.submit("other", "tool:tools_list_categories", json!({"payload": {}}));
    caller.task_until("other", "succeeded");
    assert_eq!(caller.task_stands("t"), "queued");
    server.kill();
    let server = serve(data.path(), &upstream.table("up", ""));
    Caller::new(&server).task_until("t", "succeeded");
    ended_well(server, &data);
}

#[test]
fn a_claim_whose_answer_was_lost_is_answered_again_by_its_key() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.submit("t", "a", json!({}));
    Worker::register(&server, "w", &["a"], 5);
    let claim = || keyed("task_claim", &json!({"worker_id": "w"}), "claim-1");
    let first = ask(&server, "tools/call", claim());
    server.kill();
    let server = quiet(&data);
    let again = ask(&server, "tools/call", claim());
    let tasks = |answer: &Value| answer["result"]["structuredContent"]["tasks"].clone();
    assert_eq!(tasks(&again), tasks(&first));
    assert_eq!(ids(&tasks(&again)), ["t"]);
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

#[test]
fn a_stop_leaves_what_the_node_ran_to_the_next_start() {
    let data = temp();
    let again =
        r#"{"name":"wait_again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&["wait_once", again]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    for tool in ["wait_once", "wait_again"] {
        caller.submit(tool, &format!("tool:up_{tool}"), json!({"payload": {}}));
        upstream.reached(tool, 1);
    }
    assert!(server.stop().success());
    upstream.write("go", "");
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    let failed = caller.task_until("wait_once", "failed");
    assert_eq!(failed["error"]["code"], "interrupted", "{failed}");
    caller.task_until("wait_again", "succeeded");
    ended_well(server, &data);
}
