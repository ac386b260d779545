//! Access control: who calls, by the `Authorization` header alone, or everybody as one local caller in mode `none`.
//!
//! Invariants:
//! - no token is stored, logged or returned but when it is made: the file holds digests, and only the principal goes
//!   further in;
//! - the signature algorithm follows from the key, never from the token's header. `none` and HMAC are not supported;
//! - a refusal tells the caller which error it is (RFC 6750, section 3.1), not which part of a token was wrong.

mod watched;
pub mod jwt;
pub mod tokens;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use http::HeaderValue;

pub use self::{jwt::Verifier, tokens::Tokens};
use crate::{
    caller::{Caller, Scope},
    event::{Actor, keeping::Reason},
};

/// Characters of an actor's id.
const ACTOR_ID_MAX: usize = 128;
/// Bytes of a token; what is longer is refused unread.
const TOKEN_MAX: usize = 8 * 1024;
/// The role of every caller with a token, and of the local one.
const ROLE: &str = "client";
/// The actor's id of callers in mode `none`.
const LOCAL: &str = "local";

/// How callers are authenticated.
pub enum Access {
    /// No token is asked for: whoever reaches the socket has every scope.
    Open,
    /// Opaque tokens, whose digests are in the data directory.
    Static(Tokens),
    /// JWTs that an issuer has signed.
    Jwt(Verifier),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a bearer token is needed")]
    Missing,
    #[error("the bearer token is not valid")]
    Invalid,
    #[error("the bearer token lacks the scope {}", .scope.as_str())]
    Insufficient { scope: Scope },
}

/// Why a file of tokens or keys cannot be used, or why a change of tokens is refused.
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
    /// Returns the caller that the `Authorization` header authenticates.
    ///
    /// Checks at most once a second whether the tokens or keys on disk have changed.
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

    /// Returns the issuer of the tokens, if they are JWTs.
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Self::Open | Self::Static(_) => None,
            Self::Jwt(verifier) => Some(verifier.issuer()),
        }
    }
}

impl Denied {
    /// Returns the reason as the log records it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing => Reason::Missing,
            Self::Invalid => Reason::Invalid,
            Self::Insufficient { .. } => Reason::Scope,
        }
    }

    /// Returns the value of `WWW-Authenticate` (RFC 6750), with the URL of the resource metadata (RFC 9728) and the
    /// needed scope.
    ///
    /// `metadata_url` must hold no quote; a valid URL has none.
    pub fn challenge(&self, metadata_url: &str, needed: &Scope) -> String {
        let error = match self {
            Self::Missing => "",
            Self::Invalid => "error=\"invalid_token\", ",
            Self::Insufficient { .. } => "error=\"insufficient_scope\", ",
        };
        let scope = needed.as_str();
        format!("Bearer {error}scope=\"{scope}\", resource_metadata=\"{metadata_url}\"")
    }
}

/// Returns the token of a `Bearer` header. Another scheme is `Invalid`, not `Missing`, because credentials were
/// presented.
fn bearer(authorization: Option<&HeaderValue>) -> Result<&str, Denied> {
    let text = authorization.ok_or(Denied::Missing)?.to_str().map_err(|_| Denied::Invalid)?;
    let (scheme, token) = text.split_once(' ').ok_or(Denied::Invalid)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > TOKEN_MAX {
        return Err(Denied::Invalid);
    }
    Ok(token)
}

/// Returns whether a text can be an actor's id: 1 to 128 printable characters without spaces around them. Ids go into
/// events and onto terminals.
fn is_actor_id(id: &str) -> bool {
    let printable = |c: char| !c.is_control() && (c.is_ascii() || c.is_alphanumeric());
    !id.is_empty() && id.trim() == id && id.chars().count() <= ACTOR_ID_MAX && id.chars().all(printable)
}

fn actor(id: String) -> Actor {
    Actor { id, role: ROLE.to_owned(), proof: None }
}
