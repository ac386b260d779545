//! Walks through the causal graph: what came before an event, a payload or a contract, and what came of it.
//!
//! Invariants:
//! - a node stands once, however many ways lead to it, at its shortest distance from the start;
//! - only causes and refs are followed; payloads and contracts are shown beside their events and go no further;
//! - a cut walk says so, and names the events it did not go beyond.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use rusqlite::OptionalExtension;
use serde::Serialize;

use super::{QueryError, View, list::Filter, lookup::Found};
use crate::{
    block::{Cid, decode},
    contract::Contract,
    event::{Event, Role},
};

/// Nodes of one walk.
pub const LIMIT_MAX: usize = 1000;
/// Steps from the start.
pub const DEPTH_MAX: u32 = 1024;
pub const DEPTH_DEFAULT: u32 = 64;
/// Names in a frontier.
const FRONTIER_MAX: usize = 100;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    #[default]
    Ancestors,
    Descendants,
    Both,
}

impl Direction {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "ancestors" => Some(Self::Ancestors),
            "descendants" => Some(Self::Descendants),
            "both" => Some(Self::Both),
            _ => None,
        }
    }
}

/// One node, as far as the log knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    #[serde(serialize_with = "as_text")]
    pub cid: Cid,
    #[serde(flatten)]
    pub what: What,
    /// Steps from the start.
    pub depth: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum What {
    Event {
        seq: u64,
        kind: String,
        subject: String,
        actor: String,
        ts: u64,
    },
    Payload {
        len: u64,
    },
    Contract {
        name: String,
        source: String,
    },
    /// An event of another log.
    Foreign,
}

/// From what came later to what it came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Edge {
    #[serde(serialize_with = "as_text")]
    pub from: Cid,
    #[serde(serialize_with = "as_text")]
    pub to: Cid,
    /// `cause`, `ref`, `used` (a contract), `prev` (a contract's), or the role of a payload.
    pub kind: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Walk {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    pub truncated: bool,
    /// Events that were reached and not gone beyond.
    #[serde(serialize_with = "as_texts")]
    pub frontier: Vec<Cid>,
}

/// What is being found.
struct Walking<'a> {
    view: &'a View,
    limit: usize,
    nodes: Vec<Node>,
    /// Edges by their ends' names; those whose ends are both nodes stay.
    edges: BTreeSet<Edge>,
    known: HashSet<Cid>,
    contracts: HashMap<Cid, (String, String)>,
    frontier: Vec<Cid>,
    truncated: bool,
}

impl View {
    /// Walks from `start`, which is in the walk too.
    pub fn walk(
        &self,
        start: &Cid,
        direction: Direction,
        depth_max: u32,
        limit: usize,
    ) -> Result<Walk, QueryError> {
        let mut walking = Walking {
            view: self,
            limit: limit.clamp(1, LIMIT_MAX),
            nodes: Vec::new(),
            edges: BTreeSet::new(),
            known: HashSet::new(),
            contracts: HashMap::new(),
            frontier: Vec::new(),
            truncated: false,
        };
        let roots = walking.begin(start)?;
        let applied = self.applied()?;
        let roots: Vec<(u64, u32)> = roots.into_iter().filter(|(seq, _)| *seq < applied).collect();
        if direction != Direction::Descendants {
            walking.follow(&roots, depth_max, View::parents)?;
        }
        if direction != Direction::Ancestors {
            walking.follow(&roots, depth_max, View::children)?;
        }
        Ok(walking.end())
    }

    /// Events this one was caused by or refers to, as the state numbers them: another log's are negative.
    fn parents(&self, seq: i64) -> Result<Vec<i64>, QueryError> {
        self.neighbours("SELECT parent FROM edge WHERE child = ?1 ORDER BY parent", seq)
    }

    fn children(&self, seq: i64) -> Result<Vec<i64>, QueryError> {
        self.neighbours("SELECT child FROM edge WHERE parent = ?1 ORDER BY child LIMIT 1001", seq)
    }

