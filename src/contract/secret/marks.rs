//! Reads the marks of a JSON Schema into states, one for each subschema that may apply, and steps between them.
//!
//! Invariants:
//! - a schema without marks and without references to other documents has no states; in any other schema every mark is
//!   reached by steps that are understood, or the whole value is secret;
//! - there are as many states as subschemas, also if references form a cycle.

mod listing;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value};

/// Reading one schema, and listing its marks, takes at most this many steps each. A schema that needs more makes the
/// whole value secret.
const SCHEMA_VISITS_MAX: usize = 100_000;
/// These keywords mark a field as secret if their value is `true`.
const MARKS: [&str; 2] = ["writeOnly", "x-secret"];
/// The value of these keywords is data and never a schema.
const DATA: [&str; 5] = ["const", "enum", "default", "examples", "example"];
/// The value of these keywords maps names to subschemas.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// These keywords apply subschemas to the same value.
const SAME: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// These keywords apply subschemas to array items.
const ITEMS: [&str; 5] = ["items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"];
/// These keywords apply to properties that no other keyword names.
const REST: [&str; 2] = ["additionalProperties", "unevaluatedProperties"];
/// These keywords apply to the names of members or to the content of a string. A mark in them makes the whole value
/// secret.
const SPELLED: [&str; 2] = ["propertyNames", "contentSchema"];
/// The target of these references depends on how evaluation reached them, so they are not followed.
const DYNAMIC: [&str; 2] = ["$dynamicRef", "$recursiveRef"];

/// The marks of one schema.
#[derive(Debug)]
pub struct Marks {
    /// The first state is that of the schema itself.
    states: Vec<State>,
}

/// The state of one subschema. The fields list the states of the subschemas that apply from here.
#[derive(Debug, Default)]
struct State {
    secret: bool,
    /// These states apply to the same value.
    same: Vec<usize>,
    named: HashMap<String, Vec<usize>>,
    /// These states may apply to any member, if its name matches a pattern.
    patterned: Vec<usize>,
    /// These states apply to members that `named` does not hold.
    rest: Vec<usize>,
    items: Vec<usize>,
    spelled: Vec<usize>,
    /// Says whether the schema restricts members that `named` does not hold.
    tells_rest: bool,
    /// Says whether a marked state can be reached from here.
    leads: bool,
    /// Says whether secrets may be in members; `items_lead` says the same of array items.
    members_lead: bool,
    items_lead: bool,
}

impl Marks {
    /// Returns the marks of a schema; returns none if nothing is marked and nothing refers to another document.
    pub fn of_schema(schema: &Value) -> Option<Self> {
        let mut walk = Walk::new(schema);
        // Another document may mark fields too, and it is not read.
        if walk.refers_elsewhere(schema) {
            return Some(Self::everything());
        }
        if !marked_anywhere(schema) {
            return None;
        }
        let mut marked = HashSet::new();
        marks_in(schema, true, &mut marked);
        walk.run();
        let reached = walk.ids.keys().copied().collect();
        if !walk.understood || !marked.is_subset(&reached) {
            return Some(Self::everything());
        }
        if !walk.states.iter().any(|state| state.secret) {
            return None;
        }
        let mut marks = Self { states: walk.states };
        marks.lead();
        let listed = marks.list();
        Some(if listed.is_some() { marks } else { Self::everything() })
    }

    pub fn everything() -> Self {
        Self { states: vec![State { secret: true, ..State::default() }] }
    }

    /// Returns the paths to the marked fields, as contracts list them.
    pub fn listed(&self) -> BTreeSet<Vec<String>> {
        self.list().unwrap_or_default()
    }

    /// Records which states lead to a secret. A mark in a `spelled` state makes the state itself secret.
    fn lead(&mut self) {
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.states.len()];
        for (id, state) in self.states.iter().enumerate() {
            state.all().for_each(|next| before[next].push(id));
        }
        let mut leads = vec![false; self.states.len()];
        let mut waiting: Vec<usize> = (0..self.states.len()).filter(|id| self.states[*id].secret).collect();
        while let Some(id) = waiting.pop() {
            if !std::mem::replace(&mut leads[id], true) {
                waiting.extend(&before[id]);
            }
        }
        for (id, state) in self.states.iter_mut().enumerate() {
            let any = |ids: &[usize]| ids.iter().any(|id| leads[*id]);
            state.leads = leads[id];
            state.secret |= any(&state.spelled);
            let named = state.named.values().any(|ids| any(ids));
            state.members_lead = named || any(&state.patterned) || any(&state.rest);
            state.items_lead = any(&state.items);
        }
    }
}

impl State {
    fn all(&self) -> impl Iterator<Item = usize> {
        let lists = [&self.same, &self.patterned, &self.rest, &self.items, &self.spelled];
        lists.into_iter().chain(self.named.values()).flatten().copied()
    }
}

