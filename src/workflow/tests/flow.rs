//! What starts when, and with which values.
//!
//! Invariant: a step waits for its own dependencies and for nothing else.

use serde_json::json;

use super::{Story, definition, step, work};

fn diamond() -> Vec<serde_json::Value> {
    vec![work("a", &[]), work("b", &["a"]), work("c", &["a"]), work("d", &["b", "c"])]
}

#[test]
fn a_step_starts_when_its_own_dependencies_are_done() {
    let story = Story::of(&definition(diamond(), json!({}))).check(&[
        ("start", "submit a"),
        ("claim a", "begin"),
        ("succeed a", "submit b, submit c"),
        ("succeed c", ""),
        ("succeed b", "submit d"),
        ("succeed d", "end succeeded"),
    ]);
    story.ends("succeeded");
    assert_eq!(story.run.progress(), 100);
}

#[test]
fn there_is_no_barrier_between_waves() {
    let steps = vec![work("a", &[]), work("x", &[]), work("b", &["a"]), work("y", &["x"])];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("succeed a", "begin, submit b"),
        ("succeed b", ""),
        ("succeed x", "submit y"),
        ("succeed y", "end succeeded"),
    ]);
}

#[test]
fn at_most_so_many_tasks_run_at_once() {
    let steps = vec![work("a", &[]), work("b", &[]), work("c", &[]), work("d", &[])];
    Story::of(&definition(steps, json!({ "max_parallel_steps": 2 }))).check(&[
        ("start", "submit a, submit b"),
        ("succeed b", "begin, submit c"),
        ("fail-again a", ""),
        ("succeed a", "submit d"),
        ("succeed c", ""),
        ("succeed d", "end succeeded"),
    ]);
}

#[test]
fn values_flow_from_step_to_step() {
    let inputs = json!({ "inputs": {
        "text": { "$from": "a", "pointer": "/x/0" },
        "all": [{ "$from": "a" }],
        "none": { "$from": "a", "pointer": "/none", "default": null },
    } });
    let steps = vec![
        step("a", "read", &[], json!({})),
        step("b", "write", &["a"], inputs),
        step("c", "worker:do", &["b"], json!({ "inputs": { "far": { "$from": "a", "pointer": "/x" } } })),
    ];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"x":["one"]}"#, "begin, submit b"),
        ("succeed b {}", "submit c"),
    ]);
    assert_eq!(story.input_of("b"), json!({ "text": "one", "all": [{ "x": ["one"] }], "none": null }));
    assert_eq!(story.input_of("c"), json!({ "far": ["one"] }));
}

#[test]
fn a_value_that_is_not_there_fails_the_step() {
    let from = |reference| json!({ "inputs": { "v": reference } });
    let steps = vec![
        work("a", &[]),
        step("b", "worker:do", &["a"], from(json!({ "$from": "a", "pointer": "/no" }))),
        work("c", &["b"]),
    ];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        ("succeed a {}", "begin, fail b failed_precondition, skip c upstream, end failed step_failed b"),
    ]);
    assert_eq!(story.steps_are(), "a succeeded, b failed, c skipped");
}

#[test]
fn an_output_over_the_bound_fails_who_reads_it() {
    let steps = vec![
        work("a", &[]),
        work("b", &["a"]),
        step("c", "worker:do", &["a"], json!({ "inputs": { "v": { "$from": "a" } } })),
    ];
    let large = format!("succeed a \"{}\"", "x".repeat(4 * 1024 * 1024));
    Story::of(&definition(steps, json!({})))
        .check(&[("start", "submit a"), (&large, "begin, submit b, fail c resource_exhausted")]);
    let twice = json!({ "inputs": { "v": [{ "$from": "a" }, { "$from": "a" }, { "$from": "a" }] } });
    let half = format!("succeed a \"{}\"", "x".repeat(2 * 1024 * 1024));
    let steps = vec![work("a", &[]), step("b", "worker:do", &["a"], twice)];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        (&half, "begin, fail b resource_exhausted, end failed step_failed b"),
    ]);
}

#[test]
fn a_condition_chooses_the_branch_and_the_join_goes_on() {
    let when = |test: &str, value: serde_json::Value| {
        let mut when = json!({ "$from": "a", "pointer": "/n" });
        when[test] = value;
        json!({ "when": when })
    };
    let steps = vec![
        work("a", &[]),
        step("yes", "worker:do", &["a"], when("greater_than", json!(5))),
        step("no", "worker:do", &["a"], when("less_than", json!(5))),
        work("after-no", &["no"]),
        work("join", &["yes", "no"]),
    ];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"n":7}"#, "begin, submit yes, skip no condition, submit after-no"),
        ("succeed yes", "submit join"),
        ("succeed after-no", ""),
        ("succeed join", "end succeeded"),
    ]);
    assert_eq!(
        story.steps_are(),
        "a succeeded, yes succeeded, no skipped, after-no succeeded, join succeeded"
    );
}

