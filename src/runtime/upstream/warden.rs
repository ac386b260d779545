//! The warden: a process of this program between a node and the program of a stdio server.
//!
//! Invariants:
//! - when it ends, whatever came of the program has been killed, in whatever group or session it put itself;
//! - it ends when the program ends, and when the node does, however the node ends;
//! - it neither reads nor writes what the two say to each other: the program has the node's own pipes;
//! - it knows nothing of the node but its process id, and runs as the user that the program runs as.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getppid, kill_process, kill_process_group};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    time::{interval, sleep, timeout},
};

/// The command of this program that is a warden.
pub const COMMAND: &str = "warden";
/// What a warden exits with if it could not start its program.
pub const UNSTARTED: u8 = 127;
/// How often it is looked whether the node is still there, where the system does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long it may take until what was killed is gone.
const KILLING_MAX: Duration = Duration::from_secs(1);
/// Between two looks for what is left.
const KILLING_PAUSE: Duration = Duration::from_millis(5);

/// What a warden is told.
#[derive(Debug)]
pub struct Watch {
    /// The process id of the node.
    pub node: i32,
    /// The user that the program runs as; by default the node's own.
    pub user: Option<String>,
    pub program: OsString,
    pub arguments: Vec<OsString>,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum Unstarted {
    #[error("{0}")]
    User(String),
    #[error("it cannot be started")]
    Program(#[from] io::Error),
}

/// Runs the program, and returns the code it exited with: as a shell does, 128 and the signal's number for a signal.
///
/// It must be called before the process has another thread. Errors: the program was not started.
pub fn run(watch: Watch) -> Result<u8, Unstarted> {
    let mut command = Command::new(&watch.program);
    command.args(&watch.arguments).process_group(0);
    if let Some(user) = &watch.user {
        become_user(user, &mut command)?;
    }
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(attend(command, watch.node))
}

async fn attend(mut command: Command, node: i32) -> Result<u8, Unstarted> {
    // Handlers, not ignored signals: those the program would inherit.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (_hangup, _quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
    let mut ended = signal(SignalKind::child())?;
    let mut program = command.spawn()?;
    let id = program.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    leave_pipes()?;
    let gone = gone(node);
    tokio::pin!(gone);
    let status = loop {
        tokio::select! {
            status = program.wait() => break status.ok(),
            () = &mut gone => break None,
            _ = interrupt.recv() => break None,
            _ = terminate.recv() => { signal_all(id, Signal::TERM); },
            _ = ended.recv() => reap(id),
        }
    };
    let killing = async {
        // What is killed may have started another just before.
        while signal_all(id, Signal::KILL) > 0 || matches!(program.try_wait(), Ok(None)) {
            reap(id);
            sleep(KILLING_PAUSE).await;
        }
    };
    let _ = timeout(KILLING_MAX, killing).await;
    Ok(status.map_or(128 + 9, code))
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// Returns how a program ended, of the code that its warden exited with.
pub fn told(code: i32) -> String {
    match code - 128 {
        signal @ 1..=64 => format!("signal: {signal}"),
        _ if code == i32::from(UNSTARTED) => format!("exit status: {code}, if it was started at all"),
        _ => format!("exit status: {code}"),
    }
}

/// Lets go of the pipes to the node, so that each side sees when the other closes them.
fn leave_pipes() -> io::Result<()> {
    let nothing = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    Ok(())
}

/// Waits until the node has ended.
async fn gone(node: i32) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{PidfdFlags, pidfd_open};
        let held = Pid::from_raw(node).and_then(|node| pidfd_open(node, PidfdFlags::NONBLOCK).ok());
        #[expect(
            deprecated,
            reason = "it is sound for a descriptor that is owned and never replaced, as this one is"
        )]
        let held = held.and_then(|held| tokio::io::unix::AsyncFd::new(held).ok());
        // The number may have become another's before it was held; a parent that is gone is none.
        if let Some(held) = held.filter(|_| is_parent(node)) {
            let _ = held.readable().await;
            return;
        }
    }
    let mut looks = interval(LOOK_EVERY);
    while is_parent(node) {
        looks.tick().await;
    }
}

