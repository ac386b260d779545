//! Workflow runs: a definition checked whole, then decided step by step.

pub mod graph;
pub mod svg;
