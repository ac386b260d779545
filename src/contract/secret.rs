//! Secret fields: where a schema says that a value must never be stored, and taking it out.
//!
//! Invariants:
//! - a marked value is replaced before anything is hashed; the tool still receives it;
//! - the same secret under the same key is the same commitment, so replays can be compared.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::block::payload::SaltKey;

/// How deep a schema is followed for marks, through properties, items and references.
const SCHEMA_DEPTH_MAX: usize = 32;
/// Schemas visited in one schema: references that meet each other again branch without end.
pub const SCHEMA_VISITS_MAX: usize = 100_000;
/// What marks a field as secret where it is `true`.
const MARKS: [&str; 2] = ["writeOnly", "x-secret"];
/// Keywords whose one schema is about items or properties that are not named.
const REST: [&str; 6] = [
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
];
/// How many strings of JSON within each other an echo is looked for in.
pub const NESTED_MAX: usize = 3;
/// Shorter secrets are not looked for in other text: they would match by chance.
const ECHO_MIN: usize = 6;

/// Where secrets stand in an input: JSON Pointers with `*` for any array item or any other property.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths(BTreeSet<Vec<String>>);

impl Paths {
    /// Finds every field marked `writeOnly: true` or `x-secret: true`.
    ///
    /// Where a schema with marks branches beyond [`SCHEMA_VISITS_MAX`], the whole input is taken for secret.
    pub fn of_schema(schema: &Value) -> Self {
        if !marked_anywhere(schema) {
            return Self::default();
        }
        let mut walk = Walk { root: schema, found: Self::default(), visits: 0 };
        walk.schema(schema, &mut Vec::new(), 0);
        if walk.visits > SCHEMA_VISITS_MAX {
            return Self(BTreeSet::from([Vec::new()]));
        }
        walk.found
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|path| path.iter().map(|step| format!("/{step}")).collect())
    }

    /// These paths below the field `name`, and `others` beside them.
    pub fn below(&self, name: &str, others: &Self) -> Self {
        let below = self.0.iter().map(|path| [&[name.to_owned()], &path[..]].concat());
        Self(below.chain(others.0.iter().cloned()).collect())
    }

    /// Adds the paths of `others`, below a place.
    pub fn add(&mut self, place: &[String], others: &Self) {
        self.0.extend(others.0.iter().map(|path| [place, &path[..]].concat()));
    }

    /// These paths and `others`.
    pub fn and(&self, others: &Self) -> Self {
        Self(self.0.union(&others.0).cloned().collect())
    }

    /// Whether anything but null stands at one of these paths. What is `open` may come to stand for anything.
    pub fn stand_in(&self, value: &Value, open: impl Fn(&Value) -> bool) -> bool {
        self.0.iter().any(|path| stands_at(value, path, &open))
    }

    /// Replaces the values at these paths by `{"$redacted": commitment}`; returns the texts taken out.
    pub fn redact(&self, value: &mut Value, key: &SaltKey) -> Vec<String> {
        let mut taken = Vec::new();
        for path in &self.0 {
            redact_at(value, path, key, &mut taken);
        }
        taken
    }
}

/// One search of a schema for its marks.
struct Walk<'a> {
    root: &'a Value,
    found: Paths,
    visits: usize,
}

