//! Remotes: the peers that one call was tried at.
//!
//! Invariant: they are told in the order in which they were asked, and taken once, with the call's ending.

use std::sync::{Arc, Mutex, PoisonError};

use crate::call::Remote;

/// The peers that one call was tried at, in order. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Remotes(Arc<Mutex<Vec<Remote>>>);

impl Remotes {
    pub fn tell(&self, remote: Remote) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(remote);
    }

    pub(super) fn take(&self) -> Vec<Remote> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
