//! Cron lines of five fields, in UTC: minute, hour, day of month, month, day of week.
//!
//! A field has `*`, numbers, names of months and days, ranges, lists and steps; `@daily` and the like stand for whole
//! lines.
//! As in crontab(5), a day matches if either day field matches, unless one of them begins with `*`: then both must.

use std::ops::RangeInclusive;

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::Offset,
};

/// The largest number of characters of a line.
const LINE_MAX: usize = 256;
/// How many days are searched: between two 29ths of February there are at most eight years (1896 to 1904).
const DAYS_MAX: usize = 8 * 366 + 1;
const MINUTE_MS: u64 = 60_000;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A parsed line. Each field is a set of numbers as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether a day must match both day fields, not only one of them.
    both: bool,
}

impl Cron {
    /// Parses a line. The error says what is wrong with it.
    pub(super) fn read(line: &str) -> Result<Self, String> {
        if line.len() > LINE_MAX {
            return Err(format!("over {LINE_MAX} characters"));
        }
        let line = line.trim().to_ascii_lowercase();
        let line = WORDS.iter().find(|(word, _)| *word == line).map_or(line.as_str(), |(_, line)| line);
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("{} fields, not minute, hour, day, month and day of week", fields.len()));
        };
        let sundays = field("day of week", weekdays, 0..=7, &DAYS, 0)?;
        Ok(Self {
            minutes: field("minute", minutes, 0..=59, &[], 0)?,
            hours: field("hour", hours, 0..=23, &[], 0)?,
            days: field("day", days, 1..=31, &[], 0)?,
            months: field("month", months, 1..=12, &MONTHS, 1)?,
            weekdays: sundays | sundays >> 7,
            both: days.starts_with('*') || weekdays.starts_with('*'),
        })
    }

    /// Returns the first tick after a time; `None` if no day of the next eight years matches.
    pub(super) fn next_ms(&self, after_ms: u64) -> Option<u64> {
        let from_ms = i64::try_from((after_ms / MINUTE_MS + 1).checked_mul(MINUTE_MS)?).ok()?;
        let from = Offset::UTC.to_datetime(Timestamp::from_millisecond(from_ms).ok()?);
        let mut date = from.date();
        let mut tick = self.fits(date).then(|| self.tick(date, from.time())).flatten();
        for _ in 0..DAYS_MAX {
            if tick.is_some() {
                break;
            }
            date = date.tomorrow().ok()?;
            tick = self.fits(date).then(|| self.tick(date, Time::midnight())).flatten();
        }
        u64::try_from(Offset::UTC.to_timestamp(tick?).ok()?.as_millisecond()).ok()
    }

    fn fits(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month()) && if self.both { day && weekday } else { day || weekday }
    }

    /// Returns the first tick on a day that matches, from a time on.
    fn tick(&self, date: Date, from: Time) -> Option<DateTime> {
        let same = first(self.minutes, from.minute()).filter(|_| has(self.hours, from.hour()));
        let (hour, minute) = match same {
            Some(minute) => (from.hour(), minute),
            None => (first(self.hours, from.hour() + 1)?, first(self.minutes, 0)?),
        };
        Some(date.at(hour, minute, 0, 0))
    }
}

/// Returns whether a number is in the set.
fn has(bits: u64, number: i8) -> bool {
    bits >> number & 1 == 1
}

/// Returns the least number of the set that is at least `from`.
fn first(bits: u64, from: i8) -> Option<i8> {
    let left = bits >> from << from;
    (left != 0).then(|| i8::try_from(left.trailing_zeros()).expect("there are 64 bits"))
}

/// Parses one field to a set of numbers. `names` stand for the numbers from `base` on.
fn field(
    name: &str,
    text: &str,
    range: RangeInclusive<u64>,
    names: &[&str],
    base: u64,
) -> Result<u64, String> {
    let number = |text: &str| {
        let named = names.iter().zip(base..).find(|(name, _)| **name == text).map(|(_, number)| number);
        let number = named.or_else(|| text.parse().ok()).filter(|number| range.contains(number));
        number.ok_or_else(|| format!("{name}: `{text}` is not in {}-{}", range.start(), range.end()))
    };
    let mut bits = 0;
    for item in text.split(',') {
        let (span, step) = item.split_once('/').map_or((item, None), |(span, step)| (span, Some(step)));
        let (from, to) = match span.split_once('-') {
            _ if span == "*" => (*range.start(), *range.end()),
            Some((from, to)) => (number(from)?, number(to)?),
            None if step.is_some() => (number(span)?, *range.end()),
            None => (number(span)?, number(span)?),
        };
        let step: u64 =
            step.map_or(Some(1), |step| step.parse().ok().filter(|step| *step > 0)).ok_or_else(|| {
                format!("{name}: a step is a number from 1 on, not `{}`", step.unwrap_or_default())
            })?;
        if from > to {
            return Err(format!("{name}: `{span}` runs backwards"));
        }
        let mut at = from;
        while at <= to {
            bits |= 1 << at;
            at = at.saturating_add(step);
        }
    }
    Ok(bits)
}
