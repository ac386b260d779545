//! Sessions over HTTP: how many there may be, whose they are, and which goes first.
//!
//! Invariants:
//! - at most [`SESSIONS_MAX`] exist; at the bound the longest idle one without an open stream makes room;
//! - a session answers only to the actor that opened it;
//! - one that is closed cancels what runs for it and ends its streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    outlet::{Outlet, Streams},
    session::Session,
};

/// Sessions open at once.
pub const SESSIONS_MAX: usize = 256;
/// How long a session without an open stream may be idle.
pub const IDLE_MAX: Duration = Duration::from_secs(300);
/// How often idle sessions are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Every session there is.
#[derive(Clone, Default)]
pub struct Sessions {
    known: Arc<Mutex<HashMap<String, Known>>>,
}

struct Known {
    owner: String,
    used: Instant,
    /// Its streams that are open.
    open: usize,
    served: Served,
    /// Ends the session when dropped.
    _end: DropGuard,
}

/// A session, and its streams.
#[derive(Clone)]
pub struct Served {
    pub session: Arc<Session>,
    pub streams: Arc<Streams>,
}

/// Counts a stream as open for as long as it lives.
pub struct Open {
    id: String,
    sessions: Sessions,
}

impl Sessions {
    /// Closes idle sessions, for ever. Safe to drop at any time.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            self.close_idle(tick.tick().await.into_std());
        }
    }

    /// Closes every session that at `now` has done nothing for [`IDLE_MAX`].
    pub fn close_idle(&self, now: Instant) {
        let idle = |known: &Known| known.open == 0 && now.saturating_duration_since(known.used) >= IDLE_MAX;
        self.lock().retain(|_, known| !idle(known));
    }

    /// Returns how many sessions there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Returns the session with this id, if it is one of `actor`.
    pub fn of(&self, id: &str, actor: &str) -> Option<Served> {
        let mut known = self.lock();
        let known = known.get_mut(id).filter(|known| known.owner == actor)?;
        known.used = Instant::now();
        Some(known.served.clone())
    }

    /// Opens a session, which ends with `shutdown`. Returns its id; none if all others have open streams.
    pub fn create(&self, owner: &str, shutdown: &CancellationToken) -> Option<(String, Served)> {
        // Whoever knows the id of another's session could speak in it where all callers are one.
        let mut random = [0; 16];
        getrandom::fill(&mut random).ok()?;
        let id = HEXLOWER.encode(&random);
        let streams = Arc::new(Streams::new());
        let end = shutdown.child_token();
        let session = Arc::new(Session::new(Outlet::Streams(streams.clone(), 0), end.clone()));
        let served = Served { session, streams };
        let mut known = self.lock();
        if known.len() >= SESSIONS_MAX {
            let idle = known.iter().filter(|(_, known)| known.open == 0);
            let longest = idle.min_by_key(|(_, known)| known.used).map(|(id, _)| id.clone())?;
            known.remove(&longest);
        }
        let owner = owner.to_owned();
        let fresh =
            Known { owner, used: Instant::now(), open: 0, served: served.clone(), _end: end.drop_guard() };
        known.insert(id.clone(), fresh);
        Some((id, served))
    }

    /// Closes a session.
    pub fn close(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Holds a stream of a session open until the answer is dropped.
    pub fn open(&self, id: &str) -> Open {
        if let Some(known) = self.lock().get_mut(id) {
            known.used = Instant::now();
            known.open += 1;
        }
        Open { id: id.to_owned(), sessions: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(known) = self.sessions.lock().get_mut(&self.id) {
            known.used = Instant::now();
            known.open = known.open.saturating_sub(1);
        }
    }
}
