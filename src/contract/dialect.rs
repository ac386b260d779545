//! Judges values by JSON Schemas, each in the dialect that it names.
//!
//! Invariants:
//! - nothing is fetched, and no schema, whatever it says, makes the program panic or overflow its stack;
//! - a schema that cannot be used judges nothing: there is a reason in the place of a verdict;
//! - neither compiling nor judging goes on for longer than `cost` admits;
//! - the reason tells of the schema alone, in bounded and printable text.

mod pattern;
mod graph;
mod cost;
mod reading;

use jsonschema::{Draft, PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::cost::Cost;
use crate::{visible, words::words};

/// What a schema finds wrong with one value is listed up to this many faults.
pub const FAULTS_MAX: usize = 100;
/// The text of a reason has at most this many characters.
const REASON_MAX: usize = 200;
/// The place of a fault in a schema has at most this many characters.
pub const PLACE_MAX: usize = 160;
/// Ways that a pattern which looks around or back tries before it gives up on a text.
const BACKTRACKS_MAX: usize = 100_000;
/// Stands for the place of a fault where there is no value at all.
pub const MISSING: &str = "missing";

words! {
    /// Says why a value was not judged by a schema.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Unchecked {
        /// `$schema` names a dialect that is not known here.
        Dialect = "dialect",
        /// A reference names another document, or nothing.
        Reference = "reference",
        /// A pattern is no regular expression of ECMA-262, or gives up on this value.
        Pattern = "pattern",
        /// The schema breaks the rules of its dialect.
        Malformed = "malformed",
        /// The schema says something else in its dialect than it means.
        Ambiguous = "ambiguous",
        /// References lead too deep, or judging takes too many steps.
        Large = "large",
        /// An optional member is null though its schema does not allow that: many servers take it as left out.
        Null = "null",
    }
}

/// Says why a schema cannot be used, and where that is to be seen in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub why: Unchecked,
    pub text: String,
}

impl Unusable {
    fn new(why: Unchecked, text: impl AsRef<str>) -> Self {
        let printable = text.as_ref().chars().filter(|c| !visible::acts(*c));
        Self { why, text: printable.take(REASON_MAX).collect() }
    }

    fn of_error(error: &ValidationError<'_>) -> Self {
        let why = match error.kind() {
            ValidationErrorKind::Referencing(_) => Unchecked::Reference,
            ValidationErrorKind::Format { format } if format == "regex" => Unchecked::Pattern,
            ValidationErrorKind::Pattern { .. } | ValidationErrorKind::RegexEngineFailure { .. }
                if error.instance_path().as_str().ends_with("/pattern") =>
            {
                Unchecked::Pattern
            }
            _ => Unchecked::Malformed,
        };
        let place = error.instance_path().as_str();
        Self::new(why, if place.is_empty() { error.to_string() } else { format!("{place}: {error}") })
    }
}

/// A compiled schema, or the reason why it cannot be used.
#[derive(Debug)]
pub struct Schema(Result<Compiled, Unusable>);

#[derive(Debug)]
struct Compiled {
    validator: Validator,
    cost: Cost,
}

impl Schema {
    /// Compiles a schema in the dialect of its `$schema`, or in that of 2020-12 if it has none.
    ///
    /// Formats, and the encoding and media type of strings, are annotations in every dialect: tools differ in which
    /// of them they check.
    pub fn compile(schema: &Value) -> Self {
        Self(draft(schema).and_then(|draft| {
            reading::check(schema, draft)?;
            let cost = Cost::of(schema).map_err(|text| Unusable::new(Unchecked::Large, text))?;
            let validator = jsonschema::options()
                .with_draft(draft)
                .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS_MAX))
                .should_validate_formats(false)
                .without_content_media_type_support("application/json")
                .without_content_encoding_support("base64")
                .offline()
                .build(schema);
            let validator = validator.map_err(|error| Unusable::of_error(&error))?;
            Ok(Compiled { validator, cost })
        }))
    }

    /// Returns the reason why it judges nothing; none if it can be used.
    pub fn unusable(&self) -> Option<&Unusable> {
        self.0.as_ref().err()
    }

    /// Returns whether it judges a value of so many bytes at once; else it may take part of a second.
    pub fn is_quick(&self, bytes: usize) -> bool {
        self.0.as_ref().ok().is_none_or(|compiled| compiled.cost.is_small(bytes))
    }

    /// Returns what judges a value. Errors: why nothing does.
    fn validator(&self, value: &Value) -> Result<&Validator, Unchecked> {
        let Compiled { validator, cost } = self.0.as_ref().map_err(|unusable| unusable.why)?;
        cost.admit(value).map_err(|_| Unchecked::Large)?;
        Ok(validator)
    }

    /// Returns what it finds wrong with a value. Errors: why the value could not be judged.
    pub fn faults<'v>(&'v self, value: &'v Value) -> Result<Vec<ValidationError<'v>>, Unchecked> {
        let validator = self.validator(value)?;
        if validator.is_valid(value) {
            return Ok(Vec::new());
        }
        let faults: Vec<_> = validator.iter_errors(value).take(FAULTS_MAX).collect();
        match faults.iter().any(gave_up) {
            true => Err(Unchecked::Pattern),
            false => Ok(faults),
        }
    }

    /// Returns the place in the schema that a value does not fit, as `#` and a JSON Pointer; none if it fits. Errors:
    /// why the value could not be judged.
    pub fn misfit(&self, value: &Value) -> Result<Option<String>, Unchecked> {
        let validator = self.validator(value)?;
        match validator.validate(value) {
            Ok(()) => Ok(None),
            Err(fault) if gave_up(&fault) => Err(Unchecked::Pattern),
            Err(fault) => Ok(Some(place(fault.schema_path().as_str()))),
        }
    }
}

/// Returns a place in a schema, cut where a step cannot be printed or the bound is reached.
fn place(pointer: &str) -> String {
    let mut place = "#".to_owned();
    for step in pointer.split('/').skip(1) {
        let longer = place.chars().count() + 1 + step.chars().count();
        if longer > PLACE_MAX || step.chars().any(char::is_control) {
            break;
        }
        place.push('/');
        place.push_str(step);
    }
    place
}

/// Returns the dialect that a schema is written in.
fn draft(schema: &Value) -> Result<Draft, Unusable> {
    let unknown = |text: &str| Unusable::new(Unchecked::Dialect, text);
    match schema.get("$schema") {
        None => Ok(Draft::Draft202012),
        Some(Value::String(uri)) => match Draft::from_schema_uri(uri) {
            Draft::Unknown => Err(unknown(&format!("/$schema: {uri} is not known here"))),
            draft => Ok(draft),
        },
        Some(_) => Err(unknown("/$schema: it is not a text")),
    }
}

/// Returns whether a fault says that judging was given up, and nothing of the value.
fn gave_up(fault: &ValidationError<'_>) -> bool {
    match fault.kind() {
        ValidationErrorKind::BacktrackLimitExceeded { .. }
        | ValidationErrorKind::RegexEngineFailure { .. }
        | ValidationErrorKind::Referencing(_) => true,
        ValidationErrorKind::AnyOf { context }
        | ValidationErrorKind::OneOfNotValid { context }
        | ValidationErrorKind::OneOfMultipleValid { context } => context.iter().flatten().any(gave_up),
        ValidationErrorKind::PropertyNames { error } => gave_up(error),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
