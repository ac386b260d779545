//! The log: every event and block this node knows, in order of arrival.
//!
//! Invariants:
//! - append-only: events are never changed or removed; erasing a block leaves its name, and its bytes may be recorded again;
//! - a block is known by its whole name: raw bytes and dag-cbor of one digest are two blocks;
//! - an append is all or nothing, and durable when it returns: events, and the signed head over them;
//! - no caller above this room knows which store is behind it.

pub mod fresh;
pub mod home;
pub mod sqlite;

use std::{ops::ControlFlow, time::Duration};

use crate::{
    block::{Block, Cid, Codec, Sha256Digest},
    event::Event,
};

/// The last event of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    pub seq: u64,
    pub cid: Cid,
    /// Microseconds since the epoch.
    pub ts: u64,
}

/// What one commit adds: blocks first, then the events that link to them, then the signed head over the whole log.
#[derive(Debug, Default)]
pub struct Batch {
    pub blocks: Vec<Block>,
    pub events: Vec<Event>,
    /// The signed note that takes the place of the one before; none leaves that one.
    pub head: Option<String>,
}

/// One event as stored, not yet checked.
#[derive(Clone, Copy, Debug)]
pub struct EventRow<'a> {
    pub seq: u64,
    pub digest: Sha256Digest,
    pub bytes: &'a [u8],
}

/// One block as stored, not yet checked. Its number is its place in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct BlockRow<'a> {
    pub number: u64,
    pub codec: Option<Codec>,
    pub digest: Sha256Digest,
    pub bytes: Option<&'a [u8]>,
}

/// A block's bytes, or that they were erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Present(Vec<u8>),
    Erased,
}

/// Why the log could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log is not where the caller believed: somebody else wrote.
    #[error("the log's last event is not the expected one: another writer was here")]
    Conflict,
    /// An event names a cause that is not in the log.
    #[error("event {cid} names a cause that is not stored")]
    Orphan { cid: Cid },
    #[error("the disk is full; free space, then start again")]
    Full,
    #[error("the log's files hold bytes that are not a log: {what}")]
    Corrupt { what: &'static str },
    #[error("the log's store failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The writing side: one owner.
pub trait Log: Send {
    /// Appends `batch` if the last event is `expected`, durably. An event that is stored already is not stored twice; nor is a
    /// block, unless its bytes were erased: then it has them again.
    fn append(&mut self, expected: Option<Cid>, batch: &Batch) -> Result<(), LogError>;

    /// Deletes the bytes of blocks, all or none, and keeps their names; false where none of them had bytes.
    fn erase(&mut self, cids: &[Cid]) -> Result<bool, LogError>;

    /// Opens another reading side on the same log.
    fn reader(&self) -> Result<Box<dyn Reader>, LogError>;

    /// Leaves the upkeep of what is written to another thread; dropping the log tells it to end.
    fn upkeep(&mut self) -> Result<Box<dyn Upkeep>, LogError>;
}

/// What is committed and stands in the write-ahead file, and how much of it is folded back into the main one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Of the write-ahead file, used or not.
    pub bytes: u64,
    pub pages: u64,
    pub folded: u64,
}

/// Why upkeep was woken; all false where nothing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    pub committed: bool,
    /// Erased content stands in the write-ahead file until that begins anew.
    pub uncut: bool,
    pub ended: bool,
}

/// The keeping side: what has to be done to a log that is written, off the writer's path.
pub trait Upkeep: Send {
    /// Waits until the log is dropped or `at_most` has passed; of commits and erasures, `gather` is let pass first.
    fn wait(&mut self, gather: Duration, at_most: Duration) -> Woken;

    fn look(&mut self) -> Result<Ahead, LogError>;

    /// Folds back what no reader needs to see as it was. No commit waits for it.
    fn fold(&mut self) -> Result<Ahead, LogError>;

    /// Folds back the rest and begins the write-ahead file anew, cut to nothing where it holds erased content. False
    /// where readers hold it for longer than `patience`, which commits wait, too.
    fn restart(&mut self, patience: Duration) -> Result<bool, LogError>;
}

/// The reading side: sees whole commits only.
pub trait Reader: Send {
    fn tip(&self) -> Result<Option<Tip>, LogError>;

    /// The signed note that the last commit left: not checked here. None in a log from before heads stood in it.
    fn head(&self) -> Result<Option<String>, LogError>;

    /// The event of this id.
    fn event(&self, cid: &Cid) -> Result<Option<Event>, LogError>;

    fn event_at(&self, seq: u64) -> Result<Option<Event>, LogError>;

    /// The place of the event of this name; none for a raw name, whatever its digest.
    fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError>;

    /// The ids of the events from `from` up to, not with, `to`.
    fn cids(&self, from: u64, to: u64) -> Result<Vec<Cid>, LogError>;

    /// Walks events in order from `from`, until there are no more or `visit` breaks.
    fn events(
        &self,
        from: u64,
        visit: &mut dyn FnMut(EventRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError>;

    fn block(&self, cid: &Cid) -> Result<Option<Stored>, LogError>;

    /// Whether a block is here with its bytes.
    fn has_bytes(&self, cid: &Cid) -> Result<bool, LogError>;

    fn number_of(&self, cid: &Cid) -> Result<Option<u64>, LogError>;

    fn block_named(&self, number: u64) -> Result<Option<Cid>, LogError>;

    /// Walks blocks in order from `from`, until there are no more or `visit` breaks.
    fn blocks(
        &self,
        from: u64,
        visit: &mut dyn FnMut(BlockRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError>;

    /// Bytes on disk.
    fn size(&self) -> Result<u64, LogError>;
}

#[cfg(test)]
mod tests;
