//! What of a call's content may be kept.
//!
//! Invariants:
//! - of a tool that calls another, or plans to, no more is kept than of that other one;
//! - if it is unclear which other one that is, no value is kept.

use serde_json::{Map, Value};

use crate::{
    contract::secret::Paths,
    event::body::CallStarted,
    ledger::work::Opening,
    router::{
        Method, Router,
        board::{Entry, Judged},
        capture::Capture,
    },
    workflow::{
        plan::STEP_FIELDS,
        shape::{WAIT_SIGNAL, WAIT_TIME, WORKER, WORKFLOW_RUN},
    },
};

/// The prefix of task types that name a tool.
const TOOL_TYPE: &str = "tool:";

/// The tool whose fields a task is made of.
const TASK_SUBMIT: &str = "task_submit";

/// What of a tool's input and answer may be kept.
pub struct Keeping {
    pub secrets: Paths,
    pub marked: Paths,
    pub capture: Capture,
    /// Whether it is unclear which tool the input is for, or whether it has the form that marks a secret. Then only the
    /// structure of input and answer is kept.
    pub unsure: bool,
    /// Whether the input may be for a tool that marks something as secret.
    pub guarded: bool,
}

impl Router {
    /// Returns how a tool's calls start, if that is known without the call: its input is recorded in full.
    pub fn opening(&self, entry: &Entry) -> Option<Opening> {
        let whole = self.inner.parts.tuning.now().captures.of(&entry.tool.name) == Capture::Full
            && entry.secrets.is_empty();
        let facts = CallStarted {
            method: Method::ToolsCall.as_str().to_owned(),
            name: entry.tool.name.clone(),
            source: entry.source.clone(),
            runtime: entry.metadata.runtime.clone(),
            rule: entry.rule.as_str().to_owned(),
            runner: self.inner.parts.runner.clone(),
            key: None,
            trace: None,
            input_unchecked: entry.unchecked(),
        };
        let opening = Opening { tool: entry.tool.contract, facts, repeatable: entry.contract.repeatable() };
        (whole && !entry.dispatches && !entry.plans).then_some(opening)
    }

    /// Returns what of a tool's content may be kept. Of a tool that calls another, that is no more than of the other.
    pub fn keeping(&self, entry: &Entry, input: &Value) -> Keeping {
        let mut own = Keeping {
            secrets: entry.secrets.clone(),
            marked: entry.output_secrets.clone(),
            capture: self.inner.parts.tuning.now().captures.of(&entry.tool.name),
            // What is not known to be of the form that marks a secret may hold it anywhere.
            unsure: !entry.secrets.is_empty() && matches!(entry.judge(input), Judged::Unchecked(_)),
            guarded: entry.dispatches || entry.plans,
        };
        if !own.guarded {
            return own;
        }
        own.guarded = self.board().guarded;
        if entry.plans {
            self.planned(input, &mut Vec::new(), &mut own);
            // Durable work keeps no secrets: what brings one is refused.
            own.unsure |= own.secrets.stand_in(input, |_| false) || (own.guarded && self.strays(input));
            self.overridden(input, &mut own);
        }
        if entry.dispatches {
            self.dispatched(input, &mut own);
        }
        own
    }

    /// Adds the secrets of the tool that a dispatching tool calls with its `params`.
    fn dispatched(&self, input: &Value, keeping: &mut Keeping) {
        let called = input.get("tool").and_then(Value::as_str);
        let pinned = input.get("contract").and_then(Value::as_str).and_then(|cid| cid.parse().ok());
        let Some(called) = called.and_then(|name| self.tool_asked(name, pinned.as_ref())) else {
            keeping.unsure |= keeping.guarded;
            return;
        };
        self.at(&called, input.get("params"), &["params".to_owned()], keeping);
    }

    /// Adds the secrets of a tool whose input is at `place`. Returns true if it has none.
    fn at(&self, tool: &Entry, input: Option<&Value>, place: &[String], keeping: &mut Keeping) -> bool {
        let inner = self.keeping(tool, input.unwrap_or(&Value::Null));
        keeping.secrets.add(place, &inner.secrets);
        keeping.marked = keeping.marked.and(&inner.marked);
        keeping.capture = keeping.capture.max(inner.capture);
        keeping.unsure |= inner.unsure;
        // An input that does not fit may hold a secret anywhere; one that is not whole yet cannot be held to the schema.
        if let Some(input) = input.filter(|input| !inner.secrets.is_empty() && !refers(input)) {
            keeping.unsure |= !tool.fits(input);
        }
        inner.secrets.is_empty()
    }

