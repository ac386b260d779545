//! Upstream servers: MCP servers behind this one, each a child process, a URL or a stream.
//!
//! Invariants:
//! - what an upstream offers and answers is kept as raw JSON, byte for byte;
//! - one task owns each upstream: it connects, follows its lists, and connects again when it is lost;
//! - every request ends in a reply or one `Failure`, within its timeout, whatever the upstream does;
//! - environment values, headers, tokens and URLs are in no error, log line or `Debug` text.

pub mod sse;
mod wire;
pub mod headers;
pub mod watching;
pub mod credentials;
mod inbox;
mod stderr;
pub mod leftovers;
pub mod warden;
mod child;
mod site;
mod reopening;
mod exchange;
mod older;
mod http;
pub mod wrapped;
pub mod stream;
mod asking;
mod link;
mod beside;
mod lists;
mod owner;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value, value::RawValue};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    block::splice,
    router::{BoxFuture, RpcError, audience::Audience, codes::INTERNAL_ERROR, standing::Heard},
    runtime::upstream::{
        beside::Beside,
        credentials::Credentials,
        link::Link,
        owner::Owner,
        watching::{Updates, Watched, Watching},
    },
};

pub use self::inbox::Changes;

/// How long an upstream may take to answer that it tells of a resource.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request waits for a connection that replaces another.
const REOPENING_MAX: Duration = Duration::from_secs(10);

/// How an upstream is reached, and how long it may take.
#[derive(Clone)]
pub struct Settings {
    pub name: String,
    pub transport: Transport,
    /// The timeout of a request that names none.
    pub timeout: Duration,
    /// The client capabilities that a session declares, as canonical JSON.
    pub capabilities: Arc<str>,
    pub sharing: Sharing,
    /// Whether a session is opened where the upstream speaks both eras.
    pub sessions_first: bool,
    /// Where it is told that a watched resource has changed.
    pub updates: Updates,
}

/// Which clients share a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Those with equal capabilities.
    #[default]
    ByCapabilities,
    /// None: each session has its own.
    BySession,
    /// All: there is one client only.
    All,
}

