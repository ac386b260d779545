//! Walks through the causal graph: what came before an event, a payload or a contract, and what came of it.
//!
//! Invariants:
//! - a node stands once, however many ways lead to it, at its shortest distance from the start;
//! - only causes and refs are followed, and a call's ending to what was asked of a peer for it; payloads and contracts
//!   are shown beside their events and go no further;
//! - a link into a log that is kept beside ours is followed there; one into any other ends at a name;
//! - a cut walk says so, and names the events it did not go beyond.

mod walking;

use std::collections::BTreeSet;

use rusqlite::OptionalExtension;
use serde::Serialize;

use self::walking::Walking;
use super::{QueryError, View, beside::Logs, list::Filter};
use crate::{block::Cid, words::words};

/// Nodes of one walk.
pub const LIMIT_MAX: usize = 1000;
/// Steps from the start.
pub const DEPTH_MAX: u32 = 1024;
pub const DEPTH_DEFAULT: u32 = 64;

/// The parents of an event: its cause and refs. Those of a call's ending include the `remote.called` of that call.
const PARENTS: &str = "
    SELECT parent FROM edge WHERE child = ?1
    UNION
    SELECT remote.child FROM entry AS ended
    JOIN word ON word.id = ended.kind AND word.text LIKE 'call.%'
    JOIN edge AS own ON own.child = ended.seq AND own.parent = ended.subject
    JOIN edge AS remote ON remote.parent = ended.subject AND remote.child < ended.seq
    JOIN entry AS called ON called.seq = remote.child
    WHERE ended.seq = ?1 AND called.kind = (SELECT id FROM word WHERE text = 'remote.called')
    ORDER BY 1";
/// The children of an event, likewise. A negative number is an event of another log: its children are the events here
/// that refer to it.
const CHILDREN: &str = "
    SELECT child FROM edge WHERE parent = ?1
    UNION
    SELECT ended.seq FROM entry AS called
    JOIN edge AS own ON own.child = called.seq
    JOIN edge ON edge.parent = own.parent AND edge.child > called.seq
    JOIN entry AS ended ON ended.seq = edge.child AND ended.subject = own.parent
    JOIN word ON word.id = ended.kind AND word.text LIKE 'call.%'
    WHERE called.seq = ?1 AND called.kind = (SELECT id FROM word WHERE text = 'remote.called')
    ORDER BY 1 LIMIT 1001";

words! {
    #[derive(Default)]
    pub enum Direction {
        #[default]
        Ancestors = "ancestors",
        Descendants = "descendants",
        Both = "both",
    }
}

/// One node, as far as the log knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    #[serde(serialize_with = "as_text")]
    pub cid: Cid,
    #[serde(flatten)]
    pub what: What,
    /// The log it is in, if that is another and its name is known.
    #[serde(flatten)]
    pub log: Option<Other>,
    /// Steps from the start.
    pub depth: u32,
}

/// A log that is not this node's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Other {
    #[serde(serialize_with = "as_text")]
    pub log: Cid,
    pub origin: String,
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
        /// Whether its content was erased, and no later event has recorded it again.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        erased: bool,
    },
    Contract {
        name: String,
        source: String,
    },
    /// An event of another log that is not held here.
    Foreign {
        /// The peer whose log it is, as far as is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
}

/// An edge, from the later event to the earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Edge {
    #[serde(serialize_with = "as_text")]
    pub from: Cid,
    #[serde(serialize_with = "as_text")]
    pub to: Cid,
    /// `cause`, `ref`, `remote` (a call of a peer), `used` (a contract), `prev` (of a contract), or the role of a
    /// payload.
    pub kind: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Walk {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    pub truncated: bool,
    /// Events that were reached but whose neighbours were not followed.
    #[serde(serialize_with = "as_texts")]
    pub frontier: Vec<Cid>,
}

impl Logs<'_> {
    /// Walks from `start`, which is in the walk too.
    pub fn walk(
        &self,
        start: &Cid,
        direction: Direction,
        depth_max: u32,
        limit: usize,
    ) -> Result<Walk, QueryError> {
        let mut walking = Walking::new(self, limit.clamp(1, LIMIT_MAX));
        let roots = walking.begin(start)?;
        if direction != Direction::Descendants {
            walking.follow(&roots, depth_max, |logs, at, _| logs.parents(at))?;
        }
        if direction != Direction::Ancestors {
            walking.follow(&roots, depth_max, |logs, at, cid| logs.children(at, cid))?;
        }
        Ok(walking.end())
    }
}

impl View {
    /// Returns the seq of the event with this CID, if it is folded.
    fn folded(&self, cid: &Cid) -> Result<Option<u64>, QueryError> {
        let applied = self.applied()?;
        Ok(self.log.seq_of(cid)?.filter(|seq| *seq < applied))
    }

    /// Returns an event's parents by the state's numbers; those of other logs are negative.
    fn parents(&self, seq: u64) -> Result<Vec<i64>, QueryError> {
        let mut statement = self.state.prepare_cached(PARENTS)?;
        let rows = statement.query_map([seq], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn children(&self, number: i64) -> Result<Vec<u64>, QueryError> {
        let mut statement = self.state.prepare_cached(CHILDREN)?;
        let rows = statement.query_map([number], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn foreign(&self, number: i64) -> Result<Option<Cid>, QueryError> {
        let sql = "SELECT cid FROM foreign_event WHERE id = ?1";
        let mut statement = self.state.prepare_cached(sql)?;
        let bytes: Option<Vec<u8>> = statement.query_row([-number], |row| row.get(0)).optional()?;
        Ok(bytes.and_then(|bytes| Cid::from_bytes(&bytes).ok()))
    }

    /// Returns the number of another log's event in this log's state.
    fn foreign_number(&self, cid: &Cid) -> Result<Option<i64>, QueryError> {
        let sql = "SELECT -id FROM foreign_event WHERE cid = ?1";
        let mut statement = self.state.prepare_cached(sql)?;
        Ok(statement.query_row([cid.to_bytes()], |row| row.get(0)).optional()?)
    }

    /// Returns the seqs of events and all their causal ancestors, in order.
    pub fn ancestors(&self, seqs: &[u64], max: usize) -> Result<Vec<u64>, QueryError> {
        let mut known: BTreeSet<u64> = seqs.iter().copied().collect();
        let mut open: Vec<u64> = seqs.to_vec();
        while let Some(at) = open.pop() {
            let here = self.parents(at)?.into_iter().filter_map(|parent| u64::try_from(parent).ok());
            open.extend(here.filter(|parent| known.insert(*parent)));
            if known.len() > max {
                return Err(QueryError::TooMuch(format!("more than {max} ancestors")));
            }
        }
        Ok(known.into_iter().collect())
    }

    /// Returns the seqs of the first `max` events that hold a payload, in order.
    pub fn holders(&self, payload: &Cid, max: usize) -> Result<Vec<u64>, QueryError> {
        let filter = Filter { payload: Some(*payload), ..Filter::default() };
        self.seqs(&filter, 0, max as u64)
    }
}

fn as_text<S: serde::Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cid)
}

fn as_texts<S: serde::Serializer>(cids: &[Cid], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(cids.iter().map(Cid::to_string))
}
