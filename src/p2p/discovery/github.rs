//! A registry of peers kept as issues of a GitHub repository: one open issue a peer, titled `Peer: <peer id>`, labelled
//! `cairn-peer`, its body the JSON entry that files of peers hold.
//!
//! API: REST "List repository issues", "Create an issue", "Update an issue"; limits by `retry-after`,
//! `x-ratelimit-remaining` and `x-ratelimit-reset`.
//!
//! Invariants:
//! - while the API asks to be left alone, nothing is asked;
//! - the token goes to the API's own host alone, and is in no error or log line;
//! - an issue that makes no sense is counted, and hides no other.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header};
use reqwest::{Client, RequestBuilder, Response, redirect};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FOUND_MAX, Found, LookError, Looked, Origin, Source, Wanted, entry};
use crate::router::BoxFuture;

/// Where the public API is.
pub const PUBLIC_API: &str = "https://api.github.com";
/// The label of a peer's issue.
const LABEL: &str = "cairn-peer";
const TITLE: &str = "Peer: ";
/// Issues on a page, and pages read.
const PAGE: usize = 100;
const PAGES_MAX: usize = 10;
/// Bytes of one page.
const BYTES_MAX: usize = 8 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the API is left alone where it does not say.
const REST: Duration = Duration::from_secs(60);
/// The longest time it is left alone, whatever it asks for.
const REST_MAX: Duration = Duration::from_secs(3_600);

pub struct Github {
    client: Client,
    /// `<api>/repos/<owner>/<repository>/issues`
    issues: String,
    token: Option<String>,
    ttl_ms: u64,
    kept: Mutex<ApiState>,
}

/// State kept from the API's last answers.
#[derive(Default)]
struct ApiState {
    /// No request is made before this time.
    rest_until_ms: u64,
    /// The first page and its `ETag`: a conditional request for an unchanged page does not count towards the API's
    /// limit.
    etag: Option<String>,
    issues: Vec<Issue>,
}

#[derive(Clone, Deserialize)]
struct Issue {
    number: u64,
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    pull_request: Option<Value>,
}

impl Github {
    /// A registry at `api`, kept in `repository` (`owner/name`). `None` if no HTTP client can be made.
    pub fn new(api: &str, repository: &str, token: Option<String>, ttl_ms: u64) -> Option<Self> {
        // Whoever installed one before has done the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")));
        Some(Self {
            client: client.build().ok()?,
            issues: format!("{}/repos/{repository}/issues", api.trim_end_matches('/')),
            token,
            ttl_ms,
            kept: Mutex::default(),
        })
    }

    /// Creates or updates this node's own issue. Needs a token.
    pub async fn announce(&self, own: &Found, now_ms: u64) -> Result<(), LookError> {
        if self.token.is_none() {
            return Err(LookError::Unavailable("announcing needs CAIRN_GITHUB_TOKEN".to_owned()));
        }
        self.list(now_ms).await?;
        let title = format!("{TITLE}{}", own.peer);
        let body = entry::write(own, self.ttl_ms).to_string();
        let number = self.kept().issues.iter().find(|issue| issue.title == title).map(|issue| issue.number);
        let request = match number {
            Some(number) => {
                self.client.patch(format!("{}/{number}", self.issues)).body(json!({"body": body}).to_string())
            }
            None => {
                let issue = json!({"title": title, "body": body, "labels": [LABEL]});
                self.client.post(&self.issues).body(issue.to_string())
            }
        };
        self.send(request, now_ms).await.map(drop)
    }

