//! Direct: a recorded tool call that stands alone and is plainly in order, answered without the library.
//!
//! The library would parse the message again, make a service for it, and run it over a transport and tasks of
//! its own: many times the work of everything else between the socket and the router.
//!
//! Invariants:
//! - what is taken here the library would take, and its answer would have the same status, headers and body;
//! - what is not plainly in order, or wants to hear of its progress, is left to the library.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use rmcp::{
    ErrorData,
    model::{ClientCapabilities, ErrorCode},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    SESSION_ID, Shared,
    answer::conclude,
    client::{Silent, to_library},
    envelope::{FIRST_STATELESS, Incoming},
    json,
    offering::has_plain_tool,
    refuse, tasks,
};
use crate::{
    mcp::era::Era,
    router::{Method, Offer},
};

/// The prefix of a name that is encoded in its header.
const ENCODED: &str = "=?";

/// Returns whether a well-formed request for `method` may be answered here.
pub fn takes(headers: &HeaderMap, method: &str, asked: &Incoming, offer: &Offer) -> bool {
    method == Method::ToolsCall.as_str()
        && asked.version.as_deref() == Some(FIRST_STATELESS)
        && only(headers, "mcp-protocol-version") == Some(FIRST_STATELESS)
        && only(headers, "mcp-method") == Some(method)
        && only(headers, "mcp-name") == Some(&asked.name)
        && !asked.name.starts_with(ENCODED)
        && !headers.contains_key(SESSION_ID)
        && !headers.contains_key("last-event-id")
        && is_json(headers)
        && accepts_both(headers)
        && asked.meta.progress_token.is_none()
        && asked.log_level.is_none()
        && !tasks::declares(asked)
        && asked.capabilities.as_ref().is_some_and(|given| ClientCapabilities::deserialize(given).is_ok())
        && has_plain_tool(offer, &asked.name)
}

/// Runs the call that [`takes`] took. Dropping this midway cancels it, and so does shutdown.
pub async fn answer(shared: &Shared, asked: &Incoming, id: &str) -> Response<Body> {
    let client = Silent { audience: asked.audience() };
    let request = asked.request(Method::ToolsCall, Arc::new(client), CancellationToken::new());
    let call = shared.router.call(request);
    let Some(answer) = shared.settings.shutdown.run_until_cancelled(call).await else {
        let message = "the server is stopping, and the call was cancelled";
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, id, message);
    };
    let mut out = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#);
    let status = match conclude(&mut out, answer, Era::Stateless, None).map_err(to_library) {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            let told = serde_json::to_string(&error).expect("text, numbers and JSON values are printable");
            out = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{told}"#);
            status(&error)
        }
    };
    out.push('}');
    json(status, out.into_bytes())
}

/// Returns the HTTP status of an error, as the library does for requests with complete metadata.
fn status(error: &ErrorData) -> StatusCode {
    match error.code {
        ErrorCode::UNSUPPORTED_PROTOCOL_VERSION
        | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY
        | ErrorCode::HEADER_MISMATCH => StatusCode::BAD_REQUEST,
        ErrorCode::METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
        _ => StatusCode::OK,
    }
}

/// Returns a header's value, if it is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok())?
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = only(headers, header::CONTENT_TYPE.as_str());
    kind.and_then(|kind| kind.split(';').next()).is_some_and(|kind| kind.trim() == "application/json")
}

/// Returns whether `Accept` names both kinds of answer, without weights or quotes that need parsing.
fn accepts_both(headers: &HeaderMap) -> bool {
    only(headers, header::ACCEPT.as_str()).filter(|accept| !accept.contains([';', '"'])).is_some_and(
        |accept| {
            let names = |kind| accept.split(',').any(|named| named.trim() == kind);
            names("application/json") && names("text/event-stream")
        },
    )
}
