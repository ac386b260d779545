//! What a run decides, and what it reads to decide it.
//!
//! Invariant: a decision holds no content over the bound of a payload; its step fails instead.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    block::Cid,
    error::Code,
    event::{
        Body, PayloadRef,
        work::{Hold, Part, RetryPolicy, WorkflowStarted},
    },
};

/// The contents of payloads. Implementations should cache: the same content is asked for many times.
pub trait Contents {
    /// Returns a payload's content, parsed; `None` if it was erased.
    fn json(&self, payload: &Cid) -> Option<Arc<Value>>;

    /// Returns whether a payload's content is stored, so that a later event may name it.
    fn is_there(&self, payload: &Cid) -> bool {
        self.json(payload).is_some()
    }
}

/// A decision about a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The first step was taken by a worker, or is held.
    Begin(WorkflowStarted),
    Submit {
        task_id: String,
        step: String,
        part: Part,
        task_type: String,
        tool: Option<Cid>,
        /// JSON text.
        input: String,
        hold: Option<Hold>,
        retry: Option<RetryPolicy>,
        timeout_ms: Option<u64>,
        repeatable: bool,
        reuse: bool,
    },
    /// An ended task with this id runs again, with this input. If a child run holds it, that runs again too.
    Retry {
        task_id: String,
        step: String,
        part: Part,
        input: String,
        hold: Option<Hold>,
    },
    /// A task that is held by a child run, and the run.
    Child {
        task_id: String,
        step: String,
        part: Part,
        run: String,
        definition: Value,
    },
    /// A task that ends at once with the output of another run's: `task.submitted`, then `task.succeeded` with
    /// `reused` and a reference to `from`.
    Take {
        task_id: String,
        step: String,
        task_type: String,
        tool: Option<Cid>,
        input: Given,
        output: Option<PayloadRef>,
        from: Cid,
    },
    /// The same for a step over a list: `step.gathered` with a reference to `from`.
    TakeGathered {
        step: String,
        /// The list this step would run over now, `{"items": [...]}` as JSON text. Set only in a rerun.
        input: Option<String>,
        parts: u64,
        output: Option<PayloadRef>,
        from: Cid,
    },
    /// `step.skipped`.
    Skip {
        step: String,
        reason: &'static str,
    },
    /// `step.failed`; the message is the error payload's.
    Fail {
        step: String,
        code: String,
        message: String,
        /// The input this step would get now, as JSON text. Set only in a rerun, where the step failed in the
        /// original run.
        input: Option<String>,
    },
    /// `step.gathered`; the output is JSON text.
    Gather {
        step: String,
        output: String,
        parts: u64,
    },
    /// The signal that a held task waits for has come.
    Settle {
        task_id: String,
        output: Option<PayloadRef>,
        signal: Cid,
    },
    Cancel {
        task_id: String,
        /// The child run that holds it, which is cancelled with it.
        run: Option<String>,
        force: bool,
    },
    End(Body),
}

/// What another run has of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    Output { input: Option<PayloadRef>, output: Option<PayloadRef>, from: Cid },
    Gathered { parts: u64, output: Option<PayloadRef>, from: Cid },
    Failed { code: String },
}

impl Taken {
    /// The output that stands for the step's own.
    pub(super) fn output(&self) -> Option<PayloadRef> {
        match self {
            Self::Output { output, .. } | Self::Gathered { output, .. } => *output,
            Self::Failed { .. } => None,
        }
    }
}

/// The input of a task that takes its result from another run.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// The payload that the other run's task had.
    Recorded(Option<PayloadRef>),
    /// What it would be asked for in this run, as JSON text.
    Resolved(String),
}

impl Decision {
    /// Returns the same decision. If it would record content of more than `max` bytes, which no payload holds,
    /// returns the failure of its step.
    pub(super) fn within(self, max: usize) -> Self {
        let (step, content) = match &self {
            Self::Submit { step, input, .. } | Self::Retry { step, input, .. } => (step, input.len()),
            Self::Take { step, input: Given::Resolved(input), .. } => (step, input.len()),
            Self::TakeGathered { step, input: Some(input), .. } => (step, input.len()),
            Self::Fail { step, input: Some(input), .. } => (step, input.len()),
            Self::Gather { step, output, .. } => (step, output.len()),
            Self::Child { step, definition, .. } => (step, definition.to_string().len()),
            Self::Begin(_)
            | Self::Take { input: Given::Recorded(_), .. }
            | Self::TakeGathered { input: None, .. }
            | Self::Skip { .. }
            | Self::Fail { input: None, .. }
            | Self::Settle { .. }
            | Self::Cancel { .. }
            | Self::End(_) => return self,
        };
        if content <= max {
            return self;
        }
        let message = format!(
            "the step's content of {content} bytes is over the bound of {max}; pass less, or name it"
        );
        let code = Code::ResourceExhausted.as_str().to_owned();
        Self::Fail { step: step.clone(), code, message, input: None }
    }
}

/// The answer that is being made.
pub(super) struct DecisionBuilder<'a> {
    pub contents: &'a dyn Contents,
    pub now_ms: u64,
    /// How many tasks may still start.
    pub free: u64,
    pub decisions: Vec<Decision>,
}

impl DecisionBuilder<'_> {
    pub fn full(&self) -> bool {
        self.free == 0 || self.decisions.len() >= DECISIONS_MAX
    }
}

/// Decisions of one answer; the others come in the next.
pub(super) const DECISIONS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(output: &str) -> Decision {
        Decision::Gather { step: "wide".to_owned(), output: output.to_owned(), parts: 2 }
    }

    /// Content that no payload holds fails its step, where it would have stopped the ledger.
    #[test]
    fn content_over_the_bound_fails_the_step_that_makes_it() {
        let submit = |input: &str| Decision::Retry {
            task_id: "t".to_owned(),
            step: "narrow".to_owned(),
            part: Part::Whole,
            input: input.to_owned(),
            hold: None,
        };
        assert_eq!(gather("[1,2]").within(5), gather("[1,2]"));
        assert_eq!(submit("{}").within(2), submit("{}"));
        for (over, step) in [(gather("[1,20]"), "wide"), (submit("{ }"), "narrow")] {
            let Decision::Fail { step: failed, code, message, input } = over.within(2) else {
                panic!("{step} does not fail")
            };
            assert_eq!((failed.as_str(), code.as_str(), input), (step, "resource_exhausted", None));
            assert!(message.contains("over the bound of 2"), "{message}");
        }
    }
}
