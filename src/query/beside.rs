//! Followed logs, asked beside our own for names that ours does not know.
//!
//! Invariants:
//! - our own log is asked first: a name it knows is never looked for elsewhere;
//! - logs beside it are opened when the first of them is needed, and not before;
//! - one that cannot be read is skipped with a warning; if ours cannot be read, there is no answer.

use std::{
    cell::OnceCell,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{QueryError, View, proof::Head};
use crate::{block::Cid, error::chain};

/// The pause between two warnings about one log, which every question that ours cannot answer would repeat.
const WARN_PAUSE: Duration = Duration::from_secs(60);
/// Logs whose last warning is remembered.
const WARNED_MAX: usize = 256;

/// A followed log, as far as it is folded.
pub struct Beside {
    /// Its genesis block.
    pub log: Cid,
    pub origin: String,
    pub view: View,
    /// The signed head over it; of size 0 while it is held in part.
    pub head: Head,
}

/// Our log and the followed ones.
pub struct Logs<'a> {
    own: &'a View,
    open: Box<dyn Fn() -> Vec<Beside> + 'a>,
    beside: OnceCell<Vec<Beside>>,
}

impl<'a> Logs<'a> {
    pub fn new(own: &'a View, open: impl Fn() -> Vec<Beside> + 'a) -> Self {
        Self { own, open: Box::new(open), beside: OnceCell::new() }
    }

    pub fn beside(&self) -> &[Beside] {
        self.beside.get_or_init(|| (self.open)())
    }

    /// Returns our log, then the followed ones, in a stable order.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        std::iter::once(self.own).chain(self.beside().iter().map(|beside| &beside.view))
    }

    pub(super) fn view(&self, place: usize) -> &View {
        match place.checked_sub(1) {
            None => self.own,
            Some(nth) => &self.beside()[nth].view,
        }
    }

    /// Returns a log's answer, or the default if it is a followed log that cannot be read.
    pub(super) fn readable<T: Default>(
        &self,
        place: usize,
        answer: Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        match (self.named(place), answer) {
            (Some(beside), Err(err @ QueryError::Fault(_))) => {
                passed_over(&beside.log, &err);
                Ok(T::default())
            }
            (_, answer) => answer,
        }
    }

    /// Returns the followed log at this place; `None` for our own.
    pub(super) fn named(&self, place: usize) -> Option<&Beside> {
        Some(&self.beside()[place.checked_sub(1)?])
    }

    /// Asks our log under `head`, then each followed log under its own head, until one has an answer.
    pub fn ask<T>(
        &self,
        head: &Head,
        question: impl Fn(&View, &Head) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        self.first(head, question).map(|(_, answer)| answer)
    }

    /// The same, with the place of the log that has the answer.
    pub(super) fn first<T>(
        &self,
        head: &Head,
        question: impl Fn(&View, &Head) -> Result<T, QueryError>,
    ) -> Result<(usize, T), QueryError> {
        let not_found = match question(self.own, head) {
            Err(err @ QueryError::NotFound(_)) => err,
            answer => return Ok((0, answer?)),
        };
        for (nth, beside) in self.beside().iter().enumerate() {
            match question(&beside.view, &beside.head) {
                Err(QueryError::NotFound(_)) => {}
                Err(err @ QueryError::Fault(_)) => passed_over(&beside.log, &err),
                answer => return Ok((nth + 1, answer?)),
            }
        }
        Err(not_found)
    }
}

/// Warns that a followed log cannot be read and is skipped, unless it did so within `WARN_PAUSE`.
pub fn passed_over(log: &Cid, err: &QueryError) {
    static WARNED: Mutex<Option<HashMap<Cid, Instant>>> = Mutex::new(None);
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    let warned = warned.get_or_insert_default();
    if warned.get(log).is_some_and(|last| last.elapsed() < WARN_PAUSE) {
        return;
    }
    if warned.len() >= WARNED_MAX {
        warned.clear();
    }
    warned.insert(*log, Instant::now());
    tracing::warn!(%log, err = chain(err), "a followed log cannot be read and is passed over");
}
