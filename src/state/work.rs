//! Folds durable work: tasks, workers, runs, the queue and schedules, and counts of them.
//!
//! Invariants:
//! - a row follows the events of its subject; an event of a subject that was never submitted changes nothing;
//! - no payload is read.

pub mod runs;
mod schedules;
mod tasks;
mod workers;

use rusqlite::params;

use crate::{
    event::{Body, Event},
    state::{StateError, fold::Folder},
    task, worker,
    workflow::run::{CONDITION, status as run},
};

/// The statuses of a task, each at the number it is stored as.
pub const TASK_STATUSES: [&str; task::Status::ALL.len()] = task::Status::WORDS;
/// The statuses of a run, each at the number it is stored as.
pub const RUN_STATUSES: [&str; run::Status::ALL.len()] = run::Status::WORDS;
/// The statuses of a worker, each at the number it is stored as. Whether it is busy is told by its tasks.
pub const WORKER_STATUSES: [&str; WORKERS_SHOWN.len()] =
    [WORKERS_SHOWN[0].as_str(), WORKERS_SHOWN[1].as_str(), WORKERS_SHOWN[2].as_str()];
const WORKERS_SHOWN: [worker::Status; 3] =
    [worker::Status::Active, worker::Status::Draining, worker::Status::Offline];

/// Every task is listed under this tag.
pub(crate) const EVERY_TASK: u64 = 0;

pub(crate) const QUEUED: u8 = task::Status::Queued as u8;
pub(crate) const RUNNING: u8 = task::Status::Running as u8;
/// The first status of a run that has ended.
pub(crate) const RUN_SUCCEEDED: u8 = run::Status::Succeeded as u8;

const MICROS_A_MILLI: u64 = 1_000;
const MICROS_A_MINUTE: u64 = 60_000_000;

/// Says when an event happened and its seq.
struct Moment {
    seq: u64,
    ms: u64,
    minute: u64,
}

impl Folder {
    /// Folds what an event of durable work changes.
    #[expect(
        clippy::too_many_lines,
        reason = "a line for each kind of event, so that a new one is not forgotten"
    )]
    pub(super) fn remember_work(
        &mut self,
        event: &Event,
        body: Body,
        subject: u64,
    ) -> Result<(), StateError> {
        let fields = event.fields();
        let (ms, minute) = (fields.ts / MICROS_A_MILLI, fields.ts / MICROS_A_MINUTE);
        let moment = Moment { seq: fields.seq, ms, minute };
        match body {
            Body::TaskSubmitted(facts) => self.task_submitted(event, facts, subject, &moment),
            Body::TaskClaimed(_)
            | Body::TaskSucceeded(_)
            | Body::TaskFailed(_)
            | Body::TaskTimedOut(_)
            | Body::TaskLeaseExpired(_)
            | Body::TaskInterrupted(_)
            | Body::TaskDead(_)
            | Body::TaskCancelled(_)
            | Body::TaskReprioritised(_)
            | Body::TaskRetried(_)
            | Body::TaskCleared(_) => self.task_turned(event, &body, subject, &moment),
            Body::TaskRenewed(_) | Body::TaskCancelRequested(_) => {
                self.task_heard(event, &body, subject);
                Ok(())
            }
            Body::QueuePaused(_) => self.insert("UPDATE queue SET paused = ?1", params![moment.seq]),
            Body::QueueResumed(_) => self.insert("UPDATE queue SET paused = NULL", &[]),
            Body::WorkerRegistered(_)
            | Body::WorkerDraining(_)
            | Body::WorkerUnregistered(_)
            | Body::WorkerLost(_) => self.worker_turned(event, subject),
            Body::WorkflowSubmitted(facts) => self.run_submitted(&facts, subject),
            Body::WorkflowStarted(_) => self.run_turned(subject, run::Status::Running, &moment),
            Body::WorkflowSucceeded(_) => self.run_turned(subject, run::Status::Succeeded, &moment),
            Body::WorkflowFailed(_) => self.run_turned(subject, run::Status::Failed, &moment),
            Body::WorkflowCancelled(_) => self.run_turned(subject, run::Status::Cancelled, &moment),
            Body::WorkflowTimedOut(_) => self.run_turned(subject, run::Status::TimedOut, &moment),
            Body::WorkflowRescheduled(_) => self.run_rescheduled(subject),
            Body::StepSkipped(facts) if facts.reason == CONDITION => self.step_done(subject),
            Body::StepGathered(_) => self.step_gathered(subject),
            Body::StepFailed(_) => {
                if let Some(metrics) = &self.watcher {
                    metrics.work.step_ended(task::Status::Failed.as_str(), None);
                }
                Ok(())
            }
            Body::ScheduleCreated(_) | Body::ScheduleFired(_) | Body::ScheduleDeleted(_) => {
                self.schedule_turned(event, subject)
            }
            // What these say is read from the events themselves, or folded with calls and contracts.
            Body::QueueCleared(_)
            | Body::WorkflowSignalled(_)
            | Body::WorkflowReplayed(_)
            | Body::StepSkipped(_)
            | Body::LogOpened(_)
            | Body::LogRecovered(_)
            | Body::LogTakenOver(_)
            | Body::LogSalted(_)
            | Body::LogKeyRotated(_)
            | Body::TokenAdded(_)
            | Body::TokenRevoked(_)
            | Body::AccessRead(_)
            | Body::AccessRefused(_)
            | Body::ConfigApplied(_)
            | Body::PeerDiscovered(_)
            | Body::PeerConnected(_)
            | Body::PeerDisconnected(_)
            | Body::PeerUnreachable(_)
            | Body::PeerMeasured(_)
            | Body::PeerForked(_)
            | Body::PeerReleased(_)
            | Body::BootstrapStarted(_)
            | Body::BootstrapFinished(_)
            | Body::RemoteCalled(_)
            | Body::LogFollowed(_)
            | Body::AccessExported(_)
            | Body::ContractPublished(_)
            | Body::ContractRetired(_)
            | Body::CallStarted(_)
            | Body::CallSucceeded(_)
            | Body::CallFailed(_)
            | Body::CallRefused(_)
            | Body::CallInterrupted(_)
            | Body::CallCancelled(_)
            | Body::CallAsked(_)
            | Body::CallAnswered(_)
            | Body::PayloadErased(_) => Ok(()),
        }
    }
}
