//! Checks the values of a body beyond their types: the bounds and closed lists of the event schemas.
//!
//! Invariants:
//! - a test holds that every bound of `schemas/events` that a type does not keep is checked here;
//! - a value that was ever recorded stays allowed, so a narrower bound needs a new version of the kind.

use ipld_core::ipld::Ipld;

use crate::{
    block::decode_ipld,
    contract::dialect::{MISSING, PLACE_MAX},
    event::{Body, QUESTIONS_MAX, peer::Attempt},
};

/// Lists the codes of refusals and of failed steps.
const CODES: &[&str] = &[
    "invalid_argument",
    "not_found",
    "already_exists",
    "conflict",
    "failed_precondition",
    "permission_denied",
    "resource_exhausted",
    "deadline_exceeded",
    "cancelled",
    "unavailable",
    "internal",
];
const METHODS: &[&str] = &["tools/call", "resources/read", "prompts/get", "completion/complete"];
const PRIORITY_MAX: u64 = 100;
const PROGRESS_MAX: u64 = 100;
const ADDRESS_BYTES_MAX: usize = 256;
const ADDRESSES_MAX: usize = 16;
const CAPABILITIES_MAX: usize = 256;
const PROTOCOLS_MAX: usize = 32;
const ATTEMPTS_MAX: usize = 64;

/// An empty text in DAG-CBOR is this one byte.
const EMPTY_TEXT: u8 = 0x60;

/// Returns whether every empty text of a body is one that the schema of its kind allows.
pub(super) fn texts_are_there(kind: &str, body: &[u8]) -> bool {
    let may_be_empty: &[&str] = match kind {
        "call.started" => &["name", "source", "runtime", "rule", "runner"],
        "call.interrupted" => &["runner"],
        "config.applied" => &["settings"],
        "workflow.submitted" => &["from_step"],
        _ => &[],
    };
    // The byte may be part of another value, so only its absence decides quickly.
    !body.contains(&EMPTY_TEXT) || decode_ipld(body).is_ok_and(|body| !has_empty_text(&body, may_be_empty))
}

fn has_empty_text(value: &Ipld, may_be_empty: &[&str]) -> bool {
    match value {
        Ipld::String(text) => text.is_empty(),
        Ipld::List(items) => items.iter().any(|item| has_empty_text(item, may_be_empty)),
        Ipld::Map(entries) => entries
            .iter()
            .any(|(key, value)| !may_be_empty.contains(&key.as_str()) && has_empty_text(value, may_be_empty)),
        Ipld::Null | Ipld::Bool(_) | Ipld::Integer(_) | Ipld::Float(_) | Ipld::Bytes(_) | Ipld::Link(_) => {
            false
        }
    }
}

/// Returns whether every value is within the bounds of its kind's schema.
pub(super) fn fit(body: &Body) -> bool {
    match body {
        Body::CallStarted(facts) => {
            one_of(&facts.method, METHODS) && facts.trace.as_deref().is_none_or(is_trace)
        }
        Body::CallSucceeded(facts) => facts.output_mismatch.as_deref().is_none_or(is_misfit),
        Body::CallRefused(facts) => one_of(&facts.code, CODES),
        Body::CallAsked(facts) => facts.n < QUESTIONS_MAX,
        Body::CallAnswered(facts) => facts.n < QUESTIONS_MAX,
        Body::StepFailed(facts) => one_of(&facts.code, CODES),
        Body::TaskSubmitted(facts) => facts.priority <= PRIORITY_MAX,
        Body::TaskClaimed(facts) => facts.effective <= PRIORITY_MAX,
        Body::TaskRenewed(facts) => facts.progress.is_none_or(|progress| progress <= PROGRESS_MAX),
        Body::TaskDead(facts) => one_of(&facts.reason, &["retries_spent", "poison"]),
        Body::TaskReprioritised(facts) => facts.from <= PRIORITY_MAX && facts.to <= PRIORITY_MAX,
        Body::QueueCleared(facts) => one_of(&facts.status, &["queued", "failed", "dead", "cancelled"]),
        Body::WorkerRegistered(facts) => !facts.capabilities.is_empty(),
        Body::WorkflowSubmitted(facts) => facts.priority <= PRIORITY_MAX,
        Body::WorkflowRescheduled(facts) => facts.priority.is_none_or(|priority| priority <= PRIORITY_MAX),
        Body::WorkflowFailed(facts) => one_of(&facts.reason, &["step_failed", "dependency_failed"]),
        Body::WorkflowReplayed(facts) => one_of(&facts.mode, &["verify", "rerun"]),
        Body::StepSkipped(facts) => one_of(&facts.reason, &["condition", "upstream"]),
        Body::ScheduleCreated(facts) => one_of(&facts.makes, &["task", "workflow"]),
        Body::PeerDiscovered(facts) => {
            facts.addrs.len() <= ADDRESSES_MAX
                && facts.addrs.iter().all(|address| is_address(address))
                && facts.capabilities.as_ref().is_none_or(|names| names.len() <= CAPABILITIES_MAX)
        }
        Body::PeerConnected(facts) => is_address(&facts.address) && facts.protocols.len() <= PROTOCOLS_MAX,
        Body::PeerUnreachable(facts) => is_address(&facts.address),
        Body::BootstrapFinished(facts) => {
            let known = |attempt: &Attempt| is_address(&attempt.address);
            facts.attempts.len() <= ATTEMPTS_MAX && facts.attempts.iter().all(known)
        }
        Body::RemoteCalled(facts) => facts.attempt >= 1,
        Body::TokenAdded(facts) => !facts.scopes.is_empty(),
        Body::AccessRead(facts) => facts.reads >= 1,
        Body::AccessRefused(facts) => facts.refusals >= 1,
        Body::ConfigApplied(facts) => facts.settings.len() <= crate::event::keeping::SETTINGS_MAX,
        _ => true,
    }
}

fn one_of(text: &str, allowed: &[&str]) -> bool {
    allowed.contains(&text)
}

/// Returns whether a text is `missing`, or `#` and a JSON Pointer without control characters.
fn is_misfit(text: &str) -> bool {
    let printable = text.chars().count() <= PLACE_MAX && !text.chars().any(|c| c < ' ' || c == '\u{7f}');
    let place = |place: &str| place.is_empty() || place.starts_with('/');
    printable && (text == MISSING || text.strip_prefix('#').is_some_and(place))
}

fn is_address(text: &str) -> bool {
    (1..=ADDRESS_BYTES_MAX).contains(&text.chars().count())
}

/// Returns whether a text begins like a `traceparent` (W3C Trace Context, section 3.2): `00-<32 hex>-<16 hex>-<2 hex>`.
fn is_trace(text: &str) -> bool {
    let fields = [2, 32, 16, 2];
    let mut rest = text;
    fields.iter().enumerate().all(|(at, len)| {
        let Some((field, after)) = rest.split_at_checked(*len) else { return false };
        let hex = field.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        rest = if at + 1 < fields.len() { after.strip_prefix('-').unwrap_or("") } else { after };
        hex && (at + 1 == fields.len() || after.starts_with('-'))
    })
}
