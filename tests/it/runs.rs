//! Workflows at the door: what flows between steps, what may stop them, and that what happened can be told again.

use std::{collections::BTreeSet, fs, time::Duration};

use cairn::event::{Body, Event, work::Part};
use serde_json::{Value, json};

use crate::{
    harness::{Server, temp},
    record::{self, until},
    upstream::{Upstream, configure, serve},
    work::{Caller, Worker, ids, kinds, put, stand},
};

fn quiet(data: &tempfile::TempDir) -> Server {
    Server::start(data.path(), &[])
}

fn ended_well(server: Server, data: &tempfile::TempDir) -> Vec<Event> {
    assert!(server.stop().success());
    let events = record::check(data.path());
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
    events
}

/// A step; `more` are further fields.
fn step(id: &str, action: &str, more: Value) -> Value {
    let mut step = json!({"step_id": id, "action": action});
    put(&mut step, more);
    step
}

/// A step of a worker that follows others.
fn after(id: &str, depends_on: &[&str]) -> Value {
    step(id, "worker:a", json!({"depends_on": depends_on}))
}

fn from(step: &str, pointer: &str) -> Value {
    json!({"$from": step, "pointer": pointer})
}

/// Runs the replay of `mode=verify` on a run, which must match in every step.
fn replays(caller: &mut Caller, run: &str) -> Value {
    let told = caller.tell("workflow_replay", json!({"workflow_id": run}));
    assert_eq!(told["matched"], true, "{told}");
    assert_eq!(told["first_divergence"], Value::Null, "{told}");
    told
}

/// The tasks of steps in the order in which they were claimed.
fn claimed(events: &[Event]) -> Vec<String> {
    let claims = events.iter().filter(|event| record::kind(event) == "task.claimed");
    claims.filter_map(|event| event.fields().subject.strip_prefix("task/").map(str::to_owned)).collect()
}

