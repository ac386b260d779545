//! The follower's rules: what to ask next, and what to keep of the answers.
//!
//! Invariants:
//! - no IO but look-ups through [`Held`]: messages in, wishes out; the driver holds no rule;
//! - a signed head is noted before the first event under it is kept, so no owner can take it back unseen;
//! - events are kept once the tree over them is proven to begin the signed one, with the blocks they link to.

use std::collections::VecDeque;

use serde_bytes::ByteBuf;

use super::{
    Refused,
    chain::{Chain, Checked, Edge, Held, Wanted},
    evidence::{Evidence, begins},
    wire::{
        AskBlocks, AskHead, AskTail, BLOCK_MAX, BlockAnswer, End, NAMES_MAX, Request, Response,
        TAIL_BYTES_MAX, TAIL_FRAME, TAIL_MAX, ToldHead, proof,
    },
};
use crate::{
    block::{Block, Cid, Codec, decode, links, payload::Payload},
    event::{Event, Genesis, keeping::rotation},
    identity::{Checkpoint, rotation::Keys},
    log::sqlite::Copied,
    merkle::Hash,
};

/// Requests for blocks under way at once.
const ASKED_MAX: usize = 4;
/// Bytes of blocks held before they are stored, ahead of their events.
const BLOCKS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A head whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub note: String,
    pub head: Checkpoint,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Wish {
    Ask(Request),
    /// Keep the events that changed the log's keys, durably, before the head that a new one signed.
    Keys(Vec<ByteBuf>),
    /// Keep this head, durably, before anything that follows.
    Note(String),
    /// Keep these, durably and together.
    Keep(Batch),
    /// The pass is over.
    Done(Ending),
}

/// Blocks and events that are kept in one commit, with the payloads that these events erase.
#[derive(Debug, Default)]
pub struct Batch {
    pub blocks: Vec<Block>,
    pub erased: Vec<(Cid, u64)>,
    pub events: Vec<Copied>,
}

/// How following ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All events under the peer's head are held.
    Current,
    /// The peer shows an older head of the same log.
    Behind { told: u64 },
    /// The peer showed a head that cannot be of the log that is held.
    Forked(Box<Evidence>),
}

/// How many blocks did not come, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub withheld: u64,
    pub erased: u64,
    pub unknown: u64,
}

pub struct Machine {
    log: Cid,
    keys: Keys,
    /// The largest head that was accepted.
    held: Option<Signed>,
    chain: Chain,
    stage: Stage,
    lacking: Lacking,
}

enum Stage {
    Head,
    Tail { checked: Checked, bytes: usize },
    Blocks(Box<Fetching>),
    Done,
}

/// Blocks that are under way, and the events that wait for them.
struct Fetching {
    checked: Checked,
    /// Not yet asked for.
    wanted: VecDeque<Wanted>,
    /// Asked for, in the order in which answers come.
    asked: VecDeque<Wanted>,
    /// Pieces of the next block.
    piece: Vec<u8>,
    blocks: Vec<Block>,
    bytes: usize,
}

impl Machine {
    /// Makes the rules for a pass that goes on from `edge`, under the largest head accepted so far.
    pub fn new(log: Cid, keys: Keys, held: Option<Signed>, edge: Edge) -> Self {
        let chain = Chain::new(log, edge);
        Self { log, keys, held, chain, stage: Stage::Head, lacking: Lacking::default() }
    }

    /// Returns the first request.
    pub fn begin(&mut self) -> Request {
        self.stage = Stage::Head;
        Request::Head(AskHead { held: self.held.as_ref().map_or(0, |held| held.head.size) })
    }

    pub fn lacking(&self) -> Lacking {
        self.lacking
    }

    /// Returns how many events are checked, and the size of the head they are checked against.
    pub fn reached(&self) -> (u64, u64) {
        (self.chain.size(), self.held.as_ref().map_or(0, |held| held.head.size))
    }

