//! Steering: a running node under another configuration, without a restart and without losing a call.
//!
//! Invariants:
//! - a configuration is taken as a whole or not at all: a fault of it, or of a file that it names, changes nothing;
//! - what cannot be changed while the node runs stays as it was, and is told;
//! - one change at a time.

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;
use tokio::sync::Mutex;

use super::{
    lanes, recording,
    roster::{Applied, Roster, UpstreamStatus},
    tuning,
};
use crate::{
    config::{Config, ConfigError, Overrides},
    ledger::Ledger,
    router::{Offering, Router},
};

/// Puts a checked configuration in force at a door.
pub type Commit = Box<dyn FnOnce() + Send>;
/// Checks a configuration for a door. Errors: why it cannot be used, for an operator.
pub type Prepare = Box<dyn Fn(&Config) -> Result<Commit, String> + Send + Sync>;
/// Makes what the node's own tools offer.
pub type OwnOffer = Box<dyn Fn(bool) -> Offering + Send + Sync>;

/// Where a configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    pub path: Option<PathBuf>,
    pub overrides: Overrides,
}

/// A node that can be given another configuration.
pub struct Steering {
    source: Source,
    door: &'static str,
    prepare: Prepare,
    parts: Parts,
    config: Mutex<Config>,
}

/// The parts of a node that a configuration changes.
pub struct Parts {
    pub ledger: Ledger,
    pub router: Router,
    pub roster: Arc<Roster>,
    pub own: Option<OwnOffer>,
}

/// What another configuration has changed.
#[derive(Debug, Serialize)]
pub struct Reloaded {
    pub upstreams: Applied,
    /// The settings that differ and are taken at the next start.
    pub at_next_start: Vec<&'static str>,
}

impl Source {
    /// Reads the configuration.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.path.as_deref(), std::env::vars(), &self.overrides)
    }
}

impl Steering {
    pub fn new(source: Source, config: Config, door: &'static str, prepare: Prepare, parts: Parts) -> Self {
        Self { source, door, prepare, parts, config: Mutex::new(config) }
    }

    /// Returns the configuration file, if there is one.
    pub fn file(&self) -> Option<PathBuf> {
        let path = self.source.path.as_ref()?;
        Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    }

    /// Returns what is wrong with a text as the configuration file; empty if nothing is.
    pub fn faults(&self, text: &str) -> Vec<String> {
        match Config::parse(text, std::env::vars(), &self.source.overrides) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
            Err(err) => vec![err.to_string()],
        }
    }

    /// Reads the configuration again and puts it in force. Tokens and keys are read again, too. Errors: why everything
    /// stays as it was.
    ///
    /// Must not be dropped midway: a part would be changed and another not.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let mut now = self.config.lock().await;
        let read = self.source.load().map_err(|err| told(&err))?;
        let (next, at_next_start) = read.in_place_of(&now).map_err(|err| told(&err))?;
        let commit = (self.prepare)(&next)?;
        let Parts { ledger, router, roster, own } = &self.parts;
        let recorded = recording::configured(ledger, self.door, &next).await;
        recorded.map_err(|err| format!("it cannot be recorded: {}", told(&err)))?;
        commit();
        router.tune(lanes(&next), tuning(&next));
        router.govern(next.rights(true));
        if let Some(own) = own {
            router.put(own(next.finds())).await.map_err(|err| told(&err))?;
        }
        let upstreams = roster.apply(&next.upstream).await;
        *now = next;
        Ok(Reloaded { upstreams, at_next_start })
    }

    /// The same for an operator who sent a signal: the log says what came of it.
    pub async fn reload_and_tell(&self) {
        match self.reload().await {
            Ok(Reloaded { upstreams: Applied { added, removed, replaced, kept }, at_next_start }) => {
                tracing::info!(?added, ?removed, ?replaced, kept = kept.len(), "configuration reloaded");
                if !at_next_start.is_empty() {
                    let settings = at_next_start.join(", ");
                    tracing::warn!(%settings, "these settings differ and are taken at the next start only");
                }
            }
            Err(reason) => tracing::error!(%reason, "configuration not reloaded; everything stays as it was"),
        }
    }

    /// Connects to an upstream anew. Returns false if there is none of this name.
    pub async fn restart(&self, name: &str) -> bool {
        self.parts.roster.restart(name).await
    }

    /// Returns how each upstream stands.
    pub async fn standing(&self) -> Vec<UpstreamStatus> {
        self.parts.roster.standing().await
    }
}

/// Returns an error with its causes.
fn told(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(err.source(), |err| err.source());
    causes.fold(err.to_string(), |told, cause| format!("{told}: {cause}"))
}
