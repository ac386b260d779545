//! What is asked of a run from outside: to stop, to go on, to be made again.
//!
//! Invariant: what was answered holds: a cancelled run starts nothing, a fork runs nothing that it takes.

use serde_json::{Map, Value, json};

use super::{Board, Decision, Hold, Origin, Story, definition, plan, step, work};
use crate::workflow::{replay::diff::diff, shape::WORKFLOW_RUN};

fn chain() -> Vec<Value> {
    vec![work("a", &[]), work("b", &["a"]), work("c", &["b"]), work("x", &[])]
}

#[test]
fn a_cancelled_run_starts_nothing_more() {
    let story = Story::of(&definition(chain(), json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("claim a", "begin"),
        ("cancel", "cancel x"),
        ("cancel", ""),
        ("succeed a", ""),
    ]);
    story.ends("cancelled");
    assert_eq!(story.steps_are(), "a succeeded, b cancelled, c cancelled, x cancelled");
    assert_eq!(story.run.progress(), 25);
}

#[test]
fn force_cancels_what_runs_too() {
    let story = Story::of(&definition(chain(), json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("claim a", "begin"),
        ("cancel", "cancel x"),
        ("cancel force", "cancel! a"),
    ]);
    assert_eq!(story.steps_are(), "a cancelled, b cancelled, c cancelled, x cancelled");
    assert!(story.run.cancel(true).is_ok_and(|body| body.is_none()));
}

#[test]
fn a_retry_after_the_cancel_is_cancelled() {
    let story = Story::of(&definition(chain(), json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("claim a", "begin"),
        ("cancel", "cancel x"),
        ("ask a", ""),
        ("fail-again a", "cancel a"),
    ]);
    assert_eq!(story.steps_are(), "a cancelled, b cancelled, c cancelled, x cancelled");
}

#[test]
fn a_cancel_stops_lists_waits_and_what_is_taken_back() {
    let list = json!({ "for_each": { "$from": "a" }, "inputs": {} });
    let wait = json!({ "inputs": { "signal": "go" } });
    let undo = json!({ "compensate": { "action": "worker:undo" } });
    let steps = vec![
        step("a", "worker:do", &[], undo),
        step("l", "worker:do", &["a"], list),
        step("w", "wait:signal", &["a"], wait),
    ];
    let made = definition(steps, json!({}));
    let story = Story::of(&made).check(&[
        ("start", "submit a"),
        ("succeed a [1,2]", "begin, submit l.0, submit l.1, submit w"),
        ("claim l.0", ""),
        ("cancel", "cancel l.1, cancel w"),
        ("succeed l.0 1", ""),
    ]);
    assert_eq!(story.steps_are(), "a succeeded, l cancelled, w cancelled");
    let story = Story::of(&made).check(&[
        ("start", "submit a"),
        ("succeed a [1]", "begin, submit l.0, submit w"),
        ("lose w", ""),
        ("fail l.0", "fail l failed_precondition, submit a.undo"),
        ("cancel", "cancel a.undo"),
    ]);
    story.ends("cancelled");
}

#[test]
fn a_run_has_ended_by_its_deadline() {
    let mut story = Story::of(&definition(chain(), json!({ "deadline_ms": 500 })));
    assert_eq!(story.run.due_ms(), Some(1_500));
    story = story.check(&[
        ("start", "submit a, submit x"),
        ("claim a", "begin"),
        ("at 1499", ""),
        ("at 1500", "end timed_out, cancel x"),
        ("succeed a", ""),
    ]);
    story.ends("timed_out");
    assert_eq!(story.run.due_ms(), None);
    story.check(&[
        ("at 2000", ""),
        ("reschedule", "submit b, retry x"),
        ("at 2499", ""),
        ("at 2500", "end timed_out, cancel b, cancel x"),
    ]);
}

