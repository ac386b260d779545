//! Standard output, for pipes as well as for people.
//!
//! Invariants:
//! - if the reader closes the pipe, the program ends quietly and never panics, also while there is nothing to print;
//! - characters that a terminal obeys or hides are printed as escapes, in JSON too;
//! - lines are written in large pieces, and flushed before the program waits for more.

use std::{
    fmt,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use crate::visible;

/// How often it is looked whether the reader of standard output has gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why printing failed.
#[derive(Debug, thiserror::Error)]
pub enum OutError {
    /// The reader has closed the pipe.
    #[error("standard output is closed")]
    Closed,
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl From<io::Error> for OutError {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Write(err),
        }
    }
}

/// Standard output, buffered. Call [`Out::flush`] at the end and before waiting.
pub struct Out(BufWriter<io::Stdout>);

impl Out {
    pub fn new() -> Self {
        Self(BufWriter::new(io::stdout()))
    }

    pub fn line(&mut self, text: &str) -> Result<(), OutError> {
        Ok(writeln!(self.0, "{text}")?)
    }

    pub fn flush(&mut self) -> Result<(), OutError> {
        Ok(self.0.flush()?)
    }
}

/// Prints one text and a line end.
pub fn print(text: &str) -> Result<(), OutError> {
    let mut out = Out::new();
    out.line(text.trim_end_matches('\n'))?;
    out.flush()
}

/// Prints one JSON document: indented for people, on one line for programs.
pub fn print_json(value: &Value) -> Result<(), OutError> {
    match io::stdout().is_terminal() {
        true => print(&visible::json(&format!("{value:#}"))),
        false => print(&json(value)),
    }
}

/// Returns a JSON document on one line.
pub fn json(value: &Value) -> String {
    visible::json(&value.to_string()).into_owned()
}

/// Prints a line on standard error. Nobody reading it is no fault.
pub fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns once the reader of standard output has gone. For commands that wait and may have nothing to print for long.
pub async fn left() -> OutError {
    loop {
        let stdout = io::stdout();
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        let gone = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if gone.is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return OutError::Closed;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Writes a file with `write`, or standard output if the path is `-`.
///
/// The former file stays until the new one is on disk, since the new one is renamed over it.
pub fn to_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>) -> anyhow::Result<T> {
    if path.as_os_str() == "-" {
        let mut pipe = Pipe::default();
        let mut out = BufWriter::new(&mut pipe);
        let written = write(&mut out).and_then(|written| {
            out.flush().map_err(OutError::from)?;
            Ok(written)
        });
        drop(out);
        return match pipe.closed {
            true => Err(OutError::Closed.into()),
            false => written,
        };
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = Path::new(&name);
    let context = || format!("cannot write {}", path.display());
    let with = |err: io::Error| anyhow::Error::new(err).context(context());
    let mut file = BufWriter::new(File::create(part).map_err(with)?);
    let written = write(&mut file).and_then(|written| {
        file.flush().map_err(with)?;
        file.get_ref().sync_all().map_err(with)?;
        Ok(written)
    });
    if written.is_err() {
        // The partial file is of no use; failing to remove it must not hide the first error.
        let _ = std::fs::remove_file(part);
        return written;
    }
    std::fs::rename(part, path).map_err(with)?;
    written
}

/// Standard output that notes whether its reader has closed it, even if the error gets lost on the way.
#[derive(Default)]
struct Pipe {
    closed: bool,
}

impl Pipe {
    fn noted<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        let broken = |err: &io::Error| err.kind() == io::ErrorKind::BrokenPipe;
        self.closed |= done.as_ref().is_err_and(broken);
        done
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = io::stdout().write(bytes);
        self.noted(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = io::stdout().flush();
        self.noted(done)
    }
}
