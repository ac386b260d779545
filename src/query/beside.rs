//! Logs beside our own, asked where ours does not know a name.
//!
//! Invariants:
//! - our own log is asked first: a name it knows is never looked for elsewhere;
//! - logs beside it are opened when the first of them is needed, and not before;
//! - one that cannot be read is passed over and warned of; where ours cannot be read, there is no answer.

use std::{
    cell::OnceCell,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{QueryError, View, proof::Head};
use crate::{block::Cid, error::chain};

/// Between two warnings of one log: it is asked by every question that ours cannot answer.
const WARN_PAUSE: Duration = Duration::from_secs(60);
/// Logs whose last warning is remembered.
const WARNED_MAX: usize = 256;

/// Another's log that is kept here, as far as it is folded.
pub struct Beside {
    /// Its genesis block.
    pub log: Cid,
    pub origin: String,
    pub view: View,
    /// The head that signs it; of no event while it is held in part.
    pub head: Head,
}

/// A log and those beside it.
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

    /// Our log, then those beside it. A place among them is stable.
    pub(super) fn views(&self) -> impl Iterator<Item = &View> {
        std::iter::once(self.own).chain(self.beside().iter().map(|beside| &beside.view))
    }

    pub(super) fn view(&self, place: usize) -> &View {
        match place.checked_sub(1) {
            None => self.own,
            Some(nth) => &self.beside()[nth].view,
        }
    }

    /// What one of the logs answers; nothing where it is another's and cannot be read.
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

    /// What a log is called; none for our own.
    pub(super) fn named(&self, place: usize) -> Option<&Beside> {
        Some(&self.beside()[place.checked_sub(1)?])
    }

    /// Asks a question of our log under `head`, then of each beside it under its own, until one knows.
    pub fn ask<T>(
        &self,
        head: &Head,
        question: impl Fn(&View, &Head) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        self.first(head, question).map(|(_, answer)| answer)
    }

    /// The same, with the place of the log that knows.
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

/// Warns that another's log cannot be read and is not asked, unless that was said a moment ago.
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
