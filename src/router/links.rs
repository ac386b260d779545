//! Links: which source gave a caller a URI that is in no list.
//!
//! Invariants:
//! - a link is remembered for the caller who got it alone; the latest source that gave it stands;
//! - at most `LINKS_MAX` are remembered, and the oldest make room.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Links that are remembered.
const LINKS_MAX: usize = 10_000;
/// Bytes of a URI that is remembered.
const URI_MAX: usize = 2_048;

/// The caller's id and the URI.
type Key = (Arc<str>, Arc<str>);

/// The links that callers were given.
#[derive(Default)]
pub struct Links(Mutex<Known>);

#[derive(Default)]
struct Known {
    sources: HashMap<Key, Arc<str>>,
    order: VecDeque<Key>,
}

impl Links {
    /// Remembers that a source gave a caller this URI.
    pub fn note(&self, caller: &str, uri: &str, source: &str) {
        if uri.len() > URI_MAX {
            return;
        }
        let key: Key = (caller.into(), uri.into());
        let mut known = self.known();
        if known.sources.insert(key.clone(), source.into()).is_some() {
            return;
        }
        known.order.push_back(key);
        if known.order.len() > LINKS_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.sources.remove(&oldest);
        }
    }

    /// Returns the source that last gave a caller this URI.
    pub fn source(&self, caller: &str, uri: &str) -> Option<Arc<str>> {
        self.known().sources.get(&(caller.into(), uri.into())).cloned()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{LINKS_MAX, Links};

    #[test]
    fn the_latest_source_of_a_link_is_known_to_its_caller_alone() {
        let links = Links::default();
        let of = |who: &str, uri: &str| links.source(who, uri).map(|source| source.to_string());
        links.note("ann", "x://1", "one");
        links.note("ann", "x://1", "two");
        assert_eq!(of("ann", "x://1").as_deref(), Some("two"));
        assert_eq!(of("bob", "x://1"), None);
        for n in 0..LINKS_MAX {
            links.note("bob", &format!("y://{n}"), "one");
        }
        assert_eq!(of("ann", "x://1"), None, "it made room");
        assert_eq!(of("bob", "y://0").as_deref(), Some("one"));
        links.note("ann", &"z".repeat(3_000), "one");
        assert_eq!(of("ann", &"z".repeat(3_000)), None);
    }
}
