//! Whole numbers from outside: one way to read them, whichever door they come in by.
//!
//! Invariants:
//! - a number that is read here fits 63 bits, so that every store can hold it;
//! - what does not fit is refused with the bounds, and is never cut, rounded or wrapped.

use serde::{Deserialize, Deserializer, de::Error};

/// The largest whole number that is taken from outside.
pub const MAX: u64 = i64::MAX as u64;
/// What is expected, as errors say it.
pub const EXPECTED: &str = "a whole number from 0 to 9223372036854775807";

/// Parses the digits of a whole number. Errors: what was expected.
pub fn parse(text: &str) -> Result<u64, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= MAX).ok_or(EXPECTED)
}

/// Reads a field that may be absent; for `#[serde(default, deserialize_with = ...)]`.
pub fn optional<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
    Option::<u64>::deserialize(source)?.map(bounded).transpose()
}

/// Reads a field that must be there.
pub fn required<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
    bounded(u64::deserialize(source)?)
}

fn bounded<E: Error>(number: u64) -> Result<u64, E> {
    match number <= MAX {
        true => Ok(number),
        false => Err(E::custom(format!("expected {EXPECTED}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_up_to_63_bits_and_nothing_else_is() {
        for (text, number) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("9223372036854775807", Some(MAX)),
            ("9223372036854775808", None),
            ("18446744073709551615", None),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            (" 1", None),
            ("1.0", None),
            ("1e3", None),
        ] {
            assert_eq!(parse(text).ok(), number, "{text}");
        }
    }

    #[test]
    fn fields_are_read_the_same_way() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Asked {
            #[serde(default, deserialize_with = "optional")]
            seq: Option<u64>,
        }
        let read = |text: &str| serde_json::from_str::<Asked>(text).ok().map(|asked| asked.seq);
        assert_eq!(read("{}"), Some(None));
        assert_eq!(read(r#"{"seq":null}"#), Some(None));
        assert_eq!(read(r#"{"seq":9223372036854775807}"#), Some(Some(MAX)));
        for text in ["9223372036854775808", "18446744073709551616", "-1", "1.5", "\"1\"", "1e400"] {
            assert_eq!(read(&format!(r#"{{"seq":{text}}}"#)), None, "{text}");
        }
    }
}
