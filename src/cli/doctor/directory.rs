//! The data directory: whether it is there, private, writable, on a good disk, and has room.
//!
//! Invariant: nothing is written; what may be written is asked of the operating system.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{Access, access, statvfs};

use super::finding::Finding;
use crate::log::home::Home;

/// Free bytes under which a log soon stops, and under which it is time to think of it.
const ROOM_MIN: u64 = 64 * 1024 * 1024;
const ROOM_LOW: u64 = 1024 * 1024 * 1024;
/// Files that nobody but their owner may read.
const PRIVATE: [&str; 9] = [
    "log.db",
    "state.db",
    "head",
    "tokens.json",
    "credentials",
    "keys/log.key",
    "keys/salt.key",
    "keys/peer.key",
    "keys/credentials.key",
];
/// File systems whose locks do not reach all who could write: NFS, SMB, SMB2, AFS, 9P.
#[cfg(target_os = "linux")]
const NETWORKED: [i64; 6] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x5346_414f, 0x0102_1997];

/// Looks at the directory.
pub fn look(home: &Home, found: &mut Vec<Finding>) {
    let dir = home.dir();
    let name = dir.display();
    let metadata = match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            found.push(Finding::fail(
                "directory",
                format!("{name} is no directory"),
                "name another with --data",
            ));
            return;
        }
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            let todo = "name it with --data or CAIRN_DATA; a first start makes it";
            found.push(Finding::warn("directory", format!("{name} is not there yet"), todo));
            return;
        }
        Err(err) => {
            let todo = "run this as the user that the node runs as";
            found.push(Finding::fail("directory", format!("{name} cannot be looked at: {err}"), todo));
            return;
        }
    };
    match access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => found.push(Finding::ok("directory", format!("{name} can be read and written"))),
        Err(err) => found.push(Finding::fail(
            "directory",
            format!("{name} cannot be written: {err}"),
            "run the node as its owner, or give it to the node's user; reading commands need no more than reading",
        )),
    }
    permissions(dir, &metadata, found);
    disk(dir, found);
}

fn permissions(dir: &Path, metadata: &fs::Metadata, found: &mut Vec<Finding>) {
    let mut open = Vec::new();
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        open.push(format!("{} (mode {mode:o})", dir.display()));
    }
    for file in PRIVATE {
        let path = dir.join(file);
        if let Ok(metadata) = fs::metadata(&path) {
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                open.push(format!("{file} (mode {mode:o})"));
            }
        }
    }
    if open.is_empty() {
        found.push(Finding::ok("permissions", "only the owner can read the directory and its files"));
    } else {
        let todo = format!("chmod -R go= {}", dir.display());
        found.push(Finding::warn("permissions", format!("others may reach {}", open.join(", ")), todo));
    }
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && us != 0 {
        let said = format!("the directory is of user {}, and this is user {us}", metadata.uid());
        found.push(Finding::warn("owner", said, "run commands as the user that the node runs as"));
    }
}

fn disk(dir: &Path, found: &mut Vec<Finding>) {
    match statvfs(dir) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let said = format!("{} MiB free", free / (1024 * 1024));
            found.push(match free {
                free if free < ROOM_MIN => {
                    Finding::fail("disk", said, "free space: a full disk stops the node")
                }
                free if free < ROOM_LOW => {
                    Finding::warn("disk", said, "free space soon: a full disk stops the node")
                }
                _ => Finding::ok("disk", said),
            });
        }
        Err(err) => {
            let said = format!("how much is free cannot be told: {err}");
            found.push(Finding::warn("disk", said, "see `df` for the directory"));
        }
    }
    #[cfg(target_os = "linux")]
    if let Ok(kind) = rustix::fs::statfs(dir)
        && NETWORKED.contains(&(kind.f_type & 0xffff_ffff))
    {
        let todo = "move the directory to a disk of this machine: locks do not hold on a network file system";
        found.push(Finding::fail("disk", "the directory is on a network file system", todo));
    }
}