    /// Asks again for blocks that did not come with their events. Call it only after [`Ending::Current`].
    pub fn again(&mut self, cids: &[Cid]) -> Result<Vec<Wish>, Refused> {
        let wanted = cids.iter().map(|cid| Wanted { cid: *cid, needed: false }).collect();
        self.fetch(Box::new(Fetching::new(Checked::default(), wanted)), Vec::new())
    }

    /// Takes one message and returns what to do, in order. After an error this machine must not be used any more.
    pub fn handle(&mut self, message: Response, held: &dyn Held) -> Result<Vec<Wish>, Refused> {
        if let Response::Refused(reason) = message {
            return Err(Refused::Declined(reason));
        }
        match (std::mem::replace(&mut self.stage, Stage::Done), message) {
            (Stage::Head, Response::Head(told)) => self.head(&told, held),
            (Stage::Tail { checked, bytes }, Response::Events(events)) => {
                self.events(checked, bytes, events, held)
            }
            (Stage::Tail { checked, .. }, Response::End(end)) => self.end(checked, &end),
            (Stage::Blocks(fetching), Response::Block(answer)) => self.block(fetching, answer, held),
            _ => Err(Refused::Unasked),
        }
    }

    fn head(&mut self, told: &ToldHead, held: &dyn Held) -> Result<Vec<Wish>, Refused> {
        let keys = self.keys_with(told)?;
        let head = keys.open(&told.checkpoint).map_err(Refused::Head)?;
        if head.size == 0 {
            return Err(Refused::HeadForm);
        }
        let signed = Signed { note: told.checkpoint.clone(), head };
        let known = self.held.as_ref();
        if let Some(known) = known.filter(|known| signed.head.size < known.head.size) {
            return self.older(known, &signed, held);
        }
        let root: Hash = told.root.as_slice().try_into().map_err(|_| Refused::Proof)?;
        let proof = proof(&told.proof).ok_or(Refused::Proof)?;
        let size = known.map_or(0, |known| known.head.size);
        if !begins(size, &root, &signed.head, &proof) {
            return Err(Refused::Proof);
        }
        let grown = keys != self.keys;
        self.keys = keys;
        let mut wishes: Vec<Wish> = grown.then(|| Wish::Keys(told.rotations.clone())).into_iter().collect();
        match self.held.as_ref() {
            Some(known) if known.head.root != root => Ok(self.forked(known, &signed, &root, &proof)),
            Some(known) if known.head.size == signed.head.size => self.go_on(wishes),
            Some(_) | None => {
                wishes.push(Wish::Note(signed.note.clone()));
                self.held = Some(signed);
                self.go_on(wishes)
            }
        }
    }

    /// Returns the log's keys after the peer's word on them, which must continue those known so far. If the peer
    /// shows an older state, the known ones stay.
    fn keys_with(&self, told: &ToldHead) -> Result<Keys, Refused> {
        let (log, keys) = genesis(told)?;
        if log != self.log || keys.first() != self.keys.first() {
            return Err(Refused::Identity);
        }
        if !keys.all().zip(self.keys.all()).all(|(told, known)| told == known) {
            return Err(Refused::Keys);
        }
        if keys.all().count() <= self.keys.all().count() {
            return Ok(self.keys.clone());
        }
        // The head that is held would be under a key that had been given up by then.
        let size = self.held.as_ref().map_or(0, |held| held.head.size);
        match keys.at(size) == self.keys.at(size) {
            true => Ok(keys),
            false => Err(Refused::Keys),
        }
    }

    /// Judges an older head: it is one of the same log, or it proves a fork.
    fn older(&self, known: &Signed, told: &Signed, held: &dyn Held) -> Result<Vec<Wish>, Refused> {
        let behind = Ok(vec![Wish::Done(Ending::Behind { told: told.head.size })]);
        if told.head.size > self.chain.size() {
            return behind;
        }
        let (root, proof) = held.prefix(told.head.size)?;
        if root == told.head.root {
            return behind;
        }
        if self.chain.size() == known.head.size {
            return Ok(self.forked(known, told, &root, &proof));
        }
        // The proof would be over events that are not all here yet.
        Err(Refused::Proof)
    }

