//! The wire: JSON-RPC messages as text, both ways.
//!
//! Invariants:
//! - what came is kept as it came: results, errors' data and notifications' parameters are raw text;
//! - no input panics: what is no message is `Garbage`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    block::splice::{self, NotObject},
    router::{RpcError, audience::Audience},
    runtime::upstream::{Notification, Protocol, Reply},
};

/// The stateless revision: a request stands alone and carries its own envelope.
pub const MODERN: &str = "2026-07-28";
/// The session revisions understood, newest first. The first is the one asked for.
pub const SESSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

const META: &str = "_meta";
const TOKEN: &str = "progressToken";
/// The prefix of the protocol's own metadata keys.
pub const PROTOCOL_KEYS: &str = "io.modelcontextprotocol/";
/// The prefix of our own metadata keys, which are for us and our peers and never passed on to an upstream.
const OUR_KEYS: &str = "io.cairn/";
/// The metadata key under which a peer says how much it takes.
const LIMITS: &str = "io.cairn/limits";

/// Text that is no JSON-RPC message.
#[derive(Debug)]
pub struct Garbage;

/// One message from an upstream.
pub enum Incoming {
    Answer {
        id: AnswerId,
        reply: Reply,
    },
    /// What can only be an answer, and is none; `why` continues a sentence about the protocol that was broken.
    Malformed {
        id: AnswerId,
        why: &'static str,
    },
    Notification(Notification),
    /// A request, with its id as it came.
    Request {
        id: Box<RawValue>,
        method: String,
        params: Box<RawValue>,
    },
}

/// The request that an answer names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerId {
    Ours(u64),
    /// Ours in another form, as the text or the fraction that some servers make of a number.
    Altered(u64),
    /// None, or null: some servers answer what needs no answer so, and what they cannot read.
    Absent,
    /// Nothing that is an id.
    Unreadable,
    /// One that we never give.
    Foreign,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

/// The messages in `text`: one, or those elements of a batch that are messages (revision 2025-03-26 has batches).
pub fn parse(text: &str) -> Result<Vec<Incoming>, Garbage> {
    if !text.trim_start().starts_with('[') {
        return Ok(vec![parse_one(text)?]);
    }
    let batch: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| Garbage)?;
    let messages: Vec<Incoming> = batch.into_iter().filter_map(|one| parse_one(one.get()).ok()).collect();
    if messages.is_empty() { Err(Garbage) } else { Ok(messages) }
}

fn parse_one(text: &str) -> Result<Incoming, Garbage> {
    let Ok(message) = serde_json::from_str::<Message>(text) else {
        return unshaped(text);
    };
    let id = AnswerId::of(message.id);
    let malformed = |why| Ok(Incoming::Malformed { id, why });
    match message {
        Message { method: Some(method), id: Some(id), params, .. } => Ok(Incoming::Request {
            id: id.to_owned(),
            method: method.into_owned(),
            params: params.map_or_else(empty, ToOwned::to_owned),
        }),
        Message { method: Some(method), params, .. } => Ok(Incoming::Notification(Notification {
            method: method.into_owned(),
            params: params.map_or_else(empty, ToOwned::to_owned),
        })),
        Message { error: Some(_), result: Some(_), .. } => {
            malformed("its answer has both a result and an error")
        }
        Message { error: Some(error), .. } => match serde_json::from_str(error.get()) {
            Ok(ErrorObject { code, message, data }) => {
                Ok(Incoming::Answer { id, reply: Reply::Error { code, message, data } })
            }
            Err(_) => malformed("its answer has an error that is none"),
        },
        Message { result: Some(result), .. } => {
            Ok(Incoming::Answer { id, reply: Reply::Result(result.to_owned()) })
        }
        Message { .. } => unshaped(text),
    }
}

/// Reads an object that has not the shape of a message: a malformed answer, or nothing of ours.
fn unshaped(text: &str) -> Result<Incoming, Garbage> {
    let object: &RawValue = serde_json::from_str(text).map_err(|_| Garbage)?;
    let has = |key| splice::member(object, key).map_err(|NotObject| Garbage);
    let id = AnswerId::of(has("id")?);
    let answers = has("result")?.is_some() || has("error")?.is_some();
    let names = has("jsonrpc")?.is_some() && matches!(id, AnswerId::Ours(_) | AnswerId::Altered(_));
    match has("method")? {
        None if answers || names => {
            Ok(Incoming::Malformed { id, why: "its answer has neither a result nor an error" })
        }
        // Among others a line of somebody's own log.
        _ => Err(Garbage),
    }
}

