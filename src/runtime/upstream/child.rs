//! An upstream as a child process: one JSON-RPC message a line on its standard input and output.
//!
//! Invariants:
//! - the child leads a process group of its own, and the whole group is gone when the connection is;
//! - when the child dies, everything that waits on it ends at once;
//! - no line is kept beyond its bound, and nothing of ours waits for a child that does not read or write.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child as Process, ChildStdin, Command},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::runtime::upstream::{Failure, inbox::Inbox};

/// The longest line a child may write: larger than any answer worth keeping in memory whole.
pub const LINE_MAX: usize = 16 * 1024 * 1024;
/// Lines that are no message, in a row, after which the child is taken to speak something else.
const GARBAGE_MAX: usize = 1_000;
/// The longest piece of standard error logged as one line.
const STDERR_LINE_MAX: usize = 8 * 1024;
/// Messages written but not yet taken by the child; beyond this, callers wait.
const OUTBOX_MAX: usize = 64;
/// How long a child may take to leave, after its input closed and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long output already written is still read after the child has exited.
const DRAIN: Duration = Duration::from_secs(1);
/// Our own settings in the environment, which may be secret, begin so; children do not get them.
const OUR_ENVIRONMENT: &str = "CAIRN_";

pub struct Child {
    pub outbox: mpsc::Sender<String>,
    closing: CancellationToken,
    gone: CancellationToken,
    _guard: DropGuard,
}

impl Child {
    /// Starts the process. Errors: why it could not be started, without its arguments or environment.
    pub fn open(
        command: &str,
        args: &[String],
        env: &BTreeMap<String, String>,
        directory: Option<&PathBuf>,
        inbox: Arc<Inbox>,
        name: &str,
    ) -> Result<Self, String> {
        let mut starting = Command::new(command);
        starting.args(args).process_group(0).kill_on_drop(true);
        starting.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with(OUR_ENVIRONMENT) {
                starting.env_remove(key);
            }
        }
        starting.envs(env);
        if let Some(directory) = directory {
            starting.current_dir(directory);
        }
        let mut process = starting.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let group = Group::of(&process);
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(format!("cannot reach the pipes of {command:?}"));
        };

        let (outbox, lines) = mpsc::channel(OUTBOX_MAX);
        let closing = CancellationToken::new();
        let gone = CancellationToken::new();
        let keeper = Keeper { process, group, inbox: Arc::clone(&inbox), closing: closing.clone() };
        let answers = outbox.downgrade();
        let reading = read(stdout, inbox, answers);
        let logging = log(stderr, name.to_owned());
        let finished = gone.clone();
        // Joined by `close`, through `gone`; ended by `closing`, which also fires when this is dropped.
        tokio::spawn(async move {
            keeper.keep(reading, write(stdin, lines), logging).await;
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

/// A process group, killed when this is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(process: &Process) -> Self {
        Self(process.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // The only failure is that nobody is left to get the signal.
            let _ = kill_process_group(group, signal);
        }
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
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
}

impl Keeper {
    async fn keep(
        mut self,
        reading: impl Future<Output = End> + Send + 'static,
        writing: impl Future<Output = ()> + Send + 'static,
        logging: impl Future<Output = ()> + Send + 'static,
    ) {
        // Aborted when this ends.
        let mut side = JoinSet::new();
        side.spawn(logging);
        let mut reader = tokio::spawn(reading);
        let mut writer = tokio::spawn(writing);
        tokio::select! {
            biased;
            () = self.closing.cancelled() => {
                writer.abort();
                self.dismiss().await;
                self.inbox.drain(|| Failure::Died);
                self.inbox.lose("stopped");
            }
            status = self.process.wait() => {
                // Whoever the child left behind would hold its output open.
                self.group.kill();
                let _ = timeout(DRAIN, &mut reader).await;
                self.inbox.drain(|| Failure::Died);
                self.inbox.lose(ended(status.ok()));
            }
            // A child that cannot be told anything is of no use, though it runs.
            _ = &mut writer => {
                let status = timeout(DRAIN, self.process.wait()).await.ok().and_then(Result::ok);
                self.group.kill();
                let _ = timeout(DRAIN, &mut reader).await;
                self.inbox.drain(|| Failure::Died);
                let _ = self.process.wait().await;
                self.inbox.lose(ended(status));
            }
            end = &mut reader => {
                let broken = match end {
                    Ok(End::Broken(how)) => Some(how),
                    Ok(End::Closed) | Err(_) => None,
                };
                self.inbox.drain(|| match &broken {
                    Some(how) => Failure::Broken(how.clone()),
                    None => Failure::Died,
                });
                let status = match broken {
                    Some(_) => None,
                    None => timeout(DRAIN, self.process.wait()).await.ok().and_then(Result::ok),
                };
                self.group.kill();
                let _ = self.process.wait().await;
                self.inbox.lose(broken.unwrap_or_else(|| ended(status)));
            }
        }
        reader.abort();
        writer.abort();
    }

    async fn dismiss(&mut self) {
        if timeout(GRACE, self.process.wait()).await.is_err() {
            self.group.signal(Signal::TERM);
            let _ = timeout(GRACE, self.process.wait()).await;
        }
        self.group.kill();
        let _ = self.process.wait().await;
    }
}

fn ended(status: Option<std::process::ExitStatus>) -> String {
    match status {
        Some(status) => format!("the process ended: {status}"),
        None => "the process closed its input or output".to_owned(),
    }
}

/// Writes message after message. Ends when the child takes no more.
async fn write(mut stdin: ChildStdin, mut lines: mpsc::Receiver<String>) {
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
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

async fn log(stderr: impl AsyncRead + Unpin, name: String) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        if let Line::End = read_line(&mut stderr, &mut line, STDERR_LINE_MAX).await {
            return;
        }
        tracing::info!(upstream = %name, line = %String::from_utf8_lossy(&line), "stderr");
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
