//! Claims about schemas of every dialect: which values they judge, and why some judge none.

use serde_json::{Value, json};

use super::{
    PLACE_MAX, REASON_MAX, Schema,
    Unchecked::{self, Ambiguous, Dialect, Large, Malformed, Pattern, Reference},
};

const DRAFT_04: &str = "http://json-schema.org/draft-04/schema#";
const DRAFT_06: &str = "http://json-schema.org/draft-06/schema#";
const DRAFT_07: &str = "http://json-schema.org/draft-07/schema#";
const DRAFT_2019: &str = "https://json-schema.org/draft/2019-09/schema";
const DRAFT_2020: &str = "https://json-schema.org/draft/2020-12/schema";

/// Returns a schema whose value at `x` is described by `x`.
fn of(x: &Value) -> Value {
    json!({"type": "object", "properties": {"x": x}})
}

/// The same, in the dialect that is named.
fn named(dialect: &str, x: &Value) -> Value {
    json!({"$schema": dialect, "type": "object", "properties": {"x": x}})
}

#[track_caller]
fn judges(schema: &Value, fits: &Value, misfit: &Value) {
    let compiled = Schema::compile(schema);
    assert_eq!(compiled.unusable(), None, "{schema}");
    for (value, expected) in [(fits, true), (misfit, false)] {
        let value = json!({"x": value});
        let faults = compiled.faults(&value).unwrap_or_else(|why| panic!("{schema}: {why:?}"));
        assert_eq!(faults.is_empty(), expected, "{schema} and {value}: {faults:?}");
    }
}

#[track_caller]
fn judges_nothing(schema: &Value, why: Unchecked) {
    let compiled = Schema::compile(schema);
    let unusable = compiled.unusable().unwrap_or_else(|| panic!("it can be used: {schema}"));
    assert_eq!(unusable.why, why, "{schema}: {unusable:?}");
    assert!(unusable.text.chars().count() <= REASON_MAX && !unusable.text.chars().any(char::is_control));
    assert_eq!(compiled.faults(&json!({"x": 1})).err(), Some(why));
    assert_eq!(compiled.misfit(&json!({"x": 1})), Err(why));
}

#[test]
fn a_schema_is_read_in_the_dialect_that_it_names() {
    let pair = json!({"type": "array", "items": [{"type": "number"}, {"type": "string"}]});
    for dialect in [DRAFT_04, DRAFT_06, DRAFT_07, DRAFT_2019, "https://json-schema.org/draft-07/schema"] {
        judges(&named(dialect, &pair), &json!([1, "a"]), &json!(["a", 1]));
    }
    let above = json!({"minimum": 0, "exclusiveMinimum": true});
    judges(&named(DRAFT_04, &above), &json!(1), &json!(0));
    for dialect in [DRAFT_06, DRAFT_07, DRAFT_2019, DRAFT_2020] {
        judges(&named(dialect, &json!({"exclusiveMinimum": 0})), &json!(1), &json!(0));
    }
    let beside = json!({"$ref": "#/definitions/s", "minLength": 5});
    let with = |mut schema: Value| {
        schema["definitions"] = json!({"s": {"type": "string"}});
        schema
    };
    for dialect in [DRAFT_04, DRAFT_06, DRAFT_07] {
        judges(&with(named(dialect, &beside)), &json!("ab"), &json!(1));
    }
    judges(&with(named(DRAFT_2019, &beside)), &json!("abcde"), &json!("ab"));
    let prefix = json!({"type": "array", "prefixItems": [{"type": "string"}], "items": false});
    judges(&named(DRAFT_2020, &prefix), &json!(["a"]), &json!([1]));
    judges(&of(&prefix), &json!(["a"]), &json!(["a", "b"]));
    judges(&of(&json!({"dependentRequired": {"a": ["b"]}})), &json!({"a": 1, "b": 1}), &json!({"a": 1}));
}

#[test]
fn a_dialect_that_is_not_known_judges_nothing() {
    for dialect in [
        "http://json-schema.org/draft-03/schema#",
        "https://schemas.invalid/own",
        "",
        "draft-07",
        "http://json-schema.org/draft-07/schema#/x",
    ] {
        judges_nothing(&named(dialect, &json!({"type": "string"})), Dialect);
    }
    for dialect in [json!(7), json!(null), json!({})] {
        judges_nothing(&json!({"$schema": dialect, "properties": {}}), Dialect);
    }
    judges_nothing(&of(&json!({"$schema": DRAFT_04, "type": "string"})), Dialect);
    judges(&of(&json!({"$schema": DRAFT_2020, "type": "string"})), &json!("a"), &json!(1));
}

