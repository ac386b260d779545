//! Forms that the tools of durable work share: times, retry policies, and the fields of a task.
//!
//! Invariants:
//! - times are written in RFC 3339, in UTC, with milliseconds;
//! - only forms change here: bounds are those of the schemas and the rules.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    error::{Code, Refusal},
    event::work::{Part, RetryPolicy, TaskSubmitted},
};

pub const PRIORITY_DEFAULT: u64 = 50;

/// The arguments of a task, for `task_submit` and for schedules, which name their tasks themselves.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub task_id: Option<String>,
    pub task_type: String,
    /// The bytes as they came.
    pub payload: Box<RawValue>,
    #[serde(default = "priority_default")]
    pub priority: u64,
    #[serde(default)]
    pub tags: Vec<String>,
    pub timeout_ms: Option<u64>,
    /// The timeout in seconds.
    pub timeout: Option<u64>,
    #[serde(default)]
    pub retry_policy: Retry,
    pub metadata: Option<Box<RawValue>>,
    pub not_before: Option<String>,
    pub unique_key: Option<String>,
    pub concurrency_key: Option<String>,
    pub rate_key: Option<String>,
    #[serde(default)]
    pub requires: Vec<String>,
    pub reason: Option<String>,
}

/// A retry policy as callers write it.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    pub max_retries: u64,
    pub backoff_ms: u64,
    pub backoff_factor: f64,
    pub max_backoff_ms: u64,
    pub jitter: bool,
}

impl Wish {
    /// Returns the facts of the task, without `order`, which the rule sets, and `repeatable` and `reuse`, which
    /// depend on its contract.
    pub fn facts(&self) -> Result<TaskSubmitted, Refusal> {
        let timeout_ms = match (self.timeout_ms, self.timeout) {
            (Some(_), Some(_)) => {
                let message = "timeout_ms, timeout: one or the other";
                return Err(Refusal::new(Code::InvalidArgument, message));
            }
            (ms, seconds) => ms.or(seconds.map(|seconds| seconds.saturating_mul(1_000))),
        };
        let not_before_ms =
            self.not_before.as_deref().map(|text| moment_ms("not_before", text)).transpose()?;
        let mut requires = self.requires.clone();
        requires.sort();
        requires.dedup();
        Ok(TaskSubmitted {
            task_type: self.task_type.clone(),
            priority: self.priority,
            order: 0,
            not_before_ms,
            timeout_ms,
            retry: self.retry_policy.policy(),
            tags: self.tags.clone(),
            requires,
            unique_key: self.unique_key.clone(),
            concurrency_key: self.concurrency_key.clone(),
            rate_key: self.rate_key.clone(),
            run: None,
            step: None,
            part: Part::Whole,
            hold: None,
            repeatable: false,
            reuse: false,
            handle: None,
        })
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_retries: 0, backoff_ms: 1_000, backoff_factor: 2.0, max_backoff_ms: 60_000, jitter: true }
    }
}

impl Retry {
    pub fn policy(self) -> RetryPolicy {
        let Self { max_retries, backoff_ms, backoff_factor, max_backoff_ms, jitter } = self;
        let factor_milli = (backoff_factor * 1_000.0).round() as u64;
        RetryPolicy { max_retries, backoff_ms, factor_milli, max_backoff_ms, jitter }
    }
}

/// Formats a time. One past the year 9999 becomes the last moment that can be written.
pub fn time(ms: u64) -> String {
    let moment = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", moment.unwrap_or(Timestamp::MAX))
}

/// Parses a time to milliseconds since the epoch; `field` is its name, for the error.
fn moment_ms(field: &str, text: &str) -> Result<u64, Refusal> {
    let moment: Option<Timestamp> = text.parse().ok();
    moment.and_then(|moment| u64::try_from(moment.as_millisecond()).ok()).ok_or_else(|| {
        Refusal::new(Code::InvalidArgument, format!("{field}: not a time since 1970 in RFC 3339"))
            .hint("like 2026-11-21T09:00:00Z")
    })
}

fn priority_default() -> u64 {
    PRIORITY_DEFAULT
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Wish, moment_ms, time};
    use crate::{error::Code, event::work::TaskSubmitted};

    fn facts(more: Value) -> Result<TaskSubmitted, Code> {
        let mut wish = json!({"task_type": "thumbnail", "payload": {}});
        let (fields, more) = (wish.as_object_mut().expect("an object"), more.as_object().expect("an object"));
        fields.extend(more.clone());
        let wish: Wish = serde_json::from_str(&wish.to_string()).expect("a wish that can be read");
        wish.facts().map_err(|refusal| refusal.code)
    }

    #[test]
    fn what_is_left_out_is_the_default_of_the_schema() {
        let schema: Value =
            serde_json::from_str(include_str!("../../schemas/tools/task_submit.json")).expect("a schema");
        let properties = &schema["inputSchema"]["properties"];
        let retry = &properties["retry_policy"]["properties"];
        let facts = facts(json!({})).expect("facts");
        assert_eq!(properties["priority"]["default"], facts.priority);
        assert_eq!(retry["max_retries"]["default"], facts.retry.max_retries);
        assert_eq!(retry["backoff_ms"]["default"], facts.retry.backoff_ms);
        assert_eq!(retry["backoff_factor"]["default"], facts.retry.factor_milli / 1_000);
        assert_eq!(retry["max_backoff_ms"]["default"], facts.retry.max_backoff_ms);
        assert_eq!(retry["jitter"]["default"], facts.retry.jitter);
        assert_eq!(facts.timeout_ms, None);
    }

    #[test]
    fn older_and_newer_names_say_the_same() {
        assert_eq!(facts(json!({"timeout": 30})), facts(json!({"timeout_ms": 30_000})));
        assert_eq!(facts(json!({"timeout": 30, "timeout_ms": 30_000})), Err(Code::InvalidArgument));
        let factor =
            facts(json!({"retry_policy": {"backoff_factor": 1.5}})).map(|facts| facts.retry.factor_milli);
        assert_eq!(factor, Ok(1_500));
        let requires = facts(json!({"requires": ["gpu", "avx", "gpu"]})).map(|facts| facts.requires);
        assert_eq!(requires, Ok(vec!["avx".to_owned(), "gpu".to_owned()]));
    }

    #[test]
    fn times_are_said_with_milliseconds_and_read_in_any_zone() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_795_224_739_188), "2026-11-21T01:32:19.188Z");
        assert_eq!(time(u64::MAX), "9999-12-30T22:00:00.999Z");
        assert_eq!(moment_ms("not_before", &time(1_795_224_739_188)), Ok(1_795_224_739_188));
        assert_eq!(moment_ms("not_before", "1970-01-01T01:00:00.5+01:00"), Ok(500));
        for text in ["", "tomorrow", "2026-11-21", "1969-12-31T23:59:59Z"] {
            assert_eq!(
                moment_ms("not_before", text).map_err(|refusal| refusal.code),
                Err(Code::InvalidArgument)
            );
        }
    }
}
