//! The part of the golden log about durable work. The first event of each kind carries everything it can.
//!
//! Every kind of durable work is here at least once, and released bytes never change.
//!
//! Invariant: these events come after all that were in the golden log before them.

use ipld_core::{ipld, ipld::Ipld};

use super::{START_US, Story};
use crate::{
    block::{Block, Cid},
    event::{
        body::Body,
        work::{
            Hold, Origin, Part, QueueCleared, QueuePaused, QueueResumed, RetryPolicy, Rhythm,
            ScheduleCreated, ScheduleDeleted, ScheduleFired, StepFailed, StepGathered, StepSkipped,
            TaskCancelRequested, TaskCancelled, TaskClaimed, TaskCleared, TaskDead, TaskFailed,
            TaskInterrupted, TaskLeaseExpired, TaskRenewed, TaskReprioritised, TaskRetried, TaskSubmitted,
            TaskSucceeded, TaskTimedOut, WorkerDraining, WorkerLost, WorkerRegistered, WorkerUnregistered,
            WorkflowCancelled, WorkflowFailed, WorkflowReplayed, WorkflowRescheduled, WorkflowSignalled,
            WorkflowStarted, WorkflowSubmitted, WorkflowSucceeded, WorkflowTimedOut,
        },
    },
};

const START_MS: u64 = START_US / 1_000;
const RUNNER: &str = "019b76da-a800-7000-8000-000000000000";

/// Returns the plan of the golden log's runs.
pub(super) fn plan(contract: Cid) -> Block {
    Block::encode(&ipld!({
        "v": 1,
        "name": "greet",
        "steps": [{
            "id": "hello",
            "action": "echo",
            "task_type": "tool:echo",
            "tool": Ipld::Link(contract.into()),
            "depends_on": [],
        }],
        "limits": {},
    }))
}

impl Story {
    pub(super) fn work(&mut self) {
        self.worker();
        self.attempts();
        self.endings();
        self.queue();
        self.run();
        self.schedule();
        self.leave();
    }

    fn worker(&mut self) {
        let registered = WorkerRegistered {
            capabilities: vec!["resize".into(), "gpu".into()],
            max_concurrent: 5,
            cpu_milli: Some(2_500),
            memory_mb: Some(512),
        };
        self.add("worker/w1", Body::WorkerRegistered(registered));
        let plain = WorkerRegistered {
            capabilities: vec!["resize".into()],
            max_concurrent: 1,
            cpu_milli: None,
            memory_mb: None,
        };
        self.add("worker/w2", Body::WorkerRegistered(plain));
    }

    /// Adds a task that carries everything a task can, and every ending of an attempt that is not the task's last.
    fn attempts(&mut self) {
        let submitted = TaskSubmitted {
            not_before_ms: Some(START_MS + 60_000),
            timeout_ms: Some(30_000),
            tags: vec!["batch".into()],
            requires: vec!["gpu".into()],
            unique_key: Some("picture-7".into()),
            concurrency_key: Some("disk".into()),
            rate_key: Some("api".into()),
            run: Some("wf0".into()),
            step: Some("thumbnails".into()),
            part: Part::Each { index: 3 },
            repeatable: true,
            reuse: true,
            ..plain_task("resize")
        };
        let task = "task/wf0#thumbnails#3";
        self.add(task, Body::TaskSubmitted(submitted));
        let reprioritised = TaskReprioritised { from: 50, to: 80, order: order(80) };
        self.add(task, Body::TaskReprioritised(reprioritised));
        let full = TaskClaimed { rate_until_ms: Some(START_MS + 1_000), ..claimed("w1", 1) };
        self.under(task, full, |at| {
            Body::TaskFailed(TaskFailed {
                fence: at.fence,
                attempt: at.attempt,
                code: "unavailable".into(),
                retryable: true,
                retry_at_ms: Some(START_MS + 2_000),
            })
        });
        self.under(task, claimed("w1", 2), |at| {
            let retry_at_ms = Some(START_MS + 4_000);
            Body::TaskTimedOut(TaskTimedOut { fence: at.fence, attempt: at.attempt, retry_at_ms })
        });
        self.under(task, claimed("w2", 3), |at| {
            let (worker, fence, attempt) = (at.worker.clone(), at.fence, at.attempt);
            Body::TaskLeaseExpired(TaskLeaseExpired { worker, fence, attempt, unheard: false })
        });
        let own = TaskClaimed { runner: Some(RUNNER.into()), ..claimed(&["node/", RUNNER].concat(), 4) };
        self.under(task, own, |at| {
            let runner = RUNNER.to_owned();
            Body::TaskInterrupted(TaskInterrupted {
                runner,
                fence: at.fence,
                attempt: at.attempt,
                again: true,
            })
        });
        let renewed = TaskRenewed { fence: 5, lease_until_ms: START_MS + 60_000, progress: Some(40) };
        let cause = self.add(task, Body::TaskClaimed(claimed("w1", 5)));
        self.add(task, Body::TaskRenewed(renewed));
        let succeeded = TaskSucceeded { fence: 5, attempt: 5, reused: false };
        self.caused(task, cause, Body::TaskSucceeded(succeeded));
    }

