//! The engine: this node's own worker, which runs tasks that name a tool of its catalogue.
//!
//! Invariants:
//! - it is a worker like any other: it claims, renews and ends its attempts by commands, and holds no rule;
//! - it never polls for work: a claim waits in the ledger until there is some. While attempts run, it asks twice a
//!   second whether any of them should stop;
//! - a lane's tasks never wait in the lane for each other: no more are claimed than the lane runs at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use serde_json::{Value, json, value::RawValue};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    block::payload::{JSON, Payload, SaltKey},
    call::{End, EndOutcome},
    caller::{Caller, Scope},
    error::Code,
    event::body::Failure,
    ledger::{
        Command, Ledger, Ruling, Stopped,
        commit::node,
        work::{self, CARRIES, Hand, Handed, Opening, Wish, Work, Worked},
    },
    router::{
        BoxFuture, Change, Client, Entry, Meta, Method, Request, Response, Router, RpcError,
        audience::Audience,
        codes::INVALID_REQUEST,
        followed::{self, FOLLOW, Followed, Wished, audience, given},
        handles::Follower,
        trial::Trial,
    },
};

/// The prefix of task types that name a tool.
pub const TOOL: &str = "tool:";
/// The largest number of attempts of one lane at a time, even if the lane allows more.
const LANE_MAX: usize = 256;
/// How long a claim may wait at the writer; then a new one is made.
const WAIT_MS: u64 = 3_600_000;
/// How long a withdrawn claim may take to be answered before it is withdrawn again.
const WITHDRAW_PAUSE: Duration = Duration::from_millis(20);
/// The pause before a refused claim is made again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// The pause between two checks whether running attempts should stop.
const CHECK_PAUSE: Duration = Duration::from_millis(500);

/// What a lane can run: the types of its tools' tasks, and how their calls start.
#[derive(Clone, Default)]
struct Able {
    capabilities: Arc<BTreeSet<String>>,
    openings: Arc<BTreeMap<String, Opening>>,
}

/// The ending of a call that began with its claim and whose tool is gone.
const LOST: EndOutcome = EndOutcome::Failed { failure: Failure::Internal, code: None };

/// The node's own worker.
pub struct Engine {
    router: Router,
    ledger: Ledger,
    salt: SaltKey,
    runner: String,
    /// The running attempts, by task and fence.
    running: Mutex<HashMap<(String, u64), Running>>,
    lease: Duration,
}

/// A running attempt, and the token that cancels its call.
type Running = (Arc<Trial>, CancellationToken);

/// A claim that was submitted and is not answered yet.
type Claim = JoinHandle<Result<Vec<Handed>, Stopped>>;

impl Engine {
    pub fn new(router: Router, salt: SaltKey, runner: String, lease: Duration) -> Arc<Self> {
        let ledger = router.ledger().clone();
        Arc::new(Self { router, ledger, salt, runner, running: Mutex::default(), lease })
    }

    /// Claims until `claiming` is cancelled, and renews leases until `stopping` is. Running attempts are left to the
    /// router, which ends them.
    pub async fn run(self: Arc<Self>, claiming: CancellationToken, stopping: CancellationToken) {
        let mut parts = JoinSet::new();
        for (lane, bound) in self.router.bounds() {
            let engine = self.clone();
            let claiming = claiming.clone();
            parts.spawn(async move { engine.serve(lane, bound.min(LANE_MAX), claiming).await });
        }
        let engine = self.clone();
        let renewing = stopping.clone();
        parts.spawn(async move { engine.keep(renewing).await });
        while parts.join_next().await.is_some() {}
    }

    /// Claims and runs the tasks of one lane.
    async fn serve(self: Arc<Self>, lane: String, bound: usize, claiming: CancellationToken) {
        let mut changes = self.router.changes();
        let mut runs: JoinSet<()> = JoinSet::new();
        let mut claim: Option<JoinHandle<Result<Vec<Handed>, Stopped>>> = None;
        let mut able = self.able(&lane);
        loop {
            let free = bound - runs.len().min(bound);
            if claim.is_none() && free > 0 && !able.capabilities.is_empty() {
                claim = Some(self.claim(&lane, free, &able));
            }
            tokio::select! {
                () = claiming.cancelled() => {
                    // A claim for no task replaces the waiting one, which is then answered at once.
                    let _ = self.claim(&lane, 0, &Able::default()).await;
                    return runs.detach_all();
                }
                handed = async { claim.as_mut().expect("guarded by the condition").await }, if claim.is_some() => {
                    claim = None;
                    let Ok(Ok(handed)) = handed else { return runs.detach_all() };
                    for handed in handed {
                        let engine = self.clone();
                        runs.spawn(async move { engine.attempt(handed).await });
                    }
                }
                Some(_) = runs.join_next() => {}
                changed = changes.recv() => match changed {
                    Ok(Change::Prompts | Change::Resources) => {}
                    Ok(Change::Tools) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        able = self.able(&lane);
                        let Some(old) = claim.take() else { continue };
                        // The tasks of the old claim count as running before more are claimed.
                        for handed in self.withdraw(&lane, old).await {
                            let engine = self.clone();
                            runs.spawn(async move { engine.attempt(handed).await });
                        }
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return runs.detach_all(),
                },
            }
        }
    }

