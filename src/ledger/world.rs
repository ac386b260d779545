//! What the rules of the ledger are asked with: the log, the state, the entities in memory, and the commit.
//!
//! Invariants:
//! - an entity in memory changes by a sealed event alone;
//! - content that a rule reads is the commit's if it is there, and the log's otherwise.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use crate::{
    block::{
        Cid, decode,
        payload::{JSON, Payload, SaltKey, SealedPayload},
    },
    catalogue::Entry,
    entity::{self, Entity},
    error::Refusal,
    event::PayloadRef,
    ledger::{
        Reach, Shelf,
        commit::{Commit, Fault, Mark, Stop, unsealed},
        holding::Holding,
    },
    log::{Reader, Stored},
    query,
    state::Database,
    task::{Limits, Moment},
};

pub(super) struct World {
    /// Sees what is committed.
    pub reader: Box<dyn Reader>,
    /// Answers questions about what is folded already.
    pub state: Database,
    pub applied: watch::Receiver<Reach>,
    pub limits: Limits,
    pub salt: SaltKey,
    /// The catalogue that the steps of child runs are checked against.
    pub tools: Shelf,
    /// Current contracts by source and name.
    pub contracts: HashMap<(String, String), Entry>,
    pub holding: Holding,
    /// Whether entities in memory have folded an event that is not in the commit any more. They have to be loaded again
    /// before the next command.
    pub stale: bool,
    pub commit: Commit,
}

impl World {
    /// Returns the time and the bounds that the rules of tasks and workers decide by.
    pub fn moment(&self) -> Moment {
        Moment { now_ms: self.commit.now_ms(), limits: self.limits }
    }

    /// Takes back what a command that stopped has left in the commit since the mark, and returns its refusal.
    pub fn take_back(&mut self, mark: Mark, stop: Stop) -> Result<Refusal, Fault> {
        let refusal = match stop {
            Stop::Refused(refusal) => refusal,
            Stop::Unsealed(err) => unsealed(&err),
            Stop::Fault(fault) => return Err(fault),
        };
        self.stale |= self.commit.back_to(mark);
        Ok(refusal)
    }

    /// Returns the number of events that the state has folded.
    pub fn folded(&self) -> u64 {
        self.applied.borrow().applied
    }

    /// Folds an entity from its events that the state knows of; `None` if there are none.
    pub fn folded_from_log<E: Entity<Given = ()>>(&self, id: &str) -> Result<Option<E>, Fault> {
        let seqs = query::work::events_of(&self.state, &E::subject(id))?;
        Ok(entity::try_folded(seqs.into_iter().filter_map(|seq| self.reader.event_at(seq).transpose()), &())?)
    }

    /// Returns the content of a payload as text: from memory, from the commit that is being made, or from the log.
    /// Returns `None` if it was erased.
    pub fn text(&self, payload: Option<Cid>) -> Result<Option<Arc<str>>, Fault> {
        let Some(cid) = payload.filter(|cid| !self.commit.is_erased(cid)) else { return Ok(None) };
        if let Some(text) = self.holding.contents.get(&cid) {
            return Ok(Some(text));
        }
        let block = |cid: &Cid| -> Result<Option<Vec<u8>>, Fault> {
            Ok(match self.commit.block(cid) {
                Some(block) => Some(block.bytes().to_vec()),
                None => match self.reader.block(cid)? {
                    Some(Stored::Present(bytes)) => Some(bytes),
                    Some(Stored::Erased) | None => None,
                },
            })
        };
        let Some(payload) = block(&cid)?.and_then(|bytes| decode::<Payload>(&bytes).ok()) else {
            return Ok(None);
        };
        let content = payload.content(None, block)?.ok();
        Ok(content.and_then(|content| String::from_utf8(content).ok()).map(Arc::from))
    }

    /// Seals JSON text that this node wrote as a payload. What makes the text keeps it within the bound.
    pub fn payload(&self, text: &str) -> Result<SealedPayload, Fault> {
        Payload::seal(&self.salt, JSON, text.as_bytes())
            .map_err(|_| Fault::Broken { what: "content is over the bound of a payload" })
    }

    /// Returns whether the content of a payload is stored, or will be once this commit is.
    pub fn is_there(&self, payload: &Cid) -> Result<bool, Fault> {
        let here = self.commit.block(payload).is_some() || self.reader.has_bytes(payload)?;
        Ok(here && !self.commit.is_erased(payload))
    }

    /// Returns those of the payloads whose content is there, so that an event may name them without recording them
    /// again.
    pub fn those_there(
        &self,
        payloads: impl IntoIterator<Item = PayloadRef>,
    ) -> Result<Vec<PayloadRef>, Fault> {
        let mut there = Vec::new();
        for payload in payloads {
            if self.is_there(&payload.cid)? {
                there.push(payload);
            }
        }
        Ok(there)
    }
}

/// Returns a small payload's content as text.
pub(super) fn text_of(payload: &SealedPayload) -> Option<String> {
    let payload: Payload = decode(payload.envelope.bytes()).ok()?;
    payload.data.and_then(|data| String::from_utf8(data).ok())
}

/// Returns a payload's content as text, from the payload itself.
pub(super) fn whole_text(payload: &SealedPayload) -> Option<String> {
    payload.content().and_then(|content| String::from_utf8(content).ok())
}
