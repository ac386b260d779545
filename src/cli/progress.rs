//! A progress bar for work that takes longer than a moment.
//!
//! Invariants:
//! - nothing is drawn in the first second, without a terminal on standard error, or when asked to be quiet;
//! - the bar is removed before anything else is printed.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long the work may take before the bar appears.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Progress {
    bar: ProgressBar,
    since: Instant,
    waiting: bool,
}

impl Progress {
    /// Makes a bar that ends at `total`.
    pub fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style =
            ProgressStyle::with_template("{msg} [{wide_bar}] {human_pos}/{human_len} {per_sec} eta {eta}");
        // The template is a constant of ours; if it cannot be parsed, a plain bar will do.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        Self { bar, since: Instant::now(), waiting: !quiet }
    }

    /// Makes a bar that counts bytes, without a known total.
    pub fn bytes(what: &'static str, quiet: bool) -> Self {
        let progress = Self::new(what, 0, quiet);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bytes} {elapsed}") {
            progress.bar.set_style(style);
        }
        progress
    }

    /// Begins another stage, with its total.
    pub fn stage(&mut self, what: &'static str, total: u64) {
        self.bar.set_message(what);
        self.bar.set_length(total);
    }

    pub fn at(&mut self, position: u64) {
        if self.waiting && self.since.elapsed() >= PATIENCE {
            self.waiting = false;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
