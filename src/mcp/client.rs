//! The caller's side of one running request, as a tool sees it.
//!
//! Invariants:
//! - a tool never waits for its client to read, but where it asks something;
//! - everything a tool said leaves ahead of its answer.

use std::{future::ready, pin::pin, sync::Arc};

use serde_json::{Value, json, value::RawValue};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    logs::Logs,
    outlet::Outlet,
    session::{Session, notification, raw_notification},
};
use crate::router::{
    BoxFuture, Client, RpcError,
    audience::{Audience, Manner},
    codes::{INTERNAL_ERROR, METHOD_NOT_FOUND},
};

/// The method of a log message.
const LOGGED: &str = "notifications/message";
/// Messages of one request waiting to be sent to its client; later ones are dropped.
const QUEUE_MAX: usize = 256;

/// Requests to a client, each with the capability that the client must have declared.
const ASKABLE: &[(&str, &str)] =
    &[("sampling/createMessage", "sampling"), ("elicitation/create", "elicitation"), ("roots/list", "roots")];

/// The handle through which a tool reaches its caller, or a server the client of its connection.
pub struct CallClient {
    said: mpsc::Sender<String>,
    /// What the client wants now.
    logs: Box<dyn Fn() -> Logs + Send + Sync>,
    audience: Audience,
    /// Where the client's answers come; `None` if it cannot be asked.
    session: Option<Arc<Session>>,
    /// Whether it takes the handles of tasks.
    handles: bool,
}

impl CallClient {
    pub fn new(
        logs: impl Fn() -> Logs + Send + Sync + 'static,
        audience: Audience,
        session: Option<Arc<Session>>,
    ) -> (Self, mpsc::Receiver<String>) {
        let (said, heard) = mpsc::channel(QUEUE_MAX);
        (Self { said, logs: Box::new(logs), audience, session, handles: false }, heard)
    }

    /// Says whether the client takes the handles of tasks.
    pub fn with_handles(self, handles: bool) -> Self {
        Self { handles, ..self }
    }
}

impl Client for CallClient {
    fn notify(&self, method: &str, params: Value) {
        if method == LOGGED && !(self.logs)().take(&params) {
            return;
        }
        // A full queue means a client that does not read: its progress is not worth waiting for.
        let _ = self.said.try_send(notification(method, Some(&params)));
    }

    fn tell(&self, method: &str, params: &RawValue) {
        let wanted = || (self.logs)().take(&serde_json::from_str(params.get()).unwrap_or_default());
        if method == LOGGED && !wanted() {
            return;
        }
        let _ = self.said.try_send(raw_notification(method, params.get()));
    }

    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let capabilities: Value = serde_json::from_str(&self.audience.capabilities).unwrap_or_default();
        let declared =
            ASKABLE.iter().any(|(known, needs)| *known == method && capabilities.get(needs).is_some());
        let able = self.audience.manner == Manner::Requests && declared;
        let Some(session) = self.session.as_ref().filter(|_| able) else {
            return Box::pin(ready(Err(cannot_be_asked(method))));
        };
        let message = json!({"jsonrpc": "2.0", "id": null, "method": method, "params": params});
        Box::pin(async move {
            let gone = || RpcError::new(INTERNAL_ERROR, "the client is gone");
            let mut question = session.question();
            let mut message = message;
            message["id"] = question.id.into();
            self.said.send(message.to_string()).await.map_err(|_| gone())?;
            let answer = session.end.run_until_cancelled(&mut question.answer).await;
            answer.and_then(Result::ok).unwrap_or_else(|| Err(gone()))
        })
    }

    fn audience(&self) -> Audience {
        self.audience.clone()
    }

    fn takes_handles(&self) -> bool {
        self.handles
    }
}

/// The handle of a request that wants nothing but its answer.
pub struct Silent {
    pub audience: Audience,
}

impl Client for Silent {
    fn notify(&self, _: &str, _: Value) {}

    fn request(&self, method: &str, _: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        Box::pin(ready(Err(cannot_be_asked(method))))
    }

    fn audience(&self) -> Audience {
        self.audience.clone()
    }
}

fn cannot_be_asked(method: &str) -> RpcError {
    RpcError::new(METHOD_NOT_FOUND, format!("the client cannot be asked {method}"))
}

/// Runs `call` to its end and sends on what it says meanwhile. Nothing is sent once `cancel` has fired.
pub async fn relay<T>(
    call: impl Future<Output = T>,
    mut heard: mpsc::Receiver<String>,
    outlet: &Outlet,
    cancel: &CancellationToken,
) -> T {
    let mut call = pin!(call);
    let answer = loop {
        tokio::select! {
            biased;
            Some(said) = heard.recv() => say(said, outlet, cancel).await,
            answer = &mut call => break answer,
        }
    };
    while let Ok(said) = heard.try_recv() {
        say(said, outlet, cancel).await;
    }
    answer
}

async fn say(said: String, outlet: &Outlet, cancel: &CancellationToken) {
    if !cancel.is_cancelled() {
        outlet.say(said).await;
    }
}
