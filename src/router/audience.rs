//! Audiences: who is behind a request, as the servers behind this node may know it.
//!
//! Invariants:
//! - an audience holds what the client itself declared, and nothing of its credentials;
//! - clients with equal capabilities see the same lists, and equal capabilities have one text.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use crate::router::standing::Standing;

/// No capabilities.
static NOTHING: LazyLock<Arc<str>> = LazyLock::new(|| "{}".into());
/// The capabilities by which a client says that it can be asked something in mid-call.
const ASKED: [&str; 3] = ["elicitation", "roots", "sampling"];

/// How a client can be asked something while a request of its own is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// It cannot be asked.
    #[default]
    Never,
    /// By requests in mid-call: the session era.
    Requests,
    /// By an answer `input_required`, after which it calls again: revision 2026-07-28.
    Rounds,
}

/// Who is behind a request.
#[derive(Clone, Debug)]
pub struct Audience {
    /// The capabilities that the client declared, as a JSON object with its keys in order.
    pub capabilities: Arc<str>,
    /// The least severe log messages that it wants; `None` if it wants none.
    pub log_level: Option<String>,
    /// The client's session. All requests of one session share it, and it ends with the session; `None` if the client
    /// has none.
    pub session: Option<Arc<str>>,
    /// How the client is reached outside its requests; `None` if it has no session.
    pub standing: Option<Arc<Standing>>,
    pub manner: Manner,
}

impl Default for Audience {
    fn default() -> Self {
        Self {
            capabilities: NOTHING.clone(),
            log_level: None,
            session: None,
            standing: None,
            manner: Manner::Never,
        }
    }
}

impl Audience {
    /// Returns whether the client declared that it answers this request.
    pub fn answers(&self, method: &str) -> bool {
        let needed = method.split('/').next().unwrap_or_default();
        let declared: Value = serde_json::from_str(&self.capabilities).unwrap_or_default();
        ASKED.contains(&needed) && declared.get(needed).is_some()
    }

    /// Returns whether the client declared that it can be asked something, and has a way to be asked.
    pub fn can_be_asked(&self) -> bool {
        self.manner != Manner::Never && can_be_asked(&self.capabilities)
    }
}

/// Returns the text of declared capabilities by which equal ones are recognised: compact, with the keys of every object
/// in order. Anything but an object counts as none.
pub fn canonical(capabilities: &Value) -> Arc<str> {
    match capabilities {
        Value::Object(declared) if !declared.is_empty() => sorted(capabilities).to_string().into(),
        _ => NOTHING.clone(),
    }
}

/// Returns whether capabilities in their canonical text let a client be asked something.
pub fn can_be_asked(capabilities: &str) -> bool {
    let declared: Value = serde_json::from_str(capabilities).unwrap_or_default();
    ASKED.iter().any(|key| declared.get(key).is_some())
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            let members: Map<String, Value> =
                keys.into_iter().map(|key| (key.clone(), sorted(&members[key]))).collect();
            Value::Object(members)
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::router::audience::{can_be_asked, canonical};

    #[test]
    fn equal_capabilities_have_one_text_whatever_their_order() {
        let one = json!({"sampling": {}, "elicitation": {"url": {}, "form": {}}});
        let other = json!({"elicitation": {"form": {}, "url": {}}, "sampling": {}});
        assert_eq!(canonical(&one), canonical(&other));
        assert_eq!(&*canonical(&one), r#"{"elicitation":{"form":{},"url":{}},"sampling":{}}"#);
        for nothing in [json!({}), json!(null), json!([1]), json!("x")] {
            assert_eq!(&*canonical(&nothing), "{}");
        }
        assert!(can_be_asked(&canonical(&one)));
        assert!(!can_be_asked(&canonical(&json!({"experimental": {"sampling": {}}}))));
    }
}
