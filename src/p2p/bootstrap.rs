//! Bootstrap: which addresses are tried, in which order, until enough peers are connected.
//!
//! The rule is pure: what happened and the time go in, what to do next comes out. Whoever drives it dials.
//!
//! Invariants:
//! - methods take turns by priority; one is begun only when those before it have left too few connections;
//! - at most [`PARALLEL_MAX`] attempts run at once, and none begins after the deadline;
//! - every attempt begun is in the history, once, with its end; one that the deadline cut off ended `cancelled`.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::words::words;

/// Attempts at once.
pub const PARALLEL_MAX: usize = 8;
/// Attempts of one bootstrap.
pub const ATTEMPTS_MAX: usize = 1_000;

words! {
    /// Where an address came from, in the order they are tried.
    #[derive(PartialOrd, Ord, Hash)]
    pub enum Method {
        /// Nodes that the caller or the configuration names.
        Configured = "bootstrap",
        /// Peers that this node was connected to before.
        Known = "known",
        File = "file",
        Github = "github",
        Mdns = "mdns",
        Dht = "dht",
    }
}

/// When a bootstrap has done enough.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    pub min: usize,
    pub max: usize,
    pub deadline_ms: u64,
}

/// A peer to try, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `None` if the address does not name a peer.
    pub peer: Option<String>,
    pub addrs: Vec<String>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A method named its nodes; an empty list if it failed or has no more.
    Named { method: Method, nodes: Vec<Node> },
    /// An attempt ended: connected to this peer, or why not.
    Ended { attempt: u64, with: Result<String, String> },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask a method for its nodes, and tell them by [`Input::Named`].
    Ask(Method),
    /// Dial, and tell the end by [`Input::Ended`].
    Try { attempt: u64, node: Node },
    /// It is over; attempts that still run are to be dropped.
    Finish,
}

/// One attempt, ended or under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub method: Method,
    pub node: Node,
    pub began_ms: u64,
    pub ended_ms: Option<u64>,
    /// The peer it connected to, or the error; `None` while it is under way.
    pub with: Option<Result<String, String>>,
}

/// One bootstrap, from its goal to its end.
#[derive(Debug)]
pub struct Bootstrap {
    goal: Goal,
    /// Methods not yet asked, next first.
    methods: VecDeque<Method>,
    /// The method that was asked and has not answered.
    asked: Option<Method>,
    waiting: VecDeque<(Method, Node)>,
    attempts: BTreeMap<u64, Attempt>,
    running: usize,
    /// Connected peers, including those connected before the bootstrap began.
    connected: HashSet<String>,
    /// Peers and addresses tried already.
    tried: HashSet<String>,
    finished: bool,
}

impl Bootstrap {
    /// `connected` are the peers that are connected already; they count towards the goal.
    pub fn new(goal: Goal, methods: &[Method], connected: impl IntoIterator<Item = String>) -> Self {
        let mut methods = methods.to_vec();
        methods.sort();
        methods.dedup();
        Self {
            goal,
            methods: methods.into(),
            asked: None,
            waiting: VecDeque::new(),
            attempts: BTreeMap::new(),
            running: 0,
            connected: connected.into_iter().collect(),
            tried: HashSet::new(),
            finished: false,
        }
    }

    /// Takes an input and returns what to do. The first call is a [`Input::Tick`].
    pub fn handle(&mut self, input: Input, now_ms: u64) -> Vec<Output> {
        if self.finished {
            return Vec::new();
        }
        match input {
            Input::Named { method, nodes } => {
                if self.asked == Some(method) {
                    self.asked = None;
                }
                for node in nodes {
                    let key = node.peer.clone().unwrap_or_else(|| node.addrs.join(" "));
                    let known = node.peer.as_ref().is_some_and(|peer| self.connected.contains(peer));
                    let room = self.waiting.len() + self.attempts.len() < ATTEMPTS_MAX;
                    if !known && room && self.tried.insert(key) {
                        self.waiting.push_back((method, node));
                    }
                }
            }
            Input::Ended { attempt, with } => self.end(attempt, with, now_ms),
            Input::Tick => {}
        }
        self.next(now_ms)
    }

    pub fn ready(&self) -> bool {
        self.connected.len() >= self.goal.min
    }

    pub fn connected(&self) -> &HashSet<String> {
        &self.connected
    }

    /// The history, in the order the attempts began.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values()
    }

    fn end(&mut self, attempt: u64, with: Result<String, String>, now_ms: u64) {
        let Some(open) = self.attempts.get_mut(&attempt).filter(|open| open.with.is_none()) else {
            return;
        };
        if let Ok(peer) = &with {
            self.connected.insert(peer.clone());
        }
        (open.with, open.ended_ms) = (Some(with), Some(now_ms));
        self.running -= 1;
    }

    fn next(&mut self, now_ms: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        let late = now_ms >= self.goal.deadline_ms;
        let enough = self.connected.len() >= self.goal.max;
        if !late && !enough {
            // No more are tried than could be kept.
            let wanted = self.goal.max - self.connected.len();
            while self.running < PARALLEL_MAX.min(wanted) {
                let Some((method, node)) = self.waiting.pop_front() else {
                    break;
                };
                let attempt = self.attempts.len() as u64;
                self.attempts.insert(
                    attempt,
                    Attempt { method, node: node.clone(), began_ms: now_ms, ended_ms: None, with: None },
                );
                self.running += 1;
                outputs.push(Output::Try { attempt, node });
            }
            let idle = self.running == 0 && self.waiting.is_empty() && self.asked.is_none();
            if idle
                && !self.ready()
                && let Some(method) = self.methods.pop_front()
            {
                self.asked = Some(method);
                outputs.push(Output::Ask(method));
            }
        }
        let idle = self.running == 0 && self.waiting.is_empty() && self.asked.is_none();
        if late || enough || idle {
            for open in self.attempts.values_mut().filter(|open| open.with.is_none()) {
                (open.with, open.ended_ms) = (Some(Err("cancelled".to_owned())), Some(now_ms));
            }
            self.finished = true;
            outputs.push(Output::Finish);
        }
        outputs
    }
}

#[cfg(test)]
pub mod tests;
