//! Sessions: how many there may be, whose they are, and which goes first.
//!
//! Invariants:
//! - at most [`SESSIONS_MAX`] exist; at the bound the longest idle one without an open stream makes room;
//! - a session answers only to the actor that opened it;
//! - no two requests of one session that have the same id are open at once: the library would answer only one.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use rmcp::{
    model::{ClientJsonRpcMessage, GetExtensions, ServerJsonRpcMessage},
    transport::streamable_http_server::session::{
        ServerSseMessage, SessionId, SessionManager,
        local::{LocalSessionManager, LocalSessionManagerError, SessionConfig},
    },
};

use super::envelope::Incoming;

/// Sessions open at once: each takes 66 KB, and twice that of a heap worn by thousands that came and went.
pub const SESSIONS_MAX: usize = 256;
/// How long a session without an open stream may be idle.
pub const IDLE_MAX: Duration = Duration::from_secs(300);
/// How often idle sessions are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("all {SESSIONS_MAX} sessions have open streams")]
    Full,
    #[error("session")]
    Library(#[from] LocalSessionManagerError),
}

/// The library's sessions, with a bound and owners.
pub struct Sessions {
    library: LocalSessionManager,
    known: Arc<Mutex<HashMap<SessionId, Known>>>,
}

struct Known {
    /// The actor's id; `None` until `initialize` has been read.
    owner: Option<String>,
    used: Instant,
    streams: usize,
    /// The ids of requests without an answer yet.
    asked: HashSet<String>,
}

/// Holds a request's id until it is dropped.
pub struct Claim {
    session: String,
    id: String,
    known: Arc<Mutex<HashMap<SessionId, Known>>>,
}

/// The id of a request whose answer is still awaited.
#[derive(Debug)]
pub struct Taken;

/// Counts a stream as open for as long as it lives.
pub struct Open {
    id: SessionId,
    known: Arc<Mutex<HashMap<SessionId, Known>>>,
}

impl Sessions {
    pub fn new() -> Self {
        let mut config = SessionConfig::default();
        // The library's clock does not see open streams; ours does.
        config.keep_alive = None;
        let mut library = LocalSessionManager::default();
        library.session_config = config;
        Self { library, known: Arc::default() }
    }

    /// Closes idle sessions, for ever. Safe to drop at any time.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            let now = tick.tick().await.into_std();
            self.close_idle(now).await;
        }
    }

    /// Closes every session that at `now` has done nothing for [`IDLE_MAX`].
    pub async fn close_idle(&self, now: Instant) {
        let idle =
            |session: &Known| session.streams == 0 && now.saturating_duration_since(session.used) >= IDLE_MAX;
        let gone: Vec<SessionId> =
            lock(&self.known).extract_if(|_, session| idle(session)).map(|(id, _)| id).collect();
        for id in gone {
            if let Err(err) = self.library.close_session(&id).await {
                tracing::warn!(%err, "an idle session did not close");
            }
        }
    }

    /// Returns how many sessions there are.
    pub fn count(&self) -> usize {
        lock(&self.known).len()
    }

    /// Returns whether `id` is a session of `actor`.
    pub fn owned(&self, id: &str, actor: &str) -> bool {
        lock(&self.known).get(id).is_some_and(|known| known.owner.as_deref() == Some(actor))
    }

    /// Returns whether there is room for one more, or a session that can make room.
    pub fn admits(&self) -> bool {
        let known = lock(&self.known);
        known.len() < SESSIONS_MAX || known.values().any(|session| session.streams == 0)
    }

    /// Claims a request's id, as JSON, in a session. Errors: another open request has it.
    pub fn claim(&self, session: &str, id: &str) -> Result<Claim, Taken> {
        if let Some(known) = lock(&self.known).get_mut(session)
            && !known.asked.insert(id.to_owned())
        {
            return Err(Taken);
        }
        Ok(Claim { session: session.to_owned(), id: id.to_owned(), known: self.known.clone() })
    }

    fn touch(&self, id: &SessionId) {
        if let Some(known) = lock(&self.known).get_mut(id) {
            known.used = Instant::now();
        }
    }

    /// Holds a stream of `id` open until the answer is dropped.
    pub fn open(&self, id: &SessionId) -> Open {
        if let Some(known) = lock(&self.known).get_mut(id) {
            known.used = Instant::now();
            known.streams += 1;
        }
        Open { id: id.clone(), known: self.known.clone() }
    }

    /// Removes the longest idle session if the table is full. Errors: none is idle.
    fn make_room(&self) -> Result<Option<SessionId>, SessionError> {
        let mut known = lock(&self.known);
        if known.len() < SESSIONS_MAX {
            return Ok(None);
        }
        let idle = known.iter().filter(|(_, session)| session.streams == 0);
        let longest = idle.min_by_key(|(_, session)| session.used).map(|(id, _)| id.clone());
        let longest = longest.ok_or(SessionError::Full)?;
        known.remove(&longest);
        Ok(Some(longest))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(known) = lock(&self.known).get_mut(self.session.as_str()) {
            known.asked.remove(&self.id);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(known) = lock(&self.known).get_mut(&self.id) {
            known.used = Instant::now();
            known.streams = known.streams.saturating_sub(1);
        }
    }
}

fn lock(known: &Mutex<HashMap<SessionId, Known>>) -> MutexGuard<'_, HashMap<SessionId, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn holding<S>(stream: S, open: Open) -> impl Stream<Item = ServerSseMessage> + Send + Sync + 'static
where
    S: Stream<Item = ServerSseMessage> + Send + Sync + 'static,
{
    stream.map(move |message| {
        let _ = &open;
        message
    })
}

impl SessionManager for Sessions {
    type Error = SessionError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionError> {
        if let Some(idle) = self.make_room()? {
            self.library.close_session(&idle).await?;
        }
        let (id, transport) = self.library.create_session().await?;
        let session = Known { owner: None, used: Instant::now(), streams: 0, asked: HashSet::new() };
        lock(&self.known).insert(id.clone(), session);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionError> {
        let asked = match &message {
            ClientJsonRpcMessage::Request(request) => request
                .request
                .extensions()
                .get::<http::request::Parts>()
                .and_then(|parts| parts.extensions.get::<Arc<Incoming>>()),
            _ => None,
        };
        if let (Some(known), Some(asked)) = (lock(&self.known).get_mut(id), asked) {
            known.owner = Some(asked.caller.actor.id.clone());
        }
        Ok(self.library.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionError> {
        Ok(self.library.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionError> {
        lock(&self.known).remove(id);
        Ok(self.library.close_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        let open = self.open(id);
        Ok(holding(self.library.create_stream(id, message).await?, open))
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), SessionError> {
        self.touch(id);
        Ok(self.library.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        let open = self.open(id);
        Ok(holding(self.library.create_standalone_stream(id).await?, open))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        let open = self.open(id);
        Ok(holding(self.library.resume(id, last_event_id).await?, open))
    }
}
