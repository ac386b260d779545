//! One conversation with an authorization server: discovery, who we are there, and the tokens it gives.
//!
//! Invariants:
//! - this is the one place that knows the library's OAuth types; what leaves it is a `Token`, a `Registered` or a URL;
//! - a token is used at the issuer that gave it and nowhere else;
//! - no error repeats what a server said but the error codes of the standards: its text may hold a secret.

use std::{path::Path, time::Duration};

use rmcp::transport::auth::{
    AuthError, AuthorizationCallback, AuthorizationManager, AuthorizationMetadata, ClientCredentialsConfig,
    CredentialStore, InMemoryCredentialStore, OAuthClientConfig, StoredCredentials,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    clock::now_s,
    runtime::upstream::credentials::{
        Settings,
        assertion::{self, Asking},
    },
};

/// The name under which we register ourselves.
const CLIENT_NAME: &str = "Cairn";
/// How long discovery, a registration or a request for a token may take in all.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// A token is renewed this long before it expires, or at half of its life if that is sooner.
const EARLY_S: u64 = 30;
/// The scope by which an authorization server is asked for refresh tokens.
const OFFLINE: &str = "offline_access";
/// The error codes of RFC 6749, 7591 and 8707 that an error may repeat.
const CODES: [&str; 14] = [
    "invalid_request",
    "invalid_client_metadata",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_response_type",
    "invalid_scope",
    "invalid_target",
    "invalid_redirect_uri",
    "unapproved_software_statement",
    "access_denied",
    "temporarily_unavailable",
    "server_error",
];

/// A token as it is kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    /// The text after `Bearer`.
    pub bearer: String,
    /// Whether it came with another token to renew it by.
    pub renewable: bool,
    received_s: u64,
    lasts_s: Option<u64>,
    stored: StoredCredentials,
}

/// A client as an authorization server knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    pub id: String,
    pub secret: Option<String>,
    pub redirect: String,
}

/// Why an authorization server gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The token cannot be renewed: somebody has to log in.
    #[error("its token cannot be renewed")]
    Spent,
    #[error("{0}")]
    Other(String),
}

/// A conversation about one upstream. Discovery is done.
pub struct Session {
    manager: AuthorizationManager,
    store: InMemoryCredentialStore,
    metadata: AuthorizationMetadata,
    /// Whether the server published where it is; else its addresses are those of servers of 2025-03-26.
    published: bool,
    url: String,
}

impl Token {
    fn new(stored: StoredCredentials) -> Result<Self, SessionError> {
        let response = serde_json::to_value(&stored.token_response).unwrap_or_default();
        let text = |key: &str| response.get(key).and_then(serde_json::Value::as_str);
        match (text("access_token"), text("token_type")) {
            (Some(bearer), Some(kind)) if kind.eq_ignore_ascii_case("bearer") => Ok(Self {
                bearer: bearer.to_owned(),
                renewable: text("refresh_token").is_some(),
                received_s: stored.token_received_at.unwrap_or_else(now_s),
                lasts_s: response.get("expires_in").and_then(serde_json::Value::as_u64),
                stored,
            }),
            _ => Err(SessionError::Other("it gave no bearer token".to_owned())),
        }
    }

    /// Returns the issuer that gave it; empty if it has no name.
    pub fn issuer(&self) -> &str {
        self.stored.issuer.as_deref().unwrap_or_default()
    }

    pub fn scopes(&self) -> &[String] {
        &self.stored.granted_scopes
    }

    /// Returns when it ends, in seconds since the epoch, if that is known.
    pub fn expires_s(&self) -> Option<u64> {
        self.received_s.checked_add(self.lasts_s?)
    }

    /// Returns whether it ends soon.
    pub fn is_due(&self, now_s: u64) -> bool {
        let early_s = EARLY_S.min(self.lasts_s.unwrap_or_default() / 2);
        self.expires_s().is_some_and(|expires_s| now_s.saturating_add(early_s) >= expires_s)
    }
}

impl Session {
    /// Finds the authorization server of the upstream at `url`, as its `challenge` or its well-known documents say.
    pub async fn discover(url: &str, challenge: Option<&str>) -> Result<Self, SessionError> {
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let found = bounded(async {
            let mut manager = AuthorizationManager::new_allowing_private_addresses(url).await?;
            let store = InMemoryCredentialStore::new();
            manager.set_credential_store(store.clone());
            let resolution = manager.resolve_metadata_from_challenge(challenge).await?;
            manager.set_metadata(resolution.metadata.clone());
            let published = resolution.source.is_discovered();
            Ok(Self { manager, store, metadata: resolution.metadata, published, url: url.to_owned() })
        });
        found.await
    }

