//! Edits JSON text in place: members of an object are replaced, removed or added, and every other byte stays.
//!
//! Invariants:
//! - nothing is parsed into values and printed again, so numbers, key order, escapes and spacing stay as they are;
//! - an edit of valid JSON is valid JSON.

use std::{
    borrow::Cow,
    fmt::{self, Write},
    ops::Range,
};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text is JSON, but not an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a json object")]
pub struct NotObject;

/// Returns the value of the member `key`, or of the last one if there are several; returns none if there is none.
pub fn member<'a>(object: &'a RawValue, key: &str) -> Result<Option<&'a RawValue>, NotObject> {
    let mut members = members(object)?.into_iter();
    Ok(members.rfind(|member| member.is(key)).map(|member| member.value))
}

/// Returns where in the text of `object` the values of these members stand; an empty range for a member that is absent.
pub fn spans<const COUNT: usize>(
    object: &RawValue,
    keys: &[&str; COUNT],
) -> Result<[Range<usize>; COUNT], NotObject> {
    struct Spans<'a, const COUNT: usize>(&'a str, &'a [&'a str; COUNT]);
    impl<'de, const COUNT: usize> Visitor<'de> for Spans<'de, COUNT> {
        type Value = [Range<usize>; COUNT];

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut spans = std::array::from_fn(|_| 0..0);
            while let Some((quoted, value)) = map.next_entry()? {
                let member = Member { quoted, value };
                let key = member.key();
                if let Some(at) = self.1.iter().position(|name| key.as_deref() == Some(*name)) {
                    let start = offset(self.0, value.get());
                    spans[at] = start..start + value.get().len();
                }
            }
            Ok(spans)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(object.get());
    deserializer.deserialize_map(Spans(object.get(), keys)).map_err(|_| NotObject)
}

/// Returns `object` with the members of `set` replaced in their places or added at the end, and those removed for whose
/// keys `unwanted` returns true. A key in both is set.
pub fn edit(
    object: &RawValue,
    set: &[(&str, &RawValue)],
    unwanted: impl Fn(&str) -> bool,
) -> Result<Box<RawValue>, NotObject> {
    let set: Vec<(&str, &str)> = set.iter().map(|(key, value)| (*key, value.get())).collect();
    let mut edited = String::with_capacity(object.get().len());
    edit_into(&mut edited, object, &set, unwanted)?;
    Ok(raw(edited))
}

/// Appends to `out` what [`edit`] would return. The values of `set` must be written as JSON.
pub fn edit_into(
    out: &mut String,
    object: &RawValue,
    set: &[(&str, impl fmt::Display)],
    unwanted: impl Fn(&str) -> bool,
) -> Result<(), NotObject> {
    let members = members(object)?;
    let text = object.get();
    out.push('{');
    let empty = out.len();
    let mut end = 1;
    for member in &members {
        let key = member.key();
        let span = member.span(text);
        // The comma and spacing before a member are kept or removed together with it.
        let lead = &text[end..span.start];
        end = span.end;
        let value = set.iter().find(|(name, _)| key.as_deref() == Some(*name));
        if value.is_none() && key.as_deref().is_some_and(&unwanted) {
            continue;
        }
        match lead.split_once(',').filter(|_| out.len() == empty) {
            Some((before, behind)) => out.extend([before, behind]),
            None => out.push_str(lead),
        }
        out.push_str(&text[span.start..offset(text, member.value.get())]);
        match value {
            Some((_, value)) => write(out, value),
            None => out.push_str(member.value.get()),
        }
    }
    for (name, value) in set {
        if !members.iter().any(|member| member.is(name)) {
            if out.len() > empty {
                out.push(',');
            }
            let plain = name.bytes().all(|byte| byte >= b' ' && !matches!(byte, b'"' | b'\\'));
            match plain {
                true => out.extend(["\"", name, "\""]),
                false => out.push_str(&quoted(name)),
            }
            out.push(':');
            write(out, value);
        }
    }
    out.push_str(&text[end..]);
    Ok(())
}

fn write(out: &mut String, value: &impl fmt::Display) {
    // Writing to a string does not fail.
    let _ = write!(out, "{value}");
}

/// Returns `text`, which the caller knows to be JSON, as a raw value.
pub fn raw(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("joining valid json by json's own rules gives valid json")
}

/// Returns `text` as a JSON string with its quotes.
pub fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("any text has a json form")
}

struct Member<'a> {
    quoted: &'a RawValue,
    value: &'a RawValue,
}

impl<'a> Member<'a> {
    /// Returns the key's text; returns none if its escapes have a lone surrogate.
    fn key(&self) -> Option<Cow<'a, str>> {
        let quoted = self.quoted.get();
        if quoted.contains('\\') {
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        quoted.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
    }

    fn is(&self, key: &str) -> bool {
        self.key().as_deref() == Some(key)
    }

    fn span(&self, text: &str) -> Range<usize> {
        offset(text, self.quoted.get())..offset(text, self.value.get()) + self.value.get().len()
    }
}

/// Returns where `part`, which must be a slice of `text`, begins in it.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

fn members(object: &RawValue) -> Result<Vec<Member<'_>>, NotObject> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<Member<'de>>;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((quoted, value)) = map.next_entry()? {
                members.push(Member { quoted, value });
            }
            Ok(members)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(object.get());
    deserializer.deserialize_map(Members).map_err(|_| NotObject)
}
