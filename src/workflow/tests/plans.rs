//! Definitions: what is accepted, and every fault with its place.
//!
//! Invariant: one fault hides no other.

use serde_json::{Value, json};

use super::{Board, Story, definition, plan, step, work};
use crate::workflow::fields::Fault;

/// All faults of a definition, as `place: fault`.
fn faults(definition: &Value) -> Vec<String> {
    let faults = plan(definition, &Board).expect_err("the definition has faults");
    faults.into_iter().map(|Fault { place, fault }| format!("{place}: {fault}")).collect()
}

#[test]
fn every_fault_is_listed_with_its_place() {
    let made = json!({
        "workflow_id": "a#b", "nam": "x", "priority": 101, "tags": ["x", "x", 7], "dependencies": ["later", "a#b"],
        "max_parallel_steps": 0, "deadline_ms": "1s", "peer": "p", "metadata": [],
        "steps": [
            { "step_id": "a b", "action": "wirte", "depends_on": ["a b", "c"] },
            { "step_id": "c", "action": "wait:signl", "retry": { "max_retry": 1, "backoff_factor": 0.5 } },
            { "step_id": "c", "action": "read" },
            { "action": "worker:tool:x", "timeout_ms": -1 },
            { "step_id": "d", "action": "write", "inputs": { "text": 1 }, "depend_on": [] },
            { "step_id": "e", "action": "write", "inputs": { "text": { "$item": "/x" } }, "reuse": true },
            { "step_id": "f", "action": "wait:time", "inputs": { "ms": 1, "until": "x" }, "timeout_ms": 5 },
            { "step_id": "g", "action": "read", "inputs": { "v": { "$from": "d", "pointr": "" } },
              "when": { "$from": "d" }, "for_each": { "pointer": "" },
              "compensate": { "action": "wait:time" } },
            { "step_id": "h", "action": "read", "depends_on": ["hh"], "inputs": { "v": [{ "$from": "d" }] } },
            7
        ],
    });
    let expected = [
        "/nam: `nam` is not a field here (did you mean `name`?)",
        "/workflow_id: must be letters, digits and `.`, `_`, `-`, `:`, `/`",
        "/name: is required",
        "/priority: must be a whole number from 0 to 100",
        "/tags/1: `x` stands twice",
        "/tags/2: must be text of 1 to 128 bytes",
        "/dependencies/0: there is no workflow `later`",
        "/dependencies/1: a workflow cannot wait for itself",
        "/max_parallel_steps: must be a whole number from 1 to 10000",
        "/deadline_ms: must be a whole number from 1 to 31622400000",
        "/metadata: must be an object",
        "/steps/0/step_id: must be letters, digits and `.`, `_`, `-`, `:`",
        "/steps/0/action: there is no action `wirte` (did you mean `write`?)",
        "/steps/1/action: there is no action `wait:signl` (did you mean `wait:signal`?)",
        "/steps/1/retry/max_retry: `max_retry` is not a field here (did you mean `max_retries`?)",
        "/steps/1/retry/backoff_factor: must be a number from 1 to 100",
        "/steps/2/step_id: `c` is the id of step 1 already",
        "/steps/3/step_id: is required",
        "/steps/3/action: the type of a task must be letters, digits and `.`, `_`, `-`, `:`, `/`, and not start with `tool:` or `wait:`",
        "/steps/3/timeout_ms: must be a whole number from 1 to 31622400000",
        "/steps/4/depend_on: `depend_on` is not a field here (did you mean `depends_on`?)",
        "/steps/4/inputs/text: must be text",
        "/steps/5/reuse: only the results of read-only tools can be used again",
        "/steps/5/inputs/text: `$item` stands only in the inputs of a step with `for_each`",
        "/steps/6/timeout_ms: a step that waits has no attempts: its bounds stand in its inputs",
        "/steps/6/inputs: needs one of `ms` and `until`",
        "/steps/7/for_each/$from: is required",
        "/steps/7/inputs/v: beside `$from` only `pointer` and `default` may stand",
        "/steps/7/when: a condition needs one of `equals`, `not_equals`, `in`, `exists`, `greater_than`, `less_than`",
        "/steps/7/compensate/action: what takes a step back is a tool or a worker's task",
        "/steps/9: must be an object",
        "/steps/4/action: peer `p` does not offer `write`",
        "/steps/5/action: peer `p` does not offer `write`",
        "/steps/0/depends_on/0: a step cannot wait for itself",
        "/steps/8/depends_on/0: there is no step `hh` (did you mean `h`?)",
        "/steps/8/inputs/v/0: step `h` does not depend on `d`, which it reads",
    ];
    assert_eq!(faults(&made), expected);
}

