//! Strict checks of JSON from outside, and DAG-JSON for showing blocks.
//!
//! Invariants:
//! - text that [`check`] accepts has no duplicate keys, no lone surrogates and no infinite numbers, on which readers
//!   are known to disagree (RFC 8259, sections 4, 6 and 8.2), and no key that our own parser reserves;
//! - [`check`] builds no tree and does not recurse, so no text exhausts the stack.

use std::{borrow::Cow, collections::HashMap};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use ipld_core::ipld::Ipld;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::block::Cid;

/// Arrays and objects nest at most this deep; the outermost is at depth 1.
pub const DEPTH_MAX: usize = 64;

/// An object with at most this many keys is compared pair by pair. A larger one is sorted.
const PAIRWISE_MAX: usize = 8;
/// A whole number with fewer digits than this is finite as a 64-bit float, whose largest value has 309 digits.
const FINITE_DIGITS: usize = 300;

/// `serde_json` takes an object with this key for a raw value, so text from outside must not have it.
const RESERVED_KEY: &str = "$serde_json::private::RawValue";

/// Says why text is not strict JSON, and at which byte.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    #[error("not json at byte {at}")]
    Syntax { at: usize },
    #[error("not utf-8 at byte {at}")]
    Utf8 { at: usize },
    #[error("lone surrogate in an escape at byte {at}")]
    Surrogate { at: usize },
    #[error("nested deeper than 64 levels at byte {at}")]
    Depth { at: usize },
    #[error("key stands twice in one object at byte {at}")]
    DuplicateKey { at: usize },
    #[error("key at byte {at} is reserved")]
    ReservedKey { at: usize },
    #[error("more text after the value at byte {at}")]
    Trailing { at: usize },
    #[error("malformed or infinite number at byte {at}")]
    Number { at: usize },
}

/// Checks that `bytes` are one value of strict JSON. Numbers are not bounded to those that are exact as 64-bit floats.
pub fn check(bytes: &[u8]) -> Result<(), Fault> {
    std::str::from_utf8(bytes).map_err(|err| Fault::Utf8 { at: err.valid_up_to() })?;
    let mut checker = Checker { text: bytes, at: 0, open: Vec::new(), keys: Vec::new() };
    checker.run()
}

enum Open {
    Array,
    /// `Checker::keys` holds the keys of this object from this index on.
    Object {
        first_key: usize,
    },
}

struct Checker<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Open>,
    /// Holds the unescaped keys of all open objects, and the byte where each begins.
    keys: Vec<(Cow<'a, [u8]>, usize)>,
}

