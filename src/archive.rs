//! What an auditor takes away: archives written, read, kept beside the log, and erased in; backups of the whole.
//!
//! Invariants:
//! - nothing of an archive is taken in before all of it is checked;
//! - an archive holds what proves it: its events under a signed head, or it is told to be unsigned.

pub mod backup;
pub mod check;
pub mod erase;
pub mod evidence;
pub mod export;
pub mod import;
pub mod keep;
pub mod kept;
pub mod prov;
pub mod record;
pub mod writing;
