//! Inputs: what a step takes from the steps before it, from the element it runs for, and its condition.
//!
//! Invariants:
//! - only `{"$from"}` and `{"$item"}` are replaced; all else stays as it was written;
//! - what a child run takes from its own steps is left to the child;
//! - what is taken is weighed before it is copied, so that short inputs cannot grow without bound.

pub mod when;

use std::{collections::HashSet, sync::Arc};

use serde_json::{Map, Value};

use crate::{
    error::Code,
    workflow::{
        fields,
        shape::{Step, WORKFLOW_RUN},
        wrong::Wrong,
    },
};

/// A special object in inputs, which is replaced by a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Special<'a> {
    From(Reference<'a>),
    /// A pointer into the list element that a part of the step runs for.
    Item(&'a str),
    Malformed(&'static str),
}

/// A value of an earlier step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reference<'a> {
    pub step: &'a str,
    pub pointer: &'a str,
    pub default: Option<&'a Value>,
}

impl<'a> Special<'a> {
    /// Reads a special object; `None` if the object is an ordinary one.
    pub fn read(fields: &'a Map<String, Value>) -> Option<Self> {
        if let Some(step) = fields.get("$from") {
            return Some(Reference::read(step, fields).map_or_else(Self::Malformed, Self::From));
        }
        let pointer = fields.get("$item")?;
        Some(match pointer.as_str().filter(|pointer| is_pointer(pointer) && fields.len() == 1) {
            Some(pointer) => Self::Item(pointer),
            None => Self::Malformed("must be `{\"$item\": <JSON pointer>}`"),
        })
    }
}

impl<'a> Reference<'a> {
    /// Reads `{"$from", "pointer"?, "default"?}`.
    fn read(step: &'a Value, fields: &'a Map<String, Value>) -> Result<Self, &'static str> {
        let known = |name: &String| ["$from", "pointer", "default"].contains(&name.as_str());
        if !fields.keys().all(known) {
            return Err("beside `$from` only `pointer` and `default` may stand");
        }
        Self::read_parts(step, fields.get("pointer"), fields.get("default"))
    }

    fn read_parts(
        step: &'a Value,
        pointer: Option<&'a Value>,
        default: Option<&'a Value>,
    ) -> Result<Self, &'static str> {
        let step = step.as_str().ok_or("`$from` must be the id of a step")?;
        let pointer = pointer.map_or(Some(""), Value::as_str).filter(|pointer| is_pointer(pointer));
        let pointer = pointer.ok_or(
            "`pointer` must be a JSON pointer: empty or starting with `/`, and `~` only as `~0` or `~1`",
        )?;
        Ok(Self { step, pointer, default })
    }

    /// Returns the value it finds in the step's output, or its default.
    pub fn find<'v>(&self, output: &'v Value) -> Option<&'v Value>
    where
        'a: 'v,
    {
        output.pointer(self.pointer).or(self.default)
    }

    pub fn nothing(&self) -> Wrong {
        let Self { step, pointer, .. } = self;
        Wrong::new(
            Code::FailedPrecondition,
            format!("the output of step `{step}` has nothing at `{pointer}`"),
        )
    }
}

/// Returns whether `text` is a JSON pointer (RFC 6901): it is empty or starts with `/`, and every `~` in it is `~0` or
/// `~1`.
fn is_pointer(text: &str) -> bool {
    let escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    escaped && (text.is_empty() || text.starts_with('/'))
}

/// The steps of the child definitions around a place. References to them are left to the child.
#[derive(Default)]
struct Scope<'s, 'a> {
    steps: HashSet<&'a str>,
    /// Whether `$item` belongs to a child's step.
    items: bool,
    outer: Option<&'s Scope<'s, 'a>>,
}

impl Scope<'_, '_> {
    fn keeps(&self, special: &Special<'_>) -> bool {
        let own = match special {
            Special::From(reference) => self.steps.contains(reference.step),
            Special::Item(_) => self.items,
            Special::Malformed(_) => false,
        };
        own || self.outer.is_some_and(|outer| outer.keeps(special))
    }
}

/// Copies `value`, with each special object of the step itself replaced by what `put` returns for it and its place.
///
/// The inputs of a `workflow:run` step are a definition.
pub fn replace<'a>(
    value: &'a Value,
    action: &str,
    place: &str,
    put: &mut dyn FnMut(Special<'a>, &str) -> Result<Value, Wrong>,
) -> Result<Value, Wrong> {
    let mut walk = Walk { place: place.to_owned(), put };
    match action == WORKFLOW_RUN {
        true => walk.definition(value, &Scope::default()),
        false => walk.value(value, &Scope::default()),
    }
}