    /// Adds a task that was cancelled, revived, failed for good and cleared.
    fn endings(&mut self) {
        let task = "task/t2";
        self.add(task, Body::TaskSubmitted(plain_task("resize")));
        let cause = self.add(task, Body::TaskClaimed(claimed("w1", 1)));
        self.add(task, Body::TaskCancelRequested(TaskCancelRequested { force: false }));
        self.caused(task, cause, Body::TaskCancelled(TaskCancelled { running: true }));
        let retried =
            TaskRetried { hold: None, order: order(50), max_retries: Some(1), timeout_ms: Some(5_000) };
        self.add(task, Body::TaskRetried(retried));
        self.under(task, claimed("w1", 2), |at| {
            Body::TaskFailed(TaskFailed {
                fence: at.fence,
                attempt: 1,
                code: "invalid_argument".into(),
                retryable: false,
                retry_at_ms: None,
            })
        });
        self.add(task, Body::TaskDead(TaskDead { reason: "retries_spent".into() }));
        self.add(task, Body::TaskCleared(TaskCleared {}));
    }

    fn queue(&mut self) {
        self.add("queue", Body::QueueCleared(QueueCleared { status: "dead".into(), cleared: 1 }));
        self.add("queue", Body::QueuePaused(QueuePaused {}));
        self.add("queue", Body::QueueResumed(QueueResumed {}));
    }

    /// Adds a run that carries everything a run can, and one run for each other ending.
    fn run(&mut self) {
        let plain = self.plain_run();
        let first = self.add("workflow/wf0", Body::WorkflowSubmitted(plain.clone()));
        self.add("workflow/wf0", Body::WorkflowCancelled(WorkflowCancelled { force: true }));
        self.add("workflow/late", Body::WorkflowSubmitted(plain.clone()));
        self.add("workflow/late", Body::WorkflowTimedOut(WorkflowTimedOut {}));
        let run = "workflow/wf1";
        let origin =
            Origin { run: "wf0".into(), submitted: first, from_step: Some("hello".into()), rerun: true };
        let submitted = WorkflowSubmitted {
            tags: vec!["nightly".into()],
            dependencies: vec!["wf0".into()],
            max_parallel: Some(4),
            deadline_ms: Some(START_MS + 3_600_000),
            origin: Some(origin),
            parent: Some("outer#inner".into()),
            peer: None,
            ..plain
        };
        self.add(run, Body::WorkflowSubmitted(submitted));
        self.add(run, Body::WorkflowStarted(WorkflowStarted {}));
        let hold = Some(Hold::Signal { name: "approved".into(), until_ms: Some(START_MS + 600_000) });
        let (run_id, step) = (Some("wf1".to_owned()), Some("approval".to_owned()));
        let held = TaskSubmitted { run: run_id, step, hold, ..plain_task("wait:signal") };
        self.add("task/wf1#approval", Body::TaskSubmitted(held));
        let signalled = WorkflowSignalled { signal: "approved".into() };
        let cause = self.add(run, Body::WorkflowSignalled(signalled));
        let settled = TaskSucceeded { fence: 0, attempt: 0, reused: false };
        self.caused("task/wf1#approval", cause, Body::TaskSucceeded(settled));
        let skipped = StepSkipped { step: "notify".into(), reason: "condition".into() };
        self.add(run, Body::StepSkipped(skipped));
        self.add(run, Body::StepGathered(StepGathered { step: "thumbnails".into(), parts: 2 }));
        let failed = StepFailed { step: "publish".into(), code: "failed_precondition".into() };
        self.add(run, Body::StepFailed(failed));
        let failed = WorkflowFailed { step: Some("publish".into()), reason: "step_failed".into() };
        self.add(run, Body::WorkflowFailed(failed));
        let rescheduled = WorkflowRescheduled { from_step: Some("publish".into()), priority: Some(60) };
        self.add(run, Body::WorkflowRescheduled(rescheduled));
        self.add(run, Body::WorkflowSucceeded(WorkflowSucceeded {}));
        let replayed = WorkflowReplayed {
            mode: "rerun".into(),
            matched: false,
            compared: 5,
            run: Some("wf2".into()),
            diverged: Some("publish".into()),
        };
        self.add(run, Body::WorkflowReplayed(replayed));
    }

