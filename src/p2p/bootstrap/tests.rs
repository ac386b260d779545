//! Bootstraps as data, and a simulation that asks whether they end, and within their bounds.

use std::collections::HashMap;

use super::{Bootstrap, Goal, Input, Method, Node, Output, PARALLEL_MAX};

fn node(n: usize) -> Node {
    Node { peer: Some(format!("peer{n}")), addrs: vec![format!("/ip4/192.0.2.1/tcp/{n}")] }
}

fn goal(min: usize, max: usize) -> Goal {
    Goal { min, max, deadline_ms: 1_000 }
}

#[test]
fn methods_take_turns_until_enough_are_connected() {
    let methods = [Method::Dht, Method::Configured, Method::File];
    let mut rule = Bootstrap::new(goal(2, 3), &methods, []);
    assert_eq!(rule.handle(Input::Tick, 0), [Output::Ask(Method::Configured)]);
    let named = Input::Named { method: Method::Configured, nodes: vec![node(1), node(1), node(2)] };
    assert_eq!(
        rule.handle(named, 1),
        [Output::Try { attempt: 0, node: node(1) }, Output::Try { attempt: 1, node: node(2) }],
        "nobody is tried twice"
    );
    assert!(rule.handle(Input::Ended { attempt: 0, with: Ok("peer1".to_owned()) }, 2).is_empty());
    let refused = Input::Ended { attempt: 1, with: Err("refused".to_owned()) };
    assert_eq!(rule.handle(refused, 3), [Output::Ask(Method::File)], "one is too few");
    let named = Input::Named { method: Method::File, nodes: vec![node(2), node(3)] };
    assert_eq!(rule.handle(named, 4), [Output::Try { attempt: 2, node: node(3) }]);
    let ended = rule.handle(Input::Ended { attempt: 2, with: Ok("peer3".to_owned()) }, 5);
    assert_eq!(ended, [Output::Finish], "the table is not asked where two are enough");
    assert!(rule.ready());
    assert_eq!(rule.attempts().count(), 3);
}

#[test]
fn the_deadline_ends_what_still_runs() {
    let mut rule = Bootstrap::new(goal(1, 1), &[Method::Configured], []);
    rule.handle(Input::Tick, 0);
    rule.handle(Input::Named { method: Method::Configured, nodes: vec![node(1)] }, 0);
    assert!(rule.handle(Input::Tick, 999).is_empty());
    assert_eq!(rule.handle(Input::Tick, 1_000), [Output::Finish]);
    let cut = rule.attempts().next().expect("one was begun");
    assert_eq!((cut.ended_ms, cut.with.clone()), (Some(1_000), Some(Err("cancelled".to_owned()))));
    assert!(rule.handle(Input::Ended { attempt: 0, with: Ok("peer1".to_owned()) }, 1_001).is_empty());
    assert!(!rule.ready(), "what came after the end does not count");
}

#[test]
fn those_connected_before_count_and_nothing_to_ask_ends_it() {
    let mut rule = Bootstrap::new(goal(1, 1), &Method::ALL, ["old".to_owned()]);
    assert_eq!(rule.handle(Input::Tick, 0), [Output::Finish]);
    let mut rule = Bootstrap::new(goal(0, 4), &[], []);
    assert_eq!(rule.handle(Input::Tick, 0), [Output::Finish]);
    assert!(rule.ready());
}

/// A small generator, so that a failure can be told by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[test]
fn every_history_ends_within_its_bounds() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let (max, deadline_ms) = (1 + random.below(20), 1 + random.below(2_000) as u64);
        let goal = Goal { min: random.below(max + 1), max, deadline_ms };
        let mut rule = Bootstrap::new(goal, &Method::ALL, []);
        let mut running: HashMap<u64, Node> = HashMap::new();
        let mut asked = Vec::new();
        let (mut now_ms, mut input, mut finished) = (0, Input::Tick, false);
        while !finished {
            for output in rule.handle(input, now_ms) {
                match output {
                    Output::Ask(method) => asked.push(method),
                    Output::Try { attempt, node } => assert!(running.insert(attempt, node).is_none()),
                    Output::Finish => finished = true,
                }
            }
            assert!(running.len() <= PARALLEL_MAX, "seed {seed}");
            assert!(rule.connected().len() <= goal.max, "seed {seed}");
            assert!(now_ms <= deadline_ms, "seed {seed}: nothing goes on after the deadline");
            let ended = running.keys().copied().nth(random.below(running.len().max(1)));
            input = match (asked.pop(), ended) {
                (Some(method), _) => Input::Named {
                    method,
                    nodes: (0..random.below(30)).map(|_| node(random.below(60))).collect(),
                },
                (None, Some(attempt)) if random.below(3) > 0 => {
                    let node = running.remove(&attempt).expect("it runs");
                    let with = match random.below(2) {
                        0 => Ok(node.peer.expect("all are named")),
                        _ => Err("refused".to_owned()),
                    };
                    Input::Ended { attempt, with }
                }
                _ => {
                    now_ms = deadline_ms.min(now_ms + random.below(100) as u64);
                    Input::Tick
                }
            };
        }
        assert!(
            rule.attempts().all(|attempt| attempt.with.is_some()),
            "seed {seed}: every attempt has its end"
        );
    }
}
