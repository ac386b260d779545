//! Tuning: what an operator changes of a router while calls run.
//!
//! Invariant: whoever reads a value keeps it as it was; nobody sees a part of the next one.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    ledger::Stopped,
    router::{Router, capture::Captures, lane::LaneChange, metadata::Hints},
};

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

    /// Takes a source off the board. Calls of it that run go on. Its contracts are retired when this returns.
    pub async fn remove(&self, source: &str) -> Result<(), Stopped> {
        let _one = self.inner.publishing.lock().await;
        let (board, changed) = self.board().without(source, &self.inner.parts).await?;
        *self.inner.board.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(board);
        changed.iter().for_each(|change| self.notify(*change));
        Ok(())
    }
}
