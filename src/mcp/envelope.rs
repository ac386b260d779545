//! Envelopes: a JSON-RPC message as it came, read once before the protocol library sees it.
//!
//! Invariants:
//! - what is [`read`] here is a well-formed message: one object, `"2.0"`, a string or integer id;
//! - the params of every method we know have the shapes of [`SHAPES`];
//! - `params` reach the router byte for byte; the library gets a copy without tool arguments.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::{Cid, splice},
    call::START_REFS_MAX,
    caller::Caller,
    mcp::era::{Era, present},
    router::{
        Client, Meta, Method, Request, RpcError,
        audience::{Audience, Manner, canonical},
        codes::{INVALID_PARAMS, INVALID_REQUEST},
    },
};

/// Characters of an idempotency key.
const IDEMPOTENCY_KEY_MAX: usize = 128;

/// The key of a token in a request's metadata.
const TOKEN: &str = "io.cairn/token";

/// The first revision without sessions.
pub const FIRST_STATELESS: &str = "2026-07-28";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    TextOrAbsent,
    Object,
    ObjectOrAbsent,
}

/// Methods that exist only within a session.
const SESSION_ONLY: &[&str] = &[
    "initialize",
    "ping",
    "logging/setLevel",
    "resources/subscribe",
    "resources/unsubscribe",
    "tasks/result",
    "tasks/list",
];
/// Methods that exist only without one.
const STATELESS_ONLY: &[&str] = &["tasks/update"];
/// What stands before the methods of tasks in sessions, for the library, which knows those of 2026-07-28 alone.
pub const UNTYPED: &str = "io.cairn/";

/// The params of known methods. `initialize` is among them so that a malformed one gets a clear error.
const SHAPES: &[(&str, &[(&str, Shape)])] = &[
    ("ping", &[]),
    ("server/discover", &[]),
    (
        "initialize",
        &[("protocolVersion", Shape::Text), ("capabilities", Shape::Object), ("clientInfo", Shape::Object)],
    ),
    ("tools/call", &[("name", Shape::Text), ("arguments", Shape::ObjectOrAbsent)]),
    ("prompts/get", &[("name", Shape::Text), ("arguments", Shape::ObjectOrAbsent)]),
    ("resources/read", &[("uri", Shape::Text)]),
    ("resources/subscribe", &[("uri", Shape::Text)]),
    ("resources/unsubscribe", &[("uri", Shape::Text)]),
    ("tools/list", &[("cursor", Shape::TextOrAbsent)]),
    ("prompts/list", &[("cursor", Shape::TextOrAbsent)]),
    ("resources/list", &[("cursor", Shape::TextOrAbsent)]),
    ("resources/templates/list", &[("cursor", Shape::TextOrAbsent)]),
    ("completion/complete", &[("ref", Shape::Object), ("argument", Shape::Object)]),
    ("logging/setLevel", &[("level", Shape::Text)]),
    ("subscriptions/listen", &[("notifications", Shape::Object)]),
    ("tasks/get", &[("taskId", Shape::Text)]),
    ("tasks/cancel", &[("taskId", Shape::Text)]),
    ("tasks/update", &[("taskId", Shape::Text), ("inputResponses", Shape::Object)]),
    ("tasks/result", &[("taskId", Shape::Text)]),
    ("tasks/list", &[("cursor", Shape::TextOrAbsent)]),
];

/// Methods of whose params the library gets a part only.
const SLIMMED: &[&str] = &["tools/call", "prompts/get", "resources/read"];
/// That part: the names that are compared with headers, and the metadata.
const SLIMMED_FIELDS: &[&str] = &["name", "uri", "_meta"];

/// A message that is refused, with the error to answer.
#[derive(Debug)]
pub struct Fault {
    /// The request's id as JSON; `null` if it could not be read.
    pub id: String,
    pub code: i64,
    pub message: String,
    pub data: Option<Box<Value>>,
    /// Whether the message itself is malformed, rather than what it asks for.
    pub malformed: bool,
}

impl Fault {
    /// The fault of bytes that are no message, and so have no id.
    pub fn malformed(code: i64, message: impl Into<String>) -> Self {
        Self { id: "null".to_owned(), code, message: message.into(), data: None, malformed: true }
    }

