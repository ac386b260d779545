//! Secret fields: where a schema says that a value must not be stored, and what is stored instead.
//!
//! Invariants:
//! - a marked value is replaced before anything is hashed, and the tool still receives it;
//! - a part of a schema or value that is not understood counts as secret;
//! - the same secret of the same actor, tool and place gives the same commitment under one key, and a different secret,
//!   actor, tool or place gives another one.

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

/// The domain of the commitments that replace secrets, in their second form.
const DOMAIN: &str = "cairn/redacted/2";
/// A commitment of the second form begins with this text, after [`REDACTED`].
const FORM: &str = "v2:";
/// This member name, or prefix of one, says that something was removed.
pub const REDACTED: &str = "$redacted";

/// Says where secrets are in a value: the marks of one or more schemas, each at its place in the value.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    here: Vec<Arc<Marks>>,
    below: BTreeMap<String, Self>,
}

impl Paths {
    /// Returns every field that is marked `writeOnly: true`, `x-secret: true` or `format: "password"`.
    ///
    /// If a mark may apply in a way that is not understood, the whole value counts as secret.
    pub fn of_schema(schema: &Value) -> Self {
        let here = Marks::of_schema(schema).map(Arc::new).into_iter().collect();
        Self { here, below: BTreeMap::new() }
    }

    /// Returns paths that make the whole value secret.
    pub fn everything() -> Self {
        Self { here: vec![Arc::new(Marks::everything())], below: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.below.is_empty()
    }

    /// Returns JSON Pointers to the marked fields. `*` stands for any array item or unnamed property, and `**` for a
    /// schema that contains itself.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        let listed: std::collections::BTreeSet<Vec<String>> =
            self.here.iter().flat_map(|marks| marks.listed()).collect();
        listed.into_iter().map(|path| path.iter().map(|step| format!("/{step}")).collect())
    }

    /// Adds the paths of `others`, moved below `place`.
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

    /// Returns these paths together with `others`.
    pub fn and(&self, others: &Self) -> Self {
        let mut all = self.clone();
        all.add(&[], others);
        all
    }

    /// Returns whether a secret place of `value` holds anything but null. `open` returns whether a value may later be
    /// replaced by any other, so it counts as secret if secrets may be below it.
    pub fn stand_in(&self, value: &Value, open: impl Fn(&Value) -> bool) -> bool {
        stands(value, &Spot::first(self), &open)
    }
}

/// One place in a value, with the marks that apply there.
struct Spot<'a> {
    /// Holds the paths at or below this place.
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

    /// Returns whether secrets may be at or below this place.
    fn matters(&self) -> bool {
        self.reached.secret || self.reached.members || self.reached.items || self.waits()
    }

    fn waits(&self) -> bool {
        self.place.is_some_and(|paths| !paths.below.is_empty())
    }

    /// Returns whether all of a value is secret here: it is marked, or it has another type than the marks below it
    /// expect.
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

    /// Returns the place of a member. Returns none if members are named here and this one is not, which makes it
    /// secret.
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

/// Holds the key and everything else that a commitment is bound to: an actor, what is called, and the side of the call.
///
/// A commitment to the value alone would let a caller test guesses of another caller's secrets.
#[derive(Clone)]
pub struct Bound {
    pub key: SaltKey,
    pub actor: String,
    /// The method of the request, such as `tools/call`.
    pub method: &'static str,
    /// The source of the tool, as its contract states it; `name` is the tool's name there.
    pub source: String,
    pub name: String,
    pub side: Side,
}

/// Says on which side of a call a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Input,
    Output,
    /// What the caller's client answers in mid-call.
    Answer,
}

impl Bound {
    /// Returns the same for the answer to the call.
    pub fn answer(self) -> Self {
        Self { side: Side::Output, ..self }
    }

    /// Returns the replacement of a value; `path` is the JSON Pointer to it.
    pub fn value(&self, path: &str, value: &Value) -> Value {
        let commitment = self.commitment(path, JSON, value.to_string().as_bytes());
        json!({ REDACTED: commitment })
    }

    /// Returns the replacement of a member's name; `path` is the JSON Pointer to the object that has the member.
    pub fn member(&self, path: &str, name: &str) -> String {
        format!("{REDACTED}:{}", self.commitment(path, "name", name.as_bytes()))
    }

    fn commitment(&self, path: &str, media: &str, bytes: &[u8]) -> String {
        let side = match self.side {
            Side::Input => "input",
            Side::Output => "output",
            Side::Answer => "answer",
        };
        let texts = [&self.actor, self.method, &self.source, &self.name, side, path, media];
        let [actor, method, source, name, side, path, media] = texts.map(str::as_bytes);
        let fields = [actor, method, source, name, side, path, media, bytes];
        format!("{FORM}{}", data_encoding::HEXLOWER.encode(&self.key.bind(DOMAIN, &fields)))
    }
}

/// Returns whether a text has the form of a commitment.
fn is_commitment(text: &str) -> bool {
    let digits = text.strip_prefix(FORM);
    digits.is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Returns all member names in the `properties` of a schema, at any depth.
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
