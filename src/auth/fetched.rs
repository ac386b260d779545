//! What issuers publish at a URL, such as their keys: fetched when it is needed, and kept for as long as its source allows.
//!
//! Invariants:
//! - one fetch at a time, bounded in time and size; no redirect is followed;
//! - `Cache-Control` is respected between [`FRESH_MIN`] and [`FRESH_MAX`]. What cannot be fetched again stays in force
//!   for [`STALE_MAX`] longer, then it has no value;
//! - callers cannot make this node ask more often than once in [`FAILED_PAUSE`], and for ids that nobody knows once in
//!   [`UNKNOWN_PAUSE`].

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, header::CACHE_CONTROL};
use reqwest::{Client, Url, redirect};
use tokio::{runtime::Handle, sync::Mutex as Turn};

use super::watched::FILE_MAX;

/// How long a fetch may take.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// For how long a fetched value is fresh, at least and at most, and if its source does not say.
const FRESH_MIN: Duration = Duration::from_secs(60);
const FRESH_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const FRESH_USUAL: Duration = Duration::from_secs(5 * 60);
/// For how long a value that is not fresh any more stays in force while it cannot be fetched.
const STALE_MAX: Duration = Duration::from_secs(60 * 60);
/// The pause after a fetch that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(2);
/// The pause between two fetches for ids that are not among the keys.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(10);
const AGENT: &str = concat!("cairn/", env!("CARGO_PKG_VERSION"));

type Parse<T> = fn(&[u8]) -> io::Result<T>;

pub(super) struct Fetched<T> {
    client: Client,
    url: Url,
    parse: Parse<T>,
    held: Mutex<Held<T>>,
    /// Held by whoever fetches.
    turn: Turn<()>,
}

struct Held<T> {
    value: Option<Arc<T>>,
    fresh_until: Instant,
    /// Counts the values.
    version: u64,
    /// When a fetch failed last, and why.
    failed: Option<(Instant, String)>,
    /// When an unknown id last led to a fetch.
    unknown: Option<Instant>,
}

