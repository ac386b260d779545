//! Workers: claims, leases, fences and leaving.

use super::*;

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
