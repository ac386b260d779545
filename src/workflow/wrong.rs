//! Why a step's inputs or a definition cannot be made out.
//!
//! Invariant: it has one of the codes that a step fails with.

use crate::error::Code;
/// Why inputs cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub code: Code,
    pub message: String,
}

impl Wrong {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
