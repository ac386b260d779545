//! The writer's part in erasing: what may be erased, what goes with it, and what is content again.
//!
//! Invariants:
//! - only what an event holds as a payload is erased, and the event that says so is sealed before anything is taken away;
//! - an erasure holds for payloads that events before it name, within a commit too; a payload that a later event
//!   records is content again;
//! - no event names a payload that is neither recorded with it nor here.

use std::collections::HashSet;

use crate::{
    block::{Cid, Codec, decode_exactly},
    contract::Contract,
    error::{Code, Refusal},
    event::{
        Actor, Body, Genesis, PayloadRef,
        body::{PayloadErased, is_basis},
    },
    ledger::{
        Ruling,
        commit::{Fault, Stop, log_fact},
        holding::agenda::Due,
        loading,
        world::World,
    },
    log::Stored,
    query::{self, erasure},
    workflow::plan::Plan,
};

const ONLY_PAYLOADS: &str =
    ": only payloads can be erased; `cairn trace EVENT --wide` names those that an event holds";
const FIND_THEM: &str = "; `cairn trace EVENT --wide` names those that an event holds";

/// Returns in words what a block is that no event holds as a payload.
fn what(cid: &Cid, bytes: &[u8]) -> &'static str {
    if cid.codec() == Codec::Raw {
        "a part of a payload"
    } else if decode_exactly::<Contract>(bytes).is_ok_and(|contract| contract.v == 1) {
        "a contract"
    } else if Plan::is_block(bytes) {
        "a plan of a workflow"
    } else if Genesis::open(bytes).is_ok() {
        "the genesis block of a log"
    } else {
        "a block that no event holds as a payload"
    }
}

impl World {
    /// Erases a payload with those of its parts that no other payload holds.
    pub(super) fn erase(&mut self, payload: Cid, basis: String, actor: Actor) -> Result<Ruling, Stop> {
        let refused = |code, message: &str| Err(Refusal::new(code, message).into());
        if !is_basis(&basis) {
            return refused(
                Code::InvalidArgument,
                "a basis is a code of 1 to 64 of `a-z A-Z 0-9 . _ : / -`, such as gdpr-17: it stands in the log for ever",
            );
        }
        if self.commit.is_erased(&payload) {
            return Ok(Ruling::Unchanged);
        }
        let recorded = self.commit.block(&payload).map(|block| block.bytes().to_vec());
        let bytes = match (&recorded, self.reader.block(&payload)?) {
            (Some(recorded), _) => recorded.clone(),
            (None, Some(Stored::Present(bytes))) => bytes,
            (None, Some(Stored::Erased)) if self.is_erased(&payload)? => return Ok(Ruling::Unchanged),
            (None, Some(Stored::Erased) | None) => {
                return match self.reader.seq_of(&payload)? {
                    Some(_) => refused(Code::FailedPrecondition, &format!("this is an event{ONLY_PAYLOADS}")),
                    None => {
                        refused(Code::NotFound, &format!("no payload of this cid is in the log{FIND_THEM}"))
                    }
                };
            }
        };
        let next = self.commit.sealer.next_seq();
        let is_payload =
            recorded.is_some() || erasure::was_payload(&self.state, self.reader.as_ref(), &payload, next)?;
        let Some(parts) = query::payload_parts(&bytes).filter(|_| is_payload) else {
            let what = what(&payload, &bytes);
            return refused(Code::FailedPrecondition, &format!("this is {what}{ONLY_PAYLOADS}"));
        };
        let body = Body::PayloadErased(PayloadErased { payload, basis });
        let sealed = self.commit.seal(log_fact(actor, body))?.into();
        self.commit.erasures.push(payload);
        // Two payloads erased in one commit do not keep each other's parts.
        let mut shared = query::shared_parts(self.reader.as_ref(), &self.commit.erasures, &parts)?;
        shared.extend(self.commit.parts_recorded());
        self.commit.erasures.extend(parts.into_iter().filter(|part| !shared.contains(part)));
        self.holding.erase(&payload);
        Ok(Ruling::Done(sealed))
    }

    /// Whether the erasure of a payload without bytes is on record. What is not folded yet is read from the log.
    fn is_erased(&self, payload: &Cid) -> Result<bool, Fault> {
        Ok(erasure::is_on_record(&self.state, self.reader.as_ref(), payload)?)
    }

    /// Reloads the inputs of runs and schedules that lost them to an erasure and whose payloads this commit has
    /// recorded again.
    pub(super) fn give_back_contents(&mut self, recorded: &HashSet<Cid>) -> Result<(), Fault> {
        let lost: Vec<Cid> = self.holding.contents.lost.intersection(recorded).copied().collect();
        for payload in lost {
            if !self.reader.has_bytes(&payload)? {
                continue;
            }
            self.holding.contents.lost.remove(&payload);
            let of_this = |input: Option<PayloadRef>| input.is_some_and(|input| input.cid == payload);
            for live in self.holding.runs.live.values_mut().filter(|live| of_this(live.run.input)) {
                live.run.inputs = loading::inputs(&self.state, self.reader.as_ref(), &payload)?;
            }
            for (id, timetable) in &mut self.holding.crew.schedules {
                if of_this(timetable.schedule.input) {
                    timetable.makes = loading::makes(&self.state, self.reader.as_ref(), &payload)?;
                    let due = timetable.schedule.next_ms;
                    self.holding.agenda.put(due, Due::Schedule(id.clone()));
                }
            }
        }
        Ok(())
    }
}
