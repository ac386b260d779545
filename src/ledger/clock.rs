//! The ledger's clock: a thread that asks the writer to look when something is due.
//!
//! Invariants:
//! - it decides nothing: what is due, and what follows, the writer's rules say;
//! - it keeps no ledger alive.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::WeakSender;

use crate::ledger::Ask;

/// The longest sleep: after a jump of the wall clock, what is due is seen at the latest then.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Runs until the writer ends. `alarms` says when the next thing is due, as milliseconds since the epoch.
pub(super) fn run(alarms: &Receiver<Option<u64>>, inbox: &WeakSender<Ask>) {
    let mut due: Option<u64> = None;
    loop {
        let sleep = due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.saturating_sub(now_ms())));
        match alarms.recv_timeout(sleep.min(SLEEP_MAX)) {
            Ok(next) => due = next,
            Err(RecvTimeoutError::Timeout) if due.is_none_or(|due| due > now_ms()) => {}
            Err(RecvTimeoutError::Timeout) => {
                // The writer sets the alarm anew after each commit, this one's included.
                due = None;
                let Some(inbox) = inbox.upgrade() else { return };
                if inbox.blocking_send(Ask::Tick).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
