//! The writer's part in calls: their starts, their questions, their endings, and those that nobody ends any more.
//!
//! Invariants:
//! - a started call gets one ending, and the attempt it was made for ends with it;
//! - a key gives the first answer, whether the state has folded it yet or not.

use crate::{
    block::{Cid, payload::SealedPayload},
    call::{
        self, Call, End, EndOutcome, REMOTE_MAX, Start,
        asking::{Answer, Inquiry, To},
    },
    event::{
        Body, Fact, Role,
        body::{CallRefused, LogRecovered},
    },
    ledger::{
        Ruling, Sealed,
        commit::{Fault, Stop, log_fact, node, payload_ref},
        holding::calls::Key,
        work::Attempt,
        world::{World, text_of},
    },
    query,
};

impl World {
    pub(super) fn start(
        &mut self,
        start: Start,
        input: Option<SealedPayload>,
        refused: Option<SealedPayload>,
    ) -> Result<Ruling, Stop> {
        let key = start.facts.key.clone().map(|key| (start.actor.id.clone(), start.facts.name.clone(), key));
        let mut earlier = key.as_ref().map(|key| self.keyed(key)).transpose()?.flatten();
        if let (None, Some(former)) = (&earlier, &start.former_key) {
            let former = (start.actor.id.clone(), start.facts.name.clone(), former.clone());
            earlier = self.keyed(&former)?;
        }
        let (fact, refusal) = match call::start(earlier.as_ref(), &start) {
            call::Ruling::Run(fact) => (fact, None),
            call::Ruling::Refuse(fact, facts) => (fact, Some(facts)),
            call::Ruling::Answered(ending) => return Ok(Ruling::Answered(ending)),
            call::Ruling::Denied(refusal) => return Ok(Ruling::Denied(refusal)),
        };
        self.commit.store(input);
        let sealed = Sealed::from(self.commit.seal(*fact)?);
        let call = start.begun(sealed.cid);
        if let Some(key) = &key {
            self.holding.calls.keyed.insert(key.clone(), call.clone());
        }
        match refusal {
            None => {
                self.holding.calls.begin(call);
                Ok(Ruling::Run(sealed))
            }
            Some(facts) => self.refuse(call, facts, refused, key),
        }
    }

    fn refuse(
        &mut self,
        call: Call,
        facts: CallRefused,
        output: Option<SealedPayload>,
        key: Option<Key>,
    ) -> Result<Ruling, Stop> {
        let pay = output.as_ref().map(|output| payload_ref(output, Role::Error));
        self.commit.store(output);
        let event = self.commit.seal(call::refuse(&call, facts, pay))?;
        let sealed = Sealed::from(event);
        self.holding.calls.remember_ending(call, key, event);
        Ok(Ruling::Refused(sealed))
    }

    pub(super) fn ask(&mut self, ask: &Inquiry, question: SealedPayload) -> Result<Ruling, Stop> {
        match call::ask(self.holding.calls.open.get(&ask.id), ask) {
            Ok(fact) => self.record_within(&ask.id, fact, question),
            Err(refusal) => Ok(Ruling::Denied(refusal)),
        }
    }

    pub(super) fn record_answer(&mut self, answer: &Answer, content: SealedPayload) -> Result<Ruling, Stop> {
        let earlier = match answer.to {
            To::Earlier { state: Some(state) } => self.asked_with(&state)?,
            To::Earlier { state: None } | To::Question { .. } => None,
        };
        match call::answer(self.holding.calls.open.get(&answer.id), answer, earlier) {
            Ok(fact) => self.record_within(&answer.id, fact, content),
            Err(refusal) => Ok(Ruling::Denied(refusal)),
        }
    }

    /// Records a fact about an open call, which stays open.
    fn record_within(&mut self, id: &str, fact: Fact, content: SealedPayload) -> Result<Ruling, Stop> {
        self.commit.store(Some(content));
        let event = self.commit.seal(fact)?;
        self.holding.calls.turn(id, event);
        Ok(Ruling::Done(event.into()))
    }

    /// Returns the latest question that committed to this request state.
    fn asked_with(&self, state: &[u8; 16]) -> Result<Option<Cid>, Fault> {
        if let Some(asked) = self.holding.calls.stated.get(state) {
            return Ok(Some(asked.cid));
        }
        let seq = query::asked_with(&self.state, state)?;
        let event = seq.map(|seq| self.reader.event_at(seq)).transpose()?.flatten();
        Ok(event.map(|event| event.cid()))
    }

    pub(super) fn end(
        &mut self,
        end: &End,
        output: Option<SealedPayload>,
        attempt: Option<&Attempt>,
    ) -> Result<Ruling, Stop> {
        let fact = match call::end(self.holding.calls.open.get(&end.id), end) {
            Ok(fact) => fact,
            Err(refusal) => return Ok(Ruling::Denied(refusal)),
        };
        let started = fact.cause;
        for remote in end.remote.iter().take(REMOTE_MAX) {
            self.remote_called(remote, &fact.actor, started)?;
        }
        let text = attempt.and(output.as_ref()).and_then(text_of);
        self.commit.store(output);
        let event = self.commit.seal(fact)?;
        let sealed = Sealed::from(event);
        if let Some(call) = self.holding.calls.open.remove(&end.id) {
            let key = call.key.clone().map(|key| (call.actor.id.clone(), call.name.clone(), key));
            self.holding.calls.remember_ending(call, key, event);
        }
        if let Some(attempt) = attempt {
            if let (Some(text), Some(output)) = (text, end.output) {
                self.holding.contents.put(output.cid, text.into());
            }
            let succeeded = matches!(end.outcome, EndOutcome::Succeeded { .. });
            self.end_attempt(attempt, end.output, succeeded, sealed.cid)?;
        }
        Ok(Ruling::Done(sealed))
    }

    pub(super) fn recover(&mut self, runners: &[String]) -> Result<Ruling, Stop> {
        let lost = self.holding.calls.open.values().filter(|call| runners.contains(&call.runner));
        let mut ids: Vec<String> = lost.map(|call| call.id.clone()).collect();
        let attempts = self.interrupt(runners)?;
        let parted = self.part(runners)?;
        if ids.is_empty() && attempts == 0 {
            return Ok(parted.map_or(Ruling::Unchanged, Ruling::Done));
        }
        // The map has no order of its own; the log must not depend on chance.
        ids.sort_unstable();
        let interrupted = ids.len() as u64;
        for id in ids {
            let end =
                End { id, outcome: EndOutcome::Interrupted, output: None, took_us: 0, remote: Vec::new() };
            self.end(&end, None, None)?;
        }
        let body = Body::LogRecovered(LogRecovered { interrupted, attempts });
        Ok(Ruling::Done(self.commit.seal(log_fact(node(), body))?.into()))
    }

    /// Returns the latest call with this idempotency key, from memory or, once it is folded, from the state.
    pub(super) fn keyed(&self, key: &Key) -> Result<Option<Call>, Fault> {
        if let Some(call) = self.holding.calls.keyed.get(key) {
            return Ok(Some(call.clone()));
        }
        let (actor, name, key) = key;
        let Some((started, ended)) = query::keyed_call(&self.state, actor, name, key)? else {
            return Ok(None);
        };
        let Some(mut call) = self.reader.event_at(started)?.as_ref().and_then(Call::begun) else {
            return Ok(None);
        };
        if let Some(open) = self.holding.calls.open.get(&call.id) {
            return Ok(Some(open.clone()));
        }
        if let Some(event) = ended.map(|seq| self.reader.event_at(seq)).transpose()?.flatten() {
            call.apply(&event);
        }
        Ok(Some(call))
    }
}