#[test]
fn a_run_waits_for_others_and_fails_with_them() {
    let made = definition(chain(), json!({ "dependencies": ["earlier"] }));
    let mut steps = chain();
    steps.push(step("w", "wait:signal", &["c"], json!({ "inputs": { "signal": "go" } })));
    let waiting = definition(steps, json!({ "dependencies": ["earlier"] }));
    let story = Story::of(&waiting).check(&[("start", ""), ("signal go 1", "")]);
    story.ends("waiting");
    assert!(story.run.signal("gone").is_err(), "no step waits for it");
    assert_eq!(story.run.waits_for().collect::<Vec<_>>(), ["earlier"]);
    story.check(&[("dependency earlier true", "submit a, submit x")]).ends("submitted");
    let story = Story::of(&made).check(&[("dependency earlier false", "end failed dependency_failed -")]);
    assert_eq!(story.steps_are(), "a skipped, b skipped, c skipped, x skipped");
}

#[test]
fn a_run_goes_on_from_what_did_not_succeed() {
    let story = Story::of(&definition(chain(), json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("succeed a 1", "begin, submit b"),
        ("fail b", "skip c upstream"),
        ("succeed x", "end failed step_failed b"),
    ]);
    assert_eq!(story.run.rerun_steps(None), ["b", "c"]);
    let story = story.check(&[
        ("reschedule", "retry b"),
        ("succeed b 2", "submit c"),
        ("succeed c 3", "end succeeded"),
        ("reschedule b", "retry b"),
        ("succeed b 2", "retry c"),
        ("fail c", "end failed step_failed c"),
    ]);
    story.ends("failed");
    assert!(story.run.reschedule(Some("none"), None).is_err());
    assert!(story.run.reschedule(None, Some(101)).is_err());
}

#[test]
fn a_list_goes_on_with_the_elements_that_failed() {
    let list = json!({ "for_each": { "$from": "a" }, "inputs": { "v": { "$item": "" } } });
    let steps = vec![work("a", &[]), step("l", "worker:do", &["a"], list)];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a"),
        ("succeed a [1,2,3]", "begin, submit l.0, submit l.1, submit l.2"),
        ("succeed l.0 1", ""),
        ("fail l.1", ""),
        ("succeed l.2 3", "fail l failed_precondition, end failed step_failed l"),
        ("reschedule", "retry l.1"),
        ("succeed l.1 2", "gather l of 3, end succeeded"),
        ("reschedule a", "retry a"),
        ("succeed a [7,8]", "retry l.0, retry l.1"),
        ("succeed l.0 1", ""),
        ("succeed l.1 1", "gather l of 2, end succeeded"),
    ]);
}

#[test]
fn what_was_taken_back_runs_again() {
    let undo = json!({ "compensate": { "action": "worker:undo" } });
    let steps = vec![step("a", "worker:do", &[], undo), work("b", &["a"]), work("c", &["b"]), work("x", &[])];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a, submit x"),
        ("succeed a", "begin, submit b"),
        ("succeed x", ""),
        ("succeed b", "submit c"),
        ("fail c", "submit a.undo"),
        ("succeed a.undo", "end failed step_failed c"),
        ("reschedule", "retry a"),
        ("succeed a", "retry b"),
        ("fail b", "skip c upstream, retry a.undo"),
        ("succeed a.undo", "end failed step_failed b"),
    ]);
}

#[test]
fn a_child_and_a_wait_go_on_with_their_run() {
    let child = json!({ "inputs": { "workflow_id": "kid", "name": "child", "steps": [work("one", &[])] } });
    let wait = json!({ "inputs": { "signal": "go", "timeout_ms": 100 } });
    let steps = vec![step("c", WORKFLOW_RUN, &[], child), step("w", "wait:signal", &[], wait)];
    let mut story = Story::of(&definition(steps, json!({}))).check(&[
        ("start", "child c kid, submit w, begin"),
        ("time-out w", ""),
        ("fail c", "end failed step_failed w"),
        ("at 5000", ""),
    ]);
    story.does("reschedule");
    let holds: Vec<Option<Hold>> = story.settle().into_iter().map(held).collect();
    let signal = Hold::Signal { name: "go".into(), until_ms: Some(5_100) };
    assert_eq!(holds, [Some(Hold::Run { run: "kid".into() }), Some(signal.clone())]);
    let waiting = story.run.slot("wf#w").and_then(|slot| story.run.work(slot));
    assert_eq!(waiting.and_then(|work| work.hold.as_ref()), Some(&signal), "the new bound counts");
    story.check(&[("signal go 1", "settle w"), ("succeed c {}", "end succeeded")]);
}

