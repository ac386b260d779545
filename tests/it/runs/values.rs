//! Values: what flows between steps, and definitions that are refused.

use super::*;

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
