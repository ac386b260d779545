//! The writer's part in claims: work is handed out, renewed and ended.
//!
//! Invariants:
//! - a claim is durable before the work is handed out;
//! - a claim that finds nothing waits here, and is served by the commit that brings it work.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    block::Cid,
    call::Start,
    error::{Code, Refusal},
    event::{Body, PayloadRef, Role},
    ledger::{
        Ruling, Sealed,
        commit::{By, Fault, Stop, payload_ref},
        holding::tasks::Parked,
        work::{
            Attempt, Begun, CARRIES, CLAIM_MAX, Claim, Complete, Fail, GiveBack, Hand, Handed, Renew, Worked,
        },
        world::{World, text_of},
    },
    task::{Completed, Task},
};

/// Bytes of input after which one claim hands out no more tasks: an answer has a bound of its own.
const HANDED_BYTES: usize = 8 * 1024 * 1024;
/// Claims that may wait for work.
const PARKED_MAX: usize = 10_000;

/// What the writer can say at once to a wish.
pub(super) enum Ruled {
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

impl Claim {
    pub(super) fn rule(self, world: &mut World, by: By) -> Result<Ruled, Stop> {
        let Self { worker, max, wait_ms, hand } = self;
        if wait_ms > 0 && hand.is_none() {
            world.room_to_wait()?;
        }
        let capabilities = match &hand {
            Some(hand) => hand.capabilities.clone(),
            None => {
                let back = world.admit(&worker, &by)?;
                world.hear(&worker, back, &by)?;
                world.capabilities(&worker)
            }
        };
        if let Some(hand) = &hand {
            world.replace_parked(&worker, hand);
        }
        let handed = world.hand_out(&worker, max, hand.as_ref(), &capabilities, &by)?;
        world.advance()?;
        Ok(match handed.is_empty() && wait_ms > 0 {
            true => Ruled::Later(Box::new(Waiting { worker, max, wait_ms, hand, capabilities, by })),
            false => Ruled::Now(worked(Worked::Claimed(handed))),
        })
    }
}

impl GiveBack {
    /// Puts claimed tasks back in the queue whose claim reached nobody.
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        for (id, fence) in &self.claims {
            if world.load_task(id)?
                && let Some(body) = world.task(id)?.unheard(*fence)
            {
                world.change(id, body, by, Vec::new())?;
            }
        }
        Ok(Worked::Checked(Vec::new()))
    }
}

impl Renew {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { worker, task: id, fence, progress, log } = self;
        let back = world.admit_for(&worker, &id, by)?;
        let facts = world.task(&id)?.renew(&worker, fence, progress, &world.moment())?;
        world.hear(&worker, back, by)?;
        let log_ref = log.as_ref().map(|log| payload_ref(log, Role::Log));
        world.commit.store(log);
        world.change(&id, Body::TaskRenewed(facts), by, log_ref.into_iter().collect())?;
        let task = world.task(&id)?;
        let lease_until_ms = task.lease.as_ref().map_or(0, |lease| lease.until_ms);
        Ok(Worked::Renewed { lease_until_ms, cancel_requested: task.cancel_requested })
    }
}

impl Complete {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { worker, task: id, fence, output, claim_next } = self;
        let back = world.admit_for(&worker, &id, by)?;
        let output_ref = payload_ref(&output, Role::Output);
        let completed = world.task(&id)?.complete(&worker, fence, &output_ref)?;
        world.hear(&worker, back, by)?;
        match completed {
            Completed::New(body) => {
                if world.task(&id)?.facts.run.is_some()
                    && let Some(text) = text_of(&output)
                {
                    world.holding.contents.put(output_ref.cid, Arc::from(text));
                }
                world.commit.store(Some(output));
                world.change(&id, body, by, vec![output_ref])?;
            }
            Completed::Known => {}
        }
        // What this frees is in the queue before the worker claims.
        world.advance()?;
        let next = match claim_next {
            true => world.hand_out(&worker, 1, None, &world.capabilities(&worker), by)?,
            false => Vec::new(),
        };
        Ok(Worked::Ended { task: Box::new(world.task(&id)?.clone()), next })
    }
}

impl Fail {
    pub(super) fn rule(self, world: &mut World, by: &By) -> Result<Worked, Stop> {
        let Self { worker, task: id, fence, error, code, retryable } = self;
        let back = world.admit_for(&worker, &id, by)?;
        let bodies = world.task(&id)?.fail(&worker, fence, &code, retryable, &world.moment())?;
        world.hear(&worker, back, by)?;
        let error_ref = payload_ref(&error, Role::Error);
        world.commit.store(Some(error));
        for (n, body) in bodies.into_iter().enumerate() {
            let payloads = if n == 0 { vec![error_ref] } else { Vec::new() };
            world.change(&id, body, by, payloads)?;
        }
        Ok(Worked::Ended { task: Box::new(world.task(&id)?.clone()), next: Vec::new() })
    }
}

