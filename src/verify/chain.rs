//! Holds what the checks of one log share: the walk over its events, its blocks and its heads.
//!
//! Invariant: what one check passes to a later one is a field here.

use std::collections::{HashMap, HashSet};

use crate::{
    block::{Cid, Codec, Sha256Digest},
    event::{follows::Before, rules::OpenCalls},
    identity::{Checkpoint, rotation::Keys},
    log::{LogError, Reader},
    merkle::{self, Growing},
};

/// This many recent events are remembered by digest, so that most causes need no look-up in the store.
const RECENT_MAX: usize = 16 * 1024;

/// Holds the state of the walk over the events.
pub(super) struct Chain<'a> {
    pub log: &'a dyn Reader,
    pub whole: bool,
    /// Holds all blocks if they were checked before the events.
    pub blocks: Option<Blocks>,
    pub genesis: Option<Cid>,
    pub next: u64,
    /// The event before; none at the beginning and after a hole.
    pub before: Option<Before>,
    /// Holds the tree so far. None once an event is missing or its bytes are in doubt.
    pub tree: Option<Growing>,
    pub heads: Heads,
    pub(super) recent: Recent,
    /// Holds the blocks that were already checked, each with the form it is named as.
    pub known: HashSet<(Cid, Form)>,
    pub(super) open_calls: OpenCalls,
    /// Holds the payloads that were named, if `blocks` does not record it.
    pub paid: HashSet<Cid>,
    /// Maps each erased payload to the seq of the last event that erases it.
    pub erased: HashMap<Cid, u64>,
    /// Maps each payload without bytes to what the events say that name it.
    pub missing: HashMap<Cid, Missing>,
    pub refs: Vec<Cid>,
    pub pay: Vec<Cid>,
}

impl Chain<'_> {
    /// Forgets the tree and the previous event: after a gap, neither the root nor the next `prev` can be checked.
    pub(super) fn break_off(&mut self) {
        self.tree = None;
        self.before = None;
    }

    pub(super) fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError> {
        // An event's CID has the codec DAG-CBOR. The same digest under another codec names no event.
        if cid.codec() != Codec::DagCbor {
            return Ok(None);
        }
        match self.recent.get(cid.digest()) {
            Some(seq) => Ok(Some(seq)),
            None => self.log.seq_of(cid),
        }
    }

    /// Returns whether a name is that of an event, or is named as a block that is no payload.
    pub(super) fn is_no_payload(&self, cid: &Cid) -> Result<bool, LogError> {
        let forms = [Form::Contract, Form::Plan, Form::Genesis];
        let named_so = forms.into_iter().any(|form| self.known.contains(&(*cid, form)));
        Ok(named_so || self.genesis == Some(*cid) || self.seq_of(cid)?.is_some())
    }
}

/// Holds what events say of a payload without bytes.
pub(super) struct Missing {
    /// The first and the last seq that name it.
    pub first: u64,
    pub last: u64,
    /// The bytes of content that the first states.
    pub len: u64,
}

/// Maps the digests of recent events to their seqs. Each digest has one slot, and the latest event that maps to a slot
/// takes it.
pub(super) struct Recent(Vec<(Sha256Digest, u64)>);

impl Recent {
    pub(super) fn new() -> Self {
        // No event has this seq, so it marks an empty slot.
        Self(vec![([0; 32], u64::MAX); RECENT_MAX])
    }

    pub(super) fn put(&mut self, digest: &Sha256Digest, seq: u64) {
        self.0[Self::place(digest)] = (*digest, seq);
    }

    pub(super) fn get(&self, digest: &Sha256Digest) -> Option<u64> {
        let (held, seq) = self.0[Self::place(digest)];
        (held == *digest && seq != u64::MAX).then_some(seq)
    }

    /// Returns the slot of a digest. The bytes of a SHA-256 digest are evenly spread, so the first two serve as the
    /// hash.
    pub(super) fn place(digest: &Sha256Digest) -> usize {
        usize::from(u16::from_be_bytes([digest[0], digest[1]])) % RECENT_MAX
    }
}

/// Says where a head comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The head is in the log or in the file beside it.
    Own,
    /// The caller gave the head.
    Given,
    /// The caller gave the head, and a key of this log signed it that is not in force at its size.
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

/// Holds the heads of a log and the keys that open them.
#[derive(Default)]
pub(super) struct Heads {
    pub keys: Option<Keys>,
    /// Counts the key rotations that were met among the events.
    pub rotated: usize,
    pub heads: Vec<(Checkpoint, Whose)>,
    /// Holds the heads whose root differs from the root of the log's tree at their size.
    pub disagreeing: Vec<(Checkpoint, Whose)>,
}

impl Heads {
    /// Returns the log's own head.
    pub(super) fn own(&self) -> Option<&Checkpoint> {
        self.heads.iter().find(|(_, whose)| *whose == Whose::Own).map(|(head, _)| head)
    }

    /// Compares the root of the tree with the heads of its size.
    pub fn compare(&mut self, size: u64, root: impl Fn() -> merkle::Hash) {
        for (head, whose) in self.heads.iter().filter(|(head, _)| head.size == size) {
            if root() != head.root {
                self.disagreeing.push((head.clone(), *whose));
            }
        }
    }
}

/// Says what a stored block is by its own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// The bytes are gone.
    Gone,
    /// The bytes are invalid, and the fault was reported.
    Broken,
    Raw,
    Payload,
    /// A payload in parts, which were not checked yet.
    Large,
    Contract,
    Plan,
    Genesis,
    /// Strict DAG-CBOR of a form that this build does not know.
    Other,
}

/// Holds what is remembered of a block, in 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub number: u64,
    /// Counts the bytes of a raw block, or the bytes of content of a payload.
    pub len: u32,
    pub form: Form,
    pub codec: Codec,
    /// Says whether anything names the block. `paid` says whether an event names it as a payload.
    pub named: bool,
    pub paid: bool,
}

/// Holds every block that existed when the walk over the blocks began, by rising number.
#[derive(Default)]
pub(super) struct Blocks(pub(super) Vec<Row>);

impl Blocks {
    /// Counts the payloads that events name and that are valid.
    pub fn payloads(&self) -> u64 {
        self.0.iter().filter(|row| row.paid && row.form == Form::Payload).count() as u64
    }

    pub fn row(&mut self, at: usize) -> &mut Row {
        &mut self.0[at]
    }

    /// Returns the index of a block; returns none if it is not among these.
    pub fn place(&self, cid: &Cid, log: &dyn Reader) -> Result<Option<usize>, LogError> {
        let Some(number) = log.number_of(cid)? else { return Ok(None) };
        let at = self.0.binary_search_by_key(&number, |row| row.number).ok();
        Ok(at.filter(|at| self.0[*at].codec == cid.codec()))
    }
}

/// Holds the bytes that are stored under a name.
pub(super) enum Bytes {
    Good(Vec<u8>),
    /// The bytes do not hash to the name, and the fault was reported.
    Bad,
}
