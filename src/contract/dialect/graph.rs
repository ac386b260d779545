//! The graph of a schema: its subschemas, where each leads, and what each costs by itself.
//!
//! Invariants:
//! - wherever a reference may lead, there is an edge; one that leads out of the schema leads to `OPAQUE`;
//! - a subschema is one node, however many references lead to it, so a graph is no larger than its schema.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::pattern;

/// The node that stands for a schema that is not in the text, such as the one of a dialect.
pub const OPAQUE: usize = 0;
/// Steps that a value costs there, whatever its kind.
const OPAQUE_STEPS: u64 = 200;
/// Keywords whose subschemas judge the value itself.
const IN_PLACE: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// Keywords whose subschemas judge members that no other keyword names, and those for items likewise.
const MEMBERS: [&str; 2] = ["additionalProperties", "unevaluatedProperties"];
const ITEMS: [&str; 5] = ["items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"];

/// One subschema.
#[derive(Debug, Default)]
pub struct Node {
    /// Steps that it costs by itself.
    pub own: u64,
    /// Steps that it costs for each step of a text's length.
    pub text: u64,
    /// The subschemas that judge the same value. Those of whose faults it makes its own are judged twice over.
    pub same: Vec<usize>,
    pub named: HashMap<String, usize>,
    /// The subschemas that may judge any member.
    pub members: Vec<usize>,
    /// Those that judge the names of members.
    pub names: Vec<usize>,
    /// Those that judge the item at each place, and those that may judge any item.
    pub places: Vec<usize>,
    pub items: Vec<usize>,
    /// Says whether it asks once more for each member or item what the others have judged.
    pub leftover: bool,
    pub unique: bool,
}

/// A schema as nodes. The first is [`OPAQUE`], the second the whole schema.
#[derive(Debug)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub root: usize,
    /// The weight of all patterns together.
    pub patterns: u64,
}

/// The places that references can name other than by a path.
#[derive(Default)]
struct Anchors<'a> {
    /// Subschemas that are documents of their own, the whole one first.
    documents: Vec<(&'a str, &'a Value)>,
    named: HashMap<&'a str, Vec<&'a Value>>,
    recursive: Vec<&'a Value>,
}

