//! The part of the golden log about questions in mid-call.
//!
//! Invariant: these events come after all that were in the golden log before them.

use serde_bytes::ByteArray;

use super::Story;
use crate::{
    block::Cid,
    event::body::{Body, CallAnswered, CallAsked, CallStarted, CallSucceeded, Question, Reaction},
};

impl Story {
    /// Adds a call that asks and is answered while it runs, one whose result asks, and one that brings the answer.
    pub(super) fn asking(&mut self) {
        let (call, started) = self.asks("5a");
        let asked = CallAsked { method: Question::Elicitation, n: 0, state: None };
        let asked = self.then(&call, Body::CallAsked(asked), started, None);
        let answered = CallAnswered { n: 0, how: Reaction::Accepted, took_us: Some(2_500) };
        let answered = self.then(&call, Body::CallAnswered(answered), asked, None);
        self.then(&call, succeeded(false), started, Some(answered));
        let (call, started) = self.asks("5b");
        let state = Some(ByteArray::new([5; 16]));
        let asked = CallAsked { method: Question::Sampling, n: 0, state };
        let asked = self.then(&call, Body::CallAsked(asked), started, None);
        self.then(&call, succeeded(true), started, None);
        let (call, started) = self.asks("5c");
        let answered = CallAnswered { n: 0, how: Reaction::Given, took_us: None };
        let answered = self.then(&call, Body::CallAnswered(answered), started, Some(asked));
        self.then(&call, succeeded(false), started, Some(answered));
    }

    fn asks(&mut self, id: &str) -> (String, Cid) {
        let subject = format!("call/019b76da-a800-7000-8000-0000000000{id}");
        let started = CallStarted {
            input_unchecked: None,
            method: "tools/call".into(),
            name: "echo".into(),
            source: "everything".into(),
            runtime: "upstream".into(),
            rule: "source".into(),
            runner: "019b76da-a800-7000-8000-000000000000".into(),
            key: None,
            trace: None,
        };
        let cause = self.add(&subject, Body::CallStarted(started));
        (subject, cause)
    }

    fn then(&mut self, subject: &str, body: Body, cause: Cid, after: Option<Cid>) -> Cid {
        let mut fact = self.fact(subject, body);
        (fact.cause, fact.refs) = (Some(cause), after.into_iter().collect());
        self.seal(fact)
    }
}

fn succeeded(input_required: bool) -> Body {
    Body::CallSucceeded(CallSucceeded {
        took_us: 1_234,
        input_required,
        output_mismatch: None,
        output_unchecked: None,
    })
}
