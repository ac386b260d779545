//! Reading over HTTP: events and blocks, lists, walks, proofs, contracts, and the state.
//!
//! Invariant: every handler asks one question and formats its answer.

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::content::{
    self, Form, Refused, asked, bad, bytes, cid, holding, immutable, known, passing, passing_text,
};
use crate::{
    drawing,
    merkle::{TILE_WIDTH, parse_tile_path},
    problem::{answer, problem},
    query::{
        QueryError, View,
        list::{self, Filter, moment},
        shown::{self, Payloads},
        walk::{self, Direction},
    },
    questions::Audit,
    words::number,
};

pub(super) type Answer = Result<Response, Refused>;
pub(super) type Asked<T> = Result<Query<T>, QueryRejection>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    payloads: Option<Inline>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Inline {
    Inline,
}

pub(super) async fn event(
    State(audit): State<Audit>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Asked<Shown>,
) -> Answer {
    let (name, inline) = (cid(&name)?, asked(query)?.payloads.is_some());
    let form = Form::accepted(&headers)?;
    let not_modified = known(&headers, &name).filter(|_| !inline);
    let question = audit.ask_all(move |logs, head| {
        logs.ask(head, |view, _| {
            let event = view.event(&name)?;
            let not_found = || QueryError::NotFound(format!("event {name}"));
            let event = event.ok_or_else(not_found)?;
            let payloads = payloads(inline);
            let shown = match form {
                Form::Json => view.event_json(&event, &payloads)?,
                Form::Raw | Form::DagJson => Value::Null,
            };
            Ok((event, shown, payloads.shown()))
        })
    });
    let (event, shown, contents) = question.await?;
    Ok(match (not_modified, form) {
        (Some(not_modified), _) => not_modified,
        (None, Form::Json) if inline => holding(contents, passing(&shown)),
        (None, Form::Json) => immutable(&name, "application/json", shown.to_string()),
        (None, Form::Raw | Form::DagJson) => bytes(&name, form, event.bytes().to_vec()),
    })
}

pub(super) async fn block(
    State(audit): State<Audit>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Asked<Shown>,
) -> Answer {
    let (name, inline) = (cid(&name)?, asked(query)?.payloads.is_some());
    let form = Form::accepted(&headers)?;
    let not_modified = known(&headers, &name).filter(|_| !inline);
    let question = audit.ask_all(move |logs, head| {
        logs.ask(head, |view, _| {
            let found = view.find(&name)?;
            let shown = match form {
                Form::Json => view.block_json(&name, found.bytes(), inline)?,
                Form::Raw | Form::DagJson => Value::Null,
            };
            Ok((found, shown))
        })
    });
    let (found, shown) = question.await?;
    let contents = content::contents(&name, found.bytes());
    Ok(match (not_modified, form) {
        (Some(not_modified), _) => content::unkept(contents, not_modified),
        (None, Form::Json) if inline => holding(contents, passing(&shown)),
        (None, Form::Json) => immutable(&name, "application/json", shown.to_string()),
        (None, Form::Raw | Form::DagJson) => holding(contents, bytes(&name, form, found.bytes().to_vec())),
    })
}

