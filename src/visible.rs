//! Foreign text as people see it: on a terminal, in a log line, in a picture.
//!
//! Invariants:
//! - what could move a cursor, begin a line, change colours or turn the direction of writing is shown as an
//!   escape, whoever wrote it;
//! - a JSON document keeps its value: its escapes are JSON's own.

use std::borrow::Cow;

/// Returns whether a character does something else than being seen: control characters (C0, DEL, C1), marks and
/// overrides of direction, separators of lines, invisible tags. The joiners of scripts and emoji are none.
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Returns a text as one line that can be printed.
pub fn line(text: &str) -> Cow<'_, str> {
    match text.contains(acts) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(escaped(text)),
    }
}

fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match acts(c) {
            true if c.is_ascii() => shown.extend(c.escape_default()),
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// Returns a JSON document of the same value that can be printed. Line breaks, which only stand between its parts, stay.
pub fn json(document: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && acts(c);
    if !document.contains(acts) {
        return Cow::Borrowed(document);
    }
    let mut escaped = String::with_capacity(document.len() + 64);
    for c in document.chars() {
        match acts(c) {
            true => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    escaped += &format!("\\u{unit:04x}");
                }
            }
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_who_reads_it() {
        for (text, expected) in [
            ("plain, längerer, 日本語, 👩‍👧, नमस्ते", "plain, längerer, 日本語, 👩‍👧, नमस्ते"),
            ("\u{1b}[2Jcleared", r"\u{1b}[2Jcleared"),
            ("a\nb\r\tc\u{7f}", r"a\nb\r\tc\u{7f}"),
            ("\u{9b}31mC1\u{90}", r"\u{9b}31mC1\u{90}"),
            ("user\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}", r"user\u{202e}gpj.exe\u{2066}x\u{2069}\u{200f}"),
            ("\u{2028}\u{feff}\u{e0041}", r"\u{2028}\u{feff}\u{e0041}"),
        ] {
            assert_eq!(line(text), expected);
        }
    }

    #[test]
    fn a_document_keeps_its_value() {
        let value = serde_json::json!({"a\u{9b}": "\u{1b}[0m \u{202e} \u{e0041} é"});
        for document in [value.to_string(), format!("{value:#}")] {
            let shown = json(&document);
            assert!(!shown.contains(|c| c != '\n' && acts(c)), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("json"), value);
        }
    }
}
