//! One call, from a request to its recorded answer.
//!
//! Invariants:
//! - the start is durable before the effect, the ending before the answer;
//! - whatever happens between them (a timeout, a panic, a caller that left), there is one ending.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tracing::Instrument;

use crate::{
    block::{Cid, payload::SealedPayload},
    call::{End, Ending, How, Start},
    caller::Scope,
    error::{Code, Refusal},
    event::{
        Role,
        body::{CallStarted, Failure},
    },
    ledger::{Command, Ruling, Sealed, commit::payload_ref},
    router::{
        Foretold, Invocation, Outcome, Record, Request, Response, Router, RpcError, aside,
        asking::Asking,
        capture::Capture,
        codes::{INTERNAL_ERROR, INVALID_REQUEST},
        content::Content,
        ending::{Ended, Said, Slot, seal},
        lane::{Lane, LaneTicket, Turn},
        metadata::PRIORITY,
        target::Target,
        telling::{Form, Manner, Reply, TRACE, read_error, refused},
    },
};

/// How long a tool that was told to stop may take to do so before it is dropped.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The domain of commitments to idempotency keys.
const KEY_DOMAIN: &str = "cairn/idempotency-key/2";
/// Their domain in older logs, before they were bound to actor and tool. Both forms are looked up, so that a key of
/// before is recognised.
const FORMER_KEY: &str = "idempotency-key";

/// A call from its request to its answer: what is asked, of whom, and what of its content is kept.
struct Underway<'a> {
    request: &'a Request,
    target: &'a Target,
    content: Content,
    manner: Manner,
    /// The payload of its input.
    input: Cid,
    log: Cid,
}

/// What a started call is tried with.
struct Tried {
    started: Cid,
    /// The ruling on the change that the call asked for with its start.
    ruled: Option<Ruling>,
    client: Arc<Asking>,
}

/// What became of the start of a call.
enum Begun {
    Runs {
        id: String,
        started: Sealed,
        ruled: Option<Box<Ruling>>,
    },
    /// Nothing is to be run.
    Answered(Box<Response>),
}

impl Underway<'_> {
    /// Returns where an answer of this call stands in the log.
    fn record(&self, sealed: Sealed, output: Option<Cid>) -> Record {
        Record {
            event: sealed.cid,
            contract: self.target.contract(),
            input: Some(self.input),
            output,
            seq: sealed.seq,
            log: self.log,
            replayed: false,
            cancelled: false,
            own: false,
        }
    }

    /// Adds to the command that starts the call the change that its tool foretells. What is told of it at once is put
    /// into the slot.
    fn foretelling(&self, start: Command, told_at_once: &Slot) -> Command {
        let Self { request, target, content, .. } = self;
        if content.refusal.is_some() {
            return start;
        }
        let unstarted = target.invocation(request, None, request.cancel.clone(), None);
        let Some(Foretold { work, tell }) = target.run.foretell(&Arc::new(unstarted)) else { return start };
        // An attempt ends with its call, by what the call itself says of it.
        let conclude =
            request.attempt.is_none().then(|| told_at_once.conclude(tell, self.manner, &content.sieve));
        Command::Begin { start: Box::new(start), work: Box::new(work), conclude }
    }
}

