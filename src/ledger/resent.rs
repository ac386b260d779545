//! Commands that are said again: an earlier owner may have committed them and could not answer.
//!
//! Invariants:
//! - the answer to a command is what the log holds of it; it is ruled anew only if the log holds nothing of it;
//! - what the earlier owner committed is folded before anything is said again.

use crate::{
    block::Cid,
    call::{
        Call, Ending,
        asking::{Answer, Inquiry, To},
    },
    event::{Body, Event, Role},
    ledger::{
        Command, Ruling, Sealed,
        claims::{call_of, worked},
        commit::{Fault, Stop},
        loading,
        work::{
            CancelRun, CancelTask, Claim, ClearQueue, Complete, DeleteSchedule, Fail, Hand, Handed, Renew,
            Replayed, Reprioritise, RescheduleRun, RetryTask, Signal, Wish, Work, Worked,
        },
        world::World,
    },
    query,
    task::Status,
};

impl World {
    /// Returns the ruling on a command that an earlier owner committed and could not answer, if it did.
    pub(super) fn ruled(&mut self, command: &Command) -> Result<Option<Ruling>, Stop> {
        let id = match command {
            Command::Begin { start, work, .. } => return self.began(start, work),
            Command::Work(work) => return Ok(self.ruled_work(work)?),
            Command::Start { start, .. } => &start.id,
            Command::End { end, .. } => &end.id,
            Command::Keep { keeping, actor } => return Ok(self.counted_before(keeping, actor)?),
            Command::Ask { ask, .. } => return Ok(self.asked_before(ask)?),
            Command::Answer { answer, .. } => return Ok(self.answered_before(answer)?),
            // These rule the same when they are ruled again.
            Command::Publish { .. }
            | Command::Adopt { .. }
            | Command::Peer(_)
            | Command::Retain { .. }
            | Command::Recover { .. }
            | Command::Erase { .. }
            | Command::Export { .. } => return Ok(None),
        };
        if let (Some(open), Command::Start { .. }) = (self.holding.calls.open.get(id), command) {
            let seq = self.reader.seq_of(&open.started)?;
            return Ok(seq.map(|seq| Ruling::Run(Sealed { cid: open.started, seq })));
        }
        let Some((started, ended)) = query::call_of(&self.state, id)? else {
            return Ok(None);
        };
        let sealed = |seq| -> Result<Option<Sealed>, Fault> {
            Ok(self.reader.event_at(seq)?.as_ref().map(Sealed::from))
        };
        Ok(match (command, ended) {
            (Command::Start { start, .. }, Some(ended)) if start.refusal.is_some() => {
                sealed(ended)?.map(Ruling::Refused)
            }
            (Command::Start { .. }, _) => sealed(started)?.map(Ruling::Run),
            (_, Some(ended)) => sealed(ended)?.map(Ruling::Done),
            (_, None) => None,
        })
    }

    /// Returns the ruling on a question of an open call, if the call has asked it under this number.
    fn asked_before(&self, ask: &Inquiry) -> Result<Option<Ruling>, Fault> {
        let open = self.holding.calls.open.get(&ask.id);
        let asked = open.and_then(|open| open.questions.get(ask.n)).map(|asked| asked.event);
        self.recorded_with(asked, Role::Output, &ask.question.cid)
    }

    /// Returns the ruling on an answer in an open call, if it is on record.
    fn answered_before(&self, answer: &Answer) -> Result<Option<Ruling>, Fault> {
        let Some(open) = self.holding.calls.open.get(&answer.id) else { return Ok(None) };
        let answered = match answer.to {
            To::Question { .. } => open.questions.get(answer.n).and_then(|asked| asked.answered),
            To::Earlier { .. } => open.questions.given(answer.n),
        };
        self.recorded_with(answered, answer.answer.role, &answer.answer.cid)
    }

    /// Returns where an event stands that holds a payload.
    fn recorded_with(&self, event: Option<Cid>, role: Role, payload: &Cid) -> Result<Option<Ruling>, Fault> {
        let Some(event) = event.map(|event| self.reader.event(&event)).transpose()?.flatten() else {
            return Ok(None);
        };
        let same = event.fields().payload(role).is_some_and(|held| held.cid == *payload);
        Ok(same.then(|| Ruling::Done(Sealed::from(&event))))
    }

