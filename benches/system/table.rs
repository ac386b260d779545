//! The table: a row for each figure, its median, its range, its bound and whether it is kept.

use std::time::Duration;

/// What a figure has to be.
#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: it is here to be compared with.
    None,
}

pub fn header() {
    println!("  {:<52} {:>12} {:>12} {:>12}  bound", "figure", "median", "lowest", "highest");
}

/// Prints one figure of several rounds, and gives its median.
pub fn row(name: &str, unit: &str, mut rounds: Vec<f64>, bound: Bound) -> f64 {
    rounds.sort_by(f64::total_cmp);
    let (Some(lowest), Some(highest)) = (rounds.first(), rounds.last()) else {
        absent(name, "nothing was measured");
        return f64::NAN;
    };
    let median = rounds[rounds.len() / 2];
    let verdict = match bound {
        Bound::AtLeast(least) => judged(median >= least, ">=", least),
        Bound::AtMost(most) => judged(median <= most, "<=", most),
        Bound::None => String::new(),
    };
    let name = format!("{name}, {unit}");
    println!("  {name:<52} {:>12} {:>12} {:>12}  {verdict}", shown(median), shown(*lowest), shown(*highest));
    median
}

/// Prints that a figure could not be had.
pub fn absent(name: &str, why: &str) {
    println!("  {name:<52} {:>12}  {why}", "absent");
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value that a share of `times`, which are sorted here, does not exceed.
pub fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let place = (times.len() as f64 * share) as usize;
    times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn judged(kept: bool, relation: &str, limit: f64) -> String {
    let verdict = if kept { "PASS" } else { "FAIL" };
    format!("{verdict} ({relation} {})", shown(limit))
}

fn shown(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middling if middling >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
