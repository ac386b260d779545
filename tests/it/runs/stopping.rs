//! Cancelling, compensation, and steps that a crash cut off.

use super::*;

#[test]
fn what_succeeded_is_taken_back_in_reverse_order_when_a_run_fails() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["do", "undo"], 9);
    let booked = |id: &str, after: &[&str]| {
        let undo = json!({"action": "worker:undo", "inputs": {"what": from(id, "/booking")}});
        step(id, "worker:do", json!({"depends_on": after, "compensate": undo}))
    };
    let steps = json!([
        booked("flight", &[]),
        booked("hotel", &["flight"]),
        booked("car", &["flight"]),
        step("pay", "worker:do", json!({"depends_on": ["hotel", "car"]})),
        step("mail", "worker:do", json!({"depends_on": ["pay"]})),
    ]);
    caller.run("trip", steps, json!({}));
    worker.does("trip#flight", json!({"booking": "f"}));
    let both = worker.claim(9);
    assert_eq!(ids(&json!(both)), ["trip#hotel", "trip#car"]);
    worker.complete(&both[1], json!({"booking": "c"}));
    worker.complete(&both[0], json!({"booking": "h"}));
    let pay = worker.take();
    worker.fail(&pay, "declined", false);
    for (id, what) in [("trip#hotel#undo", "h"), ("trip#car#undo", "c"), ("trip#flight#undo", "f")] {
        let undo = worker.claim(9);
        assert_eq!(ids(&json!(undo)), [id], "one at a time");
        assert_eq!(undo[0]["payload"], json!({"what": what}));
        assert_eq!(caller.run_status("trip")["status"], "running");
        worker.complete(&undo[0], json!({}));
    }
    let ended = caller.run_until("trip", "failed");
    assert_eq!(ended["failure"]["step_id"], "pay", "{ended}");
    assert_eq!(stand(&ended, "mail")["status"], "skipped");
    for (step, taken_back) in [("flight", json!(true)), ("car", json!(true)), ("pay", Value::Null)] {
        assert_eq!(stand(&ended, step)["compensated"], taken_back, "{ended}");
    }
    assert!(worker.claim(9).is_empty());
    replays(&mut caller, "trip");
    ended_well(server, &data);
}

#[test]
fn once_a_cancel_is_answered_no_step_starts_whatever_crashes() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = || {
        json!([
            after("one", &[]),
            after("waits", &["one"]),
            step("timer", "wait:time", json!({"inputs": {"ms": 1000}})),
            after("later", &["timer"]),
            step("signal", "wait:signal", json!({"inputs": {"signal": "go"}})),
            after("signalled", &["signal"]),
        ])
    };
    caller.run("soft", steps(), json!({}));
    caller.run("hard", steps(), json!({}));
    let tasks = worker.claim(2);
    assert_eq!(ids(&json!(tasks)), ["soft#one", "hard#one"]);
    caller.tell("workflow_cancel", json!({"workflow_id": "soft", "reason": "enough"}));
    let told = caller.tell("workflow_cancel", json!({"workflow_id": "hard", "force": true}));
    assert!(told["cancelled_steps"].as_u64() >= Some(1), "{told}");
    let at = record::events(data.path()).len();
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    worker.complete(&tasks[0], json!(1));
    worker.refused("task_complete", &tasks[1], json!({"output": 1}), "conflict");
    for run in ["soft", "hard"] {
        caller.refused("workflow_signal", json!({"workflow_id": run, "signal": "go"}), "failed_precondition");
        assert_eq!(caller.run_status(run)["status"], "cancelled");
    }
    assert_eq!(stand(&caller.run_status("soft"), "one")["status"], "succeeded", "what ran may finish");
    assert_eq!(stand(&caller.run_status("hard"), "one")["status"], "cancelled");
    assert!(worker.claim(9).is_empty());
    let events = ended_well(server, &data);
    assert!(claimed(&events[at..]).is_empty());
    let submitted = events[at..].iter().filter(|event| record::kind(event) == "task.submitted").count();
    assert_eq!(submitted, 0);
}

#[test]
fn a_step_that_ran_when_its_run_was_cancelled_is_not_tried_again() {
    let data = temp();
    let server = serve(data.path(), "[tasks]\nlease_ms = 3000\n");
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let retry = json!({"max_retries": 5, "backoff_ms": 0});
    let steps = json!([
        step("fails", "worker:a", json!({"retry": retry})),
        step("silent", "worker:a", json!({"retry": retry}))
    ]);
    let mut begin = |run: &str| {
        caller.run(run, steps.clone(), json!({}));
        let tasks = worker.claim(9);
        caller.tell("workflow_cancel", json!({"workflow_id": run}));
        tasks
    };
    let before = begin("before");
    let after = begin("after");
    worker.fail(&before[0], "boom", true);
    server.kill();
    let server =
        Server::start(data.path(), &["--config", data.path().join("test.toml").to_str().expect("a text")]);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    worker.fail(&after[0], "boom", true);
    for task in ["before#fails", "before#silent", "after#fails", "after#silent"] {
        caller.task_until(task, "cancelled");
    }
    assert!(worker.claim(9).is_empty());
    let events = ended_well(server, &data);
    assert_eq!(claimed(&events).len(), 4, "each once");
}

