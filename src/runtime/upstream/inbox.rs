//! The inbox of one connection: who waits for which answer, and what the upstream says unasked.
//!
//! Invariants:
//! - every waiting request gets one answer or one failure; a second answer is dropped and counted;
//! - delivering never waits: a caller that does not read its notifications loses them;
//! - the lock is held for single map operations, never across an await.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::value::RawValue;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot, watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    block::splice,
    router::{
        RpcError,
        codes::{INTERNAL_ERROR, METHOD_NOT_FOUND, PARSE_ERROR},
    },
    runtime::upstream::{
        Failure, Notification, Reply,
        watching::Updates,
        wire::{self, AnswerId, Garbage, Incoming},
    },
};

/// How often each list was said to have changed on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub tools: u64,
    pub prompts: u64,
    pub resources: u64,
}

impl Changes {
    pub fn all(&mut self) {
        self.tools += 1;
        self.prompts += 1;
        self.resources += 1;
    }
}

/// It cannot be told which caller a request of the upstream is meant for.
struct Ambiguous;

pub type Answer = Result<Reply, Failure>;

/// Where the notifications of a request go.
pub struct Sink {
    pub to: Option<mpsc::Sender<Notification>>,
    /// The caller's own progress token, which ours is changed back to.
    pub token: Option<Box<RawValue>>,
    /// Where the upstream's own requests go while this one is open; `None` if its caller cannot be asked.
    pub asked: Option<mpsc::Sender<Asked>>,
    /// The caller's session, if it has one: requests of one session may be answered for each other.
    pub session: Option<Arc<str>>,
}

/// A request of the upstream.
pub struct Asked {
    pub id: Box<RawValue>,
    pub method: String,
    pub params: Box<RawValue>,
}

/// What a server says outside of requests.
pub enum Said {
    Told(Notification),
    Asked(Asked),
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    sink: Sink,
}

pub struct Inbox {
    name: String,
    ids: AtomicU64,
    /// `None` once the connection has ended.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
    changes: watch::Sender<Changes>,
    strays: AtomicU64,
    updates: Updates,
    /// Takes what belongs to no request; `None` if that is for nobody.
    beside: Option<mpsc::Sender<Said>>,
    lost: CancellationToken,
    reason: OnceLock<String>,
}

impl Inbox {
    pub fn new(name: &str, updates: Updates, beside: Option<mpsc::Sender<Said>>) -> Self {
        Self {
            updates,
            beside,
            name: name.to_owned(),
            ids: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            changes: watch::Sender::new(Changes::default()),
            strays: AtomicU64::new(0),
            lost: CancellationToken::new(),
            reason: OnceLock::new(),
        }
    }

