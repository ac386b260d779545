//! A log as it comes from a peer: each event checked before it is believed, the root before any of them is kept.
//!
//! Invariants:
//! - no IO but look-ups through [`Held`];
//! - an event is accepted only as the next of its log, under its own hash, with a cause that came before.

use std::collections::{HashMap, HashSet};

use crate::{
    block::{Cid, Codec, links},
    event::{
        Body, Event,
        follows::{Before, Misplaced, Next},
        keeping::rotation,
        strict,
    },
    follow::Refused,
    identity::rotation::Keys,
    log::{LogError, sqlite::Copied},
    merkle::{self, Growing, Hash},
};

/// Events known by name, so that most causes need no look-up: several tails.
const RECENT_MAX: usize = 32 * 1024;
/// Leaves after which the tiles that the growing tree collects are dropped: nobody here needs them.
const TILES_EVERY: u64 = 4096;

/// What is stored already of the followed log.
pub trait Held {
    fn has_event(&self, cid: &Cid) -> Result<bool, LogError>;
    /// Returns whether a block is stored with its bytes. A block that was erased and that an event names again is
    /// asked for again.
    fn has_block(&self, cid: &Cid) -> Result<bool, LogError>;
    /// Returns the root over the first `size` held events, and the consistency proof from there to all held events.
    fn prefix(&self, size: u64) -> Result<(Hash, Vec<Hash>), LogError>;
}

/// The end of the held part of a log, to which further events are appended.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    pub tree: Growing,
    /// The last event, and when it was sealed.
    pub last: Option<(Cid, u64)>,
}

/// A block that an event links to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub cid: Cid,
    /// Whether the event cannot be understood without it. If such a block is missing, nothing is kept.
    pub needed: bool,
}

/// Events that were checked, with what they link to and what they erase.
#[derive(Debug, Default)]
pub struct Checked {
    pub events: Vec<Copied>,
    pub wanted: Vec<Wanted>,
    /// Erased payloads, each with the seq of its erasure.
    pub erased: Vec<(Cid, u64)>,
}

/// The chain as far as it has been checked.
pub struct Chain {
    log: Cid,
    edge: Edge,
    recent: HashSet<Cid>,
    /// Blocks asked for lately, and whether they were needed.
    asked: HashMap<Cid, bool>,
    refs: Vec<Cid>,
    pay: Vec<Cid>,
}

impl Chain {
    pub fn new(log: Cid, edge: Edge) -> Self {
        Self { log, edge, recent: HashSet::new(), asked: HashMap::new(), refs: Vec::new(), pay: Vec::new() }
    }

    /// Returns how many events there are so far, which is the next seq.
    pub fn size(&self) -> u64 {
        self.edge.tree.size()
    }

    pub fn root(&self) -> Hash {
        self.edge.tree.root()
    }

    /// Checks the next event and adds it to `checked`.
    pub fn push(
        &mut self,
        bytes: Vec<u8>,
        keys: &Keys,
        checked: &mut Checked,
        held: &dyn Held,
    ) -> Result<(), Refused> {
        let seq = self.size();
        let (mut refs, mut pay) = (std::mem::take(&mut self.refs), std::mem::take(&mut self.pay));
        let event = strict::read(&bytes, &mut refs, &mut pay).ok_or(Refused::Event { seq })?;
        let cid = Cid::of(Codec::DagCbor, &bytes);
        self.check_place(&event, seq)?;
        check_keys(&event, &bytes, keys)?;
        if let Some(cause) = &event.cause
            && !self.knows(cause, held)?
        {
            return Err(Refused::Cause { seq });
        }
        self.want(&event, &bytes, &refs, &pay, checked, held)?;
        let ts = event.ts;
        (self.refs, self.pay) = (refs, pay);
        checked.events.push(Copied { seq, cid, ts, bytes });
        self.edge.last = Some((cid, ts));
        self.edge.tree.push(merkle::leaf_hash(&cid));
        if self.size().is_multiple_of(TILES_EVERY) {
            self.edge.tree.take_changed();
        }
        if self.recent.len() >= RECENT_MAX {
            // What this forgets of events not stored yet is found in `checked` or refused: a tail is far shorter.
            self.recent = checked.events.iter().map(|event| event.cid).collect();
        }
        self.recent.insert(cid);
        Ok(())
    }

