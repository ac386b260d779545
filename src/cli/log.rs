//! `cairn log show`, `tail` and `query`: shows events as rows or as JSON.
//!
//! Invariant: rows are printed as they come, so that a list of any length takes the memory of one page.

use std::{process::ExitCode, time::Duration};

use serde_json::Value;

use crate::{
    block::Cid,
    cli::{
        args::{LogCommand, LogSource, Shown, Wanted},
        export,
        out::{self, Out},
        remote::{Messages, Remote},
        runtime,
        source::Source,
        table, verify,
    },
    query::list::{Filter, LIMIT_MAX},
};

/// The pause between two looks at the files of a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn run(command: LogCommand, quiet: bool) -> anyhow::Result<ExitCode> {
    match command {
        LogCommand::Show { cid, payloads, place, shown } => show(&cid, payloads, &place, shown, quiet),
        LogCommand::Tail { lines, follow, place, shown } => tail(lines, follow, &place, shown, quiet),
        LogCommand::Query { wanted, place, shown } => query(wanted, &place, shown, quiet),
        LogCommand::Verify(args) => verify::run(args, quiet),
        LogCommand::Export(args) => export::run(args, quiet),
        LogCommand::Import { file, data, json } => export::import(&file, &data.data, json, quiet),
    }
}

fn show(cid: &Cid, payloads: bool, place: &LogSource, shown: Shown, quiet: bool) -> anyhow::Result<ExitCode> {
    let source = Source::open(place, quiet)?;
    let found = runtime()?.block_on(async {
        let mut found = source.find(cid, payloads).await?;
        reason(&source, &mut found).await?;
        anyhow::Ok(found)
    })?;
    match shown.json {
        true => out::print_json(&found)?,
        false => out::print(&fields(&found))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tail(lines: u64, follow: bool, place: &LogSource, shown: Shown, quiet: bool) -> anyhow::Result<ExitCode> {
    let source = Source::open(place, quiet)?;
    runtime()?.block_on(async {
        let mut rows = Rows::new(shown);
        let size = source.size().await?;
        let mut next = size.saturating_sub(lines);
        if next < size {
            let page = source.page(&from(next), size - next, None).await?;
            next += rows.add(&page.events)?;
        }
        rows.flush()?;
        if !follow {
            return Ok(());
        }
        match &source {
            Source::Server(remote) => follow_server(remote, next, &mut rows).await,
            Source::Files { .. } => loop {
                let page = source.page(&from(next), LIMIT_MAX, None).await?;
                if page.events.is_empty() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                next += rows.add(&page.events)?;
                rows.flush()?;
            },
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn follow_server(remote: &Remote, next: u64, rows: &mut Rows) -> anyhow::Result<()> {
    let query = [("from_seq", next.to_string())];
    let response = remote.get("/v1/events/stream", &query, "text/event-stream").await?;
    let mut messages = Messages::new(response);
    while let Some(data) = messages.next().await? {
        let event: Value = serde_json::from_slice(&data)?;
        if event["cid"].is_null() {
            let why = event["message"].as_str().unwrap_or("no reason given");
            anyhow::bail!("the server ended the stream: {why}");
        }
        rows.add(&[event])?;
        rows.flush()?;
    }
    anyhow::bail!("the server ended the stream: it has stopped")
}

fn query(wanted: Wanted, place: &LogSource, shown: Shown, quiet: bool) -> anyhow::Result<ExitCode> {
    let source = Source::open(place, quiet)?;
    let filter = Filter {
        kind: wanted.kind,
        subject: wanted.subject,
        actor: wanted.actor,
        tool: wanted.tool,
        contract: wanted.contract,
        payload: wanted.payload,
        after: wanted.after,
        before: wanted.before,
        from_seq: wanted.from_seq,
        to_seq: None,
    };
    runtime()?.block_on(async {
        let mut rows = Rows::new(shown);
        let mut cursor: Option<String> = None;
        let mut left = wanted.limit;
        loop {
            let mut page = source.page(&filter, left.min(LIMIT_MAX), cursor.as_deref()).await?;
            if shown.json {
                for event in &mut page.events {
                    reason(&source, event).await?;
                }
            }
            left -= rows.add(&page.events)?.min(left);
            cursor = page.next_cursor;
            if cursor.is_none() || left == 0 {
                break;
            }
        }
        rows.flush()?;
        if let Some(last) = rows.last.filter(|_| cursor.is_some() && !quiet) {
            eprintln!("more events fit; go on with --from-seq {}, or raise --limit", last + 1);
        }
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Adds to an event the reason that was given for it, if there is one that was not erased.
async fn reason(source: &Source, event: &mut Value) -> anyhow::Result<()> {
    let is_note = |pay: &&Value| pay["role"] == "note" && pay["erased"] != true;
    let note = |event: &Value| event["pay"].as_array()?.iter().find(is_note).cloned();
    let Some(held) = note(event) else { return Ok(()) };
    let held = match (held.get("content"), event["cid"].as_str().and_then(|cid| cid.parse().ok())) {
        (None, Some(cid)) => note(&source.find(&cid, true).await?),
        _ => Some(held),
    };
    if let Some(said) = held.as_ref().and_then(|held| held.get("content")) {
        event["reason"] = said.clone();
    }
    Ok(())
}

fn from(seq: u64) -> Filter {
    Filter { from_seq: Some(seq), ..Filter::default() }
}

/// Prints events as they come: as rows under a header, or as one JSON document a line.
struct Rows {
    out: Out,
    shown: Shown,
    /// The last seq that was shown.
    last: Option<u64>,
}

impl Rows {
    fn new(shown: Shown) -> Self {
        Self { out: Out::new(), shown, last: None }
    }

    /// Prints events; returns how many.
    fn add(&mut self, events: &[Value]) -> anyhow::Result<u64> {
        for event in events {
            if self.shown.json {
                self.out.line(&event.to_string())?;
            } else {
                if self.last.is_none() {
                    self.out.line(&row("seq", "time", "kind", "subject", "actor", "event"))?;
                }
                self.out.line(&self.event(event))?;
            }
            self.last = event["seq"].as_u64().or(self.last);
        }
        Ok(events.len() as u64)
    }

    fn event(&self, event: &Value) -> String {
        let text = |value: &Value| table::printable(value.as_str().unwrap_or_default());
        row(
            &event["seq"].to_string(),
            &table::moment(event["ts"].as_u64().unwrap_or(0)),
            &text(&event["kind"]),
            &text(&event["subject"]),
            &text(&event["actor"]["id"]),
            &table::short(&text(&event["cid"]), self.shown.wide),
        )
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

/// Formats one row. The widths of the columns are fixed, because rows come one by one.
fn row(seq: &str, time: &str, kind: &str, subject: &str, actor: &str, event: &str) -> String {
    format!("{seq:>8}  {time:<24}  {kind:<18}  {subject:<37}  {actor:<12}  {event}")
}

/// Formats an object's members, one a line: text as it is, links as CIDs, all else as JSON.
fn fields(found: &Value) -> String {
    let members: Vec<(&String, String)> =
        found.as_object().into_iter().flatten().map(|(key, value)| (key, field(key, value))).collect();
    let width = members.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = members.iter().map(|(key, value)| format!("{key:width$}  {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn field(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => table::printable(text),
        Value::Number(micros) if key == "ts" => table::moment(micros.as_u64().unwrap_or(0)),
        Value::Object(link) if link.len() == 1 && link.contains_key("/") => {
            table::printable(link["/"].as_str().unwrap_or_default())
        }
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        value => value.to_string(),
    }
}
