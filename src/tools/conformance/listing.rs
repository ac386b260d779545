//! What the conformance suite expects to find in the lists, and the forms its tools show.
//!
//! Only data: names and schemas are the suite's own.

use serde_json::{Value, json};

use super::dialogue::ROUNDS;

/// Every tool's name and input schema.
pub fn tools() -> Vec<(&'static str, Value)> {
    const NO_INPUT: &[&str] = &[
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_tool_with_logging",
        "test_error_handling",
        "test_tool_with_progress",
        "test_elicitation_sep1034_defaults",
        "test_elicitation_sep1330_enums",
        "test_elicitation_secret",
        "test_reconnection",
        "test_missing_capability",
        "test_logging_tool",
        "test_trigger_tool_change",
        "test_trigger_prompt_change",
        "test_input_required_result_capabilities",
    ];
    let text = |field: &str| json!({"type": "object", "properties": {field: {"type": "string"}}, "required": [field]});
    let empty = || json!({"type": "object", "properties": {}});
    let mut tools: Vec<_> = NO_INPUT.iter().map(|name| (*name, empty())).collect();
    tools.extend(ROUNDS.iter().map(|dialogue| (dialogue.name, empty())));
    tools.push(("test_sampling", text("prompt")));
    tools.push(("test_elicitation", text("message")));
    tools.push((
        "test_custom_header",
        json!({"type": "object", "properties": {"value": {"type": "string", "x-mcp-header": "Value"}}}),
    ));
    tools.push((
        "json_schema_2020_12_tool",
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "$defs": {
                "address": {
                    "$anchor": "addressDef",
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                },
            },
            "properties": {
                "name": {"type": "string"},
                "address": {"$ref": "#/$defs/address"},
                "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                "phone": {"type": "string"},
                "email": {"type": "string"},
            },
            "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
            "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
            "then": {"required": ["phone"]},
            "else": {"required": ["email"]},
            "additionalProperties": false,
        }),
    ));
    tools
}

pub fn prompts() -> Vec<Value> {
    let prompt = |name: &str, arguments: &[&str]| {
        let arguments: Vec<Value> = arguments
            .iter()
            .map(|argument| json!({"name": argument, "description": "A test argument", "required": true}))
            .collect();
        json!({"name": name, "description": format!("Conformance fixture {name}"), "arguments": arguments})
    };
    vec![
        prompt("test_simple_prompt", &[]),
        prompt("test_prompt_with_arguments", &["arg1", "arg2"]),
        prompt("test_prompt_with_embedded_resource", &["resourceUri"]),
        prompt("test_prompt_with_image", &[]),
        prompt("test_input_required_result_prompt", &[]),
    ]
}

pub fn resources() -> Vec<Value> {
    let resource = |uri: &str, name: &str, mime: &str| json!({"uri": uri, "name": name, "description": format!("Conformance fixture {name}"), "mimeType": mime});
    vec![
        resource("test://static-text", "Static text", "text/plain"),
        resource("test://static-binary", "Static binary", "image/png"),
        resource("test://watched-resource", "Watched resource", "text/plain"),
    ]
}

pub fn defaults() -> Value {
    json!({
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": true},
    })
}

pub fn enums() -> Value {
    let options = ["option1", "option2", "option3"];
    let titled = |word: &str| {
        json!([
            {"const": "value1", "title": format!("First {word}")},
            {"const": "value2", "title": format!("Second {word}")},
            {"const": "value3", "title": format!("Third {word}")},
        ])
    };
    json!({
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled("Option")},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
    })
}

/// A form with a field that nobody but the tool may read. It is asked for by no scenario of the suite.
pub fn secret() -> Value {
    json!({"username": {"type": "string"}, "password": {"type": "string", "format": "password"}})
}
