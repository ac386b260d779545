//! `[upstream.oauth]`: how a token for an upstream is asked for.
//!
//! Invariants:
//! - its secret has no `Debug` text, and is in no fault.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Upstream, bounds::is_url, read::Report};
use crate::words::words;

/// The largest number of scopes that are asked for.
const SCOPES_MAX: usize = 64;

/// `[upstream.oauth]`: who this node is at the upstream's authorization server.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OAuth {
    /// The id of a client that was registered beforehand.
    pub client_id: Option<String>,
    pub client_secret: Option<String>,
    /// The file of a private key in PEM, in the place of a secret. For `client_credentials`.
    pub private_key_file: Option<PathBuf>,
    /// The HTTPS URL of a client metadata document.
    pub client_metadata_url: Option<String>,
    /// By default those that the upstream names.
    pub scopes: Vec<String>,
    /// The port of 127.0.0.1 that a login leads back to; by default a free one.
    pub redirect_port: Option<u16>,
    pub grant: Grant,
}

words! {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Grant {
        /// A person logs in.
        #[default]
        AuthorizationCode = "authorization_code",
        /// This node asks in its own name.
        ClientCredentials = "client_credentials",
    }
}

/// Checks how tokens for an upstream are asked for.
pub(super) fn check(upstream: &Upstream, place: &dyn Fn(&str) -> String, report: &mut Report) {
    let authorized = upstream.headers.0.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
    let own_name = upstream.oauth.as_ref().is_some_and(|oauth| oauth.grant == Grant::ClientCredentials);
    if upstream.per_caller && (upstream.url.is_none() || authorized || own_name) {
        let needed =
            "is for a url whose callers log in: without an authorization header or client_credentials";
        report.fault(&place("per_caller"), needed);
    }
    let Some(oauth) = &upstream.oauth else { return };
    if authorized {
        report.fault(&place("oauth"), "has an authorization header beside it; keep one of both");
    }
    if oauth.client_secret.is_some() && oauth.client_id.is_none() {
        report.fault(&place("oauth.client_secret"), "needs a client_id");
    }
    let key = oauth.private_key_file.is_some();
    if oauth.grant == Grant::ClientCredentials && oauth.client_secret.is_none() && !key {
        let needed = "client_credentials needs client_id, and client_secret or private_key_file";
        report.fault(&place("oauth.grant"), needed);
    }
    if key && (oauth.client_id.is_none() || oauth.grant != Grant::ClientCredentials) {
        report.fault(&place("oauth.private_key_file"), "needs a client_id and the grant client_credentials");
    }
    if key && oauth.client_secret.is_some() {
        report.fault(&place("oauth.private_key_file"), "has a client_secret beside it; keep one of both");
    }
    let document =
        |url: &str| url.strip_prefix("https://").is_some_and(|rest| rest.contains('/')) && is_url(url);
    if !oauth.client_metadata_url.as_deref().is_none_or(document) {
        report.fault(&place("oauth.client_metadata_url"), "expected https://host/path of a document");
    }
    if oauth.redirect_port == Some(0) {
        report.fault(&place("oauth.redirect_port"), "expected 1 to 65535");
    }
    let is_scope = |scope: &String| {
        // RFC 6749, section 3.3.
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        !scope.is_empty() && scope.bytes().all(plain)
    };
    if oauth.scopes.len() > SCOPES_MAX || !oauth.scopes.iter().all(is_scope) {
        report.fault(&place("oauth.scopes"), format!("expected at most {SCOPES_MAX} scopes, without spaces"));
    }
}
