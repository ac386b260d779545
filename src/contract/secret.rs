//! Secret fields: where schemas say that a value must never be stored, and what stands in its place.
//!
//! Invariants:
//! - a marked value is replaced before anything is hashed; the tool still receives it;
//! - what a walk over a schema or along a value does not understand is taken for secret;
//! - the same secret of the same actor, tool and place is the same commitment under one key, and no other is.

pub mod echo;
mod marks;
pub mod taking;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, json};

use self::marks::{Marks, Reached};
use crate::block::payload::{JSON, SaltKey};

/// What the commitments in the place of secrets are made for: their second form.
const DOMAIN: &str = "cairn/redacted/2";
/// How a commitment of that form begins, after the sign that it is one.
const FORM: &str = "v2:";
/// The sign that something was taken out.
pub const REDACTED: &str = "$redacted";

/// Where secrets stand in a value: what schemas mark, each schema at its place.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    here: Vec<Arc<Marks>>,
    below: BTreeMap<String, Self>,
}

impl Paths {
    /// Finds every field marked `writeOnly: true`, `x-secret: true` or `format: "password"`.
    ///
    /// Where a mark may apply in a way that is not understood, the whole value is taken for secret.
    pub fn of_schema(schema: &Value) -> Self {
        let here = Marks::of_schema(schema).map(Arc::new).into_iter().collect();
        Self { here, below: BTreeMap::new() }
    }

    /// All of a value.
    pub fn everything() -> Self {
        Self { here: vec![Arc::new(Marks::everything())], below: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.below.is_empty()
    }

    /// JSON Pointers to what is marked, with `*` for any array item or any property that is not named, and `**` where a schema
    /// comes back to itself.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        let listed: std::collections::BTreeSet<Vec<String>> =
            self.here.iter().flat_map(|marks| marks.listed()).collect();
        listed.into_iter().map(|path| path.iter().map(|step| format!("/{step}")).collect())
    }

    /// These paths below the field `name`, and `others` beside them.
    pub fn below(&self, name: &str, others: &Self) -> Self {
        let mut all = others.clone();
        all.add(&[name.to_owned()], self);
        all
    }

    /// Adds the paths of `others`, below a place.
    pub fn add(&mut self, place: &[String], others: &Self) {
        if others.is_empty() {
            return;
        }
        let mut at = self;
        for step in place {
            at = at.below.entry(step.clone()).or_default();
        }
        for marks in &others.here {
            if !at.here.iter().any(|known| Arc::ptr_eq(known, marks)) {
                at.here.push(marks.clone());
            }
        }
        for (step, below) in &others.below {
            at.add(std::slice::from_ref(step), below);
        }
    }

    /// These paths and `others`.
    pub fn and(&self, others: &Self) -> Self {
        let mut all = self.clone();
        all.add(&[], others);
        all
    }

    /// Whether anything but null stands where a secret may. What is `open` may come to stand for anything.
    pub fn stand_in(&self, value: &Value, open: impl Fn(&Value) -> bool) -> bool {
        stands(value, &Spot::first(self), &open)
    }
}

/// One spot of a value, and what is said of it.
struct Spot<'a> {
    /// What is said of places at or below it.
    place: Option<&'a Paths>,
    reached: Reached<'a>,
}

impl<'a> Spot<'a> {
    fn first(paths: &'a Paths) -> Self {
        Self::at(Some(paths), Vec::new())
    }

