//! Checks which forms of a mark are found, and in which values a secret is replaced.

use serde_json::json;

use super::{
    taking::{Keep, Reduced, reduce},
    *,
};

const SECRET: &str = "hunter2-password";

fn bound() -> Bound {
    let [actor, source, name] = ["ada", "up", "login"].map(str::to_owned);
    let key = SaltKey::new([1; 32]);
    Bound { key, actor, method: "tools/call", source, name, side: Side::Input }
}

fn kept(schema: &Value, value: &Value) -> Reduced {
    reduce(value.clone(), "", &Paths::of_schema(schema), Keep::All, &bound())
}

/// Asserts that `value`, which holds the secret, no longer holds it after it is stored under `schema`.
fn hides(schema: &Value, value: &Value) {
    let Reduced { value: kept, changed, .. } = kept(schema, value);
    assert!(changed && !kept.to_string().contains(SECRET), "{schema}\nkeeps {kept}");
    assert!(Paths::of_schema(schema).stand_in(value, |_| false), "{schema}\nin {value}");
}

fn with_p(p: Value, more: Value) -> Value {
    let mut schema = json!({"type": "object", "properties": {"p": p}});
    for (name, value) in more.as_object().into_iter().flatten() {
        schema[name] = value.clone();
    }
    schema
}

