//! Lists, and runs of ten thousand steps.

use super::*;

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
