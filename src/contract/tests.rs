//! Checks what contract a tool definition becomes, and which of its fields are secret.

use serde_json::{json, value::RawValue};

use super::*;
use crate::contract::secret::Paths;

fn contract(definition: &str) -> Result<Contract, ContractError> {
    let raw = RawValue::from_string(definition.to_owned()).expect("valid json");
    Contract::of_definition("source", "1", &raw)
}

#[test]
fn schemas_stand_as_the_bytes_they_came_as() {
    let text = r#"{"name":"t","inputSchema":{ "type":"object",  "n": 1e2 },"unknown":[1]}"#;
    let contract = contract(text).expect("a whole definition");
    assert_eq!(contract.input, br#"{ "type":"object",  "n": 1e2 }"#);
    assert_eq!(contract.effects["destructive"], Ipld::Bool(true), "nothing said means the worst");
    assert!(!contract.repeatable());
}

#[test]
fn a_contract_has_a_name_a_source_and_the_known_version() {
    let good = contract(r#"{"name":"t","inputSchema":{}}"#).expect("a whole definition");
    assert!(Contract::is_block(good.seal().bytes()));
    for bad in [
        Contract { name: String::new(), ..good.clone() },
        Contract { source: String::new(), ..good.clone() },
        Contract { v: 2, ..good.clone() },
    ] {
        assert!(!Contract::is_block(bad.seal().bytes()), "{bad:?}");
    }
}

#[test]
fn definitions_without_a_name_or_an_object_schema_are_refused() {
    for text in [r#"{"inputSchema":{}}"#, r#"{"name":"t"}"#, r#"{"name":"t","inputSchema":true}"#, "[]", "3"]
    {
        assert!(contract(text).is_err(), "{text}");
    }
}

#[test]
fn secrets_are_found_wherever_a_schema_can_mark_them() {
    let schema = json!({
        "properties": {
            "user": {"type": "string"},
            "password": {"type": "string", "writeOnly": true},
            "login": {"properties": {"token": {"x-secret": true}}},
            "keys": {"items": {"$ref": "#/$defs/key"}},
        },
        "anyOf": [{"properties": {"pin": {"x-secret": true}}}],
        "additionalProperties": {"properties": {"hush": {"x-secret": true}}},
        "patternProperties": {"^x-": {"properties": {"cookie": {"x-secret": true}}}},
        "$defs": {"key": {"x-secret": true}},
    });
    let found: Vec<String> = Paths::of_schema(&schema).iter().collect();
    assert_eq!(found, ["/*/cookie", "/*/hush", "/keys/*", "/login/token", "/password", "/pin"]);
}

#[test]
fn a_schema_that_refers_to_itself_ends() {
    let schema = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"properties": {"next": {"$ref": "#/$defs/tree"}}}}});
    assert!(Paths::of_schema(&schema).is_empty());
}
