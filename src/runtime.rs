//! The runtimes: where a tool runs once the router has found its place.
//!
//! Invariants:
//! - a runtime answers with what came of one invocation, and records nothing;
//! - whatever a runtime starts ends with it: no task, socket or process outlives it.

pub mod upstream;
pub mod fleet;
mod replays;
pub mod rounds;
pub mod passing;
mod seat;
pub mod upstream_tasks;
pub mod gateway;
pub mod following;
pub mod peers;
