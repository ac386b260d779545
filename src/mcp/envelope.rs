//! Envelopes: a JSON-RPC message as it came, read once.
//!
//! Invariants:
//! - what is [`read`] here is a well-formed message: one object, `"2.0"`, a string or integer id;
//! - `params` reach the router byte for byte, but for a token;
//! - where the members of [`FIELDS`] stand in them is found once.

use std::{borrow::Cow, ops::Range, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::{Cid, splice},
    call::START_REFS_MAX,
    caller::Caller,
    mcp::era::{Era, VERSIONS, present},
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

/// The metadata that a request which stands alone must have.
const REQUIRED: [&str; 2] =
    ["io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"];

/// The members of a request's params that are looked at here.
const FIELDS: [&str; 15] = [
    "name",
    "uri",
    "_meta",
    "arguments",
    "cursor",
    "ref",
    "argument",
    "level",
    "notifications",
    "protocolVersion",
    "capabilities",
    "clientInfo",
    "requestId",
    "taskId",
    "inputResponses",
];

/// The members of a client's capabilities that are objects.
const CAPABILITIES: [&str; 5] = ["experimental", "extensions", "roots", "sampling", "elicitation"];

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
    pub fn to_json(&self) -> String {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = &self.data {
            error["data"] = Value::clone(data);
        }
        format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, self.id)
    }
}

/// A request or notification as it came, with its caller.
#[derive(Debug)]
pub struct Incoming {
    pub caller: Caller,
    pub method: String,
    /// The id as JSON; `None` for a notification.
    pub id: Option<String>,
    /// The name or URI asked for; empty for methods that have none.
    pub name: String,
    pub params: Arc<RawValue>,
    /// Where the values of [`FIELDS`] stand in `params`.
    spans: [Range<usize>; FIELDS.len()],
    pub meta: Meta,
    /// `io.modelcontextprotocol/protocolVersion`
    pub version: Option<Cow<'static, str>>,
    /// `io.modelcontextprotocol/logLevel`
    pub log_level: Option<String>,
    /// `io.modelcontextprotocol/clientCapabilities`, or those of `initialize`, in their canonical text; `None` where they
    /// are no capabilities.
    pub capabilities: Option<Arc<str>>,
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
            capabilities: self.capabilities.clone().unwrap_or_else(|| Audience::default().capabilities),
            log_level: self.log_level.clone(),
            session: None,
            standing: None,
            manner: Manner::Rounds,
        }
    }

    /// Returns the id as JSON; `null` for a notification.
    pub fn id(&self) -> &str {
        self.id.as_deref().unwrap_or("null")
    }

    /// Returns a member of the params as JSON. `field` is one of [`FIELDS`].
    pub fn field(&self, field: &str) -> Option<&str> {
        let span = self.spans[FIELDS.iter().position(|known| *known == field)?].clone();
        self.params.get().get(span).filter(|value| !value.is_empty())
    }

    /// Returns a member of the params that is a string.
    pub fn text(&self, field: &str) -> Option<String> {
        serde_json::from_str(self.field(field)?).ok()
    }

    pub fn era(&self) -> Era {
        match self.version.as_deref() {
            // Revisions are dates, and compare as text. A handshake is of the older ones, whatever its metadata names.
            Some(version) if version >= FIRST_STATELESS && !self.shakes_hands() => Era::Stateless,
            _ => Era::Session,
        }
    }

    fn shakes_hands(&self) -> bool {
        self.method == "initialize" && self.field("protocolVersion").is_some()
    }

    /// Returns the names of the metadata that a request which stands alone must have and this one has not.
    pub fn missing(&self) -> Vec<&'static str> {
        let has = [self.version.is_some(), self.capabilities.is_some()];
        REQUIRED.into_iter().zip(has).filter(|(_, has)| !has).map(|(name, _)| name).collect()
    }
}

/// An answer of a client to something that it was asked.
#[derive(Debug)]
pub struct Answer {
    /// The id of what was asked, as JSON.
    pub id: String,
    pub outcome: Result<Value, RpcError>,
}

/// A well-formed message.
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it is read")]
pub enum Message {
    /// A request or a notification.
    Asks(Incoming),
    Answers(Answer),
}

impl Message {
    /// Returns the id of a request as JSON; `null` for anything else.
    pub fn id(&self) -> &str {
        match self {
            Self::Asks(asked) => asked.id(),
            Self::Answers(_) => "null",
        }
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
    #[serde(borrow, rename = "io.cairn/idempotency-key")]
    idempotency_key: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.cairn/contract")]
    contract: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.cairn/refs")]
    refs: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.cairn/token")]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow, rename = "progressToken")]
    progress_token: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.modelcontextprotocol/protocolVersion")]
    protocol_version: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.modelcontextprotocol/logLevel")]
    log_level: Option<&'a RawValue>,
    #[serde(borrow, rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Refused {
    code: i64,
    message: String,
    data: Option<Value>,
}

/// Reads a message. `body` must be strict JSON. Errors: what is wrong with the message.
pub fn read(body: &[u8], caller: &Caller) -> Result<Message, Fault> {
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
        let answers = answer(id, fields.result, fields.error);
        let wrong = "a message has a method, or an id and a result or an error";
        return answers.map(Message::Answers).ok_or_else(|| invalid(id, wrong));
    };
    let Ok(method) = serde_json::from_str::<String>(method.get()) else {
        return Err(invalid(id, "method must be a string"));
    };
    let fault = |error, malformed| Fault { malformed, ..Fault::of(id.map_or("null", RawValue::get), error) };
    let empty = || serde_json::from_str("{}").expect("this is JSON");
    let params = fields.params.unwrap_or_else(empty);
    let spans = splice::spans(params, &FIELDS)
        .map_err(|_| fault(invalid_params("params must be an object"), true))?;
    let mut asked = Incoming {
        caller: caller.clone(),
        method,
        id: id.map(|id| id.get().to_owned()),
        name: String::new(),
        params: params.to_owned().into(),
        spans,
        meta: Meta::default(),
        version: None,
        log_level: None,
        capabilities: None,
        token: None,
    };
    if asked.field("_meta").is_some_and(|meta| !meta.starts_with('{')) {
        return Err(fault(invalid_params("_meta must be an object"), true));
    }
    asked.fill().map_err(|error| fault(error, false))?;
    Ok(Message::Asks(asked))
}