/// Returns schemas that mark `p`, each by another keyword.
fn schemas() -> Vec<Value> {
    let s = json!({"type": "string", "writeOnly": true});
    let has_p = json!({"properties": {"p": s}});
    let reference = |to: &str, more: Value| with_p(json!({"$ref": to}), more);
    let mut schemas = vec![
        with_p(s.clone(), json!({})),
        with_p(json!({"x-secret": true}), json!({})),
        with_p(json!({"type": "string", "format": "password"}), json!({})),
        reference("#/$defs/s", json!({"$defs": {"s": s}})),
        reference("#/definitions/s", json!({"definitions": {"s": s}})),
        reference("#/$defs/a~1b~0c", json!({"$defs": {"a/b~c": s}})),
        reference("#/$defs/a%20b%25", json!({"$defs": {"a b%": s}})),
        reference("#/x-own/s", json!({"x-own": {"s": s}})),
        reference("#/default/s", json!({"default": {"s": s}})),
        reference("#sec", json!({"$defs": {"s": {"$anchor": "sec", "writeOnly": true}}})),
        reference("#sec", json!({"definitions": {"s": {"$id": "#sec", "writeOnly": true}}})),
        reference("s#/$defs/s", json!({"$id": "https://x.example/s", "$defs": {"s": s}})),
        reference(
            "https://x.example/t",
            json!({"$defs": {"t": {"$id": "https://x.example/t", "writeOnly": true}}}),
        ),
        reference(
            "t.json",
            json!({"$id": "https://x.example/s", "$defs": {"t": {"$id": "t.json", "$ref": "#/$defs/u", "$defs": {"u": s}}}}),
        ),
        reference("urn:x:s#/$defs/s", json!({"$id": "urn:x:s", "$defs": {"s": s}})),
        reference("https://elsewhere.example/s", json!({"$defs": {"s": s}})),
        reference("#/$defs/none", json!({"$defs": {"s": s}})),
        with_p(
            json!({"$dynamicRef": "#dd"}),
            json!({"$defs": {"s": {"$dynamicAnchor": "dd", "writeOnly": true}}}),
        ),
        with_p(json!({"$recursiveRef": "#"}), json!({"$defs": {"s": s}})),
        with_p(json!({"$ref": "#/$defs/a"}), json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": s}})),
        with_p(json!({}), json!({"dependentSchemas": {"u": has_p}})),
        with_p(json!({}), json!({"dependencies": {"u": has_p}})),
        with_p(json!({}), json!({"not": {"not": has_p}})),
        with_p(json!({}), json!({"if": has_p})),
        with_p(json!({}), json!({"if": {}, "then": has_p})),
        with_p(json!({}), json!({"if": {}, "else": has_p})),
        json!({"additionalProperties": s}),
        json!({"unevaluatedProperties": s}),
        json!({"patternProperties": {"^p$": s}}),
        json!({"propertyNames": s}),
        json!({"$ref": "#/$defs/o", "$defs": {"o": has_p}}),
        json!({"x-unknown": {"properties": {"p": s}}}),
        json!({"x-unknown": {"$ref": "#/$defs/s"}, "properties": {"q": {"$ref": "#/$defs/s"}}, "$defs": {"s": s}}),
        json!({"$defs": {"never": s}}),
        json!({"writeOnly": true}),
    ];
    for keyword in ["allOf", "anyOf", "oneOf"] {
        schemas.push(json!({(keyword): [{}, has_p]}));
    }
    let mut deep = s;
    for _ in 0..60 {
        deep = json!({"allOf": [deep]});
    }
    schemas.push(with_p(deep, json!({})));
    schemas
}

#[test]
fn every_spelling_of_a_mark_is_found() {
    for schema in schemas() {
        hides(&schema, &json!({"p": SECRET, "u": 1}));
    }
}

#[test]
fn what_stands_in_another_document_makes_all_secret() {
    for reference in [
        "https://nowhere.example/x",
        "https://nowhere.example/x#/$defs/s",
        "other.json",
        "other.json#/$defs/s",
    ] {
        for schema in [
            json!({"properties": {"p": {"$ref": reference}}}),
            json!({"properties": {"p": {"$ref": reference}}, "$defs": {"s": {"type": "string"}}}),
            json!({"$id": "https://here.example/y", "properties": {"p": {"items": {"$dynamicRef": reference}}}}),
        ] {
            hides(&schema, &json!({"p": SECRET, "u": 1}));
        }
    }
    let at_home = json!({"$id": "https://here.example/s", "properties": {"p": {"$ref": "s#/$defs/n"}}, "$defs": {"n": {}}});
    assert!(Paths::of_schema(&at_home).is_empty(), "nothing is marked, and all is here");
    let as_data = json!({"properties": {"p": {"default": {"$ref": "https://nowhere.example/x"}}}});
    assert!(Paths::of_schema(&as_data).is_empty(), "data refers to nothing");
}

#[test]
fn a_mark_that_was_meant_is_a_mark() {
    for mark in [
        json!({"writeOnly": "true"}),
        json!({"writeOnly": 1}),
        json!({"x-secret": "true"}),
        json!({"x-secret": "yes"}),
        json!({"format": "PASSWORD"}),
    ] {
        hides(&json!({"properties": {"p": mark}}), &json!({"p": SECRET, "u": 1}));
    }
    for mark in [json!({"writeOnly": false}), json!({"x-secret": "false"}), json!({"writeOnly": null})] {
        assert!(Paths::of_schema(&json!({"properties": {"p": mark}})).is_empty(), "{mark}");
    }
    let named = json!({"properties": {"writeOnly": {"type": "boolean"}}});
    assert!(Paths::of_schema(&named).is_empty(), "a property has this name");
}

#[test]
fn a_value_that_is_not_of_its_schemas_form_is_secret() {
    for schema in schemas().into_iter().take(26) {
        for value in [
            json!({"P": SECRET}),
            json!({"input": {"p": SECRET}}),
            json!({"p": {"value": SECRET}}),
            json!({"p": [SECRET]}),
            json!({ SECRET: 1 }),
            json!([{"p": SECRET}]),
            json!(json!({"p": SECRET}).to_string()),
        ] {
            hides(&schema, &value);
        }
    }
    let nested = json!({"properties": {"o": {"properties": {"p": {"writeOnly": true}}}, "l": {"items": {"properties": {"p": {"writeOnly": true}}}}}});
    for value in [
        json!({"o": {"p": SECRET}}),
        json!({"o": json!({"p": SECRET}).to_string()}),
        json!({"o": [{"p": SECRET}]}),
        json!({"l": [{}, {"p": SECRET}]}),
        json!({"l": {"0": {"p": SECRET}}}),
        json!({"l": [[{"p": SECRET}]]}),
        json!({"l": json!([{"p": SECRET}]).to_string()}),
    ] {
        hides(&nested, &value);
    }
}

#[test]
fn marks_of_items_are_found_in_every_keyword() {
    let s = json!({"writeOnly": true});
    for list in [
        json!({"items": s}),
        json!({"items": [{}, s]}),
        json!({"prefixItems": [{}, s]}),
        json!({"prefixItems": [{}], "items": s}),
        json!({"items": [{}], "additionalItems": s}),
        json!({"unevaluatedItems": s}),
        json!({"contains": s}),
        json!({"items": {"items": s}}),
    ] {
        hides(&with_p(list, json!({})), &json!({"p": [SECRET, SECRET]}));
    }
    let spelled = with_p(
        json!({"contentMediaType": "application/json", "contentSchema": {"properties": {"q": s}}}),
        json!({}),
    );
    hides(&spelled, &json!({"p": json!({"q": SECRET}).to_string()}));
}

#[test]
fn a_schema_that_comes_back_to_itself_marks_at_every_depth() {
    let node = json!({"properties": {"p": {"writeOnly": true}, "next": {"$ref": "#"}, "all": {"items": {"$ref": "#"}}}});
    let mut value = json!({"p": SECRET});
    for _ in 0..50 {
        value = json!({"next": {"all": [value]}});
    }
    hides(&node, &value);
    assert_eq!(Paths::of_schema(&node).iter().collect::<Vec<_>>(), ["/all/*/**", "/next/**", "/p"]);
    let again = vec![json!({"$ref": "#/$defs/tree"}); 16];
    let mut schema = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"anyOf": again}}});
    assert!(Paths::of_schema(&schema).is_empty(), "nothing is marked");
    schema["properties"] = json!({"p": {"x-secret": true}});
    assert_eq!(Paths::of_schema(&schema).iter().collect::<Vec<_>>(), ["/p"]);
}

