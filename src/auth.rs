//! Access: who is calling, told by the one `Authorization` header and nothing else.
//!
//! Invariants:
//! - a token is never kept, logged or repeated: only its digest is stored, only its principal goes further in;
//! - the algorithm of a signature is the key's, never the token's; symmetric and absent ones do not exist here;
//! - a refusal says what a caller may know (RFC 6750) and not which part of a token was wrong.

pub mod jwt;
#[cfg(test)]
mod tests;
pub mod tokens;
mod watched;

use std::{
    io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;

pub use self::{jwt::Verifier, tokens::Tokens};
use crate::{
    caller::{Caller, Scope},
    event::{Actor, keeping::Reason},
};

/// Characters of an actor's id.
pub const ACTOR_ID_MAX: usize = 128;
/// Bytes of a token; what is longer is refused unread.
pub const TOKEN_MAX: usize = 8 * 1024;
/// The role of everyone who comes in by a door.
const ROLE: &str = "client";
/// Who calls where no token is asked for.
const LOCAL: &str = "local";

/// How callers are told apart.
pub enum Access {
    /// Whoever reaches the socket may do everything.
    Open,
    /// Opaque tokens kept in the data directory.
    Static(Tokens),
    /// Signed tokens of an issuer.
    Jwt(Verifier),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a bearer token is needed")]
    Missing,
    #[error("the bearer token is not valid")]
    Invalid,
    #[error("the bearer token lacks the scope {}", scope_name(*.scope))]
    Insufficient { scope: Scope },
}

/// Why a file of tokens or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a token's name is 1 to 128 printable characters")]
    Name,
    #[error("at least one scope is needed")]
    NoScope,
    #[error("there are 1000 tokens already; revoke some first")]
    TooMany,
    #[error("no token has the id {id}")]
    Unknown { id: String },
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl Access {
    /// The caller that the `Authorization` header speaks for.
    ///
    /// Looks at most once a second whether the tokens or keys on disk have changed.
    pub fn authenticate(&self, authorization: Option<&HeaderValue>) -> Result<Caller, Denied> {
        match self {
            Self::Open => Ok(Caller {
                actor: actor(LOCAL.to_owned()),
                scopes: vec![Scope::Call, Scope::Audit, Scope::Admin],
            }),
            Self::Static(tokens) => tokens.authenticate(bearer(authorization)?),
            Self::Jwt(verifier) => verifier.authenticate(bearer(authorization)?),
        }
    }

    /// Who signs the tokens, where someone does.
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Self::Open | Self::Static(_) => None,
            Self::Jwt(verifier) => Some(verifier.issuer()),
        }
    }
}

impl Denied {
    /// Why, as it stands on record.
    pub fn reason(self) -> Reason {
        match self {
            Self::Missing => Reason::Missing,
            Self::Invalid => Reason::Invalid,
            Self::Insufficient { .. } => Reason::Scope,
        }
    }

    /// The `WWW-Authenticate` value: RFC 6750, with the metadata's address (RFC 9728) and the scope to ask for.
    ///
    /// `metadata_url` holds no quote, as no URL does.
    pub fn challenge(self, metadata_url: &str, needed: Scope) -> String {
        let error = match self {
            Self::Missing => "",
            Self::Invalid => "error=\"invalid_token\", ",
            Self::Insufficient { .. } => "error=\"insufficient_scope\", ",
        };
        let scope = scope_name(needed);
        format!("Bearer {error}scope=\"{scope}\", resource_metadata=\"{metadata_url}\"")
    }
}

/// The scope's name in tokens and challenges.
pub fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Call => "mcp:call",
        Scope::Audit => "audit:read",
        Scope::Admin => "admin",
    }
}

/// The scope of that name.
pub fn scope_named(name: &str) -> Option<Scope> {
    [Scope::Call, Scope::Audit, Scope::Admin].into_iter().find(|scope| scope_name(*scope) == name)
}

/// The token of a `Bearer` header. Any other scheme is invalid, not missing: something was presented.
fn bearer(authorization: Option<&HeaderValue>) -> Result<&str, Denied> {
    let text = authorization.ok_or(Denied::Missing)?.to_str().map_err(|_| Denied::Invalid)?;
    let (scheme, token) = text.split_once(' ').ok_or(Denied::Invalid)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_MAX {
        return Err(Denied::Invalid);
    }
    Ok(token)
}

/// Whether this can be an actor's id: it goes into events and terminals.
fn is_actor_id(id: &str) -> bool {
    let printable = |c: char| !c.is_control() && (c.is_ascii() || c.is_alphanumeric());
    !id.is_empty() && id.trim() == id && id.chars().count() <= ACTOR_ID_MAX && id.chars().all(printable)
}

fn actor(id: String) -> Actor {
    Actor { id, role: ROLE.to_owned(), proof: None }
}

/// Seconds since the epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
