//! Following: the board kept in step with one upstream, whose connections and settings may be replaced meanwhile.
//!
//! Invariants:
//! - an upstream that is lost keeps its place: its tools stay listed, and calls say that it is unavailable;
//! - calls that run on connections which are replaced or removed end by themselves, within a bound.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    router::{Change, Router},
    runtime::{
        fleet::Fleet,
        gateway::{Gateway, Settings},
        seat::Seat,
        upstream::{self, Changes, State},
    },
};

/// How often connections of sessions that have ended are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The connections to an upstream, and how their offer appears here. Either may be replaced while calls run.
#[derive(Clone)]
pub struct Course {
    pub fleet: Arc<Fleet>,
    pub settings: Settings,
}

/// When the following of an upstream ends: with the node, or before it, because the upstream was removed.
#[derive(Clone)]
pub struct Until {
    pub stop: CancellationToken,
    pub removed: CancellationToken,
}

/// Tells of each fleet of an upstream, once its tools are on the board or its first connection has failed.
pub type Settled = watch::Sender<Option<(Arc<Fleet>, State)>>;

/// Keeps the board in step with one upstream until it is removed, or until the node or the ledger ends.
///
/// A fleet that takes the place of another gets its calls once it has settled. Until then they go to the one before.
pub async fn follow(
    mut course: watch::Receiver<Course>,
    router: Router,
    metrics: Arc<Metrics>,
    until: Until,
    settled: Settled,
) {
    let Course { fleet, settings } = course.borrow().clone();
    let retiring = JoinSet::new();
    let mut follower =
        Follower { router, metrics, settled, seat: Arc::new(Seat::new(fleet)), until, retiring };
    loop {
        let now = course.borrow_and_update().clone();
        if follower.attend(&now, &mut course).await == Next::Over {
            break;
        }
    }
    let last = course.borrow().fleet.clone();
    follower.end(&settings.name, &last).await;
}

struct Follower {
    router: Router,
    metrics: Arc<Metrics>,
    settled: Settled,
    seat: Arc<Seat>,
    until: Until,
    /// The fleets that were replaced and still have calls.
    retiring: JoinSet<()>,
}

/// What comes after a course.
#[derive(PartialEq, Eq)]
enum Next {
    Course,
    Over,
}

impl Follower {
    /// Follows one course until there is another.
    async fn attend(&mut self, now: &Course, course: &mut watch::Receiver<Course>) -> Next {
        let fleet = &now.fleet;
        let name = now.settings.name.clone();
        let (mut offer, mut members) = (fleet.first.offer(), fleet.changed());
        let mut updates = fleet.updates();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut announced: BTreeMap<Arc<str>, Changes> = BTreeMap::new();
        // Until it is there, or has failed and says why.
        let mut why = "it is not connected yet".to_owned();
        loop {
            members.borrow_and_update();
            let offered = offer.borrow_and_update().clone();
            if let State::Failed { message } = &offered.state {
                why.clone_from(message);
            }
            let Some(now) = self.show(now, &offered, &announced, &why).await else { return Next::Over };
            announced = now;
            loop {
                tokio::select! {
                    changed = course.changed() => return match changed {
                        Ok(()) => Next::Course,
                        Err(_) => Next::Over,
                    },
                    changed = offer.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return Next::Over,
                    },
                    Ok(()) = members.changed() => break,
                    Ok(uri) = updates.recv() => self.router.updated(&name, uri),
                    Some(_) = self.retiring.join_next() => {}
                    _ = sweep.tick() => {
                        self.seat.suspended.sweep();
                        fleet.sweep().await;
                    }
                    () = self.until.stop.cancelled() => return Next::Over,
                    () = self.until.removed.cancelled() => return Next::Over,
                }
            }
        }
    }

    /// Puts what is offered now on the board. Returns what has been announced; `None` if the ledger has ended.
    async fn show(
        &mut self,
        Course { fleet, settings }: &Course,
        offered: &upstream::Offered,
        announced: &BTreeMap<Arc<str>, Changes>,
        why: &str,
    ) -> Option<BTreeMap<Arc<str>, Changes>> {
        let seen = fleet.seen();
        let up = offered.state == State::Ready;
        self.metrics.upstream_up(&settings.name, up);
        if offered.state != State::Connecting
            && let Some(before) = self.seat.take(fleet)
        {
            let hurry = self.until.stop.clone();
            self.retiring.spawn(async move { before.retire(&hurry).await });
        }
        let mut told = Vec::new();
        if up {
            let run = Gateway { seat: self.seat.clone(), mirrors: fleet.first.mirrors() };
            told = self.router.put(settings.offering(offered, &seen, run)).await.ok()?;
        }
        self.router.note_away(&settings.name, (!up).then(|| settings.absence(why)));
        fleet.settle(seen.settled);
        // What the upstream announces is passed on, though the list may be the same as before.
        let now = announcements(offered, &seen.views);
        let untold = announced_changes(announced, &now).filter(|change| !told.contains(change));
        untold.for_each(|change| self.router.notify(change));
        if offered.state != State::Connecting {
            let told = |told: &Option<(Arc<Fleet>, State)>| {
                told.as_ref().is_some_and(|(told, _)| Arc::ptr_eq(told, fleet))
            };
            self.settled.send_if_modified(|settled| {
                let first = !told(settled);
                if first {
                    *settled = Some((fleet.clone(), offered.state.clone()));
                }
                first
            });
        }
        Some(now)
    }

    /// Takes the upstream off the board if it was removed, and ends its connections once their calls have ended.
    async fn end(mut self, name: &str, last: &Arc<Fleet>) {
        let stop = self.until.stop;
        if self.until.removed.is_cancelled() && !stop.is_cancelled() {
            // Whatever the ledger's end leaves undone, its next opening does.
            let _ = self.router.remove(name).await;
        }
        self.router.note_away(name, None);
        self.metrics.upstream_up(name, false);
        let before = self.seat.fleet();
        let both = [&before, last].into_iter().map(|fleet| fleet.retire(&stop));
        futures_util::future::join_all(both).await;
        while self.retiring.join_next().await.is_some() {}
    }
}

/// Returns how often each connection has announced changes, by capabilities; the first one stands under an empty text.
fn announcements(
    first: &upstream::Offered,
    views: &BTreeMap<Arc<str>, Arc<upstream::Offered>>,
) -> BTreeMap<Arc<str>, Changes> {
    let of_members = views.iter().map(|(capabilities, offered)| (capabilities.clone(), offered.announced));
    of_members.chain([(Arc::default(), first.announced)]).collect()
}

/// Returns the lists that were announced between two counts. A connection that is new has announced nothing.
fn announced_changes(
    before: &BTreeMap<Arc<str>, Changes>,
    now: &BTreeMap<Arc<str>, Changes>,
) -> impl Iterator<Item = Change> {
    let differs = |list: fn(&Changes) -> u64| {
        now.iter().any(|(key, now)| before.get(key).is_some_and(|before| list(before) != list(now)))
    };
    let lists = [
        (differs(|changes| changes.tools), Change::Tools),
        (differs(|changes| changes.prompts), Change::Prompts),
        (differs(|changes| changes.resources), Change::Resources),
    ];
    lists.into_iter().filter_map(|(announced, change)| announced.then_some(change))
}
