//! Archives and backups: writing, reading, keeping and importing archives, erasing content in them, and copying a data
//! directory.
//!
//! Invariants:
//! - an archive takes its name in the data directory only after all of it is checked;
//! - an archive proves that its events are under a signed head, or it is reported as unsigned.

pub mod export;
pub mod prov;
pub mod writing;
pub mod evidence;
pub mod kept;
pub mod backup;
pub mod check;
pub mod erase;
pub mod keep;
pub mod import;
pub mod record;