    /// Fetches the issues, unless all of them stand on one page and that is unchanged.
    async fn list(&self, now_ms: u64) -> Result<(), LookError> {
        let mut issues = Vec::new();
        let mut etag = None;
        for page in 1..=PAGES_MAX {
            let url = format!("{}?state=open&labels={LABEL}&per_page={PAGE}&page={page}", self.issues);
            let mut request = self.client.get(url);
            let known = self.kept().etag.clone().filter(|_| page == 1);
            if let Some(etag) = known {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            let response = self.send(request, now_ms).await?;
            if response.status() == StatusCode::NOT_MODIFIED {
                return Ok(());
            }
            if page == 1 {
                etag = response
                    .headers()
                    .get(header::ETAG)
                    .and_then(|etag| etag.to_str().ok())
                    .map(str::to_owned);
            }
            let read: Vec<Value> = serde_json::from_slice(&body(response).await?)
                .map_err(|_| LookError::Unavailable("its answer is not a list of issues".to_owned()))?;
            let last = read.len() < PAGE;
            // What cannot be read as an issue is one with nothing in it, to be counted as such.
            let issue = |value| serde_json::from_value(value).unwrap_or_else(|_| Issue::nothing());
            issues.extend(read.into_iter().map(issue).filter(|issue| issue.pull_request.is_none()));
            if last {
                break;
            }
            // Of more pages than one the first says nothing about the others, so all are fetched again next time.
            etag = None;
        }
        let mut kept = self.kept();
        (kept.etag, kept.issues) = (etag, issues);
        Ok(())
    }

    async fn send(&self, request: RequestBuilder, now_ms: u64) -> Result<Response, LookError> {
        let rest_until_ms = self.kept().rest_until_ms;
        if now_ms < rest_until_ms {
            return Err(LookError::Limited(Duration::from_millis(rest_until_ms - now_ms)));
        }
        let request = request.header(header::ACCEPT, "application/vnd.github+json");
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(|err| LookError::Unavailable(cause(&err)))?;
        let status = response.status();
        if let Some(rest) = rest(status, response.headers(), now_ms) {
            self.kept().rest_until_ms = now_ms + rest.as_millis() as u64;
            if !status.is_success() && status != StatusCode::NOT_MODIFIED {
                return Err(LookError::Limited(rest));
            }
        }
        match status {
            StatusCode::NOT_MODIFIED => Ok(response),
            status if status.is_success() => Ok(response),
            StatusCode::UNAUTHORIZED => {
                Err(LookError::Unavailable("it does not take CAIRN_GITHUB_TOKEN".to_owned()))
            }
            StatusCode::NOT_FOUND => Err(LookError::Unavailable(
                "there is no such repository, or the token may not see it".to_owned(),
            )),
            status => Err(LookError::Unavailable(format!("it answered status {}", status.as_u16()))),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, ApiState> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Github {
    fn origin(&self) -> Origin {
        Origin::Github
    }

    fn look(&self, _: Wanted, now_ms: u64) -> BoxFuture<'_, Result<Looked, LookError>> {
        Box::pin(async move {
            self.list(now_ms).await?;
            let kept = self.kept();
            let mut looked = Looked::default();
            for issue in &kept.issues {
                match issue.peer(self.ttl_ms) {
                    None => looked.bad += 1,
                    Some((found, ttl_ms)) if found.seen_ms.saturating_add(ttl_ms) >= now_ms => {
                        if looked.found.len() < FOUND_MAX {
                            looked.found.push(found);
                        }
                    }
                    Some(_) => {}
                }
            }
            Ok(looked)
        })
    }
}

impl Issue {
    fn nothing() -> Self {
        Self { number: 0, title: String::new(), body: None, updated_at: None, pull_request: None }
    }

    /// Returns the peer in an issue, whose title and body must agree.
    fn peer(&self, ttl_ms: u64) -> Option<(Found, u64)> {
        let titled = self.title.strip_prefix(TITLE)?.trim();
        let text = self.body.as_deref()?.trim();
        // People put JSON into a fence.
        let text = text.strip_prefix("```json").or_else(|| text.strip_prefix("```")).unwrap_or(text);
        let mut body: Value = serde_json::from_str(text.strip_suffix("```").unwrap_or(text)).ok()?;
        let told = body.as_object_mut()?;
        if !told.contains_key("last_seen_ms") {
            let updated: jiff::Timestamp = self.updated_at.as_ref()?.parse().ok()?;
            told.insert("last_seen_ms".to_owned(), updated.as_millisecond().into());
        }
        entry::read(&body, ttl_ms, Origin::Github).filter(|(found, _)| found.peer == titled)
    }
}

/// Returns how long to leave the API alone, if it asks for that.
fn rest(status: StatusCode, headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    if let Some(seconds) = number("retry-after") {
        return Some(REST_MAX.min(Duration::from_secs(seconds)));
    }
    if number("x-ratelimit-remaining") == Some(0) {
        let until_ms = number("x-ratelimit-reset").map(|reset| reset.saturating_mul(1_000));
        let rest = until_ms.map(|until_ms| Duration::from_millis(until_ms.saturating_sub(now_ms)));
        return Some(REST_MAX.min(rest.unwrap_or(REST)));
    }
    (status == StatusCode::TOO_MANY_REQUESTS).then_some(REST)
}

async fn body(mut response: Response) -> Result<Vec<u8>, LookError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|err| LookError::Unavailable(cause(&err)))? {
        if body.len() + chunk.len() > BYTES_MAX {
            return Err(LookError::Unavailable("its answer is over 8 MiB".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns what failed, without the URL.
fn cause(err: &reqwest::Error) -> String {
    match err {
        err if err.is_timeout() => "it did not answer in time".to_owned(),
        err if err.is_connect() => "it cannot be reached".to_owned(),
        _ => "its answer broke off".to_owned(),
    }
}
