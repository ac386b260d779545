//! A walk under way: where it stands, what it has shown, and which way is open from there.
//!
//! Invariants:
//! - an event stands at one place: in our log, or else in the first beside it that has it;
//! - a walk that runs out of room stops; it shows nothing that is farther than what it left out.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::{Edge, Node, Other, Walk, What};
use crate::{
    block::{Cid, decode},
    contract::Contract,
    event::{Body, Event},
    query::{
        QueryError,
        beside::Logs,
        ending_of,
        list::Filter,
        lookup::{Found, corrupt},
        peers,
        proof::Head,
    },
};

/// Names in a frontier.
const FRONTIER_MAX: usize = 100;
/// The role of an actor that is another node.
const PEER: &str = "peer";

/// Where a walk stands: an event of one of the logs, or one that none of them has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum At {
    Event { place: usize, seq: u64 },
    Foreign(Cid),
}

/// A walk under way: what it has found so far.
pub(super) struct Walking<'a> {
    logs: &'a Logs<'a>,
    limit: usize,
    nodes: Vec<Node>,
    /// Edges by the CIDs of their ends; in the end only edges between nodes stay.
    edges: BTreeSet<Edge>,
    known: HashSet<Cid>,
    contracts: HashMap<Cid, (String, String)>,
    /// By event of another log: the peer and log it belongs to, according to the event that refers to it.
    told: HashMap<Cid, (String, Option<Other>)>,
    frontier: Vec<Cid>,
    truncated: bool,
}

impl<'a> Walking<'a> {
    pub(super) fn new(logs: &'a Logs<'a>, limit: usize) -> Self {
        Self {
            logs,
            limit,
            nodes: Vec::new(),
            edges: BTreeSet::new(),
            known: HashSet::new(),
            contracts: HashMap::new(),
            told: HashMap::new(),
            frontier: Vec::new(),
            truncated: false,
        }
    }

    /// Adds the start. Returns the events to go on from, with their depth.
    pub(super) fn begin(&mut self, start: &Cid) -> Result<Vec<(At, u32)>, QueryError> {
        let found = self.logs.first(&Head::default(), |view, _| match view.find(start) {
            Err(QueryError::Erased { .. }) => Ok(None),
            found => found.map(Some),
        });
        let (place, found) = found?;
        let view = self.logs.view(place);
        let bytes = match found {
            Some(Found::Event(event)) => {
                return self.roots(place, &[event.fields().seq], 0);
            }
            Some(Found::Block { bytes, .. }) => Some(bytes),
            None => None,
        };
        let contract = bytes.and_then(|bytes| decode::<Contract>(&bytes).ok());
        let Some(contract) = contract else {
            let holders = view.holders(start, self.limit + 1)?;
            if holders.is_empty() {
                return Err(QueryError::Invalid(format!(
                    "no event holds {start}: walk from the event or payload it belongs to"
                )));
            }
            return self.roots(place, &holders, 1);
        };
        let name = (contract.name.clone(), contract.source.clone());
        self.contracts.insert(*start, name);
        self.contract(place, start, 0)?;
        if let Some(prev) = contract.prev {
            self.contract(place, &prev, 1)?;
            self.link(*start, prev, "prev");
        }
        let filter = Filter { contract: Some(*start), ..Filter::default() };
        // Its calls are shown and not followed: a contract causes none of them.
        for seq in view.seqs(&filter, 0, self.limit as u64 + 1)? {
            if self.event(place, seq, 1)?.is_none() {
                break;
            }
        }
        Ok(Vec::new())
    }

    /// Returns the folded ones of these events, as starts.
    fn roots(&self, place: usize, seqs: &[u64], depth: u32) -> Result<Vec<(At, u32)>, QueryError> {
        let applied = self.logs.view(place).applied()?;
        let folded = seqs.iter().filter(|seq| **seq < applied);
        Ok(folded.map(|seq| (At::Event { place, seq: *seq }, depth)).collect())
    }

