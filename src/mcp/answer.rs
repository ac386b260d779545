//! Answers: what is added to a finished result before it leaves, and how.
//!
//! Invariants:
//! - members are spliced in; every other byte of the result stays as its source wrote it;
//! - our own `_meta` keys always say what we say: a source that used them is overruled;
//! - a session-era result gets nothing but the record.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::envelope::{INTERNAL_ERROR, INVALID_REQUEST, present};
use crate::router::{Record, RpcError};

/// Milliseconds a list may be taken for fresh.
pub const LIST_TTL_MS: u64 = 5_000;
/// Milliseconds a resource may be taken for fresh: only its source knows, and it did not say.
pub const READ_TTL_MS: u64 = 0;

const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
const RECORD: &str = "io.cairn/";

/// The two ways of speaking MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// Revision 2026-07-28: each request stands alone.
    Stateless,
    /// Up to 2025-11-25: `initialize`, then a session.
    Session,
}

#[derive(Deserialize)]
struct Top<'a> {
    #[serde(borrow, default, rename = "_meta", deserialize_with = "present")]
    meta: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "resultType", deserialize_with = "present")]
    result_type: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "ttlMs", deserialize_with = "present")]
    ttl_ms: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "cacheScope", deserialize_with = "present")]
    cache_scope: Option<&'a RawValue>,
}

/// The result as it leaves for a client of `era`. `ttl_ms` is given for results that may be cached.
pub fn finish(
    result: &str,
    era: Era,
    ttl_ms: Option<u64>,
    record: Option<&Record>,
) -> Result<String, RpcError> {
    let top: Top = Some(result)
        .filter(|result| result.starts_with('{'))
        .and_then(|result| serde_json::from_str(result).ok())
        .ok_or_else(|| {
            error(
                INTERNAL_ERROR,
                "the result is not an object with each field once",
            )
        })?;
    let complete = top
        .result_type
        .is_none_or(|kind| kind.get() == r#""complete""#);
    let mut members = Vec::new();
    let mut meta = record.map(record_members).unwrap_or_default();
    match era {
        Era::Session => {
            if top
                .result_type
                .is_some_and(|kind| kind.get() == r#""input_required""#)
            {
                return Err(error(
                    INVALID_REQUEST,
                    "the answer asks for input in a way that needs protocol version 2026-07-28",
                ));
            }
        }
        Era::Stateless => {
            meta.insert(SERVER_INFO.to_owned(), server_info());
            if top.result_type.is_none() {
                members.push(r#""resultType":"complete""#.to_owned());
            }
            if let Some(ttl_ms) = ttl_ms.filter(|_| complete) {
                if top.ttl_ms.is_none() {
                    members.push(format!(r#""ttlMs":{ttl_ms}"#));
                }
                if top.cache_scope.is_none() {
                    members.push(r#""cacheScope":"private""#.to_owned());
                }
            }
        }
    }
    if meta.is_empty() {
        return Ok(splice(result, &members));
    }
    let Some(old) = top.meta else {
        members.push(format!(r#""_meta":{}"#, Value::Object(meta)));
        return Ok(splice(result, &members));
    };
    // `old` borrows from `result`, so its place is the distance between the two.
    let start = old.get().as_ptr().addr() - result.as_ptr().addr();
    let end = start + old.get().len();
    let merged = merge_meta(old.get(), meta);
    Ok(splice(
        &[&result[..start], &merged, &result[end..]].concat(),
        &members,
    ))
}

/// What we say of ourselves in every stateless result.
pub fn server_info() -> Value {
    json!({"name": "cairn", "version": env!("CARGO_PKG_VERSION")})
}

/// The error as it leaves: the keys of its record are in `data`, where that can hold them.
pub fn finish_error(error: RpcError) -> RpcError {
    let members = error.record.as_ref().map(record_members);
    let data = match (error.data, members) {
        (None, Some(members)) => Some(Value::Object(members)),
        (Some(Value::Object(mut data)), Some(members)) => {
            data.extend(members);
            Some(Value::Object(data))
        }
        (data, _) => data,
    };
    RpcError { data, ..error }
}

fn error(code: i64, message: &str) -> RpcError {
    RpcError {
        code,
        message: message.to_owned(),
        data: None,
        record: None,
    }
}

fn record_members(record: &Record) -> Map<String, Value> {
    let mut members = Map::new();
    let mut insert = |key: &str, value: Value| members.insert(format!("{RECORD}{key}"), value);
    insert("event", record.event.to_string().into());
    for (key, cid) in [
        ("contract", record.contract),
        ("input", record.input),
        ("output", record.output),
    ] {
        if let Some(cid) = cid {
            insert(key, cid.to_string().into());
        }
    }
    insert("seq", record.seq.into());
    insert("log", record.log.to_string().into());
    if record.replayed {
        insert("replayed", true.into());
    }
    members
}

/// `old` with `new` in it. Only where `old` uses keys of ours (or may hide one behind an escape) is it written anew.
fn merge_meta(old: &str, new: Map<String, Value>) -> String {
    if !old.starts_with('{') {
        return Value::Object(new).to_string();
    }
    if [RECORD, SERVER_INFO, "\\"]
        .iter()
        .any(|mark| old.contains(mark))
    {
        let mut kept: Map<String, Value> = serde_json::from_str(old).unwrap_or_default();
        if new.keys().any(|key| key.starts_with(RECORD)) {
            kept.retain(|key, _| !key.starts_with(RECORD));
        }
        kept.extend(new);
        return Value::Object(kept).to_string();
    }
    let new = Value::Object(new).to_string();
    splice(old, &[new[1..new.len() - 1].to_owned()])
}

/// `object` with `members` before its own.
fn splice(object: &str, members: &[String]) -> String {
    if members.is_empty() {
        return object.to_owned();
    }
    let rest = &object[1..];
    let comma = if rest.trim_start().starts_with('}') {
        ""
    } else {
        ","
    };
    ["{", &members.join(","), comma, rest].concat()
}
