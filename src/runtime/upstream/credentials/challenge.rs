//! A challenge: what a server says of the token it wants, in an answer of 401 or 403 (RFC 6750, RFC 9728).
//!
//! Invariants:
//! - only a 403 that says `insufficient_scope` asks for another token; any other is the server's last word;
//! - what is kept of it is bounded.

use http::StatusCode;
use reqwest::{Response, Url, header::WWW_AUTHENTICATE};
use rmcp::transport::auth::WWWAuthenticateParams;

/// The largest number of bytes of a challenge that is read.
const CHALLENGE_MAX: usize = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// `None` where nothing was refused yet.
    pub status: Option<StatusCode>,
    /// The `WWW-Authenticate` value, where there is one that can be read.
    pub value: Option<String>,
    /// The scopes it names.
    pub scopes: Vec<String>,
}

impl Challenge {
    /// Returns the challenge in a response; `None` if it wants no other token.
    pub fn of(response: &Response) -> Option<Self> {
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let values =
            values.filter_map(|value| value.to_str().ok()).filter(|value| value.len() <= CHALLENGE_MAX);
        Self::read(response.status(), response.url(), values)
    }

    pub(super) fn read<'a>(
        status: StatusCode,
        url: &Url,
        values: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let bearer =
            |value: &&str| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        let values: Vec<&str> = values.collect();
        let value = values.iter().copied().find(bearer).or(values.first().copied());
        let said = value.map(|value| WWWAuthenticateParams::parse(value, url)).unwrap_or_default();
        let wants = match status {
            StatusCode::UNAUTHORIZED => true,
            StatusCode::FORBIDDEN => said.is_insufficient_scope(),
            _ => false,
        };
        let scopes = said.scope.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        wants.then(|| Self { status: Some(status), value: value.map(str::to_owned), scopes })
    }
}
