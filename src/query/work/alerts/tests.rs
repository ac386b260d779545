//! The rules as data: what was seen, and which of them fire.
//!
//! Each rule is told the last numbers under its threshold and the first over it.

use super::{Moment, Peers, Seen, WINDOW_MINUTES, Wal};
use crate::{
    query::work::{Load, Worker, history::Minute},
    task::Limits,
};

const NOW_MS: u64 = 1_767_225_600_000;
const QUEUE_MAX: u64 = 100;

fn check(seen: Seen, firing: &[&str]) {
    let limits = Limits { queue_max: QUEUE_MAX, ..Limits::default() };
    let alerts = seen.alerts(&Moment { now_ms: NOW_MS, limits });
    let fired: Vec<&str> = alerts.iter().filter(|alert| alert.firing).map(|alert| alert.name).collect();
    assert_eq!(fired, firing, "{seen:?}: {alerts:?}");
    assert_eq!(alerts.len(), 9);
}

/// Failures of runs and of tasks, each told in the first and the last minute of the window.
fn ended(runs: (u64, u64), tasks: (u64, u64)) -> Seen {
    let last = NOW_MS / 60_000;
    let of = |minute, runs_failed, runs_ended, failed, ended| Minute {
        minute,
        runs_failed,
        runs_ended,
        failed,
        succeeded: ended - failed,
        ..Minute::default()
    };
    let minutes = vec![
        of(last + 1 - WINDOW_MINUTES, runs.0, runs.0, tasks.0, tasks.0),
        of(last, 0, runs.1 - runs.0, 0, tasks.1 - tasks.0),
    ];
    Seen { minutes, ..Seen::default() }
}

/// A type, waiting for so long.
fn waits(class: &str, ms: u64) -> Seen {
    Seen { ready: vec![(class.to_owned(), NOW_MS - ms)], ..Seen::default() }
}

fn with_worker(mut seen: Seen, status: &'static str, capabilities: &[&str]) -> Seen {
    seen.workers.push(Worker {
        id: "w1".to_owned(),
        status,
        capabilities: capabilities.iter().map(|&word| word.to_owned()).collect(),
        max_concurrent: 1,
        registered_ms: 0,
        until_ms: None,
        seq: 0,
        load: Load::default(),
    });
    seen
}

fn counted(status: usize, n: u64) -> Seen {
    let mut seen = Seen::default();
    seen.counts.tasks[status] = n;
    seen
}

#[test]
fn failures_fire_over_a_fifth_of_enough() {
    check(Seen::default(), &[]);
    for (runs, tasks, firing) in [
        ((4, 4), (19, 19), &[][..]),
        ((1, 5), (4, 20), &[]),
        ((2, 5), (0, 20), &["workflow_failures"]),
        ((0, 5), (5, 20), &["task_failures"]),
        ((20, 100), (200, 1000), &[]),
        ((21, 100), (201, 1000), &["workflow_failures", "task_failures"]),
    ] {
        check(ended(runs, tasks), firing);
    }
}

#[test]
fn waiting_fires_when_it_is_long_or_for_nobody() {
    check(waits("tool:echo", 600_000), &[]);
    check(waits("tool:echo", 600_001), &["queue_wait"]);
    check(waits("tool:echo gpu", 0), &["no_worker"]);
    check(waits("render", 0), &["no_worker"]);
    check(with_worker(waits("render", 0), "active", &["render"]), &[]);
    check(with_worker(waits("render", 0), "draining", &["render"]), &["no_worker"]);
    check(with_worker(waits("render", 0), "offline", &["render"]), &["no_worker"]);
    check(with_worker(waits("render gpu", 0), "active", &["render"]), &["no_worker"]);
    check(with_worker(waits("render gpu", 0), "active", &["gpu", "other", "render"]), &[]);
}

#[test]
fn dead_tasks_and_a_queue_that_is_almost_full_fire() {
    let (queued, running, dead) = (0, 1, 4);
    check(counted(queued, 90), &[]);
    check(counted(queued, 91), &["queue_full"]);
    check(counted(running, 1_000), &[]);
    check(counted(dead, 1), &["dead_letters"]);
}

#[test]
fn a_network_that_is_not_reached_fires() {
    let peers = |heard, unreached| Peers { heard, unreached, ..Peers::default() };
    let tried = |bootstraps, unready| Peers { bootstraps, unready, ..Peers::default() };
    for (peers, firing) in [
        (peers(4, 4), &[][..]),
        (peers(10, 3), &[]),
        (peers(10, 4), &["discovery_failures"]),
        (tried(1, 1), &[]),
        (tried(2, 1), &[]),
        (tried(3, 2), &["bootstrap_failures"]),
    ] {
        check(Seen { peers, ..Seen::default() }, firing);
    }
}

#[test]
fn a_reader_that_holds_the_write_ahead_file_for_ten_minutes_fires() {
    let held = |wal| Seen { wal, ..Seen::default() };
    check(held(None), &[]);
    check(held(Some(Wal { held_ms: 600_000, uncut: true })), &[]);
    check(held(Some(Wal { held_ms: 600_001, uncut: false })), &["wal_held"]);
}
