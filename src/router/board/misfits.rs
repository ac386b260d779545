//! What is wrong with the input of a tool, each fault with its place.
//!
//! Invariant: no fault repeats a value of the input: it may be secret, or megabytes long.

use jsonschema::{ValidationError, error::ValidationErrorKind};
use serde_json::Value;

use super::Entry;
use crate::call::{Code, Refusal};

/// Misfits of one input that are told.
const MISFITS_MAX: usize = 100;
/// How alike two names are for one to be offered in the other's place.
const NEAR_ENOUGH: f64 = 0.7;

/// One thing that a schema finds wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// A JSON pointer into the input.
    pub place: String,
    pub fault: String,
}

impl Entry {
    /// All that the contract's schema finds wrong with an input, up to `MISFITS_MAX`. Errors: a schema that cannot
    /// be used.
    pub fn misfits(&self, input: &Value) -> Result<Vec<Misfit>, Refusal> {
        let schema = self.schema.as_ref().map_err(|why| {
            Refusal::new(Code::FailedPrecondition, format!("the tool's input schema cannot be used: {why}"))
        })?;
        Ok(schema.iter_errors(input).flat_map(|error| self.misfit(&error)).take(MISFITS_MAX).collect())
    }

    fn misfit(&self, error: &ValidationError<'_>) -> Vec<Misfit> {
        let place = error.instance_path().to_string();
        let inside = |name: &str| format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = || self.fields.iter().map(String::as_str).filter(|_| place.is_empty());
                let unknown = |name: &String| Misfit {
                    place: inside(name),
                    fault: match nearest(name, known()) {
                        Some(known) => format!("`{name}` is not known: did you mean `{known}`?"),
                        None => format!("`{name}` is not known"),
                    },
                };
                unexpected.iter().map(unknown).collect()
            }
            ValidationErrorKind::Required { property } => {
                let place = property.as_str().map_or_else(|| place.clone(), inside);
                vec![Misfit { place, fault: "is required".to_owned() }]
            }
            ValidationErrorKind::FalseSchema => {
                vec![Misfit { place, fault: "must not be given".to_owned() }]
            }
            // Masked: a value may be secret, or megabytes long.
            _ => vec![Misfit { place, fault: error.masked().to_string() }],
        }
    }
}

/// The one of `known` that is most like `name`, if any is.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= NEAR_ENOUGH).then_some(best.1)
}