    /// Returns the setting that makes a tool's content be kept in part only, and its mode; `None` if all is kept.
    pub fn less_kept(&self, tool: &str) -> Option<(String, &'static str)> {
        let tuning = self.inner.parts.tuning.now();
        let captures = &tuning.captures;
        let mode = match captures.of(tool) {
            Capture::Full => return None,
            mode @ (Capture::Redacted | Capture::Digest) => mode.as_str(),
        };
        let setting = match captures.tools.contains_key(tool) {
            true => format!("capture.tools.{tool}"),
            false => "capture.default".to_owned(),
        };
        Some((setting, mode))
    }

    /// Adds the secrets of every tool for each step in `overrides`: the plan is not at hand, so which tools they are
    /// for is unknown.
    fn overridden(&self, input: &Value, keeping: &mut Keeping) {
        let Some(steps) = input.get("overrides").and_then(Value::as_object) else { return };
        for entry in self.tools().iter().filter(|entry| !entry.secrets.is_empty()) {
            for step in steps.keys() {
                keeping.secrets.add(&["overrides".to_owned(), step.clone()], &entry.secrets);
            }
        }
        let tuning = self.inner.parts.tuning.now();
        let captures = &tuning.captures;
        keeping.capture = captures.tools.values().copied().fold(keeping.capture, Capture::max);
    }

    /// Adds the secrets of the tools that a plan names, at the places of their inputs.
    ///
    /// Strict JSON bounds the depth of a plan, and so this recursion. A tool's input is looked at once, as that
    /// tool's.
    fn planned(&self, value: &Value, path: &mut Vec<String>, keeping: &mut Keeping) {
        match value {
            Value::Object(fields) => {
                let given = self.given(fields, path, keeping);
                for (name, field) in fields.iter().filter(|(name, _)| !given.contains(&name.as_str())) {
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

    /// Adds the secrets of the tools that one object of a plan names. Returns the fields that hold their inputs.
    fn given(
        &self,
        fields: &Map<String, Value>,
        path: &[String],
        keeping: &mut Keeping,
    ) -> Vec<&'static str> {
        let word = |key: &str| fields.get(key).and_then(Value::as_str);
        let typed = word("task_type").and_then(|word| word.strip_prefix(TOOL_TYPE));
        // Work for others under the name of a tool here was meant for that tool.
        let meant = |name: &&str| self.guards(name);
        let typed = typed.or_else(|| word("task_type").filter(meant));
        let action = word("action");
        let action = action.and_then(|word| word.strip_prefix(WORKER)).filter(meant).or(action);
        let mut given = Vec::new();
        for (name, at) in [(action, "inputs"), (typed, "payload")] {
            let Some(tool) = name.and_then(|name| self.tool(name)) else { continue };
            let below = |name: &str| [path, &[name.to_owned()]].concat();
            given.push(at);
            if self.at(&tool, fields.get(at), &below(at), keeping) {
                continue;
            }
            // What stands beside the input under a name that no plan has was meant for it.
            let submit = self.tool(TASK_SUBMIT).filter(|_| at == "payload");
            let known = |name: &str| match &submit {
                Some(submit) => submit.names.contains(name),
                None => STEP_FIELDS.contains(&name),
            };
            for name in fields.keys().filter(|name| !known(name)) {
                keeping.secrets.add(&below(name), &Paths::everything());
            }
        }
        given
    }

    /// Returns whether a plan names a tool in a wrong place, or none in a place that needs one. Such a plan is
    /// refused, and what in it was meant for a tool with secrets is unclear.
    fn strays(&self, value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.iter().any(|(name, field)| {
                let unknown = |name: &str| {
                    let own =
                        [WAIT_SIGNAL, WAIT_TIME, WORKFLOW_RUN].contains(&name) || name.starts_with(WORKER);
                    !own && self.tool(name).is_none()
                };
                match (name.as_str(), field) {
                    ("task_type", Value::String(name)) => {
                        name.strip_prefix(TOOL_TYPE).map_or_else(|| self.guards(name), unknown)
                    }
                    ("task_type", _) => true,
                    ("steps", Value::Array(steps)) => steps.iter().any(|step| {
                        let action = step.get("action").and_then(Value::as_str);
                        action.is_none_or(unknown) || self.strays(step)
                    }),
                    ("action", Value::String(_)) => false,
                    (_, field) => self.strays(field),
                }
            }),
            Value::Array(items) => items.iter().any(|item| self.strays(item)),
            Value::String(text) => self.guards(text.strip_prefix(TOOL_TYPE).unwrap_or(text)),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// Returns whether a tool of this name marks anything as secret.
    fn guards(&self, name: &str) -> bool {
        self.tool(name).is_some_and(|tool| !tool.secrets.is_empty())
    }
}

/// Returns whether a value takes anything from other steps.
fn refers(value: &Value) -> bool {
    match value {
        Value::Object(fields) => {
            fields.contains_key("$from") || fields.contains_key("$item") || fields.values().any(refers)
        }
        Value::Array(items) => items.iter().any(refers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
