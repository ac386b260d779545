//! The guard of a process that runs a node: of what it holds, and over what it starts.
//!
//! Invariants:
//! - on Linux, no other process of our user reads the memory or the environment of a node;
//! - what a former run left is killed before anything is started.

use crate::{log::home::Home, runtime::upstream::leftovers};

/// Keeps other processes from reading what this one holds, and has its children watched over.
pub fn guard(home: &Home) {
    #[cfg(target_os = "linux")]
    if let Err(err) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%err, "processes of this user can read the memory of this one");
    }
    match leftovers::enrol(home.dir(), &uuid::Uuid::new_v4().simple().to_string()) {
        Ok(0) => {}
        Ok(killed) => tracing::warn!(killed, "processes that a former run had left were killed"),
        Err(err) => tracing::warn!(%err, "upstream processes are not watched over; they may outlive a crash"),
    }
}
