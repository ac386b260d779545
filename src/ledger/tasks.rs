//! The writer's part in tasks: from a wish to the events that follow from it.
//!
//! Invariants:
//! - a task's event and all that it frees are in one commit;
//! - a claim is durable before the work is handed out.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    block::{
        Cid, decode,
        payload::{JSON, Payload, SealedPayload},
    },
    call::{Code, Refusal},
    event::{
        Actor, Body, PayloadRef, Role,
        work::{QueueCleared, QueuePaused, QueueResumed, TaskSubmitted},
    },
    ledger::{
        Ruling, Sealed,
        holding::Parked,
        work::{CLAIM_MAX, Hand, Handed, Wish, Work, Worked},
        writer::{Draft, Fault, Writer, payload_ref},
    },
    log::Stored,
    query,
    task::{self, Completed, Moment, Status, Submitted, Task},
};

/// Claims that may wait for work.
const PARKED_MAX: usize = 10_000;
/// Tasks that one command takes out of the queue.
const CLEAR_MAX: u64 = 1000;

/// On whose behalf something happens, for which event, and why.
#[derive(Clone)]
pub(super) struct By {
    pub actor: Actor,
    pub cause: Option<Cid>,
    pub note: Option<PayloadRef>,
    /// Other events it follows from.
    pub refs: Vec<Cid>,
}

/// What a wish about work comes to at once.
pub(super) enum Answer {
    Now(Ruling),
    /// The claim waits; whoever asked is answered when there is work, or when its time is over.
    Later(Box<Waiting>),
}

/// A claim that found nothing, without the one who asked.
pub(super) struct Waiting {
    worker: String,
    max: usize,
    wait_ms: u64,
    hand: Option<Hand>,
    capabilities: Arc<BTreeSet<String>>,
    by: By,
}

impl Waiting {
    pub fn park(self, reply: oneshot::Sender<Ruling>, now_ms: u64) -> Parked {
        Parked {
            worker: self.worker,
            max: self.max,
            hand: self.hand,
            capabilities: self.capabilities,
            until_ms: now_ms.saturating_add(self.wait_ms),
            actor: self.by.actor,
            cause: self.by.cause,
            reply,
        }
    }
}

pub(super) fn worked(worked: Worked) -> Ruling {
    Ruling::Worked(Box::new(worked))
}

fn no_task(id: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no task `{id}`")).hint("task_list names those there are")
}

