//! The kinds of events, and the facts of each: a closed list.
//!
//! Adding a kind: a variant of [`Body`] here, its schema and example in `schemas/events/`, and the entity that
//! remembers it.

use std::collections::BTreeMap;

use ipld_core::{
    ipld::Ipld,
    serde::{from_ipld, to_ipld},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteArray;

use crate::{
    block::{Cid, DecodeError, decode_exactly},
    event::keeping::{
        AccessRead, AccessRefused, ConfigApplied, LogKeyRotated, LogSalted, LogTakenOver, TokenAdded,
        TokenRevoked,
    },
    event::peer::{
        BootstrapFinished, BootstrapStarted, LogFollowed, PeerConnected, PeerDisconnected, PeerDiscovered,
        PeerForked, PeerMeasured, PeerReleased, PeerUnreachable, RemoteCalled,
    },
    event::work::{
        QueueCleared, QueuePaused, QueueResumed, ScheduleCreated, ScheduleDeleted, ScheduleFired, StepFailed,
        StepGathered, StepSkipped, TaskCancelRequested, TaskCancelled, TaskClaimed, TaskCleared, TaskDead,
        TaskFailed, TaskInterrupted, TaskLeaseExpired, TaskRenewed, TaskReprioritised, TaskRetried,
        TaskSubmitted, TaskSucceeded, TaskTimedOut, WorkerDraining, WorkerLost, WorkerRegistered,
        WorkerUnregistered, WorkflowCancelled, WorkflowFailed, WorkflowReplayed, WorkflowRescheduled,
        WorkflowSignalled, WorkflowStarted, WorkflowSubmitted, WorkflowSucceeded, WorkflowTimedOut,
    },
};

/// Declares [`Kind`] and [`Body`] from one list, so that a kind cannot have a name without facts.
macro_rules! kinds {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// What can have happened, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }

        /// The facts of one event.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body { $($kind($kind)),* }

        impl Body {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// The body as the event's map.
            pub fn into_map(self) -> BTreeMap<String, Ipld> {
                match self { $(Self::$kind(facts) => to_map(&facts)),* }
            }

            /// Reads the facts of `kind`; none where this build does not know the kind or the shape.
            pub fn read(kind: &str, map: &BTreeMap<String, Ipld>) -> Option<Self> {
                match kind { $($name => from_map(map).map(Self::$kind),)* _ => None }
            }

            /// Reads the bytes of a body, which stand in the one form that the schema of `kind` allows; none where this build
            /// does not know the kind, whose body may hold anything.
            pub fn open(kind: &str, bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
                Ok(Some(match kind {
                    $($name => Self::$kind(decode_exactly(bytes)?),)*
                    _ => return Ok(None),
                }))
            }
        }
    };
}

kinds! {
    LogOpened = "log.opened",
    LogRecovered = "log.recovered",
    ContractPublished = "contract.published",
    ContractRetired = "contract.retired",
    CallStarted = "call.started",
    CallSucceeded = "call.succeeded",
    CallFailed = "call.failed",
    CallRefused = "call.refused",
    CallInterrupted = "call.interrupted",
    CallCancelled = "call.cancelled",
    PayloadErased = "payload.erased",
    AccessExported = "access.exported",
    TaskSubmitted = "task.submitted",
    TaskClaimed = "task.claimed",
    TaskRenewed = "task.renewed",
    TaskSucceeded = "task.succeeded",
    TaskFailed = "task.failed",
    TaskTimedOut = "task.timed_out",
    TaskLeaseExpired = "task.lease_expired",
    TaskInterrupted = "task.interrupted",
    TaskDead = "task.dead",
    TaskCancelRequested = "task.cancel_requested",
    TaskCancelled = "task.cancelled",
    TaskReprioritised = "task.reprioritised",
    TaskRetried = "task.retried",
    TaskCleared = "task.cleared",
    QueuePaused = "queue.paused",
    QueueResumed = "queue.resumed",
    QueueCleared = "queue.cleared",
    WorkerRegistered = "worker.registered",
    WorkerDraining = "worker.draining",
    WorkerUnregistered = "worker.unregistered",
    WorkerLost = "worker.lost",
    WorkflowSubmitted = "workflow.submitted",
    WorkflowStarted = "workflow.started",
    WorkflowSucceeded = "workflow.succeeded",
    WorkflowFailed = "workflow.failed",
    WorkflowCancelled = "workflow.cancelled",
    WorkflowTimedOut = "workflow.timed_out",
    WorkflowRescheduled = "workflow.rescheduled",
    WorkflowSignalled = "workflow.signalled",
    WorkflowReplayed = "workflow.replayed",
    StepSkipped = "step.skipped",
    StepFailed = "step.failed",
    StepGathered = "step.gathered",
    ScheduleCreated = "schedule.created",
    ScheduleFired = "schedule.fired",
    ScheduleDeleted = "schedule.deleted",
    PeerDiscovered = "peer.discovered",
    PeerConnected = "peer.connected",
    PeerDisconnected = "peer.disconnected",
    PeerUnreachable = "peer.unreachable",
    PeerMeasured = "peer.measured",
    PeerForked = "peer.forked",
    PeerReleased = "peer.released",
    BootstrapStarted = "bootstrap.started",
    BootstrapFinished = "bootstrap.finished",
    RemoteCalled = "remote.called",
    LogFollowed = "log.followed",
    LogTakenOver = "log.taken_over",
    LogSalted = "log.salted",
    LogKeyRotated = "log.key_rotated",
    TokenAdded = "token.added",
    TokenRevoked = "token.revoked",
    AccessRead = "access.read",
    AccessRefused = "access.refused",
    ConfigApplied = "config.applied",
}

