//! Translates readings of durable work to the metrics.
//!
//! Invariant: labels are words of closed lists or ids of present workers, whose number the metrics bound.

use crate::{
    metrics::work::{Named, Reading, Totals},
    query::work::{
        alerts::Alert,
        pulse::{Pulse, Sums},
    },
    state::work::{RUN_STATUSES, TASK_STATUSES},
    task::Moment,
    tools::queue::standing,
};

/// The kinds of events that are counted over the whole log, with the label of each.
const WORKFLOW_ENDS: [(&str, &str); 4] = [
    ("workflow.succeeded", "succeeded"),
    ("workflow.failed", "failed"),
    ("workflow.cancelled", "cancelled"),
    ("workflow.timed_out", "timed_out"),
];
const LAPSES: [(&str, &str); 2] =
    [("task.lease_expired", "lease_expired"), ("task.interrupted", "interrupted")];
/// The statuses of workers.
const STANDINGS: [&str; 5] = ["active", "idle", "busy", "draining", "offline"];

/// What is remembered between readings, so that totals start at zero with the process.
#[derive(Debug, Default)]
pub struct Sampler {
    sums: Sums,
    /// The number of events of each kind at the first reading.
    began: Option<Vec<(&'static str, u64)>>,
}

/// Returns the kinds of events that a pulse must count.
pub fn kinds() -> Vec<&'static str> {
    WORKFLOW_ENDS.iter().chain(&LAPSES).map(|(kind, _)| *kind).collect()
}

impl Sampler {
    pub fn reading(&mut self, pulse: &Pulse, moment: &Moment) -> Reading {
        let counts = &pulse.seen.counts;
        let workers = &pulse.seen.workers;
        let standings: Vec<&str> = workers
            .iter()
            .map(|worker| standing(worker.status, worker.load.running, worker.max_concurrent))
            .collect();
        let there = workers.iter().filter(|worker| worker.status != "offline");
        let loads = there.map(|worker| (worker.id.clone(), worker.load.running));
        let alert = |alert: Alert| (alert.name, alert.firing);
        Reading {
            tasks: TASK_STATUSES.into_iter().zip(counts.tasks).collect(),
            workflows: RUN_STATUSES.into_iter().zip(counts.runs).collect(),
            workers: STANDINGS
                .map(|name| (name, standings.iter().filter(|standing| **standing == name).count() as u64))
                .to_vec(),
            loads: loads.chain(pulse.executors.iter().cloned()).collect(),
            queued: counts.tasks_of("queued"),
            paused: pulse.paused,
            longest_wait_ms: pulse.seen.longest_wait_ms(moment.now_ms).unwrap_or(0),
            alerts: pulse.seen.alerts(moment).into_iter().map(alert).collect(),
            totals: self.totals(pulse),
        }
    }

    fn totals(&mut self, pulse: &Pulse) -> Totals {
        self.sums.add(&pulse.seen.minutes);
        let began = self.began.get_or_insert_with(|| pulse.told.clone());
        let of = |list: &[(&'static str, u64)], kind: &str| {
            list.iter().find(|(told, _)| *told == kind).map_or(0, |(_, n)| *n)
        };
        let since = |kinds: &[(&'static str, &'static str)]| -> Named {
            let new = |kind: &str| of(&pulse.told, kind).saturating_sub(of(began, kind));
            kinds.iter().map(|(kind, name)| (*name, new(kind))).collect()
        };
        let total = &self.sums.total;
        Totals {
            submitted: total.submitted,
            starts: total.started,
            wait_ms: total.wait_ms,
            attempts: total.executed,
            execution_ms: total.execution_ms,
            task_ends: vec![("succeeded", total.succeeded), ("failed", total.failed)],
            workflow_ends: since(&WORKFLOW_ENDS),
            lapses: since(&LAPSES),
        }
    }
}
