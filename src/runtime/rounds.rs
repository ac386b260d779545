//! Rounds: what a server asks in the way of one era, put to a client of the other.
//!
//! A server of revision 2026-07-28 answers `input_required`; a client in a session is then asked by requests, and the
//! server is called again with the answers. A server in a session asks by requests in mid-call; a client of revision
//! 2026-07-28 then gets `input_required`, and the open call waits here until that client calls again.
//!
//! Invariants:
//! - an open call is taken up once, only by the caller it belongs to and for what that caller asked before;
//! - at most [`WAITING_MAX`] calls of one upstream wait, each for [`WAIT_MAX`]; one that is given up is cancelled.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json, value::RawValue};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    block::splice,
    error::{Code, Refusal},
    router::{Client, Invocation, Method, RpcError, codes::INVALID_PARAMS},
    runtime::upstream::{Failure, Notification, Question, Reply},
};

/// Rounds of one call, after which its server asks without end.
pub const ROUNDS_MAX: usize = 32;
/// Questions of one round.
const QUESTIONS_MAX: usize = 32;
/// Open calls of one upstream that wait for their clients.
const WAITING_MAX: usize = 256;
/// How long an open call waits for its client.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The beginning of the states that name open calls here.
const STATE: &str = "cairn.";
/// The metadata key under which a server in a session may say what key its question is to have.
const INPUT_KEY: &str = "io.cairn/inputKey";
/// Bytes of such a key.
const KEY_MAX: usize = 64;

/// Returns whether a result asks for input in the way of revision 2026-07-28.
pub fn asks(result: &RawValue) -> bool {
    let kind = splice::member(result, "resultType").ok().flatten();
    kind.is_some_and(|kind| kind.get() == "\"input_required\"")
}

/// Asks a client what `result` asks for, one question after the other. Returns the params of the next round. Errors:
/// the client's own, or that the question is malformed.
pub async fn next_round(
    client: &dyn Client,
    params: &RawValue,
    result: &RawValue,
) -> Result<Box<RawValue>, RpcError> {
    let malformed = || RpcError::invalid_params("the server asks for input in a form that is not known");
    let asked: Value = serde_json::from_str(result.get()).map_err(|_| malformed())?;
    let none = Map::new();
    let requests = match asked.get("inputRequests") {
        None => &none,
        Some(requests) => requests.as_object().ok_or_else(malformed)?,
    };
    if requests.len() > QUESTIONS_MAX {
        return Err(malformed());
    }
    let mut responses = Map::new();
    for (key, request) in requests {
        let method = request["method"].as_str().ok_or_else(malformed)?;
        let params = request.get("params").cloned().unwrap_or_else(|| json!({}));
        responses.insert(key.clone(), client.request(method, params).await?);
    }
    let responses = splice::raw(Value::Object(responses).to_string());
    let state = asked.get("requestState").map(|state| splice::raw(state.to_string()));
    let mut set: Vec<(&str, &RawValue)> = vec![("inputResponses", &responses)];
    set.extend(state.as_deref().map(|state| ("requestState", state)));
    splice::edit(params, &set, |key| key == "requestState").map_err(|_| malformed())
}

/// A request to an upstream that goes on by itself. It is cancelled when this is dropped.
pub struct Exchange {
    pub answer: JoinHandle<Result<Reply, Failure>>,
    pub notifications: mpsc::Receiver<Notification>,
    pub questions: mpsc::Receiver<Question>,
    /// How many questions have been put so far.
    put: usize,
    /// What the upstream asks, by the key that its client answers under.
    open: Vec<(String, Question)>,
}

impl Exchange {
    pub fn new(
        answer: JoinHandle<Result<Reply, Failure>>,
        notifications: mpsc::Receiver<Notification>,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        Self { answer, notifications, questions, put: 0, open: Vec::new() }
    }

    /// Puts a question: under the key that its server wants, else under a number. Returns whether there is room for
    /// more.
    pub fn put(&mut self, question: Question) -> bool {
        self.put += 1;
        let wanted = wanted_key(&question.params).filter(|key| self.open.iter().all(|(open, _)| open != key));
        let key = wanted.unwrap_or_else(|| format!("input-{}", self.put));
        self.open.push((key, question));
        self.open.len() < QUESTIONS_MAX
    }

