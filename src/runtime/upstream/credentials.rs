//! Credentials: the token that the requests to one HTTP upstream carry, and what is done when it is refused.
//!
//! Invariants:
//! - a token goes to the URL it was asked for, and nowhere else; it is in no error, log line or `Debug` text;
//! - however many requests meet an old token, it is renewed once, also where several processes share the directory;
//! - a request is sent at most `TRIES_MAX` times, and a server that wants ever more is given up;
//! - nobody is asked to log in here: that a login is needed is said, and kept for `cairn upstream login`.

pub mod assertion;
pub mod session;
pub mod vault;
mod challenge;
mod redirect;
pub mod login;

#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderValue, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use tokio::{sync::Mutex, time::sleep};

use crate::{
    clock::now_s,
    runtime::upstream::credentials::{
        challenge::Challenge,
        session::{Registered, Session, SessionError},
        vault::{Record, Stamp, Vault, VaultError, Wanted},
    },
};

/// How often one request is sent: with the token there is, a renewed one, and one of more scopes.
const TRIES_MAX: usize = 3;
/// Scopes that one token is asked for.
const SCOPES_MAX: usize = 64;
/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The pause after a renewal that failed, before a token that is not refused yet is renewed.
const REST: Duration = Duration::from_secs(5);

/// How tokens for an upstream are asked for.
#[derive(Clone, Default)]
pub struct Settings {
    /// Who we are at the authorization server, if it was told beforehand.
    pub client_id: Option<String>,
    pub client_secret: Option<String>,
    /// The file of a private key, by which this node proves who it is in the place of a secret.
    pub private_key: Option<PathBuf>,
    /// The HTTPS URL of our client metadata document, which is our id where the server knows such documents.
    pub metadata_url: Option<String>,
    /// The scopes to ask for; by default those that the upstream names.
    pub scopes: Vec<String>,
    /// The loopback port that a login leads back to; by default a free one.
    pub redirect_port: Option<u16>,
    pub grant: Grant,
    /// Whether each caller has a token of its own. That of this node then only lists what is on offer.
    pub per_caller: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// A person logs in once.
    #[default]
    Code,
    /// This node asks in its own name.
    Client,
}

/// The credentials of one upstream.
pub struct Credentials {
    name: String,
    /// The caller whose token it is; `None` for this node's own.
    principal: Option<String>,
    url: String,
    settings: Settings,
    vault: Vault,
    held: Mutex<Copy>,
    /// The token that took the place of a refused one, until a request with it is not refused. Locked to read or replace.
    unproven: std::sync::Mutex<Option<String>>,
}

/// Says why a response is a refusal that no token at hand can mend. It is put into the response's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
}

/// What the file held when it was last read.
#[derive(Default)]
struct Copy {
    record: Record,
    stamp: Option<Stamp>,
    looked: Option<Instant>,
    /// No renewal before this moment but of a token that was refused.
    rests_until: Option<Instant>,
}

/// A request that was refused, or is about to be.
struct Refused {
    /// The token it carried.
    bearer: Option<String>,
    challenge: Challenge,
}

/// Why there is no better token.
enum Trouble {
    /// Somebody has to log in, and get a token that meets this.
    Login(Wanted),
    Other(String),
}

impl From<VaultError> for Trouble {
    fn from(err: VaultError) -> Self {
        Self::Other(err.to_string())
    }
}

impl From<SessionError> for Trouble {
    fn from(err: SessionError) -> Self {
        Self::Other(err.to_string())
    }
}

impl Credentials {
    pub fn new(name: &str, url: &str, settings: Settings, vault: Vault) -> Self {
        Self {
            name: name.to_owned(),
            principal: None,
            url: url.to_owned(),
            settings,
            vault,
            held: Mutex::default(),
            unproven: std::sync::Mutex::default(),
        }
    }

    /// Returns the credentials of a caller at the same upstream.
    pub fn of_caller(&self, principal: &str) -> Self {
        let own = Self::new(&self.name, &self.url, self.settings.clone(), self.vault.clone());
        Self { principal: Some(principal.to_owned()), ..own }
    }

    /// Returns whether each caller has a token of its own here.
    pub fn is_per_caller(&self) -> bool {
        self.settings.per_caller && self.principal.is_none()
    }

    /// Returns the command by which somebody logs in.
    pub fn login_command(&self) -> String {
        match &self.principal {
            Some(principal) => format!("cairn upstream login {} --as {principal}", self.name),
            None => format!("cairn upstream login {}", self.name),
        }
    }

    /// Returns the name under which this is kept.
    fn key(&self) -> String {
        vault::key(&self.name, self.principal.as_deref())
    }

