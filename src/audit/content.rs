//! The form of an answer: content negotiation, entity tags, and how long it may be cached.
//!
//! Invariants:
//! - an entity tag is a CID, so its content never changes;
//! - no cache may keep content that can be erased, which is that of payloads and their parts.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY},
};
use serde_json::{Value, json};

use crate::{
    block::{Cid, Codec, decode_ipld, json::dag_text, payload::is_content},
    problem::{internal, problem, problem_with},
    query::QueryError,
    questions::Unanswered,
};

pub const RAW: &str = "application/vnd.ipld.raw";
const DAG_JSON: &str = "application/vnd.ipld.dag-json";
pub const CAR: &str = "application/vnd.ipld.car; version=1; order=dfs; dups=n";
const IMMUTABLE: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The number of payloads whose content a response contains. The HTTP door reads it from the response's extensions and
/// counts it for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents(pub u64);

/// The representations in which an event, block or contract is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Raw,
    DagJson,
}

impl Form {
    /// Returns the form with the largest weight in the `Accept` headers; JSON without such a header. Errors: 406.
    pub fn accepted(headers: &HeaderMap) -> Result<Self, Refused> {
        let wishes: Vec<(f32, Self)> = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(wish)
            .collect();
        if headers.get(ACCEPT).is_none() {
            return Ok(Self::Json);
        }
        // Of equal weights the first wins.
        let best = wishes
            .into_iter()
            .filter(|(weight, _)| *weight > 0.0)
            .reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, form)| form).ok_or_else(|| {
            let detail = format!("served here: application/json, application/vnd.ipld.dag-json, {RAW}");
            Refused::new(problem(StatusCode::NOT_ACCEPTABLE, "not acceptable", &detail))
        })
    }
}

/// Parses one media range of `Accept` with its weight; `None` if that type is not served here.
fn wish(range: &str) -> Option<(f32, Form)> {
    let mut parts = range.split(';').map(str::trim);
    let form = match parts.next()?.to_ascii_lowercase().as_str() {
        "*/*" | "application/*" | "application/json" => Form::Json,
        RAW => Form::Raw,
        DAG_JSON => Form::DagJson,
        _ => return None,
    };
    let weight = parts.find_map(|part| part.strip_prefix("q="));
    Some((weight.map_or(Some(1.0), |q| q.parse().ok())?, form))
}

/// Returns the 304 response if the caller has this block already, by `If-None-Match`.
pub fn known(headers: &HeaderMap, cid: &Cid) -> Option<Response> {
    let tag = format!("\"{cid}\"");
    let tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let matches = tags.flat_map(|tags| tags.split(',')).any(|other| {
        let other = other.trim();
        other == "*" || other.strip_prefix("W/").unwrap_or(other) == tag
    });
    matches.then(|| {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        name(response.headers_mut(), cid);
        response
    })
}

/// Returns a response with content that `cid` names, to be cached for a year.
pub fn immutable(cid: &Cid, media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    name(headers, cid);
    response
}

/// Returns a JSON response that must not be cached, because what it contains may be erased later.
pub fn passing(json: &Value) -> Response {
    passing_text(json.to_string())
}

/// Does the same with text that is JSON already.
pub fn passing_text(json: String) -> Response {
    let media = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, media), (CACHE_CONTROL, NO_STORE)], json).into_response()
}

/// Returns a block's bytes raw or as DAG-JSON.
pub fn bytes(cid: &Cid, form: Form, bytes: Vec<u8>) -> Response {
    match (form, cid.codec()) {
        (Form::DagJson, Codec::DagCbor) => match decode_ipld(&bytes) {
            Ok(ipld) => immutable(cid, DAG_JSON, dag_text(&ipld)),
            Err(err) => internal(&err),
        },
        (Form::DagJson, Codec::Raw) => {
            immutable(cid, DAG_JSON, dag_text(&ipld_core::ipld::Ipld::Bytes(bytes)))
        }
        (Form::Raw | Form::Json, _) => immutable(cid, RAW, bytes),
    }
}

/// Adds to a response the number of payloads whose content it contains, and forbids caches to keep any.
pub fn holding(contents: u64, mut response: Response) -> Response {
    if contents > 0 {
        response.extensions_mut().insert(Contents(contents));
    }
    unkept(contents, response)
}

/// Forbids caches to keep a response about the content of payloads, because it may be erased later.
pub fn unkept(contents: u64, mut response: Response) -> Response {
    if contents > 0 {
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    }
    response
}

/// Returns how many payloads' content a block contains: 1 for a payload or a part of one, else 0.
pub fn contents(cid: &Cid, bytes: &[u8]) -> u64 {
    is_content(cid, bytes).into()
}

fn name(headers: &mut HeaderMap, cid: &Cid) {
    let tag = HeaderValue::try_from(format!("\"{cid}\""));
    headers.insert(ETAG, tag.expect("a cid is plain ascii"));
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(VARY, HeaderValue::from_static("accept"));
}

/// Parses a CID from a path or a query string. Errors: 400.
pub fn cid(text: &str) -> Result<Cid, Refused> {
    text.parse()
        .map_err(|err| Refused::new(problem(StatusCode::BAD_REQUEST, "malformed cid", &format!("{err}"))))
}

/// Returns the parsed query string. Errors: 400, with the parser's message.
pub fn asked<T>(
    query: Result<axum::extract::Query<T>, axum::extract::rejection::QueryRejection>,
) -> Result<T, Refused> {
    match query {
        Ok(axum::extract::Query(query)) => Ok(query),
        Err(err) => {
            let detail = err.body_text();
            let detail = detail.strip_prefix("Failed to deserialize query string: ");
            Err(bad(detail.unwrap_or("the query string makes no sense")))
        }
    }
}

pub fn bad(detail: &str) -> Refused {
    Refused::new(problem(StatusCode::BAD_REQUEST, "invalid argument", detail))
}

impl IntoResponse for Unanswered {
    fn into_response(self) -> Response {
        let detail = self.to_string();
        let (status, title) = match &self {
            Self::Query(QueryError::Fault(err)) => return internal(err),
            Self::Broken(err) => return internal(err),
            Self::Query(QueryError::Invalid(_)) => (StatusCode::BAD_REQUEST, "invalid argument"),
            Self::Query(QueryError::NotFound(_)) => (StatusCode::NOT_FOUND, "not found"),
            Self::Query(QueryError::Erased { by, seq, .. }) => {
                let more = json!({"erased_by": by.to_string(), "erased_seq": seq});
                return problem_with(StatusCode::GONE, "erased", &detail, &more);
            }
            Self::Query(QueryError::TooMuch(_)) => (StatusCode::PAYLOAD_TOO_LARGE, "too much"),
            Self::Busy | Self::Stopped(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        };
        problem(status, title, &detail)
    }
}

/// A response that refuses a request. It is boxed because it is large and rare.
#[derive(Debug)]
pub struct Refused(Box<Response>);

impl Refused {
    pub fn new(response: Response) -> Self {
        Self(Box::new(response))
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl From<Unanswered> for Refused {
    fn from(err: Unanswered) -> Self {
        Self::new(err.into_response())
    }
}
