//! Handles: what tools say of being run as tasks, and what running tasks ask of the clients that follow them.
//!
//! Invariants:
//! - a question is put under a key that no other question of its task has, over the task's whole life;
//! - a question is answered once, and gone when whoever asked it is;
//! - at most `QUESTIONS_MAX` questions of one task are open.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::{
    router::{
        BoxFuture, Client, RpcError,
        audience::Audience,
        codes::{INTERNAL_ERROR, METHOD_NOT_FOUND},
        trial::Trial,
    },
    words::words,
};

/// The metadata by which messages of sessions name the task that they belong to.
pub const RELATED: &str = "io.modelcontextprotocol/related-task";

/// Open questions of one task; more are refused.
const QUESTIONS_MAX: usize = 32;

words! {
    /// What a tool's definition says of running it as a task (`execution.taskSupport`).
    #[derive(Default)]
    pub enum TaskSupport {
        /// It says nothing.
        #[default]
        Unsaid = "unsaid",
        Forbidden = "forbidden",
        Optional = "optional",
        Required = "required",
    }
}

impl TaskSupport {
    /// Reads a tool's definition. What is none of the known words says nothing.
    pub fn of(definition: &Value) -> Self {
        let said = definition["execution"]["taskSupport"].as_str();
        said.and_then(Self::parse).unwrap_or_default()
    }
}

/// A question that a running task asks its client.
struct Open {
    key: String,
    method: String,
    params: Value,
    answer: oneshot::Sender<Result<Value, RpcError>>,
}

/// A question as its client gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub key: String,
    pub method: String,
    pub params: Value,
}

/// The open questions of the tasks that this process runs.
pub struct Parked {
    open: Mutex<HashMap<String, Vec<Open>>>,
    /// Counts changes: of questions, and of attempts that ended.
    changes: watch::Sender<u64>,
}