impl Router {
    /// Runs a request to its recorded answer. Must not be dropped midway: [`Router::call`] sees to that.
    pub(super) async fn run(&self, request: Request) -> Result<Response, RpcError> {
        // Stopping this call must not stop what else its caller's token belongs to.
        let request = Request { cancel: request.cancel.child_token(), ..request };
        if !request.caller.may(Scope::Call) {
            return Err(RpcError::new(
                INVALID_REQUEST,
                "this caller may not call tools: the scope mcp:call is needed",
            ));
        }
        let request = self.meant(request)?;
        let target = match self.target(&request) {
            Ok(target) => target,
            Err(unknown) => return self.unreached(&request).ok_or(unknown),
        };
        let place = self.inner.parts.lanes.place(&target.lane);
        let quick = target.entry.as_ref().is_none_or(|entry| entry.is_quick(request.params.get().len()));
        let (router, busy) = (self.clone(), place.as_ref().err().cloned());
        let (request, target, content) = aside::run(!quick, move || {
            let content = router.content(&request, &target, busy.as_ref());
            (request, target, content)
        })
        .await;
        let (sealed_input, content) = content?;

        let (input, log) = (sealed_input.envelope.cid(), self.ledger().about().log);
        let manner = self.manner(&request, &target);
        let mut call = Underway { request: &request, target: &target, content, manner, input, log };
        let (id, started, ruled) = match &request.begun {
            Some((id, started)) => (id.clone(), *started, None),
            None => match self.begin(&mut call, sealed_input).await? {
                Begun::Runs { id, started, ruled } => (id, started, ruled.map(|ruled| *ruled)),
                Begun::Answered(answer) => return Ok(*answer),
            },
        };
        let begun = Instant::now();
        let sieve = call.content.sieve.clone();
        let (client, ledger) = (request.client.clone(), self.ledger().clone());
        let asking = Arc::new(Asking::new(client, ledger, id.clone(), sieve, self.inner.forms.clone()));
        let outcome = match (call.content.refusal.take(), &place) {
            // It started with its claim, before its input could be checked.
            (Some(refusal), _) => Outcome::Refused(refusal.kept),
            (None, Err(refusal)) => Outcome::Refused(refusal.clone()),
            (None, Ok(place)) => match asking.given(&request.params).await {
                Err(refusal) => Outcome::Refused(refusal),
                Ok(()) => {
                    let tried = Tried { started: started.cid, ruled, client: asking.clone() };
                    let outcome = self.effect(&request, &target, place, tried).await;
                    asking.asked(self.meant_for(&request, &target, outcome)).await
                }
            },
        };
        call.content.sieve = asking.sieve();
        self.end(&call, id, outcome, begun.elapsed()).await
    }

    /// Asks for the start of a call, and with it for the change that its tool foretells.
    async fn begin(&self, call: &mut Underway<'_>, input: SealedPayload) -> Result<Begun, RpcError> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let refusal = call.content.refusal.as_ref().map(|refusal| refusal.kept.clone());
        let form = call.manner.form;
        let kept = refusal.as_ref().map(|kept| self.seal(&refused(kept, form).text())).transpose()?;
        let refused_as = kept.as_ref().map(|payload| payload.envelope.cid());
        let start =
            Start { input: Some(payload_ref(&input, Role::Input)), refusal, ..self.wish(id.clone(), call) };
        let start = Command::Start { start: Box::new(start), input: Some(input), refused: kept };
        let told_at_once = Slot::default();
        let answer = match self.submit(call.foretelling(start, &told_at_once)).await? {
            Ruling::Run(started) => return Ok(Begun::Runs { id, started, ruled: None }),
            Ruling::Began { started, ruled, ended: None } => {
                return Ok(Begun::Runs { id, started, ruled: Some(ruled) });
            }
            Ruling::Began { ended: Some(ended), .. } => {
                let said = told_at_once.take().ok_or_else(RpcError::internal)?;
                self.answer(call, said, ended)?
            }
            Ruling::Refused(sealed) => {
                self.count(call.target, "refused", Duration::ZERO);
                let refusal = call.content.refusal.take().map(|refusal| refusal.told);
                let refusal = refusal.unwrap_or_else(|| Refusal::new(Code::Internal, "refused"));
                told_own(refusal, form, Some(call.record(sealed, refused_as)))?
            }
            Ruling::Answered(ending) => self.first_answer(call, &ending).await?,
            Ruling::Denied(refusal) => told_own(refusal, form, None)?,
            Ruling::Published { .. } | Ruling::Worked(_) | Ruling::Done(_) | Ruling::Unchanged => {
                return Err(RpcError::internal());
            }
        };
        Ok(Begun::Answered(Box::new(answer)))
    }

    /// Waits for a turn and runs the tool. A call that is told to stop has `STOP_GRACE` to do so.
    async fn effect(&self, request: &Request, target: &Target, place: &LaneTicket, tried: Tried) -> Outcome {
        let span = tracing::info_span!("call", tool = target.recorded_name, event = %tried.started);
        let priority = target.entry.as_ref().map_or(PRIORITY, |entry| entry.metadata.priority);
        let turn = async {
            // Shared with work that cannot be stopped: its thread holds the turn until it is done.
            let turn = Arc::new(place.turn(priority).await);
            self.attempt(request, target, &place.lane, &turn, tried).await
        };
        let told_to_stop = async {
            tokio::select! {
                () = request.cancel.cancelled() => {}
                () = self.inner.halt.cancelled() => request.cancel.cancel(),
            }
            // Tools are told by the same token; those that do not listen are dropped after the grace.
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            outcome = turn.instrument(span) => outcome,
            () = told_to_stop => Outcome::Cancelled,
        }
    }

