//! An upstream as a child process: one JSON-RPC message a line on its standard input and output.
//!
//! Invariants:
//! - the child leads a process group of its own, and the whole group is gone when the connection is. Where this process
//!   is enrolled as an owner of children, a warden starts the child, and whatever came of it is gone;
//! - it has in its environment what it is given, and of ours only what names the user and where programs are;
//! - when the child dies, everything that waits on it ends at once;
//! - no line is kept beyond its bound, and nothing of ours waits for a child that does not read or write.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child as Process, ChildStdin, Command},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::runtime::upstream::{Failure, inbox::Inbox, leftovers, stderr, warden};

/// The longest line a child may write: larger than any answer worth keeping in memory whole.
pub const LINE_MAX: usize = 16 * 1024 * 1024;
/// Lines that are no message, in a row, after which the child is taken to speak something else.
const GARBAGE_MAX: usize = 1_000;
/// Messages written but not yet taken by the child; beyond this, callers wait.
const OUTBOX_MAX: usize = 64;
/// How long a child may take to leave, after its input closed and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long output already written is still read after the child has exited.
const DRAIN: Duration = Duration::from_secs(1);
/// What a child gets of our own environment: the variables that the libraries of MCP pass on by default. The last four
/// name the user, who may be another.
const INHERITED: [&str; 2] = ["PATH", "TERM"];
const OF_THE_USER: [&str; 4] = ["HOME", "LOGNAME", "SHELL", "USER"];

/// What is started.
#[derive(Clone, Copy)]
pub struct Program<'a> {
    pub command: &'a str,
    pub args: &'a [String],
    /// What its environment holds beside what is inherited.
    pub env: &'a BTreeMap<String, String>,
    pub directory: Option<&'a PathBuf>,
    /// The user it runs as; by default the one that this process runs as.
    pub user: Option<&'a str>,
}

pub struct Child {
    pub outbox: mpsc::Sender<String>,
    closing: CancellationToken,
    gone: CancellationToken,
    _guard: DropGuard,
}

impl Child {
    /// Starts the process. Errors: why it could not be started, without its arguments or environment.
    pub fn open(program: Program<'_>, inbox: Arc<Inbox>, name: &str) -> Result<Self, String> {
        let (mut starting, mark) = program.starting()?;
        let command = program.command;
        let mut process = starting.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let group = Group::of(&process, mark);
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(format!("cannot reach the pipes of {command:?}"));
        };

        let (outbox, lines) = mpsc::channel(OUTBOX_MAX);
        let closing = CancellationToken::new();
        let gone = CancellationToken::new();
        let over = CancellationToken::new();
        let (shared, told) = (Arc::clone(&inbox), closing.clone());
        let keeper = Keeper { process, group, inbox: shared, closing: told, over: over.clone() };
        let answers = outbox.downgrade();
        let reading = read(stdout, inbox, answers);
        let logging = stderr::log(stderr, name.to_owned());
        let finished = gone.clone();
        // Joined by `close`, through `gone`; ended by `closing`, which also fires when this is dropped.
        tokio::spawn(async move {
            keeper.keep(reading, write(stdin, lines, over), logging).await;
            finished.cancel();
        });
        let guard = closing.clone().drop_guard();
        Ok(Self { outbox, closing, gone, _guard: guard })
    }

    /// Ends the child: closes its input, then asks, then kills. Returns when the group is gone.
    pub async fn close(&self) {
        self.closing.cancel();
        self.gone.cancelled().await;
    }
}

impl Program<'_> {
    /// Returns the command that starts it, and the mark of its process where a warden watches over it.
    fn starting(self) -> Result<(Command, Option<String>), String> {
        let Self { command, args, env, directory, user } = self;
        if user.is_some() && (!geteuid().is_root() || leftovers::mark().is_none()) {
            return Err(format!(
                "cannot start {command:?} as another user: only a node that runs as root can; leave `user` out, or run the node as root"
            ));
        }
        let search = env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"));
        if !is_there(command, search.as_deref(), directory.map(PathBuf::as_path)) {
            let missing = std::io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
            return Err(format!("cannot start {command:?}: {missing}"));
        }
        let mark = leftovers::mark_of_child();
        let mut starting = match mark {
            Some(_) => warden::command(user, command, args),
            None => {
                let mut starting = Command::new(command);
                starting.args(args).kill_on_drop(true);
                starting.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                starting
            }
        };
        starting.process_group(0).env_clear();
        let of_the_user = OF_THE_USER.iter().filter(|_| user.is_none());
        for name in INHERITED.iter().chain(of_the_user) {
            if let Some(value) = std::env::var_os(name) {
                starting.env(name, value);
            }
        }
        starting.envs(env);
        if let Some(mark) = &mark {
            starting.env(leftovers::MARK, mark);
        }
        if let Some(directory) = directory {
            starting.current_dir(directory);
        }
        Ok((starting, mark))
    }
}

