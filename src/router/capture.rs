//! Capture: what of a call's content is kept.
//!
//! Invariants:
//! - what a contract marks secret is taken out before anything is hashed, in every mode;
//! - of a call that is refused, structure and known names are kept, and no value;
//! - content without secrets and captured in full is kept byte for byte.

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::{HashMap, HashSet},
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    block::{json, splice},
    contract::secret::{
        Bound, Paths,
        echo::{Echoes, Scrubbed},
        taking::{Keep, Reduced, reduce},
    },
    words::words,
};

/// The member of a result that an output schema describes.
const STRUCTURED: &str = "structuredContent";

words! {
    /// How much of a payload is kept, the most first.
    #[derive(Default, PartialOrd, Ord, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Capture {
        /// The bytes as they came.
        #[default]
        Full = "full",
        /// The shape: keys and structure, with a commitment in the place of every value.
        Redacted = "redacted",
        /// One commitment to the whole.
        Digest = "digest",
    }
}

/// The mode of each tool, and of all others.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    pub default: Capture,
    pub tools: HashMap<String, Capture>,
}

/// The recorded form of an input, and the secrets that were taken out of it.
pub struct Captured {
    pub text: String,
    pub taken: Echoes,
}

/// What has to be taken out of an answer before it is recorded.
pub struct Sieve {
    /// Secrets of the input.
    pub echoes: Echoes,
    /// The paths that the output schema marks as secret.
    pub marked: Paths,
    pub capture: Capture,
    pub bound: Bound,
}

/// An answer's text, parsed at most once, and only where somebody has to look into it.
pub struct Answer<'a> {
    text: &'a str,
    parsed: OnceCell<Option<Value>>,
}

impl<'a> Answer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, parsed: OnceCell::new() }
    }

    fn value(&self) -> Option<&Value> {
        self.parsed.get_or_init(|| serde_json::from_str(self.text).ok()).as_ref()
    }

    /// Returns the structured content. `result` is the answer itself: unless it is parsed already, only this member of
    /// it is.
    pub fn structured(&self, result: &RawValue) -> Option<Cow<'_, Value>> {
        match self.parsed.get() {
            Some(parsed) => parsed.as_ref()?.get(STRUCTURED).map(Cow::Borrowed),
            None => {
                let structured = splice::member(result, STRUCTURED).ok()??;
                serde_json::from_str(structured.get()).ok().map(Cow::Owned)
            }
        }
    }
}

impl Captures {
    pub fn of(&self, tool: &str) -> Capture {
        self.tools.get(tool).copied().unwrap_or(self.default)
    }
}

/// Returns the recorded form of an input. `value` is `text`, parsed. `known` is set for a refused input: the only member
/// names that may be kept of it. Of its values none is, because what is in the wrong place is as often a secret as not.
pub fn input(
    text: &str,
    value: &Value,
    secrets: &Paths,
    capture: Capture,
    known: Option<&HashSet<String>>,
    bound: &Bound,
) -> Captured {
    if secrets.is_empty() && capture == Capture::Full && known.is_none() {
        return Captured { text: text.to_owned(), taken: Echoes::default() };
    }
    let keep = match (known, capture) {
        (Some(names), _) => Keep::Known(names),
        (None, Capture::Redacted) => Keep::Shape { echoes: None },
        (None, Capture::Full | Capture::Digest) => Keep::All,
    };
    let Reduced { value: reduced, taken, changed } = reduce(value.clone(), "", secrets, keep, bound);
    let text = match capture {
        Capture::Digest => bound.value("", value).to_string(),
        Capture::Full if known.is_none() && !changed => text.to_owned(),
        Capture::Full | Capture::Redacted => reduced.to_string(),
    };
    Captured { text, taken }
}

/// Returns the recorded form of an answer. `theirs` says that it came from the tool and not from this node.
pub fn output(answer: &Answer<'_>, sieve: &Sieve, theirs: bool) -> String {
    let text = answer.text;
    let Sieve { echoes, marked, capture, bound } = sieve;
    let marked = if theirs { marked } else { &Paths::default() };
    if marked.is_empty() && *capture == Capture::Full && echoes.is_empty() {
        return text.to_owned();
    }
    let Some(value) = answer.value() else {
        return bound.value("", &Value::String(text.to_owned())).to_string();
    };
    let mut secrets = Paths::default();
    secrets.add(&[STRUCTURED.to_owned()], marked);
    let Reduced { value: reduced, taken, changed } = reduce(value.clone(), "", &secrets, Keep::All, bound);
    let mut echoes = echoes.clone();
    echoes.join(&taken);
    if *capture == Capture::Digest || echoes.too_many() {
        return bound.value("", value).to_string();
    }
    // What an output schema marks may stand anywhere in an answer that is not of its form.
    let formless = !marked.is_empty() && value.get(STRUCTURED).is_none_or(Value::is_null);
    let scrubbed = match formless || *capture == Capture::Redacted {
        true => Scrubbed::Undecided,
        false => echoes.scrub(&reduced),
    };
    match scrubbed {
        Scrubbed::Undecided => {
            let keep = Keep::Shape { echoes: Some(&echoes) };
            reduce(value.clone(), "", &secrets, keep, bound).value.to_string()
        }
        Scrubbed::Changed(scrubbed) => scrubbed.to_string(),
        // A name that stands twice hides what the first of them holds.
        Scrubbed::Unchanged if !changed && json::check(text.as_bytes()).is_ok() => text.to_owned(),
        Scrubbed::Unchanged => reduced.to_string(),
    }
}

#[cfg(test)]
mod tests;
