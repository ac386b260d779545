//! Child runs.

use super::*;

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
