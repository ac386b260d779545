//! Logs: which log lines a client wants.
//!
//! Invariant: a level that is not known is never wanted.

use serde_json::Value;

use crate::router::standing::{LEVELS, rank};

/// Which log lines the client wants.
#[derive(Clone, Copy, Debug)]
pub enum Logs {
    None,
    All,
    /// Lines from this index in [`LEVELS`] on.
    From(usize),
}

impl Logs {
    pub fn from_level(level: &str) -> Option<Self> {
        rank(level).map(Self::From)
    }

    /// Returns the name of the least severe level that is wanted, if any is.
    pub fn level(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::All => LEVELS.first().copied(),
            Self::From(least) => LEVELS.get(least).copied(),
        }
    }

    /// Returns whether a log message with these params is wanted.
    pub fn take(self, params: &Value) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::From(least) => params["level"].as_str().and_then(rank).is_some_and(|level| level >= least),
        }
    }
}
