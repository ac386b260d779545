//! Questions in results, and answers in requests: how servers of 2026-07-28 ask (`inputRequests`, `inputResponses`),
//! and how suspended calls of other servers do.
//!
//! Invariants:
//! - such a question is durable before the caller gets the result, and an answer before the tool's server gets the
//!   request;
//! - an answer names the question that committed to the same `requestState`. Without one nothing ties them, and
//!   nothing is guessed.

use std::sync::PoisonError;

use serde_bytes::ByteArray;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    block::splice,
    call::asking::{Answer, To, WAITING_MAX},
    contract::secret::Bound,
    error::{Code, Refusal},
    event::{Role, body::Question},
    ledger::{Command, Ruling, commit::payload_ref},
    router::{
        Outcome,
        asking::{
            Asking,
            form::{Form, Mark},
        },
        ending::seal,
    },
};

/// The member of a result that holds questions, by name.
const REQUESTS: &str = "inputRequests";
/// The member of a request that holds answers, by the names of their questions.
const RESPONSES: &str = "inputResponses";
/// The member of both by which a server recognises its dialogue.
const STATE: &str = "requestState";
/// The domain of commitments to a `requestState`.
const STATE_DOMAIN: &str = "cairn/request-state/1";

impl Asking {
    /// Records the answers that a request brings. Errors: they are too many, or the call is not open.
    pub async fn given(&self, params: &RawValue) -> Result<(), Refusal> {
        let Some((responses, state)) = dialogue(params, RESPONSES) else { return Ok(()) };
        if responses.len() > WAITING_MAX {
            let message = format!("a request may bring at most {WAITING_MAX} answers");
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        for (n, (name, response)) in (0..).zip(&responses) {
            let mark = self.mark(state.as_deref(), name);
            let form = self.forms.get(&mark);
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).join(&form.earlier);
            let content = seal(&self.sieve.bound.key, &self.kept(response, &form));
            let content = content.map_err(|error| Refusal::new(Code::InvalidArgument, error.message))?;
            let wish = Answer {
                id: self.id.clone(),
                n,
                how: form.reaction(response),
                answer: payload_ref(&content, Role::Input),
                to: To::Earlier { state: state.is_some().then(|| ByteArray::new(mark)) },
            };
            match self.submit(Command::Answer { answer: wish, content }).await {
                Ok(Ruling::Done(_)) => {}
                Ok(Ruling::Denied(refusal)) => return Err(refusal),
                _ => return Err(Refusal::new(Code::Internal, "an answer could not be recorded")),
            }
        }
        Ok(())
    }

    /// Records the questions in a result. Returns the outcome that the caller gets: a refusal, if they cannot be on
    /// record.
    pub async fn asked(&self, outcome: Outcome) -> Outcome {
        let Outcome::Result { result, is_error: false } = &outcome else { return outcome };
        let Some((requests, state)) = dialogue(result, REQUESTS) else { return outcome };
        for (name, request) in &requests {
            // What else is asked for stands in the call's output.
            let Some(method) = request["method"].as_str().and_then(Question::parse) else { continue };
            let nothing = json!({});
            let params = request.get("params").unwrap_or(&nothing);
            let mark = self.mark(state.as_deref(), name);
            let earlier = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.forms.put(mark, Form::of(method, params).after(earlier));
            let state = state.is_some().then(|| ByteArray::new(mark));
            if let Err(error) = self.record_question(method, params, state).await {
                return Outcome::Refused(Refusal::new(Code::ResourceExhausted, error.message));
            }
        }
        outcome
    }

    /// Returns what a question in a result and its answer in a later request have in common.
    fn mark(&self, state: Option<&str>, name: &str) -> Mark {
        let Bound { key, actor, method, source, name: tool, .. } = &self.sieve.bound;
        let fields = [actor.as_str(), method, source, tool, state.unwrap_or_default(), name];
        key.bind(STATE_DOMAIN, &fields.map(str::as_bytes))
    }
}

/// Returns the questions or answers in an object, and the state beside them.
fn dialogue(object: &RawValue, part: &str) -> Option<(Map<String, Value>, Option<String>)> {
    // Nearly every object has none, and an escape is the only other way to spell the name.
    if !object.get().contains(part) && !object.get().contains("\\u") {
        return None;
    }
    let member = |name| splice::member(object, name).ok().flatten();
    let parts: Map<String, Value> = serde_json::from_str(member(part)?.get()).ok()?;
    let state = member(STATE).and_then(|state| serde_json::from_str(state.get()).ok());
    Some((parts, state))
}
