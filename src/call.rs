//! Calls: a request's life from the moment it will be tried to its one ending.
//!
//! Invariants:
//! - a started call gets exactly one ending;
//! - what is asked and answered in it stands before its ending;
//! - a key asked for again gives the first answer, or says why it cannot; it never runs a tool twice whose
//!   contract does not allow it.

pub mod asking;

use serde::{Deserialize, Serialize};

use self::asking::{Answer, Inquiry, Questions, To};
use crate::{
    block::Cid,
    contract::dialect::Unchecked,
    error::{Code, Refusal},
    event::{
        Actor, Body, Event, Fact, PayloadRef, Role,
        body::{
            CallAnswered, CallAsked, CallCancelled, CallFailed, CallInterrupted, CallRefused, CallStarted,
            CallSucceeded, Failure,
        },
        peer::RemoteCalled,
    },
};

/// Events elsewhere that a caller may name.
pub const START_REFS_MAX: usize = 8;
/// Peers that one call may be tried at.
pub const REMOTE_MAX: usize = 8;

/// One call, as the log remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub id: String,
    pub actor: Actor,
    pub tool: Option<Cid>,
    pub name: String,
    pub input: Option<Cid>,
    pub key: Option<Vec<u8>>,
    pub runner: String,
    pub started: Cid,
    #[serde(default)]
    pub questions: Questions,
    pub ending: Option<Ending>,
}

/// How a call ended, and where that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub how: How,
    pub event: Cid,
    pub seq: u64,
    pub output: Option<Cid>,
}

/// The five endings of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    Succeeded,
    Failed(Failure),
    Refused,
    Cancelled,
    Interrupted,
}

/// The wish to try a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub id: String,
    pub actor: Actor,
    pub tool: Option<Cid>,
    pub input: Option<PayloadRef>,
    pub facts: CallStarted,
    /// The commitment to its idempotency key as it was made once: what a call of before may have recorded.
    #[serde(default)]
    pub former_key: Option<Vec<u8>>,
    pub cause: Option<Cid>,
    /// Events elsewhere that it follows from, as its caller names them; at most [`START_REFS_MAX`].
    pub refs: Vec<Cid>,
    /// Whether the contract says that running twice does no more than running once.
    pub repeatable: bool,
    /// What is already known to forbid it: it is recorded, and nothing runs.
    pub refusal: Option<Refusal>,
}

/// What the rules say to a [`Start`].
#[derive(Clone, Debug, PartialEq)]
pub enum Ruling {
    /// Append this and run the tool.
    Run(Box<Fact>),
    /// Append both: the call and that it was refused; the second fact's cause is the first's event.
    Refuse(Box<Fact>, CallRefused),
    /// Append nothing: this is the first answer to the same key.
    Answered(Ending),
    /// Append nothing: the key cannot be answered now.
    Denied(Refusal),
}

/// How a running call ended, as the hands tell it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub id: String,
    pub outcome: EndOutcome,
    pub output: Option<PayloadRef>,
    pub took_us: u64,
    /// The peers it was tried at, in order; at most [`REMOTE_MAX`].
    pub remote: Vec<Remote>,
}

/// One try of a call at a peer, and the peer's own event of it where it named one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remote {
    pub facts: RemoteCalled,
    pub refs: Vec<Cid>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EndOutcome {
    Succeeded { input_required: bool, fit: Fit },
    Failed { failure: Failure, code: Option<i64> },
    Cancelled,
    Interrupted,
}

/// What a contract's output schema says of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fit {
    /// The result fits, or there is nothing that it should fit.
    #[default]
    Fits,
    /// The result does not fit at this place of the schema, or has no structured content.
    Misfit(String),
    Unchecked(Unchecked),
}

impl EndOutcome {
    /// What the output of a call is that ended so.
    pub fn role(&self) -> Role {
        match self {
            Self::Succeeded { .. } => Role::Output,
            Self::Failed { .. } | Self::Cancelled | Self::Interrupted => Role::Error,
        }
    }
}

