//! Erasures on record: which events each holds for, and which bytes are still to be removed for it.
//!
//! Invariants:
//! - an erasure at seq n holds for what events before n name; what an event after it names is content again;
//! - only what an event held as a payload is ever taken away: no event, genesis, contract, plan or unknown block is;
//! - a part goes with the last payload that holds it.

use std::{collections::BTreeSet, ops::ControlFlow};

use rusqlite::{Connection, OptionalExtension};

use super::{QueryError, View, payload_parts, shared_parts};
use crate::{
    block::{Cid, Codec},
    event::{Body, Event},
    log::{LogError, Reader},
    state::{self, StateError},
};

/// An erasure that holds: no later event has recorded the payload again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The event that records it, and its seq. It holds for payloads that events before it name.
    pub by: Cid,
    pub seq: u64,
}

impl View {
    /// Returns the erasure that holds for this payload; `None` if a later event has recorded it again. Parts of
    /// payloads always give `None`: their name is a hash of plain content, so an answer would tell that the content
    /// was here.
    pub fn erasure(&self, cid: &Cid) -> Result<Option<Erasure>, QueryError> {
        let Some(seq) = holding(&self.state, cid)? else { return Ok(None) };
        let event = self.log.event_at(seq)?;
        Ok(event.map(|event| Erasure { by: event.cid(), seq }))
    }

    /// Returns the error for a name without bytes: erased, or not found.
    pub(crate) fn gone(&self, cid: &Cid) -> Result<QueryError, QueryError> {
        Ok(match self.erasure(cid)? {
            Some(Erasure { by, seq }) => QueryError::Erased { cid: *cid, by, seq },
            None => QueryError::NotFound(cid.to_string()),
        })
    }
}

/// Returns the blocks that erasures on record have still to remove, after a crash or in a followed log.
pub fn pending(state: &Connection, log: &dyn Reader) -> Result<Vec<Cid>, StateError> {
    let (mut gone, mut parts) = (Vec::new(), Vec::new());
    for (cid, seq) in state::erasures(state)? {
        if log.has_bytes(&cid)?
            && was_payload(state, log, &cid, seq)?
            && let Some(bytes) = log.bytes(&cid)?
            && let Some(held) = payload_parts(&bytes)
        {
            parts.extend(held);
            gone.push(cid);
        }
    }
    let shared = shared_parts(log, &gone, &parts)?;
    gone.extend(parts.into_iter().filter(|part| !shared.contains(part)));
    Ok(gone)
}

/// Returns whether an event before `seq` holds this block as a payload, and no event uses it as anything else.
pub fn was_payload(state: &Connection, log: &dyn Reader, cid: &Cid, seq: u64) -> Result<bool, StateError> {
    let genesis = log.event_at(0)?.is_some_and(|first| first.fields().log == *cid);
    let (Some(number), false) = (log.number_of(cid)?, genesis) else { return Ok(false) };
    if log.seq_of(cid)?.is_some() {
        return Ok(false);
    }
    // Read before the question: the fold goes on meanwhile, and an event must be found either in the tables or behind this.
    let applied = state::progress(state)?.applied;
    let mut statement = state.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM holds WHERE block = ?1 AND seq < ?2)
            AND NOT EXISTS (SELECT 1 FROM entry WHERE tool = ?1)
            AND NOT EXISTS (SELECT 1 FROM contract WHERE block = ?1)
            AND NOT EXISTS (SELECT 1 FROM workflow WHERE plan = ?1)",
    )?;
    let folded: bool = statement.query_row([number, seq], |row| row.get(0))?;
    match folded || applied >= seq {
        true => Ok(folded),
        false => Ok(!held_by(log, &BTreeSet::from([*cid]), applied, seq)?.is_empty()),
    }
}

/// Returns whether the last event about this payload erased it. Events that are not folded yet are read from the log.
pub fn is_on_record(state: &Connection, log: &dyn Reader, cid: &Cid) -> Result<bool, StateError> {
    // Read first, as above. An event that is folded already comes to the same again.
    let applied = state::progress(state)?.applied;
    let mut erased = holding(state, cid)?.is_some();
    log.events(applied, &mut |row| {
        if let Ok(event) = Event::open(row.bytes.to_vec()) {
            let names = event.fields().pay.iter().any(|pay| pay.cid == *cid);
            let erases = matches!(event.body(), Some(Body::PayloadErased(facts)) if facts.payload == *cid);
            erased = erases || (erased && !names);
        }
        ControlFlow::Continue(())
    })?;
    Ok(erased)
}

/// Returns which events from `from` to before `to` hold these payloads. Reads every event between.
pub fn held_by(
    log: &dyn Reader,
    payloads: &BTreeSet<Cid>,
    from: u64,
    to: u64,
) -> Result<Vec<(Cid, u64)>, LogError> {
    let mut held = Vec::new();
    log.events(from, &mut |row| {
        if row.seq >= to {
            return ControlFlow::Break(());
        }
        if let Ok(event) = Event::open(row.bytes.to_vec()) {
            let pay = event.fields().pay.iter().filter(|pay| payloads.contains(&pay.cid));
            held.extend(pay.map(|pay| (pay.cid, row.seq)));
        }
        ControlFlow::Continue(())
    })?;
    Ok(held)
}

/// Returns the seq of the erasure that holds for this payload.
fn holding(state: &Connection, cid: &Cid) -> Result<Option<u64>, StateError> {
    if cid.codec() == Codec::Raw {
        return Ok(None);
    }
    let mut statement = state.prepare_cached("SELECT seq FROM erased WHERE cid = ?1")?;
    Ok(statement.query_row([cid.to_bytes()], |row| row.get(0)).optional()?)
}
