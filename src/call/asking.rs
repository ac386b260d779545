//! Questions: what a tool's server asks the caller's client while a call runs, and what it was answered.
//!
//! Invariants:
//! - questions are numbered from 0 without gaps, and each is answered at most once;
//! - every answer is a parent of the next question, or else of the ending: what came of it can be traced back to it.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Body, Event, PayloadRef, QUESTIONS_MAX, REFS_MAX,
        body::{Question, Reaction},
    },
};

/// Questions of one call that may wait for their answers, and answers that may come with one request. All of them can
/// be named in the refs of one event.
pub const WAITING_MAX: usize = REFS_MAX;

/// The wish to record a question before the caller's client is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inquiry {
    /// The call.
    pub id: String,
    /// The number of the question in the call.
    pub n: u64,
    pub method: Question,
    /// Commits to the state that a later request will bring, where the question is part of the call's result.
    pub state: Option<ByteArray<16>>,
    pub question: PayloadRef,
}

/// The wish to record an answer before the tool's server gets it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The call.
    pub id: String,
    pub n: u64,
    pub how: Reaction,
    pub answer: PayloadRef,
    pub to: To,
}

/// Which question an answer is to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum To {
    /// The question with the answer's number, asked in the same call.
    Question { took_us: u64 },
    /// A question in the result of an earlier call, which committed to the same state.
    Earlier { state: Option<ByteArray<16>> },
}

/// The questions of one call so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Questions {
    asked: Vec<Asked>,
    /// The answers that came with the request.
    given: Vec<Cid>,
    /// The answers that no later event of the call has named.
    news: Vec<Cid>,
}

/// One question and its answer, by their events.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub event: Cid,
    pub answered: Option<Cid>,
}

impl Questions {
    /// Returns the question with this number.
    pub fn get(&self, n: u64) -> Option<Asked> {
        self.asked.get(usize::try_from(n).ok()?).copied()
    }

    /// Returns the answer with this number among those that came with the request.
    pub fn given(&self, n: u64) -> Option<Cid> {
        self.given.get(usize::try_from(n).ok()?).copied()
    }

    /// Returns the answers that the next question, or the ending, follows from.
    pub fn news(&self) -> Vec<Cid> {
        self.news.clone()
    }

    /// Folds an event of the call.
    pub fn apply(&mut self, event: &Event) {
        match event.body() {
            Some(Body::CallAsked(_)) => {
                self.asked.push(Asked { event: event.cid(), answered: None });
                self.news.clear();
            }
            Some(Body::CallAnswered(_)) => {
                let cause = event.fields().cause;
                match self.asked.iter_mut().find(|asked| Some(asked.event) == cause) {
                    Some(asked) => asked.answered = Some(event.cid()),
                    None => self.given.push(event.cid()),
                }
                self.news.push(event.cid());
            }
            _ => {}
        }
    }

    /// Asks whether a question may be asked.
    pub fn ask(&self, n: u64) -> Result<(), Refusal> {
        let asked = self.asked.len() as u64;
        if asked >= QUESTIONS_MAX {
            let message = format!("a call may ask its client at most {QUESTIONS_MAX} questions");
            return Err(Refusal::new(Code::ResourceExhausted, message));
        }
        if self.asked.iter().filter(|asked| asked.answered.is_none()).count() >= WAITING_MAX {
            let message = format!("{WAITING_MAX} questions of this call wait for their answers");
            return Err(Refusal::new(Code::ResourceExhausted, message).retryable());
        }
        match n {
            n if n == asked => Ok(()),
            n if n < asked => {
                Err(Refusal::new(Code::AlreadyExists, "the call has a question of this number"))
            }
            _ => Err(Refusal::new(Code::Conflict, "the question before this one was not asked")),
        }
    }

    /// Asks whether an answer may be recorded. Returns its cause, where that is a question of this call.
    pub fn answer(&self, n: u64, to: &To) -> Result<Option<Cid>, Refusal> {
        let conflict = |message: &str| Err(Refusal::new(Code::Conflict, message));
        match (to, self.get(n)) {
            (To::Question { .. }, Some(Asked { event, answered: None })) => Ok(Some(event)),
            (To::Question { .. }, Some(_)) => conflict("this question was answered already"),
            (To::Question { .. }, None) => conflict("this question was not asked"),
            (To::Earlier { .. }, _) if n >= WAITING_MAX as u64 => {
                let message = format!("a request may bring at most {WAITING_MAX} answers");
                Err(Refusal::new(Code::ResourceExhausted, message))
            }
            (To::Earlier { .. }, _) if n != self.given.len() as u64 || !self.asked.is_empty() => {
                conflict("answers that come with a request are recorded in order, before anything is asked")
            }
            (To::Earlier { .. }, _) => Ok(None),
        }
    }
}