    /// The same for a call whose start and change are one commit, perhaps with its ending.
    fn began(&mut self, start: &Command, work: &Work) -> Result<Option<Ruling>, Stop> {
        let started = match self.ruled(start)? {
            Some(Ruling::Run(started)) => started,
            other => return Ok(other),
        };
        if let Some(ending) = self.ending(&started)? {
            return Ok(Some(Ruling::Answered(ending)));
        }
        let ruled = match self.ruled_work(&Work { cause: Some(started.cid), ..work.clone() })? {
            Some(ruled) => ruled,
            // It was refused or changed nothing; nobody has heard which.
            None => self.change_for(started, work.clone())?,
        };
        Ok(Some(Ruling::Began { started, ruled: Box::new(ruled), ended: None }))
    }

    /// Returns the ending of the call with this start, if it has ended.
    fn ending(&self, started: &Sealed) -> Result<Option<Ending>, Fault> {
        let Some(ended) = query::ending_of(&self.state, started.seq)? else { return Ok(None) };
        let mut call = self.reader.event_at(started.seq)?.as_ref().and_then(Call::begun);
        if let (Some(call), Some(event)) = (&mut call, self.reader.event_at(ended)?) {
            call.apply(&event);
        }
        Ok(call.and_then(|call| call.ending))
    }

    /// Returns the ruling on a change, from the events whose cause is the call that asked for it.
    fn ruled_work(&mut self, work: &Work) -> Result<Option<Ruling>, Fault> {
        if let (Wish::Claim(Claim { hand: Some(hand), max, .. }), None) = (&work.wish, work.cause) {
            let handed = if *max == 0 { Vec::new() } else { self.handed_to(hand)? };
            return Ok((!handed.is_empty()).then(|| worked(Worked::Claimed(handed))));
        }
        let events = self.caused_by(work.cause)?;
        if events.is_empty() {
            return Ok(None);
        }
        let told = match &work.wish {
            Wish::Claim(_) => Some(Worked::Claimed(self.handed_by(&events)?)),
            Wish::Complete(Complete { task, .. }) | Wish::Fail(Fail { task, .. }) => {
                self.load_task(task)?;
                let next = self.handed_by(&events)?;
                Some(Worked::Ended { task: Box::new(self.task(task)?.clone()), next })
            }
            Wish::Renew(Renew { task, .. }) => {
                self.load_task(task)?;
                let task = self.task(task)?;
                let lease_until_ms = task.lease.as_ref().map_or(0, |lease| lease.until_ms);
                Some(Worked::Renewed { lease_until_ms, cancel_requested: task.cancel_requested })
            }
            Wish::CancelTask(CancelTask { task, .. })
            | Wish::Reprioritise(Reprioritise { task, .. })
            | Wish::RetryTask(RetryTask { task, .. }) => {
                self.load_task(task)?;
                Some(self.told(task, false)?)
            }
            Wish::Signal(Signal { run, .. }) | Wish::Replayed(Replayed { run, .. }) => {
                self.load_run(run)?;
                Some(self.run_told(run, false, Vec::new()))
            }
            Wish::CancelRun(CancelRun { run, .. }) => {
                self.load_run(run)?;
                let steps = self.cancelled_by(&events)?;
                Some(self.run_told(run, false, steps))
            }
            Wish::RescheduleRun(RescheduleRun { run, from_step, .. }) => {
                self.load_run(run)?;
                let steps = self.steps_again(run, from_step.as_deref(), &events)?;
                Some(self.run_told(run, false, steps))
            }
            Wish::ClearQueue(ClearQueue { from, .. }) => {
                // What was taken out is not found again from where it began.
                Some(self.queue_now(cleared_by(&events), Some(*from)))
            }
            Wish::DeleteSchedule(DeleteSchedule { schedule }) => {
                Some(Worked::Schedule { schedule: schedule.clone(), next_ms: None, replayed: false })
            }
            // These know what they have done already.
            Wish::SubmitTask(_)
            | Wish::Look(_)
            | Wish::GiveBack(_)
            | Wish::Check(_)
            | Wish::PauseQueue
            | Wish::ResumeQueue
            | Wish::RegisterWorker(_)
            | Wish::UnregisterWorker(_)
            | Wish::SubmitRun(_)
            | Wish::ForkRun(_)
            | Wish::CreateSchedule(_) => None,
        };
        Ok(told.map(worked))
    }