#[test]
fn values_flow_from_tools_and_workers_into_later_steps_and_the_result() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["count"], 5);
    let steps = json!([
        step("names", "tools_list_categories", json!({"inputs": {"include_count": true}})),
        step(
            "count",
            "worker:count",
            json!({"depends_on": ["names"], "inputs": {
            "all": from("names", "/categories"),
            "first": from("names", "/categories/0/name"),
            "none": {"$from": "names", "pointer": "/nothing", "default": [7]},
            "literal": {"kept": [1, 2.5, null]}}})
        ),
        step(
            "look",
            "tools_list_tools",
            json!({"depends_on": ["count"], "inputs": {
            "category": from("count", "/category"), "limit": 2}})
        ),
    ]);
    let submitted = caller.run("flow", steps.clone(), json!({"metadata": {"why": "test"}, "tags": ["x"]}));
    assert_eq!(submitted["replayed"], false, "{submitted}");
    let task = worker.take();
    let categories = task["payload"]["all"].as_array().expect("a list").clone();
    assert_eq!(task["payload"]["first"], categories[0]["name"], "{task}");
    assert_eq!(task["payload"]["none"], json!([7]));
    assert_eq!(task["payload"]["literal"], json!({"kept": [1, 2.5, null]}));
    assert_eq!((&task["workflow_id"], &task["step_id"]), (&json!("flow"), &json!("count")));
    worker.complete(&task, json!({"category": "tasks"}));
    let ended = caller.run_until("flow", "succeeded");
    assert_eq!(ended["progress"], 100, "{ended}");
    let result = caller.result("flow");
    let outputs = result["outputs"].as_object().expect("outputs");
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["names", "count", "look"]);
    assert_eq!(result["result"].as_object().map(|sinks| sinks.len()), Some(1), "{result}");
    let tools = result["result"]["look"]["tools"].as_array().expect("tools");
    assert!(tools.len() == 2 && tools.iter().all(|tool| tool["category"] == "tasks"), "{tools:?}");
    assert_eq!(
        caller.run("flow", steps, json!({"metadata": {"why": "test"}, "tags": ["x"]}))["replayed"],
        true
    );
    let other = json!({"workflow_id": "flow", "name": "flow", "steps": [after("s", &[])]});
    caller.refused("workflow_submit", other, "already_exists");
    let told = replays(&mut caller, "flow");
    assert_eq!(told["compared_steps"], 3, "{told}");
    let drawn = caller.tell("workflow_dependencies", json!({"workflow_id": "flow"}));
    assert_eq!(drawn["critical_path"], json!(["names", "count", "look"]), "{drawn}");
    ended_well(server, &data);
}

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
fn a_step_runs_for_every_element_of_a_list_and_gathers_in_order() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a", "each"], 9);
    let each = json!({"$from": "list", "pointer": "/items", "max": 3});
    let steps = json!([
        after("list", &[]),
        step(
            "each",
            "worker:each",
            json!({"depends_on": ["list"], "for_each": each, "inputs": {"n": {"$item": "/n"}, "whole": {"$item": ""}}})
        ),
        step("sum", "worker:a", json!({"depends_on": ["each"], "inputs": {"all": from("each", "/items")}})),
    ]);
    caller.run("r", steps.clone(), json!({}));
    worker.does("r#list", json!({"items": [{"n": 1}, {"n": 2}, {"n": 3}]}));
    let tasks = worker.claim(9);
    assert_eq!(ids(&json!(tasks)), ["r#each#0", "r#each#1", "r#each#2"]);
    assert_eq!(tasks[1]["payload"], json!({"n": 2, "whole": {"n": 2}}));
    for task in tasks.iter().rev() {
        worker.complete(task, json!({"of": task["payload"]["n"]}));
    }
    let sum = worker.take();
    assert_eq!(sum["payload"]["all"], json!([{"of": 1}, {"of": 2}, {"of": 3}]));
    worker.complete(&sum, json!(6));
    caller.run_until("r", "succeeded");
    replays(&mut caller, "r");

    caller.run("empty", steps.clone(), json!({}));
    worker.does("empty#list", json!({"items": []}));
    let sum = worker.take();
    assert_eq!((&sum["task_id"], &sum["payload"]["all"]), (&json!("empty#sum"), &json!([])));
    worker.complete(&sum, json!(0));
    caller.run_until("empty", "succeeded");

    for (id, items, code) in [
        ("over", json!([{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]), "resource_exhausted"),
        ("no-list", json!({"n": 1}), "failed_precondition"),
    ] {
        caller.run(id, steps.clone(), json!({}));
        worker.does(&format!("{id}#list"), json!({"items": items}));
        let ended = caller.run_until(id, "failed");
        assert_eq!(stand(&ended, "each")["error"]["code"], code, "{ended}");
        assert_eq!(stand(&ended, "sum")["status"], "skipped", "{ended}");
        replays(&mut caller, id);
    }
    ended_well(server, &data);
}

#[test]
fn a_value_that_is_not_there_fails_its_step_with_its_place() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([
        after("gives", &[]),
        step("reads", "worker:a", json!({"depends_on": ["gives"], "inputs": {"x": from("gives", "/a/b")}})),
        after("later", &["reads"]),
        after("apart", &["gives"]),
    ]);
    caller.run("r", steps, json!({}));
    worker.does("r#gives", json!({"a": {}}));
    worker.does("r#apart", json!(1));
    let ended = caller.run_until("r", "failed");
    let failed = stand(&ended, "reads");
    assert_eq!(failed["error"]["code"], "failed_precondition", "{failed}");
    let message = failed["error"]["message"].as_str().expect("a message");
    assert!(message.contains("gives") && message.contains("/a/b"), "{message}");
    let later = stand(&ended, "later");
    assert_eq!((&later["status"], &later["reason"]), (&json!("skipped"), &json!("upstream")), "{later}");
    assert_eq!(stand(&ended, "apart")["status"], "succeeded", "independent branches run on");
    assert_eq!(ended["failure"]["step_id"], "reads", "{ended}");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn an_output_over_the_bound_is_kept_but_not_read() {
    let data = temp();
    let server = serve(data.path(), "[server]\nmax_body_bytes = 8388608\n");
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([
        after("big", &[]),
        step("reads", "worker:a", json!({"depends_on": ["big"], "inputs": {"x": from("big", "/n")}})),
        after("apart", &["big"]),
    ]);
    caller.run("r", steps, json!({}));
    worker.does("r#big", json!({"n": 1, "text": "x".repeat(5 << 20)}));
    worker.does("r#apart", json!(1));
    let ended = caller.run_until("r", "failed");
    assert_eq!(stand(&ended, "reads")["error"]["code"], "resource_exhausted", "{ended}");
    assert_eq!(caller.output("r#big")["n"], 1);
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
        found.map(|event| event.fields().ts / 1000).expect("it happened")
    };
    let waited = at_ms("task.succeeded", "r#long") - at_ms("task.submitted", "r#long");
    assert!((1500..5000).contains(&waited), "{waited} ms");
}

