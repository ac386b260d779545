//! How a call ends: what is kept of its outcome, and what is told.
//!
//! Invariants:
//! - what is told is what was judged and kept, whichever thread made the ending;
//! - what goes wrong while the writing thread makes an ending ends no thread: the call runs on and tells it itself.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    block::{
        Cid,
        payload::{JSON, PAYLOAD_MAX, Payload, SaltKey, SealedPayload},
    },
    call::EndOutcome,
    error::{Code, Refusal},
    ledger::concluding::{Conclude, Concluded},
    router::{
        Outcome, RpcError, Tell,
        capture::{self, Sieve},
        telling::{Reply, error_text, judge, refusal_result},
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
    /// The refusal that replaces an answer too large to record.
    pub instead: Option<Refusal>,
}

impl Ended {
    /// `repeatable` says whether running the tool twice does no more than running it once.
    pub fn of(outcome: Outcome, repeatable: bool, took: Duration, sieve: &Sieve) -> Result<Self, RpcError> {
        let salt = &sieve.bound.key;
        // What this node says itself of a call is of no tool's form, and repeats nothing of its output.
        let theirs = matches!(outcome, Outcome::Result { .. } | Outcome::Rpc(_));
        let (mut outcome, mut label, mut told) = judge(outcome, repeatable);
        let text: Cow<'_, str> = match &told {
            Reply::Result(result) => result.get().into(),
            Reply::Error(error) => error_text(error).into(),
        };
        let kept = capture::output(&text, sieve, theirs);
        let mut instead = None;
        let output = match seal(salt, &kept) {
            Ok(output) => output,
            Err(_) => {
                // The tool ran; what it said is too large to keep, so it is not told either.
                let message = format!("the tool's answer is over the bound of {PAYLOAD_MAX} bytes");
                let refusal = Refusal::new(Code::ResourceExhausted, message);
                let output = seal(salt, refusal_result(&refusal).get())?;
                instead = Some(refusal.clone());
                (outcome, label, told) = judge(Outcome::Refused(refusal), repeatable);
                output
            }
        };
        let cancelled = matches!(outcome, EndOutcome::Cancelled);
        let said = Said { label, told, cancelled, output: output.envelope.cid(), took, instead };
        Ok(Self { outcome, output, said })
    }
}

/// Where the writing thread leaves the answer of a call that it ends.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Said>>>);

impl Slot {
    /// Returns the function by which the writing thread ends a call in the commit of its change.
    pub fn conclude(&self, tell: Tell, sieve: &Arc<Sieve>) -> Conclude {
        let (slot, sieve) = (self.clone(), sieve.clone());
        Conclude::new(move |ruled| {
            let begun = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                let outcome = tell(ruled)?;
                // What is ruled with its start was not broken off.
                Ended::of(outcome, true, begun.elapsed(), &sieve).ok()
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