    /// Returns the authorization server's name; empty if it has none.
    pub fn issuer(&self) -> &str {
        self.metadata.issuer.as_deref().unwrap_or_default()
    }

    /// Returns whether the authorization server was found rather than guessed.
    pub fn is_published(&self) -> bool {
        self.published
    }

    /// Returns the scopes of a first login: the challenge's, else the resource's.
    pub async fn first_scopes(&self) -> Vec<String> {
        self.manager.select_initial_scopes(&[]).await
    }

    /// Returns `scopes` and, where the authorization server knows it, the one for refresh tokens.
    pub fn lasting(&self, scopes: Vec<String>) -> Vec<String> {
        let known = self.metadata.scopes_supported.iter().flatten().any(|scope| scope == OFFLINE);
        let mut scopes = scopes;
        if known && !scopes.is_empty() && !scopes.iter().any(|scope| scope == OFFLINE) {
            scopes.push(OFFLINE.to_owned());
        }
        scopes
    }

    /// Decides who we are here: as configured, by the URL of our metadata, as registered before, or registered now.
    pub async fn identify(
        &mut self,
        settings: &Settings,
        known: Option<&Registered>,
        redirect: &str,
        scopes: &[String],
    ) -> Result<Registered, SessionError> {
        let named = |id: &str, secret: Option<&String>| Registered {
            id: id.to_owned(),
            secret: secret.cloned(),
            redirect: redirect.to_owned(),
        };
        let known = known.filter(|known| known.redirect == redirect);
        let registered = match (&settings.client_id, &settings.metadata_url, known) {
            (Some(id), _, _) => named(id, settings.client_secret.as_ref()),
            (None, Some(url), _) if self.says("client_id_metadata_document_supported") => named(url, None),
            (None, _, Some(known)) => known.clone(),
            (None, _, None) => {
                let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
                let made = bounded(self.manager.register_client(CLIENT_NAME, redirect, &scopes)).await?;
                Registered { id: made.client_id, secret: made.client_secret, redirect: redirect.to_owned() }
            }
        };
        self.be(&registered)?;
        Ok(registered)
    }

    /// Returns the page at which a person allows it.
    pub async fn page(&self, scopes: &[String]) -> Result<String, SessionError> {
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        bounded(self.manager.get_authorization_url(&scopes)).await
    }

    /// Exchanges the code in the URL that the page led back to. Its `state` and `iss` must be those expected.
    pub async fn redeem(&self, redirected: &str) -> Result<Token, SessionError> {
        bounded(async {
            let callback = AuthorizationCallback::from_redirect_url(redirected)?;
            let (code, state) = (&callback.code, &callback.csrf_token);
            self.manager.exchange_code_for_token_with_issuer(code, state, callback.issuer.as_deref()).await
        })
        .await?;
        self.taken().await
    }

    /// Renews a token that this issuer gave to the client it gave it to. Errors: `Spent` where it gives no other.
    pub async fn renew(&mut self, as_who: &Registered, token: &Token) -> Result<Token, SessionError> {
        if token.issuer() != self.issuer() {
            return Err(SessionError::Spent);
        }
        self.be(as_who)?;
        bounded(self.store.save(token.stored.clone())).await?;
        bounded(self.manager.refresh_token()).await?;
        self.taken().await
    }

    /// Asks for a token of our own, on nobody's behalf.
    pub async fn own(&mut self, settings: &Settings, scopes: &[String]) -> Result<Token, SessionError> {
        if let (Some(client_id), Some(key)) = (&settings.client_id, &settings.private_key) {
            return self.asserted(client_id, key, scopes).await;
        }
        let (Some(client_id), Some(client_secret)) = (&settings.client_id, &settings.client_secret) else {
            return Err(SessionError::Other(
                "the grant client_credentials needs a client and its secret".to_owned(),
            ));
        };
        let asked = ClientCredentialsConfig::ClientSecret {
            client_id: client_id.clone(),
            client_secret: client_secret.clone(),
            scopes: scopes.to_vec(),
            resource: Some(self.url.clone()),
        };
        bounded(async {
            self.manager.validate_client_credentials_metadata(&asked)?;
            self.manager.configure_client_credentials(&asked)?;
            self.manager.exchange_client_credentials(&asked).await
        })
        .await?;
        self.taken().await
    }

