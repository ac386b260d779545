//! Reopening: when a stream of changes that ended is opened again, and what may have been missed is read again.
//!
//! Invariants:
//! - the pause doubles with every stream that ends soon, up to a bound, and is the first again after one that lived;
//! - where a server ends every stream at once, its lists are read at the first reopening, a minute later, and then ever
//!   more rarely.

use std::{convert::Infallible, future::pending, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::runtime::upstream::inbox::Inbox;

/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A stream that stayed open for this long was in order.
const LIVED: Duration = Duration::from_secs(30);
/// The time between the first two readings of what may have been missed; it doubles up to the longest.
const GAP_FIRST: Duration = Duration::from_secs(60);
const GAP_MAX: Duration = Duration::from_secs(600);
/// Doublings after which any pause is the longest.
const DOUBLINGS_MAX: u32 = 10;

/// What is remembered of one stream of changes: when it is to be opened, and whether something was missed.
pub struct Reopening {
    /// Streams that ended soon, in a row.
    brief: u32,
    opened: Instant,
    /// Whether changes may have been missed.
    missed: bool,
    /// When they may be looked for.
    due: Instant,
    gap: Duration,
}

impl Reopening {
    pub fn new(now: Instant) -> Self {
        Self { brief: 0, opened: now, missed: false, due: now, gap: GAP_FIRST }
    }

    /// Notes that the stream is being opened.
    pub fn open(&mut self, now: Instant) {
        self.opened = now;
    }

    /// Has the lists read again, if changes may have been missed, once that is due. Never returns; safe to drop.
    pub async fn catch_up(&mut self, inbox: &Inbox) -> Infallible {
        if let Some(due) = self.due() {
            sleep_until(due).await;
            self.read(Instant::now());
            inbox.all_changed();
        }
        pending().await
    }

    /// Notes that the stream has ended, and waits until it may be opened again: at first for `pause`.
    pub async fn wait(&mut self, pause: Duration) {
        let pause = self.end(Instant::now(), pause);
        sleep(pause).await;
    }

    /// Returns when what may have been missed is to be read, if anything may have been.
    fn due(&self) -> Option<Instant> {
        self.missed.then_some(self.due)
    }

    fn read(&mut self, now: Instant) {
        self.missed = false;
        self.due = now + self.gap;
        self.gap = GAP_MAX.min(self.gap * 2);
    }

    fn end(&mut self, now: Instant, first: Duration) -> Duration {
        self.missed = true;
        if now.duration_since(self.opened) >= LIVED {
            self.brief = 0;
            (self.due, self.gap) = (now, GAP_FIRST);
        }
        let doublings = self.brief.min(DOUBLINGS_MAX);
        self.brief = doublings + 1;
        first.saturating_mul(1 << doublings).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use crate::runtime::upstream::reopening::*;

    #[test]
    fn a_stream_that_ends_at_once_is_opened_and_followed_by_a_reading_ever_more_rarely() {
        let second = Duration::from_secs(1);
        let began = Instant::now();
        let (mut now, mut reopening) = (began, Reopening::new(began));
        let (mut opened, mut read) = (Vec::new(), Vec::new());
        while opened.len() < 30 {
            reopening.open(now);
            opened.push((now - began).as_secs());
            if reopening.due().is_some_and(|due| due <= now) {
                read.push((now - began).as_secs());
                reopening.read(now);
            }
            now += reopening.end(now, second);
        }
        assert_eq!(opened[..8], [0, 1, 3, 7, 15, 31, 61, 91]);
        assert_eq!(read, [1, 61, 181, 421], "within a quarter of an hour");

        reopening.open(now);
        now += LIVED;
        assert_eq!(reopening.end(now, second), second, "one that lived is opened again at once");
        assert_eq!(reopening.due(), Some(now), "and what it missed is read then");
        assert_eq!(reopening.end(now, 100 * second), PAUSE_MAX);
    }
}
