//! What is wrong with the input of a tool, each fault with its place.
//!
//! Invariants:
//! - no fault repeats a value of the input: it may be secret, or megabytes long;
//! - the recorded form of a fault repeats no name that the schema does not know;
//! - an input that the schema cannot judge is not refused: its tool judges it.

use jsonschema::{ValidationError, error::ValidationErrorKind};
use serde_json::Value;

use super::Entry;
use crate::{
    contract::{
        dialect::{FAULTS_MAX, Unchecked},
        secret::REDACTED,
    },
    error::{Code, Refusal},
};

/// Digits that count as an index into a list. A longer number may be a member name that the caller chose.
const INDEX_DIGITS: usize = 3;
/// The recorded form of a fault about unknown names.
const UNKNOWN: &str = "is not known";
/// The recorded form of any other fault about names.
const UNFIT: &str = "has names that do not fit";
/// The hint of a refused input.
pub const SEE_SCHEMA: &str = "see the tool's input schema";
/// The similarity from which on one name is suggested for another.
const NEAR_ENOUGH: f64 = 0.7;

/// One thing that a schema finds wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// A JSON pointer into the input.
    pub place: String,
    pub fault: String,
    /// The recorded form of the fault, if its text contains names that the caller chose.
    unnamed: Option<&'static str>,
}

/// Why an input is refused: `told` is for the caller, `kept` is for the record.
pub struct Unfit {
    pub told: Refusal,
    pub kept: Refusal,
}

impl Unfit {
    /// Makes one that says the same to the caller and the record.
    pub fn open(refusal: Refusal) -> Self {
        Self { told: refusal.clone(), kept: refusal }
    }
}

/// What the contract's schema says of an input.
pub enum Judged {
    Fits,
    /// It says nothing, for this reason.
    Unchecked(Unchecked),
    Unfit(Unfit),
}

impl Entry {
    /// Checks an input against the contract's schema; a violation names its path.
    pub fn check(&self, input: &Value) -> Result<(), Refusal> {
        match self.judge(input) {
            Judged::Fits | Judged::Unchecked(_) => Ok(()),
            Judged::Unfit(unfit) => Err(unfit.told),
        }
    }

    /// Returns whether the contract's schema was asked of an input and found nothing wrong with it.
    pub fn fits(&self, input: &Value) -> bool {
        matches!(self.judge(input), Judged::Fits)
    }

    /// Returns why no input is judged by the contract's schema; none if the schema can be used.
    pub fn unchecked(&self) -> Option<Unchecked> {
        self.schema.unusable().map(|unusable| unusable.why)
    }

    /// Judges an input by the contract's schema.
    pub fn judge(&self, input: &Value) -> Judged {
        let faults = match self.schema.faults(input) {
            Ok(faults) if faults.is_empty() => return Judged::Fits,
            Ok(faults) => faults,
            Err(why) => return Judged::Unchecked(why),
        };
        if !self.own()
            && let Some(rest) = without_nulls(input)
            && self.schema.faults(&rest).is_ok_and(|faults| faults.is_empty())
        {
            return Judged::Unchecked(Unchecked::Null);
        }
        let misfits: Vec<Misfit> =
            faults.iter().flat_map(|fault| self.misfit(fault)).take(FAULTS_MAX).collect();
        let refusal = |faults: Vec<(String, &str)>| {
            let faults = faults.into_iter().map(|(place, fault)| match place.as_str() {
                "" => format!("/: {fault}"),
                place => format!("{place}: {fault}"),
            });
            let message = format!("invalid input at {}", faults.collect::<Vec<_>>().join("; "));
            Refusal::new(Code::InvalidArgument, message).hint(SEE_SCHEMA)
        };
        let told = misfits.iter().map(|misfit| (misfit.place.clone(), misfit.fault.as_str()));
        let kept = misfits
            .iter()
            .map(|misfit| (self.known_place(&misfit.place), misfit.unnamed.unwrap_or(&misfit.fault)));
        Judged::Unfit(Unfit { told: refusal(told.collect()), kept: refusal(kept.collect()) })
    }

    /// Returns a place with the names redacted that the schema does not know.
    fn known_place(&self, place: &str) -> String {
        let known = |step: &str| {
            let name = step.replace("~1", "/").replace("~0", "~");
            let index = step.len() <= INDEX_DIGITS && step.bytes().all(|byte| byte.is_ascii_digit());
            if index || self.names.contains(&name) { format!("/{step}") } else { format!("/{REDACTED}") }
        };
        place.split('/').skip(1).map(known).collect()
    }

    /// Returns all that the contract's schema finds wrong with an input, up to a bound; nothing if it judges nothing.
    pub fn misfits(&self, input: &Value) -> Vec<Misfit> {
        let faults = self.schema.faults(input).unwrap_or_default();
        faults.iter().flat_map(|fault| self.misfit(fault)).take(FAULTS_MAX).collect()
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
                    unnamed: Some(UNKNOWN),
                };
                unexpected.iter().map(unknown).collect()
            }
            ValidationErrorKind::Required { property } => {
                let place = property.as_str().map_or_else(|| place.clone(), inside);
                vec![Misfit { place, fault: "is required".to_owned(), unnamed: None }]
            }
            ValidationErrorKind::FalseSchema => {
                vec![Misfit { place, fault: "must not be given".to_owned(), unnamed: None }]
            }
            ValidationErrorKind::UnevaluatedProperties { .. }
            | ValidationErrorKind::UnevaluatedItems { .. }
            | ValidationErrorKind::PropertyNames { .. } => {
                vec![Misfit { place, fault: error.masked().to_string(), unnamed: Some(UNFIT) }]
            }
            // Masked: a value may be secret, or megabytes long.
            _ => vec![Misfit { place, fault: error.masked().to_string(), unnamed: None }],
        }
    }
}

/// The one of `known` that is most like `name`, if any is.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= NEAR_ENOUGH).then_some(best.1)
}
/// Returns a value without the members that are null; none if it has none.
fn without_nulls(value: &Value) -> Option<Value> {
    let Value::Object(members) = value else { return None };
    let mut changed = false;
    let rest = members.iter().filter_map(|(name, member)| {
        if member.is_null() {
            changed = true;
            return None;
        }
        let inside = without_nulls(member);
        changed |= inside.is_some();
        Some((name.clone(), inside.unwrap_or_else(|| member.clone())))
    });
    let rest: serde_json::Map<String, Value> = rest.collect();
    changed.then_some(Value::Object(rest))
}