    /// Sends a request with the token in force, and again where a refused one could be renewed.
    ///
    /// A refusal that stays is returned as it came, with a [`Refusal`] that says why. Safe to drop midway: a renewal
    /// goes on, because the token before it may be spent.
    pub async fn send(self: &Arc<Self>, request: RequestBuilder) -> reqwest::Result<Response> {
        let mut request = request;
        let mut tries = 0;
        loop {
            tries += 1;
            let next = request.try_clone().filter(|_| tries < TRIES_MAX);
            let bearer = self.bearer().await;
            if let Some(value) = bearer.as_deref().and_then(authorization) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let mut response = request.send().await?;
            let Some(challenge) = Challenge::of(&response) else {
                self.proven(bearer.as_deref());
                return Ok(response);
            };
            let message = match next {
                None => "it refuses every token it is given".to_owned(),
                Some(next) => match self.renew(Refused { bearer, challenge }).await {
                    Ok(()) => {
                        request = next;
                        continue;
                    }
                    Err(message) => message,
                },
            };
            response.extensions_mut().insert(Refusal { message });
            return Ok(response);
        }
    }

    /// Waits until there is a token other than the one there was.
    pub async fn changed(&self) {
        let before = self.look().await.bearer();
        loop {
            sleep(LOOK_EVERY).await;
            let now = self.look().await.bearer();
            if now.is_some() && now != before {
                return;
            }
        }
    }

    /// Returns the token in force, renewed if it is about to end.
    async fn bearer(self: &Arc<Self>) -> Option<String> {
        let bearer = {
            let held = self.look().await;
            let bearer = held.bearer();
            if !held.is_due(self.settings.grant) {
                return bearer;
            }
            bearer
        };
        // If it fails, the server decides whether the old one is still good.
        let _ = self.renew(Refused { bearer, challenge: Challenge::default() }).await;
        self.look().await.bearer()
    }

