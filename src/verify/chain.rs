//! What the checks of one log carry along: the walk over its events, its blocks and its heads.
//!
//! Invariant: what one check hands to a later one stands here; no check calls another's file for it.

use std::collections::{HashMap, HashSet};

use crate::{
    block::{Cid, Codec, Sha256Digest},
    event::rules::OpenCalls,
    identity::{Checkpoint, rotation::Keys},
    log::{LogError, Reader},
    merkle::{self, Growing},
};

/// Recent events that are known by name, so that most causes need no look-up. A power of two.
const RECENT_MAX: usize = 16 * 1024;

/// What the walk over the events carries along.
pub(super) struct Chain<'a> {
    pub log: &'a dyn Reader,
    pub whole: bool,
    /// All blocks, where they were walked over.
    pub blocks: Option<Blocks>,
    pub genesis: Option<Cid>,
    pub next: u64,
    pub prev: Option<(Cid, u64)>,
    /// The tree so far; none once a leaf is missing or in doubt.
    pub tree: Option<Growing>,
    pub heads: Heads,
    pub(super) recent: Recent,
    /// Blocks that were looked at as what they are named as.
    pub known: HashSet<(Cid, Form)>,
    pub(super) open_calls: OpenCalls,
    /// Payloads that were named, where nothing else remembers it.
    pub paid: HashSet<Cid>,
    /// Erased payloads, and the last event that erases each.
    pub erased: HashMap<Cid, u64>,
    /// Payloads without bytes, with the first and the last event that names each.
    pub missing: HashMap<Cid, (u64, u64)>,
    pub refs: Vec<Cid>,
    pub pay: Vec<Cid>,
}

impl Chain<'_> {
    /// After a hole nothing can be said of the tree, nor of the next event's `prev`.
    pub(super) fn break_off(&mut self) {
        self.tree = None;
        self.prev = None;
    }

    pub(super) fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError> {
        // An event is named with its codec; the same digest under another names no event.
        if cid.codec() != Codec::DagCbor {
            return Ok(None);
        }
        match self.recent.get(cid.digest()) {
            Some(seq) => Ok(Some(seq)),
            None => self.log.seq_of(cid),
        }
    }
}

/// The seqs of recent events by digest. A digest has one place, and the latest to claim it has it.
pub(super) struct Recent(Vec<(Sha256Digest, u64)>);

impl Recent {
    pub(super) fn new() -> Self {
        // No event has this seq.
        Self(vec![([0; 32], u64::MAX); RECENT_MAX])
    }

    pub(super) fn put(&mut self, digest: &Sha256Digest, seq: u64) {
        self.0[Self::place(digest)] = (*digest, seq);
    }

    pub(super) fn get(&self, digest: &Sha256Digest) -> Option<u64> {
        let (held, seq) = self.0[Self::place(digest)];
        (held == *digest && seq != u64::MAX).then_some(seq)
    }

    /// Digests are even already: their first bytes are as good as a hash.
    pub(super) fn place(digest: &Sha256Digest) -> usize {
        usize::from(u16::from_be_bytes([digest[0], digest[1]])) % RECENT_MAX
    }
}

/// Whose word a head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The log's own: the one in it, or beside it.
    Own,
    /// The checkpoint that was given.
    Given,
    /// A checkpoint that was given, and that a key of the log signed which is not in force at its size.
    OutOfForce,
}

impl Whose {
    pub(super) fn named(self) -> &'static str {
        match self {
            Self::Own => "the log's signed head",
            Self::Given => "the checkpoint given",
            Self::OutOfForce => {
                "the checkpoint given, signed by a key of this log that is not in force at its size,"
            }
        }
    }
}

/// The heads of a log, with the keys that signed them.
#[derive(Default)]
pub(super) struct Heads {
    pub keys: Option<Keys>,
    /// Changes of keys that the events have told so far.
    pub rotated: usize,
    pub heads: Vec<(Checkpoint, Whose)>,
    /// Heads that the log's tree does not have the root of, where it has their size.
    pub disagreeing: Vec<(Checkpoint, Whose)>,
}

impl Heads {
    /// The log's own head.
    pub(super) fn own(&self) -> Option<&Checkpoint> {
        self.heads.iter().find(|(_, whose)| *whose == Whose::Own).map(|(head, _)| head)
    }

    /// Compares the tree with the heads that are of its size.
    pub fn compare(&mut self, size: u64, root: impl Fn() -> merkle::Hash) {
        for (head, whose) in self.heads.iter().filter(|(head, _)| head.size == size) {
            if root() != head.root {
                self.disagreeing.push((head.clone(), *whose));
            }
        }
    }
}

/// What a stored block is, by its form alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// Its bytes are gone.
    Gone,
    /// Its bytes are not what they must be, which was told.
    Broken,
    Raw,
    Payload,
    /// A payload in parts, which were not looked at yet.
    Large,
    Contract,
    Plan,
    Genesis,
    /// Strict DAG-CBOR of no form this build knows.
    Other,
}

/// What is remembered of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub number: u64,
    /// Bytes of a raw block, bytes of content of a payload.
    pub len: u32,
    pub form: Form,
    pub codec: Codec,
    /// Whether anything names it, and whether an event does so as a payload.
    pub named: bool,
    pub paid: bool,
}

/// Every block that was there when the walk over them began, in the order of their numbers.
#[derive(Default)]
pub(super) struct Blocks(pub(super) Vec<Row>);

impl Blocks {
    /// The payloads that events name and that hold.
    pub fn payloads(&self) -> u64 {
        self.0.iter().filter(|row| row.paid && row.form == Form::Payload).count() as u64
    }

    pub fn row(&mut self, at: usize) -> &mut Row {
        &mut self.0[at]
    }

    /// Where a block is among them; none where it is not.
    pub fn place(&self, cid: &Cid, log: &dyn Reader) -> Result<Option<usize>, LogError> {
        let Some(number) = log.number_of(cid)? else { return Ok(None) };
        let at = self.0.binary_search_by_key(&number, |row| row.number).ok();
        Ok(at.filter(|at| self.0[*at].codec == cid.codec()))
    }
}

/// Bytes that were found under a name.
pub(super) enum Bytes {
    Good(Vec<u8>),
    /// They are not what the name stands for, which was told.
    Bad,
}
