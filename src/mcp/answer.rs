//! Answers: what is added to a finished result before it leaves, and how.
//!
//! Invariants:
//! - members are spliced in; every other byte of the result stays as its source wrote it;
//! - our own `_meta` keys always say what we say: a source that used them is overruled;
//! - a session-era result gets nothing but the record.

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    block::{Cid, splice::edit_into},
    mcp::era::{Era, present},
    router::{
        Record, Response, RpcError,
        codes::{INTERNAL_ERROR, INVALID_REQUEST},
    },
};

/// Milliseconds for which a list may be cached.
pub const LIST_TTL_MS: u64 = 5_000;
/// Milliseconds for which a resource may be cached: none, since only its source could say more.
pub const READ_TTL_MS: u64 = 0;

/// The members of a result that revision 2026-07-28 brought.
const STATELESS_KEYS: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

const RECORD: &str = "io.cairn/";
/// The `serverInfo` that every stateless result has.
const SERVER_INFO: Member<'static> = (
    "io.modelcontextprotocol/serverInfo",
    Written::Json(concat!(r#"{"name":"cairn","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#)),
);
/// Bytes that the added members usually stay below.
const ADDED: usize = 640;
/// Members that are added to one object at most.
const MEMBERS: usize = 10;

/// A key and its value.
type Member<'a> = (&'static str, Written<'a>);

/// A value, which is written as JSON.
enum Written<'a> {
    Json(&'a str),
    Number(u64),
    Cid(Cid),
}

impl fmt::Display for Written<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(text) => formatter.write_str(text),
            Self::Number(number) => number.fmt(formatter),
            Self::Cid(cid) => write!(formatter, "\"{cid}\""),
        }
    }
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
    #[serde(borrow, default, rename = "structuredContent", deserialize_with = "present")]
    structured: Option<&'a RawValue>,
}

/// Appends the router's answer to `out`, in its form for a client of `era`. Errors: the error to send instead.
/// `ttl_ms` is set for results that may be cached.
pub fn conclude(
    out: &mut String,
    answer: Result<Response, RpcError>,
    era: Era,
    ttl_ms: Option<u64>,
) -> Result<(), RpcError> {
    let Response { result, record, .. } = answer.map_err(finish_error)?;
    finish(out, &result, era, ttl_ms, record.as_ref())
        .map_err(|error| finish_error(RpcError { record: record.map(Box::new), ..error }))
}

/// Appends `result` to `out` in the form that leaves. On an error nothing is written.
pub fn finish(
    out: &mut String,
    result: &RawValue,
    era: Era,
    ttl_ms: Option<u64>,
    record: Option<&Record>,
) -> Result<(), RpcError> {
    let top: Top = Some(result.get())
        .filter(|text| text.starts_with('{'))
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or_else(|| RpcError::new(INTERNAL_ERROR, "the result is not an object with each field once"))?;
    let (wrapped, merged);
    let mut members: Vec<Member> = Vec::with_capacity(MEMBERS);
    let mut meta = Vec::with_capacity(MEMBERS);
    record.iter().for_each(|record| record_members(record, &mut meta));
    match era {
        Era::Session => {
            if top.is("input_required") {
                return Err(RpcError::new(
                    INVALID_REQUEST,
                    "the answer asks for input in a way that needs protocol version 2026-07-28",
                ));
            }
            // Clients of sessions demand an object there.
            if let Some(value) = top.structured.filter(|value| !value.get().starts_with('{')) {
                wrapped = format!(r#"{{"result":{value}}}"#);
                members.push(("structuredContent", Written::Json(&wrapped)));
            }
        }
        Era::Stateless => {
            meta.push(SERVER_INFO);
            let complete = top.result_type.is_none() || top.is("complete");
            if top.result_type.is_none() {
                members.push(("resultType", Written::Json(r#""complete""#)));
            }
            if let Some(ttl_ms) = ttl_ms.filter(|_| complete) {
                if top.ttl_ms.is_none() {
                    members.push(("ttlMs", Written::Number(ttl_ms)));
                }
                if top.cache_scope.is_none() {
                    members.push(("cacheScope", Written::Json(r#""private""#)));
                }
            }
        }
    }
    if !meta.is_empty() {
        merged = merge_meta(top.meta, &meta, record.is_some_and(|record| !record.own));
        members.push(("_meta", Written::Json(&merged)));
    }
    out.reserve(result.get().len() + ADDED);
    edit(out, result, &members, |key| era == Era::Session && STATELESS_KEYS.contains(&key));
    Ok(())
}

impl Top<'_> {
    fn is(&self, result_type: &str) -> bool {
        let given = self.result_type.and_then(|given| serde_json::from_str::<String>(given.get()).ok());
        given.as_deref() == Some(result_type)
    }
}

/// Returns the error in the form that leaves: with the keys of its record in `data`, unless that is something other
/// than an object.
pub fn finish_error(error: RpcError) -> RpcError {
    let data = match (error.data, error.record.as_deref()) {
        (None, Some(record)) => Some(with_record(Map::new(), record)),
        (Some(Value::Object(data)), Some(record)) => Some(with_record(data, record)),
        (data, _) => data,
    };
    RpcError { data, ..error }
}

fn with_record(mut data: Map<String, Value>, record: &Record) -> Value {
    let mut members = Vec::with_capacity(MEMBERS);
    record_members(record, &mut members);
    for (key, value) in members {
        let value = serde_json::from_str(&value.to_string()).expect("every member's value is JSON");
        data.insert(key.to_owned(), value);
    }
    Value::Object(data)
}

fn record_members(record: &Record, members: &mut Vec<Member<'_>>) {
    let cids = [
        ("io.cairn/event", Some(record.event)),
        ("io.cairn/contract", record.contract),
        ("io.cairn/input", record.input),
        ("io.cairn/output", record.output),
    ];
    members.extend(cids.into_iter().filter_map(|(key, cid)| Some((key, Written::Cid(cid?)))));
    members.push(("io.cairn/seq", Written::Number(record.seq)));
    members.push(("io.cairn/log", Written::Cid(record.log)));
    members.extend(record.replayed.then_some(("io.cairn/replayed", Written::Json("true"))));
    members.extend(record.cancelled.then_some(("io.cairn/cancelled", Written::Json("true"))));
}

/// Returns `old` with the members `new`. If another than this node gave the answer, record keys in it are dropped.
fn merge_meta(old: Option<&RawValue>, new: &[Member], theirs: bool) -> String {
    let empty = || serde_json::from_str("{}").expect("this is JSON");
    let old = old.filter(|old| old.get().starts_with('{')).unwrap_or_else(empty);
    let mut out = String::with_capacity(old.get().len() + ADDED);
    edit(&mut out, old, new, |key| theirs && key.starts_with(RECORD));
    out
}

fn edit(out: &mut String, object: &RawValue, set: &[Member], unwanted: impl Fn(&str) -> bool) {
    edit_into(out, object, set, unwanted).expect("what starts with a brace and is JSON is an object");
}
