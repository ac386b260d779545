//! The ledger's clock: a thread that asks the writer to look when something is due.
//!
//! Invariants:
//! - it decides nothing: what is due, and what follows, the writer's rules say;
//! - it keeps no ledger alive.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::WeakSender;

use crate::ledger::Ask;

/// The longest sleep: after a jump of the wall clock, what is due is seen at the latest then.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// The writer's handle to the clock. Only the last time it was set to counts; dropping it ends the clock.
pub(super) struct Alarm(Arc<Face>);

/// What the clock looks at.
#[derive(Default)]
pub(super) struct Face {
    set: Mutex<Set>,
    changed: Condvar,
}

#[derive(Default)]
struct Set {
    /// When the next thing is due, as milliseconds since the epoch.
    due: Option<u64>,
    ended: bool,
}

/// Makes a clock and the handle that sets it.
pub(super) fn clock() -> (Alarm, Arc<Face>) {
    let face = Arc::new(Face::default());
    (Alarm(face.clone()), face)
}

impl Alarm {
    /// Says when the next thing is due.
    pub fn set(&self, due: Option<u64>) {
        self.0.change(|set| set.due = due);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.change(|set| set.ended = true);
    }
}

impl Face {
    fn change(&self, change: impl FnOnce(&mut Set)) {
        // Nobody who holds it panics midway.
        change(&mut self.set.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// Waits until something is due. Returns false once the writer has ended.
    fn rings(&self) -> bool {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if set.ended {
                return false;
            }
            let left = set.due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.saturating_sub(now_ms())));
            if left.is_zero() {
                // The writer sets the alarm anew after each commit, that of the tick included.
                set.due = None;
                return true;
            }
            let slept = self.changed.wait_timeout(set, left.min(SLEEP_MAX));
            set = slept.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Runs until the writer ends.
pub(super) fn run(face: &Face, inbox: &WeakSender<Ask>) {
    while face.rings() {
        let Some(inbox) = inbox.upgrade() else { return };
        if inbox.blocking_send(Ask::Tick).is_err() {
            return;
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
