//! The writer's part in tasks: from a wish to the events that follow from it.
//!
//! Invariants:
//! - a wish and all that follows from it are one commit.

use std::sync::Arc;

use crate::{
    block::{Cid, payload::SealedPayload},
    error::{Code, Refusal},
    event::{Actor, Body, PayloadRef, Role, work::TaskSubmitted},
    ledger::{
        Ruling,
        claims::Answer,
        memory::text_of,
        work::{Wish, Work, Worked},
        writer::{Draft, Fault, Writer, payload_ref},
    },
    task::{self, Moment, Submitted, Task},
};

/// The actor, cause, reason and refs of the events that a command makes.
#[derive(Clone)]
pub(super) struct By {
    pub actor: Actor,
    pub cause: Option<Cid>,
    pub note: Option<PayloadRef>,
    /// Other events it follows from.
    pub refs: Vec<Cid>,
}

pub(super) fn worked(worked: Worked) -> Ruling {
    Ruling::Worked(Box::new(worked))
}

pub(super) fn no_task(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no task `{id}`")).hint("task_list names those there are")
}

impl Writer {
    pub(super) fn work(&mut self, work: Work, draft: &mut Draft) -> Result<Answer, Fault> {
        let (events, blocks) = (draft.batch.events.len(), draft.batch.blocks.len());
        let erasures = draft.erasures.clone();
        let answer = self.ask(work, draft);
        if draft.batch.events.len() == events {
            // Nothing was recorded that could name them.
            draft.batch.blocks.truncate(blocks);
            draft.erasures = erasures;
        }
        answer
    }

    fn ask(&mut self, work: Work, draft: &mut Draft) -> Result<Answer, Fault> {
        let Work { wish, actor, cause, note } = work;
        let note_ref = note.as_ref().map(|note| payload_ref(note, Role::Note));
        draft.store(note);
        let by = By { actor, cause, note: note_ref, refs: Vec::new() };
        if let Wish::Claim { worker, max, wait_ms, hand } = wish {
            return self.claim(worker, max, wait_ms, hand, by, draft);
        }
        let ruled = self.wished(wish, &by, draft)?;
        self.advance(draft)?;
        Ok(Answer::Now(match ruled {
            Ok(answer) => worked(answer),
            Err(refusal) => Ruling::Denied(refusal),
        }))
    }

