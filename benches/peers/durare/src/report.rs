//! What is printed: one JSON object a line, of the same shape as the other peers'.

use std::time::Duration;

use serde_json::json;

const PEER: &str = "durare";
const VERSION: &str = "0.5.0";

/// What all lines of one setting share.
pub struct Report {
    pub durability: &'static str,
    pub rounds: usize,
}

/// A measure of work done by second: `count` units a round, and what a time is the time of.
pub struct Rate {
    pub measure: &'static str,
    pub unit: &'static str,
    pub count: usize,
    pub per: &'static str,
}

impl Report {
    /// Prints the median rate of the rounds with the lowest and the highest, and the times of all rounds together.
    pub fn rate(&self, what: Rate, mut rates: Vec<f64>, mut times: Vec<Duration>) {
        rates.sort_unstable_by(f64::total_cmp);
        times.sort_unstable();
        let line = json!({
            "peer": PEER, "version": VERSION, "durability": self.durability,
            "measure": what.measure, "unit": what.unit, "count": what.count, "rounds": self.rounds,
            "per_s": whole(rates[rates.len() / 2]),
            "per_s_low": whole(rates[0]), "per_s_high": whole(rates[rates.len() - 1]),
            "time_of": what.per,
            "p50_ms": at(&times, 50), "p90_ms": at(&times, 90), "p99_ms": at(&times, 99),
        });
        println!("{line}");
    }

    /// Prints the time from the start of a process to the first step that it runs, and which steps ran again.
    pub fn killed(&self, mut times: Vec<Duration>, repeated: usize, repeated_recorded: usize) {
        times.sort_unstable();
        let line = json!({
            "peer": PEER, "version": VERSION, "durability": self.durability,
            "measure": "killed", "rounds": self.rounds, "time_of": "start to first step",
            "p50_ms": at(&times, 50), "low_ms": at(&times, 0), "high_ms": at(&times, 100),
            "repeated": repeated, "repeated_recorded": repeated_recorded,
        });
        println!("{line}");
    }
}

/// Prints the machine's own figure.
pub fn fdatasync(place: &str, p50: Duration) {
    println!("{}", json!({"peer": "machine", "measure": "fdatasync", "place": place, "p50_ms": ms(p50)}));
}

/// The time below which `percent` of the sorted times lie.
fn at(sorted: &[Duration], percent: usize) -> f64 {
    ms(sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)])
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn whole(rate: f64) -> u64 {
    rate.round() as u64
}
