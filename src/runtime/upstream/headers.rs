//! The headers of requests over HTTP: those configured, and those that show what a body says.
//!
//! Invariants:
//! - a value that no header can carry as it is stands there in base64, never cut or changed;
//! - configured values are marked sensitive.

use std::collections::{BTreeMap, HashMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, value::RawValue};

use crate::{block::splice, runtime::upstream::wire};

pub const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
pub const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// The property of an input schema that names the header for its argument.
const SHOWN: &str = "x-mcp-header";

/// Headers, each with the path of the argument it shows.
type Places = Vec<(HeaderName, Vec<String>)>;

/// The arguments that are mirrored in headers: by tool, each header and the path of its argument.
#[derive(Default)]
pub struct Shown(HashMap<String, Places>);

impl Shown {
    pub fn of(tools: &[Box<RawValue>]) -> Self {
        let some = tools.iter().filter(|tool| tool.get().contains(SHOWN));
        Self(some.filter_map(|tool| shown_of(tool)).collect())
    }
}

fn shown_of(tool: &RawValue) -> Option<(String, Places)> {
    let tool: Value = serde_json::from_str(tool.get()).ok()?;
    let mut found = Vec::new();
    collect(tool.get("inputSchema")?, &[], &mut found);
    Some((tool.get("name")?.as_str()?.to_owned(), found))
}

fn collect(schema: &Value, path: &[String], found: &mut Places) {
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = [path, std::slice::from_ref(key)].concat();
        let header = property.get(SHOWN).and_then(Value::as_str);
        let header = header.and_then(|name| HeaderName::try_from(format!("mcp-param-{name}")).ok());
        collect(property, &path, found);
        found.extend(header.map(|header| (header, path)));
    }
}

/// The headers by which the stateless revision shows a request's method, subject and arguments (SEP-2243).
pub fn of_request(method: &str, params: &RawValue, shown: &Shown) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(VERSION, HeaderValue::from_static(wire::MODERN));
    headers.extend(value(method).map(|value| (METHOD, value)));
    let subject = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return headers,
    };
    let subject = splice::member(params, subject).ok().flatten();
    let subject = subject.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let Some(subject) = subject else {
        return headers;
    };
    headers.extend(value(&subject).map(|value| (NAME, value)));
    if let Some(wanted) = shown.0.get(&subject).filter(|_| method == "tools/call") {
        headers.extend(arguments(params, wanted));
    }
    headers
}

fn arguments(params: &RawValue, wanted: &[(HeaderName, Vec<String>)]) -> HeaderMap {
    let arguments = splice::member(params, "arguments").ok().flatten();
    let arguments = arguments.and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
    let Some(arguments) = arguments else {
        return HeaderMap::new();
    };
    let shown = wanted.iter().filter_map(|(header, path)| {
        let argument = path.iter().try_fold(&arguments, |value, key| value.get(key))?;
        let text = match argument {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => argument.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some((header.clone(), value(&text)?))
    });
    shown.collect()
}

/// Returns `text` as a header value, in base64 if a header cannot carry it as it is.
fn value(text: &str) -> Option<HeaderValue> {
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && text.trim() == text
        && !text.is_empty()
        && !text.starts_with("=?base64?");
    match plain {
        true => HeaderValue::from_str(text).ok(),
        false => HeaderValue::from_str(&format!("=?base64?{}?=", STANDARD.encode(text))).ok(),
    }
}

/// Reads the configured headers. Errors: which one is malformed, without its value.
pub fn configured(headers: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let malformed = || format!("header {name:?} is malformed");
        let key = HeaderName::try_from(name.as_str()).map_err(|_| malformed())?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| malformed())?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}
