//! Sealing: a fact gets its place in the log.
//!
//! Invariants:
//! - places follow each other without a gap, and no event is told an earlier time than the one before it;
//! - the clock is looked at once for each command: all that it decides and records is told one time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    block::Cid,
    event::{Event, Fact, Place},
    ledger::writer::{Draft, Fault},
    log::Tip,
};

/// Places facts in the log, one after another.
pub(super) struct Sealer {
    /// The log's name.
    pub log: Cid,
    pub tip: Option<Tip>,
    /// When the clock was last looked at.
    pub looked_us: u64,
}

impl Sealer {
    /// Looks at the clock.
    pub(super) fn look(&mut self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.looked_us = since.map_or(0, |since| since.as_micros() as u64);
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
        draft.batch.events.push(event);
        Ok(draft.batch.events.last().expect("one was pushed on the line before"))
    }
}
