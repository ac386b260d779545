//! The pulse of durable work: what metrics are set from, every few seconds.
//!
//! Invariants:
//! - all of a pulse is read at one seq, from rows whose number does not grow with the queue;
//! - sums count every minute once, however often and however late it is read.

use std::cmp::Ordering;

use super::{At, alerts::Seen, history::Minute};
use crate::query::{QueryError, View};

/// Durable work as it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pulse {
    pub seen: Seen,
    pub paused: bool,
    /// Nodes' own executors that have tasks, which do not register, and how many tasks each has.
    pub executors: Vec<(String, u64)>,
    /// The number of events of each kind that was asked for.
    pub told: Vec<(&'static str, u64)>,
}

/// The sum of all minutes since the first pulse.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// The total; its `minute` has no meaning.
    pub total: Minute,
    /// The newest minute, as far as it is counted in the total.
    newest: Option<Minute>,
}

impl View {
    pub fn pulse(&self, kinds: &[&'static str], now_ms: u64) -> Result<At<Pulse>, QueryError> {
        self.at(|| {
            let mut executors = self.state.prepare_cached(
                "SELECT word.text, running FROM worker_tally JOIN word ON word.id = worker_tally.worker
                 WHERE running > 0 AND word.text GLOB 'node/*' ORDER BY 1",
            )?;
            let executors = executors.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut told = self.state.prepare_cached(
                "SELECT coalesce(sum(n), 0) FROM tally JOIN word ON word.id = tally.kind WHERE word.text = ?1",
            )?;
            let mut of_kind = |kind: &&'static str| Ok((*kind, told.query_row([*kind], |row| row.get(0))?));
            Ok(Pulse {
                seen: self.seen(now_ms)?,
                paused: super::paused(&self.state)?.is_some(),
                executors: executors.collect::<Result<_, _>>()?,
                told: kinds.iter().map(&mut of_kind).collect::<Result<_, QueryError>>()?,
            })
        })
    }
}

impl Sums {
    /// Adds what is new in these minutes, the last of which may still be going on. The first call only sets where
    /// counting begins.
    pub fn add(&mut self, minutes: &[Minute]) {
        let mut known = self.newest.unwrap_or_else(|| minutes.last().copied().unwrap_or_default());
        for minute in minutes {
            let before = match minute.minute.cmp(&known.minute) {
                Ordering::Less => continue,
                Ordering::Equal => known,
                Ordering::Greater => Minute::default(),
            };
            known = *minute;
            let add = |total: &mut u64, now: u64, before: u64| *total += now.saturating_sub(before);
            add(&mut self.total.submitted, minute.submitted, before.submitted);
            add(&mut self.total.started, minute.started, before.started);
            add(&mut self.total.succeeded, minute.succeeded, before.succeeded);
            add(&mut self.total.failed, minute.failed, before.failed);
            add(&mut self.total.executed, minute.executed, before.executed);
            add(&mut self.total.wait_ms, minute.wait_ms, before.wait_ms);
            add(&mut self.total.execution_ms, minute.execution_ms, before.execution_ms);
            add(&mut self.total.runs_ended, minute.runs_ended, before.runs_ended);
            add(&mut self.total.runs_failed, minute.runs_failed, before.runs_failed);
        }
        self.newest = Some(known);
    }
}

#[cfg(test)]
mod tests {
    //! Minutes as they are read again and again, and what they come to.
    //!
    //! Only `submitted` is told: the other sums are added in the same way.

    use super::{Minute, Sums};

    #[test]
    fn every_minute_is_added_once() {
        let mut sums = Sums::default();
        for (read, total) in [
            (&[(5, 100), (7, 10)][..], 0),
            (&[(5, 100), (7, 10)], 0),
            (&[(5, 100), (7, 12)], 2),
            (&[(7, 15), (8, 1), (12, 4)], 10),
            (&[(8, 1), (12, 5)], 11),
            (&[], 11),
            (&[(90, 1)], 12),
        ] {
            let minutes: Vec<Minute> = read
                .iter()
                .map(|&(minute, submitted)| Minute { minute, submitted, ..Minute::default() })
                .collect();
            sums.add(&minutes);
            assert_eq!(sums.total.submitted, total, "{read:?}");
        }
    }

    #[test]
    fn a_node_that_begins_with_nothing_counts_its_first_minute() {
        let mut sums = Sums::default();
        sums.add(&[]);
        sums.add(&[Minute { minute: 9, submitted: 3, ..Minute::default() }]);
        assert_eq!(sums.total.submitted, 3);
    }
}