    /// Records the ending of a call, and of the attempt it made, and returns its answer.
    async fn end(
        &self,
        call: &Underway<'_>,
        id: String,
        outcome: Outcome,
        took: Duration,
    ) -> Result<Response, RpcError> {
        let (target, trial) = (call.target, call.request.attempt.as_deref());
        let mut attempt = trial.and_then(|trial| trial.attempt(&outcome));
        let (entry, manner, sieve) = (target.entry.clone(), call.manner, call.content.sieve.clone());
        let bytes = if let Outcome::Result { result, .. } = &outcome { result.get().len() } else { 0 };
        let promised = entry.as_ref().and_then(|entry| entry.output.as_ref());
        let quick = promised.is_none_or(|schema| schema.is_quick(bytes));
        let Ended { outcome, output, said } = aside::run(!quick, move || {
            let promised = entry.as_ref().and_then(|entry| entry.output.as_ref());
            Ended::of(outcome, manner, took, &sieve, promised)
        })
        .await?;
        if let (Some(attempt), true, Some(refusal)) = (&mut attempt, said.instead, &said.own) {
            (attempt.code, attempt.retryable) = (refusal.code.as_str().to_owned(), false);
        }
        let end = End {
            id,
            output: Some(payload_ref(&output, outcome.role())),
            outcome,
            took_us: took.as_micros() as u64,
            remote: target.remotes.take(),
        };
        let end = Command::End { end, output: Some(output), attempt: attempt.map(Box::new) };
        let Ruling::Done(ended) = self.submit(end).await? else { return Err(RpcError::internal()) };
        if let Some(trial) = trial {
            trial.ended.store(true, std::sync::atomic::Ordering::Release);
        }
        self.answer(call, said, ended)
    }

    /// Returns the answer to a call whose ending is this event.
    fn answer(&self, call: &Underway<'_>, said: Said, ended: Sealed) -> Result<Response, RpcError> {
        self.count(call.target, said.label, said.took);
        let record = call.record(ended, Some(said.output));
        let record = Some(Record { cancelled: said.cancelled, own: said.own.is_some(), ..record });
        match said.told {
            Reply::Result(result) => Ok(Response { result, record, own: said.own.map(Box::new) }),
            Reply::Error(error) => Err(RpcError { record: record.map(Box::new), ..error }),
        }
    }

    /// Tries the tool, and again if it failed on its way and the contract allows another try.
    async fn attempt(
        &self,
        request: &Request,
        target: &Target,
        lane: &Lane,
        turn: &Arc<Turn>,
        Tried { started, mut ruled, client }: Tried,
    ) -> Outcome {
        let limit = target.limit(request, lane.bounds().timeout);
        let retry = target
            .entry
            .as_ref()
            .filter(|entry| entry.contract.repeatable())
            .map(|entry| entry.metadata.retry);
        let retry = retry.unwrap_or_default();
        let patience = client.patience(limit);
        let (mut tried, mut before) = (0, None);
        loop {
            let cancel = request.cancel.child_token();
            let invocation = target.invocation(request, Some(started), cancel.clone(), ruled.take());
            let deadline = Some(patience.until().into_std());
            let invocation = Invocation { deadline, client: client.clone(), ..invocation };
            let outcome = tokio::select! {
                biased;
                outcome = lane.run(turn, &target.run, invocation) => outcome.after(before.take()),
                () = patience.over() => {
                    cancel.cancel();
                    return Outcome::TimedOut;
                }
            };
            tried += 1;
            if !outcome.may_pass() || tried > retry.max_retries {
                return outcome;
            }
            let pause = Duration::from_millis(retry.pause_ms(tried, &started));
            let next = tokio::time::Instant::now() + pause;
            // A pause beyond the call's time would only hold its place in the lane.
            if next >= patience.until() {
                return outcome;
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = request.cancel.cancelled() => return Outcome::Cancelled,
            }
            before = Some(outcome);
        }
    }

