//! Findings: what was looked at, whether it is well, and what to do where it is not.
//!
//! Invariant: what is not well says what to do.

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub what: String,
    pub level: Level,
    pub said: String,
    pub todo: Option<String>,
}

impl Finding {
    pub fn ok(what: &str, said: impl Into<String>) -> Self {
        Self { what: what.to_owned(), level: Level::Ok, said: said.into(), todo: None }
    }

    pub fn warn(what: &str, said: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: Level::Warn, todo: Some(todo.into()), ..Self::ok(what, said) }
    }

    pub fn fail(what: &str, said: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { level: Level::Fail, todo: Some(todo.into()), ..Self::ok(what, said) }
    }

    /// Returns the finding as JSON.
    pub fn shown(&self) -> Value {
        json!({"what": self.what, "level": self.level.as_str(), "said": self.said, "todo": self.todo})
    }
}