    /// Goes from `roots` breadth first along `neighbours`.
    pub(super) fn follow(
        &mut self,
        roots: &[(At, u32)],
        depth_max: u32,
        neighbours: impl Fn(&Logs<'_>, At, &Cid) -> Result<Vec<At>, QueryError>,
    ) -> Result<(), QueryError> {
        let mut seen: HashSet<At> = roots.iter().map(|(at, _)| *at).collect();
        let mut open: VecDeque<(At, u32)> = roots.iter().copied().collect();
        while let Some((at, depth)) = open.pop_front() {
            let shown = match at {
                At::Event { place, seq } => self.event(place, seq, depth)?,
                At::Foreign(cid) => self.foreign(cid, depth),
            };
            let Some(cid) = shown else {
                // Everything still open is at least as far away.
                return Ok(());
            };
            let next = neighbours(self.logs, at, &cid)?;
            if depth >= depth_max {
                if next.iter().any(|next| !seen.contains(next)) {
                    self.truncated = true;
                    self.note(cid);
                }
                continue;
            }
            open.extend(next.into_iter().filter(|n| seen.insert(*n)).map(|n| (n, depth + 1)));
        }
        Ok(())
    }

    /// Adds an event with its payloads and its contract. Returns its CID, or `None` if there is no more room.
    fn event(&mut self, place: usize, seq: u64, depth: u32) -> Result<Option<Cid>, QueryError> {
        let event = self.logs.view(place).log.event_at(seq)?;
        let event = event.ok_or_else(|| corrupt("a state ahead of its log"))?;
        let (cid, fields) = (event.cid(), event.fields());
        if self.known.contains(&cid) {
            return Ok(Some(cid));
        }
        let what = What::Event {
            seq,
            kind: fields.kind.clone(),
            subject: fields.subject.clone(),
            actor: fields.actor.id.clone(),
            ts: fields.ts,
        };
        if !self.add(cid, what, self.other(place), depth) {
            self.note(cid);
            return Ok(None);
        }
        self.edges_of(place, &event, depth)?;
        Ok(Some(cid))
    }

    fn edges_of(&mut self, place: usize, event: &Event, depth: u32) -> Result<(), QueryError> {
        let (cid, fields) = (event.cid(), event.fields());
        let view = self.logs.view(place);
        if let Some(cause) = fields.cause {
            self.link(cid, cause, "cause");
        }
        for other in &fields.refs {
            self.link(cid, *other, "ref");
        }
        for pay in &fields.pay {
            let erased = !self.known.contains(&pay.cid) && view.erasure(&pay.cid)?.is_some();
            let what = What::Payload { len: pay.len, erased };
            if self.add(pay.cid, what, self.other(place), depth + 1) {
                self.link(cid, pay.cid, pay.role.as_str());
            }
        }
        if let Some(tool) = fields.tool
            && self.contract(place, &tool, depth + 1)?
        {
            self.link(cid, tool, "used");
        }
        let peer = match event.body() {
            Some(Body::RemoteCalled(facts)) => {
                let started = fields.cause.map(|cause| view.log.seq_of(&cause)).transpose()?.flatten();
                let ended = started.map(|seq| ending_of(&view.state, seq)).transpose()?.flatten();
                if let Some(ended) = ended.filter(|ended| *ended > fields.seq)
                    && let Some(ended) = view.log.event_at(ended)?
                {
                    self.link(ended.cid(), cid, "remote");
                }
                facts.peer
            }
            _ if fields.actor.role == PEER => fields.actor.id.clone(),
            _ => return Ok(()),
        };
        let known = peers::peer(&view.state, &peer)?;
        let log = known.and_then(|known| known.followed.into_iter().next());
        let log = log.map(|log| Other { log: log.log, origin: log.origin });
        for other in &fields.refs {
            self.told.entry(*other).or_insert_with(|| (peer.clone(), log.clone()));
        }
        Ok(())
    }

    fn contract(&mut self, place: usize, cid: &Cid, depth: u32) -> Result<bool, QueryError> {
        if self.known.contains(cid) {
            return Ok(true);
        }
        if !self.contracts.contains_key(cid)
            && let Ok(Found::Block { bytes, .. }) = self.logs.view(place).find(cid)
            && let Ok(contract) = decode::<Contract>(&bytes)
        {
            self.contracts.insert(*cid, (contract.name, contract.source));
        }
        let Some((name, source)) = self.contracts.get(cid).cloned() else {
            return Ok(false);
        };
        Ok(self.add(*cid, What::Contract { name, source }, self.other(place), depth))
    }

    fn foreign(&mut self, cid: Cid, depth: u32) -> Option<Cid> {
        let (peer, log) = self.told.get(&cid).cloned().unzip();
        self.add(cid, What::Foreign { peer }, log.flatten(), depth).then_some(cid)
    }

    /// Returns the log at this place; `None` for our own.
    fn other(&self, place: usize) -> Option<Other> {
        self.logs.named(place).map(|beside| Other { log: beside.log, origin: beside.origin.clone() })
    }

    /// Adds a node, if there is room. Returns whether `cid` is a node now.
    fn add(&mut self, cid: Cid, what: What, log: Option<Other>, depth: u32) -> bool {
        if self.known.contains(&cid) {
            return true;
        }
        if self.nodes.len() == self.limit {
            self.truncated = true;
            return false;
        }
        self.known.insert(cid);
        self.nodes.push(Node { cid, what, log, depth });
        true
    }

    fn link(&mut self, from: Cid, to: Cid, kind: &'static str) {
        self.edges.insert(Edge { from, to, kind });
    }

    fn note(&mut self, cid: Cid) {
        if self.frontier.len() < FRONTIER_MAX && !self.frontier.contains(&cid) {
            self.frontier.push(cid);
        }
    }

    pub(super) fn end(self) -> Walk {
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

impl Logs<'_> {
    pub(super) fn parents(&self, at: At) -> Result<Vec<At>, QueryError> {
        let At::Event { place, seq } = at else {
            return Ok(Vec::new());
        };
        let view = self.view(place);
        let mut parents = Vec::new();
        for number in view.parents(seq)? {
            match u64::try_from(number) {
                Ok(seq) => parents.push(At::Event { place, seq }),
                Err(_) => parents.extend(view.foreign(number)?.map(|cid| self.at(cid)).transpose()?),
            }
        }
        Ok(parents)
    }

    pub(super) fn children(&self, at: At, cid: &Cid) -> Result<Vec<At>, QueryError> {
        let mut children = Vec::new();
        for (place, view) in self.views().enumerate() {
            let number = match at {
                At::Event { place: own, seq } if own == place => Ok(i64::try_from(seq).ok()),
                At::Event { .. } | At::Foreign(_) => view.foreign_number(cid),
            };
            let seqs =
                number.and_then(|number| number.map_or(Ok(Vec::new()), |number| view.children(number)));
            let seqs = self.readable(place, seqs)?;
            children.extend(seqs.into_iter().map(|seq| At::Event { place, seq }));
        }
        Ok(children)
    }

    /// Returns where the event with this CID is.
    fn at(&self, cid: Cid) -> Result<At, QueryError> {
        for (place, view) in self.views().enumerate() {
            if let Some(seq) = self.readable(place, view.folded(&cid))? {
                return Ok(At::Event { place, seq });
            }
        }
        Ok(At::Foreign(cid))
    }
}
