//! Words for faults: what a value is, and what it must be, as settings and not as types of this program.
//!
//! Invariant: a value itself is never repeated, but for a number that is out of its range.

use std::ops::RangeInclusive;

use toml::Value;

/// How a fault ends to which a range can be added.
pub(super) const WHOLE: &str = "a whole number";

/// Says what is wrong with a value that cannot be read, and where below its key, by the parser's error.
///
/// `typed` is false of a variable's value, whose type was only guessed.
pub(super) fn unreadable(error: &toml::de::Error, value: &Value, typed: bool) -> (String, String) {
    let path = inner(error);
    let mut found = Some(value);
    for key in &path {
        found = found.and_then(|value| value.get(key.as_str()));
    }
    let below: String = path.iter().map(|key| format!(".{key}")).collect();
    let message = error.message();
    let wanted =
        message.rsplit_once(", expected ").map(|(_, wanted)| wanted.lines().next().unwrap_or_default());
    if message.starts_with("unknown field") {
        let known = wanted.map(|wanted| wanted.trim_start_matches("one of ")).unwrap_or("none");
        return (below, format!("has an unknown key; known are {known}"));
    }
    let wanted = match wanted {
        Some(wanted) => meant(wanted),
        None if message.contains("socket address") => meant("socket address"),
        None => return (below, "has a value of a kind that is not allowed here".to_owned()),
    };
    let must = format!("it must be {wanted}");
    let said = match found.filter(|_| typed).map(|value| kind(value, &wanted)) {
        Some(kind) if !kind.is_empty() => format!("is {kind}; {must}"),
        _ => must,
    };
    (below, said)
}

/// Says that a number is out of its range.
pub(super) fn out_of_range(place: &str, value: u64, range: &RangeInclusive<u64>) -> String {
    format!("is {value}; it must be {WHOLE}{}", within(place, range))
}

/// Returns a range in the unit of its key.
pub(super) fn within(place: &str, range: &RangeInclusive<u64>) -> String {
    let units = [("_bytes", " of bytes"), ("_ms", " of milliseconds"), ("_s", " of seconds")];
    let unit = units.iter().find(|(ending, _)| place.ends_with(ending)).map_or("", |(_, unit)| unit);
    format!("{unit} from {} to {}", range.start(), range.end())
}

/// Returns the keys below the one that was read, which the parser names after its message.
fn inner(error: &toml::de::Error) -> Vec<String> {
    let text = error.to_string();
    let named = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    named.map(|path| path.split('.').skip(1).map(str::to_owned).collect()).unwrap_or_default()
}

/// Returns what the parser's word for a type means.
fn meant(wanted: &str) -> String {
    let words = match wanted {
        "usize" | "u64" | "u32" | "u16" | "u8" | "isize" | "i64" | "i32" | "i16" | "i8" | "integer"
        | "a nonzero u32" => WHOLE,
        "f64" | "f32" => "a number",
        "a boolean" | "bool" => "true or false",
        "a string" | "string" | "str" | "a borrowed string" => "a text",
        "path string" => "a path",
        "socket address" => "an address with a port, like 127.0.0.1:7420",
        "a sequence" | "an array" => "a list",
        "a map" | "table" => "a table",
        named if named.starts_with("struct ") => "a table",
        listed => return listed.to_owned(),
    };
    words.to_owned()
}

/// Returns what a value is; empty where that alone is not wrong.
fn kind(value: &Value, wanted: &str) -> &'static str {
    match value {
        // A text can be a path, an address or a word of a list, and so be wrong in other ways.
        Value::String(_) => match wanted {
            WHOLE | "a number" | "true or false" | "a list" | "a table" => "a text",
            _ => "",
        },
        Value::Integer(number) if wanted == WHOLE && *number < 0 => "a negative number",
        Value::Integer(_) if wanted == WHOLE => "too large a number",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a number with a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}