    /// Returns the steps that ran again after the first of these events, which continued the run.
    fn steps_again(
        &self,
        run: &str,
        from_step: Option<&str>,
        events: &[Event],
    ) -> Result<Vec<String>, Fault> {
        let before = events.first().map_or(0, |event| event.fields().seq.saturating_sub(1));
        let old = loading::run_before(&self.state, self.reader.as_ref(), run, Some(before))?;
        let steps = old.as_ref().map(|old| old.run.rerun_steps(from_step));
        Ok(steps.into_iter().flatten().map(str::to_owned).collect())
    }

    /// Returns the events with this cause, in order.
    fn caused_by(&self, cause: Option<Cid>) -> Result<Vec<Event>, Fault> {
        let Some(seq) = cause.map(|cause| self.reader.seq_of(&cause)).transpose()?.flatten() else {
            return Ok(Vec::new());
        };
        let mut events = Vec::new();
        for seq in query::work::caused_by(&self.state, seq)? {
            events.extend(self.reader.event_at(seq)?);
        }
        // The ending of a call follows from its start too, but is no change of what it asked about.
        events.retain(|event| !event.fields().kind.starts_with("call."));
        Ok(events)
    }

    /// Returns the tasks of those claims among `events` that still hold.
    fn handed_by(&mut self, events: &[Event]) -> Result<Vec<Handed>, Fault> {
        let mut handed = Vec::new();
        for event in events.iter().filter(|event| matches!(event.body(), Some(Body::TaskClaimed(_)))) {
            let Some(id) = event.fields().subject.strip_prefix("task/") else { continue };
            if self.load_task(id)? {
                handed.extend(self.handed_again(id, event.into())?);
            }
        }
        Ok(handed)
    }

    /// Returns the tasks that a lane of a process was given after `hand.since`; it has heard of those before.
    fn handed_to(&mut self, hand: &Hand) -> Result<Vec<Handed>, Fault> {
        let of_lane = self.holding.tasks.live.values().filter_map(|live| {
            let lease = live.task.lease.as_ref().filter(|_| live.task.status == Status::Running)?;
            let ours = lease.runner.as_ref() == Some(&hand.runner)
                && hand.capabilities.contains(&live.task.facts.task_type);
            ours.then(|| (live.task.id.clone(), lease.claimed))
        });
        let mut claims = Vec::new();
        for (id, claimed) in of_lane {
            let seq = self.reader.seq_of(&claimed)?.filter(|seq| *seq >= hand.since);
            claims.extend(seq.map(|seq| (seq, id, Sealed { cid: claimed, seq })));
        }
        claims.sort_unstable_by_key(|(seq, ..)| *seq);
        let mut handed = Vec::new();
        for (_, id, claimed) in claims {
            handed.extend(self.handed_again(&id, claimed)?);
        }
        Ok(handed)
    }

    /// Returns a task as this claim handed it out, or `None` if the claim no longer holds.
    fn handed_again(&mut self, id: &str, claimed: Sealed) -> Result<Option<Handed>, Fault> {
        let task = self.task(id)?;
        let holds = task.lease.as_ref().is_some_and(|lease| lease.claimed == claimed.cid);
        if !holds || task.status != Status::Running {
            return Ok(None);
        }
        let call = match self.holding.calls.open.get(&call_of(&claimed.cid)) {
            Some(open) => {
                let seq = self.reader.seq_of(&open.started)?;
                seq.map(|seq| (open.id.clone(), Sealed { cid: open.started, seq }))
            }
            None => None,
        };
        let input = self.input(id)?;
        self.handed(id, input, claimed, call)
    }

    /// Returns the steps that were cancelled with a run, if a cancel is among `events`.
    fn cancelled_by(&self, events: &[Event]) -> Result<Vec<String>, Fault> {
        let mut steps = Vec::new();
        for cancel in events.iter().filter(|event| matches!(event.body(), Some(Body::WorkflowCancelled(_)))) {
            for event in self.caused_by(Some(cancel.cid()))? {
                if let (Some(Body::TaskCancelled(_)), Some((_, step))) =
                    (event.body(), event.fields().subject.split_once('#'))
                {
                    steps.push(step.to_owned());
                }
            }
        }
        steps.sort_unstable();
        steps.dedup();
        Ok(steps)
    }
}

/// Returns how many tasks these events cleared.
fn cleared_by(events: &[Event]) -> u64 {
    let cleared = events.iter().filter_map(|event| match event.body() {
        Some(Body::QueueCleared(facts)) => Some(facts.cleared),
        _ => None,
    });
    cleared.sum()
}
