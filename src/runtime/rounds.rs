//! Rounds: what a server asks in the manner of one era, put to a client of the other.
//!
//! A server of revision 2026-07-28 answers `input_required`; a client in a session is then asked by requests, and the
//! server is called again with the answers. A server in a session asks by requests in mid-call; a client of revision
//! 2026-07-28 then gets `input_required`, and the open call waits here until that client calls again.
//!
//! Invariants:
//! - an open call is taken up once, by the same actor, for the same method, name and arguments; the same request again
//!   gets the same answer;
//! - at most `WAITING_MAX` calls of one upstream wait. One that has waited for `WAIT_MAX` is cancelled at the
//!   upstream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json, value::RawValue};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    block::splice,
    error::{Code, Refusal},
    router::{
        Client, Invocation, Method, RpcError,
        audience::canonical,
        codes::{INTERNAL_ERROR, INVALID_PARAMS},
    },
    runtime::{
        fleet::Lease,
        replays::{Before, Replays, Ticket},
        upstream::{Failure, Notification, Question, Reply},
    },
};

/// Rounds of one call; a server that asks for more is taken to ask without end.
pub const ROUNDS_MAX: usize = 32;
/// Questions of one round: of a server of 2026-07-28 more are malformed, of one in a session the rest are refused.
const QUESTIONS_MAX: usize = 32;
/// Open calls of one upstream that wait for their clients.
const WAITING_MAX: usize = 256;
/// Those of one actor among them.
const WAITING_EACH_MAX: usize = 64;
/// How long an open call waits for its client at least, before it makes room.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The beginning of the states that name open calls here.
const STATE: &str = "cairn.";
/// The metadata key under which a server in a session may name its question for clients of the other era.
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

/// A request to an upstream that outlives its client's request. It is cancelled when this is dropped.
pub struct Exchange {
    pub answer: JoinHandle<Result<Reply, Failure>>,
    pub notifications: mpsc::Receiver<Notification>,
    pub questions: mpsc::Receiver<Question>,
    /// How many questions have been put so far.
    put: usize,
    /// What the upstream asks, by the key that its client answers under.
    open: Vec<(String, Question)>,
    /// The time of the call on its connection.
    lease: Option<Lease>,
}

impl Exchange {
    pub fn new(
        answer: JoinHandle<Result<Reply, Failure>>,
        notifications: mpsc::Receiver<Notification>,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        Self { answer, notifications, questions, put: 0, open: Vec::new(), lease: None }
    }

    /// Holds a connection for as long as the request is open.
    pub fn holding(self, lease: Option<Lease>) -> Self {
        let mut held = self;
        held.lease = lease;
        held
    }

    /// Adds a question to those that are open: under the key that its server wants if that is free, else under a
    /// number. Returns whether there was room for it; else it is refused.
    pub fn put(&mut self, question: Question) -> bool {
        if self.open.len() >= QUESTIONS_MAX {
            let refusal = RpcError::new(INTERNAL_ERROR, "the client is asked too much at once");
            // An upstream that has stopped waiting needs no answer.
            let _ = question.answer.send(Err(refusal));
            return false;
        }
        self.put += 1;
        let wanted = wanted_key(&question.params).filter(|key| self.open.iter().all(|(open, _)| open != key));
        let key = wanted.unwrap_or_else(|| format!("input-{}", self.put));
        self.open.push((key, question));
        true
    }

    /// Hands the server those of the answers in `given` that it asked for, and takes them out. Returns whether a
    /// question is still open.
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

/// Who may take up an open call, and by which request.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    actor: String,
    method: Method,
    name: String,
    /// The digest of the arguments, whatever the order of their members.
    arguments: [u8; 32],
}

impl Owner {
    fn of(invocation: &Invocation) -> Self {
        let arguments = splice::member(&invocation.params, "arguments").ok().flatten();
        let arguments = arguments.and_then(|given| serde_json::from_str(given.get()).ok());
        let arguments: Value = arguments.unwrap_or_default();
        Self {
            actor: invocation.caller.actor.id.clone(),
            method: invocation.method,
            name: invocation.name.clone(),
            arguments: Sha256::digest(canonical(&arguments).as_bytes()).into(),
        }
    }
}

/// Returns a client's answers as one text, whatever the order of their members.
fn given(params: &RawValue) -> Arc<str> {
    let given = splice::member(params, "inputResponses").ok().flatten();
    canonical(&given.and_then(|given| serde_json::from_str(given.get()).ok()).unwrap_or_default())
}

/// An open call that waits for its client.
struct Waiting {
    owner: Owner,
    exchange: Exchange,
    since: Instant,
}

/// The open calls of one upstream that wait for their clients to call again.
#[derive(Default)]
pub struct Suspended {
    waiting: Mutex<HashMap<String, Waiting>>,
    replays: Replays,
}

