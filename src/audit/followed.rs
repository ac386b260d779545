//! Followed logs over HTTP: their list, signed heads and events, and CIDs that only they have.
//!
//! Invariants:
//! - a list contains events of one log only;
//! - our own log is asked first, and a CID that it has is not looked for in others.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header::CACHE_CONTROL};
use serde_json::{Value, json};

use super::{
    content::{Refused, asked, cid, passing},
    reading::{Answer, Asked, Listed, page, text},
};
use crate::{
    block::Cid,
    follow::{
        copy::{Followed, FollowedError},
        course::{Course, Pursuit},
    },
    problem::{internal, problem},
    query::{QueryError, View, beside::Logs, proof::Head},
    questions::{Audit, Unanswered},
};

impl Audit {
    /// Asks a question of everything recorded before now, and of the followed logs in addition.
    ///
    /// Safe to drop midway.
    pub async fn ask_all<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Logs<'_>, &Head) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let home = self.ledger.home().clone();
        self.ask(move |view, head| question(&Logs::new(view, || Followed::beside(&home)), head)).await
    }

    /// Asks a question about the followed logs on a blocking thread.
    async fn of_followed<T: Send + 'static>(
        &self,
        question: impl FnOnce(&[Followed]) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let permit = Arc::clone(&self.questions).acquire_owned().await.ok();
        let home = self.ledger.home().clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            question(&Followed::list_or_none(&home))
        });
        Ok(asked.await??)
    }
}

/// Folds a followed log up to its last event and asks a question of it.
fn of<T>(
    followed: &Followed,
    question: impl FnOnce(&View) -> Result<T, QueryError>,
) -> Result<T, QueryError> {
    followed.fold()?;
    question(&View::open(followed.home())?)
}

fn find<'a>(logs: &'a [Followed], name: &Cid) -> Result<&'a Followed, QueryError> {
    let found = logs.iter().find(|followed| followed.log == *name);
    found.ok_or_else(|| QueryError::NotFound(format!("log {name}, which is not followed,")))
}

pub(super) async fn list(State(audit): State<Audit>) -> Answer {
    let pursuits = audit.pursuits.get().map_or_else(Vec::new, |pursuits| pursuits());
    let shown = audit.of_followed(|logs| Ok(shown(logs, pursuits)));
    Ok(match shown.await? {
        Ok(logs) => passing(&json!({"returned_count": logs.len(), "followed": logs})),
        Err(err) => internal(&err),
    })
}

/// Returns the stored logs, and those that are followed without anything stored yet, each with its course.
fn shown(logs: &[Followed], mut pursuits: Vec<Pursuit>) -> Result<Vec<Value>, FollowedError> {
    pursuits.sort_unstable_by(|left, right| left.peer.cmp(&right.peer));
    let mut listed = Vec::with_capacity(logs.len());
    for followed in logs {
        let mut held = followed.shown()?;
        let at = pursuits.iter().position(|pursuit| pursuit.log == Some(followed.log));
        if let Some(pursuit) = at.map(|at| pursuits.remove(at)) {
            put(&mut held, pursuit);
        }
        listed.push(held);
    }
    listed.extend(pursuits.into_iter().map(|pursuit| {
        let log = pursuit.log.map(|log| log.to_string());
        let mut wanted = json!({"log": log, "origin": null, "key": null, "size": 0, "signed": null});
        put(&mut wanted, pursuit);
        wanted
    }));
    Ok(listed)
}

fn put(shown: &mut Value, pursuit: Pursuit) {
    shown["peer"] = pursuit.peer.into();
    // A quarantined log stays so, whether it is being followed or not.
    if shown["status"] != Course::Quarantined.as_str() {
        shown["status"] = pursuit.course.as_str().into();
    }
    shown["since_ms"] = pursuit.since_ms.into();
    shown["error"] = pursuit.error.into();
}

pub(super) async fn checkpoint(State(audit): State<Audit>, Path(genesis): Path<String>) -> Answer {
    let name = cid(&genesis)?;
    let signed = audit.of_followed(move |logs| {
        let followed = find(logs, &name)?;
        let key = followed.genesis()?;
        Ok(key.and_then(|(_, verifier)| followed.signed(&verifier)))
    });
    let Some(signed) = signed.await? else {
        let detail = "nothing of this log is held yet";
        return Err(Refused::new(problem(StatusCode::NOT_FOUND, "no signed head", detail)));
    };
    let response: Response = text("text/plain; charset=utf-8", signed.note);
    Ok(([(CACHE_CONTROL, "no-cache")], response).into_response())
}

pub(super) async fn events(
    State(audit): State<Audit>,
    Path(genesis): Path<String>,
    query: Asked<Listed>,
) -> Answer {
    let (name, wanted) = (cid(&genesis)?, asked(query)?.page()?);
    let written = audit.of_followed(move |logs| of(find(logs, &name)?, |view| wanted.of(view)));
    Ok(page(written.await?))
}

#[cfg(test)]
mod tests;
