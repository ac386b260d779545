//! How a call ends: what is kept of its outcome, and what is told.
//!
//! Invariants:
//! - what is told is what was judged and kept, whichever thread made the ending;
//! - what goes wrong while the writing thread makes an ending ends no thread: the call runs on and tells it itself.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use crate::{
    block::{
        Cid,
        payload::{JSON, PAYLOAD_MAX, Payload, SaltKey, SealedPayload},
        splice,
    },
    call::{EndOutcome, Fit},
    contract::dialect::{MISSING, Schema},
    error::{Code, Refusal},
    ledger::concluding::{Conclude, Concluded},
    router::{
        Outcome, RpcError, Tell,
        capture::{self, Answer, Sieve},
        telling::{Manner, Reply, Verdict, judge, refused},
    },
};

/// A call's outcome in its recorded form, and what the caller is told of it.
pub(super) struct Ended {
    pub outcome: EndOutcome,
    pub output: SealedPayload,
    pub said: Said,
}

/// What an ended call is counted as, and what its caller is told.
pub(super) struct Said {
    pub label: &'static str,
    pub told: Reply,
    pub cancelled: bool,
    /// The payload that was recorded of it.
    pub output: Cid,
    pub took: Duration,
    /// The error, if the answer is this node's own.
    pub own: Option<Refusal>,
    /// Whether the answer replaces one that is too large to record.
    pub instead: bool,
}

impl Ended {
    /// `promised` is the output schema that a result should fit.
    pub fn of(
        outcome: Outcome,
        manner: Manner,
        took: Duration,
        sieve: &Sieve,
        promised: Option<&Schema>,
    ) -> Result<Self, RpcError> {
        let salt = &sieve.bound.key;
        // What this node says itself of a call is of no tool's form, and repeats nothing of its output.
        let theirs = matches!(outcome, Outcome::Result { .. } | Outcome::Rpc(_));
        let mut verdict = judge(outcome, manner);
        let sealed = {
            let text = verdict.told.text();
            let answer = Answer::new(&text);
            let kept = capture::output(&answer, sieve, theirs);
            if let EndOutcome::Succeeded { input_required: false, fit } = &mut verdict.outcome
                && let (Some(schema), Reply::Result(result)) = (promised, &verdict.told)
            {
                *fit = fit_of(schema, result, &answer);
            }
            seal(salt, &kept)
        };
        let instead = sealed.is_err();
        let output = match sealed {
            Ok(output) => output,
            Err(_) => {
                // The tool ran; what it said is too large to keep, so it is not told either.
                let message = format!("the tool's answer is over the bound of {PAYLOAD_MAX} bytes");
                let refusal = Refusal::new(Code::ResourceExhausted, message);
                let output = seal(salt, &refused(&refusal, manner.form).text())?;
                verdict = judge(Outcome::Refused(refusal), manner);
                output
            }
        };
        let Verdict { outcome, label, told, own } = verdict;
        let cancelled = matches!(outcome, EndOutcome::Cancelled);
        let said = Said { label, told, cancelled, output: output.envelope.cid(), took, own, instead };
        Ok(Self { outcome, output, said })
    }
}

/// Returns what an output schema says of a result. A result that is no tool's last word is not judged.
fn fit_of(schema: &Schema, result: &RawValue, answer: &Answer<'_>) -> Fit {
    let member = |key| splice::member(result, key).ok().flatten();
    let last = member("resultType").is_none_or(|kind| kind.get() == "\"complete\"");
    if !last || member("task").is_some() {
        return Fit::Fits;
    }
    if let Some(unusable) = schema.unusable() {
        return Fit::Unchecked(unusable.why);
    }
    let Some(structured) = answer.structured(result) else { return Fit::Misfit(MISSING.to_owned()) };
    match schema.misfit(&structured) {
        Ok(None) => Fit::Fits,
        Ok(Some(place)) => Fit::Misfit(place),
        Err(why) => Fit::Unchecked(why),
    }
}

/// Where the writing thread leaves the answer of a call that it ends.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Said>>>);

impl Slot {
    /// Returns the function by which the writing thread ends a call in the commit of its change.
    pub fn conclude(&self, tell: Tell, manner: Manner, sieve: &Arc<Sieve>) -> Conclude {
        let (slot, sieve) = (self.clone(), sieve.clone());
        // What is ruled with its start was not broken off.
        let manner = Manner { repeatable: true, ..manner };
        Conclude::new(move |ruled| {
            let begun = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                let outcome = tell(ruled)?;
                Ended::of(outcome, manner, begun.elapsed(), &sieve, None).ok()
            }));
            let Ended { outcome, output, said } = ended.ok()??;
            let took_us = said.took.as_micros() as u64;
            *slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
            Some(Concluded { outcome, output, took_us })
        })
    }

    pub fn take(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Seals JSON as a payload.
pub(super) fn seal(salt: &SaltKey, text: &str) -> Result<SealedPayload, RpcError> {
    Payload::seal(salt, JSON, text.as_bytes()).map_err(|_| {
        let len = text.len();
        RpcError::invalid_params(format!("content of {len} bytes is over the bound of {PAYLOAD_MAX}"))
    })
}
