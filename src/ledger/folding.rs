//! The folding thread: after each commit, the state, then the file of the signed head.
//!
//! Invariants:
//! - a head is written and told of only once its events are committed and folded;
//! - when this thread ends, the writer stops at its next commit.

use std::{
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    error::Chain,
    event::Event,
    ledger::{Reach, writer::Committed},
    log::home::HeadFile,
    state::{StateError, fold::Folder},
};

/// Events folded in one transaction while catching up.
const FOLD_MAX: usize = 8 * 1024;

pub(super) struct Folding {
    pub folder: Folder,
    pub head: HeadFile,
    pub reach: watch::Sender<Reach>,
    /// How often the signed head is forced to disk.
    pub sync_every: Duration,
}

impl Folding {
    /// Folds what is committed until the writer ends. Ending here first stops the writer.
    ///
    /// The state is folded after the commit and not in it, because every caller would have to wait for the fold
    /// otherwise.
    pub fn run(mut self, commits: Receiver<Committed>) {
        let mut synced = Instant::now();
        while let Ok(Committed { mut events, mut note }) = commits.recv() {
            while events.len() < FOLD_MAX
                && let Ok(more) = commits.try_recv()
            {
                events.extend(more.events);
                note = more.note;
            }
            if let Err(err) = self.folder.apply(&events) {
                tracing::error!(err = %Chain(&err), "fold failed; ledger stops");
                return;
            }
            let sync = synced.elapsed() >= self.sync_every;
            if sync {
                synced = Instant::now();
            }
            if let Err(err) = self.tell(note, sync) {
                tracing::error!(%err, "the signed head cannot be written; ledger stops");
                return;
            }
        }
        let last = self.reach.borrow().checkpoint.clone();
        if let Err(err) = self.tell(last, true) {
            tracing::error!(%err, "the last signed head cannot be written");
        }
    }

    /// Writes the signed head over the folded events into its file, then publishes how far that is.
    pub fn tell(&mut self, checkpoint: String, sync: bool) -> std::io::Result<()> {
        self.head.write(&checkpoint, sync)?;
        self.reach.send_replace(Reach { applied: self.folder.applied(), checkpoint });
        Ok(())
    }
}

/// Folds everything the log has beyond the state. `step` is told how many events are folded.
pub(super) fn catch_up(
    folder: &mut Folder,
    log: &dyn crate::log::Reader,
    step: &mut dyn FnMut(u64),
) -> Result<(), StateError> {
    use std::ops::ControlFlow;
    loop {
        let mut events = Vec::with_capacity(FOLD_MAX);
        let mut unreadable = false;
        log.events(folder.applied(), &mut |row| match Event::open(row.bytes.to_vec()) {
            Ok(event) => {
                events.push(event);
                if events.len() < FOLD_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }
            Err(_) => {
                unreadable = true;
                ControlFlow::Break(())
            }
        })?;
        if events.is_empty() {
            return match unreadable {
                true => Err(StateError::Broken {
                    what: "an event in the log cannot be read; see `cairn log verify`",
                }),
                false => Ok(()),
            };
        }
        folder.apply(&events)?;
        step(folder.applied());
    }
}
