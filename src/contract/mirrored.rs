//! Arguments that are mirrored in headers: whether the marks of a schema are sound (`x-mcp-header`, SEP-2243).
//!
//! Invariant: one unsound mark makes the whole definition invalid, wherever it stands in the schema.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// The keyword that names the header for a property.
const MARK: &str = "x-mcp-header";
/// A mark stands on properties of these types alone. A number has no one form in text.
const TYPES: [&str; 3] = ["string", "integer", "boolean"];
/// The value of these keywords is data and never a schema.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "example"];
/// The value of these keywords maps names to subschemas.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// Returns what is wrong with the marks of an input schema; none if they are sound, or if there are none.
pub fn fault(schema: &Value) -> Option<&'static str> {
    unsound(schema, Place::Root, &mut HashSet::new())
}

/// Says where a subschema stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    /// It is reached from the root by `properties` alone.
    Property,
    Elsewhere,
}

fn unsound(schema: &Value, place: Place, seen: &mut HashSet<String>) -> Option<&'static str> {
    let map = schema.as_object()?;
    let own = map.get(MARK).and_then(|mark| unsound_mark(mark, map, place, seen));
    own.or_else(|| {
        map.iter().filter(|(keyword, _)| !DATA.contains(&keyword.as_str())).find_map(|(keyword, value)| {
            let chained = keyword == "properties" && place != Place::Elsewhere;
            let inside = if chained { Place::Property } else { Place::Elsewhere };
            match value {
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                    named.values().find_map(|inner| unsound(inner, inside, seen))
                }
                Value::Array(many) => many.iter().find_map(|inner| unsound(inner, Place::Elsewhere, seen)),
                one => unsound(one, Place::Elsewhere, seen),
            }
        })
    })
}

fn unsound_mark(
    mark: &Value,
    schema: &Map<String, Value>,
    place: Place,
    seen: &mut HashSet<String>,
) -> Option<&'static str> {
    if place != Place::Property {
        return Some("it stands elsewhere than on a property reached by `properties` alone");
    }
    let Some(name) = mark.as_str().filter(|name| is_token(name)) else {
        return Some("it is no name of a header");
    };
    if !schema.get("type").and_then(Value::as_str).is_some_and(|word| TYPES.contains(&word)) {
        return Some("it stands on a property that is no string, integer or boolean");
    }
    (!seen.insert(name.to_ascii_lowercase())).then_some("the same header is named twice")
}

/// Returns whether a text is a token of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::fault;

    #[track_caller]
    fn check(properties: Value, sound: bool) {
        let schema = json!({"type": "object", "properties": properties});
        assert_eq!(fault(&schema).is_none(), sound, "{schema}: {:?}", fault(&schema));
    }

    #[test]
    fn marks_are_names_of_headers_on_plain_properties_and_each_stands_once() {
        let mark = |kind: &str, name: Value| json!({"type": kind, "x-mcp-header": name});
        for kind in ["string", "integer", "boolean"] {
            check(json!({"a": mark(kind, json!("Region"))}), true);
        }
        for kind in ["number", "object", "array", "null"] {
            check(json!({"a": mark(kind, json!("Region"))}), false);
        }
        for name in ["", "My Region", "Region:Primary", "Région", "Region\t1", "Region\n"] {
            check(json!({"a": mark("string", json!(name))}), false);
        }
        check(json!({"a": mark("string", json!(7))}), false);
        check(json!({"a": {"x-mcp-header": "Untyped"}}), false);
        check(json!({"a": {"type": ["string", "null"], "x-mcp-header": "Two"}}), false);
        check(json!({"a": mark("string", json!("A")), "b": mark("string", json!("B"))}), true);
        check(json!({"a": mark("string", json!("A")), "b": mark("string", json!("a"))}), false);
    }

    #[test]
    fn a_mark_is_reached_by_properties_alone() {
        let marked = || json!({"type": "string", "x-mcp-header": "Region"});
        check(json!({"a": {"type": "object", "properties": {"b": marked()}}}), true);
        check(json!({"x-mcp-header": {"type": "string"}}), true);
        check(json!({"a": {"default": marked(), "const": marked()}}), true);
        for keyword in ["items", "additionalProperties", "not", "if"] {
            check(json!({"a": {keyword: marked()}}), false);
        }
        for keyword in ["allOf", "anyOf", "prefixItems"] {
            check(json!({"a": {keyword: [marked()]}}), false);
        }
        for keyword in ["$defs", "patternProperties"] {
            check(json!({"a": {keyword: {"b": marked()}}}), false);
        }
        assert!(fault(&marked()).is_some(), "the root is no property");
    }
}
