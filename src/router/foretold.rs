//! Foretold: the change that is all a call does, known before it starts.
//!
//! Invariant: what is told of the change needs nothing but the ruling on it.

use crate::{
    ledger::{Ruling, work::Work},
    router::Outcome,
};

/// What a call will ask of the ledger, told before it starts.
pub struct Foretold {
    pub work: Work,
    pub tell: Tell,
}

/// Makes a call's outcome from the ruling on its change. Returns `None` if the outcome needs more than the ruling. It
/// runs on the writing thread, so it must neither wait nor read anything.
pub type Tell = Box<dyn Fn(&Ruling) -> Option<Outcome> + Send + Sync>;
