//! Pictures of runs and of walks through the log: Mermaid, DOT and SVG.
//!
//! Invariants:
//! - the functions are pure: they draw what they are given and read nothing else;
//! - text of users is quoted, so that none of it becomes markup.

pub mod run;
pub mod svg;
pub mod walk;

use std::fmt::Write;

use crate::visible;

/// A language with strings in double quotes.
enum Tongue {
    Dot,
    Mermaid,
}

/// Escapes text for a string in double quotes. A `\n` becomes the language's line break.
fn quoted(text: &str, tongue: &Tongue) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        match (c, tongue) {
            ('\n', Tongue::Dot) => quoted += "\\n",
            ('\n', Tongue::Mermaid) => quoted += "<br/>",
            ('"' | '\\', Tongue::Dot) => quoted.extend(['\\', c]),
            ('&', Tongue::Dot) => quoted += "&amp;",
            ('"' | '\\' | '<' | '>' | '&' | '#' | '`' | '%' | ';' | '{' | '}', Tongue::Mermaid) => {
                // Writing to a string cannot fail.
                let _ = write!(quoted, "#{};", u32::from(c));
            }
            (c, _) if visible::acts(c) => quoted.push(' '),
            (c, _) => quoted.push(c),
        }
    }
    quoted
}
