//! One session of a client: what it declared, what it watches, and how it is told.
//!
//! Invariant: what a session holds elsewhere ends with it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rmcp::{Peer, RoleServer, ServiceError};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::{CallClient, Logs, relay};
use crate::router::{
    Change, Held,
    audience::{Audience, Manner},
    standing::Standing,
};

/// The state of a session.
pub struct Session {
    pub capabilities: Arc<str>,
    /// Names the session. Whoever serves it alone watches when this is dropped.
    pub name: Arc<str>,
    pub logs: Arc<Mutex<Logs>>,
    /// How servers reach the client outside its requests.
    pub standing: Arc<Standing>,
    /// The resources that it subscribed to.
    pub watched: Arc<Mutex<HashMap<String, Held>>>,
    pub open: CancellationToken,
    /// Ends the session's list watcher with the handler.
    pub _close: DropGuard,
}

impl Session {
    /// Returns who is behind the requests of the session.
    pub fn audience(&self) -> Audience {
        let logs = *self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        Audience {
            capabilities: self.capabilities.clone(),
            log_level: logs.level().map(str::to_owned),
            session: Some(self.name.clone()),
            standing: Some(self.standing.clone()),
            manner: Manner::Requests,
        }
    }

    /// Lets servers reach the client outside its requests, until the session ends.
    pub fn reach(&self, peer: Peer<RoleServer>) {
        let logs = self.logs.clone();
        let wanted = move || *logs.lock().unwrap_or_else(PoisonError::into_inner);
        // The way to the client must not hold its session open.
        let audience = Audience { session: None, standing: None, ..self.audience() };
        let (client, heard) = CallClient::new(wanted, audience);
        self.standing.open(Arc::new(client));
        let open = self.open.clone();
        tokio::spawn(self.open.clone().run_until_cancelled_owned(async move {
            relay(std::future::pending::<()>(), heard, &peer, &open).await;
        }));
    }

    /// Returns what the session watches, locked.
    pub fn watched(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a client of a changed list.
pub async fn tell_change(peer: &Peer<RoleServer>, change: Change) -> Result<(), ServiceError> {
    match change {
        Change::Tools => peer.notify_tool_list_changed().await,
        Change::Prompts => peer.notify_prompt_list_changed().await,
        Change::Resources => peer.notify_resource_list_changed().await,
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
