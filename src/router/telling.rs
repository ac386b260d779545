//! What came of a call, as it is recorded, counted and told to the caller.
//!
//! Invariants:
//! - transport failures, JSON-RPC errors and `isError` results stay apart, in the log and in the answer;
//! - an error of this node's own has no part that the form of another server's answers could forbid;
//! - a hint names no tool that the caller does not have;
//! - a message never holds a secret of the input, and a caller's own text only bounded and printable.

use std::borrow::Cow;

use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    call::{EndOutcome, Fit},
    contract::secret::echo::Echoes,
    error::{Code, Refusal},
    event::body::Failure,
    router::{
        Outcome, RpcError,
        codes::{INTERNAL_ERROR, INVALID_PARAMS, RESOURCE_NOT_FOUND},
    },
    visible,
};

/// The tool that shows what followed from an event.
pub const TRACE: &str = "provenance_trace";
/// The tool that gives a tool's contract.
pub const GET_SCHEMA: &str = "tools_get_schema";
/// The key of an error of this node's own, where it stands in the metadata of an answer.
const ERROR_KEY: &str = "io.cairn/error";

/// The hint of a call without an answer that must not simply be made again; with [`TRACE`], and without it.
const LOOK_FIRST: &str = "it may have taken effect: look where the tool acts, and with provenance_trace, direction \
                          both, from the start of this call, which is the cause of its event (io.cairn/event), before \
                          calling again";
const LOOK_ELSEWHERE: &str = "it may have taken effect: look where the tool acts before calling again";

/// The place of an error of this node's own in the answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the structured content, as in the answers of all tools of this node.
    Structured,
    /// In the metadata: the structured content is the tool's own, and may have a schema that the error does not fit.
    Meta,
    /// In a JSON-RPC error: the method has no result for it.
    Rpc,
}

/// How the caller of one call is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub form: Form,
    /// Whether running the tool twice does no more than running it once.
    pub repeatable: bool,
    /// Whether the caller has [`TRACE`].
    pub traces: bool,
}

/// The form in which a caller gets the outcome of a call.
pub enum Reply {
    Result(Box<RawValue>),
    Error(RpcError),
}

/// How an outcome ends its call, and what is told of it.
pub struct Verdict {
    pub outcome: EndOutcome,
    /// What the call is counted as.
    pub label: &'static str,
    pub told: Reply,
    /// The error, if the answer is this node's own.
    pub own: Option<Refusal>,
}

/// Returns how an outcome ends the call, what it is counted as, and what the caller is told.
pub fn judge(outcome: Outcome, manner: Manner) -> Verdict {
    let failed = |failure, code| EndOutcome::Failed { failure, code };
    let theirs = |outcome, label, told| Verdict { outcome, label, told, own: None };
    let own = |outcome, label, refusal| Verdict {
        outcome,
        label,
        told: refused(&refusal, manner.form),
        own: Some(refusal),
    };
    match outcome {
        Outcome::Result { result, is_error: true } => {
            theirs(failed(Failure::Tool, None), "tool_error", Reply::Result(result))
        }
        Outcome::Result { result, is_error: false } => {
            let kind = splice::member(&result, "resultType").ok().flatten();
            let input_required = kind.is_some_and(|kind| kind.get() == "\"input_required\"");
            let outcome = EndOutcome::Succeeded { input_required, fit: Fit::Fits };
            theirs(outcome, "succeeded", Reply::Result(result))
        }
        Outcome::Rpc(error) => {
            theirs(failed(Failure::Protocol, Some(error.code)), "protocol_error", Reply::Error(*error))
        }
        Outcome::Refused(refusal) => {
            let failure = if refusal.code == Code::Internal { Failure::Internal } else { Failure::Tool };
            own(failed(failure, None), "tool_error", refusal)
        }
        Outcome::Untaken(refusal) => own(failed(Failure::Untaken, None), "transport_error", refusal),
        Outcome::Transport { message } => {
            let refusal = unanswered(Refusal::new(Code::Unavailable, message), manner);
            own(failed(Failure::Transport, None), "transport_error", refusal)
        }
        Outcome::TimedOut => {
            let refusal = Refusal::new(Code::DeadlineExceeded, "the tool did not answer in time");
            own(failed(Failure::Timeout, None), "timed_out", unanswered(refusal, manner))
        }
        Outcome::Cancelled => {
            let refusal = Refusal::new(Code::Cancelled, "the call was cancelled");
            own(EndOutcome::Cancelled, "cancelled", refusal)
        }
    }
}

