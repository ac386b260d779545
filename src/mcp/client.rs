//! The caller's side of one running request, as a tool sees it.
//!
//! A tool may run on any task, but the library ties what is sent to a client to the task that handles the
//! request. So [`CallClient`] only queues, and [`relay`] sends from the handler's own task, which also
//! keeps everything a tool said ahead of its answer.

use std::{future::ready, pin::pin};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rmcp::{
    ErrorData, Peer, RoleServer, ServiceError,
    model::{CustomNotification, CustomRequest, ErrorCode, ServerNotification, ServerRequest},
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::router::{
    BoxFuture, Client, RpcError,
    audience::{Audience, Manner},
    codes::{INTERNAL_ERROR, METHOD_NOT_FOUND},
};

/// Messages of one request waiting to be sent to its client; later ones are dropped.
const QUEUE_MAX: usize = 256;

/// Log levels, least severe first (RFC 5424).
const LEVELS: &[&str] = &["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// Requests to a client, each with the capability that the client must have declared.
const ASKABLE: &[(&str, &str)] =
    &[("sampling/createMessage", "sampling"), ("elicitation/create", "elicitation"), ("roots/list", "roots")];

/// Which log lines the client wants.
#[derive(Clone, Copy, Debug)]
pub enum Logs {
    None,
    All,
    /// Lines from this index in [`LEVELS`] on.
    From(usize),
}

impl Logs {
    pub fn from_level(level: &str) -> Option<Self> {
        LEVELS.iter().position(|known| *known == level).map(Self::From)
    }

    /// Returns the name of the least severe level that is wanted, if any is.
    pub fn level(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::All => LEVELS.first().copied(),
            Self::From(least) => LEVELS.get(least).copied(),
        }
    }

    fn take(self, params: &Value) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::From(least) => params["level"]
                .as_str()
                .and_then(|level| LEVELS.iter().position(|known| *known == level))
                .is_some_and(|level| level >= least),
        }
    }
}

/// Something to send while a request runs.
pub enum Said {
    Note(ServerNotification),
    Ask(ServerRequest, oneshot::Sender<Result<Value, RpcError>>),
}

/// The handle through which a tool reaches its caller.
pub struct CallClient {
    said: mpsc::Sender<Said>,
    logs: Logs,
    audience: Audience,
    /// Whether it takes the handles of tasks.
    handles: bool,
}

impl CallClient {
    pub fn new(logs: Logs, audience: Audience) -> (Self, mpsc::Receiver<Said>) {
        let (said, heard) = mpsc::channel(QUEUE_MAX);
        (Self { said, logs, audience, handles: false }, heard)
    }

    /// Says whether the client takes the handles of tasks.
    pub fn with_handles(self, handles: bool) -> Self {
        Self { handles, ..self }
    }
}

impl Client for CallClient {
    fn notify(&self, method: &str, params: Value) {
        if method == "notifications/message" && !self.logs.take(&params) {
            return;
        }
        // Progress must be typed: by its token the library finds the stream it belongs to.
        let typed = (method == "notifications/progress")
            .then(|| serde_json::from_value(json!({"method": method, "params": params.clone()})).ok())
            .flatten();
        let notification = typed.unwrap_or_else(|| {
            ServerNotification::CustomNotification(CustomNotification::new(method, Some(params)))
        });
        // A full queue means a client that does not read: its progress is not worth waiting for.
        let _ = self.said.try_send(Said::Note(notification));
    }

    fn request(&self, method: &str, params: Value) -> BoxFuture<'_, Result<Value, RpcError>> {
        let capabilities: Value = serde_json::from_str(&self.audience.capabilities).unwrap_or_default();
        let declared =
            ASKABLE.iter().any(|(known, needs)| *known == method && capabilities.get(needs).is_some());
        let method = method.to_owned();
        Box::pin(async move {
            if self.audience.manner != Manner::Requests || !declared {
                return Err(cannot_be_asked(&method));
            }
            // The library's own types of these requests drop fields they do not know.
            let request = ServerRequest::CustomRequest(CustomRequest::new(method, Some(params)));
            let (reply, answer) = oneshot::channel();
            let gone = || RpcError::new(INTERNAL_ERROR, "the client is gone");
            self.said.send(Said::Ask(request, reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
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
    mut heard: mpsc::Receiver<Said>,
    peer: &Peer<RoleServer>,
    cancel: &CancellationToken,
) -> T {
    let mut call = pin!(call);
    let mut asking = FuturesUnordered::new();
    let answer = loop {
        tokio::select! {
            biased;
            Some(said) = heard.recv() => match said {
                Said::Note(notification) => note(peer, notification, cancel).await,
                Said::Ask(request, reply) => asking.push(async move {
                    // The tool may have stopped waiting, and then nobody needs the answer.
                    let _ = reply.send(ask(peer, request).await);
                }),
            },
            Some(()) = asking.next() => {}
            answer = &mut call => break answer,
        }
    };
    while let Ok(said) = heard.try_recv() {
        if let Said::Note(notification) = said {
            note(peer, notification, cancel).await;
        }
    }
    answer
}

/// Converts an error to the library's type. A code outside the type's range becomes an internal error.
pub fn to_library(error: RpcError) -> ErrorData {
    let code = i32::try_from(error.code).map_or(ErrorCode::INTERNAL_ERROR, ErrorCode);
    ErrorData::new(code, error.message, error.data)
}

async fn note(peer: &Peer<RoleServer>, notification: ServerNotification, cancel: &CancellationToken) {
    if !cancel.is_cancelled() {
        // A client that is gone hears nothing; its request is cancelled by the door.
        let _ = peer.send_notification(notification).await;
    }
}

async fn ask(peer: &Peer<RoleServer>, request: ServerRequest) -> Result<Value, RpcError> {
    match peer.send_request(request).await {
        Ok(result) => serde_json::to_value(result)
            .map_err(|_| RpcError::new(INTERNAL_ERROR, "the client's answer cannot be read")),
        Err(ServiceError::McpError(error)) => Err(RpcError {
            code: error.code.0.into(),
            message: error.message.into_owned(),
            data: error.data,
            record: None,
        }),
        Err(_) => Err(RpcError::new(INTERNAL_ERROR, "the client did not answer")),
    }
}
