//! Parcels: how a finished result passes through the protocol library untouched.
//!
//! The library's types drop the fields they do not know and print JSON anew. So the handler never gives it
//! a real result: it [`pack`]s the finished bytes as one string in the `_meta` of an empty typed result,
//! and where messages leave, [`unpack`] puts the bytes back in the place of that result. A parcel carries
//! its content with it, so a resumed stream needs no table and nothing can leak or go stale.
//!
//! Invariants:
//! - every result and all progress made here is packed, so nothing a tool says can pose as a parcel;
//! - the bytes of the result in [`unpack`]'s message are those given to [`pack`].

use std::borrow::Cow;

use bytes::Bytes;
use rmcp::model::MetaObject;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

const PARCEL: &str = "io.cairn/parcel";

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    result: Packed<'a>,
}

#[derive(Deserialize)]
struct Packed<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Parcel<'a>,
}

#[derive(Deserialize)]
struct Parcel<'a> {
    #[serde(borrow, rename = "io.cairn/parcel")]
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Progress<'a>,
}

#[derive(Deserialize)]
struct Progress<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// Returns the `_meta` that carries the result object `content` through a typed result.
pub fn pack(content: String) -> MetaObject {
    let mut meta = MetaObject::new();
    meta.0.insert(PARCEL.to_owned(), Value::String(content));
    meta
}

/// Returns the `message` that carries the params of progress through the library's type, which knows numbers in one
/// form only.
pub fn pack_told(params: &RawValue) -> String {
    format!("{PARCEL}:{params}")
}

/// Returns the JSON-RPC message with its packed result or params put back; `None` if `message` holds no parcel.
pub fn unpack(message: &[u8]) -> Option<Vec<u8>> {
    let message = str::from_utf8(message).ok()?;
    if !message.contains(PARCEL) {
        return None;
    }
    if let Ok(Told { method, params }) = serde_json::from_str(message) {
        let params = params.message.strip_prefix(PARCEL)?.strip_prefix(':')?;
        return Some(format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#).into_bytes());
    }
    let Message { id, result } = serde_json::from_str(message).ok()?;
    let content = result.meta.content;
    let mut out = Vec::with_capacity(content.len() + 64);
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id.get().as_bytes());
    out.extend_from_slice(br#","result":"#);
    out.extend_from_slice(content.as_bytes());
    out.push(b'}');
    Some(out)
}

/// Like [`unpack`], for one server-sent event.
pub fn unpack_event(event: Bytes) -> Bytes {
    const DATA: &[u8] = b"data: ";
    let Some(start) = event.windows(DATA.len()).position(|at| at == DATA) else {
        return event;
    };
    let start = start + DATA.len();
    let Some(len) = event[start..].iter().position(|byte| *byte == b'\n') else {
        return event;
    };
    let Some(mut message) = unpack(&event[start..start + len]) else {
        return event;
    };
    one_line(&mut message);
    let mut out = Vec::with_capacity(event.len());
    out.extend_from_slice(&event[..start]);
    out.extend_from_slice(&message);
    out.extend_from_slice(&event[start + len..]);
    out.into()
}

/// Puts JSON on one line. Strict JSON has line ends only between tokens, where a space means the same.
pub fn one_line(json: &mut [u8]) {
    for byte in json {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Returns whether a server-sent event's message opens with `member`, after its version.
pub fn opens_with(event: &[u8], member: &str) -> bool {
    const BEFORE: &[u8] = br#"data: {"jsonrpc":"2.0","#;
    let member = member.as_bytes();
    event
        .windows(BEFORE.len())
        .position(|at| at == BEFORE)
        .is_some_and(|at| event[at + BEFORE.len()..].starts_with(member))
}
