//! The audit API: events, blocks, proofs and exports over HTTP, for callers with the scope `audit:read`.
//!
//! Invariants:
//! - no request changes the log, but that `/v1/export` records an export before its first byte leaves;
//! - an answer about our own log sees everything that was answered before it was asked;
//! - a malformed CID is answered with 400, an unknown one with 404, an erased payload with 410.

pub mod content;
mod reading;
mod export;
mod followed;
mod ipfs;
mod naming;
pub mod status;
mod stream;

use axum::{Router, routing::get};

use crate::questions::Audit;

/// Returns the routes of the audit API.
pub fn routes(state: Audit) -> Router {
    Router::new()
        .route("/v1/events", get(reading::events))
        .route("/v1/events/stream", get(stream::events))
        .route("/v1/events/{cid}", get(reading::event))
        .route("/v1/blocks/{cid}", get(reading::block))
        .route("/v1/names/{part}", get(naming::names))
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
