//! The content of a request: what of it is kept, what must not be kept elsewhere, and whether it may run at all.
//!
//! Invariants:
//! - what is refused keeps its structure, the names its schema knows, and commitments in the places of its values;
//! - commitments are bound to who calls, what is called, and where in the content they stand.

use std::sync::Arc;

use serde_json::{Value, value::RawValue};

use crate::{
    block::{payload::SealedPayload, splice},
    contract::secret::{Bound, Paths, Side, echo::Echoes},
    error::{Code, Refusal},
    router::{
        Request, Router, RpcError,
        board::{Entry, Unfit},
        capture::{self, Capture, Sieve},
        target::Target,
        telling::silenced,
    },
};

/// Member names of the requests that are for no tool.
const PARAMS: [&str; 5] = ["name", "uri", "arguments", "ref", "argument"];

/// What is known of a request's content.
pub(super) struct Content {
    pub sieve: Arc<Sieve>,
    pub refusal: Option<Unfit>,
}

impl Router {
    /// Returns the recorded form of a request's input, with the secrets in it and the refusal, if it may not run.
    /// `busy` is the refusal of a lane that has no place.
    pub(super) fn content(
        &self,
        request: &Request,
        target: &Target,
        busy: Option<&Refusal>,
    ) -> Result<(SealedPayload, Content), RpcError> {
        let bound = self.bound(request, target);
        let Some(entry) = &target.entry else {
            let kept = splice::edit(&request.params, &[], |key| key == "_meta")
                .map_err(|_| RpcError::invalid_params("params must be an object"))?;
            let capture = self.inner.parts.captures.default;
            let value = match (capture, busy) {
                (Capture::Full, None) => Value::Null,
                _ => serde_json::from_str(kept.get()).unwrap_or_default(),
            };
            let known = busy.map(|_| PARAMS.map(str::to_owned).into());
            let kept = capture::input(kept.get(), &value, &Paths::default(), capture, known.as_ref(), &bound);
            let marked = Paths::default();
            let sieve = Sieve { echoes: Echoes::default(), marked, capture, bound: bound.answer() };
            let refusal = busy.cloned().map(Unfit::open);
            return Ok((self.seal(&kept.text)?, Content { sieve: Arc::new(sieve), refusal }));
        };
        let arguments = splice::member(&request.params, "arguments")
            .map_err(|_| RpcError::invalid_params("params must be an object"))?;
        let text = arguments.map_or("{}", RawValue::get);
        let value: Value =
            serde_json::from_str(text).map_err(|_| RpcError::invalid_params("`arguments` cannot be read"))?;
        if !value.is_object() {
            return Err(RpcError::invalid_params("`arguments` must be an object"));
        }
        let mut keeping = self.keeping(entry, &value);
        let refusal = pinned_to_another(request, entry).map(Unfit::open);
        let refusal = refusal.or_else(|| match entry.run.checks(&entry.inner) {
            true => {
                keeping.unsure |= keeping.guarded && entry.unfit(&value).is_some();
                None
            }
            false => entry.unfit(&value),
        });
        let refusal = refusal.or_else(|| busy.cloned().map(Unfit::open));
        let capture = match keeping.unsure {
            true => keeping.capture.max(Capture::Redacted),
            false => keeping.capture,
        };
        let known = (refusal.is_some() || keeping.unsure).then_some(&entry.names);
        let kept = capture::input(text, &value, &keeping.secrets, capture, known, &bound);
        // A caller hears its own names and values again, but for those of a tool that keeps secrets.
        let secretive = keeping.unsure || !keeping.secrets.is_empty();
        let silent = |Unfit { told, kept: own }| Unfit { told: silenced(told, &kept.taken), kept: own };
        let refusal = if secretive { refusal.map(silent) } else { refusal };
        let sieve = Sieve { echoes: kept.taken, marked: keeping.marked, capture, bound: bound.answer() };
        Ok((self.seal(&kept.text)?, Content { sieve: Arc::new(sieve), refusal }))
    }

    /// Returns what the commitments in a call's content are bound to.
    fn bound(&self, request: &Request, target: &Target) -> Bound {
        let (source, name) = match &target.entry {
            Some(entry) => (&entry.contract.source, &entry.contract.name),
            None => (&target.source, &target.recorded_name),
        };
        Bound {
            key: self.inner.parts.salt.clone(),
            actor: request.caller.actor.id.clone(),
            method: request.method.as_str(),
            source: source.clone(),
            name: name.clone(),
            side: Side::Input,
        }
    }
}

/// Returns the refusal of a request that pins another contract than the current one.
fn pinned_to_another(request: &Request, entry: &Entry) -> Option<Refusal> {
    let current = entry.tool.contract;
    let pinned = request.meta.contract.filter(|pinned| *pinned != current)?;
    let message = format!(
        "the tool's contract has changed: the caller was built against {pinned}, current is {current}"
    );
    let refusal = Refusal::new(Code::FailedPrecondition, message);
    Some(refusal.hint("read the current contract with tools_get_schema, then call again"))
}
