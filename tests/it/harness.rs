//! The built server and other people's programs, as a test meets them: processes, sockets, a data directory.
//!
//! Invariants:
//! - nothing outlives its test: a child is killed, with its own children, when its handle is dropped;
//! - nothing waits for ever: every read and every run has a bound, and passing it fails with what was said so far.

#![allow(dead_code, reason = "each file of tests uses its own part")]

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// From start to the ready line: a start may have a log to catch up with, on a busy machine.
const READY_MAX: Duration = Duration::from_secs(60);
/// From SIGTERM to the end; the server promises 10 s.
const STOP_MAX: Duration = Duration::from_secs(15);
/// One HTTP exchange.
const EXCHANGE_MAX: Duration = Duration::from_secs(60);
/// One run of a program: the conformance suite is the longest.
const RUN_MAX: Duration = Duration::from_secs(300);
/// Between two looks at a child that is ending.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A directory that is removed when dropped.
pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("the system has room for a temporary directory")
}

/// `cairn ARGS...`, not yet started.
pub fn cairn<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.args(args).env("NO_COLOR", "1");
    command
}

/// A child in its own process group, whose standard error is kept and, line by line, its standard output.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    /// Closed once standard error has been read to its end.
    errors_open: Receiver<()>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"));
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("stdout was asked for"));
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test may have read all it wants; the child must still find its pipe open.
                let _ = send.send(line);
            }
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("stderr was asked for"));
        let kept = Arc::clone(&errors);
        let (open, errors_open) = channel();
        thread::spawn(move || {
            let _open: Sender<()> = open;
            for line in stderr.lines().map_while(Result::ok) {
                let mut kept = kept.lock().expect("no holder of this lock panics");
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        Self { child, lines, errors, errors_open }
    }

    /// The next line of standard output; none once it is closed. Fails after `within`.
    pub fn line(&self, within: Duration) -> Option<String> {
        match self.lines.recv_timeout(within) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no line within {within:?}; stderr:\n{}", self.errors())
            }
        }
    }

    /// Writes one line to standard input.
    pub fn tell(&mut self, line: &str) {
        assert!(self.try_tell(line), "it has ended; stderr:\n{}", self.errors());
    }

    /// The same; false where nobody reads it any more.
    pub fn try_tell(&mut self, line: &str) -> bool {
        let stdin = self.child.stdin.as_mut().expect("stdin is still open");
        writeln!(stdin, "{line}").is_ok()
    }

    /// Closes standard input.
    pub fn hang_up(&mut self) {
        self.child.stdin = None;
    }

    /// What it said on standard error until now.
    pub fn errors(&self) -> String {
        let kept = self.errors.lock().expect("no holder of this lock panics");
        kept.clone()
    }

    /// All it said on standard error, once it has ended; what was said so far where a child of its own still may.
    pub fn last_errors(&self) -> String {
        let _ = self.errors_open.recv_timeout(STOP_MAX);
        self.errors()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by name, to the child and its own children.
    pub fn signal(&self, name: &str) {
        let group = format!("-{}", self.child.id());
        let sent = Command::new("kill").args(["-s", name, "--", &group]).stderr(Stdio::null()).status();
        assert!(sent.is_ok(), "the system has no `kill`");
    }

    /// Waits for the end. Fails after `within`.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                return status;
            }
            thread::sleep(LOOK_EVERY);
        }
        panic!("still running after {within:?}; stderr:\n{}", self.errors())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal("KILL");
        self.wait(STOP_MAX)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal("KILL");
            // A second failure while a test fails would hide the first.
            let _ = self.child.wait();
        }
    }
}

/// A running `cairn serve`.
pub struct Server {
    pub process: Process,
    /// The line it printed when it was ready.
    pub ready: String,
    /// `http://ADDRESS:PORT`
    pub url: String,
}

