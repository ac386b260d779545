//! Contents that the steps of runs may read.
//!
//! Invariants:
//! - the cache is bounded, and the oldest leave it first;
//! - an erased content is not in it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use serde_json::Value;

use crate::block::Cid;

/// Bytes of step outputs kept for the steps that read them.
const CONTENTS_KEPT: usize = 32 * 1024 * 1024;
/// Bytes of text that are kept parsed: as values they take several times that.
const PARSED_KEPT: usize = 8 * 1024 * 1024;

/// A bounded cache of the contents that steps may read; the oldest go first.
#[derive(Default)]
pub struct Contents {
    /// Erased inputs of runs and schedules in memory. An input that is recorded again is loaded again.
    pub lost: HashSet<Cid>,
    texts: HashMap<Cid, Arc<str>>,
    order: VecDeque<Cid>,
    bytes: usize,
    parsed: RefCell<Parsed>,
}

/// A bounded cache of parsed contents, with the bytes of text they came from.
#[derive(Default)]
struct Parsed {
    values: HashMap<Cid, Arc<Value>>,
    bytes: usize,
}

impl Contents {
    /// Returns the text of a payload, if it is in the cache.
    pub fn get(&self, payload: &Cid) -> Option<Arc<str>> {
        self.texts.get(payload).cloned()
    }

    /// Returns the parsed content of a payload, if it is in the cache.
    pub fn parsed(&self, payload: &Cid) -> Option<Arc<Value>> {
        self.parsed.borrow().values.get(payload).cloned()
    }

    /// Caches the value that a text of `len` bytes was parsed to.
    pub fn keep_parsed(&self, payload: Cid, value: Arc<Value>, len: usize) {
        let mut parsed = self.parsed.borrow_mut();
        if parsed.bytes + len > PARSED_KEPT {
            *parsed = Parsed::default();
        }
        if len <= PARSED_KEPT && parsed.values.insert(payload, value).is_none() {
            parsed.bytes += len;
        }
    }

    /// Removes an erased content.
    pub fn erase(&mut self, payload: &Cid) {
        if let Some(text) = self.texts.remove(payload) {
            self.bytes -= text.len();
            self.order.retain(|kept| kept != payload);
        }
        // How long its text was is not known any more.
        self.parsed = RefCell::default();
    }

    /// Caches the text of a payload.
    pub fn put(&mut self, payload: Cid, text: Arc<str>) {
        if text.len() > CONTENTS_KEPT / 4 || self.texts.contains_key(&payload) {
            return;
        }
        self.bytes += text.len();
        self.order.push_back(payload);
        self.texts.insert(payload, text);
        while self.bytes > CONTENTS_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.texts.remove(&oldest).map_or(0, |text| text.len());
        }
    }
}