#[test]
fn conditions_say_what_they_say() {
    let table = [
        (json!({ "pointer": "/n", "equals": 7 }), true),
        (json!({ "pointer": "/n", "equals": 7.0 }), true),
        (json!({ "pointer": "/n", "not_equals": 7 }), false),
        (json!({ "pointer": "/n", "in": [1, 7] }), true),
        (json!({ "pointer": "/n", "in": [] }), false),
        (json!({ "pointer": "/no", "exists": false }), true),
        (json!({ "pointer": "/n", "exists": true }), true),
        (json!({ "pointer": "/s", "greater_than": 1 }), false),
        (json!({ "pointer": "/no", "default": 3, "less_than": 4 }), true),
        (json!({ "pointer": "/o", "equals": { "b": [1.0], "a": null } }), true),
    ];
    for (mut test, expected) in table {
        test["$from"] = json!("a");
        for (when, expected) in [
            (test.clone(), expected),
            (json!({ "not": test }), !expected),
            (json!({ "all": [test, { "any": [test] }] }), expected),
        ] {
            let steps = vec![work("a", &[]), step("b", "worker:do", &["a"], json!({ "when": when }))];
            let asked = if expected { "begin, submit b" } else { "begin, skip b condition, end succeeded" };
            Story::of(&definition(steps, json!({}))).check(&[
                ("start", "submit a"),
                (r#"succeed a {"n":7,"s":"x","o":{"a":null,"b":[1]}}"#, asked),
            ]);
        }
    }
}

#[test]
fn reading_a_step_that_was_skipped_fails() {
    let steps = vec![
        work("a", &[]),
        step("b", "worker:do", &["a"], json!({ "when": { "$from": "a", "equals": 1 } })),
        step("c", "worker:do", &["b"], json!({ "inputs": { "v": { "$from": "b" } } })),
    ];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        ("succeed a 2", "begin, skip b condition, fail c failed_precondition, end failed step_failed c"),
    ]);
}

fn spread(more: serde_json::Value) -> Vec<serde_json::Value> {
    let mut fields = json!({
        "for_each": { "$from": "a", "pointer": "/list", "max": 4 },
        "inputs": { "n": { "$item": "/n" }, "whole": { "$item": "" } },
    });
    fields.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let join = json!({ "inputs": { "all": { "$from": "l", "pointer": "/items" } } });
    vec![work("a", &[]), step("l", "worker:do", &["a"], fields), step("z", "worker:do", &["l"], join)]
}

#[test]
fn a_step_runs_once_for_each_element() {
    let story = Story::of(&definition(spread(json!({})), json!({}))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"list":[{"n":1},{"n":2},{"n":3}]}"#, "begin, submit l.0, submit l.1, submit l.2"),
        ("succeed l.2 30", ""),
        ("succeed l.0 10", ""),
        ("succeed l.1 20", "gather l of 3, submit z"),
        ("succeed z", "end succeeded"),
    ]);
    assert_eq!(story.input_of("l.1"), json!({ "n": 2, "whole": { "n": 2 } }));
    assert_eq!(story.input_of("z"), json!({ "all": [10, 20, 30] }));
}

#[test]
fn elements_take_their_turns_under_the_bound() {
    Story::of(&definition(spread(json!({})), json!({ "max_parallel_steps": 2 }))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"list":[{"n":1},{"n":2},{"n":3}]}"#, "begin, submit l.0, submit l.1"),
        ("succeed l.1", "submit l.2"),
        ("succeed l.2", ""),
        ("succeed l.0", "gather l of 3, submit z"),
    ]);
}

