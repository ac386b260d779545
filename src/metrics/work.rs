//! Metrics of durable work: tasks, runs and workers by status, counts of outcomes, waiting times and alerts.
//!
//! Invariants:
//! - nothing is counted twice: gauges and totals are read from the state, and histograms are observed once an event,
//!   when it is folded;
//! - totals only grow, and start at zero with the process;
//! - labels are words of closed lists, or worker ids up to a bound.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{Labels, NAMES_MAX, OTHER};

/// Histogram bounds, from 10 milliseconds to a day: tasks may wait and run that long.
const SECONDS: [f64; 14] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

type Seconds = Gauge<f64, AtomicU64>;
type SecondsTotal = Counter<f64, AtomicU64>;

/// Counts by a name from a closed list.
pub type Named = Vec<(&'static str, u64)>;

/// One reading of the state of durable work.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The numbers of tasks, runs and workers by status.
    pub tasks: Named,
    pub workflows: Named,
    pub workers: Named,
    /// The number of tasks that each present worker holds, by worker id.
    pub loads: Vec<(String, u64)>,
    pub queued: u64,
    pub paused: bool,
    /// The waiting time of the runnable task that has waited longest.
    pub longest_wait_ms: u64,
    /// Each alert by name, and whether it fires.
    pub alerts: Vec<(&'static str, bool)>,
    pub totals: Totals,
}

/// What has happened since the process started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub submitted: u64,
    pub starts: u64,
    /// The waiting time of all `starts` together.
    pub wait_ms: u64,
    /// Attempts that ended with an outcome.
    pub attempts: u64,
    /// The running time of all `attempts` together.
    pub execution_ms: u64,
    /// The numbers of ended tasks and of ended runs, by outcome.
    pub task_ends: Named,
    pub workflow_ends: Named,
    /// The numbers of attempts that ended without an outcome, by reason.
    pub lapses: Named,
}

/// The metrics of durable work.
#[derive(Debug)]
pub struct Work {
    tasks: Family<Labels<1>, Gauge>,
    workflows: Family<Labels<1>, Gauge>,
    workers: Family<Labels<1>, Gauge>,
    worker_tasks: Family<Labels<1>, Gauge>,
    /// The worker ids that have a series now, so that those of absent workers can be removed.
    shown: Mutex<BTreeSet<String>>,
    queue_paused: Gauge,
    queue_wait: Seconds,
    alert: Family<Labels<1>, Gauge>,
    submitted: Counter,
    starts: Counter,
    wait: SecondsTotal,
    attempts: Counter,
    execution: SecondsTotal,
    task_ends: Family<Labels<1>, Counter>,
    workflow_ends: Family<Labels<1>, Counter>,
    lapses: Family<Labels<1>, Counter>,
    waits: Histogram,
    step_ends: Family<Labels<1>, Counter>,
    steps: Family<Labels<1>, Histogram>,
    runs: Family<Labels<1>, Histogram>,
}

impl Work {
    /// Records how long a task waited between being runnable and being claimed.
    pub fn waited(&self, ms: u64) {
        self.waits.observe(seconds(ms));
    }

    /// Records the end of a step, or of one part of it. `took_ms` is the duration of its last attempt, if it had one.
    pub fn step_ended(&self, outcome: &'static str, took_ms: Option<u64>) {
        let label = [("outcome", outcome.to_owned())];
        self.step_ends.get_or_create(&label).inc();
        if let Some(took_ms) = took_ms {
            self.steps.get_or_create(&label).observe(seconds(took_ms));
        }
    }

