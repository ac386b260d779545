//! Answers: what is added to a finished result before it leaves, and how.
//!
//! Invariants:
//! - members are spliced in; every other byte of the result stays as its source wrote it;
//! - our own `_meta` keys always say what we say: a source that used them is overruled;
//! - a session-era result gets nothing but the record.

use std::borrow::Cow;

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
const SERVER_INFO: Member = (
    "io.modelcontextprotocol/serverInfo",
    Cow::Borrowed(concat!(r#"{"name":"cairn","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#)),
);
/// Bytes that the added members usually stay below.
const ADDED: usize = 640;

/// A key, and its value as JSON.
type Member = (&'static str, Cow<'static, str>);

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
    let mut members: Vec<Member> = Vec::new();
    let mut meta = record.map(record_members).unwrap_or_default();
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
                members.push(("structuredContent", format!(r#"{{"result":{value}}}"#).into()));
            }
        }
        Era::Stateless => {
            meta.push(SERVER_INFO);
            let complete = top.result_type.is_none() || top.is("complete");
            if top.result_type.is_none() {
                members.push(("resultType", r#""complete""#.into()));
            }
            if let Some(ttl_ms) = ttl_ms.filter(|_| complete) {
                if top.ttl_ms.is_none() {
                    members.push(("ttlMs", ttl_ms.to_string().into()));
                }
                if top.cache_scope.is_none() {
                    members.push(("cacheScope", r#""private""#.into()));
                }
            }
        }
    }
    if !meta.is_empty() {
        members.push(("_meta", merge_meta(top.meta, &meta, record.is_some_and(|record| !record.own)).into()));
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
    for (key, value) in record_members(record) {
        data.insert(key.to_owned(), serde_json::from_str(&value).expect("every member's value is JSON"));
    }
    Value::Object(data)
}

fn record_members(record: &Record) -> Vec<Member> {
    let cid = |key, cid: Cid| (key, format!("\"{cid}\"").into());
    let mut members: Vec<Member> = vec![cid("io.cairn/event", record.event)];
    members.extend(record.contract.map(|contract| cid("io.cairn/contract", contract)));
    members.extend(record.input.map(|input| cid("io.cairn/input", input)));
    members.extend(record.output.map(|output| cid("io.cairn/output", output)));
    members.push(("io.cairn/seq", record.seq.to_string().into()));
    members.push(cid("io.cairn/log", record.log));
    members.extend(record.replayed.then_some(("io.cairn/replayed", "true".into())));
    members.extend(record.cancelled.then_some(("io.cairn/cancelled", "true".into())));
    members
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
