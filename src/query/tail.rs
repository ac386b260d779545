//! Questions of a follower of this log: events as stored bytes, blocks, and consistency proofs.
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
    /// Returns the bytes of the events from `from` to before `to`, as many as fit into `bytes_max`.
    ///
    /// Empty only if there are none: at least one event is returned.
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

    /// Returns the block with this CID, which is no event: its bytes, or that they were erased.
    pub fn block(&self, cid: &Cid) -> Result<Option<Stored>, QueryError> {
        Ok(self.log.block(cid)?)
    }

    /// Returns the root over the first `old` events, and the consistency proof from there to the first `new`.
    pub fn extension(&self, old: u64, new: u64) -> Result<(Hash, Vec<Hash>), QueryError> {
        let proof = merkle::consistency(&self.tiles(), old, new).map_err(broken)?;
        Ok((self.root(old)?, proof))
    }

    /// Returns the right edge of the tree as far as it is folded, which is what appending to it needs.
    pub fn edge(&self) -> Result<Growing, QueryError> {
        Growing::resume(self.applied()?, &self.tiles()).map_err(broken)
    }
}
