//! Moments and lengths of time as people type them.
//!
//! Invariant: what is given without a zone is UTC, as all that is shown.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::clock::now_ms;

/// Parses a moment to microseconds since the Unix epoch: RFC 3339, a date, microseconds, or how long ago it was, like
/// `30m`.
pub fn moment(text: &str) -> Result<u64, String> {
    since(text, now_ms().saturating_mul(1000))
}

fn since(text: &str, now_us: u64) -> Result<u64, String> {
    if let Ok(micros) = text.parse() {
        return Ok(micros);
    }
    if let Ok(seconds) = period(text) {
        return Ok(now_us.saturating_sub(seconds.saturating_mul(1_000_000)));
    }
    let local = |text: &str| text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok();
    let stamp = text.parse::<Timestamp>().ok().or_else(|| local(text).map(|zoned| zoned.timestamp()));
    stamp.and_then(|stamp| u64::try_from(stamp.as_microsecond()).ok()).ok_or_else(|| {
        "expected a moment like 2026-11-30, 2026-11-30T12:00:00Z, or 1h (an hour ago)".to_owned()
    })
}

/// Parses a length of time to seconds: a number and `s`, `m`, `h`, `d` or `w`.
pub fn period(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60), ('w', 7 * 24 * 60 * 60)];
    let seconds = units.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|seconds| *seconds > 0)
    });
    seconds.ok_or_else(|| "expected a number and a unit, like 30d, 12h, 45m or 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_a_unit() {
        for (text, seconds) in [
            ("30d", Some(2_592_000)),
            ("12h", Some(43_200)),
            ("2w", Some(1_209_600)),
            ("1s", Some(1)),
            ("0s", None),
            ("30", None),
            ("-1d", None),
            ("d", None),
            ("", None),
            ("1é", None),
            ("99999999999999999999d", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(period(text).ok(), seconds, "{text}");
        }
    }

    #[test]
    fn a_moment_is_absolute_or_ago() {
        const NOW: u64 = 1_796_083_200_000_000; // 2026-12-01T00:00:00Z
        for (text, moment) in [
            ("1h", Some(NOW - 3_600_000_000)),
            ("30m", Some(NOW - 1_800_000_000)),
            ("2026-11-30", Some(NOW - 86_400_000_000)),
            ("2026-11-30T12:00", Some(NOW - 43_200_000_000)),
            ("2026-11-30T12:00:00Z", Some(NOW - 43_200_000_000)),
            ("2026-11-30T13:00:00+01:00", Some(NOW - 43_200_000_000)),
            ("17", Some(17)),
            ("9999w", Some(0)),
            ("2026-13-01", None),
            ("1969-01-01", None),
            ("yesterday", None),
            ("1h ago", None),
            ("", None),
        ] {
            assert_eq!(since(text, NOW).ok(), moment, "{text}");
        }
    }
}
