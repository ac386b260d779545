//! Upstream servers: MCP servers behind this one, each a child process, a URL or a stream.
//!
//! Invariants:
//! - what an upstream offers and answers is kept as raw JSON, byte for byte;
//! - one task owns each upstream: it connects, follows its lists, and connects again when it is lost;
//! - every request ends in a reply or one `Failure`, within its timeout, whatever the upstream does;
//! - environment values, headers and URLs are in no error, log line or `Debug` text.

pub mod sse;
mod wire;
pub mod headers;
mod inbox;
mod child;
mod http;
pub mod wrapped;
pub mod stream;
mod link;
mod owner;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    router::BoxFuture,
    runtime::upstream::{link::Link, owner::Owner},
};

/// How an upstream is reached, and how long it may take.
#[derive(Clone)]
pub struct Settings {
    pub name: String,
    pub transport: Transport,
    /// The timeout of a request that names none.
    pub timeout: Duration,
}

#[derive(Clone)]
pub enum Transport {
    /// A process that speaks MCP on its standard input and output.
    Child {
        command: String,
        args: Vec<String>,
        /// Added to our own environment.
        env: BTreeMap<String, String>,
        directory: Option<PathBuf>,
    },
    /// Streamable HTTP.
    Http { url: String, headers: BTreeMap<String, String> },
    /// Frames on a stream that `open` opens, to a peer that understands our metadata.
    Stream { open: Arc<dyn OpenStream> },
}

/// A stream of bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Opens streams to one peer.
pub trait OpenStream: Send + Sync {
    /// Opens a stream. Errors: why it could not, as text for an operator.
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Duplex>, String>>;
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Connecting,
    Ready,
    /// Lost or never reached; it is tried again.
    Failed {
        message: String,
    },
}

/// The capabilities that an upstream declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    pub completions: bool,
    /// Whether it tells when its tools change; likewise below.
    pub tools_change: bool,
    pub prompts_change: bool,
    pub resources_change: bool,
}

/// The protocol that both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Revision 2026-07-28: no session, no handshake.
    Modern,
    /// A session opened by `initialize`, of the revision named.
    Session(&'static str),
}

impl Protocol {
    pub fn version(self) -> &'static str {
        match self {
            Self::Modern => wire::MODERN,
            Self::Session(version) => version,
        }
    }
}

/// What an upstream offers. While its state is not `Ready`, the other fields are those of its last connection.
#[derive(Clone, Debug, Default)]
pub struct Offered {
    pub state: State,
    pub protocol: Option<Protocol>,
    /// Its `serverInfo`.
    pub server: Option<Box<RawValue>>,
    pub capabilities: Capabilities,
    pub tools: Vec<Box<RawValue>>,
    pub prompts: Vec<Box<RawValue>>,
    pub resources: Vec<Box<RawValue>>,
    pub templates: Vec<Box<RawValue>>,
}

/// A notification that belongs to a request: its progress, under the token the caller gave, or a log message.
#[derive(Clone, Debug)]
pub struct Notification {
    pub method: String,
    pub params: Box<RawValue>,
}

#[derive(Debug, Default)]
pub struct Options {
    /// Replaces the upstream's own timeout.
    pub timeout: Option<Duration>,
    pub cancel: CancellationToken,
    /// The channel for notifications; those that find it full are dropped.
    pub notifications: Option<mpsc::Sender<Notification>>,
}

/// What an upstream answered.
#[derive(Clone, Debug)]
pub enum Reply {
    Result(Box<RawValue>),
    Error { code: i64, message: String, data: Option<Box<RawValue>> },
}