    async fn look(&self) -> tokio::sync::MutexGuard<'_, Copy> {
        let mut held = self.held.lock().await;
        if held.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            held.looked = Some(Instant::now());
            let stamp = self.vault.stamp();
            if stamp != held.stamp {
                held.stamp = stamp;
                match self.read() {
                    Ok(record) => held.record = record,
                    Err(err) => tracing::error!(upstream = %self.name, %err, "credentials cannot be read"),
                }
            }
        }
        held
    }

    /// Gets a better token than the refused one. Errors: why there is none, as text for an operator.
    async fn renew(self: &Arc<Self>, refused: Refused) -> Result<(), String> {
        let this = Arc::clone(self);
        // A task of its own, which ends by the bounds of its steps: a caller that leaves must not lose a token that the
        // authorization server has replaced already.
        let renewing = tokio::spawn(async move { this.renew_once(refused).await });
        renewing.await.unwrap_or_else(|_| Err("the renewal of its token broke off".to_owned()))
    }

    async fn renew_once(&self, refused: Refused) -> Result<(), String> {
        let mut held = self.held.lock().await;
        let done = self.replace(&mut held, &refused).await;
        held.rests_until = done.is_err().then(|| Instant::now() + REST);
        match done {
            Ok(()) => Ok(()),
            Err(Trouble::Login(wanted)) if wanted.scopes.is_empty() => {
                Err(format!("a login is needed: {}", self.login_command()))
            }
            Err(Trouble::Login(_)) => {
                Err(format!("a login with more scopes is needed: {}", self.login_command()))
            }
            Err(Trouble::Other(message)) => Err(message),
        }
    }

    async fn replace(&self, held: &mut Copy, refused: &Refused) -> Result<(), Trouble> {
        let lock = self.vault.hold().await?;
        held.record = self.read()?;
        if held.bearer() != refused.bearer {
            // Somebody was faster.
            return Ok(());
        }
        let mut record = held.record.clone();
        let done = self.obtain(&mut record, refused).await;
        if let Err(Trouble::Login(wanted)) = &done {
            record.wanted = Some(wanted.clone());
        }
        let same = record.wanted == held.record.wanted && done.is_err();
        let gone = record.token.is_none() && held.record.token.is_some();
        if !same || gone {
            // A crash before this loses a token that the authorization server may have replaced: a login is needed then.
            lock.put(&self.key(), Some(record.clone()))?;
        }
        held.record = record;
        held.stamp = self.vault.stamp();
        if done.is_ok() {
            *self.unproven.lock().unwrap_or_else(PoisonError::into_inner) = held.bearer();
        }
        done
    }

    /// Puts a better token into the record, by what is at hand without a person.
    async fn obtain(&self, record: &mut Record, refused: &Refused) -> Result<(), Trouble> {
        let challenge = &refused.challenge;
        let wanted = self.wanted(record, challenge)?;
        // One that was renewed and refused at once would not be better for being renewed again.
        let hopeless = challenge.status == Some(StatusCode::UNAUTHORIZED) && self.is_unproven(refused);
        if self.settings.grant == Grant::Client {
            if hopeless {
                return Err(Trouble::Other(
                    "it refuses the token that this node was just given for it".to_owned(),
                ));
            }
            let mut session = Session::discover(&self.url, challenge.value.as_deref()).await?;
            let scopes = match (wanted.scopes.is_empty(), self.settings.scopes.is_empty()) {
                (false, _) => wanted.scopes,
                (true, false) => self.settings.scopes.clone(),
                (true, true) => session.first_scopes().await,
            };
            record.token = Some(session.own(&self.settings, &scopes).await?);
            record.asked = scopes;
            record.wanted = None;
            return Ok(());
        }
        let token = record.token.as_ref().filter(|token| wanted.scopes.is_empty() && token.renewable);
        let Some(token) = token.filter(|_| !hopeless) else {
            return Err(Trouble::Login(wanted));
        };
        // The upstream may have moved to another authorization server: it is asked again which is its own.
        let mut session = Session::discover(&self.url, challenge.value.as_deref()).await?;
        let client = self.client(record, session.issuer());
        let renewed = match client {
            Some(client) => session.renew(&client, token).await,
            None => Err(SessionError::Spent),
        };
        match renewed {
            Ok(token) => {
                record.token = Some(token);
                Ok(())
            }
            Err(SessionError::Spent) => {
                record.token = None;
                record.asked.clear();
                Err(Trouble::Login(wanted))
            }
            Err(err) => Err(err.into()),
        }
    }

    fn proven(&self, bearer: Option<&str>) {
        let mut unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        if unproven.as_deref() == bearer {
            *unproven = None;
        }
    }

    fn is_unproven(&self, refused: &Refused) -> bool {
        let unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        unproven.is_some() && *unproven == refused.bearer
    }

    /// Returns what a token has to be to meet a challenge. A step up asks for what it had and what it lacks.
    fn wanted(&self, record: &Record, challenge: &Challenge) -> Result<Wanted, Trouble> {
        let value = challenge.value.clone();
        if challenge.status != Some(StatusCode::FORBIDDEN) {
            return Ok(Wanted { challenge: value, scopes: Vec::new() });
        }
        let had = record.token.as_ref().map(|token| token.scopes().to_vec()).unwrap_or_default();
        let asked = |scope: &String| had.contains(scope) || record.asked.contains(scope);
        if challenge.scopes.iter().all(asked) {
            let message = "it wants scopes that were asked for already and not granted";
            return Err(Trouble::Other(message.to_owned()));
        }
        let scopes = union(had, &challenge.scopes);
        match scopes.len() > SCOPES_MAX {
            true => Err(Trouble::Other("it wants too many scopes".to_owned())),
            false => Ok(Wanted { challenge: value, scopes }),
        }
    }

    /// Returns who we are at an issuer, if that is known.
    fn client(&self, record: &Record, issuer: &str) -> Option<Registered> {
        let known = record.clients.get(issuer);
        match &self.settings.client_id {
            Some(id) => Some(Registered {
                id: id.clone(),
                secret: self.settings.client_secret.clone(),
                redirect: known.map(|known| known.redirect.clone()).unwrap_or_else(|| redirect::url(0)),
            }),
            None => known.cloned(),
        }
    }

    /// Reads what the file has of this upstream at this URL.
    fn read(&self) -> Result<Record, VaultError> {
        let record = self.vault.read()?.remove(&self.key()).filter(|record| record.url == self.url);
        Ok(record.unwrap_or_else(|| Record { url: self.url.clone(), ..Record::default() }))
    }
}

impl Copy {
    fn bearer(&self) -> Option<String> {
        Some(self.record.token.as_ref()?.bearer.clone())
    }

    fn is_due(&self, grant: Grant) -> bool {
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        let token = self.record.token.as_ref().filter(|token| grant == Grant::Client || token.renewable);
        !rests && token.is_some_and(|token| token.is_due(now_s()))
    }
}

/// Returns both lists as one, without doubles.
fn union(scopes: Vec<String>, more: &[String]) -> Vec<String> {
    let mut scopes = scopes;
    for scope in more {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    scopes
}

/// Returns the header that carries a token; `None` if no header can.
fn authorization(bearer: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {bearer}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