impl World {
    /// Refuses a claim that wants to wait if as many wait as may.
    fn room_to_wait(&mut self) -> Result<(), Stop> {
        let parked = &mut self.holding.tasks.parked;
        if parked.len() >= PARKED_MAX {
            parked.retain(|parked| !parked.reply.is_closed());
        }
        if parked.len() < PARKED_MAX {
            return Ok(());
        }
        let refusal = Refusal::new(Code::ResourceExhausted, format!("{PARKED_MAX} claims wait already"));
        Err(refusal.retryable().hint("claim again later").into())
    }

    /// Ends the wait of a lane's last claim: what the lane can run has changed.
    fn replace_parked(&mut self, worker: &str, hand: &Hand) {
        let same = |parked: &Parked| {
            parked.worker == worker && parked.hand.as_ref().is_some_and(|other| other.lane == hand.lane)
        };
        let parked = &mut self.holding.tasks.parked;
        if let Some(parked) = parked.iter().position(same).and_then(|at| parked.remove(at)) {
            self.commit.replies.push((parked.reply, worked(Worked::Claimed(Vec::new()))));
        }
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
    ) -> Result<Vec<Handed>, Stop> {
        let mut handed = Vec::new();
        if self.holding.tasks.queue.is_empty() {
            return Ok(handed);
        }
        let moment = self.moment();
        let room = match (hand, self.holding.crew.workers.get(worker)) {
            (Some(_), _) => max,
            (None, Some(worker)) => worker.may_take(max as u64) as usize,
            (None, None) => 0,
        };
        let mut bytes = 0;
        while handed.len() < room.min(CLAIM_MAX) && bytes < HANDED_BYTES {
            let Some(taken) = self.holding.tasks.queue.take(capabilities, moment.now_ms) else { break };
            let id = self.number(taken.seq)?;
            let runner = hand.map(|hand| hand.runner.as_str());
            let claim = self.task(&id)?.claim(worker, runner, taken.rate_until_ms, &moment);
            let input = self.input(&id)?;
            bytes += input.as_ref().map_or(0, String::len);
            let claimed = self.change(&id, Body::TaskClaimed(claim), by, Vec::new())?;
            let call = match hand.filter(|_| input.is_some()) {
                Some(hand) => self.open_call(&id, hand, claimed)?,
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
            handle: task.facts.handle.clone(),
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
    pub(super) fn input(&self, id: &str) -> Result<Option<String>, Fault> {
        let Some(live) = self.holding.tasks.live.get(id) else { return Ok(None) };
        Ok(match &live.input {
            Some(input) => Some(input.to_string()),
            None => self.text(live.task.input.map(|input| input.cid))?.map(|text| text.to_string()),
        })
    }

    /// Starts the call of a tool's task in the commit of its claim, if all that its start records is known already.
    fn open_call(&mut self, id: &str, hand: &Hand, claimed: Sealed) -> Result<Option<Begun>, Stop> {
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
        Ok(match self.start(start, None, None)? {
            Ruling::Run(started) => Some((call, started)),
            _ => None,
        })
    }

    /// Serves claims that wait, in the order they came.
    pub(super) fn serve_parked(&mut self) -> Result<(), Stop> {
        if !std::mem::take(&mut self.holding.tasks.fresh) || self.holding.tasks.queue.is_empty() {
            return Ok(());
        }
        let mut waiting = std::mem::take(&mut self.holding.tasks.parked);
        let mut left = VecDeque::with_capacity(waiting.len());
        while let Some(parked) = waiting.pop_front() {
            if parked.reply.is_closed() {
                continue;
            }
            if self.holding.tasks.queue.is_empty() {
                left.push_back(parked);
                break;
            }
            let by = By { cause: parked.cause, ..By::new(parked.actor.clone()) };
            let Parked { worker, max, hand, capabilities, .. } = &parked;
            let handed = self.hand_out(worker, *max, hand.as_ref(), capabilities, &by)?;
            match handed.is_empty() {
                true => left.push_back(parked),
                false => self.commit.replies.push((parked.reply, worked(Worked::Claimed(handed)))),
            }
        }
        left.append(&mut waiting);
        self.holding.tasks.parked = left;
        // Starting a run by its first claim frees nothing, but its rules want to know.
        self.advance()
    }

    /// Admits a worker's command about a task and loads the task. Returns the event that says that the worker is back,
    /// if it was lost. Nothing is recorded yet: the command may still be refused.
    fn admit_for(&mut self, worker: &str, task: &str, by: &By) -> Result<Option<Body>, Stop> {
        let back = self.admit(worker, by)?;
        self.need_task(task)?;
        Ok(back)
    }

    /// Ends the attempt a call was made for, with the call.
    pub(super) fn end_attempt(
        &mut self,
        attempt: &Attempt,
        output: Option<PayloadRef>,
        succeeded: bool,
        call: Cid,
    ) -> Result<(), Stop> {
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
        let by = By { cause: Some(call), ..By::new(task.actor.clone()) };
        for (n, body) in bodies.into_iter().enumerate() {
            let payloads = if n == 0 { output.into_iter().collect() } else { Vec::new() };
            self.change(&attempt.task, body, &by, payloads)?;
        }
        self.advance()
    }
}

/// Returns the ruling that carries this answer.
pub(super) fn worked(worked: Worked) -> Ruling {
    Ruling::Worked(Box::new(worked))
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