#[test]
fn a_step_the_nodes_executor_held_when_it_died_runs_again_only_where_it_may() {
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let config = configure(data.path(), &upstream.table("up", ""));
    let server = Server::start(data.path(), &["--config", &config]);
    let mut caller = Caller::new(&server);
    caller.run("once", json!([step("s", "up_wait", json!({"inputs": {"of": "once"}}))]), json!({}));
    let allowed = json!({"inputs": {"of": "again"}, "repeatable": true});
    caller.run("again", json!([step("s", "up_wait", allowed)]), json!({}));
    upstream.reached("wait", 2);
    server.kill();
    upstream.write("go", "");
    let server = Server::start(data.path(), &["--config", &config]);
    let mut caller = Caller::new(&server);
    let failed = caller.run_until("once", "failed");
    let error = stand(&failed, "s")["error"].clone();
    assert_eq!(error["code"], "interrupted", "{failed}");
    caller.run_until("again", "succeeded");
    let calls = upstream.calls();
    let count = |of: &str| calls.iter().filter(|call| call.contains(of)).count();
    assert_eq!((count("once"), count("again")), (1, 2), "{calls:?}");
    assert_eq!(kinds(data.path(), "once#s").last().map(String::as_str), Some("task.interrupted"));
    replays(&mut caller, "once");
    replays(&mut caller, "again");
    let events = ended_well(server, &data);
    let parts = events.iter().filter(
        |event| matches!(event.body(), Some(Body::TaskSubmitted(facts)) if facts.part == Part::Whole),
    );
    assert_eq!(parts.count(), 2);
    fs::remove_file(&config).expect("it was written");
}

#[test]
fn cancelling_the_task_of_a_step_ends_the_step_and_fails_its_run() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([
        after("ran", &[]),
        step("timer", "wait:time", json!({"inputs": {"ms": 600_000}})),
        after("later", &["timer"]),
    ]);
    caller.run("r", steps, json!({}));
    worker.does("r#ran", json!(1));
    caller.tell("queue_clear", json!({"confirm": true}));
    assert_eq!(caller.task_stands("r#timer"), "running", "steps are not cleared from under their run");
    caller.tell("task_cancel", json!({"task_id": "r#timer"}));
    let ended = caller.run_until("r", "failed");
    assert_eq!(stand(&ended, "timer")["status"], "cancelled", "{ended}");
    assert_eq!(stand(&ended, "later")["status"], "skipped", "{ended}");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn a_cancel_stops_what_is_being_taken_back() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a", "undo"], 9);
    let undo = json!({"compensate": {"action": "worker:undo"}});
    let booked = |id: &str, after: &[&str]| {
        let mut step = step(id, "worker:a", undo.clone());
        put(&mut step, json!({"depends_on": after}));
        step
    };
    caller.run("r", json!([booked("one", &[]), booked("two", &["one"]), after("bad", &["two"])]), json!({}));
    worker.does("r#one", json!(1));
    worker.does("r#two", json!(2));
    let bad = worker.take();
    worker.fail(&bad, "boom", false);
    worker.does("r#two#undo", json!({}));
    let told = caller.tell("workflow_cancel", json!({"workflow_id": "r"}));
    assert_eq!(told["status"], "cancelled", "{told}");
    assert!(worker.claim(9).is_empty());
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn a_run_that_was_taken_back_goes_on_by_doing_it_all_again() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a", "undo"], 9);
    let booked = step(
        "book",
        "worker:a",
        json!({"compensate": {"action": "worker:undo", "inputs": {"b": from("book", "/b")}}}),
    );
    caller.run("r", json!([after("kept", &[]), booked, after("pay", &["book", "kept"])]), json!({}));
    worker.does("r#kept", json!(1));
    worker.does("r#book", json!({"b": 1}));
    let pay = worker.take();
    worker.fail(&pay, "declined", false);
    assert_eq!(worker.does("r#book#undo", json!({}))["payload"], json!({"b": 1}));
    caller.run_until("r", "failed");
    let told = caller.tell("workflow_reschedule", json!({"workflow_id": "r"}));
    assert_eq!(told["rerun_steps"], json!(["book", "pay"]), "{told}");
    worker.does("r#book", json!({"b": 2}));
    let pay = worker.take();
    worker.fail(&pay, "declined", false);
    assert_eq!(worker.does("r#book#undo", json!({}))["payload"], json!({"b": 2}), "what was booked last");
    caller.run_until("r", "failed");
    caller.tell("workflow_reschedule", json!({"workflow_id": "r"}));
    worker.does("r#book", json!({"b": 3}));
    worker.does("r#pay", json!(1));
    caller.run_until("r", "succeeded");
    replays(&mut caller, "r");
    ended_well(server, &data);
}
