//! Hearing: what clients are told of as it changes, and what sources are told of clients.
//!
//! Invariant: whoever listens too slowly misses changes, and holds nobody up.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::router::{Change, Router, audience::Audience, standing::Heard};

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

    /// Tells listeners that a resource of a source has changed, by its own URI and that by which it is listed here.
    pub fn updated(&self, source: &str, uri: Arc<str>) {
        let public = self.board().places.public(source, &uri);
        if *public != *uri {
            // Nobody listening is no fault.
            let _ = self.inner.updates.send(public.into());
        }
        let _ = self.inner.updates.send(uri);
    }

    /// Tells listeners that a list has changed.
    pub fn notify(&self, change: Change) {
        // Nobody listening is no fault.
        let _ = self.inner.changes.send(change);
    }
}