#[test]
fn names_and_tags_are_shown_on_one_line() {
    let named = |name: &str, tag: &str| {
        let wait = json!({ "step_id": "a", "action": "wait:time", "inputs": { "ms": 1 } });
        let made = definition(vec![wait], json!({ "name": name, "tags": [tag] }));
        plan(&made, &Board).err().map(|_| faults(&made))
    };
    assert_eq!(named("Überprüfung", "名前"), None);
    assert_eq!(named(&"ü".repeat(128), "x"), None);
    let name = "/name: must be 1 to 128 characters without control characters";
    let tag = "/tags/0: must be without control characters";
    for odd in ["a\u{1b}]0;x\u{7}", "a\nb", "a\u{9b}1m", "a\u{202e}b"] {
        assert_eq!(named(odd, odd), Some(vec![name.to_owned(), tag.to_owned()]), "{odd:?}");
    }
    assert_eq!(named(&"x".repeat(129), "x"), Some(vec![name.to_owned()]));
}

#[test]
fn a_run_that_is_carried_to_a_peer_names_what_it_offers() {
    let carried = |peer: &str, action: &str, undo: Value| {
        let mut made = definition(vec![step("a", action, &[], json!({ "compensate": undo }))], json!({}));
        made["peer"] = json!(peer);
        made
    };
    let undo = |action: &str| json!({ "action": action, "inputs": { "text": "t" } });
    let table = [
        (
            carried("q", "read", undo("put")),
            "/peer: no peer `q` offers tools here (peer_list names those that are known)",
        ),
        (carried("p", "put", undo("write")), "/steps/0/compensate/action: peer `p` does not offer `write`"),
        (
            carried("p", "worker:do", undo("put")),
            "/steps/0/action: `worker:do` is done by whoever takes it, and cannot be carried to a peer",
        ),
    ];
    for (made, fault) in table {
        assert_eq!(faults(&made), [fault]);
    }
    let mut made = definition(
        vec![
            step("a", "read", &[], json!({})),
            step("b", "wait:time", &[], json!({ "inputs": { "ms": 1 } })),
        ],
        json!({}),
    );
    made["peer"] = json!("p");
    assert_eq!(plan(&made, &Board).expect("it is sound").peer.as_deref(), Some("p"));
}

#[test]
fn faults_of_the_graph() {
    let read = |id: &str, depends_on: &[&str], from: &str| {
        step(id, "worker:do", depends_on, json!({ "inputs": { "v": { "$from": from } } }))
    };
    let table: [(Vec<Value>, &[&str]); 8] = [
        (vec![], &["/steps: a workflow needs at least one step"]),
        (
            vec![work("a", &["c"]), work("b", &["a"]), work("c", &["b"]), work("d", &["c"])],
            &["/steps: the steps wait for each other: b -> c -> a -> b"],
        ),
        (
            vec![work("a", &[]), work("b", &["alpha", "a"])],
            &["/steps/1/depends_on/0: there is no step `alpha`"],
        ),
        (
            vec![read("a", &[], "b"), work("b", &["a"])],
            &["/steps/0/inputs/v: step `a` does not depend on `b`, which it reads"],
        ),
        (
            vec![work("a", &[]), read("b", &["a"], "step-1")],
            &["/steps/1/inputs/v: there is no step `step-1`"],
        ),
        (vec![read("a", &[], "a")], &["/steps/0/inputs/v: step `a` does not depend on `a`, which it reads"]),
        (
            vec![work("a", &[]), step("b", "read", &[], json!({ "for_each": { "$from": "a" } }))],
            &["/steps/1/for_each: step `b` does not depend on `a`, which it reads"],
        ),
        (
            vec![
                work("a", &[]),
                step("b", "read", &[], json!({ "when": { "not": { "$from": "a", "in": [] } } })),
            ],
            &["/steps/1/when/not: step `b` does not depend on `a`, which it reads"],
        ),
    ];
    for (steps, expected) in table {
        assert_eq!(faults(&definition(steps, json!({}))), expected);
    }
}