#[test]
fn a_child_runs_as_a_run_of_its_own_and_gives_its_result_to_its_parent() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let child = json!({"name": "child", "steps": [
        step("in", "worker:a", json!({"inputs": {"given": from("first", "/n")}})),
        step("out", "worker:a", json!({"depends_on": ["in"], "inputs": {"x": from("in", "/x")}})),
    ]});
    let steps = json!([
        after("first", &[]),
        step("sub", "workflow:run", json!({"depends_on": ["first"], "inputs": child})),
        step("last", "worker:a", json!({"depends_on": ["sub"], "inputs": {"got": from("sub", "/out/y")}})),
    ]);
    caller.run("r", steps.clone(), json!({}));
    worker.does("r#first", json!({"n": 5}));
    let task = worker.does("r/sub#in", json!({"x": 6}));
    assert_eq!(task["payload"], json!({"given": 5}));
    assert_eq!(stand(&caller.run_status("r"), "sub")["status"], "running");
    worker.does("r/sub#out", json!({"y": 7}));
    let last = worker.does("r#last", json!(8));
    assert_eq!(last["payload"], json!({"got": 7}));
    caller.run_until("r", "succeeded");
    assert_eq!(caller.run_status("r/sub")["status"], "succeeded");
    replays(&mut caller, "r");
    replays(&mut caller, "r/sub");

    caller.run("fails", steps.clone(), json!({}));
    worker.does("fails#first", json!({"n": 5}));
    let task = worker.take();
    worker.fail(&task, "boom", false);
    let ended = caller.run_until("fails", "failed");
    assert_eq!(stand(&ended, "sub")["status"], "failed", "{ended}");
    replays(&mut caller, "fails");

    caller.run("stops", steps, json!({}));
    worker.does("stops#first", json!({"n": 5}));
    caller.tell("workflow_cancel", json!({"workflow_id": "stops"}));
    caller.run_until("stops/sub", "cancelled");
    assert!(worker.claim(9).is_empty(), "a cancel reaches the child");
    ended_well(server, &data);
}

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
fn a_fork_takes_what_was_paid_for_and_runs_the_rest_with_its_new_inputs() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([
        after("one", &[]),
        step("two", "worker:a", json!({"depends_on": ["one"], "inputs": {"n": from("one", "/n"), "k": 1}})),
        step("three", "worker:a", json!({"depends_on": ["two"], "inputs": {"m": from("two", "/m")}})),
        after("apart", &[]),
    ]);
    caller.run("old", steps, json!({}));
    let first = worker.claim(9);
    worker.complete(&first[0], json!({"n": 1}));
    worker.complete(&first[1], json!({"apart": true}));
    worker.does("old#two", json!({"m": 2}));
    worker.does("old#three", json!(3));
    caller.run_until("old", "succeeded");
    let before = caller.result("old")["outputs"].clone();
    let fork = json!({"workflow_id": "old", "new_workflow_id": "new", "from_step": "two",
                      "overrides": {"two": {"n": from("one", "/n"), "k": 2}}, "reason": "another k"});
    let told = caller.tell("workflow_fork", fork);
    assert_eq!(told["kept_steps"], json!(["one", "apart"]), "{told}");
    assert_eq!(told["rerun_steps"], json!(["two", "three"]), "{told}");
    let two = worker.does("new#two", json!({"m": 20}));
    assert_eq!(two["payload"], json!({"n": 1, "k": 2}));
    let three = worker.does("new#three", json!(30));
    assert_eq!(three["payload"], json!({"m": 20}));
    let ended = caller.run_until("new", "succeeded");
    let one = stand(&ended, "one");
    assert_eq!(one["reused"], true, "{ended}");
    let original = record::events(data.path())
        .into_iter()
        .find(|event| event.fields().subject == "task/old#one" && record::kind(event) == "task.succeeded");
    assert_eq!(one["reused_from"], json!(original.map(|event| event.cid().to_string())), "{ended}");
    assert_eq!(ended["origin"]["workflow_id"], "old", "{ended}");
    assert_eq!(caller.result("new")["outputs"]["one"], json!({"n": 1}));
    assert_eq!(caller.result("old")["outputs"], before, "the old history stays whole");
    let diff = caller.tell("workflow_diff", json!({"left": "old", "right": "new"}));
    assert_eq!(
        (&diff["matched"], &diff["first_divergence"]["step_id"]),
        (&json!(false), &json!("two")),
        "{diff}"
    );
    for run in ["old", "new"] {
        replays(&mut caller, run);
    }
    caller.refused(
        "workflow_fork",
        json!({"workflow_id": "old", "new_workflow_id": "x", "from_step": "four"}),
        "not_found",
    );
    caller.refused("workflow_fork", json!({"workflow_id": "none", "new_workflow_id": "x"}), "not_found");
    ended_well(server, &data);
}