    fn forked(&self, known: &Signed, told: &Signed, root: &Hash, proof: &[Hash]) -> Vec<Wish> {
        let log = self.log.to_string();
        let evidence = Evidence::new(log, &self.keys, &known.note, &told.note, root, proof);
        vec![Wish::Done(Ending::Forked(Box::new(evidence)))]
    }

    /// Asks for the next tail, or ends if there is none.
    fn go_on(&mut self, mut wishes: Vec<Wish>) -> Result<Vec<Wish>, Refused> {
        let (from, size) = self.reached();
        if from >= size {
            let root = self.held.as_ref().map(|held| held.head.root);
            // What stands past the head, or instead of it, was not followed: something else wrote it here.
            if from > size || root.is_some_and(|root| root != self.chain.root()) {
                return Err(Refused::Root { size: from });
            }
            wishes.push(Wish::Done(Ending::Current));
            return Ok(wishes);
        }
        self.stage = Stage::Tail { checked: Checked::default(), bytes: 0 };
        wishes.push(Wish::Ask(Request::Tail(AskTail { from, max: TAIL_MAX, size })));
        Ok(wishes)
    }

    fn events(
        &mut self,
        mut checked: Checked,
        mut bytes: usize,
        events: Vec<ByteBuf>,
        held: &dyn Held,
    ) -> Result<Vec<Wish>, Refused> {
        let size = self.reached().1;
        for event in events {
            bytes += event.len();
            let many = checked.events.len() as u64 >= TAIL_MAX || bytes > TAIL_BYTES_MAX + TAIL_FRAME;
            if many || self.chain.size() >= size {
                return Err(Refused::TooMuch);
            }
            self.chain.push(event.into_vec(), &self.keys, &mut checked, held)?;
        }
        self.stage = Stage::Tail { checked, bytes };
        Ok(Vec::new())
    }

    fn end(&mut self, mut checked: Checked, end: &End) -> Result<Vec<Wish>, Refused> {
        let known = self.held.as_ref().ok_or(Refused::Unasked)?;
        if checked.events.is_empty() || end.next != self.chain.size() {
            return Err(Refused::Stalled);
        }
        let proven = proof(&end.proof)
            .is_some_and(|proof| begins(self.chain.size(), &self.chain.root(), &known.head, &proof));
        if !proven {
            return Err(Refused::Root { size: self.chain.size() });
        }
        let wanted = std::mem::take(&mut checked.wanted).into();
        self.fetch(Box::new(Fetching::new(checked, wanted)), Vec::new())
    }

    /// Asks for more blocks. If none are left, keeps the events and goes on.
    fn fetch(&mut self, mut fetching: Box<Fetching>, mut wishes: Vec<Wish>) -> Result<Vec<Wish>, Refused> {
        while !fetching.wanted.is_empty() && fetching.asked.len() <= (ASKED_MAX - 1) * NAMES_MAX {
            let names = fetching.wanted.len().min(NAMES_MAX);
            let cids = fetching.wanted.iter().take(names).map(|wanted| wanted.cid).collect();
            wishes.push(Wish::Ask(Request::Blocks(AskBlocks { cids })));
            let asked = fetching.wanted.drain(..names);
            fetching.asked.extend(asked);
        }
        if !fetching.asked.is_empty() {
            self.stage = Stage::Blocks(fetching);
            return Ok(wishes);
        }
        // Asking first lets the next events come while these are being stored.
        let mut wishes = self.go_on(wishes)?;
        let Fetching { checked, blocks, .. } = *fetching;
        let keep = Wish::Keep(Batch { blocks, erased: checked.erased, events: checked.events });
        let last = wishes.len() - usize::from(matches!(wishes.last(), Some(Wish::Done(_))));
        wishes.insert(last, keep);
        Ok(wishes)
    }