#[test]
fn lists_of_none_too_many_or_of_something_else() {
    let table = [
        (r#"{"list":[]}"#, "begin, gather l of 0, submit z"),
        (
            r#"{"list":[1,2,3,4,5]}"#,
            "begin, fail l resource_exhausted, skip z upstream, end failed step_failed l",
        ),
        (r#"{"list":7}"#, "begin, fail l failed_precondition, skip z upstream, end failed step_failed l"),
        (r#"{"list":[1]}"#, "begin, fail l failed_precondition, skip z upstream, end failed step_failed l"),
    ];
    for (output, expected) in table {
        let line = format!("succeed a {output}");
        Story::of(&definition(spread(json!({})), json!({})))
            .check(&[("start", "submit a"), (&line, expected)]);
    }
}

#[test]
fn a_failed_element_fails_the_step_when_the_others_have_ended() {
    Story::of(&definition(spread(json!({})), json!({ "max_parallel_steps": 2 }))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"list":[{"n":1},{"n":2},{"n":3}]}"#, "begin, submit l.0, submit l.1"),
        ("fail l.0", ""),
        ("succeed l.1", "fail l failed_precondition, skip z upstream, end failed step_failed l"),
    ]);
}

#[test]
fn an_element_without_inputs_fails_the_step_when_the_others_have_ended() {
    let (list, failed) =
        (r#"succeed a {"list":[{"n":1},{"m":2}]}"#, "fail l failed_precondition, skip z upstream");
    let end = "end failed step_failed l";
    Story::of(&definition(spread(json!({})), json!({})))
        .check(&[("start", "submit a"), (list, &format!("begin, {failed}, {end}"))]);
    Story::of(&definition(spread(json!({})), json!({ "max_parallel_steps": 1 }))).check(&[
        ("start", "submit a"),
        (list, "begin, submit l.0"),
        ("succeed l.0 1", &format!("{failed}, {end}")),
    ]);
}

#[test]
fn a_full_run_still_gathers() {
    let mut steps = spread(json!({}));
    steps.push(work("x", &["a"]));
    Story::of(&definition(steps, json!({ "max_parallel_steps": 1 }))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"list":[{"n":1}]}"#, "begin, submit l.0"),
        ("succeed l.0 1", "gather l of 1, submit x"),
        ("succeed x", "submit z"),
        ("succeed z", "end succeeded"),
    ]);
}

#[test]
fn what_was_erased_fails_the_step_that_reads_it() {
    let read = json!({ "inputs": { "v": { "$from": "a" } } });
    let steps = vec![work("a", &[]), step("b", "worker:do", &["a"], read)];
    let mut story = Story::of(&definition(steps, json!({}))).check(&[("start", "submit a")]);
    story.does("succeed a 1");
    story.memory.values.clear();
    story.check(&[("at 2000", "begin, fail b failed_precondition, end failed step_failed b")]);
}

#[test]
fn a_failed_step_skips_what_comes_after_and_nothing_else() {
    let steps = vec![work("a", &[]), work("b", &["a"]), work("c", &["b"]), work("x", &[]), work("y", &["x"])];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("fail-again a", "begin"),
        ("fail a", "skip b upstream, skip c upstream"),
        ("succeed x", "submit y"),
        ("succeed y", "end failed step_failed a"),
    ]);
    assert_eq!(story.steps_are(), "a failed, b skipped, c skipped, x succeeded, y succeeded");
}

#[test]
fn every_way_a_task_ends_ends_its_step() {
    let table = [
        ("fail a", "failed"),
        ("time-out a", "timed_out"),
        ("interrupt a", "failed"),
        ("lose a", "cancelled"),
    ];
    for (line, status) in table {
        let steps = vec![work("a", &[])];
        let story =
            Story::of(&definition(steps, json!({}))).check(&[("start", "submit a"), ("claim a", "begin")]);
        let story = story.check(&[(line, "end failed step_failed a")]);
        assert_eq!(story.steps_are(), format!("a {status}"));
    }
}

#[test]
fn a_lapse_puts_the_step_back_and_poison_ends_it() {
    let story = Story::of(&definition(vec![work("a", &[])], json!({}))).check(&[
        ("start", "submit a"),
        ("claim a", "begin"),
        ("lapse a", ""),
        ("claim a", ""),
        ("interrupt a again", ""),
    ]);
    assert_eq!(story.steps_are(), "a ready");
    let story = story.check(&[("claim a", ""), ("lapse a", ""), ("die a", "end failed step_failed a")]);
    assert_eq!(story.run.steps[0].reason.as_deref(), Some("poison"));
}

#[test]
fn what_succeeded_is_taken_back_one_by_one_latest_first() {
    let undo = |depends_on: &[&str], id: &str| {
        let inputs = json!({ "was": { "$from": id } });
        step(
            id,
            "worker:do",
            depends_on,
            json!({ "compensate": { "action": "worker:undo", "inputs": inputs } }),
        )
    };
    let steps =
        vec![undo(&[], "a"), undo(&[], "b"), work("c", &["a"]), undo(&["a", "b"], "d"), work("e", &["d"])];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a, submit b"),
        ("succeed b 2", "begin"),
        ("succeed a 1", "submit c, submit d"),
        ("fail d", "skip e upstream"),
        ("succeed c", "submit a.undo"),
        ("claim a.undo", ""),
        ("succeed a.undo", "submit b.undo"),
        ("fail b.undo", "end failed step_failed d"),
    ]);
    assert_eq!(story.input_of("a.undo"), json!({ "was": 1 }));
    story.ends("failed");
}

