//! Tasks in the writer's memory: changed by events, loaded from them, told.
//!
//! Invariants:
//! - a task changes by its event alone, and its run hears of it in the same commit.

use std::sync::Arc;

use crate::{
    block::{
        Cid, decode,
        payload::{JSON, Payload, SealedPayload},
    },
    error::{Code, Refusal},
    event::{Body, PayloadRef},
    ledger::{
        Sealed,
        tasks::By,
        work::Worked,
        writer::{Draft, Fault, Writer},
    },
    log::Stored,
    query,
    task::{self, Moment, Task},
};

impl Writer {
    pub(super) fn change_all(
        &mut self,
        id: &str,
        bodies: Vec<Body>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        for (n, body) in bodies.into_iter().enumerate() {
            let note = by.note.filter(|_| n == 0);
            self.change(id, body, &By { note: None, ..by.clone() }, note.into_iter().collect(), draft)?;
        }
        Ok(())
    }

    /// Records what happened to a task in memory, and tells its run.
    pub(super) fn change(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        mut payloads: Vec<PayloadRef>,
        draft: &mut Draft,
    ) -> Result<Sealed, Fault> {
        let now_ms = self.now_ms();
        let live = self.holding.tasks.get(id).ok_or(Fault::Broken { what: "a task is not in memory" })?;
        payloads.extend(by.note);
        let fact = live.task.fact(body, by.actor.clone(), by.cause, by.refs.clone(), payloads);
        let run = live.task.facts.run.clone();
        let body = fact.body.clone();
        let event = self.sealer.seal(fact, draft)?;
        self.holding.apply(id, &body, event, now_ms);
        if let Some(run) = run {
            self.holding.tell_run(&run, event);
        }
        Ok(event.into())
    }

    /// A task that is in memory.
    pub(super) fn task(&self, id: &str) -> Result<&Task, Fault> {
        let live = self.holding.tasks.get(id).ok_or(Fault::Broken { what: "a task is not in memory" })?;
        Ok(&live.task)
    }

    /// Loads a task into memory. Returns false if there is none of this id.
    pub(super) fn load_task(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.tasks.contains_key(id) {
            return Ok(true);
        }
        let mut task: Option<Task> = None;
        for seq in query::work::events_of(&self.state, &task::subject(id))? {
            let Some(event) = self.reader.event_at(seq)? else { continue };
            match &mut task {
                None => task = Task::begun(&event),
                Some(task) => task.apply(&event),
            }
        }
        let Some(task) = task else { return Ok(false) };
        self.holding.keep(task, None);
        Ok(true)
    }

    /// Loads the task that was submitted at `seq` and returns its id.
    pub(super) fn number(&mut self, seq: u64) -> Result<String, Fault> {
        if let Some(id) = self.holding.numbers.get(&seq) {
            return Ok(id.clone());
        }
        let event = self.reader.event_at(seq)?;
        let id = event.as_ref().and_then(Task::begun).map(|task| task.id);
        let id = id.ok_or(Fault::Broken { what: "the queue names a task that is not in the log" })?;
        match self.load_task(&id)? {
            true => Ok(id),
            false => Err(Fault::Broken { what: "the queue names a task that the state does not have" }),
        }
    }

    /// Returns the task with this unique key that has not ended, if there is one.
    fn holder_of(&mut self, key: &str) -> Result<Option<String>, Fault> {
        let id = match self.holding.unique.get(key) {
            Some(id) => Some(id.clone()),
            None => match query::work::live_unique(&self.state, key)? {
                Some(seq) => Some(self.number(seq)?),
                None => None,
            },
        };
        let Some(id) = id else { return Ok(None) };
        let live = self.load_task(&id)? && !self.task(&id)?.status.ended();
        Ok(live.then_some(id))
    }

    /// Refuses a task if another with the same unique key has not ended.
    pub(super) fn unique(&mut self, key: Option<&String>) -> Result<Result<(), Refusal>, Fault> {
        let Some(key) = key else { return Ok(Ok(())) };
        let Some(holder) = self.holder_of(key)? else { return Ok(Ok(())) };
        let message = format!("the unique key `{key}` is held by the task `{holder}`, which has not ended");
        Ok(Err(Refusal::new(Code::AlreadyExists, message).hint("wait for that task, or use another key")))
    }

    pub(super) fn told(&self, id: &str, replayed: bool) -> Result<Worked, Fault> {
        let task = self.task(id)?.clone();
        let position = self.holding.position(&task);
        Ok(Worked::Task { task: Box::new(task), position, replayed })
    }

    /// Returns the content of a payload as text: from memory, from the commit that is being made, or from the log.
    pub(super) fn text(&self, payload: Option<Cid>, draft: &Draft) -> Result<Option<Arc<str>>, Fault> {
        let Some(cid) = payload.filter(|cid| !draft.is_erased(cid)) else { return Ok(None) };
        if let Some(text) = self.holding.contents.get(&cid) {
            return Ok(Some(text));
        }
        let block = |cid: &Cid| -> Result<Option<Vec<u8>>, Fault> {
            Ok(match draft.block(cid) {
                Some(block) => Some(block.bytes().to_vec()),
                None => match self.reader.block(cid)? {
                    Some(Stored::Present(bytes)) => Some(bytes),
                    Some(Stored::Erased) | None => None,
                },
            })
        };
        let Some(payload) = block(&cid)?.and_then(|bytes| decode::<Payload>(&bytes).ok()) else {
            return Ok(None);
        };
        let content = payload.content(None, block)?.ok();
        Ok(content.and_then(|content| String::from_utf8(content).ok()).map(Arc::from))
    }

    /// Seals JSON text that this node wrote as a payload.
    pub(super) fn payload(&self, text: &str) -> Result<SealedPayload, Fault> {
        Payload::seal(&self.salt, JSON, text.as_bytes())
            .map_err(|_| Fault::Broken { what: "content is over the bound of a payload" })
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now_ms: self.now_ms(), limits: self.limits }
    }
}

/// A small payload's content as text.
pub(super) fn text_of(payload: &SealedPayload) -> Option<String> {
    let payload: Payload = decode(payload.envelope.bytes()).ok()?;
    payload.data.and_then(|data| String::from_utf8(data).ok())
}

/// A payload's content as text, from the payload itself.
pub(super) fn whole_text(payload: &SealedPayload) -> Option<String> {
    payload.content().and_then(|content| String::from_utf8(content).ok())
}