    /// A fresh id. No id is used twice on a connection.
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits for the answer to request `id`. Errors: `Gone` when the connection has ended.
    pub fn expect(&self, id: u64, sink: Sink) -> Result<oneshot::Receiver<Answer>, Failure> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        let map = waiting.as_mut().ok_or(Failure::Gone)?;
        map.insert(id, Waiting { answer, sink });
        Ok(receiver)
    }

    /// Stops waiting for `id`. Returns whether it was still unanswered.
    pub fn forget(&self, id: u64) -> bool {
        self.waiting().as_mut().is_some_and(|map| map.remove(&id).is_some())
    }

    /// Ends the requests in these messages as ones that nobody was asked.
    pub fn untaken(&self, messages: &[String]) {
        let ids = messages.iter().filter_map(|message| wire::id_of_request(message));
        for waiting in ids.filter_map(|id| self.waiting().as_mut()?.remove(&id)) {
            // A caller that has gone away needs no failure.
            let _ = waiting.answer.send(Err(Failure::Gone));
        }
    }

    /// Returns whether every later request ends with `Gone`.
    pub fn is_over(&self) -> bool {
        self.waiting().is_none()
    }

    /// Ends every waiting request with `failure`, and every later one with `Gone`.
    pub fn drain(&self, failure: impl Fn() -> Failure) {
        for (_, waiting) in self.waiting().take().into_iter().flatten() {
            // A caller that has gone away needs no failure.
            let _ = waiting.answer.send(Err(failure()));
        }
    }

    /// Marks this connection as lost. The first reason stands.
    pub fn lose(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into());
        self.lost.cancel();
    }

    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Waits until the connection is lost; returns why.
    pub async fn lost(&self) -> String {
        self.lost.cancelled().await;
        self.reason.get().cloned().unwrap_or_default()
    }

    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }

    /// Notes that any list may have changed without our hearing of it.
    pub fn all_changed(&self) {
        self.changes.send_modify(Changes::all);
    }

    /// Delivers what the upstream sent. `context` is the request whose response stream it came on.
    /// Returns the messages to send back.
    pub fn deliver(&self, text: &str, context: Option<u64>) -> Result<Vec<String>, Garbage> {
        let mut back = Vec::new();
        for message in wire::parse(text)? {
            match message {
                Incoming::Answer { id, reply } => self.conclude(id, context, Ok(reply)),
                Incoming::Malformed { id, why } => {
                    self.conclude(id, context, Err(Failure::Broken(why.to_owned())));
                }
                Incoming::Notification(notification) => self.notify(notification, context),
                Incoming::Request { id, method, .. } if method == "ping" => {
                    back.push(wire::answer(&id, &Ok(wire::empty())));
                }
                Incoming::Request { id, method, params } => {
                    back.extend(self.ask(Asked { id, method, params }, context));
                }
            }
        }
        Ok(back)
    }

    /// Hands a request of the upstream to the caller it is meant for. Returns the answer to send back if there is none.
    fn ask(&self, asked: Asked, context: Option<u64>) -> Option<String> {
        let refuse = |code, message: &str| Err(RpcError::new(code, message));
        if context.is_none() {
            self.updates.asks.store(true, Ordering::Relaxed);
        }
        let full = |asked: Asked| {
            let message = "the client is asked too much at once";
            Some(wire::answer(&asked.id, &refuse(INTERNAL_ERROR, message)))
        };
        let refusal = match (self.asks(context), &self.beside) {
            (Ok(Some(to)), _) => match to.try_send(asked) {
                Ok(()) => return None,
                Err(TrySendError::Full(asked) | TrySendError::Closed(asked)) => return full(asked),
            },
            (Ok(None), Some(beside)) => match beside.try_send(Said::Asked(asked)) {
                Ok(()) => return None,
                Err(TrySendError::Full(Said::Asked(asked)) | TrySendError::Closed(Said::Asked(asked))) => {
                    return full(asked);
                }
                Err(_) => return None,
            },
            (Ok(None), None) => refuse(METHOD_NOT_FOUND, "no client that is served here can be asked this"),
            (Err(Ambiguous), _) => refuse(
                INTERNAL_ERROR,
                "several clients share this connection, so it cannot be told whom this is for",
            ),
        };
        Some(wire::answer(&asked.id, &refusal))
    }

    /// Returns where a request goes: to the caller on whose response stream it came, else to the only caller that can
    /// be asked.
    fn asks(&self, context: Option<u64>) -> Result<Option<mpsc::Sender<Asked>>, Ambiguous> {
        let waiting = self.waiting();
        let Some(map) = waiting.as_ref() else { return Ok(None) };
        if let Some(context) = context {
            return Ok(map.get(&context).and_then(|waiting| waiting.sink.asked.clone()));
        }
        let mut able: Vec<(&u64, &Sink)> = map
            .iter()
            .map(|(id, waiting)| (id, &waiting.sink))
            .filter(|(_, sink)| sink.asked.is_some())
            .collect();
        able.sort_unstable_by_key(|(id, _)| **id);
        let Some((_, newest)) = able.last() else { return Ok(None) };
        let one = able.len() == 1
            || able.iter().all(|(_, sink)| sink.session.is_some() && sink.session == newest.session);
        if one { Ok(newest.asked.clone()) } else { Err(Ambiguous) }
    }

    /// Ends the request that an answer is for: the one it names; else the one on whose response it came; else, if it
    /// can be for no notification of ours, the only one that waits. What has an altered id is no answer.
    fn conclude(&self, id: AnswerId, context: Option<u64>, answer: Answer) {
        let (id, answer) = match (id, context) {
            (AnswerId::Ours(id), _) => (Some(id), answer),
            (AnswerId::Altered(id), _) => (Some(id), answer.and(Err(altered()))),
            (AnswerId::Absent | AnswerId::Unreadable, Some(context)) => (Some(context), answer),
            // Some servers have one id for all that they refuse unread.
            (AnswerId::Foreign, Some(context)) if matches!(answer, Ok(Reply::Error { .. })) => {
                (Some(context), answer)
            }
            (AnswerId::Foreign, Some(context)) => (Some(context), answer.and(Err(altered()))),
            (AnswerId::Unreadable, None) => (self.only(), answer),
            (AnswerId::Absent, None) if is_unread(&answer) => (self.only(), answer),
            (AnswerId::Absent | AnswerId::Foreign, None) => (None, answer),
        };
        let waiting = id.and_then(|id| self.waiting().as_mut()?.remove(&id));
        match waiting {
            // A caller that has gone away needs no answer.
            Some(waiting) => drop(waiting.answer.send(answer)),
            None => {
                let strays = self.strays.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::debug!(upstream = %self.name, strays, "answer to no open request dropped");
            }
        }
    }

    /// Returns the request that waits, if no other does.
    fn only(&self) -> Option<u64> {
        let waiting = self.waiting();
        let mut ids = waiting.as_ref()?.keys();
        ids.next().copied().filter(|_| ids.next().is_none())
    }

    fn notify(&self, notification: Notification, context: Option<u64>) {
        match notification.method.as_str() {
            "notifications/tools/list_changed" => self.changes.send_modify(|c| c.tools += 1),
            "notifications/prompts/list_changed" => self.changes.send_modify(|c| c.prompts += 1),
            "notifications/resources/list_changed" => {
                self.changes.send_modify(|c| c.resources += 1);
            }
            "notifications/resources/updated" => {
                let uri = splice::member(&notification.params, "uri").ok().flatten();
                let uri = uri.and_then(|uri| serde_json::from_str::<String>(uri.get()).ok());
                // Nobody listening is no fault.
                let _ = uri.map(|uri| self.updates.changed.send(uri.into()));
            }
            "notifications/progress" => self.progress(notification),
            _ => self.forward(notification, context),
        }
    }

    fn progress(&self, notification: Notification) {
        let Some(id) = wire::progress_of(&notification.params) else {
            return;
        };
        let waiting = self.waiting();
        let Some(Waiting { sink, .. }) = waiting.as_ref().and_then(|map| map.get(&id)) else {
            return;
        };
        let (Some(to), Some(token)) = (&sink.to, &sink.token) else {
            return;
        };
        if let Ok(params) = wire::with_token(&notification.params, token) {
            let _ = to.try_send(Notification { params, ..notification });
        }
    }

    /// Hands a notification to the request on whose stream it came. One that came on no stream of a request belongs to
    /// the only request that is open for a client; with several open, to the only client of the connection, or to none.
    fn forward(&self, notification: Notification, context: Option<u64>) {
        let waiting = self.waiting();
        let Some(map) = waiting.as_ref() else { return };
        let mut listening = map.values().filter_map(|waiting| waiting.sink.to.as_ref());
        let one = match context {
            Some(id) => map.get(&id).and_then(|waiting| waiting.sink.to.as_ref()),
            None => listening.next().filter(|_| listening.next().is_none()),
        };
        // A client that does not read loses what it is told.
        let _ = match (one, &self.beside) {
            (Some(to), _) => to.try_send(notification).is_ok(),
            (None, Some(beside)) => beside.try_send(Said::Told(notification)).is_ok(),
            (None, None) => false,
        };
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether an answer says that a message of ours could not be parsed.
fn is_unread(answer: &Answer) -> bool {
    matches!(answer, Ok(Reply::Error { code: PARSE_ERROR, .. }))
}

fn altered() -> Failure {
    Failure::Broken("its answer has another id than the request".to_owned())
}
