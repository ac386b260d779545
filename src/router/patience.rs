//! Patience: how long a call may go on.
//!
//! Invariants:
//! - a call has its limit from its start, and again from each progress that its tool tells;
//! - the time in which the caller is asked something does not count: a person answers when they do;
//! - no call goes on for longer than `GOES_ON_MAX`, unless its limit is longer.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The longest that progress and questions may extend a call to.
const GOES_ON_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked whether a question is still open.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The time that one call has.
#[derive(Debug)]
pub struct Patience(Mutex<Time>);

#[derive(Debug)]
struct Time {
    limit: Duration,
    until: Instant,
    last: Instant,
    /// How many questions are open, and since when there is one.
    open: usize,
    since: Instant,
}

/// A question that is open. Dropping it gives the call the time back that it took.
pub struct Open<'a>(&'a Patience);

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self(Mutex::new(Time::new(limit, Instant::now())))
    }

    /// Returns when the call is given up, as it stands.
    pub fn until(&self) -> Instant {
        self.time().until
    }

    /// Gives the call its limit again.
    pub fn progressed(&self) {
        self.time().progressed(Instant::now());
    }

    /// Stops the clock of the call until what is returned is dropped.
    pub fn asking(&self) -> Open<'_> {
        self.time().opened(Instant::now());
        Open(self)
    }

    /// Waits until the call's time is over. Safe to drop.
    pub async fn over(&self) {
        loop {
            let Some(next) = self.time().next(Instant::now()) else { return };
            sleep_until(next).await;
        }
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.time().closed(Instant::now());
    }
}

impl Time {
    fn new(limit: Duration, begun: Instant) -> Self {
        Self { limit, until: begun + limit, last: begun + limit.max(GOES_ON_MAX), open: 0, since: begun }
    }

    fn progressed(&mut self, now: Instant) {
        self.until = self.until.max(now + self.limit).min(self.last);
    }

    fn opened(&mut self, now: Instant) {
        if self.open == 0 {
            self.since = now;
        }
        self.open += 1;
    }

    fn closed(&mut self, now: Instant) {
        self.open -= 1;
        if self.open == 0 {
            self.until = (self.until + (now - self.since)).min(self.last);
        }
    }

    /// Returns when to look again; none if the time is over.
    fn next(&self, now: Instant) -> Option<Instant> {
        match now < self.until {
            true => Some(self.until),
            false if self.open > 0 && now < self.last => Some(now + LOOK_EVERY),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use crate::router::patience::{GOES_ON_MAX, Time};

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn progress_and_questions_extend_a_call_up_to_a_bound() {
        let begun = Instant::now();
        let mut time = Time::new(LIMIT, begun);
        assert!(time.next(begun + LIMIT).is_none(), "a call has its limit");
        time.progressed(begun + LIMIT / 2);
        assert!(time.next(begun + LIMIT).is_some(), "and again from its progress");
        time.opened(begun + LIMIT);
        time.opened(begun + 2 * LIMIT);
        assert!(time.next(begun + 10 * LIMIT).is_some(), "the caller is asked something");
        time.closed(begun + 10 * LIMIT);
        time.closed(begun + 11 * LIMIT);
        assert_eq!(time.until, begun + LIMIT / 2 + LIMIT + 10 * LIMIT, "which took no time of the call");
        time.progressed(begun + GOES_ON_MAX);
        assert_eq!(time.until, begun + GOES_ON_MAX, "nothing goes on for ever");
        time.opened(begun + GOES_ON_MAX);
        assert!(time.next(begun + GOES_ON_MAX).is_none());
    }
}
