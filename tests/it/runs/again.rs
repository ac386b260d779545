//! Forks, reruns, reuse, and runs as they stood after an event.

use super::*;

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