#[test]
fn a_failed_run_goes_on_from_its_failed_steps_and_keeps_what_succeeded() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let steps = json!([after("one", &[]), after("two", &["one"]), after("three", &["two"])]);
    caller.run("r", steps, json!({}));
    worker.does("r#one", json!(1));
    let two = worker.take();
    worker.fail(&two, "boom", false);
    caller.run_until("r", "failed");
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    let told = caller.tell("workflow_reschedule", json!({"workflow_id": "r", "reason": "fixed"}));
    assert_eq!(told["rerun_steps"], json!(["two", "three"]), "{told}");
    worker.does("r#two", json!(2));
    worker.does("r#three", json!(3));
    caller.run_until("r", "succeeded");
    let tasks = claimed(&record::events(data.path()));
    assert_eq!(tasks, ["r#one", "r#two", "r#two", "r#three"]);
    caller.refused("workflow_reschedule", json!({"workflow_id": "r"}), "failed_precondition");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn a_read_only_step_takes_the_recorded_output_of_the_same_input_across_runs() {
    let data = temp();
    let read = r#"{"name":"read","inputSchema":{"type":"object"},"annotations":{"readOnlyHint":true}}"#;
    let upstream = Upstream::new(&[read, "write"]);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    let steps =
        |n: u64, reuse: bool| json!([step("s", "up_read", json!({"inputs": {"n": n}, "reuse": reuse}))]);
    let mut run = |id: &str, steps: Value| {
        caller.run(id, steps, json!({}));
        let ended = caller.run_until(id, "succeeded");
        (stand(&ended, "s")["reused"].clone(), caller.result(id)["outputs"]["s"].clone())
    };
    let (_, first) = run("one", steps(1, true));
    assert_eq!(run("two", steps(1, true)), (json!(true), first.clone()));
    assert_eq!(upstream.calls().len(), 1);
    assert_eq!(run("not-allowed", steps(1, false)).0, false);
    assert_eq!(run("other-input", steps(2, true)).0, false);
    assert_eq!(upstream.calls().len(), 3);
    let events = record::events(data.path());
    let ending = |task: &str| {
        let subject = format!("task/{task}");
        let found = events
            .iter()
            .find(|event| event.fields().subject == subject && record::kind(event) == "task.succeeded");
        found.expect("it succeeded").clone()
    };
    assert!(ending("two#s").fields().refs.contains(&ending("one#s").cid()), "it is linked to the original");
    replays(&mut caller, "two");
    let write = json!([step("s", "up_write", json!({"reuse": true}))]);
    let told = caller.refused(
        "workflow_submit",
        json!({"workflow_id": "w", "name": "w", "steps": write}),
        "invalid_argument",
    );
    assert_eq!(told["faults"][0]["place"], "/steps/0/reuse", "{told}");
    ended_well(server, &data);
}

