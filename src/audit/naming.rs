//! Names in part over HTTP: the CIDs that begin or end with a text.
//!
//! Invariant: only our own log is searched.

use axum::extract::{Path, State};
use serde_json::json;

use super::{content::passing, reading::Answer};
use crate::{block::Cid, questions::Audit};

pub(super) async fn names(State(audit): State<Audit>, Path(part): Path<String>) -> Answer {
    let asked = part.clone();
    let named = audit.ask(move |view, _| view.named(&asked)).await?;
    let cids: Vec<String> = named.iter().map(Cid::to_string).collect();
    Ok(passing(&json!({"name": part, "cids": cids})))
}
