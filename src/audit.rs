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

use axum::{Router, routing::get};

use crate::questions::Audit;

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