#[test]
fn a_rerun_runs_what_may_be_repeated_takes_the_rest_from_the_record_and_tells_where_they_part() {
    let data = temp();
    let again = r#"{"name":"again","inputSchema":{"type":"object"},"annotations":{"idempotentHint":true}}"#;
    let upstream = Upstream::new(&[again, "once"]);
    upstream.write("again.result", r#"{"content": [], "structuredContent": {"v": 1}}"#);
    let server = serve(data.path(), &upstream.table("up", ""));
    let mut caller = Caller::new(&server);
    let steps = json!([
        step("once", "up_once", json!({})),
        step("again", "up_again", json!({"depends_on": ["once"], "inputs": {"t": from("once", "/text")}})),
        step("end", "up_once", json!({"depends_on": ["again"], "inputs": {"v": from("again", "/v")}})),
    ]);
    caller.run("r", steps, json!({}));
    caller.run_until("r", "succeeded");
    let rerun = json!({"workflow_id": "r", "mode": "rerun"});
    let same = caller.tell("workflow_replay", rerun.clone());
    assert_eq!(same["matched"], true, "{same}");
    let calls = || {
        upstream
            .calls()
            .iter()
            .map(|call| call.split(' ').next().unwrap_or("").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(calls(), ["once", "again", "once", "again"]);
    upstream.write("again.result", r#"{"content": [], "structuredContent": {"v": 2}}"#);
    let rerun = json!({"workflow_id": "r", "mode": "rerun", "include_steps": true});
    let differs = caller.tell("workflow_replay", rerun);
    assert_eq!(
        (&differs["matched"], &differs["first_divergence"]["step_id"]),
        (&json!(false), &json!("again")),
        "{differs}"
    );
    let (expected, actual) =
        (&differs["first_divergence"]["expected"], &differs["first_divergence"]["actual"]);
    assert!(expected.is_string() && actual.is_string() && expected != actual, "{differs}");
    let end = stand(&differs, "end");
    assert_eq!(
        end["verdict"], "input_differs",
        "taken from the record, though it would be asked for otherwise"
    );
    assert!(end["expected"].is_string() && end["actual"].is_string(), "{end}");
    assert_ne!(end["expected"], end["actual"], "{end}");
    let new = differs["run"].as_str().expect("the new run").to_owned();
    assert_eq!(calls().len(), 5, "`once` is not called again");
    assert_eq!(replays(&mut caller, &new)["compared_steps"], 3);
    assert_ne!(json!(new), same["run"]);
    assert_eq!(caller.run_status(&new)["origin"]["workflow_id"], "r");
    assert_eq!(replays(&mut caller, "r")["compared_steps"], 3, "the old run is as it was");
    ended_well(server, &data);
}

#[test]
fn a_run_can_be_seen_as_it_stood_after_any_event() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    caller.run("r", json!([after("one", &[]), after("two", &["one"])]), json!({}));
    worker.does("r#one", json!(1));
    worker.does("r#two", json!(2));
    caller.run_until("r", "succeeded");
    let mut seen = Vec::new();
    for event in record::events(data.path()) {
        let subject = &event.fields().subject;
        if !subject.starts_with("task/r#") && subject != "workflow/r" {
            continue;
        }
        let asked = json!({"workflow_id": "r", "as_of_seq": event.fields().seq});
        let run = caller.tell("workflow_status", asked);
        seen.push((run["status"].clone(), run["progress"].as_u64().expect("a number")));
    }
    assert!(seen.is_sorted_by_key(|(_, progress)| *progress), "{seen:?}");
    assert_eq!(seen.first(), Some(&(json!("submitted"), 0)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(json!("succeeded"), 100)), "{seen:?}");
    assert!(seen.contains(&(json!("running"), 50)), "{seen:?}");
    for (tool, field, id) in [
        ("workflow_status", "workflow_id", "r"),
        ("task_status", "task_id", "r#one"),
        ("worker_status", "worker_id", "w"),
    ] {
        let error = caller.refused(tool, json!({field: id, "as_of_seq": 1_000_000}), "invalid_argument");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains("past the head of the log, whose last event is "), "{error}");
    }
    ended_well(server, &data);
}

#[test]
fn a_bad_definition_is_refused_with_all_its_faults_and_their_places() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let places = |error: &Value| -> BTreeSet<String> {
        let faults = error["faults"].as_array().unwrap_or_else(|| panic!("no faults in {error}"));
        faults.iter().map(|fault| fault["place"].as_str().expect("a place").to_owned()).collect()
    };
    let steps = json!([
        after("a", &["c"]),
        after("b", &["a"]),
        after("c", &["b"]),
        after("self", &["self"]),
        after("twice", &[]),
        after("twice", &[]),
        after("lost", &["nobody"]),
        step("unknown", "no_such_tool", json!({})),
        step("literal", "tools_get_schema", json!({"inputs": {"tol": "x"}})),
        step("reads", "worker:a", json!({"inputs": {"x": from("apart", "/x")}})),
        after("apart", &[]),
        step("more", "worker:a", json!({"surprise": 1})),
    ]);
    let definition = json!({"workflow_id": "r", "name": "r", "steps": steps, "dependencies": ["none", "r"]});
    let error = caller.refused("workflow_submit", definition, "invalid_argument");
    let expected = [
        "/dependencies/0",
        "/dependencies/1",
        "/steps",
        "/steps/11/surprise",
        "/steps/3/depends_on/0",
        "/steps/5/step_id",
        "/steps/6/depends_on/0",
        "/steps/7/action",
        "/steps/8/inputs/tol",
        "/steps/8/inputs/tool",
        "/steps/9/inputs/x",
    ];
    let found = places(&error);
    for place in expected {
        assert!(found.contains(place), "{place} is not among {error}");
    }
    assert_eq!(found.len(), expected.len(), "{error}");
    let message = error["message"].as_str().expect("a message");

    assert!(message.contains("b -> c -> a -> b"), "the cycle is named in its order: {message}");

    // What the schema sees hides nothing of what the rules see, and is told once.
    let year_ms: u64 = 366 * 24 * 60 * 60 * 1_000;
    let definition = json!({"workflow_id": "r", "nmae": "r", "priority": 101, "reason": 7, "tags": ["t".repeat(65)],
    "deadline_ms": year_ms + 1, "steps": [
        7,
        step("slow", "worker:a", json!({"timeout_ms": year_ms + 1})),
        step("long", "worker:a", json!({"timeout_ms": year_ms})),
        step("sleep", "wait:time", json!({"inputs": {"ms": -1}})),
        step("literal", "tools_get_schema", json!({"inputs": {"tool": 7}})),
    ]});
    let error = caller.refused("workflow_submit", definition, "invalid_argument");
    let expected = [
        "/deadline_ms",
        "/name",
        "/nmae",
        "/priority",
        "/reason",
        "/steps/0",
        "/steps/1/timeout_ms",
        "/steps/3/inputs/ms",
        "/steps/4/inputs/tool",
        "/tags/0",
    ];
    assert_eq!(places(&error), expected.map(str::to_owned).into(), "{error}");
    assert_eq!(error["faults"].as_array().map(Vec::len), Some(expected.len()), "{error}");
    let message = error["message"].as_str().expect("a message");
    let said =
        ["has 10 faults: ", "(did you mean `name`?)", "steps[4].inputs.tool: ", "steps[1].timeout_ms: "];
    assert!(said.iter().all(|said| message.contains(said)), "{message}");
    assert!(!message.contains("/steps") && !message.contains("schema"), "{message}");

    let many: Vec<Value> = (0..10_001).map(|n| after(&format!("s{n}"), &[])).collect();
    for (steps, place) in [(json!([]), "/steps"), (json!(many), "/steps")] {
        let definition = json!({"workflow_id": "r", "name": "r", "steps": steps});
        let error = caller.refused("workflow_submit", definition, "invalid_argument");
        assert_eq!(places(&error), BTreeSet::from([place.to_owned()]), "{error}");
    }
    caller.refused("workflow_status", json!({"workflow_id": "r"}), "not_found");
    let events = ended_well(server, &data);
    assert!(!events.iter().any(|event| event.fields().subject.starts_with("workflow/")));
}

#[test]
fn the_longest_names_run_and_a_child_whose_name_would_be_longer_fails_its_step() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let long = |letter: &str, len: usize| letter.repeat(len);
    let tags: Vec<String> = (0..32).map(|n| format!("{}{n:02}", long("t", 62))).collect();
    let needed: Vec<String> = (0..32).map(|n| format!("{}{n:02}", long("n", 126))).collect();
    for id in &needed {
        caller.run(id, json!([after("s", &[])]), json!({}));
        worker.does(&format!("{id}#s"), json!(1));
    }
    let (run, first, sub) = (long("w", 128), long("f", 128), long("s", 128));
    let each = json!({"$from": first, "pointer": "/items"});
    let child = json!({"name": long("c", 128), "steps": [after(&long("x", 128), &[])]});
    let steps = json!([
        after(&first, &[]),
        step("each", "worker:a", json!({"depends_on": [first], "for_each": each})),
        step(&sub, "workflow:run", json!({"depends_on": [first], "inputs": child})),
    ]);
    caller.run(&run, steps, json!({"tags": tags, "dependencies": needed}));
    worker.does(&format!("{run}#{first}"), json!({"items": [1]}));
    worker.does(&format!("{run}#each#0"), json!(1));
    let ended = caller.run_until(&run, "failed");
    assert_eq!(stand(&ended, "each")["status"], "succeeded", "{ended}");
    assert_eq!(stand(&ended, &sub)["error"]["code"], "invalid_argument", "{ended}");
    replays(&mut caller, &run);
    ended_well(server, &data);
}