    /// The fault of a well-formed message.
    pub fn of(id: &str, error: RpcError) -> Self {
        let RpcError { code, message, data, .. } = error;
        Self { id: id.to_owned(), code, message, data: data.map(Box::new), malformed: false }
    }

    /// Returns the JSON-RPC error message.
    pub fn to_json(&self) -> Vec<u8> {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = Value::clone(data);
        }
        format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, self.id).into_bytes()
    }
}

/// A request or notification as it came, with its caller.
#[derive(Debug)]
pub struct Incoming {
    pub caller: Caller,
    /// The name or URI asked for; empty for methods that have none.
    pub name: String,
    pub params: Arc<RawValue>,
    pub meta: Meta,
    /// `io.modelcontextprotocol/protocolVersion`
    pub version: Option<String>,
    /// `io.modelcontextprotocol/logLevel`
    pub log_level: Option<String>,
    /// `io.modelcontextprotocol/clientCapabilities`, or those of `initialize`.
    pub capabilities: Option<Value>,
    /// `io.cairn/token`; it is in no copy of the params that leaves this room.
    pub token: Option<String>,
}

impl Incoming {
    /// Makes the router's request.
    pub fn request(&self, method: Method, client: Arc<dyn Client>, cancel: CancellationToken) -> Request {
        Request {
            method,
            name: self.name.clone(),
            params: self.params.clone(),
            meta: self.meta.clone(),
            caller: self.caller.clone(),
            client,
            cancel,
            cause: None,
            attempt: None,
            begun: None,
        }
    }

    /// Returns the audience of a request that stands alone.
    pub fn audience(&self) -> Audience {
        Audience {
            capabilities: self
                .capabilities
                .as_ref()
                .map_or_else(|| Audience::default().capabilities, canonical),
            log_level: self.log_level.clone(),
            session: None,
            manner: Manner::Rounds,
        }
    }

    fn era(&self) -> Era {
        match &self.version {
            // Revisions are dates, and compare as text.
            Some(version) if version.as_str() >= FIRST_STATELESS => Era::Stateless,
            _ => Era::Session,
        }
    }
}

/// A well-formed message.
pub enum Message<'a> {
    /// A request or a notification. `slim` is the body for the library, if that differs.
    Asks {
        asked: Arc<Incoming>,
        method: String,
        /// The request's id as JSON; none for a notification.
        id: Option<&'a str>,
        slim: Option<Slim<'a>>,
    },
    /// An answer to something we asked the client.
    Answers,
}

/// The library's copy of a request, without tool arguments.
pub struct Slim<'a> {
    id: Option<&'a str>,
    method: String,
    fields: HashMap<String, &'a RawValue>,
}

