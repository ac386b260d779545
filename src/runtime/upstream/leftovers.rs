//! Leftovers: processes of upstream servers that outlived the process of ours that started them.
//!
//! Invariants:
//! - every process that we start carries our mark in its environment, and so does what it starts in turn. A mark is a
//!   random number that stands in the data directory as long as its owner runs, and until what it left has been swept;
//! - a process is killed only while it is held by a descriptor and carries the mark: never by a number that may be
//!   another's by now, and never one of an owner that runs.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The variable that holds the mark of whoever started a process.
pub const MARK: &str = "CAIRN_CHILD";
/// The folder of the data directory with a file for each owner of children.
const FOLDER: &str = "children";

/// The mark of this process, once it has one.
static OWN: OnceLock<Mark> = OnceLock::new();

struct Mark {
    text: String,
    path: PathBuf,
    /// Locked as long as this process runs, however it ends.
    _file: File,
}

/// Returns the mark of this process; `None` if it has not been enrolled.
pub fn mark() -> Option<&'static str> {
    OWN.get().map(|mark| mark.text.as_str())
}

/// Enrols this process as an owner of children in the data directory, and kills what former owners have left. Returns
/// how many processes that were. A second time it changes nothing.
pub fn enrol(directory: &Path, mark: &str) -> io::Result<usize> {
    if OWN.get().is_some() {
        return Ok(0);
    }
    let folder = directory.join(FOLDER);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    // Held until this is enrolled: a mark that is not locked yet would be taken for one that was left.
    let alone = File::open(&folder)?;
    alone.lock()?;
    let killed = sweep(&folder)?;
    let mut options = OpenOptions::new();
    let path = folder.join(mark);
    let file = options.create_new(true).write(true).mode(0o600).open(&path)?;
    file.try_lock()?;
    // Nobody else has this process's mark, so a second one would be of no use.
    let _ = OWN.set(Mark { text: mark.to_owned(), path, _file: file });
    Ok(killed)
}

/// Says that this process has left nothing. Without it the next start looks for what it left.
pub fn resign() {
    if let Some(mark) = OWN.get() {
        // What stays is removed by the next start.
        let _ = fs::remove_file(&mark.path);
    }
}

/// Kills what the owners that have ended left behind, and forgets these owners.
fn sweep(folder: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for entry in fs::read_dir(folder)?.flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        if file.try_lock_shared().is_err() {
            continue;
        }
        let name = entry.file_name();
        let Some(mark) = name.to_str().filter(|mark| is_mark(mark)) else { continue };
        killed += kill(mark);
        // A crash before this leaves a mark that nothing carries any more.
        fs::remove_file(entry.path())?;
    }
    Ok(killed)
}

/// Returns whether this can be a mark: a long enough number that nobody else has.
fn is_mark(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns a fresh mark below that of this process, for one child and what comes of it.
pub fn mark_of_child() -> Option<String> {
    static CHILDREN: AtomicU64 = AtomicU64::new(0);
    mark().map(|mark| format!("{mark}.{}", CHILDREN.fetch_add(1, Ordering::Relaxed)))
}

/// Kills every process with this mark, or one below it. Returns how many there were.
#[cfg(target_os = "linux")]
pub fn kill(mark: &str) -> usize {
    use std::{collections::BTreeSet, thread, time::Duration};
    // One that is killed may have started another just before.
    const PASSES_MAX: usize = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    let mut killed = BTreeSet::new();
    for _ in 0..PASSES_MAX {
        let found: BTreeSet<i32> = processes().filter(|pid| kill_one(*pid, mark)).collect();
        if found.is_empty() {
            break;
        }
        killed.extend(found);
        // They end in their own time, and are seen until then.
        thread::sleep(PAUSE);
    }
    killed.len()
}

#[cfg(not(target_os = "linux"))]
pub fn kill(_: &str) -> usize {
    // Nothing tells the environment of another process here.
    0
}

/// Returns the numbers of the processes that this one can see.
#[cfg(target_os = "linux")]
pub(super) fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(target_os = "linux")]
fn kill_one(pid: i32, mark: &str) -> bool {
    use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
    let Some(process) = Pid::from_raw(pid).filter(|process| *process != getpid()) else { return false };
    if !carries(pid, mark) {
        return false;
    }
    let Ok(held) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    // While it is held its number is nobody else's: what is read now is read of the process that is killed.
    carries(pid, mark) && pidfd_send_signal(held, Signal::KILL).is_ok()
}

#[cfg(target_os = "linux")]
fn carries(pid: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let below = |rest: &[u8]| rest.is_empty() || rest.starts_with(b".");
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable.strip_prefix(wanted.as_bytes()).is_some_and(below))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_what_an_ended_owner_left_is_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let start = |mark: &str| {
            let mut command = Command::new("sleep");
            command.arg("600").env(MARK, mark).stdin(Stdio::null()).spawn().expect("it starts")
        };
        // Of this run alone: another one on this machine looks for its own.
        let mark = || uuid::Uuid::new_v4().simple().to_string();
        let (dead, alive) = (&mark(), &mark());
        let folder = directory.path().join(FOLDER);
        fs::create_dir(&folder).expect("it is made");
        fs::write(folder.join(dead), "").expect("it is written");
        fs::write(folder.join("0"), "").expect("it is written");
        let owner = File::create(folder.join(alive)).expect("it is made");
        owner.try_lock().expect("nobody else has it");
        let mut left = [start(dead), start(&format!("{dead}.7"))];
        let (mut owned, mut other) = (start(alive), start(&format!("{dead}7")));
        assert_eq!(sweep(&folder).expect("it is read"), left.len());
        for process in &mut left {
            assert!(!process.wait().expect("it ends").success());
        }
        for process in [&mut owned, &mut other] {
            assert!(process.try_wait().expect("it is ours").is_none());
            process.kill().expect("it runs");
            process.wait().expect("it ends");
        }
        assert!(!folder.join(dead).exists() && folder.join(alive).exists());
    }
}
