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

use super::client::Logs;
use crate::router::{Change, Held};

/// The state of a session.
pub struct Session {
    pub capabilities: Arc<str>,
    /// Names the session. Whoever serves it alone watches when this is dropped.
    pub name: Arc<str>,
    pub logs: Mutex<Logs>,
    /// The resources that it subscribed to.
    pub watched: Arc<Mutex<HashMap<String, Held>>>,
    pub open: CancellationToken,
    /// Ends the session's list watcher with the handler.
    pub _close: DropGuard,
}

impl Session {
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