/// Holds all states that apply at one place of a value.
#[derive(Default)]
pub struct Reached<'a> {
    states: Vec<(&'a Marks, usize)>,
    pub secret: bool,
    /// Says whether secrets may be in members; `items` says the same of array items.
    pub members: bool,
    pub items: bool,
}

impl<'a> Reached<'a> {
    pub fn new(states: impl Iterator<Item = (&'a Marks, usize)>) -> Self {
        let mut reached = Self::default();
        let mut seen = HashSet::new();
        let mut waiting: Vec<_> = states.collect();
        while let Some((marks, id)) = waiting.pop() {
            if seen.insert((std::ptr::from_ref(marks), id)) {
                let state = &marks.states[id];
                reached.secret |= state.secret;
                reached.members |= state.members_lead;
                reached.items |= state.items_lead;
                reached.states.push((marks, id));
                waiting.extend(state.same.iter().map(|id| (marks, *id)));
            }
        }
        reached
    }

    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Returns the states that apply to a member, and whether any schema here describes it.
    pub fn member(&self, name: &str) -> (Vec<(&'a Marks, usize)>, bool) {
        let (mut next, mut known) = (Vec::new(), false);
        for (marks, id) in &self.states {
            let state = &marks.states[*id];
            let named = state.named.get(name);
            known |= named.is_some() || state.tells_rest || !state.patterned.is_empty();
            let ids = named.unwrap_or(&state.rest).iter().chain(&state.patterned);
            next.extend(ids.map(|id| (*marks, *id)));
        }
        (next, known)
    }

    /// Returns the states that apply to any array item.
    pub fn item(&self) -> Vec<(&'a Marks, usize)> {
        let of = |(marks, id): &(&'a Marks, usize)| (*marks, marks.states[*id].items.clone());
        let items = self.states.iter().map(of);
        items.flat_map(|(marks, ids)| ids.into_iter().map(move |id| (marks, id))).collect()
    }
}

/// Searches a schema for the subschemas that may apply.
struct Walk<'a> {
    /// Holds the schema and every subschema with an `$id`, to which references are relative.
    resources: Vec<&'a Value>,
    anchors: HashMap<&'a str, Vec<&'a Value>>,
    /// Maps the address of a subschema in memory to its state.
    ids: HashMap<*const Map<String, Value>, usize>,
    states: Vec<State>,
    waiting: Vec<&'a Map<String, Value>>,
    steps: usize,
    understood: bool,
}

impl<'a> Walk<'a> {
    fn new(schema: &'a Value) -> Self {
        let mut walk = Self {
            resources: vec![schema],
            anchors: HashMap::new(),
            ids: HashMap::new(),
            states: Vec::new(),
            waiting: Vec::new(),
            steps: 0,
            understood: true,
        };
        walk.identify(schema);
        walk.state(schema);
        walk
    }

    /// Collects what references can name: anchors and resources.
    fn identify(&mut self, value: &'a Value) {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        for key in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = text(key) {
                self.anchors.entry(anchor).or_default().push(value);
            }
        }
        for id in ["$id", "id"].into_iter().filter_map(text) {
            match id.strip_prefix('#') {
                Some(anchor) => self.anchors.entry(anchor).or_default().push(value),
                None => self.resources.push(value),
            }
        }
        match value {
            Value::Object(map) => map.values().for_each(|inner| self.identify(inner)),
            Value::Array(items) => items.iter().for_each(|inner| self.identify(inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Returns the state of a subschema, which is made if needed; returns none if it is no object.
    fn state(&mut self, schema: &'a Value) -> Option<usize> {
        self.steps += 1;
        let map = schema.as_object()?;
        let next = self.states.len();
        let id = *self.ids.entry(std::ptr::from_ref(map)).or_insert(next);
        if id == next {
            self.states.push(State { secret: is_marked(map), ..State::default() });
            self.waiting.push(map);
        }
        Some(id)
    }

    fn each(&mut self, schemas: impl Iterator<Item = &'a Value>) -> Vec<usize> {
        schemas.filter_map(|schema| self.state(schema)).collect()
    }

    fn run(&mut self) {
        while let Some(map) = self.waiting.pop() {
            let state = self.read(map);
            let id = self.ids[&std::ptr::from_ref(map)];
            self.states[id] = state;
            if self.steps > SCHEMA_VISITS_MAX {
                self.understood = false;
            }
            if !self.understood {
                return;
            }
        }
    }

    fn read(&mut self, map: &'a Map<String, Value>) -> State {
        let mut state = State { secret: is_marked(map), ..State::default() };
        for (keyword, value) in map {
            let keyword = keyword.as_str();
            let one_or_more = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let by_name = || value.as_object().into_iter().flat_map(Map::values);
            match keyword {
                "$ref" => match self.targets(value) {
                    Some(targets) => state.same.extend(self.each(targets.into_iter())),
                    None => self.understood = false,
                },
                _ if DYNAMIC.contains(&keyword) => self.understood = false,
                _ if SAME.contains(&keyword) => state.same.extend(self.each(one_or_more.iter())),
                "dependentSchemas" | "dependencies" => state.same.extend(self.each(by_name())),
                "properties" => {
                    for (name, property) in value.as_object().into_iter().flatten() {
                        let ids = self.each(std::iter::once(property));
                        state.named.entry(name.clone()).or_default().extend(ids);
                    }
                }
                "patternProperties" => state.patterned.extend(self.each(by_name())),
                _ if REST.contains(&keyword) => {
                    state.tells_rest |= value.as_object().is_some_and(|rest| !rest.is_empty());
                    state.rest.extend(self.each(std::iter::once(value)));
                }
                _ if ITEMS.contains(&keyword) => state.items.extend(self.each(one_or_more.iter())),
                _ if SPELLED.contains(&keyword) => state.spelled.extend(self.each(std::iter::once(value))),
                _ if DATA.contains(&keyword) || NAMED.contains(&keyword) => {}
                // What an unknown keyword does with a reference is not known.
                _ => self.understood &= !refers(value),
            }
        }
        state
    }

    /// Returns all possible targets of a reference. Which resource the reference is relative to is not resolved, so it
    /// is tried in each. Returns none if it has no target here.
    fn targets(&mut self, reference: &Value) -> Option<Vec<&'a Value>> {
        let reference = reference.as_str()?;
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if !self.holds(document) {
            return None;
        }
        let fragment = unescaped(fragment)?;
        self.steps += self.resources.len();
        let found: Vec<&Value> = match fragment.is_empty() || fragment.starts_with('/') {
            true => self.resources.iter().filter_map(|schema| schema.pointer(&fragment)).collect(),
            false => self.anchors.get(fragment.as_str()).cloned().unwrap_or_default(),
        };
        (!found.is_empty()).then_some(found)
    }

    /// Returns whether a reference's document is one of these resources, by its whole `$id` or by the end of it.
    fn holds(&self, document: &str) -> bool {
        let end = document.trim_start_matches("./").trim_start_matches('/');
        let mut ids = self.resources.iter().flat_map(|schema| ["$id", "id"].map(|key| schema.get(key)));
        document.is_empty()
            || ids.any(|id| {
                let id = id.and_then(Value::as_str).map(|id| id.trim_end_matches('#'));
                id.is_some_and(|id| {
                    id == document || (!end.is_empty() && id.ends_with(&format!("/{end}"))) || id == end
                })
            })
    }

    /// Returns whether a reference in `value`, which may be data, names a document that is not here.
    fn refers_elsewhere(&self, value: &Value) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(keyword, inner)| match inner {
                Value::String(reference) if keyword == "$ref" || DYNAMIC.contains(&keyword.as_str()) => {
                    !self.holds(reference.split('#').next().unwrap_or_default())
                }
                inner => !DATA.contains(&keyword.as_str()) && self.refers_elsewhere(inner),
            }),
            Value::Array(items) => items.iter().any(|inner| self.refers_elsewhere(inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
}

/// Decodes the percent escapes in the fragment of a URI; returns none if they are malformed.
fn unescaped(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

fn is_marked(schema: &Map<String, Value>) -> bool {
    MARKS.iter().any(|mark| schema.get(*mark).is_some_and(means_true))
        || schema
            .get("format")
            .and_then(Value::as_str)
            .is_some_and(|format| format.eq_ignore_ascii_case("password"))
}

/// Returns whether a mark is meant: it is `true`, or what people write for it.
fn means_true(mark: &Value) -> bool {
    match mark {
        Value::Bool(mark) => *mark,
        Value::String(text) => !["", "false"].contains(&text.to_ascii_lowercase().as_str()),
        Value::Number(number) => number.as_f64() != Some(0.0),
        // This is the subschema of a property whose name is that of a mark.
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Returns whether a schema has any mark, also in data. Most schemas have none, which ends the search early.
fn marked_anywhere(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => is_marked(map) || map.values().any(marked_anywhere),
        Value::Array(items) => items.iter().any(marked_anywhere),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Collects every marked subschema, whether or not it can apply. `schema` says that `value` is a schema; otherwise it
/// maps names to schemas.
fn marks_in(value: &Value, schema: bool, found: &mut HashSet<*const Map<String, Value>>) {
    match value {
        Value::Object(map) => {
            if schema && is_marked(map) {
                found.insert(std::ptr::from_ref(map));
            }
            for (keyword, inner) in map {
                match schema && DATA.contains(&keyword.as_str()) {
                    true => {}
                    false => marks_in(inner, !(schema && NAMED.contains(&keyword.as_str())), found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|inner| marks_in(inner, true, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns whether a value has a reference anywhere.
fn refers(value: &Value) -> bool {
    match value {
        Value::Object(map) => {
            let own = map.keys().any(|key| key == "$ref" || DYNAMIC.contains(&key.as_str()));
            own || map.values().any(refers)
        }
        Value::Array(items) => items.iter().any(refers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
