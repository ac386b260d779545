//! The table of blocks: a block is known by its whole name, codec and digest.
//!
//! Invariants:
//! - a row's key is the block's digest. If a block of another codec has that key, it is the codec and the digest;
//! - erased bytes come back only with the same block, and stored bytes never change.

use rusqlite::{Connection, OptionalExtension, Row, params, types::ValueRef};

use crate::{
    block::{Block, Cid, Codec, Sha256Digest},
    log::{LogError, Stored},
};

/// Stores a block. One whose bytes were erased gets them back.
///
/// The common case is one insertion. An upsert that may change a row costs twice as much, also where it changes none.
pub(super) fn put(commit: &Connection, block: &Block) -> Result<(), LogError> {
    if insert(commit, block.cid().digest(), block)? {
        return Ok(());
    }
    let sql = "SELECT id, bytes IS NULL FROM block WHERE digest = ?1 AND codec = ?2";
    match find(commit, &block.cid(), sql, |row| Ok((row.get::<_, u64>(0)?, row.get(1)?)))? {
        Some((_, false)) => {}
        Some((id, true)) => {
            let sql = "UPDATE block SET bytes = ?2 WHERE id = ?1 AND bytes IS NULL";
            commit.prepare_cached(sql)?.execute(params![id, block.bytes()])?;
        }
        // A block of another codec has the digest as its key.
        None => drop(insert(commit, &long_key(&block.cid()), block)?),
    }
    Ok(())
}

/// Inserts a block. Returns false if a row has its key already.
fn insert(commit: &Connection, key: &[u8], block: &Block) -> Result<bool, LogError> {
    let sql = "INSERT INTO block (digest, codec, bytes) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    let codec = block.cid().codec() as u8;
    Ok(commit.prepare_cached(sql)?.execute(params![key, codec, block.bytes()])? == 1)
}

/// Removes the bytes of these blocks and keeps their names. Returns how many had bytes.
pub(super) fn clear(commit: &Connection, cids: &[Cid]) -> Result<usize, LogError> {
    let mut cleared = 0;
    for cid in cids {
        let Some(id) = number_of(commit, cid)? else { continue };
        let sql = "UPDATE block SET bytes = NULL WHERE id = ?1 AND bytes IS NOT NULL";
        cleared += commit.prepare_cached(sql)?.execute([id])?;
    }
    Ok(cleared)
}

/// Returns the row number of the block with this CID.
pub(super) fn number_of(connection: &Connection, cid: &Cid) -> Result<Option<u64>, LogError> {
    find(connection, cid, "SELECT id FROM block WHERE digest = ?1 AND codec = ?2", |row| row.get(0))
}

/// Returns the bytes of the block with this CID, checked by hashing them again.
pub(super) fn stored(connection: &Connection, cid: &Cid) -> Result<Option<Stored>, LogError> {
    let sql = "SELECT bytes FROM block WHERE digest = ?1 AND codec = ?2";
    let found: Option<Option<Vec<u8>>> = find(connection, cid, sql, |row| row.get(0))?;
    match found {
        None => Ok(None),
        Some(None) => Ok(Some(Stored::Erased)),
        Some(Some(bytes)) if cid.names(&bytes) => Ok(Some(Stored::Present(bytes))),
        Some(Some(_)) => Err(LogError::Corrupt { what: "a block's bytes do not have its digest" }),
    }
}

/// Returns whether the block with this CID is stored with its bytes.
pub(super) fn has_bytes(connection: &Connection, cid: &Cid) -> Result<bool, LogError> {
    let sql = "SELECT bytes IS NOT NULL FROM block WHERE digest = ?1 AND codec = ?2";
    Ok(find(connection, cid, sql, |row| row.get(0))?.unwrap_or(false))
}

/// Returns the digest in the key of a row.
pub(super) fn digest(row: &Row<'_>, column: usize) -> Result<Sha256Digest, rusqlite::Error> {
    let key = row.get_ref(column)?.as_blob()?;
    digest_in(key).ok_or_else(|| rusqlite::Error::IntegralValueOutOfRange(column, key.len() as i64))
}

/// Returns the CID of a block from the key and the codec of its row; `None` if they form none.
pub fn name(key: ValueRef<'_>, codec: u64) -> Option<Cid> {
    let digest = digest_in(key.as_blob().ok()?)?;
    Some(Cid::from_digest(Codec::from_code(codec)?, digest))
}

/// Runs a query on the row of a block and returns what `read` makes of it. The digest alone is tried first, since
/// nearly every row has that key.
fn find<T>(
    connection: &Connection,
    cid: &Cid,
    sql: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, LogError> {
    let codec = cid.codec() as u8;
    let mut find = connection.prepare_cached(sql)?;
    let found = find.query_row(params![cid.digest(), codec], &read).optional()?;
    match found {
        Some(found) => Ok(Some(found)),
        None => Ok(find.query_row(params![long_key(cid), codec], &read).optional()?),
    }
}

fn long_key(cid: &Cid) -> Vec<u8> {
    [&[cid.codec() as u8], &cid.digest()[..]].concat()
}

fn digest_in(key: &[u8]) -> Option<Sha256Digest> {
    let at = key.len().checked_sub(size_of::<Sha256Digest>()).filter(|before| *before <= 1)?;
    key[at..].try_into().ok()
}
