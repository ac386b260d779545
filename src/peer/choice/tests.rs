//! Choices as data, and a seeded simulation of many workers of which some fail and some are slow.

use super::*;
use crate::task::chance::Chance;

fn candidate(peer: &str, ok: u64, fail: u64) -> Candidate<'_> {
    let mut success = Score::default();
    (0..ok).for_each(|_| success.count(true, 0));
    (0..fail).for_each(|_| success.count(false, 0));
    let (call_us, latency_us) = ((ok > 0).then_some(1_000), None);
    Candidate { peer, connected: true, quarantined: false, success, call_us, latency_us, in_flight: 0 }
}

/// The order that a draw gives which does not explore.
fn order(candidates: &[Candidate<'_>], draw: u64) -> Vec<String> {
    choose(candidates, 0, draw << 32 | 1).map(|choice| choice.order).unwrap_or_default()
}

#[test]
fn the_hard_filter_comes_first() {
    let good = candidate("good", 50, 0);
    let away = Candidate { connected: false, ..candidate("away", 90, 0) };
    let doubted = Candidate { quarantined: true, ..candidate("doubted", 90, 0) };
    assert_eq!(order(&[away, doubted, good], 0), ["good"]);
    assert_eq!(choose(&[away, doubted], 0, 7), None);
    assert_eq!(choose(&[], 0, 0), None);
}

#[test]
fn what_is_likely_soon_ranks_first() {
    let base = candidate("a", 50, 0);
    for (other, why) in [
        (candidate("b", 40, 10), "fails more"),
        (candidate("b", 5, 0), "is known less"),
        (Candidate { call_us: Some(2_000), ..candidate("b", 50, 0) }, "is slower"),
        (Candidate { latency_us: Some(5_000), ..candidate("b", 50, 0) }, "is further away"),
        (Candidate { in_flight: 3, ..candidate("b", 50, 0) }, "has more to do"),
        (candidate("b", 0, 0), "is not known"),
    ] {
        assert_eq!(order(&[other, base], 0), ["a", "b"], "b {why}");
        assert_eq!(order(&[other, base], 1), ["b", "a"], "the draw is among two at least");
    }
}

#[test]
fn the_choice_says_why() {
    let known = [candidate("a", 50, 0), candidate("b", 50, 0), candidate("c", 3, 0)];
    let rule = |random| choose(&known, 0, random).map(|choice| (choice.order[0].clone(), choice.rule));
    assert_eq!(rule(1), Some(("a".into(), "best 2 of 3: at least 94 % in 1000 us".into())));
    assert_eq!(rule(20), Some(("c".into(), "explored: 3 of 20 samples".into())));
}

/// A worker as it is, which nobody but the simulation knows.
struct Worker {
    name: String,
    fails: bool,
    takes_us: u64,
    success: Score,
    call_us: Option<u64>,
    calls: u64,
}

#[test]
fn failing_workers_are_found_out() {
    for seed in 1..=20 {
        let failed = simulate(seed);
        assert!(failed * 100 < 1_800 * 3, "{failed} of 1800 first attempts failed with seed {seed}");
    }
}

/// 2000 calls at 50 workers, a tenth of which always fail and a tenth of which are slow; tells how many of the calls
/// after the first 200 failed at the worker that was chosen.
fn simulate(seed: u64) -> u64 {
    let mut chance = Chance::seeded(seed);
    let mut workers: Vec<Worker> = (0..50)
        .map(|n| Worker {
            name: format!("w{n:02}"),
            fails: (n + seed) % 10 == 3,
            takes_us: if (n + seed) % 10 == 7 { 50_000 } else { 10_000 },
            success: Score::default(),
            call_us: None,
            calls: 0,
        })
        .collect();
    let (mut failed, mut now_ms) = (0, 0);
    for call in 0..2_000 {
        now_ms += 500;
        let candidates: Vec<Candidate<'_>> = workers
            .iter()
            .map(|worker| Candidate {
                success: worker.success,
                call_us: worker.call_us,
                in_flight: chance.below(2),
                ..candidate(&worker.name, 0, 0)
            })
            .collect();
        let choice = choose(&candidates, now_ms, chance.below(u64::MAX)).expect("somebody is there");
        let chosen = choice.order[0].clone();
        let worker = workers.iter_mut().find(|worker| worker.name == chosen).expect("it was offered");
        worker.success.count(!worker.fails, now_ms);
        worker.calls += 1;
        match worker.fails {
            true => failed += u64::from(call >= 200),
            false => worker.call_us = Some(worker.takes_us),
        }
    }
    let slow: u64 = workers.iter().filter(|worker| worker.takes_us > 10_000).map(|worker| worker.calls).sum();
    assert!(slow < 200, "{slow} calls went to slow workers with seed {seed}");
    failed
}