fn is_parent(node: i32) -> bool {
    getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == node)
}

/// Signals whatever came of the program. Returns how many processes beside its group there were.
fn signal_all(program: Option<Pid>, signal: Signal) -> usize {
    if let Some(group) = program {
        // The only failure is that nobody is left to get the signal.
        let _ = kill_process_group(group, signal);
    }
    let mut reached = 0;
    for process in descendants() {
        reached += usize::from(kill_process(process, signal).is_ok());
    }
    reached
}

/// Waits for those that have ended and came to this process because their own parent had ended before.
fn reap(program: Option<Pid>) {
    #[cfg(target_os = "linux")]
    for entry in relatives().filter(|entry| entry.ended && is_own(entry.parent)) {
        let process = Pid::from_raw(entry.process).filter(|process| Some(*process) != program);
        if let Some(process) = process {
            // Another look has reaped it, then.
            let _ = rustix::process::waitpid(Some(process), rustix::process::WaitOptions::NOHANG);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = program;
}

#[cfg(target_os = "linux")]
fn is_own(process: i32) -> bool {
    rustix::process::getpid().as_raw_nonzero().get() == process
}

/// A process and its parent, as the system tells them.
#[cfg(target_os = "linux")]
struct Relative {
    process: i32,
    parent: i32,
    ended: bool,
}

#[cfg(target_os = "linux")]
fn relatives() -> impl Iterator<Item = Relative> {
    super::leftovers::processes().filter_map(|process| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name stands in parentheses and may hold any of them itself.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        Some(Relative { process, parent: fields.next()?.parse().ok()?, ended })
    })
}

/// Returns the processes below this one that run.
#[cfg(target_os = "linux")]
fn descendants() -> Vec<Pid> {
    let all: Vec<Relative> = relatives().collect();
    let mut parents = vec![rustix::process::getpid().as_raw_nonzero().get()];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for entry in all.iter().filter(|entry| entry.parent == parent) {
            parents.push(entry.process);
            if !entry.ended {
                found.extend(Pid::from_raw(entry.process));
            }
        }
    }
    found
}

#[cfg(not(target_os = "linux"))]
fn descendants() -> Vec<Pid> {
    Vec::new()
}

/// Becomes another user, with that user's groups, and gives the program the variables that name the user and are not
/// set.
#[cfg(target_os = "linux")]
fn become_user(name: &str, command: &mut Command) -> Result<(), Unstarted> {
    use nix::unistd::{User, initgroups, setgid, setuid};
    let failed = |what: &str, err: nix::Error| {
        Unstarted::User(format!("it cannot run as user {name}: {what}: {}", err.desc()))
    };
    let user = User::from_name(name).map_err(|err| failed("the user is not known", err))?;
    let user = user.ok_or_else(|| Unstarted::User(format!("there is no user {name}")))?;
    let text = std::ffi::CString::new(name).map_err(io::Error::from)?;
    initgroups(&text, user.gid).map_err(|err| failed("its groups", err))?;
    setgid(user.gid).map_err(|err| failed("its group", err))?;
    setuid(user.uid).map_err(|err| failed("the user", err))?;
    let own = [
        ("HOME", user.dir.into_os_string()),
        ("SHELL", user.shell.into_os_string()),
        ("USER", name.into()),
        ("LOGNAME", name.into()),
    ];
    for (variable, value) in own {
        if std::env::var_os(variable).is_none() {
            command.env(variable, value);
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn become_user(name: &str, _: &mut Command) -> Result<(), Unstarted> {
    Err(Unstarted::User(format!("it cannot run as user {name}: that is built for Linux only")))
}

/// Makes the command with which a node starts a warden of this program. Its standard streams become the program's.
pub(super) fn command(user: Option<&str>, program: &str, arguments: &[String]) -> Command {
    // The program as it is, though another may stand in its place by now.
    let own = if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    let mut command = Command::new(own.unwrap_or_else(|_| "cairn".into()));
    command.arg0("cairn").arg(COMMAND).arg("--node").arg(std::process::id().to_string());
    if let Some(user) = user {
        command.arg("--user").arg(user);
    }
    command.arg("--").arg(program).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