    /// Records the end of a run that had started, and its duration.
    pub fn run_ended(&self, outcome: &'static str, took_ms: u64) {
        self.runs.get_or_create(&[("outcome", outcome.to_owned())]).observe(seconds(took_ms));
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("tasks", "Tasks by status, steps of workflows too", self.tasks.clone());
        registry.register("workflows", "Workflows by status", self.workflows.clone());
        registry.register("workers", "Workers by status", self.workers.clone());
        registry.register("worker_tasks", "Tasks that a worker has", self.worker_tasks.clone());
        registry.register("queue_paused", "1 while the queue is paused", self.queue_paused.clone());
        registry.register_with_unit(
            "queue_longest_wait",
            "How long the task has waited that may run for longest",
            Unit::Seconds,
            self.queue_wait.clone(),
        );
        registry.register("alert", "1 while an alert fires", self.alert.clone());
        registry.register("tasks_submitted", "Tasks that were accepted", self.submitted.clone());
        registry.register("task_starts", "Tasks that a worker took", self.starts.clone());
        let help = "The time between when a task could run and when a worker took it";
        registry.register_with_unit("task_wait", help, Unit::Seconds, self.wait.clone());
        registry.register("task_attempts", "Attempts that ended with an outcome", self.attempts.clone());
        let help = "The time that attempts took which ended with an outcome";
        registry.register_with_unit("task_execution", help, Unit::Seconds, self.execution.clone());
        registry.register("task_ends", "Tasks that succeeded, or failed for good", self.task_ends.clone());
        registry.register("workflow_ends", "Workflows that ended, by how", self.workflow_ends.clone());
        let help = "Attempts that ended without an outcome, by why";
        registry.register("task_lapses", help, self.lapses.clone());
        let help = "From when a task could run to when a worker took it";
        registry.register_with_unit("queue_wait", help, Unit::Seconds, self.waits.clone());
        let help = "Steps of workflows that ended, and parts of steps, by how";
        registry.register("step_ends", help, self.step_ends.clone());
        let help = "From the start of a step's last attempt to the step's end";
        registry.register_with_unit("step", help, Unit::Seconds, self.steps.clone());
        let help = "From the start of a workflow to its end";
        registry.register_with_unit("workflow", help, Unit::Seconds, self.runs.clone());
    }

    /// Sets all gauges and totals from a reading, and removes the series of workers that are absent.
    pub fn set(&self, reading: &Reading) {
        for (family, label, named) in [
            (&self.tasks, "status", &reading.tasks),
            (&self.workflows, "status", &reading.workflows),
            (&self.workers, "status", &reading.workers),
        ] {
            for (name, n) in named {
                family.get_or_create(&[(label, (*name).to_owned())]).set(signed(*n));
            }
        }
        for (name, firing) in &reading.alerts {
            self.alert.get_or_create(&[("name", (*name).to_owned())]).set((*firing).into());
        }
        self.queue_paused.set(reading.paused.into());
        self.queue_wait.set(reading.longest_wait_ms as f64 / 1000.0);
        self.set_loads(&reading.loads);
        self.set_totals(&reading.totals);
    }

    fn set_loads(&self, loads: &[(String, u64)]) {
        let (named, rest) = loads.split_at(loads.len().min(NAMES_MAX));
        let mut shown: Vec<(String, u64)> = named.to_vec();
        if !rest.is_empty() {
            shown.push((OTHER.to_owned(), rest.iter().map(|(_, n)| n).sum()));
        }
        let label = |worker: &str| [("worker", worker.to_owned())];
        for (worker, n) in &shown {
            self.worker_tasks.get_or_create(&label(worker)).set(signed(*n));
        }
        let now: BTreeSet<String> = shown.into_iter().map(|(worker, _)| worker).collect();
        let mut before = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in before.difference(&now) {
            self.worker_tasks.remove(&label(gone));
        }
        *before = now;
    }

    fn set_totals(&self, totals: &Totals) {
        raise(&self.submitted, totals.submitted);
        raise(&self.starts, totals.starts);
        raise(&self.attempts, totals.attempts);
        raise_ms(&self.wait, totals.wait_ms);
        raise_ms(&self.execution, totals.execution_ms);
        for (family, label, named) in [
            (&self.task_ends, "outcome", &totals.task_ends),
            (&self.workflow_ends, "outcome", &totals.workflow_ends),
            (&self.lapses, "reason", &totals.lapses),
        ] {
            for (name, n) in named {
                raise(&family.get_or_create(&[(label, (*name).to_owned())]), *n);
            }
        }
    }
}

impl Default for Work {
    fn default() -> Self {
        let histogram = || Histogram::new(SECONDS);
        Self {
            tasks: Family::default(),
            workflows: Family::default(),
            workers: Family::default(),
            worker_tasks: Family::default(),
            shown: Mutex::default(),
            queue_paused: Gauge::default(),
            queue_wait: Seconds::default(),
            alert: Family::default(),
            submitted: Counter::default(),
            starts: Counter::default(),
            wait: SecondsTotal::default(),
            attempts: Counter::default(),
            execution: SecondsTotal::default(),
            task_ends: Family::default(),
            workflow_ends: Family::default(),
            lapses: Family::default(),
            waits: histogram(),
            step_ends: Family::default(),
            steps: Family::new_with_constructor(histogram),
            runs: Family::new_with_constructor(histogram),
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn raise(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn raise_ms(counter: &SecondsTotal, to_ms: u64) {
    counter.inc_by((to_ms as f64 / 1000.0 - counter.get()).max(0.0));
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
