//! Logs: which log lines a client wants.
//!
//! Invariant: a level that is not known is never wanted.

use serde_json::Value;

/// Log levels, least severe first (RFC 5424).
const LEVELS: &[&str] = &["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

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
        LEVELS.iter().position(|known| *known == level).map(Self::From)
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
            Self::From(least) => params["level"]
                .as_str()
                .and_then(|level| LEVELS.iter().position(|known| *known == level))
                .is_some_and(|level| level >= least),
        }
    }
}
