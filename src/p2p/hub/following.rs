//! Following: heads are told and heard, and the logs of followed peers are kept up with.
//!
//! Invariants:
//! - a head is passed on only by a node that has checked its signature, and told at most once a second;
//! - one pass at a time for each peer; whatever asks for another meanwhile asks for one;
//! - a log that forked is not followed on: the evidence is recorded, and an operator decides.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Hub, Parts};
use crate::{
    block::{
        Cid,
        payload::{JSON, Payload},
    },
    caller::Peer,
    clock::now_ms,
    error,
    event::peer::PeerForked,
    follow::{
        Refused,
        copy::{Followed, FollowedError},
        course::{Course, Pursuit},
        driver::{Erasures, Expected, FollowError, Outcome, meet},
        evidence::Evidence,
        rules::Ending,
        wire::Reason,
    },
    identity::{CHECKPOINT_MAX, Verifier, open_checkpoint},
    ledger::{Command, peers::Peering},
    p2p::{Verdict, Wire},
    peer::News,
};

/// The pause between two heads that are published.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// How long a followed log is left alone where nobody tells of a new head.
const POLL: Duration = Duration::from_secs(30);
/// The pause after a pass that failed, or that has more to ask for.
const RETRY: Duration = Duration::from_secs(5);
/// How often missing payloads are asked for again; also whenever the peer has come back. It may allow reading them by
/// now.
const AGAIN_EVERY: Duration = Duration::from_secs(3600);

/// The message by which a head is published.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadMessage {
    log: Cid,
    vkey: String,
    checkpoint: String,
}

/// The task that follows one peer.
pub(super) struct Following {
    pub(super) pursuit: Pursuit,
    wishes: Arc<Wishes>,
    end: CancellationToken,
}

/// Requests to that task.
#[derive(Default)]
struct Wishes {
    look: Notify,
    /// Whether missing payloads are to be asked for again.
    again: AtomicBool,
}

impl Hub {
    /// Follows a peer's log from now on. If the log had forked, the quarantine is lifted. Returns the log and how far
    /// it is held, if that is known.
    pub async fn follow(&self, peer: &str) -> Option<(Cid, u64)> {
        let known = self.known(peer).await;
        let held = known.as_ref().and_then(|known| known.followed.first()).map(|held| (held.log, held.size));
        let home = self.inner.parts.ledger.home().clone();
        let lifted = held.and_then(|(log, _)| Followed::open(&home, &log)).map(|followed| followed.lift());
        match &lifted {
            None | Some(Ok(_)) => {}
            Some(Err(err)) => tracing::warn!(peer, %err, "the evidence of its fork cannot be set aside"),
        }
        self.inner.stale.notify_one();
        if self.inner.kept.follow(peer) {
            self.begin_following(peer.to_owned());
        }
        held
    }

    /// Stops following a peer's log; what is held stays. Returns whether it was followed.
    pub fn unfollow(&self, peer: &str) -> bool {
        let mut follows = self.follows();
        if let Some(following) = follows.remove(peer) {
            following.end.cancel();
        }
        self.count_courses(&follows);
        drop(follows);
        self.inner.kept.unfollow(peer)
    }

    /// Starts following a peer. If it is followed already, asks it again for all missing payloads.
    pub(super) fn begin_following(&self, peer: Peer) {
        let mut follows = self.follows();
        let ended = |following: &&Following| following.pursuit.course == Course::Quarantined;
        if let Some(following) = follows.get(&peer).filter(|following| !ended(following)) {
            following.wishes.again.store(true, Ordering::Release);
            following.wishes.look.notify_one();
            return;
        }
        let pursuit = Pursuit::new(peer.clone(), now_ms());
        let following = Following { pursuit, wishes: Arc::default(), end: CancellationToken::new() };
        let (wishes, end) = (following.wishes.clone(), following.end.clone());
        if let Some(before) = follows.insert(peer.clone(), following) {
            before.end.cancel();
        }
        self.count_courses(&follows);
        drop(follows);
        let hub = self.clone();
        self.spawn(async move {
            end.run_until_cancelled(keep_up(hub, peer, wishes)).await;
        });
    }

