//! The rule of keeping as data, and a network of nodes that go, return and are cut apart, by seed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Input, JOIN_PAUSE_MS, Keeping, Output, REDIAL_FIRST_MS, REDIAL_MAX_MS, STEADY_MS};
use crate::{
    caller::Peer,
    p2p::bootstrap::{self, Bootstrap, Goal, Method, tests::Random},
};

fn peers(names: &[&str]) -> BTreeSet<Peer> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn look(rule: &mut Keeping, kept: &[&str], connected: &[&str], now_ms: u64) -> Vec<Output> {
    let (kept, connected) = (peers(kept), peers(connected));
    rule.handle(Input::Look { kept: &kept, connected: &connected, joinable: true }, now_ms)
}

#[test]
fn a_missing_peer_is_dialled_at_growing_pauses_and_once_at_a_time() {
    let mut rule = Keeping::new(0, 1);
    assert_eq!(look(&mut rule, &["a"], &[], 0), [Output::Dial("a".to_owned())]);
    assert!(look(&mut rule, &["a"], &[], 10_000).is_empty(), "the first dial still runs");
    let (mut now_ms, mut last, mut pause) = (10_000, 0, REDIAL_FIRST_MS);
    for _ in 0..12 {
        rule.handle(Input::Ended("a"), now_ms);
        while look(&mut rule, &["a"], &[], now_ms).is_empty() {
            now_ms += 100;
            assert!(now_ms - last <= 10_000.max(pause + 100), "it waits no longer than its pause");
        }
        assert!(now_ms - last >= pause / 2, "nor less than half of it");
        (last, pause) = (now_ms, REDIAL_MAX_MS.min(pause * 2));
    }
    assert_eq!(pause, REDIAL_MAX_MS);
}

#[test]
fn a_steady_connection_is_dialled_again_at_once_and_one_that_comes_and_goes_is_not() {
    let mut rule = Keeping::new(0, 1);
    look(&mut rule, &["a"], &[], 0);
    rule.handle(Input::Ended("a"), 5);
    look(&mut rule, &["a"], &["a"], 10);
    look(&mut rule, &["a"], &["a"], 10 + STEADY_MS);
    assert_eq!(look(&mut rule, &["a"], &[], 11 + STEADY_MS), [Output::Dial("a".to_owned())]);

    let (mut rule, mut dials) = (Keeping::new(0, 1), 0);
    for second in 0..3_600_u64 {
        let up = second % 3 > 0;
        dials += look(&mut rule, &["a"], if up { &["a"] } else { &[] }, second * 1_000).len();
        rule.handle(Input::Ended("a"), second * 1_000);
    }
    assert!((12..40).contains(&dials), "{dials} dials in an hour");
}

#[test]
fn who_is_kept_no_more_is_not_dialled_and_others_are_joined_by_once_a_pause() {
    let mut rule = Keeping::new(1, 1);
    let both = [Output::Dial("a".to_owned()), Output::Join];
    assert_eq!(look(&mut rule, &["a"], &[], 0), both);
    rule.handle(Input::Ended("a"), 1);
    assert!(look(&mut rule, &[], &[], JOIN_PAUSE_MS - 1).is_empty());
    assert_eq!(look(&mut rule, &[], &[], JOIN_PAUSE_MS), [Output::Join]);
    assert!(look(&mut rule, &[], &["b"], 3 * JOIN_PAUSE_MS).is_empty(), "one connection is enough");
}

/// What will happen, and when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Look(usize),
    /// A dial that the rule of keeping asked for ends.
    Kept(usize, usize),
    /// An attempt of a bootstrap ends.
    Tried(usize, u64, usize),
    /// A node is cut off or killed, or comes back.
    Turn(usize),
}

struct Node {
    rule: Keeping,
    kept: BTreeSet<usize>,
    joining: Option<Bootstrap>,
    /// Cut off or killed.
    away: bool,
    dialling: BTreeSet<usize>,
    dials: u64,
}

/// Nodes in a world whose time is a number: all that happens comes of one seed.
struct World {
    random: Random,
    nodes: Vec<Node>,
    links: BTreeSet<(usize, usize)>,
    next: BTreeMap<(u64, u64), Next>,
    now_ms: u64,
    count: u64,
}