    fn schedule(&mut self) {
        let rhythm = Rhythm::Cron { line: "0 6 * * 1-5".into() };
        let next_ms = START_MS + 21_600_000;
        let created = ScheduleCreated { rhythm, makes: "workflow".into(), catch_up: false, next_ms };
        self.add("schedule/nightly", Body::ScheduleCreated(created));
        let fired =
            ScheduleFired { at_ms: next_ms, next_ms: next_ms + 86_400_000, missed: 1, skipped: false };
        self.add("schedule/nightly", Body::ScheduleFired(fired));
        self.add("schedule/nightly", Body::ScheduleDeleted(ScheduleDeleted {}));
    }

    fn leave(&mut self) {
        self.add("worker/w1", Body::WorkerDraining(WorkerDraining { until_ms: START_MS + 300_000 }));
        self.add("worker/w1", Body::WorkerUnregistered(WorkerUnregistered { abandoned: 1 }));
        self.add("worker/w2", Body::WorkerLost(WorkerLost { last_heard_ms: START_MS }));
    }

    fn plain_run(&self) -> WorkflowSubmitted {
        WorkflowSubmitted {
            plan: self.plan,
            steps: 1,
            priority: 50,
            tags: Vec::new(),
            dependencies: Vec::new(),
            max_parallel: None,
            deadline_ms: None,
            origin: None,
            parent: None,
            peer: None,
        }
    }

    /// Adds a claim, and what ended the attempt that it began.
    fn under(&mut self, task: &str, claim: TaskClaimed, ending: impl Fn(&TaskClaimed) -> Body) {
        let cause = self.add(task, Body::TaskClaimed(claim.clone()));
        self.caused(task, cause, ending(&claim));
    }

    fn caused(&mut self, subject: &str, cause: Cid, body: Body) {
        let mut fact = self.fact(subject, body);
        fact.cause = Some(cause);
        self.seal(fact);
    }
}

fn plain_task(task_type: &str) -> TaskSubmitted {
    let retry = RetryPolicy {
        max_retries: 5,
        backoff_ms: 1_000,
        factor_milli: 2_000,
        max_backoff_ms: 60_000,
        jitter: true,
    };
    TaskSubmitted { order: order(50), retry, ..TaskSubmitted::plain(task_type) }
}

fn claimed(worker: &str, fence: u64) -> TaskClaimed {
    TaskClaimed {
        worker: worker.into(),
        runner: None,
        attempt: fence,
        fence,
        lease_until_ms: START_MS + 30_000,
        effective: 50,
        rate_until_ms: None,
    }
}

/// Returns a place in the line, with an ageing interval of one second.
fn order(priority: i64) -> i64 {
    1_767_225_600_000 - priority * 1_000
}