    fn at(place: Option<&'a Paths>, states: Vec<(&'a Marks, usize)>) -> Self {
        let roots = place.iter().flat_map(|paths| &paths.here).map(|marks| (&**marks, 0));
        Self { place, reached: Reached::new(roots.chain(states)) }
    }

    /// Whether secrets may stand here or below.
    fn matters(&self) -> bool {
        self.reached.secret || self.reached.members || self.reached.items || self.waits()
    }

    fn waits(&self) -> bool {
        self.place.is_some_and(|paths| !paths.below.is_empty())
    }

    /// Whether all of a value is secret here: it is marked, or it is of another type than what the marks are about.
    fn takes(&self, value: &Value) -> bool {
        let Reached { secret, members, items, .. } = self.reached;
        let fits = match value {
            Value::Object(_) => members || self.waits() || !items,
            Value::Array(_) => items || self.waits() || !members,
            Value::Null => true,
            Value::Bool(_) | Value::Number(_) | Value::String(_) => !(members || items || self.waits()),
        };
        secret || !fits
    }

    /// What is said of a member; none where members are told apart here and this one is not known.
    fn member(&self, name: &str) -> Option<Self> {
        let place = self.place.and_then(|paths| paths.below.get(name));
        let (states, known) = self.reached.member(name);
        (known || place.is_some() || !self.reached.members).then(|| Self::at(place, states))
    }

    fn item(&self, at: usize) -> Self {
        let place = self.place.filter(|_| self.waits()).and_then(|paths| paths.below.get(&at.to_string()));
        Self::at(place, self.reached.item())
    }
}

fn stands(value: &Value, spot: &Spot<'_>, open: &impl Fn(&Value) -> bool) -> bool {
    if !spot.matters() {
        return false;
    }
    if open(value) || spot.takes(value) {
        return !value.is_null();
    }
    match value {
        Value::Object(map) => map.iter().any(|(name, inner)| match spot.member(name) {
            Some(spot) => stands(inner, &spot, open),
            None => !inner.is_null(),
        }),
        Value::Array(items) => {
            items.iter().enumerate().any(|(at, inner)| stands(inner, &spot.item(at), open))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// What commitments are bound to beside the key: an actor, what is called, and which side of the call.
#[derive(Clone)]
pub struct Bound {
    pub key: SaltKey,
    pub actor: String,
    /// The method of the request: `tools/call`, ...
    pub method: &'static str,
    /// The source and the name of the tool, as its contract says.
    pub source: String,
    pub name: String,
    pub side: Side,
}

/// Which side of a call a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Input,
    Output,
}

impl Bound {
    /// The same for the answer to the call.
    pub fn answer(self) -> Self {
        Self { side: Side::Output, ..self }
    }

    /// What stands in the place of a value; `path` is a JSON Pointer to it.
    pub fn value(&self, path: &str, value: &Value) -> Value {
        let commitment = self.commitment(path, JSON, value.to_string().as_bytes());
        json!({ REDACTED: commitment })
    }

    /// What stands in the place of a member's name in the object at `path`.
    pub fn member(&self, path: &str, name: &str) -> String {
        format!("{REDACTED}:{}", self.commitment(path, "name", name.as_bytes()))
    }

    fn commitment(&self, path: &str, media: &str, bytes: &[u8]) -> String {
        let side = match self.side {
            Side::Input => "input",
            Side::Output => "output",
        };
        let texts = [&self.actor, self.method, &self.source, &self.name, side, path, media];
        let [actor, method, source, name, side, path, media] = texts.map(str::as_bytes);
        let fields = [actor, method, source, name, side, path, media, bytes];
        format!("{FORM}{}", data_encoding::HEXLOWER.encode(&self.key.bind(DOMAIN, &fields)))
    }
}

/// Whether a text has the form of a commitment.
fn is_commitment(text: &str) -> bool {
    let digits = text.strip_prefix(FORM);
    digits.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The names of members that a schema speaks of, wherever it does.
pub fn names_in(schema: &Value) -> HashSet<String> {
    fn collect(schema: &Value, names: &mut HashSet<String>) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::Object(properties)) = map.get("properties") {
                    names.extend(properties.keys().cloned());
                }
                map.values().for_each(|inner| collect(inner, names));
            }
            Value::Array(items) => items.iter().for_each(|inner| collect(inner, names)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut names = HashSet::new();
    collect(schema, &mut names);
    names
}

#[cfg(test)]
mod tests;