fn held(decision: Decision) -> Option<Hold> {
    match decision {
        Decision::Retry { hold, .. } => hold,
        other => panic!("{other:?} is no retry"),
    }
}

#[test]
fn a_run_goes_on_only_when_it_has_stopped() {
    let story = Story::of(&definition(chain(), json!({}))).check(&[("start", "submit a, submit x")]);
    assert!(story.run.reschedule(None, None).is_err());
    let story = story.check(&[("claim a", "begin"), ("cancel", "cancel x")]);
    assert!(story.run.reschedule(None, None).is_err_and(|refusal| refusal.message.contains("still running")));
    let story = story.check(&[("succeed a", ""), ("reschedule", "submit b, retry x")]);
    assert!(story.run.cancel(false).is_ok_and(|body| body.is_some()));
}

#[test]
fn signals_are_refused_when_they_cannot_be_taken() {
    let wait = step("w", "wait:signal", &["a"], json!({ "inputs": { "signal": "go" } }));
    let mut story = Story::of(&definition(vec![work("a", &[]), wait], json!({})));
    assert!(story.run.signal("").is_err());
    for _ in 0..1_000 {
        story.does("signal go 1");
    }
    assert!(story.run.signal("go").is_err());
    let story = Story::of(&definition(vec![work("a", &[])], json!({})));
    assert!(story.run.signal("go").is_err_and(|refusal| refusal.message.contains("for no signal")));
    let story = story.check(&[("start", "submit a"), ("succeed a", "begin, end succeeded")]);
    assert!(story.run.signal("go").is_err());
    assert!(story.run.cancel(false).is_err());
}

fn origin(old: &Story, from_step: Option<&str>, rerun: bool) -> Origin {
    let (run, submitted) = (old.run.id.clone(), old.run.submitted);
    Origin { run, submitted, from_step: from_step.map(str::to_owned), rerun }
}

fn fork(old: &Story, from_step: Option<&str>, overrides: Value, rerun: bool) -> Story {
    let overrides = overrides.as_object().expect("an object").clone();
    let mut made = old.run.plan.definition(&old.run.inputs, &overrides);
    made["workflow_id"] = "new".into();
    Story::with(&made, Some(origin(old, from_step, rerun)), Some(old.run.clone()), old.memory.clone())
}

fn ended() -> Story {
    let inputs = json!({ "inputs": { "v": { "$from": "a" } } });
    let list = json!({ "for_each": { "$from": "l" }, "inputs": {} });
    let steps = vec![
        step("a", "read", &[], json!({ "reuse": true })),
        step("b", "put", &["a"], inputs.clone()),
        step("c", "worker:do", &["b"], inputs),
        step("l", "worker:do", &[], json!({ "compensate": { "action": "worker:undo" } })),
        step("m", "worker:do", &["l"], list),
        step("n", "worker:do", &["m", "a"], json!({ "when": { "$from": "a", "equals": 0 } })),
        step("o", "worker:do", &["n"], json!({})),
    ];
    Story::of(&definition(steps, json!({}))).check(&[
        ("start", "submit a, submit l"),
        ("succeed a 1", "begin, submit b"),
        ("succeed l [1,2]", "submit m.0, submit m.1"),
        ("succeed m.0 1", ""),
        ("succeed m.1 2", "gather m of 2, skip n condition, submit o"),
        ("succeed o 1", ""),
        ("succeed b 2", "submit c"),
        ("fail c", "submit l.undo"),
        ("fail l.undo", "end failed step_failed c"),
    ])
}

