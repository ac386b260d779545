//! Calls that begin with their change and end with it: one commit holds all that there is of them.
//!
//! Invariants:
//! - the start stands before the change, and the ending after it;
//! - what makes an ending on the writing thread is pure and short: the size of its answer is bounded.

use std::{fmt, sync::Arc};

use crate::{
    block::payload::SealedPayload,
    call::{End, EndOutcome},
    ledger::{
        Ruling, Sealed,
        commit::{Stop, payload_ref},
        work::{Handed, Worked},
        world::World,
    },
};

/// Bytes of tasks in a ruling whose call the writer ends itself. A larger answer is made by the call's own task, so
/// that it does not hold up other commits.
const HANDED_MAX: usize = 32 * 1024;
/// Bytes that a handed-out task takes in an answer beside its input.
const HANDED_BYTES: usize = 256;

/// Makes a call's ending from the ruling on its change. Returns `None` if the ending needs more than the ruling. A
/// guest's ending is made after the ruling, because a function cannot cross the socket.
#[derive(Clone)]
pub struct Conclude(Arc<Makes>);

type Makes = dyn Fn(&Ruling) -> Option<Concluded> + Send + Sync;

/// The ending of a call whose start and change are in the same commit.
#[derive(Clone, Debug)]
pub struct Concluded {
    pub outcome: EndOutcome,
    pub output: SealedPayload,
    pub took_us: u64,
}

impl Conclude {
    pub fn new(conclude: impl Fn(&Ruling) -> Option<Concluded> + Send + Sync + 'static) -> Self {
        Self(Arc::new(conclude))
    }
}

impl fmt::Debug for Conclude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conclude")
    }
}

impl World {
    /// Ends the call `id` by the ruling on its change. Returns its ending, or `None` if the call has to end by a
    /// command of its own.
    pub(super) fn conclude(
        &mut self,
        id: String,
        conclude: Option<&Conclude>,
        ruled: &Ruling,
    ) -> Result<Option<Sealed>, Stop> {
        let Some(conclude) = conclude.filter(|_| weight(ruled) <= HANDED_MAX) else { return Ok(None) };
        let Some(Concluded { outcome, output, took_us }) = (conclude.0)(ruled) else { return Ok(None) };
        let mark = self.commit.mark();
        let role = outcome.role();
        let end = End { id, outcome, output: Some(payload_ref(&output, role)), took_us, remote: Vec::new() };
        match self.end(&end, Some(output), None) {
            Ok(Ruling::Done(ended)) => Ok(Some(ended)),
            // An ending that cannot be sealed is left to whoever runs the call.
            Ok(_) => Ok(None),
            Err(stop) => self.take_back(mark, stop).map(|_| None).map_err(Stop::Fault),
        }
    }
}

/// Returns about how many bytes the answer to this ruling takes.
fn weight(ruled: &Ruling) -> usize {
    let Ruling::Worked(worked) = ruled else { return 0 };
    let (Worked::Claimed(handed) | Worked::Ended { next: handed, .. }) = &**worked else { return 0 };
    let bytes = |handed: &Handed| HANDED_BYTES + handed.input.as_ref().map_or(0, String::len);
    handed.iter().map(bytes).sum()
}