#[derive(Clone)]
pub enum Transport {
    /// A process that speaks MCP on its standard input and output.
    Child {
        command: String,
        args: Vec<String>,
        /// Its environment, beside the few variables that name the user and where programs are.
        env: BTreeMap<String, String>,
        directory: Option<PathBuf>,
        /// The user it runs as; by default ours.
        user: Option<String>,
    },
    /// Streamable HTTP.
    Http {
        url: String,
        headers: BTreeMap<String, String>,
        /// The tokens that requests carry, where the headers do not say who asks.
        credentials: Option<Arc<Credentials>>,
    },
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

impl Settings {
    /// Returns the options of this node's own requests.
    fn own(&self) -> Options {
        let capabilities = Arc::clone(&self.capabilities);
        Options { audience: Audience { capabilities, ..Audience::default() }, ..Options::default() }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Transport {
    /// Waits until requests would carry another token than before, for ever where they carry none.
    async fn renewed(&self) {
        match self {
            Self::Http { credentials: Some(credentials), .. } => credentials.changed().await,
            Self::Http { credentials: None, .. } | Self::Child { .. } | Self::Stream { .. } => {
                std::future::pending().await
            }
        }
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
    /// Whether it takes the level of the log messages that are wanted.
    pub logging: bool,
    /// Whether it tells when a resource that somebody subscribed to changes.
    pub subscriptions: bool,
    /// Whether it runs calls as tasks, in the way of sessions.
    pub tasks: bool,
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
    pub server: Option<Arc<RawValue>>,
    /// Its text for a client's model.
    pub instructions: Option<String>,
    /// The extensions that it declared, each with its settings.
    pub extensions: Map<String, Value>,
    pub capabilities: Capabilities,
    pub tools: Vec<Box<RawValue>>,
    pub prompts: Vec<Box<RawValue>>,
    pub resources: Vec<Box<RawValue>>,
    pub templates: Vec<Box<RawValue>>,
    /// How often it has said that a list changed, on this connection.
    pub announced: Changes,
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
    /// The channel for what the upstream asks while the request is open; without one it is refused.
    pub questions: Option<mpsc::Sender<Question>>,
    /// Who is behind the request.
    pub audience: Audience,
}

/// What an upstream asks of the caller of a request.
#[derive(Debug)]
pub struct Question {
    pub method: String,
    pub params: Box<RawValue>,
    /// Takes the answer. Dropped without one, the upstream hears that nobody answers.
    pub answer: oneshot::Sender<Result<Box<RawValue>, RpcError>>,
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
    watched: Arc<Watched>,
    beside: Arc<Beside>,
    _guard: Arc<DropGuard>,
}

impl Upstream {
    /// Starts to connect, and stays connected until it is stopped. Needs a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        Self::begin(settings, false)
    }

    /// Likewise, for one client alone: what the server says outside of requests is for that one.
    pub fn start_for_one(settings: Settings) -> Self {
        Self::begin(settings, true)
    }

    fn begin(settings: Settings, own: bool) -> Self {
        let settings = Arc::new(settings);
        let (offered_to, offered) = watch::channel(Arc::default());
        let (link_to, link) = watch::channel(None);
        let stopping = CancellationToken::new();
        let watched = Arc::new(Watched::default());
        let beside = Arc::new(Beside::new(own));
        let shared = (Arc::clone(&watched), Arc::clone(&beside));
        let owner = Owner::new(Arc::clone(&settings), offered_to, link_to, stopping.clone(), shared);
        // Ended by `stopping`; joined by `stop`, which sees its channels close.
        tokio::spawn(owner.run());
        let guard = Arc::new(stopping.clone().drop_guard());
        Self { settings, offered, link, stopping, watched, beside, _guard: guard }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Returns whether calls over this connection mirror arguments in headers.
    pub fn mirrors(&self) -> bool {
        let over_http = matches!(self.settings.transport, Transport::Http { .. });
        over_http && self.offered.borrow().protocol == Some(Protocol::Modern)
    }

    /// Watches what the upstream offers.
    pub fn offer(&self) -> watch::Receiver<Arc<Offered>> {
        self.offered.clone()
    }

    /// Returns whether it is connected and has listed what it offers.
    pub fn is_ready(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Waits until its first connection is ready or has failed. Returns at once if there has been one.
    pub async fn begun(&self) {
        let mut offered = self.offered.clone();
        let settled =
            offered.wait_for(|offered| offered.protocol.is_some() || offered.state != State::Connecting);
        // An upstream that has ended is told by its requests.
        let _ = settled.await;
    }

    /// Counts a client among those that this connection serves.
    pub fn serve(&self, audience: &Audience) {
        self.beside.serve(audience);
    }

    /// Tells the server what a client said outside its requests. Returns once the server has taken it, within a bound.
    pub async fn hear(&self, heard: Heard) {
        self.beside.hear(heard, self.is_ready()).await;
    }

    /// Waits until the server logs what its clients want, within a bound.
    pub async fn attuned(&self) {
        if self.beside.is_unsettled() && self.is_ready() {
            self.beside.settled().await;
        }
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
            answer = timeout(limit, self.ask(method, &params, &options)) => {
                answer.unwrap_or(Err(Failure::TimedOut))
            }
        }
    }

    /// Asks to be told when a resource changes, until what is returned is dropped. Errors: the upstream's own refusal,
    /// or why it could not be asked.
    pub async fn watch(&self, uri: &str) -> Result<Result<Watching, RpcError>, Failure> {
        let in_session = matches!(self.offered.borrow().protocol, Some(Protocol::Session(_)));
        if in_session {
            let params = splice::raw(format!(r#"{{"uri":{}}}"#, splice::quoted(uri)));
            let options = Options { timeout: Some(WATCH_TIMEOUT), ..Options::default() };
            if let Reply::Error { code, message, data } =
                self.request("resources/subscribe", params, options).await?
            {
                let data = data.and_then(|data| serde_json::from_str(data.get()).ok());
                return Ok(Err(RpcError { data, ..RpcError::new(code, message) }));
            }
        }
        let full = || RpcError::new(INTERNAL_ERROR, "too many resources of this upstream are watched");
        Ok(self.watched.watch(uri).ok_or_else(full))
    }

    /// Ends the connection; a child process and its whole group have been killed when this returns.
    pub async fn stop(&self) {
        self.stopping.cancel();
        let mut offered = self.offered.clone();
        while offered.changed().await.is_ok() {}
    }

    async fn ask(&self, method: &str, params: &RawValue, options: &Options) -> Result<Reply, Failure> {
        let link = self.link().await?;
        let answer = link.request(method, params, options).await;
        let again = match answer {
            Err(Failure::Unavailable { .. }) => link.expired(),
            Err(Failure::Gone) => true,
            _ => false,
        };
        if !again {
            return answer;
        }
        // The server has forgotten the session, or ended before it was given the request: it has run nothing, and is
        // asked again in the next one.
        self.link().await?.request(method, params, options).await
    }

    /// Returns the link in use, or the next one while that of before is being replaced: over HTTP, where sessions are
    /// forgotten, and of a process that is started again.
    async fn link(&self) -> Result<Arc<Link>, Failure> {
        let (mut links, mut offered) = (self.link.clone(), self.offered.clone());
        if matches!(self.settings.transport, Transport::Stream { .. }) {
            return links.borrow_and_update().clone().ok_or_else(|| self.unavailable());
        }
        let is_over = |offered: &Arc<Offered>| match offered.state {
            State::Failed { .. } => true,
            State::Connecting => offered.protocol.is_none(),
            State::Ready => false,
        };
        let next = async {
            tokio::select! {
                biased;
                link = links.wait_for(|link| link.as_ref().is_some_and(|link| !link.is_over())) => {
                    link.ok().and_then(|link| link.clone())
                }
                _ = offered.wait_for(is_over) => None,
            }
        };
        timeout(REOPENING_MAX, next).await.ok().flatten().ok_or_else(|| self.unavailable())
    }

    fn unavailable(&self) -> Failure {
        let message = match &self.offered.borrow().state {
            State::Failed { message } => message.clone(),
            State::Connecting | State::Ready => "not connected yet".to_owned(),
        };
        Failure::Unavailable { message }
    }
}