impl Start {
    /// The call as it stands once this wish is recorded by the event `started`: what [`Call::begun`] reads from it.
    pub fn begun(self, started: Cid) -> Call {
        Call {
            id: self.id,
            actor: self.actor,
            tool: self.tool,
            name: self.facts.name,
            input: self.input.map(|input| input.cid),
            key: self.facts.key,
            runner: self.facts.runner,
            started,
            questions: Questions::default(),
            ending: None,
        }
    }
}

impl Call {
    /// The call that a `call.started` event begins.
    pub fn begun(event: &Event) -> Option<Self> {
        let fields = event.fields();
        let Some(Body::CallStarted(facts)) = event.body() else {
            return None;
        };
        Some(Self {
            id: fields.subject.strip_prefix("call/")?.to_owned(),
            actor: fields.actor.clone(),
            tool: fields.tool,
            name: facts.name,
            input: fields.payload(Role::Input).map(|input| input.cid),
            key: facts.key,
            runner: facts.runner,
            started: event.cid(),
            questions: Questions::default(),
            ending: None,
        })
    }

    /// Folds a later event of this call.
    pub fn apply(&mut self, event: &Event) {
        let how = match event.body() {
            Some(Body::CallSucceeded(_)) => How::Succeeded,
            Some(Body::CallFailed(facts)) => How::Failed(facts.failure),
            Some(Body::CallRefused(_)) => How::Refused,
            Some(Body::CallCancelled(_)) => How::Cancelled,
            Some(Body::CallInterrupted(_)) => How::Interrupted,
            _ => return self.questions.apply(event),
        };
        let fields = event.fields();
        let output = fields.payload(Role::Output).or_else(|| fields.payload(Role::Error));
        self.ending = Some(Ending {
            how,
            event: event.cid(),
            seq: fields.seq,
            output: output.map(|output| output.cid),
        });
    }
}

/// The subject of a call's events.
pub fn subject(id: &str) -> String {
    format!("call/{id}")
}

/// Asks whether a call may be tried. `earlier` is the latest call with the same actor, name and key.
pub fn start(earlier: Option<&Call>, wish: &Start) -> Ruling {
    let started = Fact {
        cause: wish.cause,
        refs: wish.refs.iter().copied().take(START_REFS_MAX).collect(),
        actor: wish.actor.clone(),
        subject: subject(&wish.id),
        tool: wish.tool,
        payloads: wish.input.into_iter().collect(),
        body: Body::CallStarted(wish.facts.clone()),
    };
    if let Some(refusal) = &wish.refusal {
        let refused = CallRefused { code: refusal.code.as_str().to_owned() };
        return Ruling::Refuse(Box::new(started), refused);
    }
    match earlier.map(|earlier| again(earlier, wish)) {
        None | Some(Again::Run) => Ruling::Run(Box::new(started)),
        Some(Again::After(first)) => {
            let refs = started.refs.iter().copied().chain([first]).collect();
            Ruling::Run(Box::new(Fact { refs, ..started }))
        }
        Some(Again::Answered(ending)) => Ruling::Answered(ending),
        Some(Again::Denied(refusal)) => Ruling::Denied(refusal),
    }
}

/// What a key means the second time.
enum Again {
    Run,
    /// Run, and name the attempt whose outcome is unknown.
    After(Cid),
    Answered(Ending),
    Denied(Refusal),
}