/// Returns whether there is such a program: at its path, or in a folder of the search path.
fn is_there(command: &str, search: Option<&std::ffi::OsStr>, directory: Option<&Path>) -> bool {
    if command.contains('/') {
        let within = directory.unwrap_or(Path::new("."));
        return within.join(command).exists();
    }
    let search = search.map(std::env::split_paths);
    // Without one the system has its own.
    search.is_none_or(|mut folders| folders.any(|folder| folder.join(command).is_file()))
}

/// A child and what came of it, killed when this is dropped.
struct Group {
    /// The leader of the child's process group, or its warden; `None` once it has ended.
    leader: Option<Pid>,
    /// What its processes have in their environment, where a warden leads them.
    mark: Option<String>,
}

impl Group {
    fn of(process: &Process, mark: Option<String>) -> Self {
        let leader = process.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        Self { leader, mark }
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // The only failure is that nobody is left to get the signal.
            let _ = match self.mark {
                Some(_) => kill_process(leader, signal),
                None => kill_process_group(leader, signal),
            };
        }
    }

    /// Kills the group, or has its warden kill whatever came of the child.
    fn kill(&mut self) {
        match self.mark {
            Some(_) => self.signal(Signal::INT),
            None => {
                self.signal(Signal::KILL);
                self.leader = None;
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Kills what carries the mark, beside the runtime: it looks through all processes.
async fn kill_marked(mark: Option<String>) {
    if let Some(mark) = mark {
        let _ = tokio::task::spawn_blocking(move || leftovers::kill(&mark)).await;
    }
}

/// Why reading ended.
enum End {
    Closed,
    Broken(String),
}

/// The one task that owns a child.
struct Keeper {
    process: Process,
    group: Group,
    inbox: Arc<Inbox>,
    closing: CancellationToken,
    /// Cancelled when nothing more is to be written.
    over: CancellationToken,
}

impl Keeper {
    async fn keep(
        mut self,
        reading: impl Future<Output = End> + Send + 'static,
        writing: impl Future<Output = Vec<String>> + Send + 'static,
        logging: impl Future<Output = ()> + Send + 'static,
    ) {
        // Aborted when this ends.
        let mut side = JoinSet::new();
        side.spawn(logging);
        let mut reader = tokio::spawn(reading);
        let mut writer = tokio::spawn(writing);
        let mut untold = Vec::new();
        let why = tokio::select! {
            biased;
            () = self.closing.cancelled() => {
                self.unwritten(&mut writer).await;
                self.dismiss().await;
                "stopped".to_owned()
            }
            status = self.process.wait() => {
                // Whoever the child left behind would hold its output open.
                self.leave(status.as_ref().ok()).await;
                let _ = timeout(DRAIN, &mut reader).await;
                self.unwritten(&mut writer).await;
                self.ended(status.ok())
            }
            // A child that cannot be told anything is of no use, though it runs.
            untaken = &mut writer => {
                untold = untaken.unwrap_or_default();
                let status = timeout(DRAIN, self.process.wait()).await.ok().and_then(Result::ok);
                self.finish().await;
                let _ = timeout(DRAIN, &mut reader).await;
                self.ended(status)
            }
            end = &mut reader => {
                self.unwritten(&mut writer).await;
                let how = match end {
                    Ok(End::Broken(how)) => Some(how),
                    Ok(End::Closed) | Err(_) => None,
                };
                self.inbox.drain(|| how.clone().map_or(Failure::Died, Failure::Broken));
                let status = match how {
                    Some(_) => None,
                    None => timeout(DRAIN, self.process.wait()).await.ok().and_then(Result::ok),
                };
                self.finish().await;
                how.unwrap_or_else(|| self.ended(status))
            }
        };
        self.inbox.untaken(&untold);
        self.inbox.drain(|| Failure::Died);
        self.inbox.lose(why);
        reader.abort();
    }

    /// Ends the writing, and with it the child's input. Those whose requests it has not been given hear so.
    async fn unwritten(&self, writer: &mut JoinHandle<Vec<String>>) {
        self.over.cancel();
        if let Ok(untaken) = writer.await {
            self.inbox.untaken(&untaken);
        }
    }

    async fn dismiss(&mut self) {
        if timeout(GRACE, self.process.wait()).await.is_err() {
            self.group.signal(Signal::TERM);
            let _ = timeout(GRACE, self.process.wait()).await;
        }
        self.finish().await;
    }

    /// Kills what is left, and waits until it is gone.
    async fn finish(&mut self) {
        self.group.kill();
        let ended = timeout(GRACE, self.process.wait()).await;
        if ended.is_err() {
            // The warden itself does not get on.
            kill_marked(self.group.mark.clone()).await;
            let _ = self.process.start_kill();
        }
        let ended = match ended {
            Ok(ended) => ended,
            Err(_) => self.process.wait().await,
        };
        self.leave(ended.as_ref().ok()).await;
    }

    /// Lets go of a process that has ended. A warden that was killed itself could kill nothing.
    async fn leave(&mut self, status: Option<&ExitStatus>) {
        match self.group.mark {
            Some(_) => self.group.leader = None,
            None => self.group.kill(),
        }
        if status.is_some_and(|status| status.code().is_none()) {
            kill_marked(self.group.mark.clone()).await;
        }
    }

    fn ended(&self, status: Option<ExitStatus>) -> String {
        let code = status.and_then(|status| status.code()).filter(|_| self.group.mark.is_some());
        match (status, code) {
            (_, Some(code)) => format!("the process ended: {}", warden::told(code)),
            (Some(status), None) => format!("the process ended: {status}"),
            (None, None) => "the process closed its input or output".to_owned(),
        }
    }
}

/// Writes message after message, until the child takes no more or `over` says so. Returns the messages that it has not
/// been given whole, so that it can have begun none of them.
async fn write(
    mut stdin: ChildStdin,
    mut lines: mpsc::Receiver<String>,
    over: CancellationToken,
) -> Vec<String> {
    let mut untaken = Vec::new();
    loop {
        let mut line = tokio::select! {
            biased;
            line = lines.recv() => match line {
                Some(line) => line,
                None => return untaken,
            },
            () = over.cancelled() => break,
        };
        line.push('\n');
        // The line feed is its last byte: what was not written to the end was no message yet.
        let written = async { stdin.write_all(line.as_bytes()).await.is_ok() && stdin.flush().await.is_ok() };
        let written = tokio::select! {
            biased;
            written = written => written,
            () = over.cancelled() => false,
        };
        if !written {
            untaken.push(line);
            break;
        }
    }
    lines.close();
    while let Ok(line) = lines.try_recv() {
        untaken.push(line);
    }
    untaken
}

async fn read(stdout: impl AsyncRead + Unpin, inbox: Arc<Inbox>, outbox: mpsc::WeakSender<String>) -> End {
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let mut garbage = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut stdout, &mut line, LINE_MAX).await {
            Line::Whole if line.iter().all(u8::is_ascii_whitespace) => continue,
            Line::Whole => {}
            Line::Cut => return End::Broken(format!("a line is over {LINE_MAX} bytes")),
            Line::End => return End::Closed,
        }
        let delivered = std::str::from_utf8(&line).ok().and_then(|text| inbox.deliver(text, None).ok());
        match delivered {
            Some(back) => {
                garbage = 0;
                for answer in back {
                    // A child that asks and does not read loses the answer.
                    let _ = outbox.upgrade().map(|outbox| outbox.try_send(answer));
                }
            }
            None => garbage += 1,
        }
        if garbage > GARBAGE_MAX {
            return End::Broken(format!("over {GARBAGE_MAX} lines in a row are no messages"));
        }
        // One large answer does not hold its memory for ever.
        line.shrink_to(64 * 1024);
    }
}

enum Line {
    Whole,
    /// As many bytes as are allowed, and the line goes on.
    Cut,
    End,
}

/// Reads up to a line feed, which is taken but not kept. An unfinished last line counts as none.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>, limit: usize) -> Line {
    loop {
        let available = match reader.fill_buf().await {
            Ok([]) | Err(_) => return Line::End,
            Ok(available) => available,
        };
        let end = available.iter().position(|byte| *byte == b'\n');
        let room = limit - line.len();
        let taken = end.unwrap_or(available.len());
        if taken > room {
            line.extend_from_slice(&available[..room]);
            reader.consume(room);
            return Line::Cut;
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Line::Whole;
        }
    }
}
