//! One client's side of a conversation: what it declared, what it watches, what runs for it, and what it was asked.
//!
//! Invariants:
//! - what a session holds elsewhere ends with it, and so do its requests;
//! - a request that the client cancelled is not answered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::sync::{broadcast::error::RecvError, oneshot};
use tokio_util::sync::CancellationToken;

use super::{envelope::Answer, logs::Logs, outlet::Outlet};
use crate::router::{
    Change, Held, Router, RpcError,
    audience::{Audience, Manner},
    standing::Standing,
};

/// A session, or a pipe on which there may come one.
pub struct Session {
    /// What the handshake told; unset before one.
    pub opened: OnceLock<Opened>,
    /// Where what belongs to no request goes.
    pub outlet: Outlet,
    /// The resources that it subscribed to.
    watched: Mutex<HashMap<String, Held>>,
    /// The open requests, each under a number of its own.
    running: Mutex<HashMap<u64, Running>>,
    /// Who waits for the answers to what the client was asked.
    asked: Mutex<HashMap<u64, Asker>>,
    next: AtomicU64,
    told: AtomicBool,
    /// Ends the session when cancelled.
    pub end: CancellationToken,
}

/// What a client says of itself when it opens a session.
pub struct Opened {
    pub capabilities: Arc<str>,
    /// The revision that was agreed on.
    pub version: &'static str,
    /// Names the session. Whoever serves it alone watches when this is dropped.
    pub name: Arc<str>,
    /// The log lines that it wants.
    logs: Mutex<Logs>,
    /// How servers reach the client outside its requests.
    pub standing: Arc<Standing>,
}

impl Opened {
    pub fn new(capabilities: Arc<str>, version: &'static str) -> Self {
        let name = uuid::Uuid::now_v7().simple().to_string().into();
        Self { capabilities, version, name, logs: Mutex::new(Logs::All), standing: Arc::default() }
    }

    pub fn logs(&self) -> Logs {
        *lock(&self.logs)
    }

    pub fn set_logs(&self, logs: Logs) {
        *lock(&self.logs) = logs;
        self.standing.set_level(logs.level().unwrap_or_default());
    }

    /// Returns who is behind the requests of the session.
    pub fn audience(&self) -> Audience {
        Audience {
            capabilities: self.capabilities.clone(),
            log_level: self.logs().level().map(str::to_owned),
            session: Some(self.name.clone()),
            standing: Some(self.standing.clone()),
            manner: Manner::Requests,
        }
    }
}

struct Running {
    id: String,
    cancel: CancellationToken,
}

type Asker = oneshot::Sender<Result<Value, RpcError>>;

/// What a client was asked and has not answered. Nobody waits for the answer once this is dropped.
pub struct Question<'a> {
    session: &'a Session,
    pub id: u64,
    pub answer: oneshot::Receiver<Result<Value, RpcError>>,
}

impl Session {
    /// Makes one without a handshake.
    pub fn new(outlet: Outlet, end: CancellationToken) -> Self {
        Self {
            opened: OnceLock::new(),
            outlet,
            watched: Mutex::default(),
            running: Mutex::default(),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            told: AtomicBool::new(false),
            end,
        }
    }

    /// Returns what the session watches, locked.
    pub fn watched(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        lock(&self.watched)
    }

    /// Begins a request. Returns its number, and what cancels it.
    pub fn begin(&self, id: &str) -> (u64, CancellationToken) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cancel = self.end.child_token();
        lock(&self.running).insert(number, Running { id: id.to_owned(), cancel: cancel.clone() });
        (number, cancel)
    }

    /// Returns whether an open request has this id.
    pub fn runs(&self, id: &str) -> bool {
        lock(&self.running).values().any(|running| running.id == id)
    }

    /// Ends a request. Returns whether its answer is wanted.
    pub fn finish(&self, number: u64) -> bool {
        lock(&self.running).remove(&number).is_some()
    }

    /// Cancels the requests with this id. Returns their numbers.
    pub fn cancel(&self, id: &str) -> Vec<u64> {
        let gone: Vec<(u64, Running)> =
            lock(&self.running).extract_if(|_, running| running.id == id).collect();
        gone.iter().for_each(|(_, running)| running.cancel.cancel());
        gone.into_iter().map(|(number, _)| number).collect()
    }

    /// Makes a question, for which the client's answer can be waited.
    pub fn question(&self) -> Question<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (asker, answer) = oneshot::channel();
        lock(&self.asked).insert(id, asker);
        Question { session: self, id, answer }
    }

    /// Hands an answer of the client to whoever asked.
    pub fn answered(&self, Answer { id, outcome }: Answer) {
        // Some clients give numbers back as text.
        let asker = id.trim_matches('"').parse().ok().and_then(|id| lock(&self.asked).remove(&id));
        if let Some(asker) = asker {
            // The tool may have stopped waiting, and then nobody needs the answer.
            let _ = asker.send(outcome);
        }
    }

    /// Tells the client of changed lists and resources from now on, until the session ends. Returns whether it has
    /// begun to.
    pub fn watch(self: &Arc<Self>, router: &Router) -> bool {
        if self.opened.get().is_none() || self.told.swap(true, Ordering::Relaxed) {
            return false;
        }
        let (mut changes, mut updates) = (router.changes(), router.updates());
        let session = self.clone();
        tokio::spawn(self.end.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    received = changes.recv() => {
                        let Some(changed) = changed(received) else { return };
                        for change in changed {
                            session.outlet.tell(notification(list_changed(change), None)).await;
                        }
                    }
                    Ok(uri) = updates.recv() => if session.watched().contains_key(&*uri) {
                        let params = json!({"uri": &*uri});
                        session.outlet.tell(notification(UPDATED, Some(&params))).await;
                    },
                }
            }
        }));
        true
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        lock(&self.session.asked).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub const UPDATED: &str = "notifications/resources/updated";

/// Returns the notification of a changed list.
pub fn list_changed(change: Change) -> &'static str {
    match change {
        Change::Tools => "notifications/tools/list_changed",
        Change::Prompts => "notifications/prompts/list_changed",
        Change::Resources => "notifications/resources/list_changed",
    }
}

/// Returns the lists to announce: all of them if some changes were missed, `None` once the router is gone.
pub fn changed(received: Result<Change, RecvError>) -> Option<Vec<Change>> {
    match received {
        Ok(change) => Some(vec![change]),
        Err(RecvError::Lagged(_)) => Some(vec![Change::Tools, Change::Prompts, Change::Resources]),
        Err(RecvError::Closed) => None,
    }
}

/// Returns a notification's message.
pub fn notification(method: &str, params: Option<&Value>) -> String {
    match params {
        Some(params) => raw_notification(method, &params.to_string()),
        None => format!(r#"{{"jsonrpc":"2.0","method":{}}}"#, Value::from(method)),
    }
}

/// Returns a notification's message with params as they came.
pub fn raw_notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":{},"params":{params}}}"#, Value::from(method))
}