    /// Hands on what of `given` is asked for, each answer once. Returns whether a question is still open.
    pub fn answer(&mut self, given: &mut Answers) -> bool {
        for (key, question) in std::mem::take(&mut self.open) {
            match given.remove(&key) {
                // An upstream that has stopped waiting has answered, or is gone.
                Some(answer) => drop(question.answer.send(Ok(answer))),
                None => self.open.push((key, question)),
            }
        }
        !self.open.is_empty()
    }

    /// Returns the answer that asks the client for what is open, and to name `state` when it calls again.
    fn required(&self, state: &str) -> Box<RawValue> {
        let requests = self.open.iter().map(|(key, Question { method, params, .. })| {
            format!(r#"{}:{{"method":{},"params":{params}}}"#, splice::quoted(key), splice::quoted(method))
        });
        let requests = requests.collect::<Vec<_>>().join(",");
        splice::raw(format!(
            r#"{{"resultType":"input_required","inputRequests":{{{requests}}},"requestState":"{state}"}}"#
        ))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

/// A client's answers, by the keys of the questions.
pub type Answers = HashMap<String, Box<RawValue>>;

/// Returns the answers in a request's params. What is no object is no answer: its question stays open.
pub fn answers(params: &RawValue) -> Answers {
    let given = splice::member(params, "inputResponses").ok().flatten();
    let given: Option<Answers> = given.and_then(|given| serde_json::from_str(given.get()).ok());
    let mut given = given.unwrap_or_default();
    given.retain(|_, answer| answer.get().starts_with('{'));
    given
}

/// Returns the key that a server in a session gives its question in its metadata, if it does.
fn wanted_key(params: &RawValue) -> Option<String> {
    let meta = splice::member(params, "_meta").ok()??;
    let key: String = serde_json::from_str(splice::member(meta, INPUT_KEY).ok()??.get()).ok()?;
    (1..=KEY_MAX).contains(&key.len()).then_some(key)
}

/// Returns params without what belongs to rounds, as a server in a session takes them.
pub fn without_rounds(params: &RawValue) -> Option<Box<RawValue>> {
    splice::edit(params, &[], |key| matches!(key, "inputResponses" | "requestState")).ok()
}

/// Whose an open call is.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    actor: String,
    method: Method,
    name: String,
}

impl Owner {
    fn of(invocation: &Invocation) -> Self {
        Self {
            actor: invocation.caller.actor.id.clone(),
            method: invocation.method,
            name: invocation.name.clone(),
        }
    }
}

struct Waiting {
    owner: Owner,
    exchange: Exchange,
    since: Instant,
}

/// The open calls of one upstream that wait for their clients to call again.
#[derive(Default)]
pub struct Suspended(Mutex<HashMap<String, Waiting>>);

impl Suspended {
    /// Keeps an open call until its client calls again. Returns the answer that asks for that. Errors: too many wait.
    pub fn keep(&self, invocation: &Invocation, exchange: Exchange) -> Result<Box<RawValue>, Refusal> {
        let now = Instant::now();
        let mut waiting = self.waiting();
        waiting
            .retain(|_, one| now.duration_since(one.since) < WAIT_MAX && !one.exchange.answer.is_finished());
        if waiting.len() >= WAITING_MAX {
            let message = "too many calls of this upstream wait for an answer of their clients";
            return Err(Refusal::new(Code::ResourceExhausted, message).retryable());
        }
        // 122 bits of the operating system's randomness: nobody guesses the state of another's call.
        let state = format!("{STATE}{}", uuid::Uuid::new_v4().simple());
        let result = exchange.required(&state);
        waiting.insert(state, Waiting { owner: Owner::of(invocation), exchange, since: now });
        Ok(result)
    }

    /// Takes up the open call that a request names. Returns none if it names none. Errors: the call is gone, or
    /// another's.
    pub fn resume(&self, invocation: &Invocation) -> Result<Option<Exchange>, RpcError> {
        let Some(state) = splice::member(&invocation.params, "requestState").ok().flatten() else {
            return Ok(None);
        };
        let gone = || {
            RpcError::new(INVALID_PARAMS, "requestState names no call that waits here; call anew without it")
        };
        let state: String = serde_json::from_str(state.get()).map_err(|_| gone())?;
        let owner = Owner::of(invocation);
        let mut waiting = self.waiting();
        if waiting.get(&state).is_none_or(|one| one.owner != owner) {
            return Err(gone());
        }
        Ok(waiting.remove(&state).map(|one| one.exchange))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
