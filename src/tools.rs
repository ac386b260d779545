//! Room to be furnished.

pub mod conformance;