/// Completes the refusal of a call without an answer: it may be made again, or the hint says what to do first.
fn unanswered(refusal: Refusal, manner: Manner) -> Refusal {
    match manner {
        Manner { repeatable: true, .. } => refusal.retryable(),
        Manner { traces: true, .. } => refusal.hint(LOOK_FIRST),
        Manner { traces: false, .. } => refusal.hint(LOOK_ELSEWHERE),
    }
}

/// Returns a refusal as its caller is told it.
pub fn refused(refusal: &Refusal, form: Form) -> Reply {
    if form != Form::Rpc {
        return Reply::Result(refusal_result(refusal, form));
    }
    let code = if refusal.code == Code::InvalidArgument { INVALID_PARAMS } else { INTERNAL_ERROR };
    let data = Some(json!({ERROR_KEY: said(refusal)}));
    Reply::Error(RpcError { data, ..RpcError::new(code, sentence(refusal)) })
}

/// Returns the error that another Cairn reports in the metadata of a result.
pub fn reported(result: &RawValue) -> Option<&RawValue> {
    splice::member(splice::member(result, "_meta").ok()??, ERROR_KEY).ok()?
}

impl Reply {
    /// Returns the text of it that is recorded.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Result(result) => result.get().into(),
            Self::Error(error) => error_text(error).into(),
        }
    }
}

/// A domain error as a tool result.
fn refusal_result(refusal: &Refusal, form: Form) -> Box<RawValue> {
    let content = json!([{"type": "text", "text": sentence(refusal)}]);
    let result = match form {
        Form::Structured => {
            let structured = json!({"success": false, "error": said(refusal)});
            json!({"content": content, "structuredContent": structured, "isError": true})
        }
        Form::Meta | Form::Rpc => {
            json!({"content": content, "isError": true, "_meta": {ERROR_KEY: said(refusal)}})
        }
    };
    splice::raw(result.to_string())
}

/// Returns a refusal as JSON.
fn said(refusal: &Refusal) -> Value {
    let mut error = json!({
        "code": refusal.code.as_str(),
        "message": refusal.message,
        "retryable": refusal.retryable,
    });
    if let Some(hint) = &refusal.hint {
        error["hint"] = json!(hint);
    }
    error
}

/// Returns a refusal as text for people and models.
fn sentence(refusal: &Refusal) -> String {
    match &refusal.hint {
        Some(hint) => format!("{}: {} ({hint})", refusal.code.as_str(), refusal.message),
        None => format!("{}: {}", refusal.code.as_str(), refusal.message),
    }
}

/// A refusal that repeats no secret of the input it is about.
pub fn silenced(refusal: Refusal, secrets: &Echoes) -> Refusal {
    let message = secrets.hidden(&refusal.message);
    Refusal { message, ..refusal }
}

pub fn error_text(error: &RpcError) -> String {
    json!({"code": error.code, "message": error.message, "data": error.data}).to_string()
}

pub fn read_error(raw: &RawValue) -> RpcError {
    let error: Value = serde_json::from_str(raw.get()).unwrap_or_default();
    RpcError {
        code: error["code"].as_i64().unwrap_or(INTERNAL_ERROR),
        message: error["message"].as_str().unwrap_or("internal error").to_owned(),
        data: error.get("data").filter(|data| !data.is_null()).cloned(),
        record: None,
    }
}

pub fn not_found(uri: &str) -> RpcError {
    RpcError {
        data: Some(json!({"uri": uri})),
        ..RpcError::new(RESOURCE_NOT_FOUND, format!("resource not found: {}", shown(uri)))
    }
}

/// Returns a caller's text as it may be shown back: bounded, without characters that act on a terminal.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !visible::acts(*c)).take(128).collect()
}