impl<T: Send + Sync + 'static> Fetched<T> {
    /// Prepares a client; nothing is sent yet. Errors: why the URL cannot be asked, without the URL.
    pub(super) fn new(url: &str, parse: Parse<T>) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|err| format!("it is malformed: {err}"))?;
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client =
            Client::builder().timeout(FETCH_MAX).redirect(redirect::Policy::none()).user_agent(AGENT);
        if url.scheme() == "http" {
            // Only loopback addresses are asked without TLS, and no proxy leads there.
            client = client.no_proxy().tls_certs_only([]);
        }
        let client = client.build().map_err(|_| "http cannot be prepared".to_owned())?;
        let held = Held { value: None, fresh_until: Instant::now(), version: 0, failed: None, unknown: None };
        Ok(Self { client, url, parse, held: Mutex::new(held), turn: Turn::new(()) })
    }

    /// Returns the value, if one is in force. One that is not fresh any more is fetched again meanwhile.
    pub(super) fn current_at(self: &Arc<Self>, now: Instant) -> Option<Arc<T>> {
        let (value, due) = {
            let held = self.held();
            (held.in_force(now), held.due(now))
        };
        // Whoever has the turn fetches it already.
        let idle = due && self.turn.try_lock().is_ok();
        if idle && let Ok(runtime) = Handle::try_current() {
            let fetched = Arc::clone(self);
            // The task ends within the time of one fetch.
            runtime.spawn(async move { fetched.fetch().await });
        }
        value
    }

    /// Returns a number that differs whenever the value has changed or is in force no more.
    pub(super) fn version_at(self: &Arc<Self>, now: Instant) -> u64 {
        match self.current_at(now) {
            Some(_) => self.held().version,
            None => u64::MAX,
        }
    }

    /// Returns why there is no value in force, if there is none and it was asked for.
    pub(super) fn trouble(&self) -> Option<String> {
        let held = self.held();
        match held.in_force(Instant::now()) {
            Some(_) => None,
            None => held.failed.as_ref().map(|(_, why)| why.clone()),
        }
    }

    /// Has the value fetched again when it is next needed.
    pub(super) fn expire(&self) {
        let mut held = self.held();
        held.fresh_until = held.fresh_until.min(Instant::now());
        held.failed = None;
        held.unknown = None;
    }

    /// Fetches the value if it is due. Returns whether it was fetched, by this or by a fetch that was under way.
    ///
    /// Safe to drop midway.
    pub(super) async fn fetch(&self) -> bool {
        let before = self.held().version;
        let _turn = self.turn.lock().await;
        if self.held().version != before {
            return true;
        }
        let due = self.held().due(Instant::now());
        due && self.ask().await
    }

    /// Fetches the value because an id is not in it, unless that was done a short time ago. Returns what `fetch` does.
    ///
    /// Safe to drop midway.
    pub(super) async fn fetch_for_unknown(&self) -> bool {
        let before = self.held().version;
        let _turn = self.turn.lock().await;
        if self.held().version != before {
            return true;
        }
        {
            let mut held = self.held();
            let now = Instant::now();
            let lately = |at: Instant, pause| now.saturating_duration_since(at) < pause;
            let failed = held.failed.as_ref().is_some_and(|(at, _)| lately(*at, FAILED_PAUSE));
            if failed || held.unknown.is_some_and(|at| lately(at, UNKNOWN_PAUSE)) {
                return false;
            }
            held.unknown = Some(now);
        }
        self.ask().await
    }

    /// Asks the URL. The caller has the turn.
    async fn ask(&self) -> bool {
        let asked = self.get().await;
        let now = Instant::now();
        let mut held = self.held();
        match asked {
            Ok((value, fresh)) => {
                if held.failed.take().is_some() {
                    tracing::info!("the keys of tokens are fetched again");
                }
                held.value = Some(Arc::new(value));
                held.fresh_until = now + fresh;
                held.version += 1;
                true
            }
            Err(why) => {
                if held.failed.as_ref().is_none_or(|(_, last)| *last != why) {
                    tracing::error!(why, "the keys of tokens cannot be fetched");
                }
                held.failed = Some((now, why));
                false
            }
        }
    }

    /// Returns what the URL answers, and for how long it is fresh. Errors: why not, without the URL.
    async fn get(&self) -> Result<(T, Duration), String> {
        let asked = self.client.get(self.url.clone()).send().await;
        let mut response = asked.map_err(|err| match err.is_timeout() {
            true => "no answer in time".to_owned(),
            false => "no connection".to_owned(),
        })?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("the answer is {}", response.status().as_u16()));
        }
        let fresh = fresh(response.headers());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| "the answer broke off".to_owned())? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > FILE_MAX {
                return Err("the answer is over 1 MiB".to_owned());
            }
        }
        let value = (self.parse)(&bytes).map_err(|err| err.to_string())?;
        Ok((value, fresh))
    }

    fn held(&self) -> MutexGuard<'_, Held<T>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Held<T> {
    fn in_force(&self, now: Instant) -> Option<Arc<T>> {
        self.value.clone().filter(|_| now < self.fresh_until + STALE_MAX)
    }

    /// Returns whether it is time to fetch the value.
    fn due(&self, now: Instant) -> bool {
        let old = self.value.is_none() || now >= self.fresh_until;
        let failed = self.failed.as_ref();
        old && failed.is_none_or(|(at, _)| now.saturating_duration_since(*at) >= FAILED_PAUSE)
    }
}

/// Returns for how long an answer is fresh, by its `Cache-Control` (RFC 9111).
fn fresh(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut fresh = FRESH_USUAL;
    for directive in values.flat_map(|value| value.split(',')).map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return FRESH_MIN,
            "max-age" => {
                // A number too large to be read is a long time.
                let digits = value.trim_matches('"');
                let seconds = match digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() {
                    true => digits.parse().unwrap_or(u64::MAX),
                    false => 0,
                };
                fresh = Duration::from_secs(seconds).clamp(FRESH_MIN, FRESH_MAX);
            }
            _ => {}
        }
    }
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_says_of_freshness_is_kept_within_bounds() {
        for (said, seconds) in [
            (&[][..], 300),
            (&["max-age=3600"][..], 3600),
            (&["public, Max-Age=\"600\", must-revalidate"], 600),
            (&["max-age=1"], 60),
            (&["max-age=99999999999999999999999"], 86_400),
            (&["max-age=-1"], 60),
            (&["max-age"], 60),
            (&["no-store"], 60),
            (&["max-age=3600", "no-cache"], 60),
        ] {
            let mut headers = HeaderMap::new();
            for value in said {
                headers.append(CACHE_CONTROL, value.parse().expect("a header value"));
            }
            assert_eq!(fresh(&headers).as_secs(), seconds, "{said:?}");
        }
    }
}