#[test]
fn children_of_children_run_until_their_names_are_too_long() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let name = "n".repeat(50);
    let mut steps = json!([step("end", "tools_list_categories", json!({}))]);
    for _ in 0..6 {
        steps = json!([step(&name, "workflow:run", json!({"inputs": {"name": "child", "steps": steps}}))]);
    }
    caller.run("r", steps, json!({}));
    let ended = caller.run_until("r", "failed");
    assert_eq!(stand(&ended, &name)["status"], "failed", "{ended}");
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn ten_thousand_steps_run_whether_wide_or_ten_thousand_deep() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let timer = |id: String, after: &[String]| {
        step(&id, "wait:time", json!({"inputs": {"ms": 0}, "depends_on": after}))
    };
    let wide: Vec<Value> = (0..10_000).map(|n| timer(format!("s{n}"), &[])).collect();
    let deep: Vec<Value> = (0..10_000u32)
        .map(|n| match n.checked_sub(1) {
            None => timer("s0".into(), &[]),
            Some(before) => timer(format!("s{n}"), &[format!("s{before}")]),
        })
        .collect();
    for (id, steps) in [("wide", wide), ("deep", deep)] {
        let since = std::time::Instant::now();
        caller.run(id, json!(steps), json!({}));
        let ended = until_within(Duration::from_secs(120), || {
            let asked = json!({"workflow_id": id, "include_steps": false});
            Some(caller.tell("workflow_status", asked)).filter(|run| run["end_time"].is_string())
        });
        assert_eq!((&ended["status"], &ended["progress"]), (&json!("succeeded"), &json!(100)), "{ended}");
        println!("{id}: {:?}", since.elapsed());
        let since = std::time::Instant::now();
        let asked = json!({"workflow_id": id, "include_steps": false});
        let told = caller.tell("workflow_replay", asked);
        assert_eq!((&told["matched"], &told["compared_steps"]), (&json!(true), &json!(10_000)), "{told}");
        println!("{id} replayed: {:?}", since.elapsed());
    }
    ended_well(server, &data);
}

