//! Sealing: a fact gets its place in the log.
//!
//! Invariants:
//! - places follow each other without a gap, and no event is told an earlier time than the one before it;
//! - every event is a leaf of the tree that the next head signs;
//! - the clock is looked at once for each command: all that it decides and records is told one time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    block::Cid,
    event::{Event, Fact, Place},
    identity::Signer,
    ledger::writer::{Draft, Fault},
    log::Tip,
    merkle::{Growing, leaf_hash},
};

/// Microseconds since the epoch, by the machine's clock.
pub(super) fn clock_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// Places facts in the log, one after another.
pub(super) struct Sealer {
    /// The log's name.
    pub log: Cid,
    pub tip: Option<Tip>,
    /// When the clock was last looked at.
    pub looked_us: u64,
    /// The tree over every event up to `tip`.
    pub tree: Growing,
    pub signer: Signer,
}

impl Sealer {
    /// Looks at the clock.
    pub(super) fn look(&mut self) {
        self.looked_us = clock_us();
    }

    /// Microseconds since the epoch, never before the last event: what the next event is told.
    pub fn now_us(&self) -> u64 {
        self.tip.map_or(self.looked_us, |tip| self.looked_us.max(tip.ts))
    }

    /// Seals `fact` as the next event of this commit.
    pub(super) fn seal<'d>(&mut self, fact: Fact, draft: &'d mut Draft) -> Result<&'d Event, Fault> {
        let place = Place {
            log: self.log,
            seq: self.tip.map_or(0, |tip| tip.seq + 1),
            prev: self.tip.map(|tip| tip.cid),
            ts: self.now_us(),
        };
        let event = Event::seal(fact, place)?;
        self.tip = Some(Tip { seq: place.seq, cid: event.cid(), ts: place.ts });
        self.tree.push(leaf_hash(&event.cid()));
        draft.batch.events.push(event);
        Ok(draft.batch.events.last().expect("one was pushed on the line before"))
    }

    /// Signs the head over everything sealed so far, for the commit that makes it durable.
    pub(super) fn sign(&mut self) -> String {
        self.tree.forget_tiles();
        self.signer.sign_checkpoint(self.tree.size(), &self.tree.root())
    }
}