impl AnswerId {
    fn of(id: Option<&RawValue>) -> Self {
        let Some(id) = id.filter(|id| id.get() != "null") else { return Self::Absent };
        if let Ok(id) = id.get().parse() {
            return Self::Ours(id);
        }
        if let Ok(text) = serde_json::from_str::<String>(id.get()) {
            return text.parse().map_or(Self::Foreign, Self::Altered);
        }
        match serde_json::from_str::<f64>(id.get()) {
            Ok(number) if number.fract() == 0.0 && number >= 0.0 => Self::Altered(number as u64),
            Ok(_) => Self::Foreign,
            Err(_) => Self::Unreadable,
        }
    }
}

/// The text of request `id`.
pub fn request(id: u64, method: &str, params: &RawValue) -> String {
    let method = splice::quoted(method);
    line(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":{method},"params":{}}}"#, params.get()))
}

/// The text of a notification.
pub fn notification(method: &str, params: &RawValue) -> String {
    let method = splice::quoted(method);
    line(format!(r#"{{"jsonrpc":"2.0","method":{method},"params":{}}}"#, params.get()))
}

/// Returns the id in the text of a request of ours; `None` if it is another message.
pub fn id_of_request(text: &str) -> Option<u64> {
    let message: &RawValue = serde_json::from_str(text).ok()?;
    splice::member(message, "method").ok()??;
    splice::member(message, "id").ok()??.get().parse().ok()
}

/// Returns the text of the answer to request `id` of an upstream.
pub fn answer(id: &RawValue, answer: &Result<Box<RawValue>, RpcError>) -> String {
    let id = id.get();
    line(match answer {
        Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
        Err(RpcError { code, message, data, .. }) => {
            let mut error = json!({"code": code, "message": message});
            if let Some(data) = data {
                error["data"] = data.clone();
            }
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
        }
    })
}

/// A message on one line. A line break in JSON is always spacing: strings escape theirs.
fn line(text: String) -> String {
    match text.contains(['\n', '\r']) {
        true => text.replace(['\n', '\r'], " "),
        false => text,
    }
}

/// An empty object.
pub fn empty() -> Box<RawValue> {
    splice::raw("{}".to_owned())
}

/// A request's parameters as the upstream gets them, and the progress token they came with.
///
/// Their token becomes `id`, for several callers share one connection; our own metadata is taken out, unless
/// the upstream is a `peer`; the stateless envelope is put in, with what the audience declared, or, for a session,
/// taken out.
pub fn outgoing(
    params: &RawValue,
    id: u64,
    protocol: Protocol,
    peer: bool,
    audience: &Audience,
) -> Result<(Box<RawValue>, Option<Box<RawValue>>), NotObject> {
    let nothing = empty();
    let meta = splice::member(params, META)?;
    let old = meta.unwrap_or(&nothing);
    let token = splice::member(old, TOKEN)?;
    let (version, client) = (splice::raw(splice::quoted(MODERN)), client_info());
    let (id, capabilities) = (splice::raw(id.to_string()), splice::raw(audience.capabilities.to_string()));
    let level = audience.log_level.as_deref().map(|level| splice::raw(splice::quoted(level)));
    let mut set: Vec<(&str, &RawValue)> = Vec::new();
    if token.is_some() {
        set.push((TOKEN, &id));
    }
    let session = matches!(protocol, Protocol::Session(_));
    if !session {
        set.push(("io.modelcontextprotocol/protocolVersion", &version));
        set.push(("io.modelcontextprotocol/clientInfo", &client));
        set.push(("io.modelcontextprotocol/clientCapabilities", &capabilities));
        set.extend(level.as_deref().map(|level| ("io.modelcontextprotocol/logLevel", level)));
    }
    let new = splice::edit(old, &set, |key| {
        (!peer && key.starts_with(OUR_KEYS)) || (session && key.starts_with(PROTOCOL_KEYS))
    })?;
    let params = match meta {
        None if set.is_empty() => params.to_owned(),
        _ => splice::edit(params, &[(META, &new)], |_| false)?,
    };
    Ok((params, token.map(ToOwned::to_owned)))
}

/// Returns the longest frame that a server takes, as its answer to `initialize` or `server/discover` says.
pub fn frame_max(greeting: &RawValue) -> Option<usize> {
    let own = || splice::member(splice::member(greeting, META).ok()??, LIMITS).ok()?;
    let limits = own().or_else(|| splice::member(greeting, "limits").ok()?)?;
    splice::member(limits, "max_frame_bytes").ok()??.get().parse().ok()
}

/// Returns the `clientInfo` that upstreams get.
pub fn client_info() -> Box<RawValue> {
    splice::raw(format!(r#"{{"name":"cairn","version":"{}"}}"#, env!("CARGO_PKG_VERSION")))
}

/// The id of the request that progress `params` speak of.
pub fn progress_of(params: &RawValue) -> Option<u64> {
    splice::member(params, TOKEN).ok()??.get().parse().ok()
}

/// Progress `params` under the caller's own `token`.
pub fn with_token(params: &RawValue, token: &RawValue) -> Result<Box<RawValue>, NotObject> {
    splice::edit(params, &[(TOKEN, token)], |_| false)
}