/// Looks until `seen` gives something, for longer than other tests wait.
fn until_within<T>(within: Duration, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + within;
    loop {
        if let Some(seen) = seen() {
            return seen;
        }
        assert!(std::time::Instant::now() < deadline, "not within {within:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
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

#[test]
fn a_failed_child_goes_on_with_its_parent() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let child = json!({"name": "child", "steps": [after("in", &[]), after("out", &["in"])]});
    caller.run(
        "r",
        json!([step("sub", "workflow:run", json!({"inputs": child})), after("last", &["sub"])]),
        json!({}),
    );
    worker.does("r/sub#in", json!(1));
    let out = worker.take();
    worker.fail(&out, "boom", false);
    caller.run_until("r", "failed");
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    caller.tell("workflow_reschedule", json!({"workflow_id": "r"}));
    worker.does("r/sub#out", json!(2));
    worker.does("r#last", json!(3));
    caller.run_until("r", "succeeded");
    assert_eq!(caller.run_status("r/sub")["status"], "succeeded");
    replays(&mut caller, "r");
    replays(&mut caller, "r/sub");
    ended_well(server, &data);
}

#[test]
fn forks_of_forks_keep_gathered_lists_and_children_over_a_kill() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let child = json!({"name": "child", "steps": [after("in", &[])]});
    let steps = json!([
        after("list", &[]),
        step(
            "each",
            "worker:a",
            json!({"depends_on": ["list"], "for_each": {"$from": "list", "pointer": ""}, "inputs": {"n": {"$item": ""}}})
        ),
        step("sub", "workflow:run", json!({"depends_on": ["each"], "inputs": child})),
        step(
            "end",
            "worker:a",
            json!({"depends_on": ["sub"], "inputs": {"all": from("each", "/items"), "sub": from("sub", "/in"), "k": 1}})
        ),
    ]);
    caller.run("one", steps, json!({}));
    worker.does("one#list", json!([1, 2]));
    worker.does("one#each#0", json!(10));
    worker.does("one#each#1", json!(20));
    worker.does("one/sub#in", json!("s"));
    worker.does("one#end", json!(1));
    caller.run_until("one", "succeeded");
    for (old, new, k) in [("one", "two", 2), ("two", "three", 3)] {
        let inputs = json!({"all": from("each", "/items"), "sub": from("sub", "/in"), "k": k});
        let fork = json!({"workflow_id": old, "new_workflow_id": new, "overrides": {"end": inputs}});
        let told = caller.tell("workflow_fork", fork);
        assert_eq!(told["rerun_steps"], json!(["end"]), "{told}");
        if new == "three" {
            break;
        }
        let end = worker.does(&format!("{new}#end"), json!(k));
        assert_eq!(end["payload"], json!({"all": [10, 20], "sub": "s", "k": k}));
        caller.run_until(new, "succeeded");
    }
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    let end = worker.does("three#end", json!(3));
    assert_eq!(end["payload"], json!({"all": [10, 20], "sub": "s", "k": 3}));
    caller.run_until("three", "succeeded");
    for run in ["one", "two", "three"] {
        replays(&mut caller, run);
    }
    ended_well(server, &data);
}

#[test]
fn a_run_in_the_middle_of_a_list_goes_on_after_a_kill() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let mut worker = Worker::register(&server, "w", &["a"], 9);
    let each = json!({"depends_on": ["list"], "for_each": {"$from": "list", "pointer": ""}, "inputs": {"n": {"$item": ""}}});
    let steps = json!([after("list", &[]), step("each", "worker:a", each), after("end", &["each"])]);
    caller.run("r", steps, json!({"max_parallel_steps": 2}));
    worker.does("r#list", json!([0, 1, 2, 3, 4]));
    let tasks = worker.claim(9);
    assert_eq!(ids(&json!(tasks)), ["r#each#0", "r#each#1"]);
    worker.complete(&tasks[0], json!(0));
    server.kill();
    let server = quiet(&data);
    let (mut caller, mut worker) = (Caller::new(&server), worker.back(&server));
    worker.complete(&tasks[1], json!(1));
    for n in 2..5 {
        worker.does(&format!("r#each#{n}"), json!(n));
    }
    worker.does("r#end", json!(1));
    caller.run_until("r", "succeeded");
    assert_eq!(caller.result("r")["outputs"]["each"], json!({"items": [0, 1, 2, 3, 4]}));
    replays(&mut caller, "r");
    ended_well(server, &data);
}

