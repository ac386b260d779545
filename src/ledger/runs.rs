//! The writer's part in workflow runs: what their rules decide becomes events, in the commit of what caused it.
//!
//! Invariants:
//! - after a commit no run has a decision left that its rules would make;
//! - a run that was cancelled submits nothing more.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::{
    block::{Block, Cid, payload::SealedPayload},
    call::{Code, Refusal},
    event::{
        Body, Event, Fact, PayloadRef, Role,
        work::{
            Origin, Part, StepFailed, StepGathered, StepSkipped, TaskSubmitted, TaskSucceeded, WorkflowReplayed,
            WorkflowSignalled, WorkflowStarted, WorkflowSubmitted,
        },
    },
    ledger::{
        holding::{Holding, LiveRun},
        loading::load_run,
        tasks::By,
        work::{NewRun, Worked},
        writer::{Draft, Fault, Writer, payload_ref},
    },
    query, task,
    workflow::{self, Contents, Plan, run::{self, Decision, Run}},
};

/// Runs that have not ended.
const RUNS_MAX: usize = 10_000;
/// Rounds of decisions after one command; a run's rules settle long before.
const ROUNDS_MAX: usize = 100_000;

impl LiveRun {
    pub fn apply(&mut self, event: &Event) {
        self.run.apply(event);
        (self.last, self.last_seq) = (event.cid(), event.fields().seq);
    }
}

impl Holding {
    /// Tells a run in memory what happened to it or its tasks.
    pub fn tell_run(&mut self, run: &str, event: &Event) {
        if let Some(live) = self.runs.get_mut(run) {
            live.apply(event);
            self.dirty.push(run.to_owned());
        }
    }

    /// Takes a run into memory, with the indexes it belongs to.
    pub fn hold_run(&mut self, live: LiveRun) {
        let id = live.run.id.clone();
        if let Some(deadline) = live.run.deadline_ms() {
            self.due.push(std::cmp::Reverse((deadline, super::holding::Due::Run(id.clone()))));
        }
        for other in live.run.waits_for() {
            self.dependents.entry(other.to_owned()).or_default().insert(id.clone());
        }
        self.runs.insert(id, live);
    }
}
