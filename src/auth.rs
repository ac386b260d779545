//! Access control: who calls, by the `Authorization` header alone, or everybody as one local caller in mode `none`.
//!
//! Invariants:
//! - no token is stored, logged or returned but when it is made: the file holds digests, and only the principal goes
//!   further in;
//! - the signature algorithm follows from the key, never from the token's header. `none` and HMAC are not supported;
//! - a refusal tells the caller which error it is (RFC 6750, section 3.1), not which part of a token was wrong;
//! - while tokens or keys cannot be read, nobody with a token is let in.

pub mod watched;
mod fetched;
pub mod jwt;
pub mod tokens;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, time::Instant};

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
    #[error("tokens cannot be checked at the moment; the server's log says why")]
    Unverifiable,
}

/// A caller whose token was checked.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub caller: Caller,
    /// The second since the Unix epoch at which the token expires.
    pub until: Option<u64>,
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
    #[error("the keys of tokens cannot be fetched: {reason}")]
    Url { reason: String },
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
    /// Returns the caller that the `Authorization` header authenticates, by what is known of tokens and keys already.
    ///
    /// Checks at most twice a second whether the tokens or keys on disk have changed.
    pub fn authenticate(&self, authorization: Option<&HeaderValue>) -> Result<Caller, Denied> {
        self.admit_at(authorization, Instant::now()).map(|admitted| admitted.caller)
    }

    /// Returns the caller that the `Authorization` header authenticates, and until when the token is good. Keys that are
    /// at a URL are fetched first if this token needs them.
    ///
    /// Safe to drop midway.
    pub async fn admit(&self, authorization: Option<&HeaderValue>) -> Result<Admitted, Denied> {
        let admitted = self.admit_at(authorization, Instant::now());
        match (self, &admitted) {
            (Self::Jwt(verifier), Err(Denied::Unverifiable | Denied::Invalid)) => {
                let token = bearer(authorization)?;
                match verifier.fetch_for(token).await {
                    true => verifier.admit_at(token, Instant::now()),
                    false => admitted,
                }
            }
            (Self::Open | Self::Static(_) | Self::Jwt(_), _) => admitted,
        }
    }

    fn admit_at(&self, authorization: Option<&HeaderValue>, now: Instant) -> Result<Admitted, Denied> {
        match self {
            Self::Open => Ok(Admitted {
                caller: Caller {
                    actor: actor(LOCAL.to_owned()),
                    scopes: vec![Scope::Call, Scope::Audit, Scope::Admin],
                },
                until: None,
            }),
            Self::Static(tokens) => tokens.admit_at(bearer(authorization)?, now),
            Self::Jwt(verifier) => verifier.admit_at(bearer(authorization)?, now),
        }
    }

    /// Returns a number that differs whenever tokens or keys have changed; `None` if no token is asked for.
    pub fn version(&self) -> Option<u64> {
        match self {
            Self::Open => None,
            Self::Static(tokens) => Some(tokens.version()),
            Self::Jwt(verifier) => Some(verifier.version()),
        }
    }

    /// Reads the tokens or keys again, whether they have changed or not. Keys at a URL are asked for with the next
    /// request.
    pub fn reload(&self) {
        match self {
            Self::Open => {}
            Self::Static(tokens) => tokens.reload(),
            Self::Jwt(verifier) => verifier.reload(),
        }
    }

    /// Returns why tokens cannot be checked, if they cannot, without a path or URL.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Open => None,
            Self::Static(tokens) => tokens.trouble().map(|why| format!("the tokens cannot be read: {why}")),
            Self::Jwt(verifier) => {
                verifier.trouble().map(|why| format!("the keys of tokens cannot be read: {why}"))
            }
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
    /// Returns the reason as the log records it; `None` if the fault is not the caller's, which is not recorded.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Missing => Some(Reason::Missing),
            Self::Invalid => Some(Reason::Invalid),
            Self::Insufficient { .. } => Some(Reason::Scope),
            Self::Unverifiable => None,
        }
    }

    /// Returns the value of `WWW-Authenticate` (RFC 6750), with the URL of the resource metadata (RFC 9728) and the
    /// needed scope.
    ///
    /// `metadata_url` must hold no quote; a valid URL has none.
    pub fn challenge(&self, metadata_url: &str, needed: &Scope) -> String {
        let error = match self {
            Self::Missing | Self::Unverifiable => "",
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