impl Default for Parked {
    fn default() -> Self {
        Self { open: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Parked {
    /// Returns what a task asks now, in the order in which it asked.
    pub fn questions(&self, task: &str) -> Vec<Question> {
        let open = self.open();
        let of_task = open.get(task).into_iter().flatten();
        of_task
            .map(|open| Question {
                key: open.key.clone(),
                method: open.method.clone(),
                params: open.params.clone(),
            })
            .collect()
    }

    /// Answers a question. An answer to what is not asked, or is answered already, changes nothing.
    pub fn answer(&self, task: &str, key: &str, answer: Result<Value, RpcError>) {
        if let Some(open) = self.take(task, key) {
            // Whoever asked may have stopped waiting.
            let _ = open.answer.send(answer);
        }
    }

    /// Counts what may have changed how a task looks to its client.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells those who wait that a task may look different now.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    async fn ask(&self, task: &str, question: Question) -> Result<Value, RpcError> {
        let Question { key, method, params } = question;
        let (answer, answered) = oneshot::channel();
        {
            let mut open = self.open();
            let of_task = open.entry(task.to_owned()).or_default();
            if of_task.len() >= QUESTIONS_MAX {
                return Err(RpcError::new(INTERNAL_ERROR, "the client is asked too much at once"));
            }
            of_task.push(Open { key: key.clone(), method, params, answer });
        }
        self.changed();
        let _asked = Asked { parked: self, task, key: &key };
        answered.await.unwrap_or_else(|_| Err(RpcError::internal()))
    }

    fn take(&self, task: &str, key: &str) -> Option<Open> {
        let mut open = self.open();
        let of_task = open.get_mut(task)?;
        let at = of_task.iter().position(|open| open.key == key)?;
        let taken = of_task.remove(at);
        if of_task.is_empty() {
            open.remove(task);
        }
        drop(open);
        self.changed();
        Some(taken)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Vec<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question as long as somebody waits for its answer.
struct Asked<'a> {
    parked: &'a Parked,
    task: &'a str,
    key: &'a str,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.parked.take(self.task, self.key);
    }
}

/// The client of an attempt at a task that a client follows: what it is asked waits until that client looks.
pub struct Follower {
    parked: Arc<Parked>,
    trial: Arc<Trial>,
    audience: Audience,
    asked: AtomicU64,
}

impl Follower {
    pub fn new(parked: Arc<Parked>, trial: Arc<Trial>, audience: Audience) -> Self {
        Self { parked, trial, audience, asked: AtomicU64::new(0) }
    }
}

impl Client for Follower {
    fn notify(&self, _method: &str, _params: Value) {}

    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let method = method.to_owned();
        Box::pin(async move {
            if !self.audience.answers(&method) {
                let message = "the client did not declare that it can be asked this";
                return Err(RpcError::new(METHOD_NOT_FOUND, message));
            }
            let mut params = params;
            // A server's own name of its task is not for our client.
            if let Some(meta) = params.get_mut("_meta").and_then(Value::as_object_mut) {
                meta.remove(RELATED);
            }
            let n = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            // Each attempt has a fence of its own, so no key comes twice.
            let key = format!("input-{}-{n}", self.trial.fence);
            self.parked.ask(&self.trial.task, Question { key, method, params }).await
        })
    }

    fn audience(&self) -> Audience {
        self.audience.clone()
    }

    fn takes_handles(&self) -> bool {
        true
    }

    /// When the node stops, what runs elsewhere goes on, and the next attempt follows it.
    fn abandons(&self) -> bool {
        self.trial.over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool};

    use serde_json::json;

    use crate::router::{
        Client,
        audience::{Audience, Manner},
        codes::METHOD_NOT_FOUND,
        handles::{Follower, Parked, QUESTIONS_MAX, TaskSupport},
        trial::Trial,
    };

    fn follower(parked: &Arc<Parked>) -> Arc<Follower> {
        let trial = Trial {
            worker: "w".into(),
            task: "t".into(),
            fence: 3,
            ended: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        let audience = Audience {
            capabilities: r#"{"elicitation":{}}"#.into(),
            manner: Manner::Requests,
            ..Audience::default()
        };
        Arc::new(Follower::new(parked.clone(), Arc::new(trial), audience))
    }

    #[tokio::test]
    async fn a_question_waits_for_its_answer_and_leaves_with_whoever_asked() {
        let parked = Arc::new(Parked::default());
        let client = follower(&parked);
        let asking = |n: u64| {
            let client = client.clone();
            tokio::spawn(async move { client.request("elicitation/create", json!({"n": n})).await })
        };
        let mut changes = parked.changes();
        let (first, second) = (asking(1), asking(2));
        changes.wait_for(|_| parked.questions("t").len() == 2).await.expect("the parked are there");
        let keys: Vec<String> = parked.questions("t").into_iter().map(|question| question.key).collect();
        assert_eq!(keys, ["input-3-1", "input-3-2"]);
        parked.answer("t", "nobody asked this", Ok(json!({})));
        parked.answer("other", &keys[0], Ok(json!({})));
        assert_eq!(parked.questions("t").len(), 2, "what is not asked is not answered");
        parked.answer("t", &keys[0], Ok(json!({"action": "accept"})));
        parked.answer("t", &keys[0], Ok(json!({"action": "decline"})));
        let told = first.await.expect("no panic").expect("an answer");
        assert_eq!(told, json!({"action": "accept"}), "a question is answered once");
        second.abort();
        changes.wait_for(|_| parked.questions("t").is_empty()).await.expect("the parked are there");
    }

    #[tokio::test]
    async fn what_a_client_did_not_declare_and_what_is_too_much_is_refused() {
        let parked = Arc::new(Parked::default());
        let client = follower(&parked);
        let refused = client.request("roots/list", json!({})).await.expect_err("it is not declared");
        assert_eq!(refused.code, METHOD_NOT_FOUND);
        let mut changes = parked.changes();
        for _ in 0..QUESTIONS_MAX {
            let client = client.clone();
            tokio::spawn(async move { client.request("elicitation/create", json!({})).await });
        }
        changes.wait_for(|_| parked.questions("t").len() == QUESTIONS_MAX).await.expect("they are there");
        assert!(client.request("elicitation/create", json!({})).await.is_err());
        assert_eq!(parked.questions("t").len(), QUESTIONS_MAX);
    }

    #[test]
    fn an_unknown_word_of_support_says_nothing() {
        let of = |support| TaskSupport::of(&json!({"execution": {"taskSupport": support}}));
        assert_eq!(of(json!("required")), TaskSupport::Required);
        assert_eq!(of(json!("sometimes")), TaskSupport::Unsaid);
        assert_eq!(of(json!(7)), TaskSupport::Unsaid);
        assert_eq!(TaskSupport::of(&json!({})), TaskSupport::Unsaid);
    }
}