struct Walk<'p, 'a> {
    place: String,
    put: &'p mut dyn FnMut(Special<'a>, &str) -> Result<Value, Wrong>,
}

impl<'a> Walk<'_, 'a> {
    fn value(&mut self, value: &'a Value, scope: &Scope<'_, 'a>) -> Result<Value, Wrong> {
        match value {
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.map(|(at, item)| self.at(&at.to_string(), |walk| walk.value(item, scope))).collect()
            }
            Value::Object(fields) => match Special::read(fields) {
                Some(special) if !scope.keeps(&special) => (self.put)(special, &self.place),
                Some(_) => Ok(value.clone()),
                None => self.fields(fields, |walk, _, value| walk.value(value, scope)),
            },
            plain => Ok(plain.clone()),
        }
    }

    fn definition(&mut self, value: &'a Value, outer: &Scope<'_, 'a>) -> Result<Value, Wrong> {
        let Some(steps) = value.get("steps").and_then(Value::as_array) else {
            return self.value(value, outer);
        };
        let ids: HashSet<&str> = steps.iter().filter_map(|step| step.get("step_id")?.as_str()).collect();
        let fields = value.as_object().expect("a value with fields is an object");
        let scope = Scope { steps: ids, items: false, outer: Some(outer) };
        self.fields(fields, |walk, name, value| match value {
            Value::Array(steps) if name == "steps" => {
                let steps = steps.iter().enumerate();
                steps.map(|(at, step)| walk.at(&at.to_string(), |walk| walk.step(step, &scope))).collect()
            }
            value => walk.value(value, &scope),
        })
    }

    fn step(&mut self, step: &'a Value, outer: &Scope<'_, 'a>) -> Result<Value, Wrong> {
        let Some(fields) = step.as_object() else { return Ok(step.clone()) };
        let scope =
            Scope { steps: HashSet::new(), items: fields.contains_key("for_each"), outer: Some(outer) };
        let child = fields.get("action").is_some_and(|action| action == WORKFLOW_RUN);
        self.fields(fields, |walk, name, value| match name == "inputs" && child {
            true => walk.definition(value, &scope),
            false => walk.value(value, &scope),
        })
    }

    fn fields(
        &mut self,
        fields: &'a Map<String, Value>,
        mut each: impl FnMut(&mut Self, &'a str, &'a Value) -> Result<Value, Wrong>,
    ) -> Result<Value, Wrong> {
        let fields = fields.iter();
        fields
            .map(|(name, value)| Ok((name.clone(), self.at(name, |walk| each(walk, name, value))?)))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object)
    }

    fn at<T>(&mut self, name: &str, inside: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.place.len();
        self.place = fields::join(&self.place, name);
        let answer = inside(self);
        self.place.truncate(before);
        answer
    }
}

/// A step's output, as other steps read it.
pub enum Output {
    Itself(Arc<Value>),
    /// A tool's result, read through its `structuredContent`.
    Structured(Arc<Value>),
    Made(Value),
}

impl Output {
    /// Makes the output from the content of a task of `step`. A tool's result is read by its structured content or
    /// its only text; anything else is taken as it is.
    pub fn of(step: &Step, json: Arc<Value>) -> Self {
        if step.tool.is_none() {
            return Self::Itself(json);
        }
        if json.get("structuredContent").is_some_and(|structured| !structured.is_null()) {
            return Self::Structured(json);
        }
        match json.get("content").and_then(Value::as_array).map(Vec::as_slice) {
            Some([block]) => match block.get("text").and_then(Value::as_str) {
                Some(text) => Self::Made(
                    serde_json::from_str(text).unwrap_or_else(|_| serde_json::json!({ "text": text })),
                ),
                None => Self::Itself(json),
            },
            _ => Self::Itself(json),
        }
    }

    pub fn value(&self) -> &Value {
        match self {
            Self::Itself(json) => json,
            Self::Structured(json) => json.get("structuredContent").unwrap_or(&Value::Null),
            Self::Made(value) => value,
        }
    }
}

/// Returns about how many bytes `value` takes as text.
pub fn weigh(value: &Value) -> u64 {
    const NODE: u64 = 4;
    match value {
        Value::String(text) => NODE + text.len() as u64,
        Value::Array(items) => NODE + items.iter().map(weigh).sum::<u64>(),
        Value::Object(fields) => {
            NODE + fields.iter().map(|(name, value)| NODE + name.len() as u64 + weigh(value)).sum::<u64>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => NODE,
    }
}
