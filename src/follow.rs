//! Following the logs of others: served, checked, kept and read again.
//!
//! Invariants:
//! - an event of another node's log is kept only once it is proven to be under a head that its owner signed;
//! - a followed log is a data directory of its own, beside ours: nothing of it enters our log or its state;
//! - two heads of one key that disagree end the following, and the evidence is kept.

pub mod chain;
pub mod course;
pub mod evidence;
pub mod wire;
pub mod rules;
pub mod copy;
pub mod serve;
mod store;
pub mod driver;
pub mod fetch;

use self::wire::BlockAnswer;
use self::wire::Reason;
use crate::{block::Cid, identity::CheckpointError, log::LogError};

/// Why what a peer sent is not kept.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the peer declined: {0}")]
    Declined(Reason),
    #[error("the peer sent what was not asked for")]
    Unasked,
    #[error("the peer sent more than was asked for")]
    TooMuch,
    #[error("the peer sent no event, or ended elsewhere than it says")]
    Stalled,
    #[error("the peer's log is not the one that is followed, or its genesis block holds another key")]
    Identity,
    #[error("the peer's log changes its keys otherwise than its owner has signed, or than was seen before")]
    Keys,
    #[error("the peer's head is not signed by its log's key")]
    Head(#[source] CheckpointError),
    #[error("the peer's head is over no events")]
    HeadForm,
    #[error("the peer's proof does not lead to its signed root")]
    Proof,
    #[error("event {seq} is not an event")]
    Event { seq: u64 },
    #[error("event {seq} is of another log")]
    OtherLog { seq: u64 },
    #[error("event {expected} was to come, not {found}")]
    Seq { expected: u64, found: u64 },
    #[error("event {seq} does not link to the event before it")]
    Link { seq: u64 },
    #[error("the cause of event {seq} does not come before it")]
    Cause { seq: u64 },
    #[error("the events up to {size} are not under the signed root")]
    Root { size: u64 },
    #[error("the bytes of block {cid} do not have its name")]
    Block { cid: Cid },
    #[error("block {cid}, without which its event means nothing, did not come: {answer}")]
    Absent { cid: Cid, answer: Box<BlockAnswer> },
    #[error("what is held cannot be read")]
    Held(#[from] LogError),
}

#[cfg(test)]
pub(crate) mod tests;
