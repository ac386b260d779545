//! Workflows: a definition that was checked whole, and a run of it that decides what comes next.
//!
//! Invariants:
//! - a run is what its events fold to: deciding changes nothing, so a replay decides as the first run did;
//! - a step ends in exactly one state, and starts only after all it depends on;
//! - once a run has ended, nothing of it starts.

pub mod fields;
pub mod shape;
pub mod wrong;
pub mod inputs;
pub mod plan;
pub mod run;
pub mod graph;
pub mod replay;

/// Returns the subject of a run's own events.
pub fn subject(id: &str) -> String {
    format!("workflow/{id}")
}

#[cfg(test)]
pub(crate) mod tests;
