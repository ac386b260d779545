//! Finds echoes: secrets of a call's input that come back in its answer.
//!
//! Invariants:
//! - within the bounds below, a secret is found in every JSON form: escaped, in JSON inside a string, as a number or as
//!   text;
//! - if a text may repeat a short secret or resemble it by chance, that is reported as undecided.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{REDACTED, is_commitment};

/// An answer is searched for at most this many secrets. If there are more, nothing of it is kept.
const ECHOES_MAX: usize = 256;
/// A shorter secret may be part of other words by chance.
const LONG_MIN: usize = 6;
/// JSON inside strings is parsed to this depth.
const NESTED_MAX: usize = 8;
/// A secret is searched for in the form it has after this many escapings as a JSON string.
const ESCAPED_MAX: usize = 3;

/// Holds the texts that must not be kept: strings, and numbers as they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echoes {
    texts: BTreeSet<String>,
    many: bool,
}

/// Says what an answer is without its echoes.
#[derive(Debug, PartialEq)]
pub enum Scrubbed {
    Unchanged,
    Changed(Value),
    /// A text may hold a secret or only resemble one.
    Undecided,
}

impl Echoes {
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && !self.many
    }

    /// Returns whether there are more secrets than are searched for.
    pub fn too_many(&self) -> bool {
        self.many
    }

    /// Adds every text and number of a value, and those of JSON inside its texts.
    pub fn add(&mut self, value: &Value) {
        self.collect(value, NESTED_MAX);
    }

    pub fn text(&mut self, text: &str) {
        if text.is_empty() || self.many || self.texts.contains(text) {
            return;
        }
        self.many = self.texts.len() >= ECHOES_MAX;
        if !self.many {
            self.texts.insert(text.to_owned());
        }
    }

    pub fn join(&mut self, others: &Self) {
        self.many |= others.many;
        others.texts.iter().for_each(|text| self.text(text));
    }

    fn collect(&mut self, value: &Value, nested: usize) {
        match value {
            Value::String(text) => {
                self.text(text);
                if let Some(inner) = nested.checked_sub(1).and_then(|_| json_in(text)) {
                    self.collect(&inner, nested - 1);
                }
            }
            Value::Number(number) => self.text(&number.to_string()),
            Value::Array(items) => items.iter().for_each(|item| self.collect(item, nested)),
            Value::Object(map) => {
                for (name, inner) in map {
                    // A short name is usually a word of the tool and may occur anywhere.
                    if name.len() >= LONG_MIN {
                        self.text(name);
                    }
                    self.collect(inner, nested);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Returns whether a text holds a secret, or may hold one.
    pub fn stand_in(&self, text: &str) -> bool {
        self.many || !matches!(self.searched(text), Found::Nothing)
    }

    /// Returns a text for people without the secrets in it; returns only `$redacted` if that cannot be decided.
    pub fn hidden(&self, text: &str) -> String {
        if self.many {
            return REDACTED.to_owned();
        }
        match self.searched(text) {
            Found::Nothing => text.to_owned(),
            Found::Taken(text) => text,
            Found::Undecided => REDACTED.to_owned(),
        }
    }

    /// Returns a value without the secrets in it.
    pub fn scrub(&self, value: &Value) -> Scrubbed {
        if self.many {
            return Scrubbed::Undecided;
        }
        let mut scrubbing = Scrubbing { echoes: self, changed: false, undecided: false };
        let scrubbed = scrubbing.value(value, NESTED_MAX);
        match scrubbing {
            Scrubbing { undecided: true, .. } => Scrubbed::Undecided,
            Scrubbing { changed: true, .. } => Scrubbed::Changed(scrubbed),
            Scrubbing { .. } => Scrubbed::Unchanged,
        }
    }

    fn searched(&self, text: &str) -> Found {
        let mut now = text.to_owned();
        // The longest is removed first, because a shorter one may be part of it.
        let mut texts: Vec<&String> = self.texts.iter().collect();
        texts.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        // A commitment consists of hex digits, which a short secret may match by chance.
        let ours =
            is_commitment(text.strip_prefix(REDACTED).map_or(text, |rest| rest.trim_start_matches(':')));
        for secret in texts {
            if secret.len() >= LONG_MIN {
                forms(secret).iter().for_each(|form| now = now.replace(form, REDACTED));
            } else if !ours {
                match words_without(&now, secret) {
                    Some(without) => now = without,
                    None => return Found::Undecided,
                }
            }
        }
        if now == text { Found::Nothing } else { Found::Taken(now) }
    }

    /// Returns whether a number is a secret, or may hold one.
    fn number(&self, number: &str) -> Found {
        for secret in &self.texts {
            let equal = || Some(secret.parse::<f64>().ok()? == number.parse::<f64>().ok()?);
            if secret == number || equal() == Some(true) {
                return Found::Taken(REDACTED.to_owned());
            }
        }
        match self.texts.iter().any(|secret| number.contains(secret.as_str())) {
            true => Found::Undecided,
            false => Found::Nothing,
        }
    }
}

enum Found {
    Nothing,
    Taken(String),
    Undecided,
}

/// Returns a secret in the forms in which JSON may hold it, the longest first: as it is, escaped, and with all but ASCII
/// escaped, as many libraries write it.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = escaped(secret.to_owned());
    if !secret.is_ascii() {
        let quoted = quoted(secret);
        forms.extend(escaped(ascii(&quoted, |unit| format!("\\u{unit:04x}"))));
        forms.extend(escaped(ascii(&quoted, |unit| format!("\\u{unit:04X}"))));
    }
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms
}

/// Returns a text, and what becomes of it when it is escaped again and again.
fn escaped(text: String) -> Vec<String> {
    let mut forms = vec![text];
    for _ in 0..ESCAPED_MAX {
        let inner = quoted(&forms[forms.len() - 1]);
        if forms.last() == Some(&inner) {
            break;
        }
        forms.push(inner);
    }
    forms
}

/// Returns a text as it stands between the quotes of a JSON string.
fn quoted(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// Returns a text with every UTF-16 unit beyond ASCII as `escape` writes it.
fn ascii(text: &str, escape: impl Fn(u16) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii() {
            true => out.push(c),
            false => out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| escape(*unit))),
        }
    }
    out
}

