//! Outcomes: what came of running something, before anybody judges it.
//!
//! Invariant: three failures stay apart: those of the transport, those of the protocol, and those that a tool claims.

use serde_json::value::RawValue;

use crate::{block::splice, error::Refusal, router::RpcError};

/// What came of running something: three failures stay apart (transport, JSON-RPC error, `isError`).
#[derive(Debug)]
pub enum Outcome {
    /// A result object. `is_error` is the tool's own claim.
    Result {
        result: Box<RawValue>,
        is_error: bool,
    },
    /// The tool's server answered with a JSON-RPC error.
    Rpc(Box<RpcError>),
    /// The rules of the tool itself forbid it: a domain error, told as a tool error.
    Refused(Refusal),
    /// Nobody accepted the request, for this reason: nothing ran.
    Untaken(Refusal),
    /// The tool's server died or broke the protocol: it may have begun.
    Transport {
        message: String,
    },
    TimedOut,
    Cancelled,
}

impl Outcome {
    /// Makes an outcome from a tool's result, whose `isError` says whether it failed.
    pub fn of_result(result: Box<RawValue>) -> Self {
        let claim = splice::member(&result, "isError").ok().flatten();
        let is_error = claim.is_some_and(|claim| claim.get() == "true");
        Self::Result { result, is_error }
    }

    /// Merges this try with an earlier one. If the earlier try may have started the tool, that stays the outcome even
    /// if nobody accepted this one.
    pub fn after(self, before: Option<Self>) -> Self {
        match (self, before) {
            (Self::Untaken(_), Some(begun @ (Self::Transport { .. } | Self::TimedOut))) => begun,
            (now, _) => now,
        }
    }

    /// Returns whether another try may succeed: the call failed on its way to the tool, not in it.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Transport { .. } => true,
            Self::Untaken(refusal) => refusal.retryable,
            Self::Result { .. } | Self::Rpc(_) | Self::Refused(_) | Self::TimedOut | Self::Cancelled => false,
        }
    }
}
