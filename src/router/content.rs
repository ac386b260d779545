//! The content of a request: what of it is kept, what must not be kept elsewhere, and whether it may run at all.
//!
//! Invariants:
//! - what is refused keeps its structure, the names its schema knows, and commitments in the places of its values;
//! - commitments are bound to who calls, what is called, and where in the content they stand.

use std::sync::Arc;

use serde_json::{Value, value::RawValue};

use crate::{
    block::{payload::SealedPayload, splice},
    contract::{
        dialect::Unchecked,
        secret::{Bound, Paths, Side, echo::Echoes},
    },
    error::{Code, Refusal},
    router::{
        Request, Router, RpcError,
        board::{Entry, Judged, Unfit},
        capture::{self, Capture, Sieve},
        retention::Keeping,
        sight::Sight,
        target::Target,
        telling::{GET_SCHEMA, silenced},
    },
};

/// Member names of the requests that are for no tool.
const PARAMS: [&str; 5] = ["name", "uri", "arguments", "ref", "argument"];

/// Members of those that are no part of the input: answers to earlier questions are events of their own.
const LEFT_OUT: [&str; 2] = ["_meta", "inputResponses"];

/// What is known of a request's content.
pub(super) struct Content {
    pub sieve: Arc<Sieve>,
    pub refusal: Option<Unfit>,
    /// Says why the input was not judged, if it was not.
    pub unchecked: Option<Unchecked>,
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
            let kept = splice::edit(&request.params, &[], |key| LEFT_OUT.contains(&key))
                .map_err(|_| RpcError::invalid_params("params must be an object"))?;
            let capture = self.inner.parts.tuning.now().captures.default;
            let value = match (capture, busy) {
                (Capture::Full, None) => Value::Null,
                _ => serde_json::from_str(kept.get()).unwrap_or_default(),
            };
            let known = busy.map(|_| PARAMS.map(str::to_owned).into());
            let kept = capture::input(kept.get(), &value, &Paths::default(), capture, known.as_ref(), &bound);
            let marked = Paths::default();
            let sieve = Sieve { echoes: Echoes::default(), marked, capture, bound: bound.answer() };
            let refusal = busy.cloned().map(Unfit::open);
            let content = Content { sieve: Arc::new(sieve), refusal, unchecked: None };
            return Ok((self.seal(&kept.text)?, content));
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
        let pinned = pinned_to_another(request, entry).map(|refusal| pointing(request, target, refusal));
        let (judged, unchecked) = judged(entry, &value, &mut keeping);
        let judged = judged.map(|Unfit { told, kept }| Unfit {
            told: pointing(request, target, told),
            kept: pointing(request, target, kept),
        });
        let unscoped = Sight::unscoped(&request.caller, entry).map(Unfit::open);
        let refusal = unscoped.or_else(|| pinned.map(Unfit::open)).or(judged);
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
        Ok((self.seal(&kept.text)?, Content { sieve: Arc::new(sieve), refusal, unchecked }))
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

/// Judges a tool's input. Returns why it is refused, and why it was not judged.
fn judged(entry: &Entry, input: &Value, keeping: &mut Keeping) -> (Option<Unfit>, Option<Unchecked>) {
    if entry.run.checks(&entry.inner) {
        keeping.unsure |= keeping.guarded && !entry.fits(input);
        return (None, None);
    }
    match entry.judge(input) {
        Judged::Fits => (None, None),
        Judged::Unfit(unfit) => (Some(unfit), None),
        Judged::Unchecked(why) => (None, Some(why)),
    }
}

/// Adds to a refusal's hint the tool that gives contracts, if the caller has it.
fn pointing(request: &Request, target: &Target, refusal: Refusal) -> Refusal {
    match refusal.hint {
        Some(hint) if target.sight.sees_own(&request.caller, GET_SCHEMA) => {
            Refusal { hint: Some(format!("{hint} ({GET_SCHEMA})")), ..refusal }
        }
        hint => Refusal { hint, ..refusal },
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
    Some(refusal.hint("read the tool's current contract, then call again"))
}