    /// Returns what is done about the erasures in a peer's log.
    fn erasures(&self, peer: &str) -> Erasures {
        let Parts { erasures, erasures_of, .. } = &self.inner.parts;
        erasures_of.get(peer).copied().unwrap_or(*erasures)
    }

    /// Makes the task of a followed peer look again.
    fn look_again(&self, peer: &str) {
        if let Some(following) = self.follows().get(peer) {
            following.wishes.look.notify_one();
        }
    }

    pub(super) fn follows(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<Peer, Following>> {
        self.inner.follows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes the head of this node's log whenever it has changed, until it is dropped.
pub(super) async fn publish(hub: Hub) {
    let mut reach = hub.inner.parts.ledger.reach();
    let about = hub.inner.parts.ledger.about().clone();
    loop {
        let checkpoint = reach.borrow_and_update().checkpoint.clone();
        if !checkpoint.is_empty() && !hub.inner.connected.borrow().is_empty() {
            let told = HeadMessage { log: about.log, vkey: about.vkey.clone(), checkpoint };
            match serde_ipld_dagcbor::to_vec(&told) {
                Ok(bytes) => hub.net().publish_head(bytes).await,
                Err(err) => tracing::error!(%err, "a head cannot be told"),
            }
        }
        tokio::time::sleep(TELL_PAUSE).await;
        if reach.changed().await.is_err() {
            return;
        }
    }
}

/// Judges the heads of others, and wakes the task of a followed log that has grown, until it is dropped.
pub(super) async fn listen(hub: Hub) {
    let mut heads = hub.net().heads();
    loop {
        let head = match heads.recv().await {
            Ok(head) => head,
            // Those that were missed are told again.
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        };
        let verdict = match signed(&head.bytes) {
            true => Verdict::Accept,
            false => Verdict::Reject,
        };
        hub.net().judge(&head, verdict).await;
        if verdict == Verdict::Accept {
            hub.look_again(&head.author);
        }
    }
}

/// Returns whether these bytes are a head with a valid signature of the key they name.
fn signed(bytes: &[u8]) -> bool {
    if bytes.len() > 2 * CHECKPOINT_MAX {
        return false;
    }
    let Ok(told) = serde_ipld_dagcbor::from_slice::<HeadMessage>(bytes) else {
        return false;
    };
    Verifier::from_vkey(&told.vkey).is_ok_and(|verifier| open_checkpoint(&told.checkpoint, &verifier).is_ok())
}

/// Runs pass after pass over one peer's log, until it forks or this is dropped.
async fn keep_up(hub: Hub, peer: Peer, wishes: Arc<Wishes>) {
    let mut connected = hub.connected();
    // What one peer showed first is what it is held to.
    let mut expected = Expected {
        log: hub.known(&peer).await.and_then(|known| known.followed.first().map(|held| held.log)),
        vkey: None,
        again: Some(0),
        erasures: hub.erasures(&peer),
    };
    if let Some(log) = expected.log {
        hub.showed(&peer, log);
    }
    let mut asked_again = Instant::now();
    loop {
        if !connected.borrow().contains(&peer) {
            hub.goes(&peer, Course::Stalled, Some("the peer is not connected".to_owned()));
        }
        if connected.wait_for(|peers| peers.contains(&peer)).await.is_err() {
            return;
        }
        // One round ends before the hour begins another.
        let is_due = expected.again.is_none() && asked_again.elapsed() >= AGAIN_EVERY;
        if wishes.again.swap(false, Ordering::AcqRel) || is_due {
            expected.again = Some(0);
        }
        if expected.again == Some(0) {
            asked_again = Instant::now();
        }
        let passed = pass(&hub, &peer, expected.clone()).await;
        let course = told(&hub, &peer, &passed).await;
        if course == Course::Quarantined {
            if wishes.again.load(Ordering::Acquire) {
                // Somebody has set the evidence aside before this was told of.
                continue;
            }
            return;
        }
        if let Ok(outcome) = passed {
            expected.log = Some(outcome.log);
            expected.vkey = Some(outcome.vkey);
            expected.again = outcome.again;
        }
        let pause = match course {
            Course::Following if expected.again.is_none() => POLL,
            Course::Behind => POLL,
            _ => RETRY,
        };
        tokio::select! {
            () = wishes.look.notified() => {}
            () = tokio::time::sleep(pause) => {}
            parted = connected.wait_for(|peers| !peers.contains(&peer)) => match parted {
                Ok(_) => expected.again = Some(0),
                Err(_) => return,
            },
        }
    }
}

/// Sets the course after a pass and records its result. Returns the course.
async fn told(hub: &Hub, peer: &str, passed: &Result<Outcome, Failed>) -> Course {
    match passed {
        Ok(outcome) => {
            let course = match &outcome.ending {
                Ending::Current => Course::Following,
                Ending::Behind { .. } => Course::Behind,
                Ending::Forked(evidence) => {
                    forked(hub, peer, outcome, evidence).await;
                    hub.goes(peer, Course::Quarantined, None);
                    return Course::Quarantined;
                }
            };
            hub.goes(peer, course, None);
            let origin = outcome.origin.clone();
            hub.record(peer, News::Followed { log: outcome.log, origin, size: outcome.held }).await;
            course
        }
        Err(Failed::Follow(FollowError::Quarantined(_))) => {
            tracing::warn!(peer, "its log has forked and is not followed");
            hub.goes(peer, Course::Quarantined, None);
            Course::Quarantined
        }
        Err(err) => {
            let course = match err {
                Failed::Follow(FollowError::Refused(Refused::Declined(Reason::Denied))) => Course::Denied,
                Failed::Follow(_) | Failed::Net(_) => Course::Stalled,
            };
            if hub.goes(peer, course, Some(err.shown())) {
                tracing::warn!(peer, %err, "its log could not be followed; trying again");
            }
            course
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Net(#[from] crate::p2p::NetError),
    #[error("{}", error::chain(.0))]
    Follow(#[from] FollowError),
}

impl Failed {
    /// Returns the text for callers: details of what is wrong with the peer or the connection, none of a fault of
    /// ours.
    fn shown(&self) -> String {
        match self {
            Self::Follow(FollowError::Store(FollowedError::TooMany)) => FollowedError::TooMany.to_string(),
            Self::Follow(
                FollowError::Refused(Refused::Held(_))
                | FollowError::Store(_)
                | FollowError::Fold(_)
                | FollowError::Broken(_),
            ) => "internal error".to_owned(),
            Self::Net(_)
            | Self::Follow(
                FollowError::Refused(_)
                | FollowError::Quarantined(_)
                | FollowError::Wire(_)
                | FollowError::Closed,
            ) => self.to_string(),
        }
    }
}

async fn pass(hub: &Hub, peer: &str, expected: Expected) -> Result<Outcome, Failed> {
    let stream = hub.open(peer, Wire::Log).await?;
    let home = hub.inner.parts.ledger.home();
    let met = meet(stream, &expected).await?;
    hub.showed(peer, met.log);
    let (told, of) = (hub.clone(), peer.to_owned());
    let told = move |progress| {
        tracing::debug!(?progress, "following");
        told.goes(&of, Course::Following, None);
    };
    Ok(met.follow(home, told).await?)
}

/// Records that a peer signed two histories, with the evidence.
async fn forked(hub: &Hub, peer: &str, outcome: &Outcome, evidence: &Evidence) {
    let Ok(sizes) = evidence.check() else {
        tracing::error!(peer, "evidence of a fork does not hold; nothing is recorded");
        return;
    };
    let facts = PeerForked {
        log: outcome.log,
        origin: outcome.origin.clone(),
        size_a: sizes.held,
        size_b: sizes.told,
    };
    let shown = serde_json::to_vec(evidence).unwrap_or_default();
    let sealed = Payload::seal(&hub.inner.parts.salt, JSON, &shown);
    let mut peering = Peering::new(peer, News::Forked(facts));
    peering.artifacts = sealed.into_iter().collect();
    tracing::error!(
        peer,
        "its log has forked: the evidence is kept, and it takes no part until it is released"
    );
    if let Err(stopped) = hub.inner.parts.ledger.submit(Command::Peer(Box::new(peering))).await {
        tracing::warn!(%stopped, "a fork is not recorded");
    }
    // What is read of the state must have it.
    let _ = hub.inner.parts.ledger.settled().await;
    hub.inner.stale.notify_one();
}

#[cfg(test)]
mod tests;
