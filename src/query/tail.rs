//! What somebody who follows this log asks for: events as they are stored, blocks, and that one tree begins another.
//!
//! Invariant: bytes leave as they are stored; whoever gets them hashes them again.

use std::ops::ControlFlow;

use super::{QueryError, View, proof::broken};
use crate::{
    block::Cid,
    event::EVENT_MAX,
    log::Stored,
    merkle::{self, Growing, Hash},
};

impl View {
    /// The bytes of the events from `from` up to, not with, `to`, as many as `bytes_max` holds.
    ///
    /// Empty only where there are none: the bound is never below one event.
    pub fn event_bytes(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Vec<u8>>, QueryError> {
        let mut left = bytes_max.max(EVENT_MAX);
        let mut events = Vec::new();
        self.log.events(from, &mut |row| {
            if row.seq >= to || row.bytes.len() > left {
                return ControlFlow::Break(());
            }
            left -= row.bytes.len();
            events.push(row.bytes.to_vec());
            ControlFlow::Continue(())
        })?;
        Ok(events)
    }

    /// The block of this name, which is no event: its bytes, or that they were erased.
    pub fn block(&self, cid: &Cid) -> Result<Option<Stored>, QueryError> {
        Ok(self.log.block(cid)?)
    }

    /// The root over the first `old` events, and the proof that the tree over the first `new` begins with it.
    pub fn extension(&self, old: u64, new: u64) -> Result<(Hash, Vec<Hash>), QueryError> {
        let proof = merkle::consistency(&self.tiles(), old, new).map_err(broken)?;
        Ok((self.root(old)?, proof))
    }

    /// The right edge of the tree as far as it is folded: what is needed to append to it.
    pub fn edge(&self) -> Result<Growing, QueryError> {
        Growing::resume(self.applied()?, &self.tiles()).map_err(broken)
    }
}
