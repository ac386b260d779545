//! `cairn log show`, `tail` and `query`: shows events as rows or as JSON.
//!
//! Invariant: rows are printed as they come, so that a list of any length takes the memory of one page.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use serde_json::Value;

use crate::{
    cli::{
        args::{LogCommand, Shown, Wanted},
        export,
        naming::Name,
        out::{self, Out},
        place::LogSource,
        remote::{Messages, Remote},
        runtime,
        source::Source,
        table, verify,
    },
    query::list::{Filter, LIMIT_MAX},
};

/// The pause between two looks at the files of a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Calls whose tool is remembered while events are shown.
const CALLS_MAX: usize = 10_000;

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

fn show(
    name: &Name,
    payloads: bool,
    place: &LogSource,
    shown: Shown,
    quiet: bool,
) -> anyhow::Result<ExitCode> {
    let source = Source::open(place, quiet)?;
    let found = runtime()?.block_on(async {
        let cid = source.resolve(name).await?;
        let mut found = source.find(&cid, payloads).await?;
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
        let mut rows = Rows::new(shown, &source);
        let size = source.size().await?;
        let mut next = size.saturating_sub(lines);
        while next < size {
            let page = source.page(&from(next), (size - next).min(LIMIT_MAX), None).await?;
            if page.events.is_empty() {
                break;
            }
            next += rows.add(&page.events).await?;
        }
        rows.flush()?;
        if !follow {
            return Ok(());
        }
        tokio::select! {
            followed = follow_on(&source, next, &mut rows) => followed,
            // Nothing may come for long, and a reader that has gone must not be waited for.
            gone = out::left() => Err(gone.into()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints events as they come, until the source ends.
async fn follow_on(source: &Source, mut next: u64, rows: &mut Rows<'_>) -> anyhow::Result<()> {
    if let Source::Server(remote) = source {
        return follow_server(remote, next, rows).await;
    }
    loop {
        let page = source.page(&from(next), LIMIT_MAX, None).await?;
        if page.events.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        next += rows.add(&page.events).await?;
        rows.flush()?;
    }
}

async fn follow_server(remote: &Remote, next: u64, rows: &mut Rows<'_>) -> anyhow::Result<()> {
    let query = [("from_seq", next.to_string())];
    let response = remote.get("/v1/events/stream", &query, "text/event-stream").await?;
    let mut messages = Messages::new(response);
    while let Some(data) = messages.next().await? {
        let event: Value = serde_json::from_slice(&data)?;
        if event["cid"].is_null() {
            let why = event["message"].as_str().unwrap_or("no reason given");
            anyhow::bail!("the server ended the stream: {why}");
        }
        rows.add(&[event]).await?;
        rows.flush()?;
    }
    anyhow::bail!("the server ended the stream: it has stopped")
}

fn query(wanted: Wanted, place: &LogSource, shown: Shown, quiet: bool) -> anyhow::Result<ExitCode> {
    let source = Source::open(place, quiet)?;
    let runtime = runtime()?;
    let (contract, payload) = runtime.block_on(async {
        let contract = source.resolved(wanted.contract.as_ref()).await?;
        anyhow::Ok((contract, source.resolved(wanted.payload.as_ref()).await?))
    })?;
    let filter = Filter {
        kind: wanted.kind,
        subject: wanted.subject,
        actor: wanted.actor,
        tool: wanted.tool,
        contract,
        payload,
        after: wanted.after,
        before: wanted.before,
        from_seq: wanted.from_seq,
        to_seq: None,
    };
    runtime.block_on(async {
        let mut rows = Rows::new(shown, &source);
        let mut cursor: Option<String> = None;
        let mut left = wanted.limit;
        loop {
            let mut page = source.page(&filter, left.min(LIMIT_MAX), cursor.as_deref()).await?;
            if shown.json {
                for event in &mut page.events {
                    reason(&source, event).await?;
                }
            }
            left -= rows.add(&page.events).await?.min(left);
            cursor = page.next_cursor;
            if cursor.is_none() || left == 0 {
                break;
            }
        }
        rows.flush()?;
        if let Some(last) = rows.last.filter(|_| cursor.is_some() && !quiet) {
            say!("more events fit; go on with --from-seq {}, or raise --limit", last + 1);
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
struct Rows<'a> {
    out: Out,
    shown: Shown,
    source: &'a Source,
    /// The last seq that was shown.
    last: Option<u64>,
    /// The tool that a call's start named, by the call's subject.
    tools: HashMap<String, String>,
}

impl<'a> Rows<'a> {
    fn new(shown: Shown, source: &'a Source) -> Self {
        Self { out: Out::new(), shown, source, last: None, tools: HashMap::new() }
    }

    /// Prints events; returns how many.
    async fn add(&mut self, events: &[Value]) -> anyhow::Result<u64> {
        for event in events {
            if self.shown.json {
                self.out.line(&out::json(event))?;
            } else {
                if self.last.is_none() {
                    self.out.line(&row("seq", "time", "kind", "tool", "subject", "actor", "event"))?;
                }
                let tool = self.tool(event).await;
                self.out.line(&self.event(event, &tool))?;
            }
            self.last = event["seq"].as_u64().or(self.last);
        }
        Ok(events.len() as u64)
    }

    /// Returns the name under which a call's tool was called; empty for what is no call.
    async fn tool(&mut self, event: &Value) -> String {
        let call = event["kind"].as_str().is_some_and(|kind| kind.starts_with("call."));
        let Some(subject) = event["subject"].as_str().filter(|_| call) else {
            return String::new();
        };
        if let Some(tool) = self.tools.get(subject) {
            return tool.clone();
        }
        let named = |event: &Value| event["body"]["name"].as_str().map(str::to_owned);
        let tool = match (named(event), self.start(event).await) {
            (Some(tool), _) => tool,
            (None, start) => start.as_ref().and_then(named).unwrap_or_default(),
        };
        if self.tools.len() >= CALLS_MAX {
            self.tools.clear();
        }
        self.tools.insert(subject.to_owned(), tool.clone());
        tool
    }

    /// Returns the first event of the call that this one is of; `None` for the start itself, or if it cannot be read.
    async fn start(&self, event: &Value) -> Option<Value> {
        if event["kind"] == "call.started" {
            return None;
        }
        let filter = Filter { subject: Some(event["subject"].as_str()?.to_owned()), ..Filter::default() };
        let mut page = self.source.page(&filter, 1, None).await.ok()?;
        page.events.pop()
    }

    fn event(&self, event: &Value, tool: &str) -> String {
        let text = |value: &Value| table::printable(value.as_str().unwrap_or_default());
        row(
            &event["seq"].to_string(),
            &table::moment(event["ts"].as_u64().unwrap_or(0)),
            &text(&event["kind"]),
            &table::printable(tool),
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
fn row(seq: &str, time: &str, kind: &str, tool: &str, subject: &str, actor: &str, event: &str) -> String {
    let cells = [(time, 24), (kind, 18), (tool, 28), (subject, 37), (actor, 12)];
    let cells = cells.map(|(cell, width)| table::padded(cell, width)).join("  ");
    format!("{seq:>8}  {cells}  {event}")
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
        value => out::json(value),
    }
}
