//! Random workflows that live through random days.
//!
//! Invariants, checked after every event: a step that has ended stays as it ended until the run is rescheduled,
//! nothing starts before what it depends on or after the run has ended, and every run can be brought to its end.

use serde_json::{Value, json};

use super::{Story, definition, step};
use crate::{
    event::{Event, work::Hold},
    workflow::{
        plan::Plan,
        run::status::{Status, StepStatus, WorkStatus},
    },
};

const HISTORIES: u64 = 400;
/// Events of one history before its open tasks are simply finished.
const EVENTS_MAX: usize = 120;

/// SplitMix64 (Steele, Lea, Flood 2014): every history can be had again by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

fn workflow(dice: &mut Dice) -> Value {
    let count = 1 + dice.below(14);
    let names: Vec<String> = (0..count).map(|at| format!("s{at}")).collect();
    let steps = (0..count).map(|at| {
        let parents: Vec<&str> =
            names[..at].iter().filter(|_| dice.one_in(at.min(3))).map(String::as_str).collect();
        let mut more = json!({});
        let action = ["worker:do", "worker:do", "put", "wait:signal"][dice.below(4)];
        more["inputs"] = match (action, parents.first()) {
            ("wait:signal", _) => json!({ "signal": "go" }),
            (_, Some(parent)) if dice.one_in(2) => json!({ "v": { "$from": parent, "default": 1 } }),
            _ => json!({}),
        };
        if let Some(parent) = parents.last() {
            if dice.one_in(4) {
                more["for_each"] = json!({ "$from": parent, "max": 4 });
            }
            if dice.one_in(4) {
                more["when"] = json!({ "$from": parent, "not_equals": 0 });
            }
        }
        if action != "wait:signal" && dice.one_in(3) {
            more["compensate"] =
                json!({ "action": "worker:undo", "inputs": { "was": { "$from": names[at] } } });
        }
        step(&names[at], action, &parents, more)
    });
    let steps: Vec<Value> = steps.collect();
    let mut bounds = json!({});
    if dice.one_in(2) {
        bounds["max_parallel_steps"] = json!(1 + dice.below(3));
    }
    if dice.one_in(8) {
        bounds["deadline_ms"] = json!(2_000);
    }
    if dice.one_in(6) {
        bounds["dependencies"] = json!(["earlier"]);
    }
    if dice.one_in(3) {
        bounds["tags"] = json!(["red", "nightly"]);
    }
    definition(steps, bounds)
}

/// The open tasks by the names that lines use, and whether a signal is what they wait for.
fn open(story: &Story) -> Vec<(String, bool)> {
    let named = story.run.open_tasks().map(|slot| {
        let task_id = story.run.task_id(slot);
        let held = story.run.work(slot).is_some_and(|work| matches!(work.hold, Some(Hold::Signal { .. })));
        (task_id.split_once('#').map_or("", |(_, name)| name).replace('#', "."), held)
    });
    named.collect()
}

fn output(dice: &mut Dice) -> String {
    ["0", "1", "[]", "[1,2]", "[1,2,3,4,5]", "[7]"][dice.below(6)].to_owned()
}

/// Something that can happen now; none where nothing can.
fn happening(story: &Story, dice: &mut Dice) -> Option<String> {
    if !story.run.status().ended() {
        if dice.one_in(60) {
            return Some(["cancel", "cancel force"][dice.below(2)].to_owned());
        }
        if dice.one_in(12) && story.run.signal("go").is_ok() {
            return Some(format!("signal go {}", output(dice)));
        }
        if dice.one_in(10) {
            return Some(format!("at {}", story.now_ms + 100));
        }
    }
    if story.run.status() == Status::Waiting {
        return Some("dependency earlier true".to_owned());
    }
    let open = open(story);
    if open.is_empty() {
        return going_on(story, dice);
    }
    if dice.one_in(30) && matches!(story.run.cancel(true), Ok(Some(_))) {
        return Some("cancel force".to_owned());
    }
    let (name, held) = &open[dice.below(open.len())];
    if *held {
        return Some(match dice.below(4) {
            0 => format!("lose {name}"),
            _ if story.run.status().ended() => format!("lose {name}"),
            _ => format!("signal go {}", output(dice)),
        });
    }
    let queued = story.queued(&super::task_id("wf", name));
    let verb = match dice.below(20) {
        0..=1 => "fail",
        2 => "time-out",
        3 => "fail-again",
        4 => "interrupt",
        5 if queued => "lose",
        6..=7 if queued => "claim",
        6 => "lapse",
        _ => "succeed",
    };
    Some(format!("{verb} {name} {}", output(dice)))
}

/// How a run that has ended goes on, from where it failed or from one of its steps; none where it does not.
fn going_on(story: &Story, dice: &mut Dice) -> Option<String> {
    if !story.run.status().ended() || !dice.one_in(3) {
        return None;
    }
    let step = &story.run.plan.steps[dice.below(story.run.steps.len())].id;
    let from = Some(step.as_str()).filter(|_| dice.one_in(2));
    let may = story.run.reschedule(from, None).is_ok();
    may.then(|| format!("reschedule {} {}", from.unwrap_or(""), 10 * dice.below(11)))
}

fn live(seed: u64) -> Story {
    let mut dice = Dice(seed);
    let mut story = Story::of(&workflow(&mut dice));
    story.settle();
    let mut before: Vec<StepStatus> = story.run.steps.iter().map(|step| step.status).collect();
    for _ in 0..EVENTS_MAX {
        let Some(line) = happening(&story, &mut dice) else { break };
        story.does(&line);
        story.settle();
        let now: Vec<StepStatus> = story.run.steps.iter().map(|step| step.status).collect();
        if !line.starts_with("reschedule") {
            for (at, (before, now)) in before.iter().zip(&now).enumerate() {
                assert!(
                    !before.ended() || before == now,
                    "seed {seed}: `{line}` changed the end of step {at}"
                );
            }
        }
        before = now;
    }
    while let Some((name, held)) = open(&story).pop() {
        story.does(&format!("{} {name} 1", if held { "lose" } else { "succeed" }));
        story.settle();
    }
    story
}

/// The events of one history, from the first of its log on, and what they name.
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    pub(crate) plan: Plan,
    /// What contracts and payloads are named by.
    pub(crate) contents: Vec<String>,
}

pub(crate) fn history(seed: u64) -> History {
    let Story { events, definition, memory, .. } = live(seed);
    let contents = memory.texts.into_iter().chain(["put".to_owned()]).collect();
    History { events, plan: definition.plan, contents }
}

#[test]
fn every_run_comes_to_its_end_and_decides_the_same_again() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..HISTORIES {
        let story = live(seed);
        assert!(story.run.status().ended(), "seed {seed}: the run is {:?}", story.run.status());
        for (step, state) in story.run.plan.steps.iter().zip(&story.run.steps) {
            assert!(state.status.ended(), "seed {seed}: step {} is {:?}", step.id, state.status);
            assert!(!state.whole.status.open(), "seed {seed}: a task of step {} is open", step.id);
            *seen.entry(state.status).or_insert(0) += 1;
            let undone = state.undo.as_ref().is_some_and(|undo| undo.status != WorkStatus::None);
            assert!(!undone || step.compensate.is_some(), "seed {seed}: step {} cannot be undone", step.id);
        }
        story.verify();
    }
    assert_eq!(seen.len(), 5, "the histories reach every end: {seen:?}");
}