#[test]
fn a_schema_of_endless_paths_is_secret_as_a_whole() {
    let mut defs = json!({"d20": {"properties": {"p": {"writeOnly": true}}}});
    for at in 0..20 {
        let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
        defs[format!("d{at}")] = json!({"properties": {"a": next, "b": next}});
    }
    let schema = json!({"$ref": "#/$defs/d0", "$defs": defs});
    assert_eq!(Paths::of_schema(&schema).iter().collect::<Vec<_>>(), [""]);
}

#[test]
fn what_is_not_marked_is_kept() {
    let schema = json!({
        "properties": {
            "p": {"writeOnly": true},
            "user": {"type": "string"},
            "tags": {"items": {"type": "string"}},
            "o": {"properties": {"p": {"type": "string"}}},
        },
        "examples": [{"writeOnly": true}],
        "default": {"format": "password"},
    });
    let value = json!({"p": SECRET, "user": "ada", "tags": ["a", "b"], "o": {"p": "seen", "more": 1}});
    let Reduced { value: kept, taken, .. } = kept(&schema, &value);
    assert_eq!(kept["user"], "ada");
    assert_eq!(kept["tags"], value["tags"]);
    assert_eq!(kept["o"], value["o"]);
    assert!(taken.stand_in(SECRET) && !taken.stand_in("ada"));
    let without = json!({"user": "ada", "o": {}});
    assert!(!Paths::of_schema(&schema).stand_in(&without, |_| false));
    assert!(Paths::of_schema(&json!({"properties": {"p": {"type": "string"}}})).is_empty());
}

#[test]
fn a_commitment_is_of_one_actor_tool_side_and_place() {
    let value = json!(1234);
    let own = bound().value("/pin", &value);
    assert_eq!(own, bound().value("/pin", &value), "the same again");
    let others = [
        Bound { actor: "eve".into(), ..bound() }.value("/pin", &value),
        Bound { name: "other".into(), ..bound() }.value("/pin", &value),
        Bound { source: "other".into(), ..bound() }.value("/pin", &value),
        Bound { method: "prompts/get", ..bound() }.value("/pin", &value),
        Bound { key: SaltKey::new([2; 32]), ..bound() }.value("/pin", &value),
        bound().answer().value("/pin", &value),
        bound().value("/pin/0", &value),
        bound().value("/pin", &json!(1235)),
        bound().value("/pin", &json!("1234")),
        // A text that moves from one field to the next must give another commitment.
        Bound { source: "u".into(), name: "plogin".into(), ..bound() }.value("/pin", &value),
    ];
    for other in others {
        assert_ne!(own, other);
    }
    let text = own["$redacted"].as_str().expect("a text");
    assert_eq!(text, "v2:22a34b94ce940b0bf6ebf12ff39f434c", "the bytes of a released form are fixed");
    let schema = json!({"properties": {"guesses": {"items": {"writeOnly": true}}}});
    let Reduced { value: kept, .. } = kept(&schema, &json!({"guesses": [1234, 1234]}));
    assert_ne!(kept["guesses"][0], kept["guesses"][1], "a list of guesses tells nothing of one another");
}