    fn check_place(&self, event: &strict::Checked<'_>, seq: u64) -> Result<(), Refused> {
        let before = self.edge.last.zip(seq.checked_sub(1));
        let before = before.map(|((cid, ts), seq)| Before { seq, cid, ts });
        match Next::from(event).misplaced(&self.log, before).next() {
            Some(Misplaced::OtherLog) => Err(Refused::OtherLog { seq }),
            Some(Misplaced::Seq | Misplaced::Prev | Misplaced::Ts) | None if event.seq != seq => {
                Err(Refused::Seq { expected: seq, found: event.seq })
            }
            Some(Misplaced::Seq | Misplaced::Prev | Misplaced::Ts) => Err(Refused::Link { seq }),
            None if before.is_none() && event.kind != "log.opened" => Err(Refused::Link { seq }),
            None => Ok(()),
        }
    }

    fn knows(&self, event: &Cid, held: &dyn Held) -> Result<bool, Refused> {
        Ok(self.recent.contains(event) || held.has_event(event)?)
    }

    /// Notes the blocks an event links to that are not stored, and the payload it erases.
    fn want(
        &mut self,
        event: &strict::Checked<'_>,
        bytes: &[u8],
        refs: &[Cid],
        pay: &[Cid],
        checked: &mut Checked,
        held: &dyn Held,
    ) -> Result<(), Refused> {
        if event.kind == "payload.erased" {
            let body = Event::open(bytes.to_vec()).ok().and_then(|event| event.body());
            if let Some(Body::PayloadErased(facts)) = body {
                checked.erased.push((facts.payload, event.seq));
            }
            return Ok(());
        }
        if event.seq == 0 {
            self.add(Wanted { cid: event.log, needed: true }, checked, held)?;
        }
        for cid in pay {
            self.add(Wanted { cid: *cid, needed: false }, checked, held)?;
        }
        if let Some(cid) = event.tool {
            self.add(Wanted { cid, needed: true }, checked, held)?;
        }
        // What is left are links in the body: contracts, plans, and events of this log or another.
        let needed = event.kind.starts_with("contract.");
        for cid in links(Codec::DagCbor, bytes).map_err(|_| Refused::Event { seq: event.seq })? {
            let named = [Some(event.log), event.prev, event.cause, event.tool].contains(&Some(cid));
            if !named && !refs.contains(&cid) && !pay.contains(&cid) && !self.knows(&cid, held)? {
                self.add(Wanted { cid, needed }, checked, held)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, wanted: Wanted, checked: &mut Checked, held: &dyn Held) -> Result<(), Refused> {
        if self.asked.get(&wanted.cid).is_some_and(|needed| *needed || !wanted.needed) {
            return Ok(());
        }
        if self.asked.len() >= RECENT_MAX {
            self.asked.clear();
        }
        self.asked.insert(wanted.cid, wanted.needed);
        if !held.has_block(&wanted.cid)? {
            checked.wanted.push(wanted);
        }
        Ok(())
    }
}

/// Checks that the log's key changes at exactly those events that the owner announced before sending any.
fn check_keys(event: &strict::Checked<'_>, bytes: &[u8], keys: &Keys) -> Result<(), Refused> {
    let expected = keys.rotated_at(event.seq).map(|key| key.public_key());
    let told = match event.kind {
        "log.key_rotated" => {
            let told = Event::open(bytes.to_vec()).ok().and_then(|event| rotation(&event));
            Some(told.ok_or(Refused::Keys)?.key)
        }
        _ => None,
    };
    if told == expected { Ok(()) } else { Err(Refused::Keys) }
}