    /// Returns the start of a call, without its input and its refusal.
    fn wish(&self, id: String, call: &Underway<'_>) -> Start {
        let Underway { request, target, content, .. } = call;
        let salt = &self.inner.parts.salt;
        let key = request.meta.idempotency_key.as_ref();
        let actor = &request.caller.actor;
        let bound = |key: &String| {
            let fields = [&actor.id, &target.recorded_name, key].map(|text| text.as_bytes());
            salt.bind(KEY_DOMAIN, &fields).to_vec()
        };
        let facts = CallStarted {
            method: request.method.as_str().to_owned(),
            name: target.recorded_name.clone(),
            source: target.source.clone(),
            runtime: target.lane.clone(),
            rule: target.rule.as_str().to_owned(),
            runner: self.inner.parts.runner.clone(),
            key: key.map(bound),
            trace: request.meta.traceparent.clone(),
            input_unchecked: content.unchecked,
        };
        Start {
            id,
            actor: actor.clone(),
            tool: target.contract(),
            input: None,
            former_key: key.map(|key| salt.commit(FORMER_KEY, key.as_bytes()).to_vec()),
            facts,
            cause: request.cause,
            refs: request.meta.refs.clone(),
            repeatable: target.repeatable(),
            refusal: None,
        }
    }

    /// Returns the answer that the first call with this idempotency key got.
    async fn first_answer(&self, call: &Underway<'_>, ending: &Ending) -> Result<Response, RpcError> {
        let refused = |message| {
            let refusal =
                Refusal::new(Code::FailedPrecondition, message).hint("look at the first call's event");
            told_own(refusal, call.manner.form, None)
        };
        if call.content.sieve.capture != Capture::Full {
            return refused("the first answer to this idempotency key was not kept in full");
        }
        let Some(output) = ending.output else {
            return refused("the first call left no answer");
        };
        let home = self.ledger().home().clone();
        let text = tokio::task::spawn_blocking(move || crate::query::content(&home, &output)).await;
        let Ok(Ok(Some(text))) = text else {
            return refused("the first answer has been erased");
        };
        let sealed = Sealed { cid: ending.event, seq: ending.seq };
        let record = Some(Record { replayed: true, ..call.record(sealed, Some(output)) });
        let raw = String::from_utf8(text).ok().and_then(|text| RawValue::from_string(text).ok());
        let Some(raw) = raw else {
            return refused("the first answer cannot be read");
        };
        match ending.how {
            How::Failed(failure) if failure == Failure::Protocol || call.manner.form == Form::Rpc => {
                Err(RpcError { record: record.map(Box::new), ..read_error(&raw) })
            }
            _ => Ok(Response { result: raw, record, own: None }),
        }
    }

    /// Returns how the caller of a call is told of it.
    fn manner(&self, request: &Request, target: &Target) -> Manner {
        let traces = target.sight.sees_own(&request.caller, TRACE);
        Manner { form: target.form(), repeatable: target.repeatable(), traces }
    }

    pub(super) fn seal(&self, text: &str) -> Result<SealedPayload, RpcError> {
        seal(&self.inner.parts.salt, text)
    }

    async fn submit(&self, command: Command) -> Result<Ruling, RpcError> {
        self.ledger()
            .submit(command)
            .await
            .map_err(|stopped| RpcError::new(INTERNAL_ERROR, stopped.to_string()))
    }

    fn count(&self, target: &Target, outcome: &'static str, took: Duration) {
        self.inner.parts.metrics.call_ended(target.label(), outcome, &target.lane, took.as_secs_f64());
    }
}

/// Returns the answer that is this refusal.
pub(super) fn told_own(refusal: Refusal, form: Form, record: Option<Record>) -> Result<Response, RpcError> {
    let record = record.map(|record| Record { own: true, ..record });
    match refused(&refusal, form) {
        Reply::Result(result) => Ok(Response { result, record, own: Some(Box::new(refusal)) }),
        Reply::Error(error) => Err(RpcError { record: record.map(Box::new), ..error }),
    }
}
