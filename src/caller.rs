//! Who asks, and what they may do.
//!
//! Invariants:
//! - a caller is known before anything of what they ask is read;
//! - a scope is written as one word, and a set of scopes covers what its parts cover.

pub mod pattern;
pub mod rights;

use std::fmt;

use self::pattern::{Named, Pattern};
use crate::{
    block::{Cid, payload::SealedPayload},
    event::Actor,
    peer,
};

/// A peer's id in base58, as `p2p::peer_id` checks it.
pub type Peer = String;

/// The beginning of the scope of tools by their names.
const TOOLS: &str = "tools:";

/// What a caller may do. An operation names the one scope it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `mcp:call`: all calls but those of `audit:read` and of an operator. Where it is needed, any scope of calls is
    /// enough.
    Call,
    /// `audit:read`: read events, blocks, proofs, exports.
    Audit,
    /// `admin`: everything.
    Admin,
    /// `tasks:submit`: submit tasks and follow them.
    TasksSubmit,
    /// `tasks:work`: register a worker, claim tasks and end them.
    TasksWork,
    /// `tasks:admin`: those two, and what changes the tasks of all: cancel, retry, reorder, pause, clear, schedule.
    TasksAdmin,
    /// `workflows:read`: follow and compare runs.
    WorkflowsRead,
    /// `workflows:submit`: that, and start runs.
    WorkflowsSubmit,
    /// `workflows:admin`: those two, and change the course of runs: cancel, reschedule, signal.
    WorkflowsAdmin,
    /// `peers:use`: find peers, see them, connect and disconnect.
    PeersUse,
    /// `peers:admin`: that, and say whose logs are kept here.
    PeersAdmin,
    /// `tools:<pattern>`: call the tools of other servers that the pattern fits.
    Tools(Pattern),
}

impl Scope {
    /// The words of all scopes; of those that have a pattern, that for every tool.
    pub const WORDS: [&'static str; 12] = [
        "mcp:call",
        "audit:read",
        "admin",
        "tasks:submit",
        "tasks:work",
        "tasks:admin",
        "workflows:read",
        "workflows:submit",
        "workflows:admin",
        "peers:use",
        "peers:admin",
        "tools:*",
    ];

    /// Returns the scope with this word; `None` if there is none.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "mcp:call" => Self::Call,
            "audit:read" => Self::Audit,
            "admin" => Self::Admin,
            "tasks:submit" => Self::TasksSubmit,
            "tasks:work" => Self::TasksWork,
            "tasks:admin" => Self::TasksAdmin,
            "workflows:read" => Self::WorkflowsRead,
            "workflows:submit" => Self::WorkflowsSubmit,
            "workflows:admin" => Self::WorkflowsAdmin,
            "peers:use" => Self::PeersUse,
            "peers:admin" => Self::PeersAdmin,
            word => Self::Tools(Pattern::parse(word.strip_prefix(TOOLS)?)?),
        })
    }

    /// Returns its word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Call => "mcp:call",
            Self::Audit => "audit:read",
            Self::Admin => "admin",
            Self::TasksSubmit => "tasks:submit",
            Self::TasksWork => "tasks:work",
            Self::TasksAdmin => "tasks:admin",
            Self::WorkflowsRead => "workflows:read",
            Self::WorkflowsSubmit => "workflows:submit",
            Self::WorkflowsAdmin => "workflows:admin",
            Self::PeersUse => "peers:use",
            Self::PeersAdmin => "peers:admin",
            Self::Tools(pattern) => pattern.scope(),
        }
    }

    /// Returns whether who holds this scope may do what needs the other.
    pub fn covers(&self, needed: &Self) -> bool {
        match (self, needed) {
            (Self::Admin, _) => true,
            (_, Self::Call) => *self != Self::Audit,
            (Self::Call, needed) => !matches!(needed, Self::Audit | Self::Admin | Self::PeersAdmin),
            (Self::TasksAdmin, Self::TasksSubmit | Self::TasksWork)
            | (Self::WorkflowsAdmin, Self::WorkflowsSubmit | Self::WorkflowsRead)
            | (Self::WorkflowsSubmit, Self::WorkflowsRead)
            | (Self::PeersAdmin, Self::PeersUse) => true,
            (held, needed) => held == needed,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Who asks: known before anything is read of what they ask.
#[derive(Clone, Debug)]
pub struct Caller {
    pub actor: Actor,
    pub scopes: Vec<Scope>,
}

impl Caller {
    /// Returns whether it is another node.
    pub fn is_peer(&self) -> bool {
        self.actor.role == peer::ROLE
    }

    /// Returns whether one of its scopes covers this one.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|held| held.covers(&scope))
    }

    /// Returns whether its scopes allow calls of this tool of another server.
    pub fn may_call(&self, tool: &Named<'_>) -> bool {
        self.scopes.iter().any(|held| match held {
            Scope::Call | Scope::Admin => true,
            Scope::Tools(pattern) => pattern.fits(tool),
            _ => false,
        })
    }

    /// Returns whether it has the whole of `mcp:call`, and not only a part of it.
    pub fn has_all_calls(&self) -> bool {
        self.scopes.iter().any(|held| matches!(held, Scope::Call | Scope::Admin))
    }

    /// Returns whether its scopes allow calls of all tools of other servers.
    pub fn may_call_all(&self) -> bool {
        self.scopes.iter().any(|held| match held {
            Scope::Call | Scope::Admin => true,
            Scope::Tools(pattern) => pattern.fits_all(),
            _ => false,
        })
    }
}

/// The actor, call and reason of a request.
#[derive(Clone, Debug)]
pub struct By {
    pub actor: Actor,
    pub cause: Option<Cid>,
    pub note: Option<SealedPayload>,
}

#[cfg(test)]
mod tests;
