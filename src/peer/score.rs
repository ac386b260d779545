//! How well something has gone of late: successes and failures that count half as much after a day.
//!
//! Invariants:
//! - whole numbers only, so that every fold of the same events gives the same score;
//! - time passes in whole minutes: how often a score is looked at does not change it.
//!
//! With `ok` and `fail` as decayed counts and `n` their sum, the rate is `s = (1 + ok) / (2 + n)`: half, as long as
//! nothing is known. The lower bound is `s - 1.645 * sqrt(s * (1 - s) / (3 + n))`: the true rate lies above it in 95 of
//! 100 cases, roughly, so what was tried seldom ranks below what has proven itself.

use serde::{Deserialize, Serialize};

/// One whole, where shares are told in parts per million.
pub const ONE: u64 = 1_000_000;
/// After this many minutes a sample counts half: a day.
const HALF_LIFE_MIN: u64 = 24 * 60;

/// Half-lives after which a sample counts nothing.
const LIVES_MAX: u64 = 40;
/// What is left after 1, 2, 4, ... 1024 minutes, in parts per [`WHOLE`]: `2^(-m/1440)`.
const LEFT_AFTER: [u128; 11] = [
    999_518_763_623,
    999_037_758_834,
    998_076_443_576,
    996_156_587_221,
    992_327_946_263,
    984_714_752_934,
    969_663_144_647,
    940_246_614_086,
    884_063_695_300,
    781_568_617_348,
    610_849_503_624,
];
const WHOLE: u128 = 1_000_000_000_000;

/// Decayed counts of what succeeded and failed, in millionths of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    ok: u64,
    fail: u64,
    /// The minute since the epoch that the counts are of.
    minute: u64,
}

impl Score {
    /// Counts one more sample at a time.
    pub fn count(&mut self, ok: bool, now_ms: u64) {
        *self = self.at(now_ms);
        match ok {
            true => self.ok += ONE,
            false => self.fail += ONE,
        }
    }

    /// The score at a later time; at an earlier one, as it stands.
    pub fn at(self, now_ms: u64) -> Self {
        let minute = (now_ms / 60_000).max(self.minute);
        let passed = minute - self.minute;
        Self { ok: decayed(self.ok, passed), fail: decayed(self.fail, passed), minute }
    }

    /// Samples it is of, as far as they still count, in millionths.
    pub fn samples(&self) -> u64 {
        self.ok + self.fail
    }

    /// The share that succeeds, in parts per million.
    pub fn rate(&self) -> u64 {
        share(ONE + self.ok, 2 * ONE + self.samples())
    }

    /// What the share is at least, as far as the samples tell, in parts per million.
    pub fn lower_bound(&self) -> u64 {
        let rate = self.rate();
        // Parts per million squared over a sample count: its root is parts per million again.
        let variance =
            u128::from(rate * (ONE - rate)) * u128::from(ONE) / u128::from(3 * ONE + self.samples());
        let deviation = variance.isqrt() as u64;
        rate.saturating_sub(deviation * 1_645 / 1_000)
    }
}

/// How good a connection is, in parts per million: the share of links that hold, times what its latency leaves.
///
/// `rate * 100 ms / (100 ms + p50)`: a peer a hundred milliseconds away is half as good as one next door.
pub fn connection_quality(links: &Score, latency_p50_us: u64) -> u64 {
    const HALF_AT_US: u64 = 100_000;
    links.rate() * HALF_AT_US / HALF_AT_US.saturating_add(latency_p50_us)
}

fn share(part: u64, whole: u64) -> u64 {
    (u128::from(part) * u128::from(ONE) / u128::from(whole)) as u64
}

fn decayed(count: u64, minutes: u64) -> u64 {
    let lives = minutes / HALF_LIFE_MIN;
    if lives > LIVES_MAX {
        return 0;
    }
    let minutes = minutes % HALF_LIFE_MIN;
    let passed = LEFT_AFTER.iter().enumerate().filter(|(bit, _)| minutes >> bit & 1 == 1);
    let left = passed.fold(WHOLE, |left, (_, factor)| left * factor / WHOLE);
    (u128::from(count >> lives) * left / WHOLE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn score(ok: u64, fail: u64) -> Score {
        let mut score = Score::default();
        (0..ok).for_each(|_| score.count(true, 0));
        (0..fail).for_each(|_| score.count(false, 0));
        score
    }

    #[test]
    fn the_lower_bound_grows_with_what_was_seen() {
        // By hand, from the formula at the head, in thousandths.
        for (ok, fail, rate, bound) in [
            (0, 0, 500, 25),
            (1, 0, 666, 278),
            (10, 0, 916, 790),
            (100, 0, 990, 974),
            (0, 10, 83, 0),
            (50, 50, 500, 418),
        ] {
            let score = score(ok, fail);
            assert_eq!(
                (score.rate() / 1000, score.lower_bound() / 1000),
                (rate, bound),
                "{ok} of {}",
                ok + fail
            );
        }
    }

    #[test]
    fn a_day_halves_what_counts() {
        let score = score(8, 4);
        for (days, samples) in [(0, 12 * ONE), (1, 6 * ONE), (2, 3 * ONE), (3, 3 * ONE / 2), (41, 0)] {
            assert_eq!(score.at(days * DAY_MS).samples(), samples, "after {days} days");
        }
        assert_eq!(score.at(DAY_MS / 2).samples() * 1000 / ONE, 8485, "12 / sqrt 2 at half the day");
        assert_eq!(score.at(400 * DAY_MS).rate(), ONE / 2);
    }

    #[test]
    fn looking_often_changes_nothing() {
        let once = score(100, 0).at(DAY_MS);
        let mut often = score(100, 0);
        for second in 0..DAY_MS / 1000 {
            often = often.at(second * 1000);
        }
        often = often.at(DAY_MS);
        let apart = once.samples().abs_diff(often.samples());
        assert!(apart * 1000 < once.samples(), "apart by {apart} millionths of a sample");
        assert_eq!(once.at(0), once, "the past does not come back");
    }

    #[test]
    fn near_links_that_hold_are_good_links() {
        let holds = score(98, 0);
        let quality = |us| connection_quality(&holds, us) / 1000;
        assert_eq!([quality(0), quality(100_000), quality(900_000)], [990, 495, 99]);
        assert!(connection_quality(&score(0, 98), 0) < ONE / 50);
        assert_eq!(connection_quality(&holds, u64::MAX), 0);
    }
}
