//! The order of the line: priorities, keys and times.

use super::*;

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
