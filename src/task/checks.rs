//! What a submission may say: bounds and names, each fault with its field.
//!
//! Facts that differ only in what was changed since are the same facts.

use crate::{
    error::{Code, Refusal},
    event::{PayloadRef, work::TaskSubmitted},
    task::{
        CAPABILITIES_MAX, FACTOR_MILLI, Limits, MOMENT_MAX_MS, NAME_MAX, PRIORITY_MAX, REQUIRES_MAX,
        RETRIES_MAX, SPAN_MAX_MS, TAG_MAX, TAGS_MAX, Task, WAIT_PREFIX, name_allowed,
    },
    words::plain::is_plain,
};

impl Default for Limits {
    fn default() -> Self {
        Self { lease_ms: 30_000, ageing_ms: 60_000, queue_max: 10_000, attempts_max: 5 }
    }
}

impl Task {
    /// Whether this task was submitted with these facts and this input.
    pub(super) fn promises_same(&self, facts: &TaskSubmitted, input: &PayloadRef) -> bool {
        let mut first = self.facts.clone();
        first.priority = self.asked.priority;
        first.timeout_ms = self.asked.timeout_ms;
        first.retry.max_retries = self.asked.max_retries;
        first.order = facts.order;
        // A revived wait has another end; the log knows it by its id alone.
        first.hold.clone_from(&facts.hold);
        first == *facts && self.input.is_some_and(|first| first.cid == input.cid)
    }
}

/// Refuses the first fault of a submission.
pub(super) fn submission(id: &str, facts: &TaskSubmitted) -> Result<(), Refusal> {
    // The ids of steps are made by the rules of runs, which have checked what they are made of.
    rule(facts.run.is_some() || name_allowed(id), || names("task_id"))?;
    rule(name_allowed(&facts.task_type), || names("task_type"))?;
    rule(facts.task_type.starts_with(WAIT_PREFIX) == facts.hold.is_some(), || {
        format!("task_type: types that begin with `{WAIT_PREFIX}` are the node's own")
    })?;
    priority(facts.priority)?;
    rule(facts.tags.len() <= TAGS_MAX, || format!("tags: at most {TAGS_MAX}"))?;
    let tag_allowed = |tag: &String| !tag.is_empty() && tag.chars().count() <= TAG_MAX && is_plain(tag);
    rule(facts.tags.iter().all(tag_allowed), || {
        format!("tags: 1 to {TAG_MAX} characters each, without control characters")
    })?;
    rule(facts.requires.len() <= REQUIRES_MAX, || format!("requires: at most {REQUIRES_MAX}"))?;
    rule(facts.requires.iter().all(|word| name_allowed(word)), || names("requires"))?;
    let keys = [
        ("unique_key", &facts.unique_key),
        ("concurrency_key", &facts.concurrency_key),
        ("rate_key", &facts.rate_key),
    ];
    for (field, key) in keys {
        rule(key.as_deref().is_none_or(name_allowed), || names(field))?;
    }
    retries(facts.retry.max_retries)?;
    rule(FACTOR_MILLI.contains(&facts.retry.factor_milli), || "backoff_factor: from 1 to 100".into())?;
    span("backoff_ms", facts.retry.backoff_ms)?;
    span("max_backoff_ms", facts.retry.max_backoff_ms)?;
    timeout(facts.timeout_ms)?;
    if let Some(handle) = &facts.handle {
        span("ttl_ms", handle.ttl_ms)?;
        let len = handle.capabilities.as_ref().map_or(0, String::len);
        rule(len <= CAPABILITIES_MAX, || format!("capabilities: at most {CAPABILITIES_MAX} bytes"))?;
    }
    rule(facts.not_before_ms.is_none_or(|ms| ms <= MOMENT_MAX_MS), || {
        "not_before: after the year 9999".into()
    })
}

pub(super) fn priority(priority: u64) -> Result<(), Refusal> {
    rule(priority <= PRIORITY_MAX, || format!("priority: from 0 to {PRIORITY_MAX}"))
}

pub(super) fn retries(max_retries: u64) -> Result<(), Refusal> {
    rule(max_retries <= RETRIES_MAX, || format!("max_retries: at most {RETRIES_MAX}"))
}

/// An attempt that may take no time at all could never end otherwise.
pub(super) fn timeout(timeout_ms: Option<u64>) -> Result<(), Refusal> {
    rule(timeout_ms != Some(0), || "timeout_ms: at least 1".into())?;
    span("timeout_ms", timeout_ms.unwrap_or(0))
}

fn span(field: &str, ms: u64) -> Result<(), Refusal> {
    rule(ms <= SPAN_MAX_MS, || format!("{field}: at most {SPAN_MAX_MS}"))
}

fn names(field: &str) -> String {
    format!("{field}: names are 1 to {NAME_MAX} characters of A-Z a-z 0-9 . _ : / -")
}

fn rule(holds: bool, fault: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::new(Code::InvalidArgument, fault())) }
}