#[test]
fn an_undo_whose_inputs_are_not_there_does_not_hold_up_the_others() {
    let undo = |pointer: &str| {
        let inputs = json!({ "id": { "$from": "a", "pointer": pointer } });
        json!({ "compensate": { "action": "worker:undo", "inputs": inputs } })
    };
    let steps = vec![
        step("a", "worker:do", &[], undo("/id")),
        step("b", "worker:do", &["a"], undo("/no")),
        work("c", &["b"]),
    ];
    let story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        (r#"succeed a {"id":7}"#, "begin, submit b"),
        ("succeed b", "submit c"),
        ("fail c", "fail b failed_precondition, submit a.undo"),
        ("succeed a.undo", "end failed step_failed c"),
    ]);
    assert_eq!(story.steps_are(), "a succeeded, b succeeded, c failed");
}

#[test]
fn signals_come_before_the_wait_or_after_it_and_in_order() {
    let wait = |id: &str, depends_on: &[&str]| {
        step(id, "wait:signal", depends_on, json!({ "inputs": { "signal": "go" } }))
    };
    let read = json!({ "inputs": { "v": { "$from": "w2", "pointer": "/n" } } });
    let steps =
        vec![work("a", &[]), wait("w1", &[]), wait("w2", &["a"]), step("z", "worker:do", &["w2"], read)];
    let story = Story::of(&definition(steps, json!({ "max_parallel_steps": 1 }))).check(&[
        ("start", "submit a"),
        ("succeed a", "begin, submit w1, submit w2"),
        (r#"signal go {"n":1}"#, "settle w1"),
        (r#"signal go {"n":2}"#, "settle w2, submit z"),
    ]);
    assert_eq!(story.input_of("z"), json!({ "v": 2 }));
    let steps = vec![work("a", &[]), wait("w1", &["a"]), wait("w2", &["w1"])];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        ("signal go 1", ""),
        ("signal go 2", ""),
        ("succeed a", "begin, submit w1, settle w1, submit w2, settle w2, end succeeded"),
    ]);
}

#[test]
fn a_wait_is_held_until_its_time() {
    let wait = |id: &str, action: &str, inputs| step(id, action, &[], json!({ "inputs": inputs }));
    let steps = vec![
        wait("t", "wait:time", json!({ "ms": 500 })),
        wait("u", "wait:time", json!({ "until": "1970-01-01T00:00:09Z" })),
        wait("s", "wait:signal", json!({ "signal": "go", "timeout_ms": 70 })),
    ];
    let mut story = Story::of(&definition(steps, json!({})));
    let holds: Vec<String> = story.settle().iter().map(|decision| format!("{decision:?}")).collect();
    for (hold, until) in
        holds.iter().zip(["Time { until_ms: 1500 }", "Time { until_ms: 9000 }", "Some(1070)"])
    {
        assert!(hold.contains(until), "{hold} is until {until}");
    }
    assert_eq!(story.steps_are(), "t running, u running, s running");
    story.check(&[("time-out s", ""), ("succeed t", ""), ("succeed u", "end failed step_failed s")]);
}

#[test]
fn a_child_run_takes_values_of_its_parent_and_leaves_its_own() {
    let child = json!({ "inputs": { "name": "child", "steps": [
        { "step_id": "one", "action": "worker:do", "inputs": { "v": { "$from": "a", "pointer": "/n" } } },
        { "step_id": "two", "action": "worker:do", "depends_on": ["one"],
          "inputs": { "v": { "$from": "one", "pointer": "/n" } } },
    ] } });
    let steps = vec![work("a", &[]), step("c", "workflow:run", &["a"], child)];
    let story = Story::of(&definition(steps, json!({})))
        .check(&[("start", "submit a"), (r#"succeed a {"n":5}"#, "begin, child c wf/c")]);
    let input = story.input_of("c");
    assert_eq!(input["steps"][0]["inputs"], json!({ "v": 5 }));
    assert_eq!(input["steps"][1]["inputs"], json!({ "v": { "$from": "one", "pointer": "/n" } }));
    story.check(&[("cancel", "cancel c with wf/c")]).ends("cancelled");
}
