//! What the offer lets us claim: capabilities, and the lists behind them.
//!
//! Invariants:
//! - what is not on offer is not declared, and what is not declared is no method.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    block::splice,
    catalogue::PEERS,
    router::{Entry, Listed, RpcError, Tool, codes::METHOD_NOT_FOUND, declared::Declared},
    runtime::upstream_tasks::EXTENSION,
};

/// The schema property that marks arguments that are mirrored in headers (SEP-2243).
pub const HEADER_MARK: &str = "x-mcp-header";

const OUTPUT: &str = "outputSchema";

/// The metadata key of a listed tool's contract, for peers.
const CONTRACT: &str = "io.cairn/contract";

/// Returns the input schema of a tool, if any of its arguments are mirrored in headers.
pub fn mirrored(tool: &Tool) -> Option<Value> {
    let definition = Some(tool.definition.get()).filter(|definition| definition.contains(HEADER_MARK))?;
    let mut definition: Value = serde_json::from_str(definition).ok()?;
    Some(definition["inputSchema"].take())
}

pub fn tool_entry(tool: &Arc<Tool>) -> (&str, Cow<'_, RawValue>) {
    (&tool.name, Cow::Borrowed(&tool.definition))
}

/// Like [`tool_entry`], for a client in a session: without an output schema of anything but objects, which such clients
/// do not take.
pub fn session_tool_entry(tool: &Arc<Tool>) -> (&str, Cow<'_, RawValue>) {
    let of_objects = |schema: &RawValue| {
        let kind = splice::member(schema, "type").ok().flatten();
        kind.is_some_and(|kind| kind.get() == "\"object\"")
    };
    let schema = splice::member(&tool.definition, OUTPUT).ok().flatten();
    let without = match schema {
        Some(schema) if !of_objects(schema) => splice::edit(&tool.definition, &[], |key| key == OUTPUT).ok(),
        _ => None,
    };
    (&tool.name, without.map_or(Cow::Borrowed(&*tool.definition), Cow::Owned))
}

/// Like [`tool_entry`], with the tool's contract in its metadata.
pub fn contract_entry(tool: &Arc<Tool>) -> (&str, Cow<'_, RawValue>) {
    let contract = splice::raw(splice::quoted(&tool.contract.to_string()));
    let empty = splice::raw("{}".to_owned());
    let named = || {
        let meta = splice::member(&tool.definition, "_meta")?.unwrap_or(&empty);
        let meta = splice::edit(meta, &[(CONTRACT, &contract)], |_| false)?;
        splice::edit(&tool.definition, &[("_meta", &meta)], |_| false)
    };
    // A definition whose metadata is no object has no room for ours, and is listed as it is.
    (&tool.name, named().map_or(Cow::Borrowed(&*tool.definition), Cow::Owned))
}

/// Returns the tools that are not our own peers': no peer reaches another through us.
pub fn own_tools(entries: &[Arc<Entry>]) -> Vec<Arc<Tool>> {
    entries.iter().filter(|entry| entry.source != PEERS).map(|entry| entry.tool.clone()).collect()
}

pub fn listed_entry(item: &Arc<Listed>) -> (&str, Cow<'_, RawValue>) {
    (&item.name, Cow::Borrowed(&item.definition))
}

/// Returns the capabilities to declare: what the sources of the offer declared.
pub fn capabilities(declared: &Declared) -> Value {
    let mut capabilities = json!({"logging": {}});
    let mut declare = |when: bool, key: &str, value: Value| {
        if when {
            capabilities[key] = value;
        }
    };
    declare(declared.tools, "tools", json!({"listChanged": true}));
    declare(declared.prompts, "prompts", json!({"listChanged": true}));
    let resources = if declared.subscriptions {
        json!({"listChanged": true, "subscribe": true})
    } else {
        json!({"listChanged": true})
    };
    declare(declared.resources, "resources", resources);
    declare(declared.completions, "completions", json!({}));
    // Clients take objects alone there.
    let settings = declared.extensions.iter();
    let settings = settings.filter(|(key, settings)| settings.is_object() && *key != EXTENSION);
    let mut extensions: Map<String, Value> =
        settings.map(|(key, value)| (key.clone(), value.clone())).collect();
    if declared.tasks {
        extensions.insert(EXTENSION.to_owned(), json!({}));
    }
    declare(!extensions.is_empty(), "extensions", Value::Object(extensions));
    capabilities
}

/// Returns a wrapped server's description of itself; this node's own, if that is none or is none to be read.
pub fn implementation(wrapped: Option<&RawValue>) -> Value {
    let wrapped: Option<Value> = wrapped.and_then(|server| serde_json::from_str(server.get()).ok());
    let wrapped = wrapped.filter(|server| server["name"].is_string() && server["version"].is_string());
    wrapped.unwrap_or_else(|| json!({"name": "cairn", "version": env!("CARGO_PKG_VERSION")}))
}

pub fn declared(declared: bool, method: &str) -> Result<(), RpcError> {
    if declared { Ok(()) } else { Err(method_not_found(method)) }
}

pub fn method_not_found(method: &str) -> RpcError {
    RpcError::new(METHOD_NOT_FOUND, format!("there is no method {method}"))
}
