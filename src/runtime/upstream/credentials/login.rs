//! A login: a person allows this node to use an upstream, once, and the token is kept.
//!
//! Invariants:
//! - nothing is kept of a login that did not end well;
//! - the page's URL is handed to the caller alone, and the answer is taken by its `state` and its issuer.

use std::time::Duration;

use reqwest::{Client, Url, header, redirect::Policy};
use tokio::time::timeout;

use crate::router::audience::Audience;
use crate::runtime::upstream::{
    Protocol,
    credentials::{
        Credentials, Grant,
        challenge::Challenge,
        redirect::{self, Redirect},
        session::{Session, SessionError, Token},
        union,
        vault::{Record, Vault, VaultError, Wanted},
    },
    headers, wire,
};

/// How long the person has.
const LOGIN_MAX: Duration = Duration::from_secs(10 * 60);
/// How long the upstream has to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);

/// Why nobody is logged in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("its grant is client_credentials: this node asks for its tokens by itself")]
    NoPerson,
    #[error("the upstream cannot be reached")]
    Unreachable,
    #[error("the upstream wants no login: it answers without, and names no authorization server")]
    NotWanted,
    #[error("the address to come back to cannot be listened on: {0}")]
    Redirect(std::io::Error),
    #[error("nobody allowed it within ten minutes")]
    TimedOut,
    #[error("that is not the address that the page led back to")]
    Strange,
    #[error("it was not allowed")]
    Refused,
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Where a login stands.
pub struct Standing {
    pub token: Option<Token>,
    /// Whether the upstream refused a request since the last login, and for the lack of which scopes.
    pub wanted: Option<Wanted>,
}

impl Credentials {
    /// Logs in. `show` gets the page's URL; `pasted` gives the URL that it led back to, unless it leads here first.
    ///
    /// Returns the scopes of the token.
    pub async fn login(
        &self,
        show: impl FnOnce(&str),
        pasted: impl Future<Output = String>,
    ) -> Result<Vec<String>, LoginError> {
        if self.settings.grant == Grant::Client {
            return Err(LoginError::NoPerson);
        }
        let mut record = self.read()?;
        let asked = match record.wanted.clone() {
            Some(wanted) => Some(wanted),
            None => self.ask().await?,
        };
        let refused = asked.is_some();
        let wanted = asked.unwrap_or_default();
        let mut session = Session::discover(&self.url, wanted.challenge.as_deref()).await?;
        if !refused && !session.is_published() {
            return Err(LoginError::NotWanted);
        }
        let known = record.clients.get(session.issuer()).cloned();
        let liked = known.as_ref().and_then(|known| redirect::port(&known.redirect));
        let back = Redirect::open(self.settings.redirect_port, liked).await.map_err(LoginError::Redirect)?;
        let first = match (self.settings.scopes.is_empty(), wanted.scopes.is_empty()) {
            (true, true) => session.first_scopes().await,
            (true, false) => wanted.scopes,
            (false, _) => union(self.settings.scopes.clone(), &wanted.scopes),
        };
        let scopes = session.lasting(first);
        let client = session.identify(&self.settings, known.as_ref(), &back.url(), &scopes).await?;
        let page = session.page(&scopes).await?;
        let state = state_of(&page);
        show(&page);
        let redirected = timeout(LOGIN_MAX, async {
            tokio::select! {
                answer = back.answer(&state) => answer.map_err(LoginError::Redirect),
                pasted = pasted => match redirect::is_answer(pasted.trim(), &state) {
                    true => Ok(pasted.trim().to_owned()),
                    false => Err(LoginError::Strange),
                },
            }
        });
        let redirected = redirected.await.map_err(|_| LoginError::TimedOut)??;
        if has(&redirected, "error") {
            return Err(LoginError::Refused);
        }
        let token = session.redeem(&redirected).await?;
        let granted = token.scopes().to_vec();
        let lock = self.vault.hold().await?;
        // Another process may have kept something since. Its registrations stay.
        record.clients = self.read()?.clients;
        record.clients.insert(session.issuer().to_owned(), client);
        let fresh = Record { token: Some(token), asked: scopes, wanted: None, ..record };
        lock.put(&self.key(), Some(fresh))?;
        Ok(granted)
    }

    /// Asks the upstream without a token. Returns what it wants, or `None` if it answers without.
    async fn ask(&self) -> Result<Option<Wanted>, LoginError> {
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().timeout(ASK_TIMEOUT).redirect(Policy::none());
        if self.url.starts_with("http:") {
            // Without TLS, a machine without certificate authorities is good enough.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|_| LoginError::Unreachable)?;
        let (params, _) = wire::outgoing(&wire::empty(), 1, Protocol::Modern, false, &Audience::default())
            .map_err(|_| LoginError::Unreachable)?;
        let request = client
            .post(&self.url)
            .headers(headers::of_request("server/discover", &params, &headers::Shown::default()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(wire::request(1, "server/discover", &params));
        let response = request.send().await.map_err(|_| LoginError::Unreachable)?;
        let challenge = Challenge::of(&response);
        Ok(challenge.map(|challenge| Wanted { challenge: challenge.value, scopes: Vec::new() }))
    }

    /// Returns where the login stands.
    pub fn standing(&self) -> Result<Standing, VaultError> {
        let record = self.read()?;
        Ok(Standing { token: record.token, wanted: record.wanted })
    }

    /// Forgets the token and the registrations of this upstream. Returns whether there was anything.
    pub async fn logout(&self) -> Result<bool, VaultError> {
        forget(&self.vault, &self.key()).await
    }
}

/// Forgets everything that is kept under a name, also of an upstream that is configured no more.
pub async fn forget(vault: &Vault, name: &str) -> Result<bool, VaultError> {
    let lock = vault.hold().await?;
    let known = vault.read()?.contains_key(name);
    if known {
        lock.put(name, None)?;
    }
    Ok(known)
}

/// Returns the `state` of the page's URL.
fn state_of(page: &str) -> String {
    let url = Url::parse(page).ok();
    let state = url.and_then(|url| Some(url.query_pairs().find(|(key, _)| key == "state")?.1.into_owned()));
    state.unwrap_or_default()
}

fn has(url: &str, key: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.query_pairs().any(|(name, _)| name == key))
}
