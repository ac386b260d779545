//! Capture: what of a call's content is kept.
//!
//! Invariants:
//! - what a contract marks secret is taken out before anything is hashed, in every mode;
//! - content without secrets and captured in full is kept byte for byte.

use std::collections::HashMap;

use serde_json::Value;

use crate::{
    block::payload::SaltKey,
    contract::secret::{self, Paths},
};

/// How much of a payload is kept, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capture {
    /// The bytes as they came.
    #[default]
    Full,
    /// The shape: keys and structure, with a commitment in the place of every value.
    Redacted,
    /// One commitment to the whole.
    Digest,
}

/// The mode of each tool, and of all others.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    pub default: Capture,
    pub tools: HashMap<String, Capture>,
}

/// An input as it is kept, and the secret texts that were taken out of it.
pub struct Kept {
    pub text: String,
    pub secrets: Vec<String>,
}

impl Captures {
    pub fn of(&self, tool: &str) -> Capture {
        self.tools.get(tool).copied().unwrap_or(self.default)
    }
}

/// What is kept of an input: `value` is `text`, read.
pub fn input(text: &str, value: &Value, secrets: &Paths, capture: Capture, key: &SaltKey) -> Kept {
    if secrets.is_empty() && capture == Capture::Full {
        return Kept { text: text.to_owned(), secrets: Vec::new() };
    }
    let mut kept = value.clone();
    let secrets = secrets.redact(&mut kept, key);
    let whole = secrets.is_empty() && capture == Capture::Full;
    Kept { text: if whole { text.to_owned() } else { reduced(kept, capture, key).to_string() }, secrets }
}

/// What is kept of an answer to a call whose input held `echoes`.
pub fn output(text: &str, marked: &Paths, echoes: &[String], capture: Capture, key: &SaltKey) -> String {
    if marked.is_empty() && capture == Capture::Full {
        return secret::scrub(text, echoes).unwrap_or_else(|| text.to_owned());
    }
    let Ok(mut value) = serde_json::from_str::<Value>(text) else {
        return secret::commitment(&Value::String(text.to_owned()), key).to_string();
    };
    let mut echoes = echoes.to_vec();
    if let Some(content) = value.get_mut("structuredContent") {
        echoes.extend(marked.redact(content, key));
    }
    let text = reduced(value, capture, key).to_string();
    secret::scrub(&text, &echoes).unwrap_or(text)
}

fn reduced(value: Value, capture: Capture, key: &SaltKey) -> Value {
    match capture {
        Capture::Full => value,
        Capture::Redacted => shape(value, key),
        Capture::Digest => secret::commitment(&value, key),
    }
}

fn shape(value: Value, key: &SaltKey) -> Value {
    match value {
        // A commitment that stands already is not committed to again.
        Value::Object(map) if map.len() == 1 && map.contains_key("$redacted") => Value::Object(map),
        Value::Object(map) => map.into_iter().map(|(name, inner)| (name, shape(inner, key))).collect(),
        Value::Array(items) => items.into_iter().map(|item| shape(item, key)).collect(),
        Value::Null => Value::Null,
        leaf @ (Value::Bool(_) | Value::Number(_) | Value::String(_)) => secret::commitment(&leaf, key),
    }
}
