//! Exports over HTTP: recorded in the log, then streamed as fast as the reader takes them.
//!
//! Invariant: a failed export breaks its connection, so that a partial file is never taken for a whole one.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    response::IntoResponse,
};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderName,
    header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc},
};

use super::{
    content::{asked, bad, cid},
    reading::Answer,
};
use crate::{
    archive::export::{ExportError, Format, Scope, Selected},
    caller::Caller,
    ledger::Command,
    query::View,
    questions::{Audit, Unanswered},
    verify::{self, Checks, Report},
    words::number,
};

/// The number of bytes that are sent together.
const FRAME: usize = 64 * 1024;
/// The largest number of frames that wait for the reader.
const BACKLOG: usize = 8;
/// How long the reader may leave a full backlog.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    format: Option<String>,
    subject: Option<String>,
    cid: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    from_seq: Option<u64>,
    #[serde(default, deserialize_with = "number::optional")]
    to_seq: Option<u64>,
}

pub(super) async fn export(
    State(audit): State<Audit>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Answer {
    let wanted = asked(query)?;
    let format = Format::parse(wanted.format.as_deref().unwrap_or("car"));
    let format = format.ok_or_else(|| bad("format must be car, jsonl or prov-json"))?;
    let scope = match (wanted.subject, wanted.cid, wanted.from_seq, wanted.to_seq) {
        (Some(subject), None, None, None) => Scope::Subject(subject),
        (None, Some(name), None, None) => Scope::Ancestors(cid(&name)?),
        (None, None, from, to) => Scope::Range { from, to },
        _ => {
            return Err(bad("give a subject, a cid or a range of seqs, not several of them"));
        }
    };
    let place = audit.long_question()?;
    let selected = audit.export(scope, format, &caller).await?;
    let name =
        format!("attachment; filename=\"events-{}-{}.{}\"", selected.from, selected.to, format.extension());
    let headers: [(HeaderName, String); 3] = [
        (CONTENT_TYPE, format.media_type().to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
        (CONTENT_DISPOSITION, name),
    ];
    let body = streamed(&audit, place, move |view, to| view.export(&selected, format, to));
    Ok((headers, body).into_response())
}

impl Audit {
    /// Takes one of the places for long questions. Errors: `Busy` if all are taken.
    pub(super) fn long_question(&self) -> Result<OwnedSemaphorePermit, Unanswered> {
        Arc::clone(&self.long).try_acquire_owned().map_err(|_| Unanswered::Busy)
    }

    /// Verifies the log, or part of it, on a blocking thread. There is no time limit.
    pub async fn verify(&self, checks: Checks) -> Result<Report, Unanswered> {
        let place = self.long_question()?;
        let home = self.readers.home().clone();
        let verified = tokio::task::spawn_blocking(move || {
            let _place = place;
            verify::verify(&home, &checks, &mut |_| {})
        });
        Ok(verified.await?)
    }

    /// Selects what is to be exported, and records the export.
    pub async fn export(
        &self,
        scope: Scope,
        format: Format,
        caller: &Caller,
    ) -> Result<Selected, Unanswered> {
        let selected = self.ask(move |view, head| view.select(&scope, format, head)).await?;
        let command = Command::Export {
            format: format.as_str().to_owned(),
            from_seq: selected.from,
            to_seq: selected.to,
            actor: caller.actor.clone(),
        };
        self.ledger.submit(command).await?;
        Ok(selected)
    }
}

/// Returns a body with what `write` writes on a blocking thread.
pub(super) fn streamed(
    audit: &Audit,
    place: OwnedSemaphorePermit,
    write: impl FnOnce(&View, &mut dyn Write) -> Result<(), ExportError> + Send + 'static,
) -> Body {
    let (to, from) = mpsc::channel(BACKLOG);
    let readers = Arc::clone(&audit.readers);
    // The thread is not joined: it ends when it is done, or when its reader is gone or too slow.
    drop(tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut frames = Frames { to, frame: Vec::with_capacity(FRAME), runtime: Handle::current() };
        let written = match readers.view() {
            Ok(view) => write(&view, &mut frames).and_then(|()| Ok(frames.flush()?)),
            Err(err) => Err(err.into()),
        };
        if let Err(err) = written {
            if let ExportError::Query(err) = &err {
                tracing::error!(%err, "an export broke off");
            }
            frames.frame.clear();
            let broken = io::Error::other("the export broke off");
            let _ = frames.to.blocking_send(Err(broken));
        }
    }));
    Body::from_stream(stream::unfold(from, async |mut from| from.recv().await.map(|frame| (frame, from))))
}

/// A writer that sends frames to the reader's body, and blocks while the backlog is full.
struct Frames {
    to: mpsc::Sender<io::Result<Bytes>>,
    frame: Vec<u8>,
    runtime: Handle,
}

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame.extend_from_slice(bytes);
        if self.frame.len() >= FRAME {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let frame = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME));
        let sent = self.to.send_timeout(Ok(frame.into()), PATIENCE);
        self.runtime
            .block_on(sent)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader is gone or too slow"))
    }
}
