//! Takes secrets out of a value and puts commitments in their places.
//!
//! Invariants:
//! - a value that looks like a commitment is treated like any other value, so a caller cannot fake one in a secret
//!   place;
//! - the work is bounded, and what is not reached within the bound counts as secret.

use std::collections::HashSet;

use serde_json::Value;

use super::{Bound, Paths, Spot, echo::Echoes};

/// At most this many subschemas are compared with one value. The rest of the value then counts as secret.
const STEPS_MAX: usize = 4_000_000;

/// Says what of a value is kept.
#[derive(Clone, Copy)]
pub enum Keep<'a> {
    /// Everything but secrets is kept.
    All,
    /// Structure and names are kept, except names that repeat a secret.
    Shape { echoes: Option<&'a Echoes> },
    /// Structure and these names are kept.
    Known(&'a HashSet<String>),
}

/// A value without what must not be kept.
pub struct Reduced {
    pub value: Value,
    /// Holds the secrets that were taken out.
    pub taken: Echoes,
    /// Says whether any secret was taken out.
    pub changed: bool,
}

/// Takes out of a value the secrets at `paths` and everything that `keep` does not allow. `at` is the JSON Pointer to
/// the value.
pub fn reduce(value: Value, at: &str, paths: &Paths, keep: Keep<'_>, bound: &Bound) -> Reduced {
    let mut taking =
        Taking { bound, keep, path: at.to_owned(), taken: Echoes::default(), steps: 0, changed: false };
    let value = taking.reduced(value, &Spot::first(paths));
    Reduced { value, taken: taking.taken, changed: taking.changed }
}

struct Taking<'a> {
    bound: &'a Bound,
    keep: Keep<'a>,
    /// The JSON Pointer to the current place.
    path: String,
    taken: Echoes,
    steps: usize,
    changed: bool,
}

impl Taking<'_> {
    fn reduced(&mut self, value: Value, spot: &Spot<'_>) -> Value {
        self.steps += spot.reached.len();
        if spot.takes(&value) || self.steps > STEPS_MAX {
            return self.take(&value);
        }
        let whole = matches!(self.keep, Keep::All);
        if whole && !spot.matters() {
            return value;
        }
        match value {
            Value::Object(map) => {
                let member = |(name, inner)| self.member(name, inner, spot);
                map.into_iter().map(member).collect()
            }
            Value::Array(items) => {
                let item = |(at, inner): (usize, Value)| {
                    let spot = spot.item(at);
                    self.below(&at.to_string(), |taking| taking.reduced(inner, &spot))
                };
                items.into_iter().enumerate().map(item).collect()
            }
            Value::Null => Value::Null,
            leaf @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => match whole {
                true => leaf,
                false => self.bound.value(&self.path, &leaf),
            },
        }
    }

    fn member(&mut self, name: String, inner: Value, spot: &Spot<'_>) -> (String, Value) {
        let next = spot.member(&name);
        let told = match self.keep {
            Keep::All => next.is_some(),
            Keep::Shape { echoes } => next.is_some() && !echoes.is_some_and(|echoes| echoes.stand_in(&name)),
            Keep::Known(names) => names.contains(&name),
        };
        let kept = self.below(&name, |taking| match &next {
            Some(next) => taking.reduced(inner, next),
            None => taking.take(&inner),
        });
        if told {
            return (name, kept);
        }
        self.changed = true;
        self.taken.text(&name);
        (self.bound.member(&self.path, &name), kept)
    }

    fn take(&mut self, value: &Value) -> Value {
        self.changed = true;
        self.taken.add(value);
        self.bound.value(&self.path, value)
    }

    /// Calls `what` one step further down.
    fn below<T>(&mut self, step: &str, what: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.path.len();
        self.path.push('/');
        self.path.push_str(&step.replace('~', "~0").replace('/', "~1"));
        let done = what(self);
        self.path.truncate(before);
        done
    }
}
