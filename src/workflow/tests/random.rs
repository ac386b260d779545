//! Changes asked of a run.
//!
//! Filled below.
