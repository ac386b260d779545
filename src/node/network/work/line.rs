//! The line to a peer: calls its worker tools over streams while it is connected.
//!
//! Invariants:
//! - a request ends in an answer, in a refusal or as lost. It is never sent twice from here;
//! - an answer that cannot be parsed is a refusal with the code `unreadable`.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use tokio::sync::watch;

use crate::{
    block::{Cid, splice},
    router::{audience::Audience, codes::RATE_LIMITED},
    runtime::upstream::{
        self, Failure, Offered, OpenStream, Options, Reply, Sharing, State, Transport, Upstream,
    },
};

/// How long a request may take, the waiting time of a claim included.
const ASK_MAX: Duration = Duration::from_secs(60);

/// The line to one peer. It is open while the peer is connected.
pub(super) struct Line(watch::Sender<Option<Upstream>>);

/// Waits until the peer can be called.
pub(super) struct Ready(watch::Receiver<Arc<Offered>>);

/// The content of a peer's answer.
pub(super) struct PeerAnswer {
    content: Box<RawValue>,
    /// The event that the peer recorded for the call.
    pub event: Option<Cid>,
}

/// Why there is no answer.
pub(super) enum Unsaid {
    /// No answer came; the peer may have carried out the request or not.
    Lost,
    Refused(Refused),
}

#[derive(Debug, thiserror::Error, Deserialize)]
#[error("{code}: {message}")]
pub(super) struct Refused {
    pub code: String,
    pub message: String,
}

impl Default for Line {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Line {
    /// Opens the line to a connected peer.
    pub(super) fn begin(&self, peer: &str, open: Arc<dyn OpenStream>) -> Ready {
        let upstream = Upstream::start(upstream::Settings {
            name: peer.to_owned(),
            transport: Transport::Stream { open },
            capabilities: Audience::default().capabilities,
            sharing: Sharing::ByCapabilities,
            sessions_first: false,
            updates: Default::default(),
            timeout: ASK_MAX,
        });
        let ready = Ready(upstream.offer());
        self.0.send_replace(Some(upstream));
        ready
    }

    /// Closes the line, because the peer has disconnected.
    pub(super) async fn end(&self) {
        if let Some(upstream) = self.0.send_replace(None) {
            upstream.stop().await;
        }
    }

    /// Waits until the peer can be called, also over a line that is opened later.
    pub(super) async fn ready(&self) {
        let mut lines = self.0.subscribe();
        loop {
            let upstream = lines.borrow_and_update().clone();
            let ready = async {
                match upstream {
                    Some(upstream) => Ready(upstream.offer()).wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ready => return,
                // Its sender is a field of this line, so this cannot fail.
                _ = lines.changed() => {}
            }
        }
    }

    /// Calls a tool of the peer. `refs` names an event of ours to which the peer's event links. A rate limit counts as
    /// lost, so that it is tried again.
    pub(super) async fn ask(
        &self,
        tool: &str,
        arguments: &impl serde::Serialize,
        refs: Option<Cid>,
        within: Option<Duration>,
    ) -> Result<PeerAnswer, Unsaid> {
        let upstream = self.0.borrow().clone().ok_or(Unsaid::Lost)?;
        let refs: Vec<String> = refs.iter().map(Cid::to_string).collect();
        let params =
            serde_json::to_string(&Params { name: tool, arguments, meta: json!({"io.cairn/refs": refs}) });
        let params = splice::raw(params.map_err(|err| refused("invalid_argument", err))?);
        let options = Options { timeout: within, ..Options::default() };
        match upstream.request("tools/call", params, options).await {
            Ok(Reply::Result(result)) => PeerAnswer::of(&result),
            Ok(Reply::Error { code: RATE_LIMITED, .. }) => Err(Unsaid::Lost),
            Ok(Reply::Error { code, message, .. }) => Err(refused(&code.to_string(), message)),
            Err(failure @ (Failure::Oversize { .. } | Failure::TooLarge)) => {
                Err(refused("resource_exhausted", failure))
            }
            Err(
                Failure::Unavailable { .. }
                | Failure::Gone
                | Failure::Died
                | Failure::TimedOut
                | Failure::Cancelled
                | Failure::Broken(_),
            ) => Err(Unsaid::Lost),
        }
    }
}

#[derive(serde::Serialize)]
struct Params<'a, T> {
    name: &'a str,
    arguments: &'a T,
    #[serde(rename = "_meta")]
    meta: Value,
}

impl Ready {
    pub(super) async fn wait(&mut self) {
        if self.0.wait_for(|offered| offered.state == State::Ready).await.is_err() {
            // The upstream was stopped. Another line may be opened, so this one never gets ready.
            std::future::pending::<()>().await;
        }
    }
}

impl PeerAnswer {
    fn of(result: &RawValue) -> Result<Self, Unsaid> {
        #[derive(Deserialize)]
        struct ToolResult {
            #[serde(rename = "structuredContent")]
            content: Option<Box<RawValue>>,
            #[serde(rename = "isError", default)]
            is_error: bool,
            #[serde(rename = "_meta", default)]
            meta: Value,
        }
        #[derive(Deserialize)]
        struct Failed {
            error: Refused,
        }
        let answer: ToolResult = serde_json::from_str(result.get()).map_err(unreadable)?;
        let content = answer.content.ok_or_else(|| unreadable("no structured content"))?;
        if answer.is_error {
            let Failed { error } = serde_json::from_str(content.get()).map_err(unreadable)?;
            return Err(Unsaid::Refused(error));
        }
        let event = answer.meta["io.cairn/event"].as_str().and_then(|event| event.parse().ok());
        Ok(Self { content, event })
    }

    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Unsaid> {
        serde_json::from_str(self.content.get()).map_err(unreadable)
    }
}

fn unreadable(why: impl std::fmt::Display) -> Unsaid {
    refused("unreadable", why)
}

fn refused(code: &str, message: impl std::fmt::Display) -> Unsaid {
    Unsaid::Refused(Refused { code: code.to_owned(), message: message.to_string() })
}
