//! Tuning: what an operator says of tools, replaced as a whole while calls run.
//!
//! Invariant: whoever reads a value keeps it as it was; nobody sees a part of the next one.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use crate::router::{Router, capture::Captures, lane::LaneChange, metadata::Hints};

/// What an operator says of tools, and may change while calls run.
#[derive(Debug, Default)]
pub struct Tuning {
    pub captures: Captures,
    /// Metadata from the configuration, by public tool name.
    pub hints: HashMap<String, Hints>,
}

/// A value that is read as a whole and replaced as a whole.
#[derive(Debug, Default)]
pub struct Swap<T>(RwLock<Arc<T>>);

impl<T> Swap<T> {
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// Returns the value as it is now. Who holds it keeps it as it was.
    pub fn now(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn put(&self, value: impl Into<Arc<T>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value.into();
    }
}

impl Router {
    /// Gives lanes other bounds, and tools what an operator says of them now. What is said of a tool's metadata counts
    /// from the next time that its source is put on the board.
    pub fn tune(&self, lanes: impl IntoIterator<Item = LaneChange>, tuning: Tuning) {
        self.inner.parts.lanes.change(lanes);
        self.inner.parts.tuning.put(tuning);
    }
}