#[test]
fn a_fork_takes_what_came_before() {
    let old = ended();
    let story = fork(&old, Some("b"), json!({}), false);
    assert_eq!(story.run.taken_steps().collect::<Vec<_>>(), ["a", "l", "m", "o"]);
    let story = story.check(&[
        ("start", "take a, take l, submit b, take m of 2, skip n condition, take o"),
        ("succeed b 20", "begin, submit c"),
        ("fail c", "end failed step_failed c"),
    ]);
    assert_eq!(story.input_of("b"), json!({ "v": 1 }));
    story.check(&[("reschedule a", "retry a"), ("succeed a 3", "retry b, skip n condition, retry o")]);
}

#[test]
fn a_fork_runs_what_is_asked_for_otherwise() {
    let old = ended();
    let story = fork(&old, None, json!({ "b": { "v": 9 } }), false)
        .check(&[("start", "take a, take l, submit b, take m of 2, skip n condition, take o")]);
    assert_eq!(story.input_of("b"), json!({ "v": 9 }));
    fork(&old, None, json!({}), false).check(&[("start", "submit a, submit l")]);
}

#[test]
fn a_repetition_runs_for_real_what_may_be_repeated() {
    fork(&ended(), None, json!({}), true).check(&[
        ("start", "submit a, take l, take m of 2"),
        ("succeed a 1", "begin, submit b, skip n condition, take o"),
        ("succeed b 2", "fail c broke, end failed step_failed c"),
    ]);
    // What did not run then does not run now, even where its condition says so.
    fork(&ended(), None, json!({}), true).check(&[
        ("start", "submit a, take l, take m of 2"),
        ("succeed a 0", "begin, submit b, fail n failed_precondition, skip o upstream"),
    ]);
}

#[test]
fn a_repetition_says_of_what_it_takes_from_the_record_what_it_would_be_asked_for() {
    let old = ended();
    let verdicts = |story: Story| {
        let told = diff(&old.run, &story.run, &story.memory).report().json();
        let steps = told["steps"].as_array().expect("steps").clone();
        let verdict = |step: &Value| {
            format!("{} {}", step["step_id"].as_str().unwrap_or(""), step["verdict"].as_str().unwrap_or(""))
        };
        let differing = steps.iter().filter(|step| step["verdict"] != "match").map(verdict);
        (differing.collect::<Vec<_>>(), told["first_divergence"].clone())
    };
    let again = |a: &str| {
        fork(&old, None, json!({}), true).check(&[
            ("start", "submit a, take l, take m of 2"),
            (&format!("succeed a {a}"), "begin, submit b, skip n condition, take o"),
            ("succeed b 2", "fail c broke, end failed step_failed c"),
        ])
    };
    assert_eq!(verdicts(again("1")), (vec![], Value::Null));
    let (differing, first) = verdicts(again("3"));
    assert_eq!(differing, ["a output_differs", "b input_differs", "c input_differs"]);
    assert_eq!(first["step_id"], "a");
    assert!(first["expected"].is_string() && first["actual"].is_string(), "{first}");
}

#[test]
fn a_definition_is_restored_from_its_plan() {
    let child = json!({ "name": "child", "steps": [work("one", &[])] });
    let steps = vec![
        step("a", "read", &[], json!({ "reuse": true, "timeout_ms": 5, "retry": { "backoff_factor": 1.5 } })),
        step(
            "l",
            "put",
            &["a"],
            json!({ "for_each": { "$from": "a", "max": 3, "default": [] },
            "repeatable": false, "compensate": { "action": "put", "inputs": { "v": { "$from": "l" } } } }),
        ),
        step(
            "c",
            WORKFLOW_RUN,
            &[],
            json!({ "inputs": child, "when": { "$from": "a", "exists": true } ,
            "depends_on": ["a"] }),
        ),
    ];
    let made = definition(steps, json!({ "metadata": { "k": [1] } }));
    let first = plan(&made, &Board).expect("the definition is sound");
    let mut restored = first.plan.definition(&first.inputs, &Map::new());
    restored["workflow_id"] = "wf".into();
    assert_eq!(plan(&restored, &Board), Ok(first));
}
