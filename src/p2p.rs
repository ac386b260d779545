//! Peers: what nodes ask of each other, over whatever carries their bytes.
//!
//! Invariant: nothing a peer says is kept or shown before it has been checked.

pub mod sync;
