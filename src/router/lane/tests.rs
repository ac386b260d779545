//! Lanes: who runs when, and what happens to those who leave.

use futures_util::{FutureExt, future::BoxFuture};

use super::*;

fn lane(concurrency: usize, queue: usize) -> Arc<Lane> {
    let change = ("l".to_owned(), Some(concurrency), Some(queue), None);
    Lanes::new([change]).get("l").expect("the lane was just added")
}

/// Asks for a turn, and gets in line by asking once.
fn in_line(place: &LaneTicket, priority: u8) -> BoxFuture<'_, Turn> {
    let mut turn = place.turn(priority).boxed();
    assert!((&mut turn).now_or_never().is_none(), "the lane is busy");
    turn
}

#[test]
fn higher_priority_runs_sooner_and_equals_by_arrival() {
    let lane = lane(1, 10);
    let places: Vec<_> = (0..5).map(|_| lane.join().expect("there is room")).collect();
    let mut running = places[0].turn(50).now_or_never();
    let waiting = [(1, 10), (2, 90), (3, 50), (4, 90)];
    let mut waiting: Vec<_> =
        waiting.iter().map(|(n, priority)| (*n, in_line(&places[*n], *priority))).collect();
    let mut order = Vec::new();
    while !waiting.is_empty() {
        running.take();
        let next =
            waiting.iter_mut().enumerate().find_map(|(at, (_, turn))| Some((at, turn.now_or_never()?)));
        let (at, turn) = next.expect("the turn was handed over");
        running = Some(turn);
        order.push(waiting.remove(at).0);
    }
    assert_eq!(order, [2, 4, 3, 1]);
}

#[test]
fn a_full_lane_says_so_and_has_room_again() {
    let lane = lane(1, 1);
    let places: Vec<_> = (0..2).map(|_| lane.join().expect("there is room")).collect();
    assert!(lane.join().is_none());
    assert_eq!(lane.load(), 2);
    drop(places);
    assert!(lane.join().is_some());
}

#[test]
fn whoever_leaves_the_line_or_a_turn_handed_over_keeps_nobody_waiting() {
    let lane = lane(1, 10);
    let places: Vec<_> = (0..4).map(|_| lane.join().expect("there is room")).collect();
    let running = places[0].turn(50).now_or_never();
    let (leaves, too_late, last) =
        (in_line(&places[1], 50), in_line(&places[2], 50), in_line(&places[3], 50));
    drop(leaves);
    drop(running);
    // The turn is on its way to somebody who has gone before taking it.
    drop(too_late);
    assert!(last.now_or_never().is_some());
}

#[test]
fn lanes_of_runtimes_that_are_not_here_are_known_but_cannot_be_had() {
    let lanes = Lanes::new([]);
    for name in ["worker", "wasm"] {
        assert!(lanes.known(name) && lanes.get(name).is_none(), "{name}");
    }
    assert!(!lanes.known("nowhere"));
}
