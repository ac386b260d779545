//! Logs beside our own, asked where ours does not know a name.
//!
//! Invariants:
//! - our own log is asked first: a name it knows is never looked for elsewhere;
//! - logs beside it are opened when the first of them is needed, and not before.

use std::cell::OnceCell;

use super::{QueryError, View, proof::Head};
use crate::block::Cid;

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
                answer => return Ok((nth + 1, answer?)),
            }
        }
        Err(not_found)
    }
}
