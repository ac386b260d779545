//! Questions about the log's own keeping: what stands on record of a kind or a subject.
//!
//! Invariant: what is answered are places in the log; what stands there is read from the event itself.

use rusqlite::{Connection, params};

use crate::state::{StateError, subject_key};

/// The seqs of the events of this kind, the last first, at most `max`. Not for `call.started` and `call.succeeded`.
pub fn of_kind(state: &Connection, kind: &str, max: u64) -> Result<Vec<u64>, StateError> {
    let mut statement = state.prepare_cached(
        "SELECT seq FROM entry WHERE kind = (SELECT id FROM word WHERE text = ?1) AND kind > 2
         ORDER BY seq DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![kind, max], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The seq of the last event about this subject.
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