impl<'a> Anchors<'a> {
    fn gather(&mut self, value: &'a Value) {
        match value {
            Value::Array(many) => many.iter().for_each(|one| self.gather(one)),
            Value::Object(map) => {
                let text = |key: &str| map.get(key).and_then(Value::as_str);
                for id in [text("$id"), text("id")].into_iter().flatten() {
                    match id.strip_prefix('#') {
                        Some(name) => self.named.entry(name).or_default().push(value),
                        None => self.documents.push((id.trim_end_matches('#'), value)),
                    }
                }
                for name in [text("$anchor"), text("$dynamicAnchor")].into_iter().flatten() {
                    self.named.entry(name).or_default().push(value);
                }
                if map.get("$recursiveAnchor") == Some(&Value::Bool(true)) {
                    self.recursive.push(value);
                }
                map.values().for_each(|one| self.gather(one));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Returns the subschemas that a reference may lead to; none if it leads out of the schema.
    fn places(&self, root: &'a Value, reference: &str) -> Vec<&'a Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let whole = std::iter::once(root).filter(|_| base.is_empty());
        let documents = self.documents.iter().filter(|(id, _)| base.is_empty() || id.ends_with(base));
        let documents = whole.chain(documents.map(|(_, document)| *document));
        match fragment {
            "" => documents.chain(self.recursive.iter().copied()).collect(),
            path if path.starts_with('/') => {
                let decoded = decoded(path);
                documents.filter_map(|document| document.pointer(&decoded)).collect()
            }
            name => self.named.get(name).cloned().unwrap_or_default(),
        }
    }
}

/// Returns a path of a reference without its percent encoding.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..2).filter(|_| *first == b'%').and_then(|code| str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes a graph. What is nowhere referred to is not in it.
struct Builder<'a> {
    root: &'a Value,
    anchors: Anchors<'a>,
    known: HashMap<*const Value, usize>,
    nodes: Vec<Node>,
    patterns: u64,
    /// The subschemas whose edges have not been followed yet.
    left: Vec<(usize, &'a Value)>,
}

impl Graph {
    pub fn of(schema: &Value) -> Self {
        let mut anchors = Anchors::default();
        anchors.gather(schema);
        let opaque = Node {
            own: OPAQUE_STEPS,
            text: OPAQUE_STEPS,
            members: vec![OPAQUE],
            names: vec![OPAQUE],
            items: vec![OPAQUE],
            ..Node::default()
        };
        let (known, left) = Default::default();
        let mut builder = Builder { root: schema, anchors, known, nodes: vec![opaque], patterns: 0, left };
        let root = builder.node(schema);
        while let Some((at, schema)) = builder.left.pop() {
            if let Value::Object(map) = schema {
                let node = builder.read(map);
                builder.nodes[at] = node;
            }
        }
        Self { nodes: builder.nodes, root, patterns: builder.patterns }
    }
}

impl<'a> Builder<'a> {
    fn node(&mut self, schema: &'a Value) -> usize {
        if let Some(known) = self.known.get(&std::ptr::from_ref(schema)) {
            return *known;
        }
        let at = self.nodes.len();
        self.nodes.push(Node { own: 1, ..Node::default() });
        self.known.insert(schema, at);
        self.left.push((at, schema));
        at
    }

    fn reference(&mut self, reference: &str) -> Vec<usize> {
        match self.anchors.places(self.root, reference) {
            places if places.is_empty() => vec![OPAQUE],
            places => places.into_iter().map(|place| self.node(place)).collect(),
        }
    }

    /// Returns the subschemas that a keyword applies, whether it has one or a list of them.
    fn applied(&mut self, value: &'a Value) -> Vec<usize> {
        match value {
            Value::Array(many) => many.iter().map(|one| self.node(one)).collect(),
            one => vec![self.node(one)],
        }
    }

    fn read(&mut self, map: &'a Map<String, Value>) -> Node {
        let mut node = Node { own: 1 + map.len() as u64, ..Node::default() };
        for (keyword, value) in map {
            match (keyword.as_str(), value) {
                ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                    node.same.extend(self.reference(reference));
                }
                ("dependentSchemas" | "dependencies", Value::Object(named)) => {
                    for one in named.values().filter(|one| !one.is_array()) {
                        node.same.push(self.node(one));
                    }
                }
                ("properties", Value::Object(named)) => {
                    node.named = named.iter().map(|(name, one)| (name.clone(), self.node(one))).collect();
                }
                ("patternProperties", Value::Object(named)) => {
                    for (text, one) in named {
                        node.text += self.pattern(text);
                        node.members.push(self.node(one));
                    }
                }
                ("pattern", Value::String(text)) => node.text += self.pattern(text),
                ("propertyNames", one) => node.names.push(self.node(one)),
                ("prefixItems", Value::Array(many)) | ("items", Value::Array(many)) => {
                    node.places = many.iter().map(|one| self.node(one)).collect();
                }
                ("uniqueItems", Value::Bool(true)) => node.unique = true,
                ("enum", Value::Array(values)) => node.own += values.iter().map(size).sum::<u64>(),
                ("const", value) => node.own += size(value),
                ("required", Value::Array(names)) => node.own += names.len() as u64,
                (keyword, value) if IN_PLACE.contains(&keyword) => {
                    let inner = self.applied(value);
                    node.same.extend(inner);
                }
                (keyword, value) if MEMBERS.contains(&keyword) => node.members.push(self.node(value)),
                (keyword, value) if ITEMS.contains(&keyword) => node.items.push(self.node(value)),
                _ => {}
            }
            node.leftover |= keyword.starts_with("unevaluated");
        }
        node
    }

    /// Returns the steps that a pattern costs for each step of a text's length.
    fn pattern(&mut self, text: &str) -> u64 {
        let pattern = pattern::Weight::of(text);
        self.patterns = self.patterns.saturating_add(pattern.size);
        pattern.steps()
    }
}

/// Returns the size of a value: one for each value in it, and for each few bytes of its texts.
pub fn size(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => length(text),
        Value::Array(items) => 1 + items.iter().map(size).sum::<u64>(),
        Value::Object(map) => 1 + map.iter().map(|(key, value)| length(key) + size(value)).sum::<u64>(),
    }
}

/// Returns the steps of a text's length.
pub fn length(text: &str) -> u64 {
    1 + text.len() as u64 / 16
}
