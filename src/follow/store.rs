//! Where a followed log is written: the one writer of its directory, as long as it is followed.
//!
//! Invariants:
//! - one follower at a time: it holds the directory's lock;
//! - each batch is one commit: a crash leaves it whole or not at all, and following goes on after it;
//! - nothing is erased before the end of a pass: whether an erasure holds is known once all its events are kept and folded.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt,
};

use serde_bytes::ByteBuf;

use super::{
    Refused,
    chain::{Edge, Held},
    evidence::Evidence,
};
use crate::{
    block::{Block, Cid, Codec, encode, payload::INLINE_MAX},
    event::Event,
    follow::{
        copy::{
            FOLLOWED_MAX, Followed, FollowedError, ROTATIONS, evidence, is_behind, keep_evidence, keys, path,
            signed,
        },
        rules::{Batch, Signed},
    },
    identity::rotation::Keys,
    ledger::opening,
    log::{
        Log, LogError, Reader, Stored,
        home::{Home, Lock, write_secret},
        sqlite::{SqliteLog, SqliteReader},
    },
    merkle::{self, Growing, Hash, TileRow, Tiles, leaf_hash},
    query::{self, QueryError, View, erasure},
    state,
};

/// Erased payloads read from the state at once.
const NAMES_READ: u64 = 4096;
/// Events that one look searches for missing payloads.
const LOOKED_MAX: u64 = 64 * 1024;
/// Payloads of events that one look takes up.
const REFS_MAX: usize = 128 * 1024;
/// Missing blocks that one look returns; the parts of the last payload may exceed it.
const ABSENT_MAX: usize = 1024;

pub struct Store {
    home: Home,
    log: SqliteLog,
    reader: SqliteReader,
    /// Erased payloads with the seq of the erasure, as far as the state and this pass know.
    erased: HashMap<Cid, u64>,
    /// Those of them whose content has come in this pass.
    again: BTreeSet<Cid>,
    _lock: Lock,
}

/// The payloads of some events, as one look found them.
pub struct Looked {
    /// Missing payloads and parts of payloads.
    pub absent: Vec<Cid>,
    /// Each payload that was looked for, with the seq of the event that holds it.
    pub held: Vec<(Cid, u64)>,
    /// The seq to look on from; `None` at the end.
    pub next: Option<u64>,
}