impl Walk<'_> {
    fn schema(&mut self, schema: &Value, path: &mut Vec<String>, depth: usize) {
        let Value::Object(map) = schema else { return };
        self.visits += 1;
        if depth > SCHEMA_DEPTH_MAX || self.visits > SCHEMA_VISITS_MAX {
            return;
        }
        if marked(map) {
            self.found.0.insert(path.clone());
            return;
        }
        if let Some(target) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'))
            && let Some(target) = self.root.pointer(target)
        {
            self.schema(target, path, depth + 1);
        }
        for keyword in ["allOf", "anyOf", "oneOf", "prefixItems"] {
            let item = keyword == "prefixItems";
            for branch in map.get(keyword).and_then(Value::as_array).into_iter().flatten() {
                self.step(branch, item.then_some("*"), path, depth);
            }
        }
        for keyword in ["if", "then", "else"] {
            if let Some(branch) = map.get(keyword) {
                self.schema(branch, path, depth + 1);
            }
        }
        for keyword in REST {
            if let Some(rest) = map.get(keyword) {
                self.step(rest, Some("*"), path, depth);
            }
        }
        for pattern in
            map.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::values)
        {
            self.step(pattern, Some("*"), path, depth);
        }
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.step(property, Some(name), path, depth);
        }
    }

    fn step(&mut self, schema: &Value, step: Option<&str>, path: &mut Vec<String>, depth: usize) {
        let before = path.len();
        path.extend(step.map(str::to_owned));
        self.schema(schema, path, depth + 1);
        path.truncate(before);
    }
}

fn marked(schema: &Map<String, Value>) -> bool {
    MARKS.iter().any(|mark| schema.get(*mark) == Some(&Value::Bool(true)))
}

/// Whether there is a mark at all: most schemas have none, however they branch.
fn marked_anywhere(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => marked(map) || map.values().any(marked_anywhere),
        Value::Array(items) => items.iter().any(marked_anywhere),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Takes texts that were redacted out of other JSON text (a result that echoes its input), also where they
/// stand in JSON that stands in a string, [`NESTED_MAX`] deep.
pub fn scrub(text: &str, secrets: &[String]) -> Option<String> {
    let mut scrubbed = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= ECHO_MIN) {
        let mut forms = vec![secret.clone()];
        for _ in 0..NESTED_MAX {
            let quoted = Value::String(forms[forms.len() - 1].clone()).to_string();
            forms.push(quoted[1..quoted.len() - 1].to_owned());
        }
        // The deepest form first: a shallower one may be part of it. The first form is not JSON's.
        for form in forms[1..].iter().rev() {
            scrubbed = scrubbed.replace(form, "$redacted");
        }
    }
    (scrubbed != text).then_some(scrubbed)
}

/// The whole of `value` replaced by one commitment.
pub fn commitment(value: &Value, key: &SaltKey) -> Value {
    let digest = key.commit("application/json", value.to_string().as_bytes());
    json!({ "$redacted": data_encoding::HEXLOWER.encode(&digest) })
}

fn redact_at(value: &mut Value, path: &[String], key: &SaltKey, taken: &mut Vec<String>) {
    let Some((step, rest)) = path.split_first() else {
        collect_texts(value, taken);
        *value = commitment(value, key);
        return;
    };
    match value {
        Value::Object(map) if step == "*" => {
            map.values_mut().for_each(|inner| redact_at(inner, rest, key, taken));
        }
        Value::Object(map) => {
            if let Some(inner) = map.get_mut(step) {
                redact_at(inner, rest, key, taken);
            }
        }
        Value::Array(items) if step == "*" => {
            items.iter_mut().for_each(|inner| redact_at(inner, rest, key, taken));
        }
        Value::Array(items) => {
            if let Some(inner) = step.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                redact_at(inner, rest, key, taken);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn stands_at(value: &Value, path: &[String], open: &impl Fn(&Value) -> bool) -> bool {
    if open(value) {
        return true;
    }
    let Some((step, rest)) = path.split_first() else { return !value.is_null() };
    match value {
        Value::Object(map) if step == "*" => map.values().any(|inner| stands_at(inner, rest, open)),
        Value::Object(map) => map.get(step).is_some_and(|inner| stands_at(inner, rest, open)),
        Value::Array(items) if step == "*" => items.iter().any(|inner| stands_at(inner, rest, open)),
        Value::Array(items) => {
            let inner = step.parse().ok().and_then(|at: usize| items.get(at));
            inner.is_some_and(|inner| stands_at(inner, rest, open))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn collect_texts(value: &Value, taken: &mut Vec<String>) {
    match value {
        Value::String(text) => taken.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, taken)),
        Value::Object(map) => map.values().for_each(|item| collect_texts(item, taken)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
