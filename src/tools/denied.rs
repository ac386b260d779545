//! Refusals of durable work: a domain error, with the ids that were asked about and the faults of a definition.
//!
//! Invariants:
//! - a refusal names the ids that were asked about, and all that is wrong with a definition.

use serde_json::{Map, Value, json};

use crate::{
    block::splice,
    error::{Code, Refusal},
    router::{Invocation, Outcome},
    workflow::fields::Fault,
};

/// Arguments that name what a call is about.
const IDS: [&str; 8] =
    ["task_id", "workflow_id", "new_workflow_id", "worker_id", "schedule_id", "peer_id", "left", "right"];

/// Why a tool did not do what was asked.
#[derive(Debug)]
pub struct Denied {
    refusal: Refusal,
    /// The faults of a definition, if the call was about one.
    faults: Vec<Fault>,
}

impl std::convert::From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, faults: Vec::new() }
    }
}

impl Denied {
    /// Refuses a definition for these faults.
    pub fn faulty(what: &str, faults: Vec<Fault>) -> Self {
        let lines: Vec<String> = faults.iter().map(told).collect();
        let count = match faults.len() {
            1 => "one fault".to_owned(),
            count => format!("{count} faults"),
        };
        let message = format!("{what} has {count}: {}", lines.join("; "));
        Self { refusal: Refusal::new(Code::InvalidArgument, message), faults }
    }

    /// Adds a hint at what to do.
    pub fn hint(self, hint: &str) -> Self {
        Self { refusal: self.refusal.hint(hint), ..self }
    }

    pub(super) fn outcome(self, invocation: &Invocation) -> Outcome {
        let refusal = invocation.sight.hinted(&invocation.caller, self.refusal);
        let Refusal { code, message, retryable, hint } = &refusal;
        if *code == Code::Internal {
            return Outcome::Refused(refusal);
        }
        let mut error = json!({"code": code.as_str(), "message": message, "retryable": retryable});
        let mut text = format!("{}: {message}", code.as_str());
        if let Some(hint) = hint {
            error["hint"] = json!(hint);
            text += &format!(" ({hint})");
        }
        if !self.faults.is_empty() {
            error["faults"] = json!(self.faults);
        }
        let mut structured = json!({"success": false, "error": error});
        for (name, id) in asked_about(invocation) {
            structured[name] = id;
        }
        let result = json!({
            "content": [{"type": "text", "text": text}],
            "structuredContent": structured,
            "isError": true,
        });
        Outcome::Result { result: splice::raw(result.to_string()), is_error: true }
    }
}

/// Formats a fault for people: `/steps/2/inputs/x` becomes `steps[2].inputs.x`.
fn told(Fault { place, fault }: &Fault) -> String {
    let mut said = String::new();
    for part in place.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        match part.bytes().all(|byte| byte.is_ascii_digit()) && !said.is_empty() {
            true => said += &format!("[{part}]"),
            false if said.is_empty() => said = part,
            false => said += &format!(".{part}"),
        }
    }
    if said.is_empty() { fault.clone() } else { format!("{said}: {fault}") }
}

/// Returns the ids among the arguments of a call.
fn asked_about(invocation: &Invocation) -> Map<String, Value> {
    let arguments = splice::member(&invocation.params, "arguments").ok().flatten();
    let id = |name: &&str| {
        let id = splice::member(arguments?, name).ok().flatten()?;
        let id: String = serde_json::from_str(id.get()).ok()?;
        Some(((*name).to_owned(), json!(id)))
    };
    IDS.iter().filter_map(id).collect()
}
