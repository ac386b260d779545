//! The line to a peer: its worker tools, asked over streams while it is connected.
//!
//! Invariants:
//! - a question ends in an answer, a refusal, or in nothing having been heard: it is never asked twice unasked;
//! - what the peer answers is read as strictly as anything from outside.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use tokio::sync::watch;

use crate::{
    block::{Cid, splice},
    router::codes::RATE_LIMITED,
    runtime::upstream::{self, Failure, Offered, OpenStream, Options, Reply, State, Transport, Upstream},
};

/// One question; a claim waits for some of it.
const ASK_MAX: Duration = Duration::from_secs(60);

/// The line to one peer. It is there while the peer is connected.
pub(super) struct Line(watch::Sender<Option<Upstream>>);

/// Tells when the peer can be asked.
pub(super) struct Ready(watch::Receiver<Arc<Offered>>);

/// What the peer answered.
pub(super) struct Told {
    content: Box<RawValue>,
    /// The peer's event of it.
    pub event: Option<Cid>,
}

/// Why there is no answer.
pub(super) enum Unsaid {
    /// Nothing was heard: the peer may have done what was asked, or not.
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
    /// Opens the line to a peer that is connected.
    pub(super) fn begin(&self, peer: &str, open: Arc<dyn OpenStream>) -> Ready {
        let upstream = Upstream::start(upstream::Settings {
            name: peer.to_owned(),
            transport: Transport::Stream { open },
            timeout: ASK_MAX,
        });
        let ready = Ready(upstream.offer());
        self.0.send_replace(Some(upstream));
        ready
    }

    /// Closes it: the peer is gone.
    pub(super) async fn end(&self) {
        if let Some(upstream) = self.0.send_replace(None) {
            upstream.stop().await;
        }
    }

    /// Waits until the peer can be asked.
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
                // The sender is ours.
                _ = lines.changed() => {}
            }
        }
    }

    /// Calls a tool of the peer, for the event of ours that `refs` names.
    pub(super) async fn ask(
        &self,
        tool: &str,
        arguments: &impl serde::Serialize,
        refs: Option<Cid>,
        within: Option<Duration>,
    ) -> Result<Told, Unsaid> {
        let upstream = self.0.borrow().clone().ok_or(Unsaid::Lost)?;
        let refs: Vec<String> = refs.iter().map(Cid::to_string).collect();
        let params =
            serde_json::to_string(&Params { name: tool, arguments, meta: json!({"io.cairn/refs": refs}) });
        let params = splice::raw(params.map_err(|err| refused("invalid_argument", err))?);
        let options = Options { timeout: within, ..Options::default() };
        match upstream.request("tools/call", params, options).await {
            Ok(Reply::Result(result)) => Told::of(&result),
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
            // It has been stopped: there will be another, or none.
            std::future::pending::<()>().await;
        }
    }
}

impl Told {
    fn of(result: &RawValue) -> Result<Self, Unsaid> {
        #[derive(Deserialize)]
        struct Answer {
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
        let answer: Answer = serde_json::from_str(result.get()).map_err(unreadable)?;
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