fn to_map<T: Serialize>(facts: &T) -> BTreeMap<String, Ipld> {
    match to_ipld(facts) {
        Ok(Ipld::Map(map)) => map,
        _ => unreachable!("a body is a struct of ipld values"),
    }
}

fn from_map<T: DeserializeOwned>(map: &BTreeMap<String, Ipld>) -> Option<T> {
    from_ipld(Ipld::Map(map.clone())).ok()
}

/// The log's first event: which software opened it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogOpened {
    pub genesis: Cid,
    pub software: String,
    /// Which key salts the log's payloads, as a one-way commitment; logs of before have a `log.salted` for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<ByteArray<16>>,
}

/// A start found calls without an ending and ended them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecovered {
    /// Calls ended as interrupted.
    pub interrupted: u64,
    /// Attempts at tasks ended as interrupted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A source offers a tool under this contract from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractPublished {
    pub contract: Cid,
    pub name: String,
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Cid>,
}

/// A source no longer offers a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContractRetired {
    pub contract: Cid,
    pub name: String,
    pub source: String,
}

/// A call will be tried: durable before its effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallStarted {
    /// The MCP method: `tools/call`, `resources/read`, `prompts/get`, `completion/complete`.
    pub method: String,
    /// The tool's or prompt's public name; empty where the name is the caller's own text (a resource URI).
    pub name: String,
    /// Who offers it: `builtin`, or an upstream's name.
    pub source: String,
    /// The lane it runs in.
    pub runtime: String,
    /// The rule that chose the lane.
    pub rule: String,
    /// The process that runs it: open calls of a process that has ended are interrupted.
    pub runner: String,
    /// A keyed commitment to the caller's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub key: Option<Vec<u8>>,
    /// W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// The tool gave a result that it does not call an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallSucceeded {
    pub took_us: u64,
    /// True when the result asks the caller for more input (`resultType: input_required`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input_required: bool,
}

/// How a call failed. The first three are never told apart by a status code alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    /// The tool's server died, or broke the protocol: it may have begun.
    Transport,
    /// The tool's server answered with a JSON-RPC error.
    Protocol,
    /// The tool answered `isError: true`.
    Tool,
    /// No answer within the tool's time.
    Timeout,
    /// This node broke.
    Internal,
    /// Nobody took the request: nothing ran.
    Untaken,
}

/// The call was tried and failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallFailed {
    pub failure: Failure,
    pub took_us: u64,
    /// The JSON-RPC error code of a protocol failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
}

/// The rules forbade the call; nothing ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRefused {
    /// One of the closed list of error codes.
    pub code: String,
}

/// The process that ran the call ended before the call did; its effect is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallInterrupted {
    pub runner: String,
}

/// The caller went away or asked to stop, or the server stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallCancelled {
    pub took_us: u64,
}

/// Characters of the basis of an erasure.
const BASIS_MAX: usize = 64;

/// Whether a text may be the basis of an erasure: a short code, since what stands in an event can never be erased.
pub fn is_basis(text: &str) -> bool {
    let code = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    !text.is_empty() && text.len() <= BASIS_MAX && text.chars().all(code)
}

/// A payload's content was deleted; its CID and every proof stay valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadErased {
    pub payload: Cid,
    /// Why, as a short code: `gdpr-17`, `secret`, `retention`, ...
    pub basis: String,
}

/// Part of the log was exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessExported {
    pub format: String,
    pub from_seq: u64,
    pub to_seq: u64,
}