impl<'a> Checker<'a> {
    fn run(&mut self) -> Result<(), Fault> {
        loop {
            self.skip_space();
            let at = self.at;
            match self.peek() {
                Some(b'{') => {
                    self.enter(Open::Object { first_key: self.keys.len() })?;
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.enter(Open::Array)?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word(b"true")?,
                Some(b'f') => self.word(b"false")?,
                Some(b'n') => self.word(b"null")?,
                _ => return Err(Fault::Syntax { at }),
            }
            if self.leave()? {
                return Ok(());
            }
        }
    }

    /// Moves from the end of a value to the start of the next one. Returns true if the text ends instead.
    fn leave(&mut self) -> Result<bool, Fault> {
        loop {
            self.skip_space();
            let at = self.at;
            let Some(open) = self.open.last() else {
                return match self.peek() {
                    None => Ok(true),
                    Some(_) => Err(Fault::Trailing { at }),
                };
            };
            match (open, self.peek()) {
                (Open::Array, Some(b',')) => {
                    self.at += 1;
                    return Ok(false);
                }
                (Open::Object { .. }, Some(b',')) => {
                    self.at += 1;
                    self.skip_space();
                    self.key()?;
                    return Ok(false);
                }
                (Open::Array, Some(b']')) => {}
                (&Open::Object { first_key }, Some(b'}')) => {
                    check_unique(&mut self.keys[first_key..])?;
                    self.keys.truncate(first_key);
                }
                _ => return Err(Fault::Syntax { at }),
            }
            self.at += 1;
            self.open.pop();
        }
    }

    fn enter(&mut self, open: Open) -> Result<(), Fault> {
        if self.open.len() == DEPTH_MAX {
            return Err(Fault::Depth { at: self.at });
        }
        self.open.push(open);
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    /// Reads a key and its colon.
    fn key(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(Fault::Syntax { at: start });
        }
        let text = self.text;
        let key = match self.string()? {
            false => Cow::Borrowed(&text[start + 1..self.at - 1]),
            true => {
                let key: String =
                    serde_json::from_slice(&text[start..self.at]).expect("the string has just been checked");
                Cow::Owned(key.into_bytes())
            }
        };
        if *key == *RESERVED_KEY.as_bytes() {
            return Err(Fault::ReservedKey { at: start });
        }
        self.keys.push((key, start));
        self.skip_space();
        self.word(b":")
    }

    /// Reads a string. Returns whether it has escapes.
    fn string(&mut self) -> Result<bool, Fault> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.at += plain_len(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    self.escape()?;
                    escaped = true;
                }
                _ => return Err(Fault::Syntax { at: self.at }),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let at = self.at;
        match self.text.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                Ok(())
            }
            Some(b'u') => match self.unit()? {
                0xd800..=0xdbff if self.text[self.at..].starts_with(b"\\u") => match self.unit()? {
                    0xdc00..=0xdfff => Ok(()),
                    _ => Err(Fault::Surrogate { at }),
                },
                0xd800..=0xdfff => Err(Fault::Surrogate { at }),
                _ => Ok(()),
            },
            _ => Err(Fault::Syntax { at }),
        }
    }

    /// Returns the UTF-16 code unit of a `\u` escape.
    fn unit(&mut self) -> Result<u32, Fault> {
        let at = self.at;
        let digits = self.text.get(at + 2..at + 6).ok_or(Fault::Syntax { at })?;
        self.at += 6;
        digits.iter().try_fold(0, |unit, digit| {
            let digit = char::from(*digit).to_digit(16);
            digit.map(|digit| unit << 4 | digit).ok_or(Fault::Syntax { at })
        })
    }

    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let fault = Fault::Number { at: start };
        self.at += usize::from(self.peek() == Some(b'-'));
        let leading_zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || leading_zero && whole > 1 {
            return Err(fault);
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(fault);
            }
        }
        let exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return Err(fault);
            }
        }
        if exponent || whole > FINITE_DIGITS {
            let text = std::str::from_utf8(&self.text[start..self.at]);
            let value: Option<f64> = text.ok().and_then(|text| text.parse().ok());
            return value.filter(|v| v.is_finite()).map(|_| ()).ok_or(fault);
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let rest = &self.text[self.at..];
        let count = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += count;
        count
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Fault> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Fault::Syntax { at: self.at });
        }
        self.at += word.len();
        Ok(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

/// Returns how many bytes of a string come before the next quote, backslash or control character. Chunks of 16 are
/// tested as a whole, which compiles to vector code.
fn plain_len(text: &[u8]) -> usize {
    const STRIDE: usize = 16;
    let special = |byte: &u8| (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    let strides = text.chunks_exact(STRIDE);
    let plain = strides.take_while(|stride| !stride.iter().fold(false, |any, byte| any | special(byte)));
    let start = plain.count() * STRIDE;
    let end = text[start..].iter().position(special);
    end.map_or(text.len(), |end| start + end)
}

/// Checks that all keys differ. Large objects are sorted, which is never quadratic and, unlike hashing, not open to
/// chosen collisions.
fn check_unique(keys: &mut [(Cow<'_, [u8]>, usize)]) -> Result<(), Fault> {
    let twice = if keys.len() <= PAIRWISE_MAX {
        let pairs = (1..keys.len()).flat_map(|later| (0..later).map(move |first| (first, later)));
        pairs
            .into_iter()
            .find(|(first, later)| keys[*first].0 == keys[*later].0)
            .map(|(_, later)| keys[later].1)
    } else {
        keys.sort_unstable();
        let same = keys.windows(2).find(|pair| pair[0].0 == pair[1].0);
        same.map(|pair| pair[1].1)
    };
    twice.map_or(Ok(()), |at| Err(Fault::DuplicateKey { at }))
}

/// Serializes a block as DAG-JSON: a link is `{"/": cid}`, bytes are `{"/": {"bytes": base64}}`, and keys are in byte
/// order.
///
/// An integer below -2^63 is written as the nearest float, because `serde_json` has no such integers.
pub struct Dag<'a>(pub &'a Ipld);

/// Serializes a CID as a link in DAG-JSON.
pub struct Link(pub Cid);

/// Serializes a CID as its text.
pub struct Text(pub Cid);

impl Serialize for Dag<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Ipld::Null => serializer.serialize_unit(),
            Ipld::Bool(flag) => serializer.serialize_bool(*flag),
            Ipld::Integer(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => serializer.serialize_u64(number),
                (_, Ok(number)) => serializer.serialize_i64(number),
                _ => serializer.serialize_f64(*number as f64),
            },
            Ipld::Float(number) => serializer.serialize_f64(*number),
            Ipld::String(text) => serializer.serialize_str(text),
            Ipld::Bytes(bytes) => {
                let text = BASE64_STANDARD_NO_PAD.encode(bytes);
                serializer.collect_map([("/", HashMap::from([("bytes", text)]))])
            }
            Ipld::List(items) => serializer.collect_seq(items.iter().map(Dag)),
            Ipld::Map(entries) => {
                serializer.collect_map(entries.iter().map(|(key, value)| (key, Dag(value))))
            }
            Ipld::Link(cid) => serializer.collect_map([("/", cid.to_string())]),
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([("/", Text(self.0))])
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Returns DAG-JSON as a value.
pub fn dag(ipld: &Ipld) -> Value {
    serde_json::to_value(Dag(ipld)).expect("dag-json has text keys and no failing values")
}

/// Returns DAG-JSON as text without spaces.
pub fn dag_text(ipld: &Ipld) -> String {
    serde_json::to_string(&Dag(ipld)).expect("dag-json has text keys and no failing values")
}

#[cfg(test)]
mod tests;
