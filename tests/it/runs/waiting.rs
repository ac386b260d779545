//! When a step starts: dependencies, conditions, signals, timers, deadlines and bounds.

use super::*;

#[test]
fn a_step_starts_as_soon_as_its_own_dependencies_are_done() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([
        after("slow", &[]),
        after("fast", &[]),
        after("next", &["fast"]),
        after("last", &["slow", "next"])
    ]);
    caller.run("r", steps, json!({}));
    let first = worker.claim(9);
    assert_eq!(ids(&json!(first)), ["r#slow", "r#fast"]);
    let said = worker.said(&first[1], json!({"output": 1, "claim_next": true}));
    let next = worker.caller.tell("task_complete", said)["tasks"].clone();
    assert_eq!(ids(&next), ["r#next"], "what a completion frees is in the line at once");
    worker.complete(&next[0], json!(1));
    assert!(worker.claim(9).is_empty());
    worker.complete(&first[0], json!(1));
    worker.does("r#last", json!(1));
    caller.run_until("r", "succeeded");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn conditions_skip_steps_and_what_follows_a_skipped_step_still_runs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let when =
        |id: &str, condition: Value| step(id, "worker:a", json!({"depends_on": ["seen"], "when": condition}));
    let n = |rule: &str, value: Value| json!({"$from": "seen", "pointer": "/n", rule: value});
    let steps = json!([
        after("seen", &[]),
        when("yes", n("equals", json!(3))),
        when("no", n("not_equals", json!(3))),
        when("more", n("greater_than", json!(2))),
        when("less", n("less_than", json!(3))),
        when("within", n("in", json!([1, 3]))),
        when("there", n("exists", json!(false))),
        when("both", json!({"all": [n("equals", json!(3)), {"not": n("equals", json!(4))}]})),
        when("either", json!({"any": [n("equals", json!(4)), n("equals", json!(5))]})),
        after("end", &["yes", "no"]),
        step(
            "reads",
            "worker:a",
            json!({"depends_on": ["no"], "inputs": {"x": {"$from": "no", "pointer": "/x", "default": 1}}})
        ),
    ]);
    caller.run("r", steps, json!({}));
    worker.does("r#seen", json!({"n": 3}));
    let tasks = worker.claim(9);
    let mut started = ids(&json!(tasks));
    started.sort();
    assert_eq!(started, ["r#both", "r#more", "r#reads", "r#within", "r#yes"]);
    for task in &tasks {
        worker.complete(task, json!({}));
    }
    worker.does("r#end", json!(1));
    let ended = caller.run_until("r", "succeeded");
    for id in ["no", "less", "there", "either"] {
        let step = stand(&ended, id);
        assert_eq!((&step["status"], &step["reason"]), (&json!("skipped"), &json!("condition")), "{step}");
    }
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn steps_are_tried_again_and_timed_out_by_their_own_rules() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let retry = json!({"max_retries": 1, "backoff_ms": 10});
    let steps = json!([
        step("again", "worker:a", json!({"retry": retry})),
        step("slow", "worker:a", json!({"timeout_ms": 100, "depends_on": ["again"]})),
    ]);
    caller.run("r", steps, json!({}));
    let task = worker.take();
    worker.fail(&task, "boom", true);
    let task = worker.does("r#again", json!(1));
    assert_eq!(task["attempt"], 2);
    assert_eq!(worker.take()["task_id"], "r#slow");
    let ended = caller.run_until("r", "failed");
    assert_eq!(stand(&ended, "slow")["status"], "timed_out", "{ended}");
    caller.refused("task_retry", json!({"task_id": "r#slow"}), "failed_precondition");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn no_more_steps_run_at_once_than_the_run_allows() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps: Vec<Value> = (0..5).map(|n| after(&format!("s{n}"), &[])).collect();
    caller.run("r", json!(steps), json!({"max_parallel_steps": 2}));
    let mut done = Vec::new();
    let mut tasks = worker.claim(9);
    while !tasks.is_empty() {
        assert!(tasks.len() <= 2, "{tasks:?}");
        let first = tasks.remove(0);
        worker.complete(&first, json!(1));
        done.push(first["task_id"].as_str().expect("text").to_owned());
        tasks.extend(worker.claim(9));
    }
    assert_eq!(done, ["r#s0", "r#s1", "r#s2", "r#s3", "r#s4"]);
    caller.run_until("r", "succeeded");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn a_run_past_its_deadline_is_timed_out_and_starts_nothing_more() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    caller.run("r", json!([after("one", &[]), after("two", &["one"])]), json!({"deadline_ms": 1500}));
    let task = worker.take();
    let ended = caller.run_until("r", "timed_out");
    assert_eq!(stand(&ended, "two")["status"], "cancelled", "{ended}");
    worker.caller.try_call("task_complete", &worker.said(&task, json!({"output": 1}))).expect("an answer");
    assert!(worker.claim(9).is_empty());
    ended_well(server, &data);
}

