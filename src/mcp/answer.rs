//! Answers: what is added to a finished result before it leaves, and how.
//!
//! Invariants:
//! - members are spliced in; every other byte of the result stays as its source wrote it;
//! - our own `_meta` keys always say what we say: a source that used them is overruled;
//! - a session-era result gets nothing but the record.

use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};

use super::envelope::{INTERNAL_ERROR, INVALID_REQUEST, present};
use crate::{
    block::splice::edit,
    router::{Record, RpcError},
};

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
    result: &RawValue,
    era: Era,
    ttl_ms: Option<u64>,
    record: Option<&Record>,
) -> Result<Box<RawValue>, RpcError> {
    let top: Top = Some(result.get())
        .filter(|text| text.starts_with('{'))
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| RpcError::new(INTERNAL_ERROR, "the result is not an object with each field once"))?;
    let mut members: Vec<(&str, Box<RawValue>)> = Vec::new();
    let mut meta = record.map(record_members).unwrap_or_default();
    match era {
        Era::Session => {
            if top.is("input_required") {
                return Err(RpcError::new(
                    INVALID_REQUEST,
                    "the answer asks for input in a way that needs protocol version 2026-07-28",
                ));
            }
        }
        Era::Stateless => {
            meta.insert(SERVER_INFO.to_owned(), server_info());
            let complete = top.result_type.is_none() || top.is("complete");
            if top.result_type.is_none() {
                members.push(("resultType", raw(&"complete")));
            }
            if let Some(ttl_ms) = ttl_ms.filter(|_| complete) {
                if top.ttl_ms.is_none() {
                    members.push(("ttlMs", raw(&ttl_ms)));
                }
                if top.cache_scope.is_none() {
                    members.push(("cacheScope", raw(&"private")));
                }
            }
        }
    }
    if !meta.is_empty() {
        members.push(("_meta", merge_meta(top.meta, &meta, record.is_some())));
    }
    Ok(edited(result, &members, |_| false))
}

impl Top<'_> {
    fn is(&self, result_type: &str) -> bool {
        let given = self.result_type.and_then(|given| serde_json::from_str::<String>(given.get()).ok());
        given.as_deref() == Some(result_type)
    }
}

/// What we say of ourselves in every stateless result.
pub fn server_info() -> Value {
    json!({"name": "cairn", "version": env!("CARGO_PKG_VERSION")})
}

/// The error as it leaves: the keys of its record are in `data`, where that can hold them.
pub fn finish_error(error: RpcError) -> RpcError {
    let members = error.record.as_deref().map(record_members);
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

fn record_members(record: &Record) -> Map<String, Value> {
    let mut members = Map::new();
    let mut insert = |key: &str, value: Value| members.insert(format!("{RECORD}{key}"), value);
    insert("event", record.event.to_string().into());
    for (key, cid) in [("contract", record.contract), ("input", record.input), ("output", record.output)] {
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

/// `old` with `new` in it. Where there is a record, no other word on one stays.
fn merge_meta(old: Option<&RawValue>, new: &Map<String, Value>, recorded: bool) -> Box<RawValue> {
    let Some(old) = old.filter(|old| old.get().starts_with('{')) else {
        return raw(new);
    };
    let members: Vec<(&str, Box<RawValue>)> =
        new.iter().map(|(key, value)| (key.as_str(), raw(value))).collect();
    edited(old, &members, |key| recorded && key.starts_with(RECORD))
}

fn edited(
    object: &RawValue,
    set: &[(&str, Box<RawValue>)],
    unwanted: impl Fn(&str) -> bool,
) -> Box<RawValue> {
    let set: Vec<(&str, &RawValue)> = set.iter().map(|(key, value)| (*key, &**value)).collect();
    edit(object, &set, unwanted).expect("what starts with a brace and is JSON is an object")
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("text, numbers and JSON values are always printable")
}