#[test]
fn faults_of_conditions() {
    let table = [
        json!(true),
        json!({}),
        json!({ "all": [] }),
        json!({ "all": {}, "any": [] }),
        json!({ "some": [] }),
        json!({ "not": 7 }),
        json!({ "$from": "a", "equals": 1, "less_than": 2 }),
        json!({ "$from": "a", "equals": 1, "more": 2 }),
        json!({ "$from": "a", "exists": 1 }),
        json!({ "$from": "a", "in": 1 }),
        json!({ "$from": "a", "greater_than": "1" }),
        json!({ "$from": "a", "pointer": "x", "equals": 1 }),
        json!({ "$from": 1, "equals": 1 }),
    ];
    for when in table {
        let steps = vec![work("a", &[]), step("b", "read", &["a"], json!({ "when": when }))];
        assert_eq!(faults(&definition(steps, json!({}))).len(), 1, "of {when}");
    }
}

#[test]
fn a_tilde_in_a_pointer_is_an_escape_or_a_fault() {
    for (pointer, sound) in [
        ("", true),
        ("/a~0b/~1c", true),
        ("/~01", true),
        ("/a~b", false),
        ("/~", false),
        ("/~2", false),
        ("~0", false),
        ("/~0~", false),
    ] {
        let inputs = json!({ "inputs": { "v": { "$from": "a", "pointer": pointer } } });
        let steps = vec![work("a", &[]), step("b", "read", &["a"], inputs)];
        assert_eq!(plan(&definition(steps, json!({})), &Board).is_ok(), sound, "of {pointer:?}");
    }
}

#[test]
fn faults_of_a_child_have_their_place() {
    let child = json!({ "name": "child", "steps": [
        { "step_id": "x", "action": "none", "inputs": { "v": { "$from": "a" }, "w": { "$from": "y" } } },
        { "step_id": "y", "action": "read", "inputs": { "v": { "$from": "b" } } },
    ] });
    let steps =
        vec![work("a", &[]), work("b", &[]), step("c", "workflow:run", &["a"], json!({ "inputs": child }))];
    let expected = [
        "/steps/2/inputs/steps/0/action: there is no action `none`",
        "/steps/2/inputs/steps/0/inputs/w: step `x` does not depend on `y`, which it reads",
        "/steps/2/inputs/steps/1/inputs/v: step `c` does not depend on `b`, which it reads",
    ];
    assert_eq!(faults(&definition(steps, json!({}))), expected);
}

#[test]
fn a_plan_has_the_structure_and_none_of_the_content() {
    let more = json!({ "inputs": { "text": "secret" }, "repeatable": true, "timeout_ms": 9,
        "retry": { "max_retries": 3, "backoff_factor": 1.5 } });
    let steps = vec![step("a", "write", &[], more), step("b", "read", &["a"], json!({}))];
    let made = definition(steps, json!({ "reuse": true, "metadata": { "k": 1 }, "deadline_ms": 5.0 }));
    let found = plan(&made, &Board).expect("the definition is sound");
    let block = found.plan.block();
    assert_eq!(
        crate::block::decode::<crate::workflow::plan::Plan>(block.bytes()).ok(),
        Some(found.plan.clone())
    );
    assert!(!block.bytes().windows(6).any(|bytes| bytes == b"secret"));
    let [a, b] = &found.plan.steps[..] else { panic!("two steps") };
    assert_eq!(
        (a.task_type.as_str(), a.tool, a.reuse, a.repeatable),
        ("tool:write", Some(super::cid("write")), false, true)
    );
    assert_eq!(a.retry.map(|retry| (retry.max_retries, retry.factor_milli)), Some((3, 1_500)));
    assert_eq!((b.reuse, b.repeatable), (true, true));
    assert_eq!(found.inputs["steps"]["a"]["inputs"], json!({ "text": "secret" }));
    assert_eq!((found.deadline_ms, found.priority), (Some(5), 50));
}

#[test]
fn a_task_is_named_by_its_run_and_step() {
    let story = Story::of(&definition(vec![work("a", &[]), work("b", &["a"])], json!({})));
    let run = &story.run;
    for name in ["wf#b", "wf#b#7", "wf#b#undo"] {
        assert_eq!(run.slot(name).map(|slot| run.task_id(slot)).as_deref(), Some(name));
    }
    for name in ["wf", "wf#c", "wf/b#b", "w#b", "wf#b#x"] {
        assert_eq!(run.slot(name), None, "{name}");
    }
    assert!(run.work(super::whole(1)).is_none());
}
