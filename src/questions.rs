//! Questions about the log and its state: bounded in number, and answered after everything recorded before them.
//!
//! Invariants:
//! - an answer sees everything that was answered before it was asked;
//! - a question over its bound waits for its turn; a long question or a stream over its bound is refused.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinError};

use crate::{
    follow::course::Pursuit,
    ledger::Ledger,
    query::{QueryError, Readers, View, proof::Head, summary::Summary},
};

/// Questions being answered at once; more wait their turn.
const QUESTIONS_MAX: usize = 4;
/// Exports and verifications at once; each holds a connection for as long as it takes.
const LONG_MAX: usize = 2;

/// The events of the longest log whose tables are digested unasked: it takes some milliseconds.
const DIGESTED_MAX: u64 = 20_000;

/// Readers of the event stream at once.
const STREAMS_MAX: usize = 256;

/// Where questions are asked: the log, what is derived from it, and how far both have come.
#[derive(Clone)]
pub struct Audit {
    pub(crate) ledger: Ledger,
    pub(crate) readers: Arc<Readers>,
    pub(crate) questions: Arc<Semaphore>,
    pub(crate) long: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    /// What this node is to others, once it takes part in the network.
    peer: Arc<OnceLock<Box<Shown>>>,
    /// How following others' logs goes, likewise.
    pub(crate) pursuits: Arc<OnceLock<Box<Pursued>>>,
    /// The last summary with digests: they take long, and hold as long as nothing is recorded.
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
    pub fn peer(&self) -> Value {
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

    /// Returns counts of the state as it is now, and its digests if they are wanted, known already, or computed at once
    /// because the log is short.
    pub async fn summary(&self, digests: bool) -> Result<Summary, Unanswered> {
        let kept = Arc::clone(&self.summary);
        self.ask(move |view, _| {
            let kept = || kept.lock().unwrap_or_else(PoisonError::into_inner);
            let applied = view.applied()?;
            let wanted = digests || applied <= DIGESTED_MAX;
            let fits = |kept: &&Summary| kept.size == applied && (kept.digests.is_some() || !wanted);
            if let Some(summary) = kept().as_ref().filter(fits) {
                return Ok(summary.clone());
            }
            let summary = view.summary(wanted)?;
            if summary.digests.is_some() {
                *kept() = Some(summary.clone());
            }
            Ok(summary)
        })
        .await
    }
}