impl Server {
    /// Starts on `data` at a free port of loopback; `extra` are further arguments of `cairn serve`.
    pub fn start(data: &Path, extra: &[&str]) -> Self {
        let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data).args(extra);
        Self::start_as(command)
    }

    /// Starts `command`, which prints a server's ready line.
    pub fn start_as(command: Command) -> Self {
        let process = Process::start(command);
        let Some(ready) = process.line(READY_MAX) else {
            panic!("ended before it was ready; stderr:\n{}", process.last_errors())
        };
        let url = address(&ready)
            .unwrap_or_else(|| panic!("no http address in the ready line: {ready}"))
            .to_owned();
        Self { process, ready, url }
    }

    pub fn mcp(&self) -> String {
        format!("{}/mcp", self.url)
    }

    /// Ends it at once, as a crash would.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Asks it to drain and stop; gives how it ended.
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal("TERM");
        let status = self.process.wait(STOP_MAX);
        if !status.success() {
            eprintln!("{status}; stderr:\n{}", self.process.last_errors());
        }
        status
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    /// Posts one JSON-RPC message to `/mcp` with the headers every client sends.
    pub fn post(&self, message: &Value) -> Reply {
        let headers =
            [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
        self.send("POST", "/mcp", &headers, message.to_string().as_bytes())
    }

    /// One exchange over a connection of its own. `headers` come before, and may replace, `host`.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let host = self.url.trim_start_matches("http://");
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("host: {host}\r\n");
        }
        head += &format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
        self.exchange(&[head.as_bytes(), body].concat())
    }

    /// Writes these bytes, well formed or not, and reads the reply to its end.
    pub fn exchange(&self, bytes: &[u8]) -> Reply {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("the server listens");
        for bound in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            bound(&stream, Some(EXCHANGE_MAX)).expect("the bound is over zero");
        }
        // A server that refuses early closes before it has read all; its reply is what counts.
        let _ = stream.write_all(bytes);
        let mut raw = Vec::new();
        let end = stream.read_to_end(&mut raw);
        Reply::read(&raw).unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&raw);
            panic!("not an http reply ({end:?}): {text}; stderr:\n{}", self.process.errors())
        })
    }
}

/// The first `http://HOST:PORT` in a text.
fn address(text: &str) -> Option<&str> {
    let start = text.find("http://")?;
    let rest = &text[start..];
    let host = rest.get("http://".len()..)?;
    let end = host.find(|c: char| !(c.is_ascii_alphanumeric() || ".:[]-".contains(c)));
    Some(&rest[.."http://".len() + end.unwrap_or(host.len())])
}

/// An HTTP reply, its chunks joined.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    fn read(raw: &[u8]) -> Option<Self> {
        let split = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&raw[..split]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut reply = Self { status, headers, body: raw[split + 4..].to_vec() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = join(&reply.body)?;
        }
        Some(reply)
    }

    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(own, _)| own == name);
        found.next().map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// The body as JSON; the last message of it where it is an event stream.
    pub fn json(&self) -> Value {
        let stream = self.header("content-type") == Some("text/event-stream");
        let text = match stream {
            true => self.text().lines().filter_map(|line| line.strip_prefix("data:")).next_back(),
            false => Some(self.text()),
        };
        let text = text.unwrap_or_else(|| panic!("no message in {self:?}"));
        serde_json::from_str(text).unwrap_or_else(|err| panic!("{err} in {text}"))
    }
}

/// Joins the chunks of a chunked body.
fn join(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let chunk = rest.get(end + 2..end + 2 + size)?;
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..)?;
    }
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output of a program that succeeded; fails with all it said where it did not.
    pub fn succeeded(self) -> String {
        let Self { status, stdout, stderr } = self;
        let signal = status.signal();
        assert!(status.success(), "{status} (signal {signal:?})\nstdout:\n{stdout}\nstderr:\n{stderr}");
        stdout
    }
}

/// Runs to the end with nothing on standard input. Fails after [`RUN_MAX`].
pub fn run(command: Command) -> Ran {
    let mut process = Process::start(command);
    process.hang_up();
    let deadline = Instant::now() + RUN_MAX;
    let mut stdout = String::new();
    while let Some(line) = process.line(deadline.saturating_duration_since(Instant::now())) {
        stdout.push_str(&line);
        stdout.push('\n');
    }
    let status = process.wait(STOP_MAX);
    Ran { status, stdout, stderr: process.last_errors() }
}

/// Runs `cairn ARGS...` and checks its exit code.
pub fn exits(code: i32, args: &[&str]) -> Ran {
    let ran = run(cairn(args));
    assert_eq!(ran.status.code(), Some(code), "{args:?}: {ran:?}");
    ran
}

/// The JSON that `cairn ARGS...` prints where it succeeds.
pub fn told(args: &[&str]) -> Value {
    let ran = exits(0, args);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|err| panic!("{args:?}: {err} in {ran:?}"))
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Runs a script of `tests/clients`, or of a package installed there, with the Node.js installed there.
pub fn node(script: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(needs("node_modules/node/bin/node"));
    command.arg(needs(script)).args(args);
    run(on_path(command))
}

/// Runs a script of `tests/clients` with the Python installed there.
pub fn python(script: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(needs("venv/bin/python"));
    command.arg(needs(script)).args(args);
    run(on_path(command))
}

/// Puts the Node.js of `tests/clients` first on the command's path, for programs that start it by name.
pub fn on_path(mut command: Command) -> Command {
    let own = needs("node_modules/node/bin");
    let old = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(own).chain(std::env::split_paths(&old));
    let path = std::env::join_paths(all).expect("the folder's path holds no colon");
    command.env("PATH", path);
    command
}

/// A file of `tests/clients` that must be there.
pub fn needs(path: &str) -> PathBuf {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(path);
    assert!(full.exists(), "{} is missing: run tests/clients/setup", full.display());
    full
}
