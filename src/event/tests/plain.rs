//! Facts of durable work with nothing in them that may be left out, for tests to say more of.
//!
//! Invariant: a field that is added to an event is empty here.

use crate::event::work::{Part, RetryPolicy, TaskSubmitted};

impl TaskSubmitted {
    /// A task of this type without anything that a task may lack, for tests to say more of.
    pub(crate) fn plain(task_type: &str) -> Self {
        Self {
            task_type: task_type.to_owned(),
            priority: 50,
            order: 0,
            not_before_ms: None,
            timeout_ms: None,
            retry: RetryPolicy::NEVER,
            tags: Vec::new(),
            requires: Vec::new(),
            unique_key: None,
            concurrency_key: None,
            rate_key: None,
            run: None,
            step: None,
            part: Part::Whole,
            hold: None,
            repeatable: false,
            reuse: false,
            handle: None,
        }
    }
}
