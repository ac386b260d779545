//! The seat: which connections get the calls of an upstream's tools, so that they can be replaced while calls run.
//!
//! Invariants:
//! - a call stays with the fleet that it began with, and that fleet counts it as long as it runs.

use std::sync::{Arc, PoisonError, RwLock};

use crate::runtime::{
    fleet::{Fleet, Running},
    rounds::Suspended,
};

/// The fleet that gets the calls of an upstream's tools now.
pub struct Seat {
    fleet: RwLock<Arc<Fleet>>,
    /// The calls that wait for their clients.
    pub suspended: Suspended,
}

impl Seat {
    pub fn new(fleet: Arc<Fleet>) -> Self {
        Self { fleet: RwLock::new(fleet), suspended: Suspended::default() }
    }

    /// Returns the fleet that gets them now.
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the calls to another fleet. Returns the one that had them, if it is not the same.
    pub fn take(&self, fleet: &Arc<Fleet>) -> Option<Arc<Fleet>> {
        let mut seat = self.fleet.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *seat, fleet.clone());
        (!Arc::ptr_eq(&before, fleet)).then_some(before)
    }

    /// Returns the fleet for one call, which is counted until the second value is dropped.
    pub fn serve(&self) -> (Arc<Fleet>, Running) {
        // Within the lock: a fleet that is replaced after this is not ended before the call is.
        let seat = self.fleet.read().unwrap_or_else(PoisonError::into_inner);
        (seat.clone(), seat.running())
    }
}