#[test]
fn a_reference_that_leads_nowhere_judges_nothing() {
    for reference in [
        "https://schemas.invalid/x.json",
        "file:///etc/passwd",
        "other.json",
        "#/components/schemas/X",
        "#/$defs/none",
        "#none",
        "http://json-schema.org/draft-07/schema#",
    ] {
        judges_nothing(&of(&json!({"$ref": reference})), Reference);
    }
    judges_nothing(
        &json!({"$id": "%%", "properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {}}}),
        Reference,
    );
    judges_nothing(&json!({"$defs": {"unused": {"$ref": "https://schemas.invalid/x"}}}), Reference);
    judges(&of(&json!({"default": {"$ref": "other.json"}, "type": "string"})), &json!("a"), &json!(1));
    let inside = json!({"$defs": {"s": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/s"}}});
    judges(&inside, &json!("a"), &json!(1));
}

#[test]
fn a_pattern_that_cannot_be_read_as_it_was_meant_judges_nothing() {
    for pattern in ["[a-z", "a\\Z", "^\\h+$", "*", "^[[:alpha:]]+$", "^[^[:space:]]+$", "/^abc$/i", "/^a/"] {
        judges_nothing(&of(&json!({"type": "string", "pattern": pattern})), Pattern);
        judges_nothing(&json!({"patternProperties": {pattern: {"type": "string"}}}), Pattern);
    }
    for dialect in [DRAFT_04, DRAFT_06, DRAFT_07, DRAFT_2019] {
        judges_nothing(&named(dialect, &json!({"pattern": "[a-z"})), Pattern);
    }
    judges(&of(&json!({"pattern": "^/a/b/$"})), &json!("/a/b/"), &json!("/a"));
    judges(&of(&json!({"pattern": "^(?=a)\\w+$"})), &json!("ab"), &json!("ba"));
    judges(&of(&json!({"pattern": "^[a&&b]+$"})), &json!("a&b"), &json!("c"));
}

#[test]
fn a_schema_against_the_rules_of_its_dialect_judges_nothing() {
    for x in [
        json!({"type": "array", "items": [{"type": "string"}]}),
        json!({"type": "string", "required": true}),
        json!({"type": "any"}),
        json!({"type": ["string", "any"]}),
        json!({"type": "string", "enum": null}),
        json!({"minimum": 0, "exclusiveMinimum": true}),
        json!({"properties": []}),
        json!({"minLength": -1}),
        json!({"$ref": 5}),
        json!(5),
        json!(null),
    ] {
        judges_nothing(&of(&x), Malformed);
    }
    for whole in [
        json!({"required": null}),
        json!({"required": "x"}),
        json!({"properties": null}),
        json!({"properties": []}),
        json!({"type": "Object"}),
        json!({"anyOf": []}),
        json!({"additionalProperties": "false"}),
        json!({"description": {}}),
    ] {
        judges_nothing(&whole, Malformed);
    }
    judges_nothing(&named(DRAFT_07, &json!({"minimum": 0, "exclusiveMinimum": true})), Malformed);
    judges_nothing(&named(DRAFT_04, &json!({"exclusiveMinimum": 0})), Malformed);
}

#[test]
fn a_schema_that_would_be_misread_judges_nothing() {
    judges_nothing(&of(&json!({"type": "string", "nullable": true})), Ambiguous);
    judges_nothing(&named(DRAFT_07, &json!({"anyOf": [{"type": "string", "nullable": true}]})), Ambiguous);
    judges(&of(&json!({"type": ["string", "null"], "nullable": true})), &json!(null), &json!(1));
    judges(&of(&json!({"type": "string", "nullable": false})), &json!("a"), &json!(null));
    judges(
        &of(&json!({"properties": {"nullable": {"type": "string"}}})),
        &json!({}),
        &json!({"nullable": 1}),
    );
    judges_nothing(&of(&json!({"enum": []})), Ambiguous);
    let beside = |more: Value| {
        let mut x = json!({"$ref": "#/definitions/s"});
        x.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        json!({"definitions": {"s": {"type": "string"}}, "properties": {"x": x}})
    };
    judges_nothing(&beside(json!({"minLength": 5})), Ambiguous);
    judges(&beside(json!({"description": "a", "default": "b", "x-order": 1})), &json!("a"), &json!(1));
}

#[test]
fn what_tools_check_or_not_is_not_judged() {
    let annotations = json!({"type": "string", "format": "email", "contentEncoding": "base64", "contentMediaType": "application/json"});
    for dialect in [DRAFT_04, DRAFT_06, DRAFT_07, DRAFT_2019, DRAFT_2020] {
        judges(&named(dialect, &annotations), &json!("neither of them"), &json!(1));
    }
}

#[test]
fn no_schema_is_walked_too_deep() {
    let chain = |length: usize| {
        let step = |n: usize| (format!("s{n}"), json!({"allOf": [{"$ref": format!("#/$defs/s{}", n + 1)}]}));
        let mut steps: serde_json::Map<String, Value> = (0..length).map(step).collect();
        steps.insert(format!("s{length}"), json!({"type": "integer"}));
        json!({"$defs": steps, "properties": {"x": {"$ref": "#/$defs/s0"}}})
    };
    judges(&chain(100), &json!(1), &json!("a"));
    for length in [1_000, 20_000] {
        judges_nothing(&chain(length), Large);
    }
    let circle = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
                        "properties": {"x": {"$ref": "#/$defs/a"}, "y": false}});
    let compiled = Schema::compile(&circle);
    assert_eq!(compiled.faults(&json!({"x": 1})).map(|faults| faults.len()), Ok(0));
    assert_eq!(compiled.faults(&json!({"y": 1})).map(|faults| faults.len()), Ok(1));
}

#[test]
fn a_misfit_is_told_by_its_place_in_the_schema_alone() {
    let schema = json!({"type": "object", "required": ["n"], "properties": {
        "n": {"type": "integer"}, "s": {"$ref": "#/$defs/s"}, "a\tb": {"type": "string"}},
        "$defs": {"s": {"maxLength": 3}}, "additionalProperties": false});
    let compiled = Schema::compile(&schema);
    for (value, place) in [
        (json!({"n": 1}), None),
        (json!({"n": "secret"}), Some("#/properties/n/type")),
        (json!({}), Some("#/required")),
        (json!([]), Some("#/type")),
        (json!({"n": 1, "s": "secret"}), Some("#/$defs/s/maxLength")),
        (json!({"n": 1, "secret": 1}), Some("#/additionalProperties")),
        (json!({"n": 1, "a\tb": 1}), Some("#/properties")),
    ] {
        assert_eq!(compiled.misfit(&value), Ok(place.map(str::to_owned)), "{value}");
    }
    let long = "x".repeat(PLACE_MAX);
    let deep =
        Schema::compile(&json!({"properties": {"a": {"properties": {long.clone(): {"type": "string"}}}}}));
    let place = deep.misfit(&json!({"a": {long: 1}}));
    assert_eq!(place, Ok(Some("#/properties/a/properties".to_owned())));
    assert_eq!(Schema::compile(&json!(false)).misfit(&json!(1)), Ok(Some("#".to_owned())));
}

#[test]
fn what_would_take_too_long_is_not_judged() {
    let begun = std::time::Instant::now();
    let fan = |n: usize| {
        let step = |n: usize| {
            let next = json!({"$ref": format!("#/$defs/s{}", n + 1)});
            (format!("s{n}"), json!({"allOf": [next, next]}))
        };
        let mut steps: serde_json::Map<String, Value> = (0..n).map(step).collect();
        steps.insert(format!("s{n}"), json!({"type": "integer"}));
        json!({"$defs": steps, "$ref": "#/$defs/s0"})
    };
    let names = |n: usize| json!({"$defs": fan(n)["$defs"], "propertyNames": {"$ref": "#/$defs/s0"}});
    let nested = |n: usize| (0..n).fold(json!("end"), |inner, _| json!({"x": inner}));
    let branch = |n: usize| json!({"properties": {"x": {"$ref": "#"}}, "title": n.to_string()});
    let both = json!({"anyOf": [branch(1), branch(2)], "type": ["object", "string"]});
    let tree = json!({"oneOf": (0..8).map(branch).collect::<Vec<_>>()});
    let late = |of: &str| json!({"type": "array", "items": {"pattern": of}});
    let texts = |n: usize| json!(vec!["a".repeat(40); n]);
    for (schema, value) in [
        (fan(30), json!(1)),
        (fan(200), json!("a")),
        (both, nested(40)),
        (tree, nested(20)),
        (late("^(a+)+\\1b$"), texts(10_000)),
        (names(30), json!({"a": 1})),
    ] {
        let schema = Schema::compile(&schema);
        assert_eq!(schema.unusable(), None);
        assert_eq!(schema.faults(&value).err(), Some(Large));
        assert_eq!(schema.misfit(&value), Err(Large));
        assert!(!schema.is_quick(64));
    }
    let unique = Schema::compile(&json!({"uniqueItems": true}));
    assert_eq!(unique.misfit(&Value::from((0..100_000).collect::<Vec<u32>>())), Ok(None));
    let wide: serde_json::Map<String, Value> =
        (0..20_000).map(|n| (format!("property {n:0200}"), json!({"type": "string"}))).collect();
    let wide = Schema::compile(&json!({"properties": wide}));
    assert_eq!(wide.misfit(&json!({"property": 1})), Ok(None), "four million bytes of a plain schema");
    for x in [json!({"pattern": "((a{1000}){1000}){1000}"}), json!({"pattern": "(\\w{1,999}){1,999}"})] {
        judges_nothing(&of(&x), Large);
    }
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