    fn neighbours(&self, sql: &str, seq: i64) -> Result<Vec<i64>, QueryError> {
        let mut statement = self.state.prepare_cached(sql)?;
        let rows = statement.query_map([seq], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn foreign(&self, number: i64) -> Result<Option<Cid>, QueryError> {
        let sql = "SELECT cid FROM foreign_event WHERE id = ?1";
        let mut statement = self.state.prepare_cached(sql)?;
        let bytes: Option<Vec<u8>> = statement.query_row([-number], |row| row.get(0)).optional()?;
        Ok(bytes.and_then(|bytes| Cid::from_bytes(&bytes).ok()))
    }

    /// The seqs of events and all their causal ancestors, in order.
    pub fn ancestors(&self, seqs: &[u64], max: usize) -> Result<Vec<u64>, QueryError> {
        let mut known: BTreeSet<u64> = seqs.iter().copied().collect();
        let mut open: Vec<i64> = seqs.iter().map(|seq| *seq as i64).collect();
        while let Some(at) = open.pop() {
            for parent in self.parents(at)? {
                if parent >= 0 && known.insert(parent as u64) {
                    open.push(parent);
                }
            }
            if known.len() > max {
                return Err(QueryError::TooMuch(format!("more than {max} ancestors")));
            }
        }
        Ok(known.into_iter().collect())
    }

    /// The seqs of the events that hold a payload, in order, at most `max`.
    pub fn holders(&self, payload: &Cid, max: usize) -> Result<Vec<u64>, QueryError> {
        let filter = Filter { payload: Some(*payload), ..Filter::default() };
        self.seqs(&filter, 0, max as u64)
    }
}

impl Walking<'_> {
    /// Adds the start; answers the events to go on from, with their depth.
    fn begin(&mut self, start: &Cid) -> Result<Vec<(u64, u32)>, QueryError> {
        let found = self.view.find(start);
        let bytes = match found {
            Ok(Found::Event(event)) => return Ok(vec![(event.fields().seq, 0)]),
            Ok(Found::Block { bytes, .. }) => Some(bytes),
            Err(QueryError::Erased(_)) => None,
            Err(err) => return Err(err),
        };
        let contract = bytes.and_then(|bytes| decode::<Contract>(&bytes).ok());
        let Some(contract) = contract else {
            let holders = self.view.holders(start, self.limit + 1)?;
            if holders.is_empty() {
                return Err(QueryError::Invalid(format!(
                    "no event holds {start}: walk from the event or payload it belongs to"
                )));
            }
            return Ok(holders.into_iter().map(|seq| (seq, 1)).collect());
        };
        let name = (contract.name.clone(), contract.source.clone());
        self.contracts.insert(*start, name);
        self.contract(start, 0)?;
        if let Some(prev) = contract.prev {
            self.contract(&prev, 1)?;
            self.link(*start, prev, "prev");
        }
        let filter = Filter { contract: Some(*start), ..Filter::default() };
        // Its calls are shown and not followed: a contract causes none of them.
        for seq in self.view.seqs(&filter, 0, self.limit as u64 + 1)? {
            if !self.event(seq, 1)? {
                break;
            }
        }
        Ok(Vec::new())
    }

    /// Goes from `roots` breadth first along `neighbours`.
    fn follow(
        &mut self,
        roots: &[(u64, u32)],
        depth_max: u32,
        neighbours: impl Fn(&View, i64) -> Result<Vec<i64>, QueryError>,
    ) -> Result<(), QueryError> {
        let mut seen: HashSet<i64> = roots.iter().map(|(seq, _)| *seq as i64).collect();
        let mut open: VecDeque<(i64, u32)> = roots.iter().map(|(s, d)| (*s as i64, *d)).collect();
        while let Some((at, depth)) = open.pop_front() {
            let shown = match u64::try_from(at) {
                Ok(seq) => self.event(seq, depth)?,
                Err(_) => self.foreign(at, depth)?,
            };
            if !shown {
                // Everything still open is at least as far away.
                return Ok(());
            }
            let next = neighbours(self.view, at)?;
            if depth >= depth_max {
                if next.iter().any(|next| !seen.contains(next)) {
                    self.stop_at(at)?;
                }
                continue;
            }
            open.extend(next.into_iter().filter(|n| seen.insert(*n)).map(|n| (n, depth + 1)));
        }
        Ok(())
    }

    /// Adds an event with its payloads and its contract; false where there is no more room.
    fn event(&mut self, seq: u64, depth: u32) -> Result<bool, QueryError> {
        let event = self.view.log.event_at(seq)?;
        let event = event.ok_or_else(|| super::lookup::corrupt("a state ahead of its log"))?;
        let (cid, fields) = (event.cid(), event.fields());
        if self.known.contains(&cid) {
            return Ok(true);
        }
        let what = What::Event {
            seq,
            kind: fields.kind.clone(),
            subject: fields.subject.clone(),
            actor: fields.actor.id.clone(),
            ts: fields.ts,
        };
        if !self.add(cid, what, depth) {
            self.note(cid);
            return Ok(false);
        }
        self.edges_of(&event, depth)?;
        Ok(true)
    }

    fn edges_of(&mut self, event: &Event, depth: u32) -> Result<(), QueryError> {
        let (cid, fields) = (event.cid(), event.fields());
        if let Some(cause) = fields.cause {
            self.link(cid, cause, "cause");
        }
        for other in &fields.refs {
            self.link(cid, *other, "ref");
        }
        for pay in &fields.pay {
            if self.add(pay.cid, What::Payload { len: pay.len }, depth + 1) {
                self.link(cid, pay.cid, role(pay.role));
            }
        }
        if let Some(tool) = fields.tool
            && self.contract(&tool, depth + 1)?
        {
            self.link(cid, tool, "used");
        }
        Ok(())
    }

    fn contract(&mut self, cid: &Cid, depth: u32) -> Result<bool, QueryError> {
        if self.known.contains(cid) {
            return Ok(true);
        }
        if !self.contracts.contains_key(cid)
            && let Ok(Found::Block { bytes, .. }) = self.view.find(cid)
            && let Ok(contract) = decode::<Contract>(&bytes)
        {
            self.contracts.insert(*cid, (contract.name, contract.source));
        }
        let Some((name, source)) = self.contracts.get(cid).cloned() else {
            return Ok(false);
        };
        Ok(self.add(*cid, What::Contract { name, source }, depth))
    }

    fn foreign(&mut self, number: i64, depth: u32) -> Result<bool, QueryError> {
        match self.view.foreign(number)? {
            Some(cid) => Ok(self.add(cid, What::Foreign, depth)),
            None => Ok(true),
        }
    }

    /// Whether `cid` is a node now.
    fn add(&mut self, cid: Cid, what: What, depth: u32) -> bool {
        if self.known.contains(&cid) {
            return true;
        }
        if self.nodes.len() == self.limit {
            self.truncated = true;
            return false;
        }
        self.known.insert(cid);
        self.nodes.push(Node { cid, what, depth });
        true
    }

    fn link(&mut self, from: Cid, to: Cid, kind: &'static str) {
        self.edges.insert(Edge { from, to, kind });
    }

    fn stop_at(&mut self, number: i64) -> Result<(), QueryError> {
        self.truncated = true;
        if let Ok(seq) = u64::try_from(number)
            && let Some(event) = self.view.log.event_at(seq)?
        {
            self.note(event.cid());
        }
        Ok(())
    }

    fn note(&mut self, cid: Cid) {
        if self.frontier.len() < FRONTIER_MAX && !self.frontier.contains(&cid) {
            self.frontier.push(cid);
        }
    }

    fn end(self) -> Walk {
        let known = self.known;
        let both = |edge: &Edge| known.contains(&edge.from) && known.contains(&edge.to);
        Walk {
            nodes: self.nodes,
            edges: self.edges.into_iter().filter(both).collect(),
            truncated: self.truncated,
            frontier: self.frontier,
        }
    }
}

/// A payload's role as it stands in events.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Input => "input",
        Role::Output => "output",
        Role::Error => "error",
        Role::Log => "log",
        Role::Artifact => "artifact",
        Role::Note => "note",
    }
}

fn as_text<S: serde::Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cid)
}

fn as_texts<S: serde::Serializer>(cids: &[Cid], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(cids.iter().map(Cid::to_string))
}