#[test]
fn a_run_waits_for_those_it_depends_on_and_fails_with_them() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = || json!([after("s", &[])]);
    caller.run("first", steps(), json!({}));
    caller.run("bad", steps(), json!({}));
    assert_eq!(caller.run("waits", steps(), json!({"dependencies": ["first"]}))["status"], "waiting");
    caller.run("doomed", steps(), json!({"dependencies": ["first", "bad"]}));
    let tasks = worker.claim(9);
    assert_eq!(ids(&json!(tasks)), ["first#s", "bad#s"]);
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    worker.complete(&tasks[0], json!(1));
    worker.does("waits#s", json!(1));
    worker.fail(&tasks[1], "boom", false);
    caller.run_until("waits", "succeeded");
    let doomed = caller.run_until("doomed", "failed");
    assert_eq!(doomed["failure"]["reason"], "dependency_failed", "{doomed}");
    caller.run("late", steps(), json!({"dependencies": ["first", "waits"]}));
    worker.does("late#s", json!(1));
    ended_well(server, &data);
}

#[test]
fn a_step_waits_for_its_signal_before_or_after_it_comes_over_a_kill_too() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let steps = |timeout: Value| {
        let mut inputs = json!({"signal": "approved"});
        put(&mut inputs, timeout);
        json!([
            step("wait", "wait:signal", json!({"inputs": inputs})),
            step("then", "worker:a", json!({"depends_on": ["wait"], "inputs": {"by": from("wait", "/by")}})),
        ])
    };
    let early = json!([
        after("first", &[]),
        step("wait", "wait:signal", json!({"depends_on": ["first"], "inputs": {"signal": "approved"}})),
        step("then", "worker:a", json!({"depends_on": ["wait"], "inputs": {"by": from("wait", "/by")}})),
    ]);
    caller.run("waits", steps(json!({})), json!({}));
    caller.run("early", early, json!({}));
    caller.run("never", steps(json!({"timeout_ms": 100})), json!({}));
    let signal =
        |run: &str, by: &str| json!({"workflow_id": run, "signal": "approved", "payload": {"by": by}});
    caller.tell("workflow_signal", signal("early", "ann"));
    let other = json!({"workflow_id": "waits", "signal": "other"});
    let error = caller.refused("workflow_signal", other, "failed_precondition");
    assert!(error["message"].as_str().is_some_and(|said| said.contains("only for `approved`")), "{error}");
    assert_eq!(replays(&mut caller, "waits")["complete"], false);
    assert_eq!(stand(&caller.run_status("waits"), "wait")["status"], "running");
    server.kill();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    worker.does("early#first", json!(1));
    let then = worker.does("early#then", json!(1));
    assert_eq!(then["payload"], json!({"by": "ann"}));
    assert_eq!(stand(&caller.run_status("waits"), "wait")["status"], "running");
    caller.tell("workflow_signal", signal("waits", "bob"));
    let then = worker.does("waits#then", json!(1));
    assert_eq!(then["payload"], json!({"by": "bob"}));
    let never = caller.run_until("never", "failed");
    assert_eq!(stand(&never, "wait")["status"], "timed_out", "{never}");
    for run in ["waits", "early"] {
        caller.run_until(run, "succeeded");
        replays(&mut caller, run);
        assert_eq!(replays(&mut caller, run)["complete"], true);
        caller.refused("workflow_signal", signal(run, "late"), "failed_precondition");
    }
    replays(&mut caller, "never");
    ended_well(server, &data);
}

#[test]
fn a_timer_ends_when_its_time_has_come_though_the_node_was_down() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300);
    let steps = json!([
        step("ms", "wait:time", json!({"inputs": {"ms": 300}})),
        step("until", "wait:time", json!({"inputs": {"until": soon.to_string()}})),
        step("long", "wait:time", json!({"inputs": {"ms": 1500}})),
        step("then", "tools_list_categories", json!({"depends_on": ["ms", "until", "long"]})),
    ]);
    caller.run("r", steps, json!({}));
    server.kill();
    let down = std::time::Instant::now();
    until("the short timers' time", || (down.elapsed() > Duration::from_millis(350)).then_some(()));
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    caller.step_until("r", "ms", "succeeded");
    caller.step_until("r", "until", "succeeded");
    caller.run_until("r", "succeeded");
    replays(&mut caller, "r");
    let events = ended_well(server, &data);
    let at_ms = |kind: &str, task: &str| {
        let found = events
            .iter()
            .find(|event| record::kind(event) == kind && event.fields().subject == format!("task/{task}"));
        found.map(|event| event.fields().at_ms()).expect("it happened")
    };
    let waited = at_ms("task.succeeded", "r#long") - at_ms("task.submitted", "r#long");
    assert!((1500..5000).contains(&waited), "{waited} ms");
}
