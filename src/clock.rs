//! The clock of this machine, as time since the epoch.
//!
//! Invariants:
//! - nothing below floor 3 reads it: rules are told the time;
//! - a clock before 1970 reads zero.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn now_us() -> u64 {
    since_epoch().as_micros() as u64
}

pub fn now_ms() -> u64 {
    since_epoch().as_millis() as u64
}

pub fn now_s() -> u64 {
    since_epoch().as_secs()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
