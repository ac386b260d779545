//! Large workflows: ten thousand steps side by side, one after the other, and over the bound.
//!
//! Invariant: the rules take time in proportion to the steps, and no stack.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Board, Story, definition, plan, step, work};
use crate::workflow::plan::{EDGES_MAX, STEPS_MAX};

/// What planning or deciding a whole run of the largest size takes at most, in a build for tests on a busy machine.
const SLOW: Duration = Duration::from_secs(20);

fn id(at: usize) -> String {
    format!("s{at}")
}

/// Each step reads the one before it and the one half as far from the start.
fn long() -> Value {
    let steps = (0..STEPS_MAX).map(|at| match at {
        0 => work("s0", &[]),
        _ => {
            let inputs = json!({ "near": { "$from": id(at - 1) }, "far": { "$from": id(at / 2) } });
            step(&id(at), "worker:do", &[&id(at - 1)], json!({ "inputs": inputs }))
        }
    });
    definition(steps.collect(), json!({}))
}

/// All steps but the first wait for it; the last waits for all.
fn wide() -> Value {
    let middle: Vec<String> = (1..STEPS_MAX - 1).map(id).collect();
    let last: Vec<&str> = middle.iter().map(String::as_str).collect();
    let mut steps = vec![work("s0", &[])];
    steps.extend(middle.iter().map(|id| work(id, &["s0"])));
    steps.push(work("last", &last));
    definition(steps, json!({}))
}

/// Runs all there is to run, and says how long the rules took.
fn run_out(story: &mut Story) -> Duration {
    let mut took = Duration::ZERO;
    loop {
        let start = Instant::now();
        story.settle();
        took += start.elapsed();
        let names: Vec<String> = story.run.open_tasks().map(|slot| story.run.task_id(slot)).collect();
        if names.is_empty() {
            return took;
        }
        for name in names {
            let name = name.split_once('#').map_or("", |(_, name)| name).replace('#', ".");
            story.does(&format!("succeed {name} 1"));
            let start = Instant::now();
            story.settle();
            took += start.elapsed();
        }
    }
}

#[test]
fn ten_thousand_steps_run_side_by_side_and_one_after_the_other() {
    for made in [long(), wide()] {
        let start = Instant::now();
        let mut story = Story::of(&made);
        let planned = start.elapsed();
        assert!(planned < SLOW, "planning took {planned:?}");
        let took = run_out(&mut story);
        eprintln!("planned in {planned:?}, ran {took:?}");
        story.ends("succeeded");
        assert!(took < SLOW, "deciding took {took:?}");
        let start = Instant::now();
        story.verify();
        eprintln!("replayed in {:?}", start.elapsed());
        assert!(start.elapsed() < SLOW, "deciding again took {:?}", start.elapsed());
    }
}

#[test]
fn a_failure_at_the_start_skips_ten_thousand_steps() {
    let mut story = Story::of(&long());
    story.settle();
    story.does("fail s0");
    let start = Instant::now();
    story.settle();
    eprintln!("skipped in {:?}", start.elapsed());
    assert!(start.elapsed() < SLOW, "skipping took {:?}", start.elapsed());
    story.ends("failed");
    story.verify();
}

#[test]
fn a_cancel_stops_ten_thousand_waiting_tasks() {
    let mut story = Story::of(&wide());
    story.settle();
    story.does("succeed s0");
    story.settle();
    story.does("cancel");
    story.settle();
    story.ends("cancelled");
    assert_eq!(story.run.open_tasks().count(), 0);
    story.verify();
}

#[test]
fn bounds_of_a_definition() {
    let many = |count: usize| definition((0..count).map(|at| work(&id(at), &[])).collect(), json!({}));
    assert!(plan(&many(STEPS_MAX), &Board).is_ok());
    let fault = |made: &Value| plan(made, &Board).expect_err("it is over a bound").remove(0).fault;
    assert_eq!(fault(&many(STEPS_MAX + 1)), "10001 steps are over the bound of 10000");
    let names: Vec<String> = (0..200).map(id).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut steps: Vec<Value> = (0..200).map(|at| work(&id(at), &[])).collect();
    steps.extend((0..EDGES_MAX / 200 + 1).map(|at| work(&format!("t{at}"), &names)));
    assert_eq!(fault(&definition(steps, json!({}))), "100200 dependencies are over the bound of 100000");
}

#[test]
fn a_cycle_of_ten_thousand_steps_is_found() {
    let steps = (0..STEPS_MAX).map(|at| work(&id(at), &[&id((at + 1) % STEPS_MAX)])).collect();
    let faults = plan(&definition(steps, json!({})), &Board).expect_err("it is a cycle");
    let [fault] = &faults[..] else { panic!("one fault") };
    assert!(fault.fault.ends_with("and 9969 more"), "{}", fault.fault);
}
