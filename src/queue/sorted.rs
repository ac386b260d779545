//! A sorted set in chunks: small in memory, quick at both ends, and it knows how many stand before an entry.
//!
//! Invariants:
//! - no chunk is empty, none is longer than the bound, two neighbours together are longer than half of it;
//! - entries ascend within chunks and from chunk to chunk.

use std::collections::VecDeque;

/// Entries of one chunk: moving half of them costs less than a cache miss or two, and a million need 2,000 chunks.
const CHUNK_MAX: usize = 512;

/// A set of small entries in order.
#[derive(Clone, Debug)]
pub(super) struct Sorted<T> {
    chunks: VecDeque<VecDeque<T>>,
    len: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), len: 0 }
    }
}

impl<T: Ord + Copy> Sorted<T> {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<T> {
        self.chunks.front().and_then(|chunk| chunk.front()).copied()
    }

    /// Whether `entry` was not there yet. Ascending entries fill their chunks.
    pub(super) fn insert(&mut self, entry: T) -> bool {
        let at = self.chunk_of(&entry);
        if at == self.chunks.len() {
            self.push(entry);
            return true;
        }
        let chunk = &mut self.chunks[at];
        let Err(place) = chunk.binary_search(&entry) else {
            return false;
        };
        if chunk.len() == CHUNK_MAX {
            let upper = chunk.split_off(CHUNK_MAX / 2);
            self.chunks.insert(at + 1, upper);
            return self.insert(entry);
        }
        chunk.insert(place, entry);
        self.len += 1;
        true
    }

    /// Whether `entry` was there.
    pub(super) fn remove(&mut self, entry: &T) -> bool {
        let at = self.chunk_of(entry);
        let Some(chunk) = self.chunks.get_mut(at) else {
            return false;
        };
        let Ok(place) = chunk.binary_search(entry) else {
            return false;
        };
        chunk.remove(place);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(at);
        } else if chunk.len() <= CHUNK_MAX / 4 {
            self.join(at);
            self.join(at.wrapping_sub(1));
        }
        true
    }

    /// How many entries stand before `entry`, which need not be there itself.
    pub(super) fn rank(&self, entry: &T) -> usize {
        let at = self.chunk_of(entry);
        let before: usize = self.chunks.iter().take(at).map(VecDeque::len).sum();
        before + self.chunks.get(at).map_or(0, |chunk| chunk.partition_point(|other| other < entry))
    }

    /// The first chunk that does not end before `entry`.
    fn chunk_of(&self, entry: &T) -> usize {
        self.chunks.partition_point(|chunk| chunk.back().is_some_and(|last| last < entry))
    }

    /// Adds what comes after everything.
    fn push(&mut self, entry: T) {
        match self.chunks.back_mut().filter(|chunk| chunk.len() < CHUNK_MAX) {
            Some(chunk) => chunk.push_back(entry),
            None => {
                // Most lines of a key have one entry for ever.
                self.chunks.reserve_exact(usize::from(self.chunks.is_empty()));
                self.chunks.push_back(VecDeque::from([entry]));
            }
        }
        self.len += 1;
    }

    /// Makes one chunk of a short one and the next, where that leaves room to grow.
    fn join(&mut self, at: usize) {
        let (Some(chunk), Some(next)) = (self.chunks.get(at), self.chunks.get(at.wrapping_add(1))) else {
            return;
        };
        if chunk.len() + next.len() > CHUNK_MAX / 2 {
            return;
        }
        if let Some(mut next) = self.chunks.remove(at + 1) {
            self.chunks[at].append(&mut next);
        }
    }
}
