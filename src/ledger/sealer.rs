//! Sealing: a fact gets its place in the log.
//!
//! Invariants:
//! - seqs have no gap, and no event has an earlier time than the one before it;
//! - every event is a leaf of the tree that the next head signs;
//! - the clock is read once for each command: all that it decides and records has one time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    block::Cid,
    event::{Event, EventError, Fact, Position},
    identity::Signer,
    log::Tip,
    merkle::{Growing, leaf_hash},
};

/// Returns the machine's clock in microseconds since the epoch.
pub(super) fn clock_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// Places facts in the log, one after another.
pub(super) struct Sealer {
    /// The log's name.
    pub log: Cid,
    pub tip: Option<Tip>,
    /// The time at which the clock was last read, in microseconds since the epoch.
    pub looked_us: u64,
    /// The tree over every event up to `tip`.
    pub tree: Growing,
    pub signer: Signer,
}

impl Sealer {
    /// Reads the clock.
    pub fn look(&mut self) {
        self.looked_us = clock_us();
    }

    /// Returns the time of the next event in microseconds since the epoch, never before the last event's.
    pub fn now_us(&self) -> u64 {
        self.tip.map_or(self.looked_us, |tip| self.looked_us.max(tip.ts))
    }

    /// Returns the seq of the next event.
    pub fn next_seq(&self) -> u64 {
        self.tip.map_or(0, |tip| tip.seq + 1)
    }

    /// Seals `fact` as the next event. Errors: the event breaks a bound of the format; nothing has changed then.
    pub fn seal(&mut self, fact: Fact) -> Result<Event, EventError> {
        let place = Position {
            log: self.log,
            seq: self.next_seq(),
            prev: self.tip.map(|tip| tip.cid),
            ts: self.now_us(),
        };
        let event = Event::seal(fact, place)?;
        self.follow(&event);
        Ok(event)
    }

    /// Moves the tip and the tree on to a sealed event.
    pub fn follow(&mut self, event: &Event) {
        let fields = event.fields();
        self.tip = Some(Tip { seq: fields.seq, cid: event.cid(), ts: fields.ts });
        self.tree.push(leaf_hash(&event.cid()));
    }

    /// Signs the head over everything sealed so far, for the commit that makes it durable. If it were signed after
    /// the commit, a crash could leave events under no head, and a start could not tell them from forged ones.
    pub fn sign(&mut self) -> String {
        self.tree.forget_tiles();
        self.signer.sign_checkpoint(self.tree.size(), &self.tree.root())
    }
}
