//! Attempts at tasks that are calls: how the call's outcome ends the attempt.
//!
//! Invariants:
//! - an attempt says whether its effect is unknown; if it is, only a repeatable task is tried again.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    block::splice,
    error::Code,
    ledger::work::Attempt,
    router::{Outcome, codes::INVALID_PARAMS, telling::reported},
};

/// An attempt at a task that a call makes; it ends with the call.
#[derive(Debug)]
pub struct Trial {
    pub worker: String,
    pub task: String,
    pub fence: u64,
    /// Whether the call's ending is on record, and the attempt's with it.
    pub ended: AtomicBool,
    /// Whether the attempt should stop, because its task is being cancelled or has ended without it.
    pub over: AtomicBool,
}

impl Trial {
    /// Returns how the attempt ends after this outcome, or `None` if a later start ends it.
    pub(super) fn attempt(&self, outcome: &Outcome) -> Option<Attempt> {
        let (code, retryable, unknown) = match outcome {
            Outcome::Result { is_error: false, .. } => (Code::Internal, false, false),
            Outcome::Result { is_error: true, result } => {
                let (code, retryable) = said(result);
                (code, retryable, false)
            }
            Outcome::Rpc(error) if error.code == INVALID_PARAMS => (Code::InvalidArgument, false, false),
            Outcome::Rpc(_) => (Code::Internal, true, false),
            Outcome::Refused(refusal) => (refusal.code, refusal.retryable, false),
            Outcome::Untaken(refusal) => (refusal.code, refusal.retryable, false),
            Outcome::Transport { .. } => (Code::Unavailable, true, true),
            Outcome::TimedOut => (Code::DeadlineExceeded, true, true),
            Outcome::Cancelled if self.over.load(Ordering::Acquire) => (Code::Cancelled, false, true),
            // The node stops: the next start ends the attempt.
            Outcome::Cancelled => return None,
        };
        Some(Attempt {
            worker: self.worker.clone(),
            task: self.task.clone(),
            fence: self.fence,
            code: code.as_str().to_owned(),
            retryable,
            unknown,
        })
    }
}

/// Reads an `isError` result in the form of this node's own tools, or of another node's gateway: a code, and whether
/// another attempt may help. A tool that says neither may be tried again.
fn said(result: &RawValue) -> (Code, bool) {
    let structured = || splice::member(result, "structuredContent").ok().flatten();
    let error = reported(result)
        .or_else(|| structured().and_then(|content| splice::member(content, "error").ok().flatten()));
    let error: Value = error.and_then(|error| serde_json::from_str(error.get()).ok()).unwrap_or_default();
    let code = Code::deserialize(&error["code"]).unwrap_or(Code::Internal);
    (code, error["retryable"].as_bool().unwrap_or(true))
}