const LOOK_MS: u64 = 2_000;
const MIN: usize = 2;
/// Nodes that all others know.
const KNOWN: usize = 3;

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let count = 4 + random.below(9);
        let nodes = (0..count).map(|at| Node {
            rule: Keeping::new(MIN, seed ^ at as u64),
            kept: (0..random.below(4)).map(|_| random.below(count)).filter(|peer| *peer != at).collect(),
            joining: None,
            away: false,
            dialling: BTreeSet::new(),
            dials: 0,
        });
        let nodes = nodes.collect();
        let mut world =
            Self { random, nodes, links: BTreeSet::new(), next: BTreeMap::new(), now_ms: 0, count: 0 };
        for at in 0..count {
            let first = world.random.below(LOOK_MS as usize) as u64;
            world.later(first, Next::Look(at));
            world.later(first, Next::Turn(at));
        }
        world
    }

    fn later(&mut self, in_ms: u64, next: Next) {
        self.count += 1;
        self.next.insert((self.now_ms + in_ms, self.count), next);
    }

    /// Lives until `end_ms`; nodes go and return only before `calm_ms`.
    fn live(&mut self, calm_ms: u64, end_ms: u64) {
        while let Some(((now_ms, _), next)) = self.next.pop_first() {
            if now_ms > end_ms {
                return;
            }
            self.now_ms = now_ms;
            match next {
                Next::Look(at) => self.look(at),
                Next::Kept(at, peer) => {
                    self.nodes[at].dialling.remove(&peer);
                    self.meet(at, peer);
                    let silent = self.nodes[at].rule.handle(Input::Ended(&peer.to_string()), now_ms);
                    assert!(silent.is_empty());
                }
                Next::Tried(at, attempt, peer) => {
                    let with =
                        if self.meet(at, peer) { Ok(peer.to_string()) } else { Err("away".to_owned()) };
                    self.join(at, bootstrap::Input::Ended { attempt, with });
                }
                Next::Turn(at) => {
                    let away = now_ms < calm_ms && self.random.below(3) == 0;
                    self.nodes[at].away = away;
                    self.links.retain(|(a, b)| !away || (*a != at && *b != at));
                    if now_ms < calm_ms {
                        let pause = 1_000 + self.random.below(120_000) as u64;
                        self.later(pause, Next::Turn(at));
                    }
                }
            }
        }
    }

    fn look(&mut self, at: usize) {
        let connected = self.connected(at);
        let kept = self.nodes[at].kept.iter().map(ToString::to_string).collect();
        let look = Input::Look { kept: &kept, connected: &connected, joinable: true };
        for output in self.nodes[at].rule.handle(look, self.now_ms) {
            match output {
                Output::Dial(peer) => {
                    let peer = peer.parse().expect("a number");
                    let node = &mut self.nodes[at];
                    assert!(node.dialling.insert(peer), "one dial at a time");
                    node.dials += 1;
                    let took = 1 + self.random.below(15_000) as u64;
                    self.later(took, Next::Kept(at, peer));
                }
                Output::Join => {
                    let goal = Goal { min: MIN, max: 8, deadline_ms: self.now_ms + JOIN_PAUSE_MS };
                    self.nodes[at].joining =
                        Some(Bootstrap::new(goal, &[Method::Configured], connected.clone()));
                    self.join(at, bootstrap::Input::Tick);
                }
            }
        }
        self.later(LOOK_MS, Next::Look(at));
    }

    fn join(&mut self, at: usize, input: bootstrap::Input) {
        let Some(rule) = &mut self.nodes[at].joining else {
            return;
        };
        for output in rule.handle(input, self.now_ms) {
            match output {
                bootstrap::Output::Ask(method) => {
                    let known = (0..KNOWN).filter(|peer| *peer != at);
                    let nodes =
                        known.map(|peer| bootstrap::Node { peer: Some(peer.to_string()), addrs: Vec::new() });
                    let named = bootstrap::Input::Named { method, nodes: nodes.collect() };
                    return self.join(at, named);
                }
                bootstrap::Output::Try { attempt, node } => {
                    let peer = node.peer.expect("all are named").parse().expect("a number");
                    let took = 1 + self.random.below(15_000) as u64;
                    self.later(took, Next::Tried(at, attempt, peer));
                }
                bootstrap::Output::Finish => self.nodes[at].joining = None,
            }
        }
    }

    /// Connects two nodes that are both there.
    fn meet(&mut self, a: usize, b: usize) -> bool {
        let there = !self.nodes[a].away && !self.nodes[b].away;
        if there {
            self.links.insert((a.min(b), a.max(b)));
        }
        there
    }

    fn connected(&self, at: usize) -> BTreeSet<Peer> {
        let of = self.links.iter().filter(|(a, b)| *a == at || *b == at);
        of.map(|(a, b)| if *a == at { b } else { a }.to_string()).collect()
    }
}

#[test]
fn a_network_that_calms_down_finds_itself_again_and_never_dials_without_measure() {
    const STORM_MS: u64 = 3_600_000;
    // The longest pause, the look before it and the dial after it.
    const HEAL_MS: u64 = REDIAL_MAX_MS + JOIN_PAUSE_MS + LOOK_MS + 15_000;
    for seed in 0..60 {
        let mut world = World::new(seed);
        world.live(STORM_MS, STORM_MS + 120_000 + HEAL_MS);
        for (at, node) in world.nodes.iter().enumerate() {
            let connected = world.connected(at);
            for peer in &node.kept {
                assert!(connected.contains(&peer.to_string()), "seed {seed}: {at} misses {peer}");
            }
            assert!(connected.len() >= MIN, "seed {seed}: {at} is alone");
            // A kept peer that is away all the time is dialled 8 times in the first half hour, then every 150 s at most;
            // each steady return begins anew.
            let returns = STORM_MS / STEADY_MS;
            assert!(
                node.dials <= returns * node.kept.len() as u64,
                "seed {seed}: {at} dialled {}",
                node.dials
            );
        }
    }
}
