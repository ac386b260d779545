//! Reading the fields of a definition: every fault is noted with its place, and reading goes on.
//!
//! Invariant: a field that is null counts as one that was not given.

use std::{collections::BTreeSet, fmt::Display, ops::RangeInclusive};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::words::plain::is_plain;

/// Faults that one answer lists; a definition with more is broken as a whole.
const FAULTS_MAX: usize = 1_000;
/// Faults that come with a suggestion: each looks at every known name.
const SUGGESTIONS_MAX: usize = 50;
/// The similarity from which on a name is suggested.
const ALIKE: f64 = 0.8;

/// What a text that is shown on one line is without.
const UNPLAIN: &str = "control characters";

pub const NOT_A_NAME: &str = "must be letters, digits and `.`, `_`, `-`, `:`";
pub const NOT_A_RUN_ID: &str = "must be letters, digits and `.`, `_`, `-`, `:`, `/`";

/// A fault of a definition, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// A JSON pointer into the definition.
    pub place: String,
    pub fault: String,
}

#[derive(Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, place: impl Into<String>, fault: impl Into<String>) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(Fault { place: place.into(), fault: fault.into() });
        } else if self.0.len() == FAULTS_MAX {
            self.0
                .push(Fault { place: String::new(), fault: "there are more faults than are listed".into() });
        }
    }

    /// Returns whether there is still room for a suggestion.
    pub fn few(&self) -> bool {
        self.0.len() < SUGGESTIONS_MAX
    }

    pub fn list(self) -> Vec<Fault> {
        self.0
    }
}

/// Returns whether `name` consists of the characters of names and those in `more`.
pub fn is_name(name: &str, more: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c) || more.contains(c))
}

/// Returns the one of `known` that is most like `name`, if any is.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    scored.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Returns ` (did you mean ...?)`, or an empty text.
pub fn suggestion(known: Option<impl Display>) -> String {
    known.map_or_else(String::new, |known| format!(" (did you mean `{known}`?)"))
}

/// An object of a definition, with its place.
pub struct Object<'a> {
    fields: &'a Map<String, Value>,
    place: String,
}

impl<'a> Object<'a> {
    /// Opens an object and notes its unknown fields.
    pub fn open(value: &'a Value, place: &str, known: &[&str], faults: &mut Faults) -> Option<Self> {
        let Some(fields) = value.as_object() else {
            faults.add(place, "must be an object");
            return None;
        };
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let nearest = suggestion(nearest(name, known.iter().copied()));
            faults.add(join(place, name), format!("`{name}` is not a field here{nearest}"));
        }
        Some(Self { fields, place: place.to_owned() })
    }

    pub fn place(&self, name: &str) -> String {
        join(&self.place, name)
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    pub fn required(&self, name: &str, faults: &mut Faults) -> Option<&'a Value> {
        let value = self.get(name);
        if value.is_none() {
            faults.add(self.place(name), "is required");
        }
        value
    }

    /// Reads text of 1 to `max` bytes.
    pub fn text(&self, name: &str, max: usize, faults: &mut Faults) -> Option<&'a str> {
        let text = self.get(name)?.as_str().filter(|text| (1..=max).contains(&text.len()));
        self.or_fault(name, text, || format!("must be text of 1 to {max} bytes"), faults)
    }

    /// Reads text of 1 to `max` characters that can be shown on one line.
    pub fn title(&self, name: &str, max: usize, faults: &mut Faults) -> Option<&'a str> {
        let text = self.get(name)?.as_str();
        let text = text.filter(|text| (1..=max).contains(&text.chars().count()) && is_plain(text));
        self.or_fault(name, text, || format!("must be 1 to {max} characters without {UNPLAIN}"), faults)
    }

    pub fn whole(&self, name: &str, range: RangeInclusive<u64>, faults: &mut Faults) -> Option<u64> {
        let number = whole(self.get(name)?).filter(|number| range.contains(number));
        let wanted = || format!("must be a whole number from {} to {}", range.start(), range.end());
        self.or_fault(name, number, wanted, faults)
    }

    pub fn number(&self, name: &str, range: RangeInclusive<f64>, faults: &mut Faults) -> Option<f64> {
        let number = self.get(name)?.as_f64().filter(|number| range.contains(number));
        let wanted = || format!("must be a number from {} to {}", range.start(), range.end());
        self.or_fault(name, number, wanted, faults)
    }

    pub fn flag(&self, name: &str, faults: &mut Faults) -> Option<bool> {
        self.or_fault(name, self.get(name)?.as_bool(), || "must be true or false".into(), faults)
    }

    pub fn list(&self, name: &str, faults: &mut Faults) -> Option<&'a [Value]> {
        let list = self.get(name)?.as_array().map(Vec::as_slice);
        self.or_fault(name, list, || "must be a list".into(), faults)
    }

    pub fn object(&self, name: &str, faults: &mut Faults) -> Option<&'a Map<String, Value>> {
        self.or_fault(name, self.get(name)?.as_object(), || "must be an object".into(), faults)
    }

    /// Reads a list of at most `count` different texts of 1 to `len` bytes that can be shown on one line; empty if it is
    /// not given.
    pub fn names(&self, name: &str, count: usize, len: usize, faults: &mut Faults) -> Vec<String> {
        let list = self.list(name, faults).unwrap_or_default();
        if list.len() > count {
            faults.add(self.place(name), format!("{} entries are over the bound of {count}", list.len()));
            return Vec::new();
        }
        let mut seen = BTreeSet::new();
        let mut names = Vec::with_capacity(list.len());
        for (at, value) in list.iter().enumerate() {
            let place = || format!("{}/{at}", self.place(name));
            match value.as_str().filter(|text| (1..=len).contains(&text.len())) {
                None => faults.add(place(), format!("must be text of 1 to {len} bytes")),
                Some(text) if !is_plain(text) => faults.add(place(), format!("must be without {UNPLAIN}")),
                Some(text) if !seen.insert(text) => faults.add(place(), format!("`{text}` stands twice")),
                Some(text) => names.push(text.to_owned()),
            }
        }
        names
    }

    fn or_fault<T>(
        &self,
        name: &str,
        value: Option<T>,
        wanted: impl FnOnce() -> String,
        faults: &mut Faults,
    ) -> Option<T> {
        if value.is_none() {
            faults.add(self.place(name), wanted());
        }
        value
    }
}

/// Reads a number without a fraction, however it is written.
pub fn whole(value: &Value) -> Option<u64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let float = || value.as_f64().filter(|n| (0.0..=EXACT_MAX).contains(n) && n.fract() == 0.0);
    value.as_u64().or_else(|| float().map(|n| n as u64))
}

/// Returns the place of `name` within `place` (RFC 6901).
pub fn join(place: &str, name: &str) -> String {
    format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"))
}
