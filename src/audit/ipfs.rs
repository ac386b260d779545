//! Blocks as from a trustless IPFS gateway, without paths: one raw block, or a CARv1 archive.
//!
//! Unlike the gateway specification, a CAR without `dag-scope` holds only the named block (`block`, not `all`).
//!
//! Invariant: a client can check every byte against the CID it asked for, so it need not trust this node.

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, CONTENT_DISPOSITION, CONTENT_TYPE},
};
use serde::Deserialize;

use super::{
    content::{CAR, RAW, Refused, asked, bad, cid, contents, holding, immutable, known, unkept},
    export::streamed,
    reading::Answer,
};
use crate::{block::Cid, questions::Audit};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    format: Option<String>,
    #[serde(rename = "dag-scope")]
    scope: Option<String>,
}

pub(super) async fn get(
    State(audit): State<Audit>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Answer {
    let (name, wanted) = (cid(&name)?, asked(query)?);
    let car = match wanted.format.as_deref() {
        Some("raw") => false,
        Some("car") => true,
        Some(_) => return Err(bad("format must be raw or car")),
        None => accepts_car(&headers),
    };
    let all = match wanted.scope.as_deref() {
        None | Some("block") => false,
        Some("all") if car => true,
        Some("all") => return Err(bad("dag-scope=all needs format=car")),
        Some(_) => return Err(bad("dag-scope must be block or all")),
    };
    let mut response = if car {
        archive(&audit, name, all).await?
    } else {
        let found = audit.ask(move |view, _| view.find(&name)).await?;
        let held = contents(&name, found.bytes());
        match known(&headers, &name) {
            Some(not_modified) => unkept(held, not_modified),
            None => holding(held, immutable(&name, RAW, found.bytes().to_vec())),
        }
    };
    // A browser must not show the bytes as a page of this origin, whatever they are.
    let attachment = format!("attachment; filename=\"{name}.{}\"", if car { "car" } else { "bin" });
    if let Ok(attachment) = HeaderValue::try_from(attachment) {
        response.headers_mut().insert(CONTENT_DISPOSITION, attachment);
    }
    Ok(response)
}

async fn archive(audit: &Audit, name: Cid, all: bool) -> Result<Response, Refused> {
    let place = audit.long_question()?;
    let question = audit.ask(move |view, _| {
        let cids = match all {
            true => view.graph(&name)?,
            false => vec![name],
        };
        let mut held = 0;
        for cid in &cids {
            held += contents(cid, view.find(cid)?.bytes());
        }
        Ok((cids, held))
    });
    let (cids, held) = question.await?;
    let body = streamed(audit, place, move |view, to| view.write_graph(&name, &cids, to));
    Ok(holding(held, ([(CONTENT_TYPE, CAR)], body).into_response()))
}

fn accepts_car(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.contains("application/vnd.ipld.car"))
}
