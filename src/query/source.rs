//! Where a run's events and contents are read from.
//!
//! Invariants:
//! - a run is begun and followed the same way wherever its events are;
//! - a payload is read and parsed once for each record, as long as all of them together are within a bound.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::Arc,
};

use serde_json::Value;

use crate::{
    block::{Cid, decode, payload::join},
    entity::{self, Entity},
    event::{Body, Event, Role},
    query::{QueryError, View, lookup::corrupt},
    workflow::{
        plan::Plan,
        run::{Run, decision::Contents},
    },
};

/// A place that events and blocks are read from: a log, or an archive.
pub trait Source {
    /// Returns the events of a run and of its tasks, in order, up to and with `as_of` if given.
    fn events_of_run(&self, id: &str, as_of: Option<u64>) -> Result<Vec<Event>, QueryError>;

    /// Returns a block's bytes; `None` if they were erased or are not here.
    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError>;
}

impl Source for &View {
    fn events_of_run(&self, id: &str, as_of: Option<u64>) -> Result<Vec<Event>, QueryError> {
        Ok(self.load_run(id, as_of)?.what)
    }

    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        Ok(self.log.bytes(cid)?)
    }
}

/// Bytes of content that one record caches as values. Further content is read again each time, because blocks of some
/// hundred bytes may refer to content of 64 MiB each.
const HELD_MAX: usize = 256 * 1024 * 1024;

/// The recorded contents of payloads, with a bounded cache.
pub struct Recorded<'a> {
    source: Box<dyn Source + 'a>,
    read: RefCell<HashMap<Cid, Option<Arc<Value>>>>,
    /// Bytes of the cached content.
    held: Cell<usize>,
}

impl<'a> Recorded<'a> {
    pub fn new(source: impl Source + 'a) -> Self {
        Self { source: Box::new(source), read: RefCell::default(), held: Cell::new(0) }
    }
}

impl Recorded<'_> {
    /// Returns a payload's content; `None` if it was erased.
    pub fn content(&self, payload: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        content(self.source.as_ref(), payload)
    }
}

impl Contents for Recorded<'_> {
    fn is_there(&self, payload: &Cid) -> bool {
        self.content(payload).is_ok_and(|content| content.is_some())
    }

    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        if let Some(known) = self.read.borrow().get(payload) {
            return known.clone();
        }
        // What cannot be read counts as gone: a replay says of it that it is not verifiable.
        let content = content(self.source.as_ref(), payload).ok().flatten();
        let held = self.held.get() + content.as_ref().map_or(0, Vec::len);
        let value = content.and_then(|content| serde_json::from_slice(&content).ok()).map(Arc::new);
        if held <= HELD_MAX {
            self.held.set(held);
            self.read.borrow_mut().insert(*payload, value.clone());
        }
        value
    }
}

/// Returns a run as it was submitted, with what it takes over, and its later events up to and with `as_of`.
pub fn submitted(
    source: &dyn Source,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<(Run, Vec<Event>)>, QueryError> {
    let mut events = source.events_of_run(id, as_of)?;
    if events.is_empty() {
        return Ok(None);
    }
    let later = events.split_off(1);
    let Some((plan, inputs)) = given(source, &events[0])? else { return Ok(None) };
    let Some(mut run) = Run::begun(&events[0], plan, inputs) else { return Ok(None) };
    if let Some(origin) = &run.facts.origin {
        let old = source.events_of_run(&origin.run, Some(run.seq))?;
        // What the other run took over itself is all in its events.
        if let Some(first) = old.first()
            && let Some(old) = given(source, first)?.and_then(|given| entity::folded(&old, &given))
        {
            run.take_over(&old);
        }
    }
    Ok(Some((run, later)))
}

/// Returns the plan and the inputs of the run that an event submits; `None` if it submits none.
fn given(source: &dyn Source, event: &Event) -> Result<Option<<Run as Entity>::Given>, QueryError> {
    let Some(Body::WorkflowSubmitted(facts)) = event.body() else { return Ok(None) };
    let plan = source.bytes(&facts.plan)?.and_then(|bytes| decode::<Plan>(&bytes).ok());
    let plan = plan.ok_or_else(|| corrupt("a run's plan cannot be read"))?;
    // Erased inputs leave a run that can be read.
    let inputs = event.fields().payload(Role::Input);
    let inputs = inputs.map(|inputs| content(source, &inputs.cid)).transpose()?.flatten();
    let inputs: Value = inputs.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    Ok(Some((Arc::new(plan), Arc::new(inputs))))
}

/// Returns a payload's content, joined from its parts; `None` if any of it was erased.
pub fn content(source: &dyn Source, payload: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
    join(payload, |cid| source.bytes(cid))
}