impl Writer {
    pub(super) fn work(&mut self, work: Work, draft: &mut Draft) -> Result<Answer, Fault> {
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
            Wish::Check { worker, attempts } => {
                let over = |(task, fence): &(String, u64)| {
                    let live = self.holding.tasks.get(task).map(|live| &live.task);
                    !live.is_some_and(|task| {
                        let held = task.lease.as_ref().is_some_and(|lease| lease.worker == worker);
                        held && task.fence == *fence && !task.cancel_requested
                    })
                };
                let over = attempts.iter().filter(|attempt| over(attempt)).map(|(task, _)| task.clone());
                Ok(Ok(Worked::Checked(over.collect())))
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
                self.each(&task, by, draft, |task, moment| {
                    if task.facts.run.is_some() {
                        let refusal = "this task is a step: its workflow decides whether it runs again";
                        return Err(Refusal::new(Code::FailedPrecondition, refusal)
                            .hint("continue the run with workflow_reschedule"));
                    }
                    task.retry(max_retries, timeout_ms, moment).map(|body| vec![body])
                })
            }
            Wish::PauseQueue => self.pause(true, by, draft),
            Wish::ResumeQueue => self.pause(false, by, draft),
            Wish::ClearQueue { status } => self.clear(status, by, draft),
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
    fn submit_task(
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
            Ok(Submitted::Known) => return Ok(Ok(self.told(&id, true))),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Some(key) = &facts.unique_key
            && let Some(holder) = self.holder_of(key)?
        {
            let message =
                format!("the unique key `{key}` is held by the task `{holder}`, which has not ended");
            return Ok(Err(
                Refusal::new(Code::AlreadyExists, message).hint("wait for that task, or use another key")
            ));
        }
        let text: Option<Arc<str>> = text_of(&input).map(Arc::from);
        let mut payloads = vec![input_ref];
        payloads.extend(metadata.as_ref().map(|metadata| payload_ref(metadata, Role::Artifact)));
        draft.store(Some(input));
        draft.store(metadata);
        self.enter_task(&id, facts, tool, payloads, text, by, draft)?;
        Ok(Ok(self.told(&id, false)))
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

    /// A decision about one task that needs nothing but the task.
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
        let decided = decide(&self.holding.tasks[id].task, &moment);
        Ok(match decided {
            Ok(bodies) => {
                self.change_all(id, bodies, by, draft)?;
                Ok(self.told(id, false))
            }
            Err(refusal) => Err(refusal),
        })
    }

    fn claim(
        &mut self,
        worker: String,
        max: usize,
        wait_ms: u64,
        hand: Option<Hand>,
        by: By,
        draft: &mut Draft,
    ) -> Result<Answer, Fault> {
        let capabilities = match &hand {
            Some(hand) => hand.capabilities.clone(),
            None => match self.heard(&worker, &by, draft)? {
                Ok(()) => self.capabilities(&worker),
                Err(refusal) => return Ok(Answer::Now(Ruling::Denied(refusal))),
            },
        };
        // A lane's new claim takes the place of its last one: what it can run has changed.
        if let Some(hand) = &hand {
            let same = |parked: &Parked| {
                parked.worker == worker && parked.hand.as_ref().is_some_and(|other| other.lane == hand.lane)
            };
            if let Some(at) = self.holding.parked.iter().position(same)
                && let Some(parked) = self.holding.parked.remove(at)
            {
                draft.replies.push((parked.reply, worked(Worked::Claimed(Vec::new()))));
            }
        }
        let handed = self.hand_out(&worker, max, hand.as_ref(), &capabilities, &by, draft)?;
        self.advance(draft)?;
        if handed.is_empty() && wait_ms > 0 {
            if self.holding.parked.len() >= PARKED_MAX {
                let refusal = format!("{PARKED_MAX} claims wait already");
                let refusal = Refusal::new(Code::ResourceExhausted, refusal).retryable();
                return Ok(Answer::Now(Ruling::Denied(refusal.hint("claim again later"))));
            }
            return Ok(Answer::Later(Box::new(Waiting { worker, max, wait_ms, hand, capabilities, by })));
        }
        Ok(Answer::Now(worked(Worked::Claimed(handed))))
    }

    /// Claims for a worker what it may have now.
    pub(super) fn hand_out(
        &mut self,
        worker: &str,
        max: usize,
        hand: Option<&Hand>,
        capabilities: &BTreeSet<String>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Vec<Handed>, Fault> {
        let mut handed = Vec::new();
        if self.holding.queue.is_empty() {
            return Ok(handed);
        }
        let moment = self.moment();
        let room = match (hand, self.holding.workers.get(worker)) {
            (Some(_), _) => max,
            (None, Some(worker)) => worker.may_take(max as u64) as usize,
            (None, None) => 0,
        };
        while handed.len() < room.min(CLAIM_MAX) {
            let Some(taken) = self.holding.queue.take(capabilities, moment.now_ms) else { break };
            let id = self.number(taken.seq)?;
            let runner = hand.map(|hand| hand.runner.as_str());
            let live = &self.holding.tasks[&id];
            let claim = live.task.claim(worker, runner, taken.rate_until_ms, &moment);
            let input = match &live.input {
                Some(input) => Some(input.to_string()),
                None => {
                    self.text(live.task.input.map(|input| input.cid), draft)?.map(|text| text.to_string())
                }
            };
            let lease_until_ms = claim.lease_until_ms;
            let (attempt, fence) = (claim.attempt, claim.fence);
            let claimed = self.change(&id, Body::TaskClaimed(claim), by, Vec::new(), draft)?;
            let task = &self.holding.tasks[&id].task;
            handed.push(Handed {
                task: id.clone(),
                task_type: task.facts.task_type.clone(),
                actor: task.actor.clone(),
                input,
                attempt,
                fence,
                lease_until_ms,
                timeout_ms: task.facts.timeout_ms,
                claimed,
                run: task.facts.run.clone(),
                step: task.facts.step.clone(),
            });
        }
        Ok(handed)
    }

    /// Serves claims that wait, in the order they came.
    pub(super) fn serve_parked(&mut self, draft: &mut Draft) -> Result<(), Fault> {
        if !std::mem::take(&mut self.holding.fresh) || self.holding.queue.is_empty() {
            return Ok(());
        }
        let mut waiting = std::mem::take(&mut self.holding.parked);
        let mut left = std::collections::VecDeque::with_capacity(waiting.len());
        while let Some(parked) = waiting.pop_front() {
            if parked.reply.is_closed() {
                continue;
            }
            let by = By { actor: parked.actor.clone(), cause: parked.cause, note: None, refs: Vec::new() };
            let Parked { worker, max, hand, capabilities, .. } = &parked;
            let handed = self.hand_out(worker, *max, hand.as_ref(), capabilities, &by, draft)?;
            match handed.is_empty() {
                true => left.push_back(parked),
                false => draft.replies.push((parked.reply, worked(Worked::Claimed(handed)))),
            }
        }
        self.holding.parked = left;
        // Starting a run by its first claim frees nothing, but its rules want to know.
        self.advance(draft)
    }

    #[expect(clippy::too_many_arguments, reason = "what a heartbeat says")]
    fn renew(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        progress: Option<u64>,
        log: Option<SealedPayload>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.heard(worker, by, draft)? {
            return Ok(Err(refusal));
        }
        let moment = self.moment();
        if !self.load_task(id)? {
            return Ok(Err(no_task(id)));
        }
        let body = match self.holding.tasks[id].task.renew(worker, fence, progress, &moment) {
            Ok(facts) => Body::TaskRenewed(facts),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let log_ref = log.as_ref().map(|log| payload_ref(log, Role::Log));
        draft.store(log);
        self.change(id, body, by, log_ref.into_iter().collect(), draft)?;
        let task = &self.holding.tasks[id].task;
        let lease_until_ms = task.lease.as_ref().map_or(0, |lease| lease.until_ms);
        Ok(Ok(Worked::Renewed { lease_until_ms, cancel_requested: task.cancel_requested }))
    }

    #[expect(clippy::too_many_arguments, reason = "what a completion says")]
    fn complete(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        output: SealedPayload,
        claim_next: bool,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.heard(worker, by, draft)? {
            return Ok(Err(refusal));
        }
        if !self.load_task(id)? {
            return Ok(Err(no_task(id)));
        }
        let output_ref = payload_ref(&output, Role::Output);
        match self.holding.tasks[id].task.complete(worker, fence, &output_ref) {
            Ok(Completed::New(body)) => {
                if self.holding.tasks[id].task.facts.run.is_some()
                    && let Some(text) = text_of(&output)
                {
                    self.holding.contents.put(output_ref.cid, Arc::from(text));
                }
                draft.store(Some(output));
                self.change(id, body, by, vec![output_ref], draft)?;
            }
            Ok(Completed::Known) => {}
            Err(refusal) => return Ok(Err(refusal)),
        }
        // What this frees is in the line before the worker claims.
        self.advance(draft)?;
        let next = match claim_next {
            true => self.hand_out(worker, 1, None, &self.capabilities(worker), by, draft)?,
            false => Vec::new(),
        };
        Ok(Ok(Worked::Ended { task: Box::new(self.holding.tasks[id].task.clone()), next }))
    }

    #[expect(clippy::too_many_arguments, reason = "what a failure says")]
    fn fail(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        error: SealedPayload,
        (code, retryable): (&str, bool),
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.heard(worker, by, draft)? {
            return Ok(Err(refusal));
        }
        let moment = self.moment();
        if !self.load_task(id)? {
            return Ok(Err(no_task(id)));
        }
        let bodies = match self.holding.tasks[id].task.fail(worker, fence, code, retryable, &moment) {
            Ok(bodies) => bodies,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let error_ref = payload_ref(&error, Role::Error);
        draft.store(Some(error));
        for (n, body) in bodies.into_iter().enumerate() {
            let payloads = if n == 0 { vec![error_ref] } else { Vec::new() };
            self.change(id, body, by, payloads, draft)?;
        }
        Ok(Ok(Worked::Ended { task: Box::new(self.holding.tasks[id].task.clone()), next: Vec::new() }))
    }

    /// Ends the attempt a call was made for, with the call.
    pub(super) fn end_attempt(
        &mut self,
        attempt: &super::work::Attempt,
        output: Option<PayloadRef>,
        succeeded: bool,
        call: Cid,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        let moment = self.moment();
        if !self.load_task(&attempt.task)? {
            return Ok(());
        }
        let task = &self.holding.tasks[&attempt.task].task;
        let (worker, fence) = (&attempt.worker, attempt.fence);
        let decided = match (succeeded, output) {
            (true, Some(output)) => task.complete(worker, fence, &output).map(|completed| match completed {
                Completed::New(body) => vec![body],
                Completed::Known => Vec::new(),
            }),
            _ => {
                let retryable = attempt.retryable && (!attempt.unknown || task.facts.repeatable);
                task.fail(worker, fence, &attempt.code, retryable, &moment)
            }
        };
        // Somebody ended the attempt before its call did: the call's ending stands alone.
        let Ok(bodies) = decided else { return Ok(()) };
        let by = By { actor: task.actor.clone(), cause: Some(call), note: None, refs: Vec::new() };
        for (n, body) in bodies.into_iter().enumerate() {
            let payloads = if n == 0 { output.into_iter().collect() } else { Vec::new() };
            self.change(&attempt.task, body, &by, payloads, draft)?;
        }
        self.advance(draft)
    }

    fn pause(&mut self, paused: bool, by: &By, draft: &mut Draft) -> Result<Result<Worked, Refusal>, Fault> {
        if self.holding.queue.paused() != paused {
            let body = match paused {
                true => Body::QueuePaused(QueuePaused {}),
                false => Body::QueueResumed(QueueResumed {}),
            };
            self.sealer.seal(queue_fact(by, body), draft)?;
            match paused {
                true => self.holding.queue.pause(),
                false => self.holding.queue.resume(),
            }
            self.holding.fresh = true;
        }
        Ok(Ok(self.queue_now(0)))
    }

    fn clear(
        &mut self,
        status: Option<Status>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if status.is_some_and(|status| matches!(status, Status::Running | Status::Succeeded)) {
            let refusal = "only queued, failed, dead and cancelled tasks can be cleared";
            return Ok(Err(Refusal::new(Code::InvalidArgument, refusal)));
        }
        let status = status.unwrap_or(Status::Queued);
        let mut cleared = 0;
        for id in self.clearable(status)? {
            if !self.load_task(&id)? {
                continue;
            }
            let task = &self.holding.tasks[&id].task;
            let step = task.facts.run.is_some();
            if task.status != status || task.cleared || step || cleared >= CLEAR_MAX {
                continue;
            }
            let bodies = match status {
                Status::Queued => task.cancel(true).unwrap_or_default(),
                Status::Failed | Status::Dead | Status::Cancelled | Status::TimedOut => {
                    task.clear().into_iter().collect()
                }
                Status::Running | Status::Succeeded => Vec::new(),
            };
            cleared += u64::from(!bodies.is_empty());
            let quietly = By { note: None, ..by.clone() };
            self.change_all(&id, bodies, &quietly, draft)?;
        }
        if cleared > 0 {
            let body = Body::QueueCleared(QueueCleared { status: status.as_str().to_owned(), cleared });
            self.sealer.seal(queue_fact(by, body), draft)?;
        }
        Ok(Ok(self.queue_now(cleared)))
    }

    /// Tasks of one status: those the state knows, and those it has not folded yet.
    fn clearable(&mut self, status: Status) -> Result<Vec<String>, Fault> {
        let known = query::work::of_status(&self.state, status.as_str(), CLEAR_MAX)?;
        let mut ids = known.into_iter().map(|seq| self.number(seq)).collect::<Result<Vec<_>, _>>()?;
        let unfolded =
            self.holding.tasks.values().filter(|live| live.task.status == status && !live.task.cleared);
        let mut unfolded: Vec<(u64, String)> =
            unfolded.map(|live| (live.task.seq, live.task.id.clone())).collect();
        unfolded.sort_unstable();
        let known: BTreeSet<&String> = ids.iter().collect();
        let more: Vec<String> =
            unfolded.into_iter().map(|(_, id)| id).filter(|id| !known.contains(id)).collect();
        ids.extend(more);
        Ok(ids)
    }

    fn queue_now(&self, cleared: u64) -> Worked {
        let running = self.holding.held.values().map(|held| held.len() as u64).sum();
        Worked::Queue { at_ms: self.now_ms(), waiting: self.holding.queue.len() as u64, running, cleared }
    }

    pub(super) fn change_all(
        &mut self,
        id: &str,
        bodies: Vec<Body>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        for (n, body) in bodies.into_iter().enumerate() {
            let note = by.note.filter(|_| n == 0);
            self.change(id, body, &By { note: None, ..by.clone() }, note.into_iter().collect(), draft)?;
        }
        Ok(())
    }

    /// Records what happened to a task in memory, and tells its run.
    pub(super) fn change(
        &mut self,
        id: &str,
        body: Body,
        by: &By,
        mut payloads: Vec<PayloadRef>,
        draft: &mut Draft,
    ) -> Result<Sealed, Fault> {
        let now_ms = self.now_ms();
        let live = self.holding.tasks.get(id).ok_or(Fault::Broken { what: "a task is not in memory" })?;
        payloads.extend(by.note);
        let fact = live.task.fact(body, by.actor.clone(), by.cause, by.refs.clone(), payloads);
        let run = live.task.facts.run.clone();
        let body = fact.body.clone();
        let event = self.sealer.seal(fact, draft)?;
        self.holding.apply(id, &body, event, now_ms);
        if let Some(run) = run {
            self.holding.tell_run(&run, event);
        }
        Ok(event.into())
    }

    /// Makes sure a task is in memory; false where there is none of this id.
    pub(super) fn load_task(&mut self, id: &str) -> Result<bool, Fault> {
        if self.holding.tasks.contains_key(id) {
            return Ok(true);
        }
        let mut task: Option<Task> = None;
        for seq in query::work::events_of(&self.state, &task::subject(id))? {
            let Some(event) = self.reader.event_at(seq)? else { continue };
            match &mut task {
                None => task = Task::begun(&event),
                Some(task) => task.apply(&event),
            }
        }
        let Some(task) = task else { return Ok(false) };
        self.holding.keep(task, None);
        Ok(true)
    }

    /// The id of the task that was submitted at `seq`, which is in memory then.
    fn number(&mut self, seq: u64) -> Result<String, Fault> {
        if let Some(id) = self.holding.numbers.get(&seq) {
            return Ok(id.clone());
        }
        let event = self.reader.event_at(seq)?;
        let id = event.as_ref().and_then(Task::begun).map(|task| task.id);
        let id = id.ok_or(Fault::Broken { what: "the queue names a task that is not in the log" })?;
        self.load_task(&id)?;
        Ok(id)
    }

    /// The live task that holds a unique key.
    fn holder_of(&mut self, key: &str) -> Result<Option<String>, Fault> {
        let id = match self.holding.unique.get(key) {
            Some(id) => Some(id.clone()),
            None => match query::work::live_unique(&self.state, key)? {
                Some(seq) => Some(self.number(seq)?),
                None => None,
            },
        };
        let Some(id) = id else { return Ok(None) };
        let live = self.load_task(&id)? && !self.holding.tasks[&id].task.status.ended();
        Ok(live.then_some(id))
    }

    fn told(&self, id: &str, replayed: bool) -> Worked {
        let task = self.holding.tasks[id].task.clone();
        let position = self.holding.position(&task);
        Worked::Task { task: Box::new(task), position, replayed }
    }

    /// The content of a payload, as text: from memory, from what is about to be committed, or from the log.
    pub(super) fn text(&self, payload: Option<Cid>, draft: &Draft) -> Result<Option<Arc<str>>, Fault> {
        let Some(cid) = payload else { return Ok(None) };
        if let Some(text) = self.holding.contents.get(&cid) {
            return Ok(Some(text));
        }
        let block = |cid: &Cid| -> Result<Option<Vec<u8>>, Fault> {
            let drafted = draft.batch.blocks.iter().rev().find(|block| block.cid() == *cid);
            Ok(match drafted {
                Some(block) => Some(block.bytes().to_vec()),
                None => match self.reader.block(cid)? {
                    Some(Stored::Present(bytes)) => Some(bytes),
                    Some(Stored::Erased) | None => None,
                },
            })
        };
        let Some(payload) = block(&cid)?.and_then(|bytes| decode::<Payload>(&bytes).ok()) else {
            return Ok(None);
        };
        let mut content = payload.data.unwrap_or_default();
        for part in payload.parts.unwrap_or_default() {
            let Some(bytes) = block(&part)? else { return Ok(None) };
            content.extend(bytes);
        }
        Ok(String::from_utf8(content).ok().map(Arc::from))
    }

    /// A payload of this node's own making.
    pub(super) fn payload(&self, text: &str) -> Result<SealedPayload, Fault> {
        Payload::seal(&self.salt, JSON, text.as_bytes())
            .map_err(|_| Fault::Broken { what: "content is over the bound of a payload" })
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now_ms: self.now_ms(), limits: self.limits }
    }
}

/// A small payload's content as text.
pub(super) fn text_of(payload: &SealedPayload) -> Option<String> {
    let payload: Payload = decode(payload.envelope.bytes()).ok()?;
    payload.data.and_then(|data| String::from_utf8(data).ok())
}

/// A payload's content as text, from the payload itself.
pub(super) fn whole_text(payload: &SealedPayload) -> Option<String> {
    if payload.parts.is_empty() {
        return text_of(payload);
    }
    let content = payload.parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
    String::from_utf8(content).ok()
}

fn queue_fact(by: &By, body: Body) -> crate::event::Fact {
    crate::event::Fact {
        cause: by.cause,
        refs: Vec::new(),
        actor: by.actor.clone(),
        subject: "queue".to_owned(),
        tool: None,
        payloads: by.note.into_iter().collect(),
        body,
    }
}