    /// Does so with an assertion that a private key signs.
    async fn asserted(&self, client_id: &str, key: &Path, scopes: &[String]) -> Result<Token, SessionError> {
        let methods = self.metadata.additional_fields.get("token_endpoint_auth_methods_supported");
        let methods = methods.and_then(serde_json::Value::as_array);
        if methods.is_some_and(|methods| methods.iter().all(|method| method != "private_key_jwt")) {
            return Err(SessionError::Other("the authorization server takes no private_key_jwt".to_owned()));
        }
        let asking = Asking {
            endpoint: &self.metadata.token_endpoint,
            issuer: self.issuer(),
            client_id,
            resource: &self.url,
            scopes,
        };
        let answer = assertion::token(&asking, key, &CODES).await.map_err(SessionError::Other)?;
        let scope = answer["scope"].as_str().unwrap_or_default();
        let granted = scope.split_whitespace().map(str::to_owned).collect();
        let answer = serde_json::from_value(answer);
        let answer = answer.map_err(|_| SessionError::Other("it gave no bearer token".to_owned()))?;
        let mut stored = StoredCredentials::new(client_id.to_owned(), Some(answer), granted, Some(now_s()));
        stored.issuer = self.metadata.issuer.clone();
        Token::new(stored)
    }

    fn be(&mut self, client: &Registered) -> Result<(), SessionError> {
        let mut config = OAuthClientConfig::new(&client.id, &client.redirect);
        // A server that takes no secret from anybody may still have given one.
        if let Some(secret) = client.secret.as_ref().filter(|_| self.takes_secrets()) {
            config = config.with_client_secret(secret);
        }
        self.manager.configure_client(config).map_err(|err| told(&err))
    }

    fn takes_secrets(&self) -> bool {
        let methods = self.metadata.additional_fields.get("token_endpoint_auth_methods_supported");
        let methods = methods.and_then(serde_json::Value::as_array);
        methods.is_none_or(|methods| methods.iter().any(|method| method != "none"))
    }

    fn says(&self, key: &str) -> bool {
        self.metadata.additional_fields.get(key).and_then(serde_json::Value::as_bool) == Some(true)
    }

    async fn taken(&self) -> Result<Token, SessionError> {
        let stored = bounded(self.store.load()).await?;
        Token::new(stored.ok_or_else(|| SessionError::Other("it gave no token".to_owned()))?)
    }
}

/// Runs one step of a conversation within its time.
async fn bounded<T>(step: impl Future<Output = Result<T, AuthError>>) -> Result<T, SessionError> {
    match timeout(SESSION_TIMEOUT, step).await {
        Ok(done) => done.map_err(|err| told(&err)),
        Err(_) => Err(SessionError::Other("the authorization server did not answer in time".to_owned())),
    }
}

/// Returns the error in our own words, with the code of the standards that it names.
fn told(err: &AuthError) -> SessionError {
    let words = match err {
        AuthError::AuthorizationRequired | AuthError::TokenRefreshRejected(_) => return SessionError::Spent,
        AuthError::DiscoveryRequestFailed { .. } => {
            "the authorization server cannot be found: a request failed"
        }
        AuthError::MetadataError(_) | AuthError::NoAuthorizationSupport => "there is no authorization server",
        AuthError::ProtectedResourceMetadataInvalid { .. } => {
            "the metadata of the resource is unusable, or is that of another resource"
        }
        AuthError::AuthorizationServersUnavailable { .. } => {
            "its authorization servers publish no usable metadata"
        }
        AuthError::AuthorizationServerMismatch { .. } => {
            "the authorization server has another name than expected"
        }
        AuthError::AuthorizationServerMissingIssuer { .. } => {
            "the authorization server does not give its name"
        }
        AuthError::PkceUnsupported => "the authorization server does not support PKCE with S256",
        AuthError::RegistrationFailed(_) => {
            "the authorization server did not register this client; set oauth.client_id"
        }
        AuthError::TokenExchangeFailed(_) => "the authorization server did not exchange the code",
        AuthError::TokenRefreshFailed(_) => "the authorization server did not renew the token",
        AuthError::ClientCredentialsError(_) => "the authorization server gave this client no token",
        AuthError::InvalidScope(_) => "the authorization server does not support what this client needs",
        _ => "the authorization failed",
    };
    let text = err.to_string();
    SessionError::Other(match CODES.into_iter().find(|code| text.contains(code)) {
        Some(code) => format!("{words} ({code})"),
        None => words.to_owned(),
    })
}