impl Slim<'_> {
    /// Returns the request with only the names and metadata of its params.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = String::from(r#"{"jsonrpc":"2.0","#);
        if let Some(id) = self.id {
            out.extend([r#""id":"#, id, ","]);
        }
        out.extend([r#""method":"#, &splice::quoted(&self.method), r#","params":{"#]);
        let mut comma = "";
        for field in SLIMMED_FIELDS {
            if let Some(value) = self.fields.get(*field) {
                out.extend([comma, "\"", field, "\":", value.get()]);
                comma = ",";
            }
        }
        out.push_str("}}");
        out.into_bytes()
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct MetaFields<'a> {
    #[serde(rename = "io.cairn/idempotency-key")]
    idempotency_key: Option<Value>,
    #[serde(rename = "io.cairn/contract")]
    contract: Option<Value>,
    #[serde(rename = "io.cairn/refs")]
    refs: Option<Value>,
    #[serde(rename = "io.cairn/token")]
    token: Option<Value>,
    traceparent: Option<Value>,
    #[serde(rename = "progressToken")]
    progress_token: Option<Value>,
    #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
    protocol_version: Option<Value>,
    #[serde(rename = "io.modelcontextprotocol/logLevel")]
    log_level: Option<Value>,
    #[serde(borrow, rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<&'a RawValue>,
}

/// Reads a message. `body` must be strict JSON. Errors: what is wrong with the message.
pub fn read<'a>(body: &'a [u8], caller: &Caller) -> Result<Message<'a>, Fault> {
    let invalid = |id: Option<&RawValue>, message: &str| Fault {
        id: id.map_or("null", RawValue::get).to_owned(),
        ..Fault::malformed(INVALID_REQUEST, message)
    };
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(invalid(None, "a message is one JSON object; batches are not taken"));
    }
    let fields: Fields =
        serde_json::from_slice(body).map_err(|_| invalid(None, "a message has each of its fields once"))?;
    let id = fields.id.filter(|id| is_id(id));
    if fields.id.is_some() && id.is_none() {
        return Err(invalid(None, "id must be a string or an integer"));
    }
    if fields.jsonrpc.is_none_or(|version| version.get() != r#""2.0""#) {
        return Err(invalid(id, "jsonrpc must be \"2.0\""));
    }
    let Some(method) = fields.method else {
        return match (id, fields.result, fields.error) {
            (Some(_), Some(_), None) | (_, None, Some(_)) => Ok(Message::Answers),
            _ => Err(invalid(id, "a message has a method, or an id and a result or an error")),
        };
    };
    let Ok(method) = serde_json::from_str::<String>(method.get()) else {
        return Err(invalid(id, "method must be a string"));
    };
    let fault = |error, malformed| Fault { malformed, ..Fault::of(id.map_or("null", RawValue::get), error) };
    let params = fields.params.unwrap_or_else(|| serde_json::from_str("{}").expect("this is JSON"));
    let Ok(fields) = serde_json::from_str::<HashMap<String, &RawValue>>(params.get()) else {
        return Err(fault(invalid_params("params must be an object"), true));
    };
    if fields.get("_meta").is_some_and(|meta| !meta.get().starts_with('{')) {
        return Err(fault(invalid_params("_meta must be an object"), true));
    }
    let asked = ask(&method, params, &fields, caller).map_err(|error| fault(error, false))?;
    if id.is_some() && is_known(&method, asked.era()) {
        check_shape(&method, &fields).map_err(|error| fault(error, false))?;
    }
    let untyped = asked.era() == Era::Session && method.starts_with("tasks/");
    let slim = (untyped || SLIMMED.contains(&method.as_str())).then(|| Slim {
        id: id.map(RawValue::get),
        method: if untyped { format!("{UNTYPED}{method}") } else { method.clone() },
        fields,
    });
    let id = id.map(RawValue::get);
    Ok(Message::Asks { asked: Arc::new(asked), method, id, slim })
}

/// What a client says of itself in its first message.
pub struct Hello {
    /// The capabilities that it declares, in their canonical text.
    pub capabilities: Arc<str>,
    /// Whether it opens a session.
    pub in_session: bool,
}

impl Hello {
    /// Reads a message. One that says nothing of its client declares no capabilities.
    pub fn read(body: &[u8]) -> Self {
        let message: Value = serde_json::from_slice(body).unwrap_or_default();
        let (params, in_session) = (&message["params"], message["method"] == "initialize");
        let declared = match in_session {
            true => &params["capabilities"],
            false => &params["_meta"]["io.modelcontextprotocol/clientCapabilities"],
        };
        Self { capabilities: canonical(declared), in_session }
    }
}

/// Returns whether `method` is one of MCP's that we answer in `era`.
pub fn is_known(method: &str, era: Era) -> bool {
    let removed = match era {
        Era::Stateless => SESSION_ONLY.contains(&method),
        Era::Session => STATELESS_ONLY.contains(&method),
    };
    !removed && SHAPES.iter().any(|(known, _)| *known == method)
}

pub fn invalid_params(message: impl Into<String>) -> RpcError {
    RpcError::new(INVALID_PARAMS, message)
}

fn is_id(id: &RawValue) -> bool {
    id.get().starts_with('"') || serde_json::from_str::<i64>(id.get()).is_ok()
}

fn check_shape(method: &str, fields: &HashMap<String, &RawValue>) -> Result<(), RpcError> {
    let shapes = SHAPES.iter().find(|(known, _)| *known == method).map_or(&[][..], |(_, shapes)| shapes);
    for (field, shape) in shapes {
        let first = fields.get(*field).map(|value| value.get().as_bytes()[0]);
        let (fits, wanted) = match shape {
            Shape::Text => (first == Some(b'"'), "a string"),
            Shape::TextOrAbsent => (first.is_none_or(|byte| byte == b'"'), "a string"),
            Shape::Object => (first == Some(b'{'), "an object"),
            Shape::ObjectOrAbsent => (first.is_none_or(|byte| byte == b'{'), "an object"),
        };
        if !fits {
            return Err(invalid_params(format!("{method}: {field} must be {wanted}")));
        }
    }
    Ok(())
}

