//! Finds in a schema what its dialect reads otherwise than its author meant it.
//!
//! Invariants:
//! - what is found here would else refuse values that the tool takes; what is only too lenient is left alone;
//! - data in a schema (`const`, `enum`, `default`, examples) is not read as one.

use std::collections::HashSet;

use jsonschema::Draft;
use serde_json::{Map, Value};

use super::{Unchecked, Unusable};

/// The different references of a schema, times how deep its subschemas are nested, are at most this many: a compiled
/// schema is walked on the stack.
const DEPTH_MAX: usize = 2_000;
/// These keywords apply a subschema, or each of a list of them.
const APPLIED: [&str; 16] = [
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
];
/// The value of these keywords maps names to subschemas.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// These keywords judge nothing.
const REMARKS: [&str; 11] = [
    "$ref",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "deprecated",
    "examples",
    "readOnly",
    "writeOnly",
];

/// Checks that a schema means what its dialect reads in it. Errors: where it does not.
pub(super) fn check(schema: &Value, draft: Draft) -> Result<(), Unusable> {
    let mut walk = Walk {
        draft,
        dialect_named: schema.get("$schema").is_some(),
        references: HashSet::new(),
        deepest: 0,
    };
    walk.read(schema, "", 1)?;
    match walk.references.len().saturating_mul(walk.deepest) > DEPTH_MAX {
        true => {
            let text = format!("{} references between deep subschemas", walk.references.len());
            Err(Unusable::new(Unchecked::Large, text))
        }
        false => Ok(()),
    }
}

struct Walk<'a> {
    draft: Draft,
    /// Says whether the schema names its dialect.
    dialect_named: bool,
    references: HashSet<&'a str>,
    /// The depth of the deepest subschema.
    deepest: usize,
}

impl<'a> Walk<'a> {
    fn read(&mut self, schema: &'a Value, place: &str, depth: usize) -> Result<(), Unusable> {
        let Some(map) = schema.as_object() else { return Ok(()) };
        self.deepest = self.deepest.max(depth);
        if let Some((why, keyword, text)) = self.misread(map) {
            return Err(Unusable::new(why, format!("{place}/{keyword}: {text}")));
        }
        for (keyword, value) in map {
            let inside = format!("{place}/{keyword}");
            match value {
                Value::String(reference) if keyword.ends_with("Ref") || keyword == "$ref" => {
                    self.references.insert(reference);
                }
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                    for (name, inner) in named {
                        self.read(inner, &format!("{inside}/{name}"), depth + 1)?;
                    }
                }
                Value::Array(many) if APPLIED.contains(&keyword.as_str()) => {
                    for (at, inner) in many.iter().enumerate() {
                        self.read(inner, &format!("{inside}/{at}"), depth + 1)?;
                    }
                }
                one if APPLIED.contains(&keyword.as_str()) => self.read(one, &inside, depth + 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns why one subschema would be misread, the keyword, and a text about it; none if it is not.
    fn misread(&self, map: &'a Map<String, Value>) -> Option<(Unchecked, &'static str, &'static str)> {
        let text = |keyword: &str| map.get(keyword).and_then(Value::as_str);
        if text("$schema").is_some_and(|uri| Draft::from_schema_uri(uri) != self.draft) {
            return Some((Unchecked::Dialect, "$schema", "it is not the dialect of the whole schema"));
        }
        if map.get("nullable") == Some(&Value::Bool(true)) && !takes_null(map) {
            return Some((
                Unchecked::Ambiguous,
                "nullable",
                "null is allowed by OpenAPI and not by JSON Schema",
            ));
        }
        if map.get("enum").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            return Some((Unchecked::Ambiguous, "enum", "it allows nothing"));
        }
        let judges = |keyword: &&String| !REMARKS.contains(&keyword.as_str()) && !keyword.starts_with("x-");
        let older = text("$ref").is_some_and(|reference| reference.starts_with("#/definitions/"));
        if !self.dialect_named && older && map.keys().any(|keyword| judges(&keyword)) {
            return Some((Unchecked::Ambiguous, "$ref", "older dialects ignore what stands beside it"));
        }
        let patterned = map.get("patternProperties").and_then(Value::as_object);
        let mut patterns =
            text("pattern").into_iter().chain(patterned.into_iter().flat_map(Map::keys).map(String::as_str));
        patterns.any(is_of_others).then_some((
            Unchecked::Pattern,
            "pattern",
            "it means something else in ECMA-262",
        ))
    }
}

/// Returns whether a subschema takes null as it stands.
fn takes_null(map: &Map<String, Value>) -> bool {
    match map.get("type") {
        Some(Value::String(word)) => word == "null",
        Some(Value::Array(words)) => words.iter().any(|word| word == "null"),
        _ => false,
    }
}

/// Returns whether a pattern is written for another engine in a way that ECMA-262 takes for something else: classes
/// of POSIX, or delimiters and flags around it.
fn is_of_others(pattern: &str) -> bool {
    let posix = pattern.contains("[[:") || pattern.contains("[^[:") || pattern.contains(":]]");
    let body = pattern.strip_prefix('/').and_then(|rest| rest.rsplit_once('/'));
    let delimited = body.is_some_and(|(body, flags)| {
        flags.chars().all(|flag| flag.is_ascii_lowercase()) && (body.starts_with('^') || body.ends_with('$'))
    });
    posix || delimited
}