#[test]
fn new_inputs_of_a_fork_are_checked_like_a_definition_and_all_their_faults_told() {
    let data = temp();
    let server = quiet(&data);
    let mut caller = Caller::new(&server);
    let steps = json!([
        after("one", &[]),
        after("two", &["one"]),
        step("look", "tools_list_tools", json!({"depends_on": ["two"]})),
    ]);
    caller.run("old", steps, json!({}));
    let fork = json!({"workflow_id": "old", "new_workflow_id": "new", "overrides": {
        "one": {"later": from("two", "/n"), "self": from("one", "/n")},
        "two": {"nobody": [from("on", "/n")], "fine": from("one", "/n")},
        "look": {"limit": "x"},
        "tow": {},
    }});
    let error = caller.refused("workflow_fork", fork, "invalid_argument");
    let faults = error["faults"].as_array().unwrap_or_else(|| panic!("no faults in {error}"));
    let places: BTreeSet<&str> = faults.iter().filter_map(|fault| fault["place"].as_str()).collect();
    let expected = [
        "/overrides/look/limit",
        "/overrides/one/later",
        "/overrides/one/self",
        "/overrides/tow",
        "/overrides/two/nobody/0",
    ];
    assert_eq!(places, BTreeSet::from(expected), "{error}");
    assert_eq!(faults.len(), expected.len(), "{error}");
    caller.refused("workflow_status", json!({"workflow_id": "new"}), "not_found");
    ended_well(server, &data);
}