/// Why there is no reply. Each text continues a sentence that begins with the upstream's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was not asked, or did not take the request.
    #[error("is unavailable: {message}")]
    Unavailable { message: String },
    /// The connection ended before it was asked.
    #[error("is gone")]
    Gone,
    #[error("ended before it answered")]
    Died,
    #[error("did not answer in time")]
    TimedOut,
    #[error("was not waited for: the request was cancelled")]
    Cancelled,
    #[error("broke the protocol: {0}")]
    Broken(String),
    #[error("gave an answer that is too large")]
    TooLarge,
    /// It was not asked.
    #[error("takes no more than {max} bytes, and the request has {len}")]
    Oversize { len: usize, max: usize },
}

impl Failure {
    /// Returns whether the upstream may have begun the request.
    pub fn begun(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Gone | Self::Oversize { .. } => false,
            Self::Died | Self::TimedOut | Self::Cancelled | Self::Broken(_) | Self::TooLarge => true,
        }
    }
}

/// One upstream server. Clones share it; it ends when `stop` is called or the last one is dropped.
#[derive(Clone)]
pub struct Upstream {
    settings: Arc<Settings>,
    offered: watch::Receiver<Arc<Offered>>,
    link: watch::Receiver<Option<Arc<Link>>>,
    stopping: CancellationToken,
    _guard: Arc<DropGuard>,
}

impl Upstream {
    /// Starts to connect, and stays connected until it is stopped. Needs a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let (offered_to, offered) = watch::channel(Arc::default());
        let (link_to, link) = watch::channel(None);
        let stopping = CancellationToken::new();
        let owner = Owner::new(Arc::clone(&settings), offered_to, link_to, stopping.clone());
        // Ended by `stopping`; joined by `stop`, which sees its channels close.
        tokio::spawn(owner.run());
        let guard = Arc::new(stopping.clone().drop_guard());
        Self { settings, offered, link, stopping, _guard: guard }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Watches what the upstream offers.
    pub fn offer(&self) -> watch::Receiver<Arc<Offered>> {
        self.offered.clone()
    }

    /// Returns whether it is connected and has listed what it offers.
    pub fn is_ready(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Asks the upstream. `params` is a JSON object; its `_meta` is fitted to the upstream's revision.
    ///
    /// Safe to drop midway: the upstream is told that the request is cancelled, as with `cancel` and timeouts.
    pub async fn request(
        &self,
        method: &str,
        params: Box<RawValue>,
        options: Options,
    ) -> Result<Reply, Failure> {
        let limit = options.timeout.unwrap_or(self.settings.timeout);
        tokio::select! {
            biased;
            () = options.cancel.cancelled() => Err(Failure::Cancelled),
            answer = timeout(limit, self.ask(method, &params, options.notifications)) => {
                answer.unwrap_or(Err(Failure::TimedOut))
            }
        }
    }

    /// Ends the connection; a child process and its whole group have been killed when this returns.
    pub async fn stop(&self) {
        self.stopping.cancel();
        let mut offered = self.offered.clone();
        while offered.changed().await.is_ok() {}
    }

    async fn ask(
        &self,
        method: &str,
        params: &RawValue,
        notifications: Option<mpsc::Sender<Notification>>,
    ) -> Result<Reply, Failure> {
        let mut links = self.link.clone();
        let link = links.borrow_and_update().clone().ok_or_else(|| self.unavailable())?;
        let answer = link.request(method, params, notifications.clone()).await;
        if !(matches!(answer, Err(Failure::Unavailable { .. })) && link.expired()) {
            return answer;
        }
        // The server has forgotten the session and run nothing: it is asked again in the next one.
        let fresh = links.wait_for(|next| next.as_ref().is_some_and(|next| !next.expired())).await;
        let fresh = fresh.map_err(|_| self.unavailable())?.clone().ok_or_else(|| self.unavailable())?;
        fresh.request(method, params, notifications).await
    }

    fn unavailable(&self) -> Failure {
        let message = match &self.offered.borrow().state {
            State::Failed { message } => message.clone(),
            State::Connecting | State::Ready => "not connected yet".to_owned(),
        };
        Failure::Unavailable { message }
    }
}
