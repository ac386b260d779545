//! Questions about the log's own keeping: what stands on record of a kind or a subject.
//!
//! Invariant: what is answered are places in the log; what stands there is read from the event itself.

use std::ops::ControlFlow;

use rusqlite::{Connection, params};

use crate::{
    block::Block,
    event::{Event, Genesis, keeping::rotation},
    identity::rotation::{Keys, ROTATIONS_MAX},
    log::{LogError, Reader, home::Home},
    state::{self, StateError, subject_key},
};

/// The kind of a rotation of keys, as in an event's bytes.
const ROTATED: &str = "log.key_rotated";
const NOT_FOLLOWED: LogError = LogError::Corrupt { what: "a change of the log's keys cannot be followed" };

/// Returns the seqs of the last `max` events of this kind, the last first. Not for `call.started` and
/// `call.succeeded`, which are not indexed.
pub fn of_kind(state: &Connection, kind: &str, max: u64) -> Result<Vec<u64>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT seq FROM entry WHERE kind = (SELECT id FROM word WHERE text = ?1) AND kind > 2
         ORDER BY seq DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![kind, max], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns the seq of the last event about this subject.
pub fn last_about(state: &Connection, subject: &str) -> Result<Option<u64>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT max(seq) FROM (
             SELECT id AS seq FROM subject WHERE name = ?1
             UNION ALL
             SELECT seq FROM entry WHERE subject = (SELECT id FROM subject WHERE name = ?1) AND subject <> seq
         )",
    )?;
    Ok(statement.query_row([subject_key(subject)], |row| row.get(0))?)
}

/// Adds the folded rotations of keys to `keys`, in order.
pub fn rotate(keys: &mut Keys, state: &Connection, log: &dyn Reader) -> Result<(), StateError> {
    for seq in of_kind(state, ROTATED, ROTATIONS_MAX as u64)?.into_iter().rev() {
        let event = log.event_at(seq)?.ok_or(NOT_FOLLOWED)?;
        take(keys, &event)?;
    }
    Ok(())
}

/// Returns the keys of the log of `home`. The state says where they changed; if it cannot be read, all events are
/// read.
///
/// The state of another log could hide a rotation, but not invent one.
pub fn keys(home: &Home, log: &dyn Reader, genesis: &Genesis) -> Result<Keys, LogError> {
    match keys_of_state(home, log, genesis) {
        Ok(keys) => Ok(keys),
        Err(_) => keys_of_events(log, genesis),
    }
}

/// Returns the keys by the state, and by the log for events that are not folded.
fn keys_of_state(home: &Home, log: &dyn Reader, genesis: &Genesis) -> Result<Keys, StateError> {
    let mut keys = first(genesis)?;
    let state = state::open_reader(&home.state_path(), &home.log_path())?;
    // Read first: what is folded meanwhile is met in both, and taken once.
    let applied = state::progress(&state)?.applied;
    rotate(&mut keys, &state, log)?;
    add(&mut keys, log, applied)?;
    Ok(keys)
}

/// Returns the keys by the events alone, all of which are read.
pub fn keys_of_events(log: &dyn Reader, genesis: &Genesis) -> Result<Keys, LogError> {
    let mut keys = first(genesis)?;
    add(&mut keys, log, 0)?;
    Ok(keys)
}

/// Adds the rotations among the events from a seq on.
fn add(keys: &mut Keys, log: &dyn Reader, from: u64) -> Result<(), LogError> {
    let mut added = Ok(());
    log.events(from, &mut |row| {
        if !row.bytes.windows(ROTATED.len()).any(|bytes| bytes == ROTATED.as_bytes()) {
            return ControlFlow::Continue(());
        }
        // The words may stand in another event, too.
        let event = Event::open(row.bytes.to_vec()).ok().filter(|event| event.fields().kind == ROTATED);
        added = event.map_or(Ok(()), |event| take(keys, &event));
        if added.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    added
}

fn take(keys: &mut Keys, event: &Event) -> Result<(), LogError> {
    if keys.rotated_at(event.fields().seq).is_some() {
        return Ok(());
    }
    let change = rotation(event).filter(|_| event.fields().log == keys.log()).ok_or(NOT_FOLLOWED)?;
    keys.rotate(&change).map_err(|_| NOT_FOLLOWED)
}

fn first(genesis: &Genesis) -> Result<Keys, LogError> {
    let log = Block::encode(genesis).cid();
    let unusable = |_| LogError::Corrupt { what: "the genesis block holds no usable key" };
    Keys::of_genesis(log, &genesis.origin, &genesis.key).map_err(unusable)
}