impl Store {
    /// Locks the directory of `log` for writing, and creates it if there is none.
    pub fn open(home: &Home, log: &Cid) -> Result<Self, FollowedError> {
        let dir = path(home, log);
        if !dir.exists() && Followed::count(home)? >= FOLLOWED_MAX {
            return Err(FollowedError::TooMany);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let home = Home::open(&dir)?;
        let lock =
            home.lock(&format!("a cairn process that follows this log (process {})", std::process::id()))?;
        let log = SqliteLog::open(&home.log_path(), true)?;
        let reader = SqliteReader::open(&home.log_path())?;
        // A state that cannot be read is derived anew at the end of the pass, from all that is here.
        let erased = state::open(&home.state_path()).and_then(|state| state::erasures(&state));
        let erased = erased.unwrap_or_default().into_iter().collect();
        Ok(Self { home, log, reader, erased, again: BTreeSet::new(), _lock: lock })
    }

    pub fn signed(&self, keys: &Keys) -> Option<Signed> {
        signed(&self.home, keys)
    }

    /// Returns the log's keys as far as they were seen, beginning with its first.
    pub fn keys(&self, first: Keys) -> Result<Keys, Refused> {
        keys(&self.home, first)
    }

    /// Notes the events that changed the log's keys: all of them or none.
    pub fn note_keys(&self, rotations: &[ByteBuf]) -> io::Result<()> {
        write_secret(&self.home.dir().join(ROTATIONS), &encode(&rotations))
    }

    pub fn evidence(&self) -> Result<Option<Evidence>, FollowedError> {
        evidence(&self.home)
    }

    /// Returns the end of the held part. Folded events are not hashed again; a wrong fold shows in the next root.
    pub fn edge(&self) -> Result<Edge, LogError> {
        let Some(tip) = self.reader.tip()? else {
            return Ok(Edge::default());
        };
        let folded = View::open(&self.home).and_then(|view| view.edge()).unwrap_or_default();
        let mut tree = if folded.size() <= tip.seq + 1 { folded } else { Growing::new() };
        let from = tree.size();
        self.leaves(from, tip.seq + 1, &mut |leaf| {
            tree.push(leaf);
            if tree.size().is_multiple_of(NAMES_READ) {
                tree.take_changed();
            }
        })?;
        tree.take_changed();
        Ok(Edge { tree, last: Some((tip.cid, tip.ts)) })
    }

    /// Notes the largest signed head: whole or not at all.
    pub fn note(&self, head: &str) -> io::Result<()> {
        self.home.replace_head(head)
    }

    pub fn keep(&mut self, batch: &Batch) -> Result<(), LogError> {
        self.log.copy(&batch.blocks, &batch.events)?;
        let erased = batch.erased.iter().copied();
        self.erased.extend(erased);
        let come = batch.blocks.iter().map(Block::cid).filter(|cid| self.erased.contains_key(cid));
        self.again.extend(come);
        Ok(())
    }

    /// Tells the state which of the first `folded` events hold payloads that came in this pass although the log
    /// erases them somewhere. They may have been missing when those events were folded.
    pub fn tell_again(&self, folded: u64) -> Result<(), LogError> {
        if self.again.is_empty() || folded == 0 {
            return Ok(());
        }
        self.tell_late(&query::erasure::held_by(&self.reader, &self.again, 0, folded)?)
    }

    /// Searches the events from `from` on for missing payloads.
    pub fn look(&self, from: u64) -> Result<Looked, LogError> {
        let mut refs = Vec::new();
        let mut next = None;
        self.reader.events(from, &mut |row| {
            if row.seq >= from + LOOKED_MAX || refs.len() >= REFS_MAX {
                next = Some(row.seq);
                return ControlFlow::Break(());
            }
            let event = Event::open(row.bytes.to_vec()).ok();
            let pay = event.iter().flat_map(|event| &event.fields().pay);
            refs.extend(pay.map(|pay| (pay.cid, pay.len, row.seq)));
            ControlFlow::Continue(())
        })?;
        let (mut absent, mut held) = (BTreeSet::new(), Vec::with_capacity(refs.len()));
        for (cid, len, seq) in refs {
            // An event is looked at whole, so that the next time begins with another.
            if absent.len() >= ABSENT_MAX && held.last().is_some_and(|(_, last)| *last != seq) {
                next = Some(seq);
                break;
            }
            held.push((cid, seq));
            if !self.has_block(&cid)? {
                // What was erased after it was named is not to be had.
                if self.erased.get(&cid).is_none_or(|erased| *erased < seq) {
                    absent.insert(cid);
                }
            } else if len > INLINE_MAX as u64
                && let Some(Stored::Present(bytes)) = self.reader.block(&cid)?
            {
                for part in query::payload_parts(&bytes).unwrap_or_default() {
                    if !self.has_block(&part)? {
                        absent.insert(part);
                    }
                }
            }
        }
        Ok(Looked { absent: absent.into_iter().collect(), held, next })
    }

    /// Tells the state of payloads that came after their events were folded. Of later events it learns when it folds
    /// them.
    pub fn tell_late(&self, held: &[(Cid, u64)]) -> Result<(), LogError> {
        let mut rows = Vec::with_capacity(held.len());
        for (cid, seq) in held {
            rows.extend(self.reader.number_of(cid)?.map(|block| (block, *seq)));
        }
        let told = state::open(&self.home.state_path()).and_then(|mut state| state::hold(&mut state, &rows));
        if let Err(err) = told {
            // A damaged state is derived anew, from all that is here; any other learns it when these are looked at again.
            tracing::warn!(dir = %self.home.dir().display(), %err, "late payloads are not in the state yet");
        }
        Ok(())
    }

    /// Folds what is held, so that questions see it. This is done under the lock of the pass, because whoever reads the
    /// log folds it too and would have the lock.
    pub fn fold(&self) -> Result<(), QueryError> {
        if is_behind(&self.home)? {
            opening::derive(&self.home, &self.log, &mut |_| {})?;
        }
        Ok(())
    }

    /// Removes the bytes of payloads whose erasure is folded and still holds, with their parts, and of no other block.
    pub fn erase(&mut self) -> Result<(), QueryError> {
        let state = state::open_reader(&self.home.state_path(), &self.home.log_path())?;
        self.log.erase(&erasure::pending(&state, &self.reader)?)?;
        Ok(self.log.cut_left()?)
    }

    pub fn keep_evidence(&self, evidence: &Evidence) -> io::Result<()> {
        keep_evidence(&self.home, evidence)
    }

    fn leaves(&self, from: u64, to: u64, visit: &mut dyn FnMut(Hash)) -> Result<(), LogError> {
        let mut at = from;
        while at < to {
            let cids = self.reader.cids(at, to.min(at + NAMES_READ))?;
            if cids.is_empty() {
                return Err(LogError::Corrupt { what: "events are missing" });
            }
            at += cids.len() as u64;
            cids.iter().for_each(|cid| visit(leaf_hash(cid)));
        }
        Ok(())
    }
}

impl Held for Store {
    fn has_event(&self, cid: &Cid) -> Result<bool, LogError> {
        Ok(cid.codec() == Codec::DagCbor && self.reader.seq_of(cid)?.is_some())
    }

    fn has_block(&self, cid: &Cid) -> Result<bool, LogError> {
        self.reader.has_bytes(cid)
    }

    fn prefix(&self, size: u64) -> Result<(Hash, Vec<Hash>), LogError> {
        let events = self.reader.tip()?.map_or(0, |tip| tip.seq + 1);
        let mut tree = Growing::new();
        self.leaves(0, events, &mut |leaf| tree.push(leaf))?;
        let tiles = ProofTiles(tree.take_changed());
        let proven = merkle::root_at(&tiles, size)
            .and_then(|root| Ok((root, merkle::consistency(&tiles, size, events)?)));
        proven.map_err(|_| LogError::Corrupt { what: "events are missing" })
    }
}

/// Tiles in memory while one proof is made: about 32 bytes an event of the log.
struct ProofTiles(Vec<TileRow>);

impl Tiles for ProofTiles {
    type Error = std::convert::Infallible;

    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Self::Error> {
        let mut rows = self.0.iter();
        Ok(rows.find(|row| (row.level, row.index) == (level, index)).map(|row| row.hashes.clone()))
    }
}
