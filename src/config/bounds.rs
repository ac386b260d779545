//! Bounds and forms that several parts of the configuration share.
//!
//! Invariant: a check with a report adds its fault and goes on, so that one start reports all faults.

use std::ops::RangeInclusive;

use http::Uri;

use super::{read::Report, wording};

/// The largest number of characters of an upstream's or lane's name.
pub(super) const NAME_MAX: usize = 64;
/// The largest number of characters of a public tool name.
const TOOL_NAME_MAX: usize = 128;
/// The largest number of entries of a list.
pub(super) const LISTED_MAX: usize = 1000;
pub(super) const DAY_MS: u64 = 24 * 60 * 60 * 1000;

pub(super) fn bound(place: &str, value: u64, range: RangeInclusive<u64>, report: &mut Report) {
    if !report.narrow(place, &wording::within(place, &range)) && !range.contains(&value) {
        report.fault(place, wording::out_of_range(place, value, &range));
    }
}

pub(super) fn optional(place: &str, value: Option<u64>, range: RangeInclusive<u64>, report: &mut Report) {
    match value {
        Some(value) => bound(place, value, range, report),
        None => {
            report.narrow(place, &wording::within(place, &range));
        }
    }
}

pub(super) fn plain_name(place: &str, name: &str, report: &mut Report) {
    if !is_name(name, 1, NAME_MAX, b"_-") {
        report.fault(place, "expected 1 to 64 of A-Z a-z 0-9 _ -");
    }
}

pub(super) fn tool_name(place: &str, name: &str, report: &mut Report) {
    if !is_name(name, 1, TOOL_NAME_MAX, b"._:/-") {
        report.fault(place, "a tool's name is 1 to 128 of A-Z a-z 0-9 . _ : / -");
    }
}

pub(super) fn is_name(name: &str, min: usize, max: usize, marks: &[u8]) -> bool {
    (min..=max).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(&byte))
}

/// Returns whether this is an absolute `http` or `https` URL without user information or fragment.
pub(super) fn is_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'))
            && !text.contains('#')
    })
}
