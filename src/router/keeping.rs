//! What of a call's content may be kept.
//!
//! Invariants:
//! - of a tool that calls another, or plans to, no more is kept than of that other one.

use serde_json::Value;

use crate::{
    contract::secret::Paths,
    event::body::CallStarted,
    ledger::work::Opening,
    router::{Method, Router, board::Entry, capture::Capture},
};

/// What the type of a task begins with that names a tool.
const TOOL_TYPE: &str = "tool:";

/// What of a tool's input and answer may be kept.
pub(super) struct Keeping {
    pub secrets: Paths,
    pub marked: Paths,
    pub capture: Capture,
}

impl Router {
    /// How a tool's calls start, where all that their start records is known without the call: nothing of their
    /// input is left out.
    pub fn opening(&self, entry: &Entry) -> Option<Opening> {
        let whole =
            self.inner.parts.captures.of(&entry.tool.name) == Capture::Full && entry.secrets.is_empty();
        let facts = CallStarted {
            method: Method::ToolsCall.as_str().to_owned(),
            name: entry.tool.name.clone(),
            source: entry.source.clone(),
            runtime: entry.metadata.runtime.clone(),
            rule: entry.rule.as_str().to_owned(),
            runner: self.inner.parts.runner.clone(),
            key: None,
            trace: None,
        };
        let opening = Opening { tool: entry.tool.contract, facts, repeatable: entry.contract.repeatable() };
        (whole && !entry.dispatches && !entry.plans).then_some(opening)
    }

    /// What of a tool's content may be kept; of a tool that calls another, no more than of that one.
    pub(super) fn keeping(&self, entry: &Entry, input: &Value) -> Keeping {
        let mut own = Keeping {
            secrets: entry.secrets.clone(),
            marked: entry.output_secrets.clone(),
            capture: self.inner.parts.captures.of(&entry.tool.name),
        };
        if entry.plans {
            self.planned(input, &mut Vec::new(), &mut own);
            self.overridden(input, &mut own);
        }
        let called = input.get("tool").and_then(Value::as_str).filter(|_| entry.dispatches);
        let pinned = input.get("contract").and_then(Value::as_str).and_then(|cid| cid.parse().ok());
        let called = called.and_then(|name| self.tool_asked(name, pinned.as_ref()));
        let Some(called) = called else { return own };
        let inner = self.keeping(&called, input.get("params").unwrap_or(&Value::Null));
        Keeping {
            secrets: inner.secrets.below("params", &own.secrets),
            marked: inner.marked.and(&own.marked),
            capture: inner.capture.max(own.capture),
        }
    }

    /// The setting by which less than the whole of a tool's content is kept, and the mode it names; none where all is.
    pub fn less_kept(&self, tool: &str) -> Option<(String, &'static str)> {
        let captures = &self.inner.parts.captures;
        let mode = match captures.of(tool) {
            Capture::Full => return None,
            Capture::Redacted => "redacted",
            Capture::Digest => "digest",
        };
        let setting = match captures.tools.contains_key(tool) {
            true => format!("capture.tools.{tool}"),
            false => "capture.default".to_owned(),
        };
        Some((setting, mode))
    }

    /// Adds what any tool keeps secret of its inputs, wherever new inputs of steps stand: those of a plan that is
    /// not at hand, so that it is not known which tools they are for.
    fn overridden(&self, input: &Value, keeping: &mut Keeping) {
        let Some(steps) = input.get("overrides").and_then(Value::as_object) else { return };
        for entry in self.tools().iter().filter(|entry| !entry.secrets.is_empty()) {
            for step in steps.keys() {
                keeping.secrets.add(&["overrides".to_owned(), step.clone()], &entry.secrets);
            }
        }
        let captures = &self.inner.parts.captures;
        keeping.capture = captures.tools.values().copied().fold(keeping.capture, Capture::max);
    }

    /// Adds what tools that a plan names keep secret of their inputs, wherever in the plan those stand.
    ///
    /// Plans are as deep as strict JSON may be, so this ends.
    fn planned(&self, value: &Value, path: &mut Vec<String>, keeping: &mut Keeping) {
        match value {
            Value::Object(fields) => {
                let word = |key: &str| fields.get(key).and_then(Value::as_str);
                let typed = word("task_type").and_then(|word| word.strip_prefix(TOOL_TYPE));
                for (name, at) in [(word("action"), "inputs"), (typed, "payload")] {
                    let Some(tool) = name.and_then(|name| self.tool(name)) else { continue };
                    let place = [&path[..], &[at.to_owned()]].concat();
                    keeping.secrets.add(&place, &tool.secrets);
                    keeping.capture = keeping.capture.max(self.inner.parts.captures.of(&tool.tool.name));
                }
                for (name, field) in fields {
                    path.push(name.clone());
                    self.planned(field, path, keeping);
                    path.pop();
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push(at.to_string());
                    self.planned(item, path, keeping);
                    path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}
