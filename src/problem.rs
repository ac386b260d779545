//! Errors on the wire: problem details (RFC 9457), and JSON-RPC errors for `/mcp`.
//!
//! Invariants:
//! - a fault of ours is logged once, with its chain; outside there is its id and nothing else.

use std::{any::Any, error::Error, fmt::Write};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json as value};
use uuid::Uuid;

use crate::{
    block::json,
    router::codes::{INVALID_REQUEST, PARSE_ERROR},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A problem of the plain type: `title` is the same for all of its kind, `detail` tells of this one.
pub fn problem(status: StatusCode, title: &str, detail: &str) -> Response {
    problem_with(status, title, detail, &Value::Null)
}

/// The same, with members of its own for programs.
pub fn problem_with(status: StatusCode, title: &str, detail: &str, more: &Value) -> Response {
    let mut body =
        value!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    for (name, member) in more.as_object().into_iter().flatten() {
        body[name] = member.clone();
    }
    typed(status, PROBLEM_JSON, &body)
}

/// Logs a fault of ours with all its causes, and answers with its id.
pub fn internal(err: &(dyn Error + 'static)) -> Response {
    let mut chain = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(chain, ": {cause}");
        source = cause.source();
    }
    fault(&chain)
}

/// The same for a panic, of which there is only what it said.
pub fn panicked(panic: &(dyn Any + Send)) -> Response {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    fault(&format!("panic: {}", said.unwrap_or("of another type")))
}

/// An answer in JSON.
pub fn answer(status: StatusCode, body: &Value) -> Response {
    typed(status, JSON, body)
}

/// A JSON-RPC error that answers no request in particular: its id could not be read.
pub fn rpc_problem(status: StatusCode, code: i64, message: &str) -> Response {
    let error = value!({"code": code, "message": message});
    answer(status, &value!({"jsonrpc": "2.0", "id": null, "error": error}))
}

/// The JSON-RPC code of bytes that are not strict JSON: what is not JSON cannot be parsed; what is, but not the
/// strict kind, is no request.
pub fn json_code(fault: &json::Fault) -> i64 {
    match fault {
        json::Fault::Syntax { .. }
        | json::Fault::Utf8 { .. }
        | json::Fault::Surrogate { .. }
        | json::Fault::Trailing { .. } => PARSE_ERROR,
        json::Fault::Depth { .. }
        | json::Fault::DuplicateKey { .. }
        | json::Fault::ReservedKey { .. }
        | json::Fault::Number { .. } => INVALID_REQUEST,
    }
}

fn typed(status: StatusCode, content_type: HeaderValue, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, content_type)], body.to_string()).into_response()
}

fn fault(chain: &str) -> Response {
    let id = Uuid::now_v7();
    tracing::error!(%id, err = chain, "request failed");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "internal error", &format!("fault {id}"))
}
