//! Requests that the door refuses: counted each, and told in the process's log, some for all.
//!
//! Invariants:
//! - of each reason at most one line is written in [`TELL_EVERY`]; it says how many went untold before it;
//! - a line holds no token and nothing of the request but where it came from. A caller's name is printable.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;

use crate::{
    event::Actor,
    metrics::{Metrics, door::Refused},
};

const TELL_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Refusals {
    metrics: Arc<Metrics>,
    told: Mutex<BTreeMap<Refused, Told>>,
}

struct Told {
    at: Instant,
    untold: u64,
}

impl Refusals {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, told: Mutex::default() }
    }

    /// Counts a refusal, and tells of it.
    pub fn note(&self, status: StatusCode, reason: Refused, from: Option<IpAddr>, caller: Option<&Actor>) {
        self.metrics.door.refused(status.as_u16(), reason);
        let Some(untold) = self.turn(reason, Instant::now()) else { return };
        let from = from.map(|from| from.to_string());
        tracing::warn!(
            status = status.as_u16(),
            reason = reason.as_str(),
            from,
            caller = caller.map(|caller| caller.id.as_str()),
            untold,
            "request refused"
        );
    }

    /// Returns how many refusals of this reason went untold, if it is time for a line; else counts this one.
    fn turn(&self, reason: Refused, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = told.get_mut(&reason) else {
            told.insert(reason, Told { at: now, untold: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(last.at) < TELL_EVERY {
            last.untold += 1;
            return None;
        }
        last.at = now;
        Some(std::mem::take(&mut last.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_one_line_a_second_and_none_is_lost() {
        let refusals = Refusals::new(Arc::new(Metrics::new()));
        let start = Instant::now();
        let at = |ms, reason| refusals.turn(reason, start + Duration::from_millis(ms));
        assert_eq!(at(0, Refused::Invalid), Some(0));
        assert_eq!((1..1000).filter_map(|ms| at(ms, Refused::Invalid)).count(), 0);
        assert_eq!(at(500, Refused::Rate), Some(0));
        assert_eq!(at(1000, Refused::Invalid), Some(999));
        assert_eq!(at(5000, Refused::Invalid), Some(0));
    }
}
