//! Courses: how keeping up with each followed peer goes, for whoever asks.
//!
//! Invariants:
//! - a change of a course is reported once; the metrics count what is reported;
//! - a peer that is not followed has none.

use std::collections::{BTreeMap, HashMap};

use super::{Hub, following::Following};
use crate::{
    block::Cid,
    caller::Peer,
    clock::now_ms,
    follow::course::{Course, Pursuit},
};

impl Hub {
    /// Returns every followed peer with its course.
    pub fn pursuits(&self) -> Vec<Pursuit> {
        self.follows().values().map(|following| following.pursuit.clone()).collect()
    }

    /// Notes which log a followed peer has shown.
    pub(super) fn showed(&self, peer: &str, log: Cid) {
        if let Some(following) = self.follows().get_mut(peer) {
            following.pursuit.log = Some(log);
        }
    }

    /// Sets the course of following a peer. Returns whether it has changed.
    pub(super) fn goes(&self, peer: &str, course: Course, error: Option<String>) -> bool {
        let mut follows = self.follows();
        let changed = follows.get_mut(peer).is_some_and(|following| {
            let pursuit = &mut following.pursuit;
            let changed = (pursuit.course, &pursuit.error) != (course, &error);
            if pursuit.course != course {
                pursuit.since_ms = now_ms();
            }
            (pursuit.course, pursuit.error) = (course, error);
            changed
        });
        self.count_courses(&follows);
        changed
    }

    /// Publishes the counts. Call it with the lock still held, so that the last value published is the current one.
    pub(super) fn count_courses(&self, follows: &HashMap<Peer, Following>) {
        let mut counts: BTreeMap<Course, u64> = Course::ALL.into_iter().map(|course| (course, 0)).collect();
        for following in follows.values() {
            *counts.entry(following.pursuit.course).or_default() += 1;
        }
        for (course, count) in counts {
            self.inner.parts.metrics.peers.followed(course.as_str(), count);
        }
    }
}
