//! Wrapped: JSON-RPC as some peers write it, `{type, method, params, id, result, error, sender, timestamp}`.
//!
//! Invariants:
//! - who speaks is what the connection has proven: a `sender` is neither read nor written;
//! - what is not wrapped is left alone, and what is becomes no more than it says.

use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use crate::block::splice::raw;

/// The beginning of most messages that are not wrapped.
const PLAIN: &[u8] = br#"{"jsonrpc""#;
/// The code of an error that came as text alone.
const CODE: i64 = -32_000;

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    jsonrpc: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    method: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
}

/// The part of a JSON-RPC error that a wrapped one has.
#[derive(Deserialize)]
struct WrappedError<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
}

/// Returns the JSON-RPC message in a wrapped one, or `None` if the frame is not wrapped.
pub fn unwrap(frame: &[u8]) -> Option<Vec<u8>> {
    if frame.starts_with(PLAIN) {
        return None;
    }
    let message: Message = serde_json::from_slice(frame).ok()?;
    if message.jsonrpc.is_some() || message.kind.is_none() {
        return None;
    }
    let text = message.error.and_then(|error| serde_json::from_str::<String>(error.get()).ok());
    let error = text.map(|message| raw(json!({"code": CODE, "message": message}).to_string()));
    let error = error.as_deref().or(message.error);
    // What is null in a message of the other kind is not there.
    let nothing = raw("null".to_owned());
    let (result, error) = match (message.method, error) {
        (Some(_), _) => (None, None),
        (None, Some(error)) => (None, Some(error)),
        (None, None) => (message.result.or(Some(&nothing)), None),
    };
    let plain = Message { jsonrpc: Some("2.0".to_owned()), kind: None, result, error, ..message };
    serde_json::to_vec(&plain).ok()
}

/// Returns a JSON-RPC message in wrapped form. Of an error only its text is kept.
pub fn wrap(message: &[u8]) -> Option<Vec<u8>> {
    let message: Message = serde_json::from_slice(message).ok()?;
    let kind = match (message.method, message.id, message.error) {
        (Some(_), Some(_), _) => "request",
        (Some(_), None, _) => "notification",
        (None, _, Some(_)) => "error",
        (None, _, None) => "response",
    };
    let told = message.error.and_then(|error| serde_json::from_str::<WrappedError>(error.get()).ok());
    let error = told.map(|told| told.message).or(message.error);
    serde_json::to_vec(&Message { jsonrpc: None, kind: Some(kind.to_owned()), error, ..message }).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::runtime::upstream::wrapped::*;

    fn check(turn: impl Fn(&[u8]) -> Option<Vec<u8>>, message: &Value, expected: impl Into<Option<Value>>) {
        let turned = turn(message.to_string().as_bytes());
        let turned = turned.map(|turned| serde_json::from_slice::<Value>(&turned).expect("it is JSON"));
        assert_eq!(turned, expected.into(), "{message}");
    }

    #[test]
    fn what_is_wrapped_is_json_rpc_inside() {
        let nulls = json!({"result": null, "error": null, "sender": "12D3KooWsomebody", "timestamp": 1.5});
        let wrapped = |mut message: Value| {
            for (key, value) in nulls.as_object().into_iter().flatten() {
                if message.get(key).is_none() {
                    message[key] = value.clone();
                }
            }
            message
        };
        for (message, expected) in [
            (
                json!({"type": "request", "method": "ping", "params": {"a": 1}, "id": "x"}),
                json!({"jsonrpc": "2.0", "id": "x", "method": "ping", "params": {"a": 1}}),
            ),
            (
                json!({"type": "notification", "method": "n", "params": null, "id": null}),
                json!({"jsonrpc": "2.0", "method": "n"}),
            ),
            (
                json!({"type": "response", "id": 7, "result": {"ok": 1.50}}),
                json!({"jsonrpc": "2.0", "id": 7, "result": {"ok": 1.50}}),
            ),
            (json!({"type": "response", "id": 7}), json!({"jsonrpc": "2.0", "id": 7, "result": null})),
            (
                json!({"type": "error", "id": 7, "error": "it \"broke\""}),
                json!({"jsonrpc": "2.0", "id": 7, "error": {"code": -32_000, "message": "it \"broke\""}}),
            ),
            (
                json!({"type": "error", "id": 7, "error": {"code": 1, "message": "m"}}),
                json!({"jsonrpc": "2.0", "id": 7, "error": {"code": 1, "message": "m"}}),
            ),
        ] {
            check(unwrap, &wrapped(message), expected);
        }
        for plain in [
            json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}),
            json!({"type": "request", "jsonrpc": "2.0", "id": 1, "method": "ping"}),
            json!({"id": 1, "method": "ping"}),
            json!({"type": 7, "id": 1, "method": "ping"}),
            json!([1]),
        ] {
            check(unwrap, &plain, None);
        }
        assert_eq!(unwrap(br#"{"type":"request","id":1,"id":2,"method":"ping"}"#), None);
    }

    #[test]
    fn an_answer_is_wrapped_as_its_question_was() {
        for (message, expected) in [
            (
                json!({"jsonrpc": "2.0", "id": "x", "result": {"a": 1.50}}),
                json!({"type": "response", "id": "x", "result": {"a": 1.50}}),
            ),
            (
                json!({"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "no", "data": {}}}),
                json!({"type": "error", "id": 1, "error": "no"}),
            ),
            (
                json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}),
                json!({"type": "request", "id": 1, "method": "ping", "params": {}}),
            ),
            (json!({"jsonrpc": "2.0", "method": "n"}), json!({"type": "notification", "method": "n"})),
        ] {
            check(wrap, &message, expected);
        }
    }
}