fn payloads(inline: bool) -> Payloads {
    match inline {
        true => Payloads::inline(),
        false => Payloads::named(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    kind: Option<String>,
    subject: Option<String>,
    actor: Option<String>,
    tool: Option<String>,
    contract: Option<String>,
    payload: Option<String>,
    after: Option<String>,
    before: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
    #[serde(default, deserialize_with = "number::optional")]
    to_seq: Option<u64>,
    #[serde(default, deserialize_with = "number::optional")]
    limit: Option<u64>,
    cursor: Option<String>,
    payloads: Option<Inline>,
}

/// A page of events that a caller asks for.
pub(super) struct WantedPage {
    filter: Filter,
    limit: u64,
    cursor: Option<String>,
    inline: bool,
}

impl Listed {
    pub(super) fn page(self) -> Result<WantedPage, Refused> {
        let inline = self.payloads.is_some();
        let limit = self.limit.unwrap_or(list::LIMIT_DEFAULT);
        if !(1..=list::LIMIT_MAX).contains(&limit) {
            return Err(bad("limit must be 1 to 1000"));
        }
        let time = |text: Option<&str>| text.map(moment).transpose().map_err(|err| bad(&err.to_string()));
        let name = |text: Option<&str>| text.map(cid).transpose();
        let filter = Filter {
            contract: name(self.contract.as_deref())?,
            payload: name(self.payload.as_deref())?,
            after: time(self.after.as_deref())?,
            before: time(self.before.as_deref())?,
            kind: self.kind,
            subject: self.subject,
            actor: self.actor,
            tool: self.tool,
            from_seq: self.from_seq,
            to_seq: self.to_seq,
        };
        Ok(WantedPage { filter, limit, cursor: self.cursor, inline })
    }
}

impl WantedPage {
    /// Returns the page as JSON text, and how many payloads' content it contains.
    pub(super) fn of(&self, view: &View) -> Result<Written, QueryError> {
        let page = view.list(&self.filter, self.limit, self.cursor.as_deref())?;
        let payloads = payloads(self.inline);
        let events = view.shown(&page.events, &payloads)?;
        let text = serde_json::to_string(&ListedEvents {
            returned_count: events.len(),
            has_more: page.next_cursor.is_some(),
            next_cursor: page.next_cursor,
            events,
        });
        Ok((text, payloads.shown()))
    }
}

pub(super) async fn events(State(audit): State<Audit>, query: Asked<Listed>) -> Answer {
    let wanted = asked(query)?.page()?;
    Ok(page(audit.ask(move |view, _| wanted.of(view)).await?))
}

/// A page as JSON text, and how many payloads' content it contains.
type Written = (serde_json::Result<String>, u64);

/// Returns the response with a page.
pub(super) fn page((text, contents): Written) -> Response {
    match text {
        Ok(page) => holding(contents, passing_text(page)),
        Err(err) => crate::problem::internal(&err),
    }
}

/// The JSON of a page. It is serialized directly to text, without a `Value` in between, because a page is large.
#[derive(Serialize)]
struct ListedEvents<'a> {
    returned_count: usize,
    has_more: bool,
    next_cursor: Option<String>,
    events: Vec<shown::Shown<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Walked {
    direction: Option<String>,
    #[serde(alias = "max_depth")]
    depth: Option<u32>,
    limit: Option<usize>,
    format: Option<String>,
}

pub(super) async fn provenance(
    State(audit): State<Audit>,
    Path(name): Path<String>,
    query: Asked<Walked>,
) -> Answer {
    let (name, asked) = (cid(&name)?, asked(query)?);
    let direction = match asked.direction.as_deref().map(Direction::parse) {
        None => Direction::default(),
        Some(Some(direction)) => direction,
        Some(None) => return Err(bad("direction must be ancestors, descendants or both")),
    };
    let depth = asked.depth.unwrap_or(walk::DEPTH_DEFAULT);
    let limit = asked.limit.unwrap_or(walk::LIMIT_MAX);
    if !(1..=walk::DEPTH_MAX).contains(&depth) || !(1..=walk::LIMIT_MAX).contains(&limit) {
        return Err(bad("depth must be 1 to 1024, and limit 1 to 1000"));
    }
    let format = asked.format.unwrap_or_else(|| "json".to_owned());
    if !["json", "dot", "mermaid", "car"].contains(&format.as_str()) {
        return Err(bad("format must be json, dot, mermaid or car"));
    }
    let car = format == "car";
    let question = audit.ask_all(move |logs, _| {
        let walk = logs.walk(&name, direction, depth, limit)?;
        let archive = car.then(|| logs.walk_car(&name, &walk)).transpose()?;
        let contents =
            walk.nodes.iter().filter(|node| matches!(node.what, walk::What::Payload { .. })).count();
        Ok((walk, archive, contents as u64))
    });
    let (walk, archive, contents) = question.await?;
    Ok(match (format.as_str(), archive) {
        (_, Some(archive)) => holding(contents, ([(CONTENT_TYPE, content::CAR)], archive).into_response()),
        ("dot", _) => text("text/vnd.graphviz", drawing::walk::dot(&walk)),
        ("mermaid", _) => text("text/vnd.mermaid", drawing::walk::mermaid(&walk)),
        _ => match serde_json::to_string(&walk) {
            Ok(walk) => text("application/json", walk),
            Err(err) => crate::problem::internal(&err),
        },
    })
}

pub(super) async fn proof(State(audit): State<Audit>, Path(name): Path<String>) -> Answer {
    let name = cid(&name)?;
    let proof = audit.ask_all(move |logs, head| logs.ask(head, |view, head| view.inclusion(&name, head)));
    Ok(answer(StatusCode::OK, &proof.await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Between {
    old: u64,
    new: Option<u64>,
}

pub(super) async fn consistency(State(audit): State<Audit>, query: Asked<Between>) -> Answer {
    let Between { old, new } = asked(query)?;
    let proof = audit.ask(move |view, head| view.consistency(old, new.unwrap_or(head.size), head));
    Ok(answer(StatusCode::OK, &proof.await?))
}

pub(super) async fn receipt(State(audit): State<Audit>, Path(name): Path<String>) -> Answer {
    let name = cid(&name)?;
    let receipt = audit.ask_all(move |logs, head| logs.ask(head, |view, head| view.receipt(&name, head)));
    Ok(answer(StatusCode::OK, &receipt.await?.to_json()))
}

pub(super) async fn contracts(State(audit): State<Audit>) -> Answer {
    let contracts = audit.ask(|view, _| view.contracts()).await?;
    let count = contracts.len();
    Ok(answer(StatusCode::OK, &json!({"contracts": contracts, "returned_count": count})))
}

pub(super) async fn contract(
    State(audit): State<Audit>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let name = cid(&name)?;
    let form = Form::accepted(&headers)?;
    let question = audit.ask_all(move |logs, head| {
        logs.ask(head, |view, _| Ok((view.contract_shown(&name)?, view.find(&name)?)))
    });
    let (shown, found) = question.await?;
    if let Some(not_modified) = known(&headers, &name) {
        return Ok(not_modified);
    }
    Ok(match form {
        Form::Json => immutable(&name, "application/json", shown.to_string()),
        Form::Raw | Form::DagJson => bytes(&name, form, found.bytes().to_vec()),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summed {
    digests: Option<u64>,
}

pub(super) async fn state(State(audit): State<Audit>, query: Asked<Summed>) -> Answer {
    let digests = match asked(query)?.digests {
        None | Some(0) => false,
        Some(1) => true,
        Some(_) => return Err(bad("digests must be 0 or 1")),
    };
    let summary = audit.summary(digests).await?;
    let about = audit.ledger().about();
    Ok(passing(&json!({
        "origin": about.origin,
        "key": about.vkey,
        "log": about.log.to_string(),
        "seq": summary.size.saturating_sub(1),
        "size": summary.size,
        "root": summary.root,
        "counts": summary.counts,
        "digests": summary.digests,
        "peer": audit.peer(),
    })))
}

pub(super) async fn checkpoint(State(audit): State<Audit>) -> Response {
    let mut response = text("text/plain; charset=utf-8", audit.head().await.note);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

pub(super) async fn tile(State(audit): State<Audit>, Path(path): Path<String>) -> Answer {
    let no_tile = |status, detail| Refused::new(problem(status, "no such tile", detail));
    let path = parse_tile_path(&format!("tile/{path}"));
    let path = path.ok_or_else(|| no_tile(StatusCode::BAD_REQUEST, "not a path of C2SP tlog-tiles"))?;
    let full = path.width == TILE_WIDTH;
    let tile = audit.ask(move |view, head| view.tile(&path, head)).await?;
    let tile =
        tile.ok_or_else(|| no_tile(StatusCode::NOT_FOUND, "the tree has no tile of this width here"))?;
    // A partial tile stays true too, but it is of no use once the full tile is there.
    let kept = match full {
        true => "private, max-age=31536000, immutable",
        false => "private, max-age=3600",
    };
    let media = (CONTENT_TYPE, "application/octet-stream");
    Ok(([media, (CACHE_CONTROL, kept)], tile).into_response())
}

pub(super) fn text(media: &'static str, text: String) -> Response {
    ([(CONTENT_TYPE, media)], text).into_response()
}