    fn claim(&self, lane: &str, max: usize, able: &Able) -> Claim {
        let Able { capabilities, openings } = able.clone();
        let since = *self.ledger.committed().borrow();
        let hand = Hand { runner: self.runner.clone(), lane: lane.to_owned(), capabilities, since, openings };
        // A claim for no task does not wait.
        let wait_ms = if max == 0 { 0 } else { WAIT_MS };
        let wish = Wish::Claim(work::Claim { worker: self.name(), max, wait_ms, hand: Some(hand) });
        let (ledger, command) = (self.ledger.clone(), self.command(wish));
        tokio::spawn(async move {
            match ledger.submit(command).await? {
                Ruling::Worked(worked) => match *worked {
                    Worked::Claimed(handed) => Ok(handed),
                    _ => Ok(Vec::new()),
                },
                _ => {
                    // Too many claims are waiting: the next one must not follow at once.
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    Ok(Vec::new())
                }
            }
        })
    }

    /// Withdraws a waiting claim. Returns the tasks it was given before.
    async fn withdraw(&self, lane: &str, mut old: Claim) -> Vec<Handed> {
        loop {
            // A claim for no task replaces the waiting one, which is then answered at once. It may overtake the other
            // on the way to the writer; so it is sent again until the old claim is answered.
            let _ = self.claim(lane, 0, &Able::default()).await;
            match tokio::time::timeout(WITHDRAW_PAUSE, &mut old).await {
                Ok(Ok(Ok(handed))) => return handed,
                Ok(_) => return Vec::new(),
                Err(_) => {}
            }
        }
    }

    /// Returns what the node can run in a lane.
    fn able(&self, lane: &str) -> Able {
        let tools = self.router.tools();
        let of_lane = || tools.iter().filter(|entry| entry.metadata.runtime == lane);
        let task_type = |entry: &Entry| format!("{TOOL}{}", entry.tool.name);
        let openings = of_lane().filter_map(|entry| Some((task_type(entry), self.router.opening(entry)?)));
        let types: BTreeSet<String> = of_lane().map(|entry| task_type(entry)).collect();
        let followed: BTreeSet<String> = of_lane().map(|entry| format!("{FOLLOW}{}", entry.source)).collect();
        // A lane without tools can run nothing, so it must not claim carried tasks either.
        let carries = (!types.is_empty()).then(|| CARRIES.to_owned());
        Able {
            capabilities: Arc::new(types.into_iter().chain(followed).chain(carries).collect()),
            openings: Arc::new(openings.collect()),
        }
    }

