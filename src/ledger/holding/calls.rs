//! Calls in memory: those that run, and those whose idempotency key the state does not have yet.
//!
//! Invariants:
//! - every running call is here;
//! - a keyed call stays until the state has folded its ending.

use std::collections::{HashMap, VecDeque};

use crate::{
    call::Call,
    event::{Body, Event, body::CallAsked},
    ledger::Sealed,
};

/// An idempotency key: the actor, the name that was called, and the keyed commitment.
pub type Key = (String, String, Vec<u8>);

#[derive(Default)]
pub struct Calls {
    /// Running calls by their ids.
    pub open: HashMap<String, Call>,
    /// The latest call of each key whose ending is not folded yet.
    pub keyed: HashMap<Key, Call>,
    /// Ended keyed calls by the seq of their ending.
    ended: VecDeque<(u64, Key)>,
    /// The latest question with each commitment to a request state, if it is not folded yet.
    pub stated: HashMap<[u8; 16], Sealed>,
}

impl Calls {
    /// Takes a call that has started into memory.
    pub fn begin(&mut self, call: Call) {
        self.open.insert(call.id.clone(), call);
    }

    /// Takes a question or an answer of a running call into memory.
    pub fn turn(&mut self, id: &str, event: &Event) {
        if let Some(Body::CallAsked(CallAsked { state: Some(state), .. })) = event.body() {
            self.stated.insert(*state, event.into());
        }
        if let Some(call) = self.open.get_mut(id) {
            call.apply(event);
        }
    }

    /// Takes the ending of a keyed call into memory.
    pub fn remember_ending(&mut self, mut call: Call, key: Option<Key>, event: &Event) {
        let Some(key) = key else { return };
        call.apply(event);
        self.keyed.insert(key.clone(), call);
        self.ended.push_back((event.fields().seq, key));
    }

    /// Returns the processes that run calls, one name for each call.
    pub fn runners(&self) -> impl Iterator<Item = String> {
        self.open.values().map(|call| call.runner.clone())
    }

    /// Drops the keyed calls whose endings are folded, and the questions that are.
    pub fn forget(&mut self, applied: u64) {
        self.stated.retain(|_, asked| asked.seq >= applied);
        while let Some((seq, _)) = self.ended.front()
            && *seq < applied
        {
            let Some((_, key)) = self.ended.pop_front() else { return };
            let folded = |call: &Call| call.ending.as_ref().is_some_and(|ending| ending.seq < applied);
            // A later call of the same key has an entry of its own.
            if self.keyed.get(&key).is_some_and(folded) {
                self.keyed.remove(&key);
            }
        }
    }
}
