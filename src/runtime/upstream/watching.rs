//! Watching: the resources whose changes clients want to hear of over one connection, and over those that replace it.
//!
//! Invariants:
//! - a resource is watched until the last of those who wanted it has let go;
//! - at most `WATCHED_MAX` resources are watched.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::{broadcast, watch};

/// Resources that are watched at once over one connection.
const WATCHED_MAX: usize = 10_000;
/// Updates that a slow listener may be behind.
const UPDATES_MAX: usize = 256;

/// What the connections of one server tell all of its clients. Clones share it.
#[derive(Clone, Debug)]
pub struct Updates {
    /// The channel of the URIs that have changed.
    pub changed: broadcast::Sender<Arc<str>>,
    /// Whether the server has asked something without saying whom.
    pub asks: Arc<AtomicBool>,
}

impl Default for Updates {
    fn default() -> Self {
        Self { changed: broadcast::Sender::new(UPDATES_MAX), asks: Arc::default() }
    }
}

/// How many want to hear of each resource, by its URI.
#[derive(Debug, Default)]
pub struct Watched(pub watch::Sender<BTreeMap<String, usize>>);

impl Watched {
    /// Watches a resource until what is returned is dropped. Returns `None` if too many are watched.
    pub fn watch(self: &Arc<Self>, uri: &str) -> Option<Watching> {
        let mut room = true;
        self.0.send_if_modified(|wanted| match wanted.get_mut(uri) {
            Some(count) => {
                *count += 1;
                false
            }
            None => {
                room = wanted.len() < WATCHED_MAX;
                if room {
                    wanted.insert(uri.to_owned(), 1);
                }
                room
            }
        });
        room.then(|| Watching { watched: Arc::clone(self), uri: uri.to_owned() })
    }
}

/// The wish to hear of one resource.
#[derive(Debug)]
pub struct Watching {
    watched: Arc<Watched>,
    uri: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watched.0.send_if_modified(|wanted| match wanted.get_mut(&self.uri) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => wanted.remove(&self.uri).is_some(),
            None => false,
        });
    }
}
