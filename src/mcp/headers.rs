//! Headers: what a request over HTTP must say beside its message, and in which era it is therefore answered.
//!
//! Invariants:
//! - what a header says of the message is what the message says, so that whoever routes by headers routes right;
//! - a header that names one thing stands once.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde_json::Value;

use super::{
    envelope::{FIRST_STATELESS, Incoming},
    offering::HEADER_MARK,
};
use crate::{
    mcp::era::{Era, VERSIONS},
    router::codes::{HEADER_MISMATCH, INVALID_PARAMS, INVALID_REQUEST},
};

const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "Mcp-Method";
const NAME: &str = "Mcp-Name";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// What surrounds a value that is encoded in its header.
const ENCODED: (&str, &str) = ("=?base64?", "?=");

/// Why a request is refused by its headers.
#[derive(Debug)]
pub struct Unfit {
    pub status: StatusCode,
    pub code: i64,
    pub message: String,
}

impl Unfit {
    fn bad(code: i64, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    fn not(status: StatusCode, message: &str) -> Self {
        Self { status, code: INVALID_REQUEST, message: message.to_owned() }
    }
}

/// Checks that the client takes what may be answered to a POST, and that it sends JSON.
pub fn check_kinds(headers: &HeaderMap) -> Result<(), Unfit> {
    if !accepts(headers, &[JSON, EVENTS]) {
        let message = "Not Acceptable: Client must accept both application/json and text/event-stream";
        return Err(Unfit::not(StatusCode::NOT_ACCEPTABLE, message));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    if !kind.trim().eq_ignore_ascii_case(JSON) {
        let message = "Unsupported Media Type: Content-Type must be application/json";
        return Err(Unfit::not(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(())
}

/// Checks that the client takes a stream of events.
pub fn check_events(headers: &HeaderMap) -> Result<(), Unfit> {
    let message = "Not Acceptable: Client must accept text/event-stream";
    match accepts(headers, &[EVENTS]) {
        true => Ok(()),
        false => Err(Unfit::not(StatusCode::NOT_ACCEPTABLE, message)),
    }
}

/// Returns whether `Accept` names every one of these. Whoever names nothing, or anything, takes them all.
fn accepts(headers: &HeaderMap, wanted: &[&str]) -> bool {
    let mut given = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if given.peek().is_none_or(|accept| *accept == "*/*") {
        return true;
    }
    let named: Vec<&str> = given.flat_map(|value| unquoted(value, ',')).filter_map(essence).collect();
    wanted.iter().all(|kind| named.iter().any(|named| named.eq_ignore_ascii_case(kind)))
}

/// Returns the kind that an entry of `Accept` names; none if its weight is zero (RFC 9110, section 12.4.2). A weight
/// that is no weight counts as none.
fn essence(entry: &str) -> Option<&str> {
    let mut parts = unquoted(entry, ';');
    let essence = parts.next()?.trim();
    let zero = |weight: &str| {
        let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
        whole == "0" && fraction.len() <= 3 && fraction.bytes().all(|digit| digit == b'0')
    };
    let excluded = parts
        .filter_map(|part| part.split_once('='))
        .any(|(name, value)| name.trim().eq_ignore_ascii_case("q") && zero(value.trim()));
    (!excluded).then_some(essence)
}

/// Splits a text at a delimiter, but not inside quotes.
fn unquoted(text: &str, delimiter: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character: char| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match character {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && character == delimiter,
        }
        false
    })
}

/// Returns the era in which a request, or what has no message of its own, is answered. Errors: the headers name no
/// revision, or another one than the message.
pub fn era(headers: &HeaderMap, asked: Option<&Incoming>) -> Result<Era, Unfit> {
    let header = headers.get(VERSION).map(|value| value.to_str());
    let header = header.transpose().map_err(|_| {
        Unfit::not(StatusCode::BAD_REQUEST, "Bad Request: Invalid MCP-Protocol-Version header encoding")
    })?;
    let request = asked.filter(|asked| asked.id.is_some());
    let own = request.and_then(|asked| asked.version.as_deref());
    if let Some(version) = header.filter(|version| own.is_none() && !VERSIONS.contains(version)) {
        let message = format!("Bad Request: Unsupported MCP-Protocol-Version: {version}");
        return Err(Unfit::not(StatusCode::BAD_REQUEST, &message));
    }
    let stateless = |version: &str| version >= FIRST_STATELESS;
    let Some(asked) = request else {
        return Ok(if header.is_some_and(stateless) { Era::Stateless } else { Era::Session });
    };
    if asked.method == "initialize" && asked.era() == Era::Session {
        return check_handshake(headers, header, asked).map(|()| Era::Session);
    }
    let discovers = asked.method == "server/discover";
    match (own, header) {
        (None, header) if discovers || header.is_some_and(stateless) => {
            let missing = asked.missing().join(", ");
            let message = "Invalid params: request _meta is missing or has malformed required fields";
            Err(Unfit::bad(INVALID_PARAMS, format!("{message}: {missing}")))
        }
        (None, _) => Ok(Era::Session),
        (Some(_), None) => Err(Unfit::bad(
            HEADER_MISMATCH,
            "request _meta protocolVersion requires MCP-Protocol-Version header",
        )),
        (Some(own), Some(header)) if own != header => Err(Unfit::bad(
            HEADER_MISMATCH,
            format!(
                "MCP-Protocol-Version header ({header}) does not match request _meta protocolVersion ({own})"
            ),
        )),
        // A request with all of the metadata stands alone, whatever revision it names.
        (Some(own), Some(_)) if discovers || stateless(own) || asked.missing().is_empty() => {
            Ok(Era::Stateless)
        }
        (Some(_), Some(_)) => Ok(Era::Session),
    }
}

/// Checks the headers of a handshake, which may have none of them.
fn check_handshake(headers: &HeaderMap, version: Option<&str>, asked: &Incoming) -> Result<(), Unfit> {
    let body = asked.text("protocolVersion").unwrap_or_default();
    if let Some(version) = version.filter(|version| *version != body) {
        let message = format!(
            "Invalid Request: MCP-Protocol-Version header ({version}) does not match initialize params.protocolVersion ({body})"
        );
        return Err(Unfit::bad(INVALID_REQUEST, message));
    }
    let named = only(headers, METHOD).map_err(|message| Unfit::bad(HEADER_MISMATCH, message))?;
    match named.filter(|named| *named != asked.method && version.is_some_and(|own| own >= FIRST_STATELESS)) {
        Some(named) => Err(Unfit::bad(HEADER_MISMATCH, mismatch(METHOD, named, &asked.method))),
        None => Ok(()),
    }
}

/// Checks that the headers of a message of revision 2026-07-28 say what it says (SEP-2243). `schema` is the input schema
/// of the tool that it calls, if arguments of that are mirrored.
pub fn check_mirrored(headers: &HeaderMap, asked: &Incoming, schema: Option<&Value>) -> Result<(), Unfit> {
    let stateless =
        headers.get(VERSION).is_some_and(|version| version.as_bytes() >= FIRST_STATELESS.as_bytes());
    if !stateless {
        return Ok(());
    }
    let checked = || -> Result<(), String> {
        let method = only(headers, METHOD)?.ok_or("missing required Mcp-Method header")?;
        if method != asked.method {
            return Err(mismatch(METHOD, method, &asked.method));
        }
        if let Some(name) = name_field(method).and_then(|field| asked.text(field)) {
            let given = only(headers, NAME)?;
            let given = given.ok_or_else(|| format!("missing required Mcp-Name header for `{method}`"))?;
            check_value(NAME, given, &name)?;
        }
        match schema {
            Some(schema) => {
                let arguments = asked.field("arguments").and_then(|text| serde_json::from_str(text).ok());
                check_arguments(headers, schema, &arguments.unwrap_or_default(), &mut Vec::new())
            }
            None => Ok(()),
        }
    };
    checked().map_err(|message| Unfit::bad(HEADER_MISMATCH, message))
}

/// Returns the member of the params that a method's name header repeats.
fn name_field(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    }
}

/// Compares the marked properties of a schema, and of those inside them, with their headers.
fn check_arguments(
    headers: &HeaderMap,
    schema: &Value,
    arguments: &Value,
    path: &mut Vec<String>,
) -> Result<(), String> {
    for (property, inner) in schema["properties"].as_object().into_iter().flatten() {
        path.push(property.clone());
        let argument = &arguments[property];
        if let Some(mark) = inner[HEADER_MARK].as_str().filter(|mark| !mark.is_empty()) {
            let (name, place) = (format!("Mcp-Param-{mark}"), path.join("."));
            let body = match argument {
                Value::String(text) => Some(text.clone()),
                Value::Bool(_) | Value::Number(_) => Some(argument.to_string()),
                Value::Null | Value::Array(_) | Value::Object(_) => None,
            };
            match (only(headers, &name)?, body) {
                (None, None) => {}
                (Some(_), None) => {
                    return Err(format!("unexpected {name} header for absent or null `{place}`"));
                }
                (None, Some(_)) => return Err(format!("missing {name} header for `{place}`")),
                (Some(given), Some(body)) => check_value(&name, given, &body)?,
            }
        }
        check_arguments(headers, inner, argument, path)?;
        path.pop();
    }
    Ok(())
}

/// Compares a header's value, which may be encoded, with the body's.
fn check_value(name: &str, given: &str, body: &str) -> Result<(), String> {
    let encoded = given.strip_prefix(ENCODED.0).and_then(|inner| inner.strip_suffix(ENCODED.1));
    if encoded.is_none() && given == body {
        return Ok(());
    }
    let decoded = match encoded {
        Some(inner) => BASE64_STANDARD.decode(inner).ok().and_then(|bytes| String::from_utf8(bytes).ok()),
        None => Some(given.to_owned()),
    };
    let decoded = decoded.ok_or_else(|| format!("{name} header is not valid Base64"))?;
    if decoded == body { Ok(()) } else { Err(mismatch(name, &decoded, body)) }
}

fn mismatch(name: &str, header: &str, body: &str) -> String {
    let what = if name == METHOD { "method" } else { "value" };
    format!("{name} header `{header}` does not match body {what} `{body}`")
}

/// Returns a header's value. Errors: it is there more than once, or is no text.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, String> {
    // A mark that is no name of a header has no header.
    let Ok(key) = HeaderName::from_bytes(name.as_bytes()) else { return Ok(None) };
    let mut values = headers.get_all(key).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(format!("duplicate {name} header"));
    }
    value.to_str().map(Some).map_err(|_| format!("{name} header contains invalid characters"))
}
