//! The runtimes: where a tool runs once the router has found its place.
//!
//! Invariants:
//! - a runtime answers with what came of one invocation, and records nothing;
//! - whatever a runtime starts ends with it: no task, socket or process outlives it.

pub mod upstream;
pub mod fleet;
pub mod rounds;
pub mod passing;
pub mod following;
pub mod gateway;
pub mod peers;