fn ask(
    method: &str,
    params: &RawValue,
    fields: &HashMap<String, &RawValue>,
    caller: &Caller,
) -> Result<Incoming, RpcError> {
    let text = |field| {
        let value: &&RawValue = fields.get(field)?;
        serde_json::from_str::<String>(value.get()).ok()
    };
    let meta: MetaFields = match fields.get("_meta") {
        Some(meta) => serde_json::from_str(meta.get())
            .map_err(|_| invalid_params("_meta has each of its fields once"))?,
        None => MetaFields::default(),
    };
    let of_initialize = || fields.get("capabilities").copied().filter(|_| method == "initialize");
    let capabilities = meta.capabilities.or_else(of_initialize);
    let asked = Incoming {
        caller: caller.clone(),
        name: text("name").or_else(|| text("uri")).unwrap_or_default(),
        params: untold(params, meta.token.is_some())?.into(),
        version: meta.protocol_version.as_ref().and_then(Value::as_str).map(str::to_owned),
        log_level: meta.log_level.as_ref().and_then(Value::as_str).map(str::to_owned),
        capabilities: capabilities.and_then(|given| serde_json::from_str(given.get()).ok()),
        token: meta.token.map(token).transpose()?,
        meta: Meta {
            idempotency_key: meta.idempotency_key.map(idempotency_key).transpose()?,
            contract: meta.contract.map(contract).transpose()?,
            refs: meta.refs.filter(|_| caller.is_peer()).map(refs).transpose()?.unwrap_or_default(),
            traceparent: meta.traceparent.and_then(traceparent),
            progress_token: meta.progress_token,
            peer: None,
            follows: None,
        },
    };
    Ok(asked)
}

fn idempotency_key(value: Value) -> Result<String, RpcError> {
    match value {
        Value::String(key) if (1..=IDEMPOTENCY_KEY_MAX).contains(&key.chars().count()) => Ok(key),
        _ => Err(invalid_params("io.cairn/idempotency-key must be a string of 1 to 128 characters")),
    }
}

/// Returns the params without the token, if they have one.
fn untold(params: &RawValue, has_token: bool) -> Result<Box<RawValue>, RpcError> {
    let told = || -> Result<Box<RawValue>, splice::NotObject> {
        let Some(meta) = splice::member(params, "_meta")?.filter(|_| has_token) else {
            return Ok(params.to_owned());
        };
        let meta = splice::edit(meta, &[], |key| key == TOKEN)?;
        splice::edit(params, &[("_meta", &meta)], |_| false)
    };
    told().map_err(|_| invalid_params("params must be an object"))
}

fn token(value: Value) -> Result<String, RpcError> {
    match value {
        Value::String(token) => Ok(token),
        _ => Err(invalid_params("io.cairn/token must be a string")),
    }
}

fn refs(value: Value) -> Result<Vec<Cid>, RpcError> {
    let refs = value.as_array().filter(|refs| refs.len() <= START_REFS_MAX);
    let refs = refs.and_then(|refs| refs.iter().map(|one| one.as_str()?.parse().ok()).collect());
    refs.ok_or_else(|| invalid_params("io.cairn/refs must be a list of at most 8 CIDs"))
}

fn contract(value: Value) -> Result<Cid, RpcError> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid_params("io.cairn/contract must be the CID of a contract"))
}

/// Characters of a `traceparent` up to its flags.
const TRACEPARENT_LEN: usize = 55;

/// Returns a `traceparent` that follows W3C Trace Context (section 3.2.2); anything else counts as absent.
fn traceparent(value: Value) -> Option<String> {
    let Value::String(text) = value else {
        return None;
    };
    let parts: Vec<&str> = text.split('-').collect();
    let hex =
        |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let [version, trace, parent, flags, more @ ..] = parts.as_slice() else {
        return None;
    };
    let valid = hex(version, 2)
        && *version != "ff"
        && hex(trace, 32)
        && nonzero(trace)
        && hex(parent, 16)
        && nonzero(parent)
        && hex(flags, 2)
        && (more.is_empty() || *version != "00");
    // What a later version adds behind the flags is not ours to keep.
    valid.then(|| text[..TRACEPARENT_LEN].to_owned())
}
