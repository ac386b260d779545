//! Erasures on record: what each of them holds for, and what is still to be taken away for it.
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
    log::{LogError, Reader, Stored},
    state::{self, StateError},
};

/// The erasure of a payload that no event has named since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The event that records it, and its seq: it holds for what events before it name.
    pub by: Cid,
    pub seq: u64,
}

impl View {
    /// The erasure that holds for this name; none where an event has named it since, and none for a part of a payload: nobody
    /// is to learn from its name whether it was ever here.
    pub fn erasure(&self, cid: &Cid) -> Result<Option<Erasure>, QueryError> {
        let Some(seq) = holding(&self.state, cid)? else { return Ok(None) };
        let event = self.log.event_at(seq)?;
        Ok(event.map(|event| Erasure { by: event.cid(), seq }))
    }

    /// Why a name that stands for no bytes here has no answer.
    pub(crate) fn gone(&self, cid: &Cid) -> Result<QueryError, QueryError> {
        Ok(match self.erasure(cid)? {
            Some(Erasure { by, seq }) => QueryError::Erased { cid: *cid, by, seq },
            None => QueryError::NotFound(cid.to_string()),
        })
    }
}

/// The blocks that recorded erasures are still to take away: a crash came between, or the erasures are another's.
pub fn pending(state: &Connection, log: &dyn Reader) -> Result<Vec<Cid>, StateError> {
    let (mut gone, mut parts) = (Vec::new(), Vec::new());
    for (cid, seq) in state::erasures(state)? {
        if log.has_bytes(&cid)?
            && was_payload(state, log, &cid, seq)?
            && let Some(Stored::Present(bytes)) = log.block(&cid)?
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

/// Whether an event before `seq` holds this block as a payload, and none uses it as anything else.
pub fn was_payload(state: &Connection, log: &dyn Reader, cid: &Cid, seq: u64) -> Result<bool, StateError> {
    let genesis = log.event_at(0)?.is_some_and(|first| first.fields().log == *cid);
    let (Some(number), false) = (log.number_of(cid)?, genesis) else { return Ok(false) };
    if log.seq_of(cid)?.is_some() {
        return Ok(false);
    }
    let mut statement = state.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM holds WHERE block = ?1 AND seq < ?2)
            AND NOT EXISTS (SELECT 1 FROM entry WHERE tool = ?1)
            AND NOT EXISTS (SELECT 1 FROM contract WHERE block = ?1)
            AND NOT EXISTS (SELECT 1 FROM workflow WHERE plan = ?1)",
    )?;
    let folded: bool = statement.query_row([number, seq], |row| row.get(0))?;
    let applied = state::progress(state)?.applied;
    match folded || applied >= seq {
        true => Ok(folded),
        false => Ok(!held_by(log, &BTreeSet::from([*cid]), applied, seq)?.is_empty()),
    }
}

/// Whether the last that the log says of this payload is that it was erased. What the state has not folded yet is read.
pub fn is_on_record(state: &Connection, log: &dyn Reader, cid: &Cid) -> Result<bool, StateError> {
    let mut erased = holding(state, cid)?.is_some();
    log.events(state::progress(state)?.applied, &mut |row| {
        if let Ok(event) = Event::open(row.bytes.to_vec()) {
            let names = event.fields().pay.iter().any(|pay| pay.cid == *cid);
            let erases = matches!(event.body(), Some(Body::PayloadErased(facts)) if facts.payload == *cid);
            erased = erases || (erased && !names);
        }
        ControlFlow::Continue(())
    })?;
    Ok(erased)
}

/// Which events from `from` up to, not with, `to` hold these payloads. Reads every event between.
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

/// The seq of the erasure of this name, where no event has named it since.
fn holding(state: &Connection, cid: &Cid) -> Result<Option<u64>, StateError> {
    if cid.codec() == Codec::Raw {
        return Ok(None);
    }
    let mut statement = state.prepare_cached("SELECT seq FROM erased WHERE cid = ?1")?;
    Ok(statement.query_row([cid.to_bytes()], |row| row.get(0)).optional()?)
}
