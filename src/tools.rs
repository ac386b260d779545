//! Builtin tools: one file a family, and this list.
//!
//! Invariants:
//! - a tool's definition is its file in `schemas/tools`: a client lists the same bytes, without the space between them;
//! - results are `{success: true, ...}`, refusals `{success: false, error}`: never a bare text.

pub mod conformance;
pub mod denied;
pub mod network;
pub mod reading;
pub mod desk;
mod doing;
pub mod attempts;
pub mod catalogue;
pub mod finding;
pub mod peers;
pub mod planning;
pub mod provenance;
pub mod queue;
pub mod workflows;
mod again;
pub mod tasks;
pub mod schedules;
pub mod workers;
pub mod replaying;
pub mod steering;

use std::{collections::HashMap, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    catalogue::BUILTIN,
    error::{Chain, Code, Refusal},
    query::QueryError,
    questions::{Audit, Unanswered},
    router::{
        BoxFuture, Foretold, Invocation, Offered, Offering, Outcome, RpcError, Run, declared::Declared, lane,
        metadata::Hints,
    },
    tools::desk::Desk,
};

/// Builtin tools come first in every list.
const RANK: u32 = 0;

/// One tool of this node: what it promises, where it belongs, and what does it.
pub struct Builtin {
    pub definition: &'static str,
    pub category: &'static str,
    pub lane: &'static str,
    pub run: Arc<dyn Run>,
}

/// The categories of builtin tools, each with its description.
pub const CATEGORIES: &[(&str, &str)] = &[
    ("catalogue", "find tools, read their contracts, call them by name"),
    ("provenance", "ask what produced something, and check the answer"),
    ("workflows", "run steps that depend on each other, follow them, reproduce them"),
    ("tasks", "put work into the queue, follow it, and do it as a worker"),
    ("queue", "watch, pause, resume and clear what waits"),
    ("workers", "make workers known, see what they do, let them leave"),
    ("schedules", "submit work again and again"),
    ("peers", "find other nodes, connect to them, see how they do, keep their logs"),
];

/// The result of a builtin tool: a success object, or a domain error.
pub type Done = Result<Value, Refusal>;

/// All builtin tools as one offering.
pub fn offering(tools: Vec<Builtin>) -> Offering {
    let mut runs = HashMap::new();
    let mut offered = Vec::new();
    for tool in tools {
        let definition: Box<RawValue> =
            serde_json::from_str(&packed(tool.definition)).expect("tests read every file of schemas/tools");
        let name = splice::member(&definition, "name").ok().flatten();
        let name: String = name.and_then(|name| serde_json::from_str(name.get()).ok()).unwrap_or_default();
        let hints = Hints {
            runtime: Some(tool.lane.to_owned()),
            category: Some(tool.category.to_owned()),
            ..Hints::default()
        };
        runs.insert(name.clone(), tool.run);
        offered.push(Offered { inner: name.clone(), name, definition, hints, contract: None });
    }
    Offering {
        source: BUILTIN.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rank: RANK,
        lane: Some(lane::BUILTIN.to_owned()),
        tools: offered,
        prompts: Vec::new(),
        resources: Vec::new(),
        templates: Vec::new(),
        views: Vec::new(),
        declared: Declared { tools: true, tasks: true, ..Declared::default() },
        mirrors: false,
        run: Arc::new(Dispatch(runs)),
    }
}

/// Every builtin tool. `base` is the URL this node is reached under, where it is served over HTTP.
pub fn all(desk: &Desk, audit: &Audit, base: Option<&str>) -> Vec<Builtin> {
    let families = [
        catalogue::all(&desk.router),
        provenance::all(audit, base),
        replaying::all(desk),
        workflows::all(desk),
        steering::all(desk),
        tasks::all(desk),
        attempts::all(desk),
        queue::all(desk),
        workers::all(desk),
        schedules::all(desk),
        peers::all(desk),
    ];
    families.into_iter().flatten().collect()
}

/// Returns JSON without the space between its parts.
fn packed(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let kept = |c: &char| {
        let space = !quoted && c.is_ascii_whitespace();
        quoted ^= *c == '"' && !escaped;
        escaped = quoted && *c == '\\' && !escaped;
        !space
    };
    json.chars().filter(kept).collect()
}

/// Returns the refusal for a question without an answer, with a code of the closed list.
fn refusal(err: Unanswered) -> Refusal {
    match err {
        Unanswered::Query(QueryError::Fault(_)) | Unanswered::Broken(_) => {
            tracing::error!(err = %Chain(&err), "a question could not be answered");
            Refusal::new(Code::Internal, "internal error")
        }
        Unanswered::Query(err) => Refusal::new(err.code(), err.to_string()),
        Unanswered::Busy => Refusal::new(Code::ResourceExhausted, err.to_string()).retryable(),
        Unanswered::Stopped(_) => Refusal::new(Code::Unavailable, err.to_string()),
    }
}

/// Sends each invocation to the tool of its name.
struct Dispatch(HashMap<String, Arc<dyn Run>>);

impl Run for Dispatch {
    fn checks(&self, tool: &str) -> bool {
        self.0.get(tool).is_some_and(|run| run.checks(tool))
    }

    fn foretell(&self, invocation: &Arc<Invocation>) -> Option<Foretold> {
        self.0.get(&invocation.name)?.foretell(invocation)
    }

    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        match self.0.get(&invocation.name) {
            Some(run) => run.run(invocation),
            None => {
                let error = RpcError::invalid_params(format!("unknown tool: {}", invocation.name));
                Box::pin(std::future::ready(Outcome::Rpc(Box::new(error))))
            }
        }
    }
}

/// Parses the arguments of a call. The router has checked them against the schema, so a failure here is a fault of
/// ours.
pub fn arguments<T: DeserializeOwned>(invocation: &Invocation) -> Result<T, Refusal> {
    let arguments = splice::member(&invocation.params, "arguments").ok().flatten();
    serde_json::from_str(arguments.map_or("{}", RawValue::get))
        .map_err(|err| Refusal::new(Code::InvalidArgument, format!("invalid input: {err}")))
}

/// Returns the outcome of a call that did this.
pub fn outcome(done: Done) -> Outcome {
    match done {
        Ok(mut structured) => {
            structured["success"] = json!(true);
            let text = structured.to_string();
            let result = json!({
                "content": [{"type": "text", "text": text}],
                "structuredContent": structured,
            });
            Outcome::Result { result: splice::raw(result.to_string()), is_error: false }
        }
        Err(refusal) => Outcome::Refused(refusal),
    }
}
