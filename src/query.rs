//! Questions about the log and what is derived from it. A question reads, and never writes.

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    block::{Cid, decode, payload::Payload},
    log::{LogError, Reader, Stored, home::Home, sqlite::SqliteReader},
    state::{StateError, subject_key},
};

/// The parts of a payload's content; none where the block is no payload.
pub fn payload_parts(block: &[u8]) -> Option<Vec<Cid>> {
    let payload: Payload = decode(block).ok()?;
    Some(payload.parts.unwrap_or_default())
}

/// The content of a payload, put together from its parts; none where it is erased or no payload.
pub fn content(home: &Home, payload: &Cid) -> Result<Option<Vec<u8>>, LogError> {
    let log = SqliteReader::open(&home.log_path())?;
    let Some(Stored::Present(bytes)) = log.block(payload)? else {
        return Ok(None);
    };
    let Ok(payload) = decode::<Payload>(&bytes) else {
        return Ok(None);
    };
    if let Some(data) = payload.data {
        return Ok(Some(data));
    }
    let mut content = Vec::new();
    for part in payload.parts.unwrap_or_default() {
        let Some(Stored::Present(bytes)) = log.block(&part)? else {
            return Ok(None);
        };
        content.extend(bytes);
    }
    Ok(Some(content))
}

/// The latest call of an idempotency key: the seq of its start and of its ending.
pub fn keyed_call(
    state: &Connection,
    actor: &str,
    name: &str,
    key: &[u8],
) -> Result<Option<(u64, Option<u64>)>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT call.id, call.ended FROM call_key
         JOIN word AS actor ON actor.id = call_key.actor AND actor.text = ?1
         JOIN word AS name ON name.id = call_key.name AND name.text = ?2
         JOIN call ON call.id = call_key.call
         WHERE call_key.key = ?3",
    )?;
    Ok(statement
        .query_row(params![actor, name, key], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?)
}

/// The call of this id: the seq of its start and of its ending.
pub fn call_of(state: &Connection, id: &str) -> Result<Option<(u64, Option<u64>)>, StateError> {
    let sql = "SELECT call.id, call.ended FROM subject JOIN call ON call.id = subject.id WHERE subject.name = ?1";
    let mut statement = state.prepare_cached(sql)?;
    let key = subject_key(&crate::call::subject(id));
    Ok(statement
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

/// Calls without an ending, by the seq of their start.
pub fn open_calls(state: &Connection) -> Result<Vec<u64>, StateError> {
    numbers(state, "SELECT id FROM call WHERE ended IS NULL ORDER BY id")
}

/// Block numbers of erased payloads.
pub fn erased(state: &Connection) -> Result<Vec<u64>, StateError> {
    numbers(state, "SELECT block FROM erased ORDER BY block")
}

/// The current contract of every tool: its block number, and whether it is offered.
pub fn contract_numbers(state: &Connection) -> Result<Vec<(u64, bool)>, StateError> {
    let mut statement = state.prepare_cached("SELECT block, offered FROM contract ORDER BY seq")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn numbers(state: &Connection, sql: &str) -> Result<Vec<u64>, StateError> {
    let mut statement = state.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
