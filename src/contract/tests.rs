//! What a definition becomes as a contract, and which of its fields are secret.

use serde_json::{Value, json, value::RawValue};

use super::*;
use crate::{block::payload::SaltKey, contract::secret::Paths};

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

#[test]
fn a_schema_that_branches_without_end_is_secret_as_a_whole_where_it_has_marks() {
    let again = vec![json!({"$ref": "#/$defs/tree"}); 16];
    let mut schema = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"anyOf": again}}});
    assert!(Paths::of_schema(&schema).is_empty());
    schema["properties"] = json!({"pin": {"x-secret": true}});
    assert_eq!(Paths::of_schema(&schema).iter().collect::<Vec<_>>(), [""], "the path of everything");
}

#[test]
fn a_secret_is_replaced_by_the_same_commitment_each_time() {
    let key = SaltKey::new([1; 32]);
    let paths = Paths::of_schema(&json!({"properties": {"pin": {"x-secret": true}}}));
    let redacted = |pin: &str| {
        let mut value = json!({"pin": pin, "amount": 3});
        let taken = paths.redact(&mut value, &key);
        assert_eq!(taken, [pin]);
        value
    };
    assert_eq!(redacted("1234"), redacted("1234"));
    assert_ne!(redacted("1234"), redacted("1235"));
    assert_eq!(redacted("1234")["amount"], 3);
    assert!(!redacted("1234").to_string().contains("1234\""));
}

#[test]
fn an_echoed_secret_is_scrubbed_in_its_json_form() {
    let secrets = ["pa\"ss\nword".to_owned(), "ab".to_owned()];
    let text = json!({"said": "you sent pa\"ss\nword, ab"}).to_string();
    let scrubbed = secret::scrub(&text, &secrets).expect("it stands in the text");
    let scrubbed: Value = serde_json::from_str(&scrubbed).expect("still json");
    assert_eq!(scrubbed["said"], "you sent $redacted, ab", "short secrets match by chance, and stay");
    let mut nested = json!({"pem": "pa\"ss\nword"}).to_string();
    for depth in 1..=2 {
        nested = json!({"text": nested}).to_string();
        let scrubbed = secret::scrub(&nested, &secrets).unwrap_or_else(|| panic!("missed at depth {depth}"));
        assert!(!scrubbed.contains("ss") && serde_json::from_str::<Value>(&scrubbed).is_ok(), "{scrubbed}");
    }
}