fn again(earlier: &Call, wish: &Start) -> Again {
    let same = earlier.input == wish.input.map(|input| input.cid) && earlier.tool == wish.tool;
    let Some(ending) = earlier.ending.as_ref() else {
        return match same {
            true => Again::Denied(
                Refusal::new(Code::Conflict, "a call with this idempotency key is still running")
                    .retryable()
                    .hint("ask again with the same key"),
            ),
            false => Again::Denied(other_content()),
        };
    };
    match ending.how {
        How::Refused | How::Failed(Failure::Untaken) => Again::Run,
        _ if !same => Again::Denied(other_content()),
        How::Succeeded | How::Failed(Failure::Tool | Failure::Protocol) => Again::Answered(ending.clone()),
        How::Failed(Failure::Transport | Failure::Timeout | Failure::Internal)
        | How::Cancelled
        | How::Interrupted => match wish.repeatable {
            true => Again::After(ending.event),
            false => Again::Denied(
                Refusal::new(
                    Code::FailedPrecondition,
                    "the first call with this idempotency key ended without an answer; whether it took effect is not known",
                )
                .hint("look at the first call's event, then use a new key"),
            ),
        },
    }
}

fn other_content() -> Refusal {
    Refusal::new(Code::AlreadyExists, "this idempotency key was used for a call with other content")
        .hint("use a new key for new content")
}

/// Ends an open call. `open` is none where no such call is running.
pub fn end(open: Option<&Call>, end: &End) -> Result<Fact, Refusal> {
    let open = running(open)?;
    let took_us = end.took_us;
    let body = match end.outcome {
        EndOutcome::Succeeded { input_required, ref fit } => {
            let (output_mismatch, output_unchecked) = match fit {
                Fit::Fits => (None, None),
                Fit::Misfit(place) => (Some(place.clone()), None),
                Fit::Unchecked(why) => (None, Some(*why)),
            };
            let facts = CallSucceeded { took_us, input_required, output_mismatch, output_unchecked };
            Body::CallSucceeded(facts)
        }
        EndOutcome::Failed { failure, code } => Body::CallFailed(CallFailed { failure, took_us, code }),
        EndOutcome::Cancelled => Body::CallCancelled(CallCancelled { took_us }),
        EndOutcome::Interrupted => Body::CallInterrupted(CallInterrupted { runner: open.runner.clone() }),
    };
    Ok(Fact { refs: open.questions.news(), ..fact(open, body, end.output) })
}

/// Records a question of an open call. `open` is none where no such call is running.
pub fn ask(open: Option<&Call>, ask: &Inquiry) -> Result<Fact, Refusal> {
    let open = running(open)?;
    open.questions.ask(ask.n)?;
    let body = Body::CallAsked(CallAsked { method: ask.method, n: ask.n, state: ask.state });
    Ok(Fact { refs: open.questions.news(), ..fact(open, body, Some(ask.question)) })
}

/// Records an answer in an open call. `earlier` is the event of the question, where an earlier call asked it.
pub fn answer(open: Option<&Call>, answer: &Answer, earlier: Option<Cid>) -> Result<Fact, Refusal> {
    let open = running(open)?;
    let asked = open.questions.answer(answer.n, &answer.to)?;
    let took_us = match answer.to {
        To::Question { took_us } => Some(took_us),
        To::Earlier { .. } => None,
    };
    let body = Body::CallAnswered(CallAnswered { n: answer.n, how: answer.how, took_us });
    let fact = fact(open, body, Some(answer.answer));
    Ok(Fact { cause: asked.or(fact.cause), refs: earlier.into_iter().collect(), ..fact })
}

fn running(open: Option<&Call>) -> Result<&Call, Refusal> {
    open.filter(|call| call.ending.is_none()).ok_or_else(|| {
        Refusal::new(Code::Conflict, "this call is not running: it has ended, or never started")
    })
}

/// The refusal of a call that was just started.
pub fn refuse(open: &Call, facts: CallRefused, output: Option<PayloadRef>) -> Fact {
    fact(open, Body::CallRefused(facts), output)
}

/// Returns a fact about an open call that its start has caused.
fn fact(open: &Call, body: Body, payload: Option<PayloadRef>) -> Fact {
    Fact {
        cause: Some(open.started),
        refs: Vec::new(),
        actor: open.actor.clone(),
        subject: subject(&open.id),
        tool: open.tool,
        payloads: payload.into_iter().collect(),
        body,
    }
}

#[cfg(test)]
mod tests;
