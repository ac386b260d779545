//! Pictures of runs and of walks through the log: Mermaid, DOT and SVG.
//!
//! Invariant: the functions are pure: they draw what they are given and read nothing else.

pub mod run;
pub mod svg;
pub mod walk;
