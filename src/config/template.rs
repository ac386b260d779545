//! The configuration file that `cairn config init` writes: every key with what it means, at its default.
//!
//! Invariants:
//! - a line that begins with `#` and no space is a setting that can be put in force by taking the `#` away;
//! - in force as it is, the file changes nothing; so do its settings, but those said to be not set by default.

/// The whole file.
pub const TEMPLATE: &str = include_str!("template.toml");
