//! Workers: who takes tasks, how many at once, and whether they are still there.
//!
//! Invariants:
//! - a worker belongs to the actor who registered it, until it has left;
//! - how many tasks it has is told by the events of these tasks, never by the worker;
//! - when it was last heard of is not in the log: a start counts as hearing of everybody.

use serde::{Deserialize, Serialize};

use crate::{
    block::Cid,
    error::{Code, Refusal},
    event::{
        Actor, Body, Event,
        work::{WorkerDraining, WorkerLost, WorkerRegistered, WorkerUnregistered},
    },
    task::{Limits, Moment, SPAN_MAX_MS, name_allowed},
    words::words,
};

/// Capabilities of one worker: so many names of the longest fit into an event.
pub const CAPABILITIES_MAX: usize = 100;
/// Tasks one worker has at once.
pub const CONCURRENT_MAX: u64 = 1000;
/// Leases that may pass in silence: by then every task it had is back in the line.
const SILENT_LEASES_MAX: u64 = 3;
/// The beginning of the ids of the node's own executors.
pub const NODE_PREFIX: &str = "node/";

/// One worker, as the log remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub id: String,
    pub actor: Actor,
    pub facts: WorkerRegistered,
    pub presence: Presence,
    pub registered: Cid,
    pub registered_ms: u64,
    /// Tasks it has now.
    pub running: u64,
    pub completed: u64,
    pub failed: u64,
    pub last: Cid,
    pub last_seq: u64,
    /// In memory only, see [`Worker::heard`].
    #[serde(skip)]
    pub last_heard_ms: u64,
}

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    Registered,
    /// Takes nothing new and leaves at this time, or when its work is done.
    Draining {
        until_ms: u64,
    },
    /// Was silent for too long.
    Lost,
    /// Has left.
    Unregistered,
}

words! {
    /// What a worker is shown as.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Status {
        /// Has work and room for more.
        Active = "active",
        Idle = "idle",
        /// Has as much as it may.
        Busy = "busy",
        Draining = "draining",
        Offline = "offline",
    }
}

/// What registering comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Registered {
    New(WorkerRegistered),
    /// It is registered with the same facts.
    Known,
}

impl Presence {
    /// Returns the status that a worker is shown with whose tasks are not counted.
    pub fn status(self) -> Status {
        match self {
            Self::Registered => Status::Active,
            Self::Draining { .. } => Status::Draining,
            Self::Lost | Self::Unregistered => Status::Offline,
        }
    }
}

impl Worker {
    /// The worker that its first `worker.registered` begins.
    pub fn begun(event: &Event) -> Option<Self> {
        let Some(Body::WorkerRegistered(facts)) = event.body() else {
            return None;
        };
        let fields = event.fields();
        let registered_ms = fields.at_ms();
        Some(Self {
            id: fields.subject.strip_prefix("worker/")?.to_owned(),
            actor: fields.actor.clone(),
            facts,
            presence: Presence::Registered,
            registered: event.cid(),
            registered_ms,
            running: 0,
            completed: 0,
            failed: 0,
            last: event.cid(),
            last_seq: fields.seq,
            last_heard_ms: registered_ms,
        })
    }

    /// Folds a later event of this worker.
    pub fn apply(&mut self, event: &Event) {
        if let Some(body) = event.body() {
            self.apply_body(&body, event);
        }
    }

    /// As [`Worker::apply`], for who still has the body that `event` was sealed from.
    pub fn apply_body(&mut self, body: &Body, event: &Event) {
        match body {
            Body::WorkerRegistered(facts) => {
                self.facts.clone_from(facts);
                self.actor.clone_from(&event.fields().actor);
                self.presence = Presence::Registered;
                self.registered = event.cid();
                self.registered_ms = event.fields().at_ms();
                self.heard(self.registered_ms);
            }
            Body::WorkerDraining(facts) => self.presence = Presence::Draining { until_ms: facts.until_ms },
            Body::WorkerLost(_) => self.presence = Presence::Lost,
            Body::WorkerUnregistered(_) => self.presence = Presence::Unregistered,
            // What happens to other entities is not this worker's.
            _ => return,
        }
        self.last = event.cid();
        self.last_seq = event.fields().seq;
    }

    /// Folds an event of a task that this worker has, or takes by it.
    pub fn apply_task(&mut self, body: &Body) {
        match body {
            Body::TaskClaimed(_) => return self.running += 1,
            Body::TaskSucceeded(_) => self.completed += 1,
            Body::TaskFailed(_) | Body::TaskTimedOut(_) => self.failed += 1,
            Body::TaskCancelled(facts) if !facts.running => return,
            Body::TaskLeaseExpired(_) | Body::TaskInterrupted(_) | Body::TaskCancelled(_) => {}
            // The task goes on, or had ended by another event.
            _ => return,
        }
        self.running = self.running.saturating_sub(1);
    }

    /// It called, or the node has started.
    pub fn heard(&mut self, now_ms: u64) {
        self.last_heard_ms = self.last_heard_ms.max(now_ms);
    }

    pub fn status(&self) -> Status {
        match self.presence.status() {
            Status::Active if self.running == 0 => Status::Idle,
            Status::Active if self.running >= self.facts.max_concurrent => Status::Busy,
            shown => shown,
        }
    }

    /// How many of `wanted` tasks it may take now.
    pub fn may_take(&self, wanted: u64) -> u64 {
        match self.presence {
            Presence::Registered | Presence::Lost => {
                wanted.min(self.facts.max_concurrent.saturating_sub(self.running))
            }
            Presence::Draining { .. } | Presence::Unregistered => 0,
        }
    }

