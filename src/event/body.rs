//! The kinds of events and the facts of each, as a closed list.
//!
//! A new kind needs a variant of [`Body`] here, a schema and an example in `schemas/events/`, and a place in the entity
//! that is folded from it.

use std::collections::BTreeMap;

use ipld_core::{
    ipld::Ipld,
    serde::{from_ipld, to_ipld},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteArray;

use crate::{
    block::{Cid, DecodeError, decode_exactly},
    contract::dialect::Unchecked,
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
    words::words,
};

/// Declares [`Kind`] and [`Body`] from one list, so that every kind with a name has facts.
macro_rules! kinds {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// Names what can have happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }

        /// Holds the facts of one event.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body { $($kind($kind)),* }

        impl Body {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// Returns the body as the event's map.
            pub fn into_map(self) -> BTreeMap<String, Ipld> {
                match self { $(Self::$kind(facts) => to_map(&facts)),* }
            }

            /// Decodes the facts of `kind`; returns none if this build does not know the kind or the shape.
            pub fn read(kind: &str, map: &BTreeMap<String, Ipld>) -> Option<Self> {
                match kind { $($name => from_map(map).map(Self::$kind),)* _ => None }
            }

            /// Decodes the bytes of a body. Returns none if this build does not know the kind, whose body may hold
            /// anything. Errors: the bytes are not in the one form that the schema of `kind` allows.
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
    CallAsked = "call.asked",
    CallAnswered = "call.answered",
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

/// The first event of a log, which names the software that opened it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogOpened {
    pub genesis: Cid,
    pub software: String,
    /// A one-way commitment to the key that salts the log's payloads. An older log has a `log.salted` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<ByteArray<16>>,
}

/// A start found calls or attempts whose process had ended, and ended them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecovered {
    /// Counts the calls that were ended as interrupted.
    pub interrupted: u64,
    /// Counts the attempts at tasks that were ended as interrupted.
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

/// A call will be tried. This event is durable before the call has any effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallStarted {
    /// The MCP method: `tools/call`, `resources/read`, `prompts/get`, `completion/complete`.
    pub method: String,
    /// The public name of the tool or prompt. Empty if the name is text of the caller's own, such as a resource URI.
    pub name: String,
    /// Says who offers the tool: `builtin`, or an upstream's name.
    pub source: String,
    /// Names the lane in which the call runs.
    pub runtime: String,
    /// Names the rule that chose the lane.
    pub rule: String,
    /// Identifies the process that runs the call. Once it has ended, its open calls are ended as interrupted.
    pub runner: String,
    /// A keyed commitment to the caller's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub key: Option<Vec<u8>>,
    /// The W3C `traceparent` of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Says why the input was not judged by the contract's schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_unchecked: Option<Unchecked>,
}

/// The tool returned a result and did not mark it as an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallSucceeded {
    pub took_us: u64,
    /// Says whether the result asks the caller for more input (`resultType: input_required`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input_required: bool,
    /// The place in the contract's output schema that the result does not fit, as `#` and a JSON Pointer; `missing` if
    /// the result has no structured content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_mismatch: Option<String>,
    /// Says why the result was not judged by the contract's output schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_unchecked: Option<Unchecked>,
}

/// Says how a call failed. A status code alone cannot tell the first three apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failure {
    /// The tool's server died or broke the protocol. The tool may have begun.
    Transport,
    /// The tool's server answered with a JSON-RPC error.
    Protocol,
    /// The tool answered with `isError: true`.
    Tool,
    /// The tool did not answer within its time limit.
    Timeout,
    /// This node had an internal error.
    Internal,
    /// Nobody took the request, so nothing ran.
    Untaken,
}

/// The call was tried and failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallFailed {
    pub failure: Failure,
    pub took_us: u64,
    /// The JSON-RPC error code, if the failure is `protocol`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
}

/// The rules forbade the call, so nothing ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRefused {
    /// One of the closed list of error codes.
    pub code: String,
}

/// The process that ran the call ended before the call did. Its effect is not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallInterrupted {
    pub runner: String,
}

/// The caller disconnected or cancelled, or the server stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallCancelled {
    pub took_us: u64,
}

words! {
    /// What a tool's server may ask the caller's client while a call runs, by its MCP method.
    #[derive(Serialize, Deserialize)]
    pub enum Question {
        #[serde(rename = "sampling/createMessage")]
        Sampling = "sampling/createMessage",
        #[serde(rename = "elicitation/create")]
        Elicitation = "elicitation/create",
        #[serde(rename = "roots/list")]
        Roots = "roots/list",
    }
}

words! {
    /// Says how a question was answered.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Reaction {
        /// The user filled in what was elicited.
        Accepted = "accepted",
        Declined = "declined",
        /// The user dismissed the elicitation without a choice.
        Cancelled = "cancelled",
        /// The client gave a result in which there is nothing to accept: a sampled message, its roots.
        Given = "given",
        /// The client answered with an error, or could not be asked.
        Failed = "failed",
    }
}

/// The tool's server asks the caller's client something. This event is durable before the client is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallAsked {
    pub method: Question,
    /// Counts the questions of the call before this one.
    pub n: u64,
    /// A keyed commitment to the `requestState` that a later request answers with, where the question is asked in the
    /// call's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ByteArray<16>>,
}

/// A question was answered. This event is durable before the tool's server is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallAnswered {
    /// The number of the question; of an answer that came with the request, the number of such answers before it.
    pub n: u64,
    pub how: Reaction,
    /// Microseconds from the question to the answer. None if the answer came with the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
}

/// The basis of an erasure has at most this many characters.
const BASIS_MAX: usize = 64;

/// Returns whether a text may be the basis of an erasure. It must be a short code, because text in an event can never
/// be erased.
pub fn is_basis(text: &str) -> bool {
    let code = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    !text.is_empty() && text.len() <= BASIS_MAX && text.chars().all(code)
}

/// The content of a payload was deleted. Its CID and every proof stay valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadErased {
    pub payload: Cid,
    /// States the reason as a short code, such as `gdpr-17`, `secret` or `retention`.
    pub basis: String,
}

/// A part of the log was exported, from `from_seq` to `to_seq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessExported {
    pub format: String,
    pub from_seq: u64,
    pub to_seq: u64,
}