/// Returns the answer that a message without a method is, if it is one. An error may answer nothing in particular.
fn answer(id: Option<&RawValue>, result: Option<&RawValue>, error: Option<&RawValue>) -> Option<Answer> {
    let outcome = match (id, result, error) {
        (Some(_), Some(result), None) => Ok(serde_json::from_str(result.get()).ok()?),
        (_, None, Some(error)) => {
            let unread = Refused { code: INVALID_REQUEST, message: "unreadable error".into(), data: None };
            let Refused { code, message, data } = serde_json::from_str(error.get()).unwrap_or(unread);
            Err(RpcError { data, ..RpcError::new(code, message) })
        }
        _ => return None,
    };
    Some(Answer { id: id.map_or("null", RawValue::get).to_owned(), outcome })
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

pub fn invalid_params(message: impl Into<String>) -> RpcError {
    RpcError::new(INVALID_PARAMS, message)
}

fn is_id(id: &RawValue) -> bool {
    id.get().starts_with('"') || serde_json::from_str::<i64>(id.get()).is_ok()
}

impl Incoming {
    /// Reads the name and the metadata out of the params, and takes the token out of them.
    fn fill(&mut self) -> Result<(), RpcError> {
        let params = self.params.clone();
        let meta: MetaFields = match &self.spans[2] {
            absent if absent.is_empty() => MetaFields::default(),
            meta => serde_json::from_str(&params.get()[meta.clone()])
                .map_err(|_| invalid_params("_meta has each of its fields once"))?,
        };
        let parsed = |given: Option<&RawValue>| given.map(|given| value(given.get()));
        self.meta = Meta {
            idempotency_key: parsed(meta.idempotency_key).map(idempotency_key).transpose()?,
            contract: parsed(meta.contract).map(contract).transpose()?,
            refs: parsed(meta.refs.filter(|_| self.caller.is_peer()))
                .map(refs)
                .transpose()?
                .unwrap_or_default(),
            traceparent: parsed(meta.traceparent).and_then(traceparent),
            progress_token: parsed(meta.progress_token),
            peer: None,
            follows: None,
        };
        self.name = self.text("name").or_else(|| self.text("uri")).unwrap_or_default();
        self.version = meta.protocol_version.and_then(version);
        self.log_level = meta.log_level.and_then(|level| serde_json::from_str(level.get()).ok());
        self.capabilities = match (meta.capabilities, self.method.as_str()) {
            (Some(given), _) => capabilities(given.get()),
            (None, "initialize") => self.field("capabilities").and_then(capabilities),
            (None, _) => None,
        };
        if let Some(given) = meta.token {
            self.token = Some(token(value(given.get()))?);
            self.params = untold(&params)?.into();
            let moved = splice::spans(&self.params, &FIELDS);
            self.spans = moved.map_err(|_| invalid_params("params must be an object"))?;
        }
        Ok(())
    }
}

fn value(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_default()
}

fn version(given: &RawValue) -> Option<Cow<'static, str>> {
    let known = VERSIONS.into_iter().find(|known| given.get().trim_matches('"') == *known);
    known.map(Cow::Borrowed).or_else(|| serde_json::from_str(given.get()).ok().map(Cow::Owned))
}

/// Returns the canonical text of capabilities, if they are some.
fn capabilities(given: &str) -> Option<Arc<str>> {
    if given == "{}" {
        return Some(Audience::default().capabilities);
    }
    let given = value(given);
    let fits = |key: &&str| given.get(key).is_none_or(|inner| inner.is_object() || inner.is_null());
    (given.is_object() && CAPABILITIES.iter().all(fits)).then(|| canonical(&given))
}

fn idempotency_key(value: Value) -> Result<String, RpcError> {
    match value {
        Value::String(key) if (1..=IDEMPOTENCY_KEY_MAX).contains(&key.chars().count()) => Ok(key),
        _ => Err(invalid_params("io.cairn/idempotency-key must be a string of 1 to 128 characters")),
    }
}

/// Returns the params without the token in their metadata.
fn untold(params: &RawValue) -> Result<Box<RawValue>, RpcError> {
    let told = || -> Result<Box<RawValue>, splice::NotObject> {
        let meta = splice::member(params, "_meta")?.ok_or(splice::NotObject)?;
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
