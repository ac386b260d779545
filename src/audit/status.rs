//! How the running node is, over HTTP: what `cairn status` shows.
//!
//! Invariant: what is told is gathered where the node is known; here it is only handed on.

use std::sync::Arc;

use axum::{Router, extract::State, routing::get};
use serde_json::Value;

use super::content::passing;
use crate::router::BoxFuture;

/// Gathers how the node is.
pub type Told = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// Returns the route of the status.
pub fn route(told: Told) -> Router {
    Router::new().route("/v1/status", get(status)).with_state(told)
}

async fn status(State(told): State<Told>) -> axum::response::Response {
    passing(&told().await)
}
