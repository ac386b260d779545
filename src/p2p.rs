//! The network of nodes.

pub mod bootstrap;
pub mod discovery;
