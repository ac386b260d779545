//! The log: every event and block this node knows, in order of arrival.
//!
//! Invariants:
//! - append-only: events are never changed or removed. Erasing a block keeps its name, and its bytes may be recorded
//!   again;
//! - a block is known by its whole name: raw bytes and dag-cbor of one digest are two blocks;
//! - an append is all or nothing, and durable when it returns: events, and the signed head over them;
//! - no caller above this room knows which store is behind it.

pub mod fresh;
pub mod home;
pub mod still;
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
    /// The signed note that replaces the one before; `None` leaves that one.
    pub head: Option<String>,
}

/// One event as stored, not yet checked.
#[derive(Clone, Copy, Debug)]
pub struct EventRow<'a> {
    pub seq: u64,
    pub digest: Sha256Digest,
    pub bytes: &'a [u8],
}

/// One block as stored, not yet checked. `number` is its place in the order of arrival.
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

/// Why a read or write of the log failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The last event is not the one that the caller expected: somebody else wrote.
    #[error("the log's last event is not the expected one: another writer was here")]
    Conflict,
    /// An event names a cause that is not in the log.
    #[error("event {cid} names a cause that is not stored")]
    Orphan { cid: Cid },
    #[error("the disk is full; free space, then start again")]
    Full,
    #[error("the log's files hold bytes that are not a log: {what}")]
    Corrupt { what: &'static str },
    #[error(
        "log.db was written by a newer cairn: its tables are of version {found}, and this program knows version {known}; use that program"
    )]
    Newer { found: u64, known: u64 },
    #[error(
        "the directory cannot be written, and commits stand in log.db-wal, which SQLite reads only where it can write log.db-shm; copy the directory to a place that can be written, or read it as its owner"
    )]
    Behind,
    #[error("the log's store failed")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The writing side: one owner.
pub trait Log: Send {
    /// Appends `batch` durably, if the last event is `expected`. Events and blocks that are stored already are not
    /// stored twice; a block whose bytes were erased gets them back.
    fn append(&mut self, expected: Option<Cid>, batch: &Batch) -> Result<(), LogError>;

    /// Deletes the bytes of blocks, all or none, and keeps their names. Returns false if none of them had bytes.
    fn erase(&mut self, cids: &[Cid]) -> Result<bool, LogError>;

    /// Opens another reading side on the same log.
    fn reader(&self) -> Result<Box<dyn Reader>, LogError>;

    /// Returns the upkeep of the log's files, for another thread. Dropping the log tells it to end.
    fn upkeep(&mut self) -> Result<Box<dyn Upkeep>, LogError>;
}

/// The size of the write-ahead file, and how many of its pages are folded back into the main file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// The size of the file on disk, whether its pages are in use or not.
    pub bytes: u64,
    pub pages: u64,
    pub folded: u64,
}

/// Why upkeep was woken; all false if the time was over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    pub committed: bool,
    /// Whether erased content is in the write-ahead file until that is restarted.
    pub uncut: bool,
    pub ended: bool,
}

/// The upkeep of a log's files, off the writer's path.
pub trait Upkeep: Send {
    /// Waits for a commit or an erasure and `gather` more, or until the log is dropped or `at_most` has passed.
    fn wait(&mut self, gather: Duration, at_most: Duration) -> Woken;

    fn look(&mut self) -> Result<Ahead, LogError>;

    /// Folds back the pages that no reader needs in their old form (SQLite: a passive checkpoint). No commit waits
    /// for it.
    fn fold(&mut self) -> Result<Ahead, LogError>;

    /// Folds back the rest and restarts the write-ahead file, truncated if it holds erased content. Returns false if
    /// readers hold it for longer than `patience`. Commits wait meanwhile.
    fn restart(&mut self, patience: Duration) -> Result<bool, LogError>;
}

/// The reading side: sees whole commits only.
pub trait Reader: Send {
    fn tip(&self) -> Result<Option<Tip>, LogError>;

    /// Returns the signed note of the last commit, unchecked; `None` in an old log without heads.
    fn head(&self) -> Result<Option<String>, LogError>;

    /// Returns the event with this CID.
    fn event(&self, cid: &Cid) -> Result<Option<Event>, LogError>;

    fn event_at(&self, seq: u64) -> Result<Option<Event>, LogError>;

    /// Returns the seq of the event with this CID; `None` for a CID of the codec `raw`.
    fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError>;

    /// Returns the CIDs of the events from `from` to before `to`.
    fn cids(&self, from: u64, to: u64) -> Result<Vec<Cid>, LogError>;

    /// Walks events in order from `from`, until there are no more or `visit` breaks.
    fn events(
        &self,
        from: u64,
        visit: &mut dyn FnMut(EventRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError>;

    fn block(&self, cid: &Cid) -> Result<Option<Stored>, LogError>;
    /// Returns a block's bytes; `None` if they were erased or are not stored.
    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, LogError> {
        Ok(match self.block(cid)? {
            Some(Stored::Present(bytes)) => Some(bytes),
            Some(Stored::Erased) | None => None,
        })
    }

    /// Returns whether a block is stored with its bytes.
    fn has_bytes(&self, cid: &Cid) -> Result<bool, LogError>;

    fn number_of(&self, cid: &Cid) -> Result<Option<u64>, LogError>;

    fn block_named(&self, number: u64) -> Result<Option<Cid>, LogError>;

    /// Walks blocks in order from `from`, until there are no more or `visit` breaks.
    fn blocks(
        &self,
        from: u64,
        visit: &mut dyn FnMut(BlockRow<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError>;

    /// Returns the bytes of the log's files on disk.
    fn size(&self) -> Result<u64, LogError>;
}

#[cfg(test)]
mod tests;
