//! Errors by who can act: refusals with a code and a hint for the caller, and the text of a fault with its causes.
//!
//! Invariant: the list of codes is closed; a code says what the caller can do about it.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Why the rules forbid what was asked: one of the closed list of codes, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    pub retryable: bool,
    pub hint: Option<String>,
}

words! {
    /// The closed list of domain error codes.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Code {
        InvalidArgument = "invalid_argument",
        NotFound = "not_found",
        AlreadyExists = "already_exists",
        Conflict = "conflict",
        FailedPrecondition = "failed_precondition",
        PermissionDenied = "permission_denied",
        ResourceExhausted = "resource_exhausted",
        DeadlineExceeded = "deadline_exceeded",
        Cancelled = "cancelled",
        Unavailable = "unavailable",
        Internal = "internal",
    }
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retryable: false, hint: None }
    }

    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// An error and its causes, joined with colons in one line.
pub fn chain(err: &dyn Error) -> String {
    Chain(err).to_string()
}

/// The same, for a field of a log line.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(err) = source {
            write!(f, ": {err}")?;
            source = err.source();
        }
        Ok(())
    }
}
