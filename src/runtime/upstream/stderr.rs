//! What a child process says on its standard error, as lines of our log.
//!
//! Invariants:
//! - however much it says, it is read, so that the child never waits for us;
//! - what is logged of it is bounded by line, by second and in bytes; of what is left out, the amount is told;
//! - no character of it acts on whoever reads the log.

use std::time::Duration;

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader},
    time::{Instant, sleep_until},
};

use crate::visible;

/// Bytes of a line that are logged; the rest of it is left out.
const LINE_MAX: usize = 2 * 1024;
/// Lines and bytes that are logged at once, and those of each further second.
const LINES_AT_ONCE: u64 = 200;
const LINES_A_SECOND: u64 = 20;
const BYTES_AT_ONCE: u64 = 64 * 1024;
const BYTES_A_SECOND: u64 = 4 * 1024;
/// How often the amount that was left out is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What may be logged now: so many lines and bytes, and more with each second.
struct Budget {
    lines: u64,
    bytes: u64,
    filled: Instant,
}

/// What was left out and not told yet.
#[derive(Default)]
struct Dropped {
    lines: u64,
    bytes: u64,
    since: Option<Instant>,
}

/// The piece of a line that one reading gave.
enum Piece {
    /// So many bytes, and whether the line ends with them.
    Read {
        bytes: usize,
        ends: bool,
    },
    End,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { lines: LINES_AT_ONCE, bytes: BYTES_AT_ONCE, filled: now }
    }

    /// Takes what one line costs, if there is so much.
    fn take(&mut self, bytes: u64, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.filled).as_secs();
        self.filled += Duration::from_secs(seconds);
        self.lines = self.lines.saturating_add(seconds.saturating_mul(LINES_A_SECOND)).min(LINES_AT_ONCE);
        self.bytes = self.bytes.saturating_add(seconds.saturating_mul(BYTES_A_SECOND)).min(BYTES_AT_ONCE);
        let fits = self.lines > 0 && self.bytes >= bytes;
        if fits {
            self.lines -= 1;
            self.bytes -= bytes;
        }
        fits
    }
}

impl Dropped {
    fn add(&mut self, lines: u64, bytes: u64, now: Instant) {
        self.lines += lines;
        self.bytes += bytes;
        self.since.get_or_insert(now);
    }

    fn tell(&mut self, name: &str) {
        let Self { lines, bytes, since } = std::mem::take(self);
        if since.is_some() {
            tracing::warn!(upstream = %name, lines, bytes, "stderr: it says too much; left out of the log");
        }
    }

    /// Waits until what was left out is to be told.
    async fn due(&self) {
        match self.since {
            Some(since) => sleep_until(since + TELL_EVERY).await,
            None => std::future::pending().await,
        }
    }
}

/// Logs what a child says, until it says no more.
pub async fn log(stderr: impl AsyncRead + Unpin, name: String) {
    let mut stderr = BufReader::with_capacity(64 * 1024, stderr);
    let mut budget = Budget::new(Instant::now());
    let mut dropped = Dropped::default();
    let (mut line, mut beyond) = (Vec::new(), 0_u64);
    loop {
        let piece = tokio::select! {
            piece = read(&mut stderr, &mut line) => piece,
            () = dropped.due() => {
                dropped.tell(&name);
                continue;
            }
        };
        let ends = match piece {
            Piece::Read { bytes, ends } => {
                beyond += bytes as u64;
                ends
            }
            Piece::End => {
                if !line.is_empty() {
                    said(&name, &line, beyond, &mut budget, &mut dropped);
                }
                return dropped.tell(&name);
            }
        };
        if ends {
            said(&name, &line, beyond, &mut budget, &mut dropped);
            line.clear();
            beyond = 0;
        }
    }
}

/// Logs one line, or counts it as left out. `read` counts its bytes, of which only the first are in `line`.
fn said(name: &str, line: &[u8], read: u64, budget: &mut Budget, dropped: &mut Dropped) {
    let now = Instant::now();
    if !budget.take(line.len() as u64, now) {
        return dropped.add(1, read, now);
    }
    let text = String::from_utf8_lossy(line);
    let shown = visible::line(text.trim_end_matches('\r'));
    match read.saturating_sub(line.len() as u64) {
        0 => tracing::info!(upstream = %name, line = %shown, "stderr"),
        beyond => tracing::info!(upstream = %name, line = %shown, beyond, "stderr: a line was cut"),
    }
}

/// Reads up to the next line feed or the end of what is there, and keeps of a line what may be logged. Safe to drop.
async fn read(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Piece {
    let available = match reader.fill_buf().await {
        Ok([]) | Err(_) => return Piece::End,
        Ok(available) => available,
    };
    let end = available.iter().position(|byte| *byte == b'\n');
    let taken = end.unwrap_or(available.len());
    let kept = taken.min(LINE_MAX - line.len());
    line.extend_from_slice(&available[..kept]);
    reader.consume(taken + usize::from(end.is_some()));
    Piece::Read { bytes: taken, ends: end.is_some() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_at_its_rate_and_counted() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        let logged = (0..10_000).filter(|_| budget.take(100, begun)).count();
        assert_eq!(logged as u64, LINES_AT_ONCE);
        let later = begun + Duration::from_secs(3);
        let logged = (0..10_000).filter(|_| budget.take(10, later)).count();
        assert_eq!(logged as u64, 3 * LINES_A_SECOND);
        let much_later = begun + Duration::from_secs(3600);
        let logged = (0..10_000).filter(|_| budget.take(LINE_MAX as u64, much_later)).count();
        assert_eq!(logged as u64, BYTES_AT_ONCE / LINE_MAX as u64);
    }

    #[tokio::test]
    async fn of_a_line_without_end_only_the_beginning_is_kept() {
        let text = [vec![b'x'; 5 * LINE_MAX], b"\nshort\n".to_vec()].concat();
        let mut reader = BufReader::with_capacity(1000, text.as_slice());
        let (mut line, mut all) = (Vec::new(), 0);
        loop {
            match read(&mut reader, &mut line).await {
                Piece::Read { bytes, ends: true } => {
                    all += bytes;
                    break;
                }
                Piece::Read { bytes, ends: false } => all += bytes,
                Piece::End => panic!("the line has an end"),
            }
        }
        assert_eq!((line.len(), all), (LINE_MAX, 5 * LINE_MAX));
        line.clear();
        assert!(matches!(read(&mut reader, &mut line).await, Piece::Read { bytes: 5, ends: true }));
        assert_eq!(line, b"short");
    }
}
