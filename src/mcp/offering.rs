//! What the offer lets us claim: capabilities, and the lists behind them.
//!
//! Invariants:
//! - what is not on offer is not declared, and what is not declared is no method.

use std::{borrow::Cow, sync::Arc};

use rmcp::{
    ErrorData,
    model::{ErrorCode, ServerCapabilities},
};
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    catalogue::PEERS,
    router::{Entry, Listed, Offer, Tool, declared::Declared},
    runtime::following::EXTENSION,
};

/// The schema property that marks arguments that are mirrored in headers (SEP-2243).
const HEADER_MARK: &str = "x-mcp-header";

/// The word by which a definition says whether its tool is run as a task.
const TASK_MARK: &str = "taskSupport";

const OUTPUT: &str = "outputSchema";

/// The metadata key of a listed tool's contract, for peers.
const CONTRACT: &str = "io.cairn/contract";

/// Returns the definition of the tool `name`, if any of its arguments are mirrored in headers.
pub fn header_tool<'a>(offer: &'a Offer, name: &str) -> Option<&'a str> {
    let tool = offer.tools.iter().find(|tool| tool.name == name)?;
    Some(tool.definition.get()).filter(|definition| definition.contains(HEADER_MARK))
}

/// Returns whether there is a tool `name` without such arguments, of which nothing is said of tasks.
pub fn has_plain_tool(offer: &Offer, name: &str) -> bool {
    let plain = |definition: &str| !definition.contains(HEADER_MARK) && !definition.contains(TASK_MARK);
    offer.tools.iter().any(|tool| tool.name == name && plain(tool.definition.get()))
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
pub fn capabilities(declared: &Declared) -> ServerCapabilities {
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
    let mut extensions = declared.extensions.clone();
    extensions.remove(EXTENSION);
    if declared.tasks {
        extensions.insert(EXTENSION.to_owned(), json!({}));
    }
    declare(!extensions.is_empty(), "extensions", Value::Object(extensions));
    // What an upstream wrote there may not be of the library's types; then it is left out.
    serde_json::from_value(capabilities.clone()).unwrap_or_else(|_| {
        capabilities["extensions"] = json!({});
        serde_json::from_value(capabilities).expect("these are the library's own field names")
    })
}

pub fn declared(declared: bool, method: &str) -> Result<(), ErrorData> {
    if declared { Ok(()) } else { Err(method_not_found(method)) }
}

pub fn method_not_found(method: &str) -> ErrorData {
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, format!("there is no method {method}"), None)
}