/// Returns a text without a short secret; returns none if the secret is part of a longer word.
fn words_without(text: &str, secret: &str) -> Option<String> {
    let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (starts, ends) = (word(secret.chars().next()), word(secret.chars().next_back()));
    let mut without = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = None;
    while let Some(at) = rest.find(secret) {
        let (lead, found) = rest.split_at(at);
        let after = &found[secret.len()..];
        let left = lead.chars().next_back().or(before);
        if (starts && word(left)) || (ends && word(after.chars().next())) {
            return None;
        }
        without += lead;
        without += REDACTED;
        before = secret.chars().next_back();
        rest = after;
    }
    without += rest;
    Some(without)
}

/// Returns the array, object or string that a text is as JSON; returns none if it is none of them.
fn json_in(text: &str) -> Option<Value> {
    let like = text.trim_start().starts_with(['{', '[', '"']);
    like.then(|| serde_json::from_str(text).ok()).flatten()
}

struct Scrubbing<'a> {
    echoes: &'a Echoes,
    changed: bool,
    undecided: bool,
}

impl Scrubbing<'_> {
    fn value(&mut self, value: &Value, nested: usize) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text, nested)),
            Value::Number(number) => match self.echoes.number(&number.to_string()) {
                Found::Nothing => value.clone(),
                Found::Taken(text) => {
                    self.changed = true;
                    json!(text)
                }
                Found::Undecided => {
                    self.undecided = true;
                    Value::Null
                }
            },
            Value::Array(items) => items.iter().map(|item| self.value(item, nested)).collect(),
            Value::Object(map) => {
                let member =
                    |(name, inner): (&String, &Value)| (self.text(name, 0), self.value(inner, nested));
                map.iter().map(member).collect()
            }
            Value::Null | Value::Bool(_) => value.clone(),
        }
    }

    fn text(&mut self, text: &str, nested: usize) -> String {
        let inner = nested.checked_sub(1).and_then(|_| json_in(text));
        let read = inner.map(|inner| {
            let before = std::mem::replace(&mut self.changed, false);
            let scrubbed = self.value(&inner, nested - 1);
            let changed = std::mem::replace(&mut self.changed, before);
            self.changed |= changed;
            changed.then(|| scrubbed.to_string())
        });
        let text = read.flatten().map_or_else(|| text.into(), std::borrow::Cow::Owned);
        match self.echoes.searched(&text) {
            Found::Nothing => text.into_owned(),
            Found::Taken(text) => {
                self.changed = true;
                text
            }
            Found::Undecided => {
                self.undecided = true;
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Echoes, Scrubbed};

    #[test]
    fn a_secret_beyond_ascii_is_found_as_libraries_escape_it() {
        let mut echoes = Echoes::default();
        echoes.text("Cq7002\u{e9}accent\u{1f600}TAIL");
        for said in [
            "you said Cq7002\u{e9}accent\u{1f600}TAIL",
            r#"{"you": "Cq7002\u00e9accent\ud83d\ude00TAIL""#,
            r#"{"you": "Cq7002\u00E9accent\uD83D\uDE00TAIL""#,
            r#"again: \"Cq7002\\u00e9accent\\ud83d\\ude00TAIL\""#,
        ] {
            let Scrubbed::Changed(value) = echoes.scrub(&json!({"text": said})) else {
                panic!("it stays in {said}");
            };
            assert!(!value.to_string().contains("Cq7002"), "{value}");
        }
    }
}
