//! Conditions: whether a step is to run, by what the steps before it gave.
//!
//! Invariant: a condition reads one value, or joins conditions with `all`, `any`, `not`.

use serde_json::{Map, Value};

use super::Reference;
use crate::{
    error,
    workflow::{
        fields::{Faults, join},
        wrong::Wrong,
    },
};

/// The tests of a condition.
const TESTS: [&str; 6] = ["equals", "not_equals", "in", "exists", "greater_than", "less_than"];

/// Checks a condition, and calls `read` with every step that it reads and the place.
pub fn check<'a>(
    condition: &'a Value,
    place: &str,
    faults: &mut Faults,
    read: &mut dyn FnMut(Reference<'a>, String),
) {
    let Some(fields) = condition.as_object() else {
        return faults.add(place, "a condition must be an object");
    };
    match Form::of(fields) {
        Ok(Form::All(list)) => check_list(list, &join(place, "all"), faults, read),
        Ok(Form::Any(list)) => check_list(list, &join(place, "any"), faults, read),
        Ok(Form::Not(inner)) => check(inner, &join(place, "not"), faults, read),
        Ok(Form::Test(reference, ..)) => read(reference, place.to_owned()),
        Err(fault) => faults.add(place, fault),
    }
}

fn check_list<'a>(
    list: &'a [Value],
    place: &str,
    faults: &mut Faults,
    read: &mut dyn FnMut(Reference<'a>, String),
) {
    for (at, condition) in list.iter().enumerate() {
        check(condition, &format!("{place}/{at}"), faults, read);
    }
}

/// Returns whether a checked condition holds. `value` returns what a reference finds, if anything.
pub fn holds<'a>(
    condition: &'a Value,
    value: &dyn Fn(Reference<'a>) -> Result<Option<Value>, Wrong>,
) -> Result<bool, Wrong> {
    let fault = |fault: &str| Wrong::new(error::Code::InvalidArgument, fault);
    let fields = condition.as_object().ok_or_else(|| fault("a condition must be an object"))?;
    match Form::of(fields).map_err(fault)? {
        Form::All(list) => {
            for condition in list {
                if !holds(condition, value)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Form::Any(list) => {
            for condition in list {
                if holds(condition, value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Form::Not(condition) => holds(condition, value).map(|holds| !holds),
        Form::Test(reference, test, wanted) => {
            let found = value(reference)?;
            match (test, found) {
                ("exists", found) => Ok(wanted.as_bool() == Some(found.is_some())),
                (_, None) => Err(reference.nothing()),
                (test, Some(found)) => Ok(passes(&found, test, wanted)),
            }
        }
    }
}

fn passes(found: &Value, test: &str, wanted: &Value) -> bool {
    let numbers = || found.as_f64().zip(wanted.as_f64());
    match test {
        "equals" => same(found, wanted),
        "not_equals" => !same(found, wanted),
        "in" => wanted.as_array().is_some_and(|list| list.iter().any(|one| same(found, one))),
        "greater_than" => numbers().is_some_and(|(found, wanted)| found > wanted),
        _ => numbers().is_some_and(|(found, wanted)| found < wanted),
    }
}

/// Returns whether two values are equal as JSON; 1 and 1.0 are.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64())
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        (left, right) => left == right,
    }
}

enum Form<'a> {
    All(&'a [Value]),
    Any(&'a [Value]),
    Not(&'a Value),
    Test(Reference<'a>, &'a str, &'a Value),
}

impl<'a> Form<'a> {
    fn of(fields: &'a Map<String, Value>) -> Result<Self, &'static str> {
        const NOT_ONE: &str = "a condition has `$from` and a test, or exactly one of `all`, `any`, `not`";
        const NOT_A_LIST: &str = "`all` and `any` take a list of at least one condition";
        let Some(step) = fields.get("$from") else {
            let (name, value) = fields.iter().next().filter(|_| fields.len() == 1).ok_or(NOT_ONE)?;
            let list = || value.as_array().map(Vec::as_slice).filter(|l| !l.is_empty()).ok_or(NOT_A_LIST);
            return match name.as_str() {
                "all" => list().map(Self::All),
                "any" => list().map(Self::Any),
                "not" => Ok(Self::Not(value)),
                _ => Err(NOT_ONE),
            };
        };
        let reference = Reference::read_parts(step, fields.get("pointer"), fields.get("default"))?;
        let mut tests = fields.iter().filter(|(name, _)| TESTS.contains(&name.as_str()));
        let (name, wanted) = tests.next().ok_or(
            "a condition needs one of `equals`, `not_equals`, `in`, `exists`, `greater_than`, `less_than`",
        )?;
        let parts = 2 + ["pointer", "default"].iter().filter(|name| fields.contains_key(**name)).count();
        if fields.len() != parts {
            return Err("beside `$from`, `pointer` and `default` a condition has exactly one test");
        }
        let fits = match name.as_str() {
            "in" => wanted.is_array(),
            "exists" => wanted.is_boolean(),
            "greater_than" | "less_than" => wanted.is_number(),
            _ => true,
        };
        match fits {
            true => Ok(Self::Test(reference, name, wanted)),
            false => {
                Err("`in` takes a list, `exists` true or false, `greater_than` and `less_than` a number")
            }
        }
    }
}
