//! Digests of all tables, by which two derivations of one log are compared.
//!
//! Invariants:
//! - every table of the state is listed here;
//! - a digest depends on the rows alone, and not on how they are stored.

use std::collections::BTreeMap;

use rusqlite::{Connection, types::ValueRef};
use sha2::{Digest, Sha256};

use crate::state::StateError;

/// Lists every table with the columns by which its rows are ordered.
pub(super) const TABLES: &[(&str, &str)] = &[
    ("asked", "state"),
    ("call_key", "actor, name, key"),
    ("called", "name, block"),
    ("contract", "source, name"),
    ("edge", "child, parent"),
    ("entry", "seq"),
    ("erased", "cid"),
    ("foreign_event", "id"),
    ("holds", "block, seq"),
    ("minute", "minute"),
    ("outcome", "tool, input"),
    ("peer", "id"),
    ("peer_capability", "peer, capability"),
    ("progress", "id"),
    ("queue", "id"),
    ("rate", "key"),
    ("running", "id"),
    ("schedule", "id"),
    ("subject", "name"),
    ("tally", "kind"),
    ("task", "id"),
    ("task_listed", "tag, status, priority, task"),
    ("task_tally", "tag, status, priority"),
    ("tile", "id"),
    ("word", "id"),
    ("worker", "id"),
    ("worker_tally", "worker"),
    ("workflow", "id"),
    ("workflow_tag", "tag, workflow"),
    ("workflow_tally", "status"),
];

/// Returns the SHA-256 over the rows of each table, in hex. Equal digests mean the same rows, byte for byte.
pub fn tables(connection: &Connection) -> Result<BTreeMap<String, String>, StateError> {
    TABLES
        .iter()
        .map(|(table, order)| Ok(((*table).to_owned(), table_digest(connection, table, order)?)))
        .collect()
}

fn table_digest(connection: &Connection, table: &str, order: &str) -> Result<String, StateError> {
    let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY {order}"))?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut hash = Sha256::new();
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => hash.update([0]),
                ValueRef::Integer(n) => {
                    hash.update([1]);
                    hash.update(n.to_be_bytes());
                }
                ValueRef::Real(x) => {
                    hash.update([2]);
                    hash.update(x.to_be_bytes());
                }
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    hash.update([3]);
                    hash.update((bytes.len() as u64).to_be_bytes());
                    hash.update(bytes);
                }
            }
        }
    }
    Ok(data_encoding::HEXLOWER.encode(&hash.finalize()))
}
