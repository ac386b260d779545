//! What every history keeps, whatever the rules are made of.
//!
//! Each promise is asked of all tasks, not of what the queue or a rule remembers.

use std::collections::BTreeSet;

use super::{Stands, World};
use crate::{event::Body, task::Task};

impl World {
    /// What holds after every event, whatever the rules are made of.
    pub(super) fn check(&mut self, before: &Task, after: &Task, body: &Body) {
        let said = format!("seed {}, {} at {}: {body:?}", self.seed, after.id, self.now_ms);
        assert!(after.fence >= before.fence, "{said}: a fence only grows");
        assert!(after.attempt <= after.fence && after.lapses <= after.attempt, "{said}");
        match body {
            Body::TaskClaimed(_) => {
                assert_eq!(before.status, Stands::Queued, "{said}: it has one holder");
                assert!(after.fence > before.fence, "{said}: each claim has its own fence");
                assert!(!self.barred.contains(&after.id), "{said}: its cancel was answered");
                assert!(before.ready_ms <= self.seen_ms, "{said}: it was for later");
                if let Some(key) = &after.facts.concurrency_key {
                    let holders = self.tasks.values().filter(|task| {
                        task.status == Stands::Running && task.facts.concurrency_key.as_ref() == Some(key)
                    });
                    assert_eq!(holders.count(), 1, "{said}: its key has one running task");
                }
            }
            Body::TaskSucceeded(_) => {
                assert_eq!(before.status, Stands::Running, "{said}");
                assert!(self.succeeded.insert(after.id.clone()), "{said}: it succeeds once");
            }
            Body::TaskInterrupted(facts) if !before.facts.repeatable => {
                assert!(!facts.again && after.status == Stands::Failed, "{said}: it must not run twice");
            }
            Body::TaskRetried(_) => {
                self.barred.remove(&after.id);
            }
            _ => {}
        }
        let queued = self.tasks.values().filter(|task| task.status == Stands::Queued).count();
        assert_eq!(self.queue.len(), queued, "{said}: what waits stands in the queue");
    }

    /// Nothing that the worker could have taken instead stands before what it got.
    pub(super) fn check_first(&self, taken: &Task, capabilities: &BTreeSet<String>) {
        let running = |key: &String| {
            self.tasks.values().any(|task| {
                task.status == Stands::Running && task.facts.concurrency_key.as_ref() == Some(key)
            })
        };
        let open = self.tasks.values().filter(|task| {
            let facts = &task.facts;
            task.status == Stands::Queued
                && task.ready_ms <= self.now_ms
                && capabilities.contains(&facts.task_type)
                && facts.requires.iter().all(|word| capabilities.contains(word))
                && facts.rate_key.is_none()
                && !facts.concurrency_key.as_ref().is_some_and(running)
        });
        let first = open.min_by_key(|task| (task.facts.order, task.seq));
        let before =
            first.is_none_or(|first| (taken.facts.order, taken.seq) <= (first.facts.order, first.seq));
        assert!(before, "seed {}: {} before {first:?}", self.seed, taken.id);
    }
}
