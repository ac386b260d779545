//! Health and metrics, for machines: whether the process answers, whether the node is ready, and its numbers.
//!
//! Invariants:
//! - they answer from the moment the address is bound, also while the node starts, and say how far that is;
//! - no token and no known `Host` is needed for health; it tells nothing of the log's content.

use std::sync::{Arc, PoisonError, RwLock};

use axum::{Router, extract::State, response::Response, routing::get};
use http::{HeaderName, StatusCode, header::CONTENT_TYPE};
use serde_json::json;

use crate::{metrics::Metrics, problem::answer};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The paths that machines ask, by whatever name they know this one.
const PATHS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Returns the reasons for which this node is not ready, for `/readyz`.
pub type Ready = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What is known of a node's health, before and after it has started.
pub struct Health {
    pub metrics: Arc<Metrics>,
    starting: Ready,
    started: RwLock<Option<Ready>>,
}

impl Health {
    /// Returns the health of a node that is about to start; `starting` says what it waits for.
    pub fn new(metrics: Arc<Metrics>, starting: Ready) -> Self {
        Self { metrics, starting, started: RwLock::new(None) }
    }

    /// Says that the node has started, and who knows from now on whether it is ready.
    pub(super) fn started(&self, ready: Ready) {
        *self.started.write().unwrap_or_else(PoisonError::into_inner) = Some(ready);
    }

    fn reasons(&self) -> Vec<String> {
        let started = self.started.read().unwrap_or_else(PoisonError::into_inner);
        started.as_ref().unwrap_or(&self.starting)()
    }
}

/// Returns whether a path is answered to any `Host`.
pub(super) fn is_for_machines(path: &str) -> bool {
    PATHS.contains(&path)
}

/// Returns `/healthz` and `/readyz`.
pub(super) fn routes(health: &Arc<Health>) -> Router {
    Router::new()
        .route("/healthz", get(async || answer(StatusCode::OK, &json!({"status": "ok"}))))
        .route("/readyz", get(readiness))
        .with_state(Arc::clone(health))
}

/// Returns `/metrics`.
pub(super) fn metrics(health: &Arc<Health>) -> Router {
    Router::new().route("/metrics", get(numbers)).with_state(Arc::clone(health))
}

async fn readiness(State(health): State<Arc<Health>>) -> Response {
    match health.reasons() {
        reasons if reasons.is_empty() => answer(StatusCode::OK, &json!({"status": "ready"})),
        reasons => {
            answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not_ready", "reasons": reasons}))
        }
    }
}

async fn numbers(State(health): State<Arc<Health>>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, OPENMETRICS)], health.metrics.encode())
}
