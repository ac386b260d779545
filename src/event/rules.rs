//! The rules that an event must keep beyond its form. Logs, archives and receipts are verified by them.
//!
//! Invariants:
//! - the rules are pure and the same for every reader, so what one refuses, all refuse;
//! - for a kind or version that this build does not know, only the rules common to all events are checked.

mod values;

use std::collections::HashMap;

use super::{Body, Event, Fields, VERSION};
use crate::block::{Cid, encode};

/// Lists the kinds that end a call.
const ENDINGS: [&str; 5] =
    ["call.succeeded", "call.failed", "call.refused", "call.interrupted", "call.cancelled"];

/// Holds what the rules look at, however the event was read.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub v: u64,
    pub kind: &'a str,
    pub log: Cid,
    pub seq: u64,
    pub subject: &'a str,
    pub cause: Option<Cid>,
    pub tool: Option<Cid>,
    /// The bytes of the event's body.
    pub body: &'a [u8],
}

/// Checks what one event says on its own. Returns its facts, or none if this build does not know its kind or version.
/// Errors: the rule that it breaks, in words.
pub fn check(said: &Said<'_>) -> Result<Option<Body>, &'static str> {
    let first = said.kind == "log.opened";
    if first != (said.seq == 0) {
        return Err(match first {
            true => "log.opened stands behind the first event",
            false => "the first event is not log.opened",
        });
    }
    // The first event names the log's genesis block, so its version must be known.
    if first && said.v != VERSION {
        return Err("log.opened is of a version that is not known");
    }
    // Nobody could follow the log's keys past a change that is not understood.
    if said.kind == "log.key_rotated" && said.v != VERSION {
        return Err("log.key_rotated is of a version that is not known");
    }
    if ENDINGS.contains(&said.kind) && said.cause.is_none() {
        return Err("an ending of a call names no start of one");
    }
    if said.v != VERSION {
        return Ok(None);
    }
    let facts =
        Body::open(said.kind, said.body).map_err(|_| "the body is not what the schema of its kind says")?;
    let Some(facts) = facts else { return Ok(None) };
    if !values::fit(&facts) || !values::texts_are_there(said.kind, said.body) {
        return Err("a value is out of the bounds that the schema of its kind sets");
    }
    if !subject_fits(said.kind, said.subject) {
        return Err("the subject is not of its kind");
    }
    match &facts {
        Body::LogOpened(facts) if facts.genesis != said.log => {
            Err("log.opened names another genesis than `log`")
        }
        Body::LogTakenOver(facts) if facts.from_seq.checked_add(facts.events) != Some(said.seq) => {
            Err("log.taken_over names other events than those up to it")
        }
        _ => Ok(Some(facts)),
    }
}

/// Checks an event that was opened, like [`check`].
pub fn check_event(event: &Event) -> Result<Option<Body>, &'static str> {
    check(&said(event, &encode(&event.fields().body)))
}

/// Returns what the rules look at in an event that was opened. `body` must be the bytes of its body.
pub fn said<'a>(event: &'a Event, body: &'a [u8]) -> Said<'a> {
    let Fields { v, log, seq, cause, tool, .. } = *event.fields();
    let Fields { kind, subject, .. } = event.fields();
    Said { v, kind, log, seq, subject, cause, tool, body }
}

/// Returns whether an event of a known kind has a subject of that kind.
fn subject_fits(kind: &str, subject: &str) -> bool {
    let entity = match kind.split_once('.').map_or(kind, |(noun, _)| noun) {
        _ if kind == "log.followed" => "peer/",
        "queue" => return subject == "queue",
        "call" => "call/",
        "contract" => "contract/",
        "task" => "task/",
        "worker" => "worker/",
        "workflow" | "step" => "workflow/",
        "schedule" => "schedule/",
        "peer" | "remote" => "peer/",
        "bootstrap" => "bootstrap/",
        "token" => "token/",
        "config" => "config/",
        "log" | "payload" | "access" => return subject == "log",
        _ => return true,
    };
    subject.strip_prefix(entity).is_some_and(|id| !id.is_empty())
}

/// Holds the calls that have begun and not ended. A call must end at most once, under the subject and contract it began
/// with; until then its questions come one after another, and each is answered at most once.
#[derive(Clone, Debug, Default)]
pub struct OpenCalls {
    begun: HashMap<Cid, OpenCall>,
    /// The start of the call and the number of each question that is not answered.
    asked: HashMap<Cid, (Cid, u64)>,
}

#[derive(Clone, Debug)]
struct OpenCall {
    subject: String,
    tool: Option<Cid>,
    /// The questions asked so far.
    asked: Vec<Cid>,
    /// Counts the answers that came with the request.
    given: u64,
}

/// Says whether an event asks, answers in, or ends a call as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The event is of no call, or it does with an open call what it may.
    Rightly,
    /// The event's cause is no open call.
    NotOpen,
    /// The event's subject or contract is not that of the call.
    Otherwise,
    /// A question or an answer is of no open call, or not the next one.
    OutOfTurn,
}

impl OpenCalls {
    /// Takes the next event of a log, whose CID is `cid`.
    pub fn take(&mut self, cid: Cid, said: &Said<'_>) -> Ended {
        match said.kind {
            "call.started" => {
                let subject = said.subject.to_owned();
                let call = OpenCall { subject, tool: said.tool, asked: Vec::new(), given: 0 };
                self.begun.insert(cid, call);
                Ended::Rightly
            }
            "call.asked" | "call.answered" if said.v == VERSION => self.take_turn(cid, said),
            ending if ENDINGS.contains(&ending) => {
                let Some(call) = said.cause.and_then(|cause| self.begun.remove(&cause)) else {
                    return Ended::NotOpen;
                };
                for question in &call.asked {
                    self.asked.remove(question);
                }
                if call.is_of(said) { Ended::Rightly } else { Ended::Otherwise }
            }
            _ => Ended::Rightly,
        }
    }

    /// Takes a question or an answer. A body that cannot be read is refused by [`check`].
    fn take_turn(&mut self, cid: Cid, said: &Said<'_>) -> Ended {
        let taken = match (said.cause, Body::open(said.kind, said.body)) {
            (Some(started), Ok(Some(Body::CallAsked(facts)))) => self.ask(cid, started, facts.n, said),
            (Some(cause), Ok(Some(Body::CallAnswered(facts)))) => self.answer(cause, facts.n, said),
            (None, _) => None,
            (Some(_), _) => Some(()),
        };
        if taken.is_some() { Ended::Rightly } else { Ended::OutOfTurn }
    }

    fn ask(&mut self, cid: Cid, started: Cid, n: u64, said: &Said<'_>) -> Option<()> {
        let call = self.begun.get_mut(&started).filter(|call| call.is_of(said))?;
        (call.asked.len() as u64 == n).then(|| call.asked.push(cid))?;
        self.asked.insert(cid, (started, n));
        Some(())
    }

    fn answer(&mut self, cause: Cid, n: u64, said: &Said<'_>) -> Option<()> {
        if let Some(call) = self.begun.get_mut(&cause) {
            let next = call.is_of(said) && call.given == n;
            return next.then(|| call.given += 1);
        }
        let (started, asked) = self.asked.remove(&cause)?;
        (asked == n && self.begun.get(&started)?.is_of(said)).then_some(())
    }
}

impl OpenCall {
    fn is_of(&self, said: &Said<'_>) -> bool {
        self.subject == said.subject && self.tool == said.tool
    }
}

#[cfg(test)]
mod tests;
