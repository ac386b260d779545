//! Whether an event may stand behind another in a log: the rule that whoever verifies, follows or keeps events holds
//! them to.
//!
//! Invariants:
//! - pure, and the same for every reader: what one refuses, all do;
//! - of two events that are no neighbours only what is common to all of a log is asked.

use crate::{
    block::Cid,
    event::{Fields, strict::Checked},
    words::words,
};

words! {
    /// What an event breaks of the order of its log.
    pub enum Misplaced {
        OtherLog = "the event is of another log",
        Seq = "the event stands after a later event",
        Prev = "`prev` is not the event before",
        Ts = "`ts` is before that of the event before",
    }
}

/// What the rule looks at of an event.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    pub log: Cid,
    pub seq: u64,
    pub prev: Option<Cid>,
    pub ts: u64,
}

/// An event that others come after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub seq: u64,
    pub cid: Cid,
    pub ts: u64,
}

impl Next {
    /// Returns everything that keeps the event from standing in `log`, behind `before` if there is one.
    pub fn misplaced(self, log: &Cid, before: Option<Before>) -> impl Iterator<Item = Misplaced> {
        let faults = move |before: Before| {
            let neighbours = before.seq.checked_add(1) == Some(self.seq);
            [
                (self.seq <= before.seq, Misplaced::Seq),
                (neighbours && self.prev != Some(before.cid), Misplaced::Prev),
                (self.ts < before.ts, Misplaced::Ts),
            ]
        };
        let of_log = [(self.log != *log, Misplaced::OtherLog)];
        let of_order = before.map(faults).into_iter().flatten();
        of_log.into_iter().chain(of_order).filter_map(|(broken, fault)| broken.then_some(fault))
    }
}

impl From<&Fields> for Next {
    fn from(fields: &Fields) -> Self {
        let Fields { log, seq, prev, ts, .. } = *fields;
        Self { log, seq, prev, ts }
    }
}

impl From<&Checked<'_>> for Next {
    fn from(event: &Checked<'_>) -> Self {
        let Checked { log, seq, prev, ts, .. } = *event;
        Self { log, seq, prev, ts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Codec;

    fn cid(name: &str) -> Cid {
        Cid::of(Codec::DagCbor, name.as_bytes())
    }

    /// Holds an event of `log` after the one of seq 4, called `before`, at 100 microseconds.
    fn check(log: &str, seq: u64, prev: &str, ts: u64, faults: &[Misplaced]) {
        let next = Next { log: cid(log), seq, prev: Some(cid(prev)), ts };
        let before = Before { seq: 4, cid: cid("before"), ts: 100 };
        let found: Vec<Misplaced> = next.misplaced(&cid("log"), Some(before)).collect();
        assert_eq!(found, faults, "{next:?}");
    }

    #[test]
    fn a_neighbour_names_the_event_before_it() {
        check("log", 5, "before", 100, &[]);
        check("log", 5, "other", 101, &[Misplaced::Prev]);
        check("log", 4, "before", 100, &[Misplaced::Seq]);
        check("log", 5, "before", 99, &[Misplaced::Ts]);
        check("other", 5, "other", 99, &[Misplaced::OtherLog, Misplaced::Prev, Misplaced::Ts]);
    }

    #[test]
    fn behind_a_hole_only_order_is_asked() {
        check("log", 6, "other", 100, &[]);
        check("log", 6, "other", 99, &[Misplaced::Ts]);
        check("log", u64::MAX, "other", 100, &[]);
    }

    #[test]
    fn the_first_that_is_met_stands_anywhere_in_its_log() {
        let next = Next { log: cid("log"), seq: 7, prev: Some(cid("before")), ts: 1 };
        assert_eq!(next.misplaced(&cid("log"), None).next(), None);
        assert_eq!(next.misplaced(&cid("other"), None).next(), Some(Misplaced::OtherLog));
    }
}