    fn block(
        &mut self,
        mut fetching: Box<Fetching>,
        answer: BlockAnswer,
        held: &dyn Held,
    ) -> Result<Vec<Wish>, Refused> {
        let wanted = *fetching.asked.front().ok_or(Refused::Unasked)?;
        match answer {
            BlockAnswer::Piece(bytes) | BlockAnswer::Present(bytes)
                if fetching.piece.len() + bytes.len() > BLOCK_MAX =>
            {
                return Err(Refused::Block { cid: wanted.cid });
            }
            BlockAnswer::Piece(bytes) if !bytes.is_empty() => {
                fetching.piece.extend(bytes.into_vec());
                self.stage = Stage::Blocks(fetching);
                return Ok(Vec::new());
            }
            BlockAnswer::Present(bytes) => {
                let mut whole = std::mem::take(&mut fetching.piece);
                whole.extend(bytes.into_vec());
                fetching.take(&wanted, whole, held)?;
            }
            BlockAnswer::Piece(_) => return Err(Refused::Unasked),
            absent if wanted.needed || !fetching.piece.is_empty() => {
                return Err(Refused::Absent { cid: wanted.cid, answer: Box::new(absent) });
            }
            BlockAnswer::Erased => self.lacking.erased += 1,
            BlockAnswer::Withheld => self.lacking.withheld += 1,
            BlockAnswer::Unknown => self.lacking.unknown += 1,
        }
        fetching.asked.pop_front();
        let mut wishes = Vec::new();
        if fetching.bytes >= BLOCKS_BYTES_MAX {
            fetching.bytes = 0;
            let blocks = std::mem::take(&mut fetching.blocks);
            wishes.push(Wish::Keep(Batch { blocks, ..Batch::default() }));
        }
        self.fetch(fetching, wishes)
    }
}

impl Fetching {
    fn new(checked: Checked, wanted: VecDeque<Wanted>) -> Self {
        let (asked, piece, blocks) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { checked, wanted, asked, piece, blocks, bytes: 0 }
    }

    /// Takes a block that is complete, and asks for the parts it names.
    fn take(&mut self, wanted: &Wanted, bytes: Vec<u8>, held: &dyn Held) -> Result<(), Refused> {
        let refused = || Refused::Block { cid: wanted.cid };
        let block = Block::new(wanted.cid.codec(), bytes);
        if block.cid() != wanted.cid || links(block.cid().codec(), block.bytes()).is_err() {
            return Err(refused());
        }
        if wanted.cid.codec() == Codec::DagCbor
            && let Ok(payload) = decode::<Payload>(block.bytes())
        {
            for part in payload.layout(None).map_err(|_| refused())? {
                if !held.has_block(&part.cid)? {
                    self.wanted.push_front(Wanted { cid: part.cid, needed: false });
                }
            }
        }
        self.bytes += block.bytes().len();
        self.blocks.push(block);
        Ok(())
    }
}

/// Returns the name and the keys of the log in a peer's first answer.
pub fn genesis(told: &ToldHead) -> Result<(Cid, Keys), Refused> {
    let log = Cid::of(Codec::DagCbor, &told.genesis);
    let genesis: Genesis = decode(&told.genesis).map_err(|_| Refused::Identity)?;
    let keys = Keys::of_genesis(log, &genesis.origin, &genesis.key).map_err(|_| Refused::Identity)?;
    if keys.first().vkey() != told.vkey {
        return Err(Refused::Identity);
    }
    Ok((log, followed_by(keys, &told.rotations)?))
}

/// Returns the keys of a log after these changes, each of which is an event of that log.
pub fn followed_by(mut keys: Keys, rotations: &[ByteBuf]) -> Result<Keys, Refused> {
    for bytes in rotations {
        let event = Event::open(bytes.to_vec()).ok().filter(|event| event.fields().log == keys.log());
        let change = event.and_then(|event| rotation(&event)).ok_or(Refused::Keys)?;
        keys.rotate(&change).map_err(|_| Refused::Keys)?;
    }
    Ok(keys)
}