    fn wished(&mut self, wish: Wish, by: &By, draft: &mut Draft) -> Result<Result<Worked, Refusal>, Fault> {
        match wish {
            Wish::SubmitTask { id, facts, tool, input, metadata } => {
                self.submit_task(id, *facts, tool, input, metadata, by, draft)
            }
            Wish::Claim { .. } => Ok(Ok(Worked::Claimed(Vec::new()))),
            Wish::Look { task } => Ok(match self.load_task(&task)? {
                true => Ok(self.told(&task, false)?),
                false => Err(no_task(&task)),
            }),
            Wish::GiveBack { claims } => {
                self.give_back(&claims, by, draft)?;
                Ok(Ok(Worked::Checked(Vec::new())))
            }
            Wish::Check { worker, attempts } => {
                let over = |(task, fence): &(String, u64)| {
                    let live = self.holding.tasks.get(task).map(|live| &live.task);
                    !live.is_some_and(|task| {
                        let held = task.lease.as_ref().is_some_and(|lease| lease.worker == worker);
                        held && task.fence == *fence && !task.cancel_requested
                    })
                };
                Ok(Ok(Worked::Checked(attempts.iter().filter(|attempt| over(attempt)).cloned().collect())))
            }
            Wish::Renew { worker, task, fence, progress, log } => {
                self.renew(&worker, &task, fence, progress, log, by, draft)
            }
            Wish::Complete { worker, task, fence, output, claim_next } => {
                self.complete(&worker, &task, fence, output, claim_next, by, draft)
            }
            Wish::Fail { worker, task, fence, error, code, retryable } => {
                self.fail(&worker, &task, fence, error, (&code, retryable), by, draft)
            }
            Wish::CancelTask { task, force } => self.each(&task, by, draft, |task, _| task.cancel(force)),
            Wish::Reprioritise { task, priority } => self.each(&task, by, draft, |task, moment| {
                task.reprioritise(priority, moment).map(|body| vec![body])
            }),
            Wish::RetryTask { task, max_retries, timeout_ms } => {
                self.retry_task(&task, max_retries, timeout_ms, by, draft)
            }
            Wish::PauseQueue => self.pause(true, by, draft),
            Wish::ResumeQueue => self.pause(false, by, draft),
            Wish::ClearQueue { status, from } => self.clear(status, from, by, draft),
            Wish::RegisterWorker { worker, facts, metadata } => {
                self.register(&worker, facts, metadata, by, draft)
            }
            Wish::UnregisterWorker { worker, graceful, timeout_ms } => {
                self.unregister(&worker, graceful, timeout_ms, by, draft)
            }
            Wish::SubmitRun(new) => self.submit_run(*new, by, draft),
            Wish::CancelRun { run, force } => self.cancel_run(&run, force, by, draft),
            Wish::ForkRun { run, new, from_step, overrides, rerun } => {
                self.fork_run(&run, new, from_step, &overrides, rerun, by, draft)
            }
            Wish::RescheduleRun { run, from_step, priority } => {
                self.reschedule_run(&run, from_step, priority, by, draft)
            }
            Wish::Signal { run, signal, input } => self.signal(&run, &signal, input, by, draft),
            Wish::Replayed { run, facts } => self.replayed(&run, facts, by, draft),
            Wish::CreateSchedule { schedule, rhythm, catch_up, makes } => {
                self.create_schedule(schedule, rhythm, catch_up, *makes, by, draft)
            }
            Wish::DeleteSchedule { schedule } => self.delete_schedule(&schedule, by, draft),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a submission is made of, once")]
    pub(super) fn submit_task(
        &mut self,
        id: String,
        facts: TaskSubmitted,
        tool: Option<Cid>,
        input: SealedPayload,
        metadata: Option<SealedPayload>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let moment = self.moment();
        self.load_task(&id)?;
        let earlier = self.holding.tasks.get(&id).map(|live| &live.task);
        let input_ref = payload_ref(&input, Role::Input);
        let waiting = self.holding.queue.len() as u64;
        let facts = match task::submit(earlier, &id, facts, &input_ref, waiting, &moment) {
            Ok(Submitted::New(facts)) => *facts,
            Ok(Submitted::Known) => return Ok(Ok(self.told(&id, true)?)),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(refusal) = self.unique(facts.unique_key.as_ref())? {
            return Ok(Err(refusal));
        }
        let text: Option<Arc<str>> = text_of(&input).map(Arc::from);
        let mut payloads = vec![input_ref];
        payloads.extend(metadata.as_ref().map(|metadata| payload_ref(metadata, Role::Artifact)));
        draft.store(Some(input));
        draft.store(metadata);
        self.enter_task(&id, facts, tool, payloads, text, by, draft)?;
        Ok(Ok(self.told(&id, false)?))
    }

    /// Records a new task and takes it into the line.
    #[expect(clippy::too_many_arguments, reason = "what a task is made of, once")]
    pub(super) fn enter_task(
        &mut self,
        id: &str,
        facts: TaskSubmitted,
        tool: Option<Cid>,
        mut payloads: Vec<PayloadRef>,
        input: Option<Arc<str>>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        payloads.extend(by.note);
        let now_ms = self.now_ms();
        let run = facts.run.clone();
        let fact = crate::event::Fact {
            cause: by.cause,
            refs: by.refs.clone(),
            actor: by.actor.clone(),
            subject: task::subject(id),
            tool,
            payloads,
            body: Body::TaskSubmitted(facts.clone()),
        };
        let event = self.sealer.seal(fact, draft)?;
        let task = Task::begun_with(facts, event)
            .ok_or(Fault::Broken { what: "a submitted task cannot be read" })?;
        self.holding.enter(task, input, now_ms);
        if let Some(run) = run {
            self.holding.tell_run(&run, event);
        }
        Ok(())
    }

    fn retry_task(
        &mut self,
        id: &str,
        max_retries: Option<u64>,
        timeout_ms: Option<u64>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if !self.load_task(id)? {
            return Ok(Err(no_task(id)));
        }
        let task = self.task(id)?;
        if task.facts.run.is_some() {
            let refusal = "this task is a step: its workflow decides whether it runs again";
            return Ok(Err(Refusal::new(Code::FailedPrecondition, refusal)
                .hint("continue the run with workflow_reschedule")));
        }
        let body = match task.retry(max_retries, timeout_ms, &self.moment()) {
            Ok(body) => body,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let key = task.facts.unique_key.clone();
        if let Err(refusal) = self.unique(key.as_ref())? {
            return Ok(Err(Refusal { code: Code::Conflict, ..refusal }));
        }
        self.change_all(id, vec![body], by, draft)?;
        Ok(Ok(self.told(id, false)?))
    }

    /// Carries out a decision about one task that depends on nothing but the task.
    fn each(
        &mut self,
        id: &str,
        by: &By,
        draft: &mut Draft,
        decide: impl FnOnce(&Task, &Moment) -> Result<Vec<Body>, Refusal>,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        let moment = self.moment();
        if !self.load_task(id)? {
            return Ok(Err(no_task(id)));
        }
        let decided = decide(self.task(id)?, &moment);
        Ok(match decided {
            Ok(bodies) => {
                self.change_all(id, bodies, by, draft)?;
                Ok(self.told(id, false)?)
            }
            Err(refusal) => Err(refusal),
        })
    }
}