    /// Admits a call that the worker makes: a lost one is registered again by the event answered here.
    pub fn called_by(&self, actor: &Actor) -> Result<Option<Body>, Refusal> {
        self.belongs_to(actor)?;
        match self.presence {
            Presence::Registered | Presence::Draining { .. } => Ok(None),
            Presence::Lost => Ok(Some(Body::WorkerRegistered(self.facts.clone()))),
            Presence::Unregistered => Err(Refusal::new(
                Code::FailedPrecondition,
                format!("worker {} has left: it is not registered", self.id),
            )
            .hint("register it again with worker_register")),
        }
    }

    /// The worker leaves when its work is done, at the latest after `timeout_ms`; at once where it has none.
    pub fn drain(&self, actor: &Actor, timeout_ms: u64, moment: &Moment) -> Result<Vec<Body>, Refusal> {
        if timeout_ms > SPAN_MAX_MS {
            let fault = format!("timeout_ms: at most {SPAN_MAX_MS}");
            return Err(Refusal::new(Code::InvalidArgument, fault));
        }
        if self.running == 0 {
            return self.unregister(actor);
        }
        self.belongs_to(actor)?;
        Ok(match self.presence {
            Presence::Unregistered => Vec::new(),
            Presence::Registered | Presence::Draining { .. } | Presence::Lost => {
                let until_ms = moment.now_ms.saturating_add(timeout_ms);
                vec![Body::WorkerDraining(WorkerDraining { until_ms })]
            }
        })
    }

    /// The worker leaves now; nothing where it has left. Its tasks are released by their own rules.
    pub fn unregister(&self, actor: &Actor) -> Result<Vec<Body>, Refusal> {
        self.belongs_to(actor)?;
        Ok(match self.presence {
            Presence::Unregistered => Vec::new(),
            Presence::Registered | Presence::Draining { .. } | Presence::Lost => vec![self.left()],
        })
    }

    /// The end of draining: its work is done, or its time is over.
    pub fn drained(&self, moment: &Moment) -> Option<Body> {
        match self.presence {
            Presence::Draining { until_ms } if self.running == 0 || until_ms <= moment.now_ms => {
                Some(self.left())
            }
            Presence::Draining { .. } | Presence::Registered | Presence::Lost | Presence::Unregistered => {
                None
            }
        }
    }

    /// That it was silent for too long.
    pub fn lost(&self, moment: &Moment) -> Option<Body> {
        match self.presence {
            Presence::Registered | Presence::Draining { .. } => {
                let silent = self.silent_until_ms(&moment.limits) <= moment.now_ms;
                silent.then_some(Body::WorkerLost(WorkerLost { last_heard_ms: self.last_heard_ms }))
            }
            Presence::Lost | Presence::Unregistered => None,
        }
    }

    /// When [`Worker::lost`] or [`Worker::drained`] next has something to say, if nothing is heard of it until then.
    pub fn due_ms(&self, limits: &Limits) -> Option<u64> {
        match self.presence {
            Presence::Registered => Some(self.silent_until_ms(limits)),
            Presence::Draining { until_ms } => Some(until_ms.min(self.silent_until_ms(limits))),
            Presence::Lost | Presence::Unregistered => None,
        }
    }

    fn silent_until_ms(&self, limits: &Limits) -> u64 {
        self.last_heard_ms.saturating_add(limits.lease_ms.saturating_mul(SILENT_LEASES_MAX))
    }

    fn left(&self) -> Body {
        Body::WorkerUnregistered(WorkerUnregistered { abandoned: self.running })
    }

    /// Operators and the node itself may send any worker away.
    fn belongs_to(&self, actor: &Actor) -> Result<(), Refusal> {
        if self.actor.id == actor.id || ["operator", "system"].contains(&actor.role.as_str()) {
            return Ok(());
        }
        Err(taken(&self.id))
    }
}

/// The subject of a worker's events.
pub fn subject(id: &str) -> String {
    format!("worker/{id}")
}

/// Registers a worker, or again with other facts. Capabilities are recorded sorted, each once.
pub fn register(
    earlier: Option<&Worker>,
    id: &str,
    actor: &Actor,
    mut facts: WorkerRegistered,
) -> Result<Registered, Refusal> {
    let node = actor.role == "system";
    rule(name_allowed(id) && id.starts_with(NODE_PREFIX) == node, || {
        format!("worker_id: not a name, or one that begins with `{NODE_PREFIX}`")
    })?;
    facts.capabilities.sort_unstable();
    facts.capabilities.dedup();
    let bounded = (1..=CAPABILITIES_MAX).contains(&facts.capabilities.len());
    rule(bounded, || format!("capabilities: 1 to {CAPABILITIES_MAX}"))?;
    rule(facts.capabilities.iter().all(|word| name_allowed(word)), || {
        "capabilities: names are 1 to 128 characters of A-Z a-z 0-9 . _ : / -".to_owned()
    })?;
    rule((1..=CONCURRENT_MAX).contains(&facts.max_concurrent), || {
        format!("max_concurrent_tasks: 1 to {CONCURRENT_MAX}")
    })?;
    let Some(earlier) = earlier.filter(|earlier| earlier.presence != Presence::Unregistered) else {
        return Ok(Registered::New(facts));
    };
    if earlier.actor.id != actor.id {
        return Err(taken(id));
    }
    match earlier.presence == Presence::Registered && earlier.facts == facts {
        true => Ok(Registered::Known),
        false => Ok(Registered::New(facts)),
    }
}

fn taken(id: &str) -> Refusal {
    Refusal::new(Code::PermissionDenied, format!("worker {id} was registered by another actor"))
        .hint("register under an id of your own")
}

fn rule(holds: bool, fault: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::new(Code::InvalidArgument, fault())) }
}

#[cfg(test)]
pub(crate) mod tests;
