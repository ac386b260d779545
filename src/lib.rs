//! Cairn: an event-sourced provenance server for the Model Context Protocol.
//!
//! Modules are listed lowest floor first. A module uses only modules listed above it;
//! `tests/it/floors.rs` reads this list and every `crate::` path and fails on an arrow that points up.

#![cfg_attr(
    test,
    allow(clippy::too_many_lines, reason = "a test tells one story, from its start to its end")
)]

// Floor 0, words: bytes, content identifiers, canonical forms, keys, the Merkle tree.
pub mod visible;
pub mod words;

pub mod block;
pub mod error;

pub mod identity;
pub mod merkle;

// Floor 1, facts: what can have happened, what a tool promises, what an auditor takes away.
pub mod contract;
pub mod event;

pub mod receipt;

// Floor 2, rules: pure; one entity a module, and a folder where it has many parts, as `workflow` has.
pub mod call;
pub mod catalogue;

pub mod task;

pub mod queue;

pub mod worker;
pub mod workflow;

pub mod schedule;

pub mod peer;

pub mod entity;

pub mod caller;

// Floor 3, memory: the clock, frames, the log, what is derived from it, the questions about both, and plain counters.
pub mod clock;
pub mod frames;

pub mod log;
pub mod metrics;

pub mod state;

pub mod query;

pub mod drawing;
pub mod verify;

pub mod archive;

// Floor 4, the one writer.
pub mod ledger;

// Floor 5, hands: where a tool runs, and running it.
pub mod router;
pub mod runtime;

pub mod engine;

// Floor 6, peers: other nodes, found, dialled and spoken to; the only floor that knows the network between them.
pub mod follow;

pub mod questions;

#[cfg(feature = "p2p")]
pub mod p2p;

// Floor 7, languages: method names, tool definitions, the audit API, errors on the wire.
pub mod problem;

pub mod audit;
pub mod mcp;
pub mod tools;

// Floor 8, doors: sockets, limits, tokens, flags, exit codes.
pub mod auth;
pub mod config;

pub mod http;
pub mod node;
pub mod stdio;

pub mod cli;
