//! Patterns: which names are meant, where a rule or a scope speaks of tools or principals.
//!
//! Invariants:
//! - `*` stands for any text, also none; every other character stands for itself;
//! - to judge a name takes no longer than the product of both lengths.

use std::sync::Arc;

/// Characters of a pattern.
const PATTERN_MAX: usize = 160;
/// The beginning of a pattern that speaks of groups and not of names.
const GROUP: &str = "group:";
/// The beginning of the scope whose rest is a pattern.
const SCOPE: &str = "tools:";
/// The characters, beside letters and digits, of which patterns are made.
const MARKS: &[u8] = b"._:/-*@";

/// A tool, as rules speak of it: by its public name, and by its group, which is its category.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub name: &'a str,
    pub group: &'a str,
}

/// A name, or a part of names, or with `group:` before it one of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Returns the pattern with this text; `None` if it has characters that no name has, or is too long.
    pub fn parse(text: &str) -> Option<Self> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || MARKS.contains(&byte);
        let whole = text.strip_prefix(GROUP).unwrap_or(text);
        let fits = !whole.is_empty() && text.len() <= PATTERN_MAX && text.bytes().all(known);
        fits.then(|| Self(format!("{SCOPE}{text}").into()))
    }

    /// Returns the pattern of principals with this text; `None` if no principal has such a name, or it is too long.
    pub fn of_principals(text: &str) -> Option<Self> {
        let fits = (1..=PATTERN_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        fits.then(|| Self(format!("{SCOPE}{text}").into()))
    }

    /// Returns whether it means this tool.
    pub fn fits(&self, tool: &Named<'_>) -> bool {
        match self.text().strip_prefix(GROUP) {
            Some(groups) => glob(groups, tool.group),
            None => glob(self.text(), tool.name),
        }
    }

    /// Returns whether it means every tool.
    pub fn fits_all(&self) -> bool {
        self.text() == "*"
    }

    /// Returns whether it means this principal.
    pub fn names(&self, principal: &str) -> bool {
        glob(self.text(), principal)
    }

    /// Returns its text.
    pub fn text(&self) -> &str {
        &self.0[SCOPE.len()..]
    }

    /// Returns the word of the scope of the tools that it means.
    pub fn scope(&self) -> &str {
        &self.0
    }
}

/// Returns whether a name fits a pattern in which `*` stands for any text.
fn glob(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
