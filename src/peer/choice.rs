//! Choosing a peer for a call.
