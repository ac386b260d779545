//! Counts of content reads and of refused requests, by principal and minute, until they are recorded in the log.
//!
//! Invariants:
//! - memory is bounded: past `COUNTS_MAX` principals are counted together, past `MINUTES_MAX` minutes are;
//! - adding a count waits for no IO: only for the lock of the counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use crate::{
    clock::now_s,
    event::{Actor, keeping::Reason},
};

/// Counts kept apart in one minute, by principal and by what was done: each becomes an event.
const COUNTS_MAX: usize = 1024;
/// The largest number of minutes that may wait to be recorded. Later counts go to the last of them.
const MINUTES_MAX: usize = 16;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// The content of a payload was read.
    Read,
    Refused(Reason),
}

/// How often a principal did something within one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
/// Minutes since the Unix epoch.
pub struct Count {
    pub minute: u64,
    pub actor: Actor,
    pub what: What,
    pub times: u64,
}

/// The counts of one minute, by principal and by what was done.
type Tally = HashMap<(Actor, What), u64>;

/// The counts that are not recorded yet, by minute.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<u64, Tally>>);

impl Counts {
    /// Adds to the count of the current minute.
    pub fn add(&self, actor: &Actor, what: What, times: u64) {
        self.add_at(now_s() / 60, actor, what, times);
    }

    fn add_at(&self, minute: u64, actor: &Actor, what: What, times: u64) {
        if times == 0 {
            return;
        }
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = match minutes.last_key_value() {
            Some((last, _)) if minutes.len() >= MINUTES_MAX && !minutes.contains_key(&minute) => *last,
            _ => minute,
        };
        let counts = minutes.entry(minute).or_default();
        let known = counts.len() < COUNTS_MAX || counts.contains_key(&(actor.clone(), what));
        let actor = if known { actor.clone() } else { several() };
        let count = counts.entry((actor, what)).or_default();
        *count = count.saturating_add(times);
    }

    /// Removes and returns the counts of past minutes, or with `all` those of the current minute too. They are sorted
    /// by minute, by what was counted, then by principal.
    pub fn take(&self, all: bool) -> Vec<Count> {
        self.take_before(if all { u64::MAX } else { now_s() / 60 })
    }

    /// Adds counts back that were taken and could not be recorded.
    pub fn put_back(&self, counts: impl Iterator<Item = Count>) {
        for Count { minute, actor, what, times } in counts {
            self.add_at(minute, &actor, what, times);
        }
    }

    fn take_before(&self, before: u64) -> Vec<Count> {
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let later = minutes.split_off(&before);
        let over = std::mem::replace(&mut *minutes, later);
        let mut counts: Vec<Count> = over
            .into_iter()
            .flat_map(|(minute, counts)| {
                counts.into_iter().map(move |((actor, what), times)| Count { minute, actor, what, times })
            })
            .collect();
        counts.sort_by(|a, b| {
            let key =
                |count: &Count| (count.minute, count.what, count.actor.role.clone(), count.actor.id.clone());
            key(a).cmp(&key(b))
        });
        counts
    }
}

/// Returns the actor that stands for callers without a valid token.
pub fn unknown() -> Actor {
    Actor { id: "unknown".to_owned(), role: "anonymous".to_owned(), proof: None }
}

/// Returns the actor that stands for all principals past `COUNTS_MAX`, and for those that no event can name.
pub fn several() -> Actor {
    Actor { id: "others".to_owned(), role: "several".to_owned(), proof: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: &str) -> Actor {
        Actor { id: id.to_owned(), role: "client".to_owned(), proof: None }
    }

    fn told(counts: &Counts, before: u64) -> Vec<(u64, String, What, u64)> {
        let taken = counts.take_before(before).into_iter();
        taken.map(|count| (count.minute, count.actor.id, count.what, count.times)).collect()
    }

    #[test]
    fn counts_are_by_principal_and_minute_and_taken_once() {
        let counts = Counts::default();
        let invalid = What::Refused(Reason::Invalid);
        for (minute, id, what, times) in [
            (7, "ann", What::Read, 2),
            (7, "ann", What::Read, 3),
            (7, "ben", What::Read, 1),
            (7, "ann", invalid, 1),
            (8, "ann", What::Read, 1),
            (8, "ann", What::Read, 0),
        ] {
            counts.add_at(minute, &client(id), what, times);
        }
        let seventh = [
            (7, "ann".to_owned(), What::Read, 5),
            (7, "ben".to_owned(), What::Read, 1),
            (7, "ann".to_owned(), invalid, 1),
        ];
        assert_eq!(told(&counts, 8), seventh);
        assert_eq!(told(&counts, 8), []);
        assert_eq!(told(&counts, u64::MAX), [(8, "ann".to_owned(), What::Read, 1)]);
    }

    #[test]
    fn principals_past_the_bound_are_counted_together() {
        let counts = Counts::default();
        for n in 0..COUNTS_MAX + 5 {
            counts.add_at(1, &client(&format!("p{n}")), What::Read, 1);
        }
        counts.add_at(1, &client("p0"), What::Read, 1);
        let taken = counts.take_before(2);
        assert_eq!(taken.len(), COUNTS_MAX + 1);
        let times = |id: &str| taken.iter().find(|count| count.actor.id == id).map(|count| count.times);
        assert_eq!((times("p0"), times("others")), (Some(2), Some(5)));
    }

    #[test]
    fn minutes_that_wait_are_bounded() {
        let counts = Counts::default();
        for minute in 0..100 {
            counts.add_at(minute, &client("ann"), What::Read, 1);
        }
        let taken = counts.take_before(u64::MAX);
        assert_eq!(taken.len(), MINUTES_MAX);
        assert_eq!(taken.iter().map(|count| count.times).sum::<u64>(), 100);
    }
}
