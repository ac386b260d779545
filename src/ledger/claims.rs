//! The writer's part in claims: work is handed out, renewed and ended.
//!
//! Invariants:
//! - a claim is durable before the work is handed out;
//! - a claim that finds nothing waits here, and is served by the commit that brings it work.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    block::{Cid, payload::SealedPayload},
    call::Start,
    error::{Code, Refusal},
    event::{Body, PayloadRef, Role},
    ledger::{
        Ruling, Sealed,
        holding::Parked,
        memory::text_of,
        tasks::{By, no_task, worked},
        work::{Begun, CARRIES, CLAIM_MAX, Hand, Handed, Worked},
        writer::{Draft, Fault, Writer, payload_ref},
    },
    task::{Completed, Task},
};

/// Bytes of input after which one claim hands out no more tasks: an answer has a bound of its own.
const HANDED_BYTES: usize = 8 * 1024 * 1024;
/// Claims that may wait for work.
const PARKED_MAX: usize = 10_000;

/// What the writer can say at once to a wish about durable work.
pub(super) enum Answer {
    Now(Ruling),
    /// The claim waits; whoever asked is answered when there is work, or when its time is over.
    Later(Box<Waiting>),
}

/// A claim that found nothing, before it is joined with the channel its answer goes to.
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

impl Writer {
    pub(super) fn claim(
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
                self.holding.parked.retain(|parked| !parked.reply.is_closed());
            }
            if self.holding.parked.len() >= PARKED_MAX {
                let refusal = format!("{PARKED_MAX} claims wait already");
                let refusal = Refusal::new(Code::ResourceExhausted, refusal).retryable();
                return Ok(Answer::Now(Ruling::Denied(refusal.hint("claim again later"))));
            }
            return Ok(Answer::Later(Box::new(Waiting { worker, max, wait_ms, hand, capabilities, by })));
        }
        Ok(Answer::Now(worked(Worked::Claimed(handed))))
    }

    /// Claims for a worker the tasks it may have now, and returns them. It reads the queue in memory: the state is
    /// folded after the commit, so a query could hand out what was just taken.
    fn hand_out(
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
        let mut bytes = 0;
        while handed.len() < room.min(CLAIM_MAX) && bytes < HANDED_BYTES {
            let Some(taken) = self.holding.queue.take(capabilities, moment.now_ms) else { break };
            let id = self.number(taken.seq)?;
            let runner = hand.map(|hand| hand.runner.as_str());
            let claim = self.task(&id)?.claim(worker, runner, taken.rate_until_ms, &moment);
            let input = self.input(&id, draft)?;
            bytes += input.as_ref().map_or(0, String::len);
            let claimed = self.change(&id, Body::TaskClaimed(claim), by, Vec::new(), draft)?;
            let call = match hand.filter(|_| input.is_some()) {
                Some(hand) => self.open_call(&id, hand, claimed, draft)?,
                None => None,
            };
            handed.extend(self.handed(&id, input, claimed, call)?);
        }
        Ok(handed)
    }

    /// A task in memory as its claim hands it out.
    pub(super) fn handed(
        &mut self,
        id: &str,
        input: Option<String>,
        claimed: Sealed,
        call: Option<Begun>,
    ) -> Result<Option<Handed>, Fault> {
        let peer = self.carrier(id)?;
        let task = self.task(id)?;
        let Some(lease) = &task.lease else { return Ok(None) };
        Ok(Some(Handed {
            task: id.to_owned(),
            task_type: task.facts.task_type.clone(),
            actor: task.actor.clone(),
            input,
            attempt: task.attempt,
            fence: task.fence,
            lease_until_ms: lease.until_ms,
            timeout_ms: task.facts.timeout_ms,
            claimed,
            call,
            run: task.facts.run.clone(),
            step: task.facts.step.clone(),
            peer,
        }))
    }

    /// Returns the peer that a task in memory is to run at, or `None` if it runs here. Errors: the task's run cannot
    /// be loaded; a task for a peer is not handed out before its peer is known.
    fn carrier(&mut self, id: &str) -> Result<Option<String>, Fault> {
        let task = self.task(id)?;
        let Some(run) = task.facts.run.clone().filter(|_| carried(task)) else { return Ok(None) };
        let run = self.loaded_run(&run)?.ok_or(Fault::Broken { what: "a carried task has no run" })?;
        Ok(run.facts.peer.clone())
    }

    /// The input of a task in memory.
    pub(super) fn input(&self, id: &str, draft: &Draft) -> Result<Option<String>, Fault> {
        let Some(live) = self.holding.tasks.get(id) else { return Ok(None) };
        Ok(match &live.input {
            Some(input) => Some(input.to_string()),
            None => self.text(live.task.input.map(|input| input.cid), draft)?.map(|text| text.to_string()),
        })
    }

    /// Starts the call of a tool's task in the commit of its claim, if all that its start records is known already.
    fn open_call(
        &mut self,
        id: &str,
        hand: &Hand,
        claimed: Sealed,
        draft: &mut Draft,
    ) -> Result<Option<Begun>, Fault> {
        let task = self.task(id)?;
        // Where a call is taken that is carried to a peer, its opening does not say.
        let carried = carried(task);
        let opening = hand.openings.get(&task.facts.task_type).filter(|_| !carried);
        let Some(opening) = opening else { return Ok(None) };
        let call = call_of(&claimed.cid);
        let start = Start {
            id: call.clone(),
            actor: task.actor.clone(),
            tool: Some(opening.tool),
            input: task.input,
            facts: opening.facts.clone(),
            former_key: None,
            cause: Some(claimed.cid),
            refs: Vec::new(),
            repeatable: opening.repeatable,
            refusal: None,
        };
        Ok(match self.start(start, None, None, draft)? {
            Ruling::Run(started) => Some((call, started)),
            _ => None,
        })
    }

    /// Puts claimed tasks back in the line whose claim reached nobody.
    pub(super) fn give_back(
        &mut self,
        claims: &[(String, u64)],
        by: &By,
        draft: &mut Draft,
    ) -> Result<(), Fault> {
        for (id, fence) in claims {
            if self.load_task(id)?
                && let Some(body) = self.task(id)?.unheard(*fence)
            {
                self.change(id, body, by, Vec::new(), draft)?;
            }
        }
        self.advance(draft)
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
            if self.holding.queue.is_empty() {
                left.push_back(parked);
                break;
            }
            let by = By { actor: parked.actor.clone(), cause: parked.cause, note: None, refs: Vec::new() };
            let Parked { worker, max, hand, capabilities, .. } = &parked;
            let handed = self.hand_out(worker, *max, hand.as_ref(), capabilities, &by, draft)?;
            match handed.is_empty() {
                true => left.push_back(parked),
                false => draft.replies.push((parked.reply, worked(Worked::Claimed(handed)))),
            }
        }
        left.append(&mut waiting);
        self.holding.parked = left;
        // Starting a run by its first claim frees nothing, but its rules want to know.
        self.advance(draft)
    }

    /// Prepares for a worker's call about a task: records a sign of life and loads the task.
    fn word(
        &mut self,
        worker: &str,
        id: &str,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<(), Refusal>, Fault> {
        if let Err(refusal) = self.heard(worker, by, draft)? {
            return Ok(Err(refusal));
        }
        Ok(if self.load_task(id)? { Ok(()) } else { Err(no_task(id)) })
    }

    #[expect(clippy::too_many_arguments, reason = "what a heartbeat says")]
    pub(super) fn renew(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        progress: Option<u64>,
        log: Option<SealedPayload>,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.word(worker, id, by, draft)? {
            return Ok(Err(refusal));
        }
        let moment = self.moment();
        let body = match self.task(id)?.renew(worker, fence, progress, &moment) {
            Ok(facts) => Body::TaskRenewed(facts),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let log_ref = log.as_ref().map(|log| payload_ref(log, Role::Log));
        draft.store(log);
        self.change(id, body, by, log_ref.into_iter().collect(), draft)?;
        let task = self.task(id)?;
        let lease_until_ms = task.lease.as_ref().map_or(0, |lease| lease.until_ms);
        Ok(Ok(Worked::Renewed { lease_until_ms, cancel_requested: task.cancel_requested }))
    }

    #[expect(clippy::too_many_arguments, reason = "what a completion says")]
    pub(super) fn complete(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        output: SealedPayload,
        claim_next: bool,
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.word(worker, id, by, draft)? {
            return Ok(Err(refusal));
        }
        let output_ref = payload_ref(&output, Role::Output);
        match self.task(id)?.complete(worker, fence, &output_ref) {
            Ok(Completed::New(body)) => {
                if self.task(id)?.facts.run.is_some()
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
        Ok(Ok(Worked::Ended { task: Box::new(self.task(id)?.clone()), next }))
    }

    #[expect(clippy::too_many_arguments, reason = "what a failure says")]
    pub(super) fn fail(
        &mut self,
        worker: &str,
        id: &str,
        fence: u64,
        error: SealedPayload,
        (code, retryable): (&str, bool),
        by: &By,
        draft: &mut Draft,
    ) -> Result<Result<Worked, Refusal>, Fault> {
        if let Err(refusal) = self.word(worker, id, by, draft)? {
            return Ok(Err(refusal));
        }
        let moment = self.moment();
        let bodies = match self.task(id)?.fail(worker, fence, code, retryable, &moment) {
            Ok(bodies) => bodies,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let error_ref = payload_ref(&error, Role::Error);
        draft.store(Some(error));
        for (n, body) in bodies.into_iter().enumerate() {
            let payloads = if n == 0 { vec![error_ref] } else { Vec::new() };
            self.change(id, body, by, payloads, draft)?;
        }
        Ok(Ok(Worked::Ended { task: Box::new(self.task(id)?.clone()), next: Vec::new() }))
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
        let task = self.task(&attempt.task)?;
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
}

/// Returns the claims that a ruling hands out, as task ids with fences.
pub(super) fn claims_of(ruling: Ruling) -> Vec<(String, u64)> {
    let handed = match ruling {
        Ruling::Began { ruled, .. } => return claims_of(*ruled),
        Ruling::Worked(worked) => match *worked {
            Worked::Claimed(handed) | Worked::Ended { next: handed, .. } => handed,
            _ => return Vec::new(),
        },
        _ => return Vec::new(),
    };
    handed.into_iter().map(|handed| (handed.task, handed.fence)).collect()
}

/// Returns the id of an attempt's call. An attempt makes only one call, so the id follows from the claim's CID.
pub(super) fn call_of(claimed: &Cid) -> String {
    data_encoding::HEXLOWER.encode(&claimed.digest()[..16])
}

fn carried(task: &Task) -> bool {
    task.facts.requires.iter().any(|word| word == CARRIES)
}
