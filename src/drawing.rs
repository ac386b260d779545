//! Pictures of runs and of walks through the log: Mermaid, DOT and SVG.
//!
//! Invariant: pure; a picture shows what it is given and asks for nothing.

pub mod run;
pub mod svg;
pub mod walk;
