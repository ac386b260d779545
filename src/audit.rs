//! The audit language: events, blocks, proofs and exports over HTTP, for whoever may read them.
//!
//! Invariants:
//! - nothing here changes the log, but that an export is recorded in it before its first byte leaves;
//! - an answer sees everything that was answered before it was asked;
//! - a name that makes no sense is 400, one nobody knows 404, erased content 410.

pub mod content;
mod export;
mod followed;
mod ipfs;
mod reading;
mod stream;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::{Router, routing::get};
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinError};

use crate::{
    ledger::Ledger,
    p2p::hub::course::Pursuit,
    query::{QueryError, Readers, View, proof::Head, summary::Summary},
    verify,
};

/// Questions being answered at once; more wait their turn.
const QUESTIONS_MAX: usize = 4;
/// Exports and verifications at once; each holds a connection for as long as it takes.
const LONG_MAX: usize = 2;

/// Readers of the event stream at once.
const STREAMS_MAX: usize = 256;

/// Where questions are asked: the log, what is derived from it, and how far both have come.
#[derive(Clone)]
pub struct Audit {
    ledger: Ledger,
    readers: Arc<Readers>,
    questions: Arc<Semaphore>,
    long: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// What this node is to others, once it takes part in the network.
    peer: Arc<OnceLock<Box<Shown>>>,
    /// How following others' logs goes, likewise.
    pursuits: Arc<OnceLock<Box<Pursued>>>,
    /// The last summary: it takes long, and holds as long as nothing is recorded.
    summary: Arc<Mutex<Option<Summary>>>,
}

type Shown = dyn Fn() -> Value + Send + Sync;
type Pursued = dyn Fn() -> Vec<Pursuit> + Send + Sync;

/// Why an asked question came back without an answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("a question broke off")]
    Broken(#[from] JoinError),
    #[error("as many long questions as allowed are being answered; try again later")]
    Busy,
    #[error(transparent)]
    Stopped(#[from] crate::ledger::Stopped),
}

impl Audit {
    pub fn new(ledger: Ledger) -> Self {
        Self {
            readers: Arc::new(Readers::new(ledger.home().clone())),
            ledger,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            long: Arc::new(Semaphore::new(LONG_MAX)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            peer: Arc::default(),
            pursuits: Arc::default(),
            summary: Arc::new(Mutex::new(None)),
        }
    }

    /// Shows what this node is to others from now on; only the first to say so is asked.
    pub fn shows_peer(&self, peer: impl Fn() -> Value + Send + Sync + 'static) {
        let _ = self.peer.set(Box::new(peer));
    }

    /// What this node is to others; null where it takes no part.
    fn peer(&self) -> Value {
        self.peer.get().map_or(Value::Null, |peer| peer())
    }

    /// Shows how following others' logs goes from now on; only the first to say so is asked.
    pub fn shows_pursuits(&self, pursuits: impl Fn() -> Vec<Pursuit> + Send + Sync + 'static) {
        let _ = self.pursuits.set(Box::new(pursuits));
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Asks a question of everything recorded before now, with the head that signs it.
    ///
    /// Safe to drop midway.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View, &Head) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let head = self.head().await;
        // The semaphore is never closed; without a permit there is only less order.
        let permit = Arc::clone(&self.questions).acquire_owned().await.ok();
        let readers = Arc::clone(&self.readers);
        let asked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            readers.ask(|view| question(view, &head))
        });
        Ok(asked.await??)
    }

    /// The head that signs everything recorded before now; after the ledger has stopped, the last there was.
    pub async fn head(&self) -> Head {
        let reach = match self.ledger.settled().await {
            Ok(reach) => reach,
            Err(_) => self.ledger.reach().borrow().clone(),
        };
        Head { size: reach.applied, note: reach.checkpoint }
    }

    /// Counts and digests of the state as it is now.
    pub async fn summary(&self) -> Result<Summary, Unanswered> {
        let kept = Arc::clone(&self.summary);
        self.ask(move |view, _| {
            let kept = || kept.lock().unwrap_or_else(PoisonError::into_inner);
            let applied = view.applied()?;
            if let Some(summary) = kept().as_ref().filter(|summary| summary.size == applied) {
                return Ok(summary.clone());
            }
            let summary = view.summary()?;
            *kept() = Some(summary.clone());
            Ok(summary)
        })
        .await
    }
}

/// An error with all its causes, for one log line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&verify::chain(self.0))
    }
}

/// Every path of the audit language.
pub fn routes(state: Audit) -> Router {
    Router::new()
        .route("/v1/events", get(reading::events))
        .route("/v1/events/stream", get(stream::events))
        .route("/v1/events/{cid}", get(reading::event))
        .route("/v1/blocks/{cid}", get(reading::block))
        .route("/v1/provenance/{cid}", get(reading::provenance))
        .route("/v1/proof/{cid}", get(reading::proof))
        .route("/v1/consistency", get(reading::consistency))
        .route("/v1/receipts/{cid}", get(reading::receipt))
        .route("/v1/contracts", get(reading::contracts))
        .route("/v1/contracts/{cid}", get(reading::contract))
        .route("/v1/state", get(reading::state))
        .route("/v1/export", get(export::export))
        .route("/v1/followed", get(followed::list))
        .route("/v1/followed/{genesis}/checkpoint", get(followed::checkpoint))
        .route("/v1/followed/{genesis}/events", get(followed::events))
        .route("/log/checkpoint", get(reading::checkpoint))
        .route("/log/tile/{*path}", get(reading::tile))
        .route("/ipfs/{cid}", get(ipfs::get))
        .with_state(state)
}