/// What a request is to the calls that wait.
pub enum Resumed {
    /// It names none.
    Anew,
    /// It takes one up, whose answer the ticket keeps.
    Open { exchange: Exchange, ticket: Ticket },
    /// It took one up before, and the answer was lost on its way.
    Before(Before),
}

impl Suspended {
    /// Keeps an open call until its client calls again. Returns the answer that asks for that. Errors: too many wait.
    pub fn keep(&self, invocation: &Invocation, exchange: Exchange) -> Result<Box<RawValue>, Refusal> {
        self.sweep();
        let now = Instant::now();
        let mut waiting = self.waiting();
        let owner = Owner::of(invocation);
        let own = waiting.values().filter(|one| one.owner.actor == owner.actor).count();
        if waiting.len() >= WAITING_MAX || own >= WAITING_EACH_MAX {
            let message = "too many calls of this upstream wait for an answer of their clients";
            return Err(Refusal::new(Code::ResourceExhausted, message).retryable());
        }
        // 122 bits of the operating system's randomness: nobody guesses the state of another's call.
        let state = format!("{STATE}{}", uuid::Uuid::new_v4().simple());
        let result = exchange.required(&state);
        waiting.insert(state, Waiting { owner, exchange, since: now });
        Ok(result)
    }

    /// Takes up the open call that a request names, or finds the answer that the same request got before. Errors: the call
    /// is gone, or belongs to another.
    pub fn resume(&self, invocation: &Invocation) -> Result<Resumed, RpcError> {
        let Some(state) = splice::member(&invocation.params, "requestState").ok().flatten() else {
            return Ok(Resumed::Anew);
        };
        let gone = || {
            RpcError::new(INVALID_PARAMS, "requestState names no call that waits here; call anew without it")
        };
        let state: String = serde_json::from_str(state.get()).map_err(|_| gone())?;
        let owner = Owner::of(invocation);
        let request = Sha256::digest(format!("{owner:?}{}", given(&invocation.params))).into();
        let mut waiting = self.waiting();
        if waiting.get(&state).is_some_and(|one| one.owner == owner)
            && let Some(Waiting { exchange, .. }) = waiting.remove(&state)
        {
            return Ok(Resumed::Open { exchange, ticket: self.replays.open(state, request) });
        }
        self.replays.find(&state, &request).map(Resumed::Before).ok_or_else(gone)
    }

    /// Gives up the open calls that have waited for too long, and those whose upstream has answered.
    pub fn sweep(&self) {
        self.waiting().retain(|_, one| one.since.elapsed() < WAIT_MAX && !one.exchange.answer.is_finished());
        self.replays.sweep(WAIT_MAX);
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use crate::{
        block::splice::raw,
        runtime::{
            rounds::{Exchange, QUESTIONS_MAX, answers, without_rounds},
            upstream::{Failure, Question},
        },
    };

    fn exchange() -> Exchange {
        let (_, notifications) = mpsc::channel(1);
        let (_, questions) = mpsc::channel(1);
        Exchange::new(tokio::spawn(async { Err(Failure::Died) }), notifications, questions)
    }

    fn question(
        params: &str,
    ) -> (Question, oneshot::Receiver<Result<Box<serde_json::value::RawValue>, crate::router::RpcError>>)
    {
        let (answer, answered) = oneshot::channel();
        (Question { method: "roots/list".to_owned(), params: raw(params.to_owned()), answer }, answered)
    }

    #[tokio::test]
    async fn each_answer_is_for_one_question_and_objects_alone_are_answers() {
        let mut exchange = exchange();
        let (named, mut first) = question(r#"{"_meta":{"io.cairn/inputKey":"user"}}"#);
        let (plain, mut second) = question("{}");
        assert!(exchange.put(named) && exchange.put(plain));
        let mut given = answers(&raw(r#"{"inputResponses":{"user":{"a":1},"input-2":7}}"#.to_owned()));
        assert!(exchange.answer(&mut given), "what is no object is no answer");
        assert_eq!(first.try_recv().expect("answered").expect("a result").get(), r#"{"a":1}"#);
        assert!(second.try_recv().is_err());
        let (again, mut third) = question(r#"{"_meta":{"io.cairn/inputKey":"user"}}"#);
        assert!(exchange.put(again));
        assert!(exchange.answer(&mut given), "an answer is given once");
        assert!(third.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_finds_no_place_is_refused() {
        let mut exchange = exchange();
        for _ in 0..QUESTIONS_MAX {
            assert!(exchange.put(question("{}").0));
        }
        let (more, mut refused) = question("{}");
        assert!(!exchange.put(more));
        assert!(refused.try_recv().expect("answered").is_err());
    }

    #[test]
    fn a_server_in_a_session_gets_nothing_of_rounds() {
        let params =
            raw(r#"{"name":"t", "requestState":"s","inputResponses":{},"arguments":{ }}"#.to_owned());
        assert_eq!(without_rounds(&params).expect("an object").get(), r#"{"name":"t","arguments":{ }}"#);
    }
}
