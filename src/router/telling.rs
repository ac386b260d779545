//! What came of a call, as it is recorded, counted and told to the caller.
//!
//! Invariants:
//! - transport failures, JSON-RPC errors and `isError` results stay apart, in the log and in the answer;
//! - a message never holds a secret of the input, and a caller's own text only bounded and printable.

use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    call::EndOutcome,
    contract::secret::echo::Echoes,
    error::{Code, Refusal},
    event::body::Failure,
    router::{
        Outcome, RpcError,
        codes::{INTERNAL_ERROR, RESOURCE_NOT_FOUND},
    },
};

/// The hint of a call without an answer that must not simply be made again.
const LOOK_FIRST: &str = "it may have taken effect: look where the tool acts, and with provenance_trace, direction \
                          both, from the start of this call, which is the cause of its event (io.cairn/event), before \
                          calling again";

/// The form in which a caller gets the outcome of a call.
pub enum Reply {
    Result(Box<RawValue>),
    Error(RpcError),
}

/// Returns how an outcome ends the call, what it is counted as, and what the caller is told. `repeatable` says
/// whether running the tool twice does no more than running it once.
pub fn judge(outcome: Outcome, repeatable: bool) -> (EndOutcome, &'static str, Reply) {
    let failed = |failure, code| EndOutcome::Failed { failure, code };
    let told = |refusal| Reply::Result(refusal_result(&refusal));
    match outcome {
        Outcome::Result { result, is_error: true } => {
            (failed(Failure::Tool, None), "tool_error", Reply::Result(result))
        }
        Outcome::Result { result, is_error: false } => {
            let kind = splice::member(&result, "resultType").ok().flatten();
            let input_required = kind.is_some_and(|kind| kind.get() == "\"input_required\"");
            (EndOutcome::Succeeded { input_required }, "succeeded", Reply::Result(result))
        }
        Outcome::Rpc(error) => {
            (failed(Failure::Protocol, Some(error.code)), "protocol_error", Reply::Error(*error))
        }
        Outcome::Refused(refusal) => {
            let failure = if refusal.code == Code::Internal { Failure::Internal } else { Failure::Tool };
            (failed(failure, None), "tool_error", Reply::Result(refusal_result(&refusal)))
        }
        Outcome::Untaken(refusal) => (failed(Failure::Untaken, None), "transport_error", told(refusal)),
        Outcome::Transport { message } => {
            let refusal = unanswered(Refusal::new(Code::Unavailable, message), repeatable);
            (failed(Failure::Transport, None), "transport_error", told(refusal))
        }
        Outcome::TimedOut => {
            let refusal = Refusal::new(Code::DeadlineExceeded, "the tool did not answer in time");
            (failed(Failure::Timeout, None), "timed_out", told(unanswered(refusal, repeatable)))
        }
        Outcome::Cancelled => {
            let refusal = Refusal::new(Code::Cancelled, "the call was cancelled");
            (EndOutcome::Cancelled, "cancelled", told(refusal))
        }
    }
}

/// Completes the refusal of a call without an answer: it may be made again, or the hint says what to do first.
fn unanswered(refusal: Refusal, again: bool) -> Refusal {
    if again { refusal.retryable() } else { refusal.hint(LOOK_FIRST) }
}

/// A domain error as a tool result.
pub fn refusal_result(refusal: &Refusal) -> Box<RawValue> {
    let mut error = json!({
        "code": refusal.code.as_str(),
        "message": refusal.message,
        "retryable": refusal.retryable,
    });
    if let Some(hint) = &refusal.hint {
        error["hint"] = json!(hint);
    }
    let text = match &refusal.hint {
        Some(hint) => format!("{}: {} ({hint})", refusal.code.as_str(), refusal.message),
        None => format!("{}: {}", refusal.code.as_str(), refusal.message),
    };
    let result = json!({
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"success": false, "error": error},
        "isError": true,
    });
    splice::raw(result.to_string())
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

/// Returns a caller's text as it may be shown back: bounded, without control characters.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}
