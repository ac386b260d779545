//! Hearing: what clients are told of as it changes, and what sources are told of clients.
//!
//! Invariant: whoever listens too slowly misses changes, and holds nobody up.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::router::{Change, Router, RpcError, audience::Audience, declared::Held, standing::Heard, telling};

impl Router {
    /// Hands all sources what a client says outside its requests.
    pub async fn hear(&self, heard: Heard, audience: &Audience) {
        let runs = self.board().runs();
        futures_util::future::join_all(runs.iter().map(|run| run.hear(heard, audience))).await;
    }

    /// Returns the lists that have changed, as they do.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Returns the URIs of watched resources as they change.
    pub fn updates(&self) -> broadcast::Receiver<Arc<str>> {
        self.inner.updates.subscribe()
    }

    /// Tells listeners that a resource has changed.
    pub fn updated(&self, uri: Arc<str>) {
        // Nobody listening is no fault.
        let _ = self.inner.updates.send(uri);
    }

    /// Watches a resource until what is returned is dropped. Errors: no source has it, or its source refuses.
    pub async fn watch(&self, uri: &str, audience: &Audience) -> Result<Held, RpcError> {
        let source = self.board().resource(uri).ok_or_else(|| telling::not_found(uri))?;
        if !source.declared.subscriptions {
            let message = "the source of this resource does not tell when it changes";
            return Err(RpcError::invalid_params(message));
        }
        source.run.watch(uri, audience).await
    }

    /// Tells listeners that a list has changed.
    pub fn notify(&self, change: Change) {
        // Nobody listening is no fault.
        let _ = self.inner.changes.send(change);
    }
}