    /// Runs one attempt: a call that the claim caused, and whose ending ends the attempt.
    async fn attempt(self: Arc<Self>, handed: Handed) {
        let trial = Arc::new(Trial {
            worker: self.name(),
            task: handed.task.clone(),
            fence: handed.fence,
            ended: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let cancel = CancellationToken::new();
        let key = (handed.task.clone(), handed.fence);
        self.running().insert(key.clone(), (trial.clone(), cancel.clone()));
        let told = match self.request(&handed, &trial, cancel.clone()) {
            Some(request) => match self.router.call(request).await {
                Ok(answer) => {
                    self.go_on(&handed, &answer).await;
                    Some((Code::FailedPrecondition, false, answer.result.get().to_owned()))
                }
                Err(error) => Some((
                    Code::InvalidArgument,
                    false,
                    json!({"code": error.code, "message": error.message}).to_string(),
                )),
            },
            None => {
                let message = "the task's input was erased";
                Some((Code::FailedPrecondition, false, json!({"message": message}).to_string()))
            }
        };
        self.running().remove(&key);
        self.router.parked().changed();
        let Some((code, retryable, text)) = told.filter(|_| !trial.ended.load(Ordering::Acquire)) else {
            return;
        };
        if cancel.is_cancelled() {
            return;
        }
        if let Some((id, _)) = handed.call {
            // The call began with its claim, and nothing has ended it: its tool is gone.
            let end = End { id, outcome: LOST, output: None, took_us: 0, remote: Vec::new() };
            let _ = self.ledger.submit(Command::End { end, output: None, attempt: None }).await;
        }
        // The call was refused before it began, or could not be recorded, so the attempt is ended here.
        let Ok(error) = Payload::seal(&self.salt, JSON, text.as_bytes()) else { return };
        let wish = Wish::Fail(work::Fail {
            worker: self.name(),
            task: handed.task,
            fence: handed.fence,
            error,
            code: code.as_str().to_owned(),
            retryable,
        });
        // If the ledger has stopped, the next start ends the attempt.
        let _ = self.ledger.submit(self.command(wish)).await;
    }

    /// Makes the task that goes on where the tool's server answered with a task of its own. A crash before it is durable
    /// loses nothing: whoever looks at the first task makes it then.
    async fn go_on(&self, handed: &Handed, answer: &Response) {
        let (Some(handle), Some(theirs)) = (&handed.handle, given(&answer.result)) else { return };
        let name = handed.task_type.strip_prefix(TOOL);
        let arguments = handed.input.as_deref().and_then(|input| serde_json::from_str(input).ok());
        let (Some(entry), Some(arguments)) = (name.and_then(|name| self.router.tool(name)), arguments) else {
            return;
        };
        let wished = Wished {
            entry: &entry,
            actor: handed.actor.clone(),
            audience: &audience(handle),
            ttl_ms: handle.ttl_ms,
            arguments,
            cause: answer.record.as_ref().map(|record| record.event),
        };
        let id = followed::going_on(&handed.task);
        if let Err(refusal) = self.router.follow(id, &theirs, &wished).await {
            tracing::warn!(
                task = handed.task,
                code = refusal.code.as_str(),
                "a server's task is not followed"
            );
        }
    }

    /// Returns the request of an attempt's call; `None` if the task's input was erased.
    fn request(&self, handed: &Handed, trial: &Arc<Trial>, cancel: CancellationToken) -> Option<Request> {
        let asked = request(handed, trial, cancel)?;
        let Some(handle) = &handed.handle else { return Some(asked) };
        let client = Follower::new(self.router.parked().clone(), trial.clone(), audience(handle));
        Some(Request { client: Arc::new(client), ..asked })
    }

    /// Renews the leases of running attempts every third of a lease, and cancels those that should stop.
    async fn keep(&self, stopping: CancellationToken) {
        let mut checks = tokio::time::interval(CHECK_PAUSE);
        let mut renewed = tokio::time::Instant::now();
        while stopping.run_until_cancelled(checks.tick()).await.is_some() {
            let attempts: Vec<(String, u64)> = self.running().keys().cloned().collect();
            if attempts.is_empty() {
                renewed = tokio::time::Instant::now();
                continue;
            }
            let wish = Wish::Check(work::Check { worker: self.name(), attempts: attempts.clone() });
            let over = match self.ledger.submit(self.command(wish)).await {
                Ok(Ruling::Worked(worked)) => match *worked {
                    Worked::Checked(over) => over,
                    _ => Vec::new(),
                },
                Ok(_) => Vec::new(),
                Err(Stopped) => return,
            };
            for attempt in &over {
                if let Some((trial, cancel)) = self.running().get(attempt) {
                    trial.over.store(true, Ordering::Release);
                    cancel.cancel();
                }
            }
            if renewed.elapsed() < self.lease / 3 {
                continue;
            }
            renewed = tokio::time::Instant::now();
            for (task, fence) in attempts.into_iter().filter(|attempt| !over.contains(attempt)) {
                let wish =
                    Wish::Renew(work::Renew { worker: self.name(), task, fence, progress: None, log: None });
                if self.ledger.submit(self.command(wish)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn name(&self) -> String {
        format!("node/{}", self.runner)
    }

    fn command(&self, wish: Wish) -> Command {
        Command::Work(Box::new(Work { wish, actor: node(), cause: None, note: None }))
    }

    fn running(&self) -> MutexGuard<'_, HashMap<(String, u64), Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the request of an attempt's call; `None` if the task's input was erased.
fn request(handed: &Handed, trial: &Arc<Trial>, cancel: CancellationToken) -> Option<Request> {
    let input = handed.input.as_deref()?;
    let (name, arguments, follows) = match handed.task_type.strip_prefix(TOOL) {
        Some(name) => (name.to_owned(), input, None),
        None => {
            let Followed { name, arguments, follows } = serde_json::from_str(input).ok()?;
            (name, arguments.get(), Some(follows))
        }
    };
    let quoted = serde_json::to_string(&name).ok()?;
    let params = RawValue::from_string(format!(r#"{{"name":{quoted},"arguments":{arguments}}}"#)).ok()?;
    Some(Request {
        method: Method::ToolsCall,
        name,
        params: params.into(),
        meta: Meta { peer: handed.peer.clone(), follows, ..Meta::default() },
        caller: Caller { actor: handed.actor.clone(), scopes: vec![Scope::Call] },
        client: Arc::new(Nobody),
        cancel,
        cause: Some(handed.claimed.cid),
        attempt: Some(trial.clone()),
        begun: handed.call.clone(),
    })
}

/// The client of a task's call: it drops notifications and refuses requests.
pub struct Nobody;

impl Client for Nobody {
    fn notify(&self, _method: &str, _params: Value) {}

    fn request(&self, _method: &str, _params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let message = "a task has no caller that could be asked";
        Box::pin(std::future::ready(Err(RpcError::new(INVALID_REQUEST, message))))
    }

    fn audience(&self) -> Audience {
        Audience::default()
    }
}
