//! `cairn status`: says how a running node is, asked over HTTP; of one that does not run, what its files say.
//!
//! Invariants:
//! - nothing is written and no tool is called;
//! - exit code 0 means that the node runs and is ready.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    block::Block,
    cli::{
        out,
        place::{LogSource, Place, served},
        remote::{DEFAULT_URL, Refused, Remote},
        runtime,
        table::{self, Table, printable},
    },
    ledger::fitting,
    log::{Reader, home::Home, sqlite::SqliteReader},
};

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    place: LogSource,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Status) -> anyhow::Result<ExitCode> {
    let told = match args.place.place() {
        Place::Server(url) => of_server(&url, args)?,
        Place::Files(data) => match served(&data) {
            Some(url) => of_server(&url, args)?,
            // Without a directory there may still be a server at the usual place.
            None if args.place.data.is_none() && !data.exists() => of_server(DEFAULT_URL, args)?,
            None => of_files(data)?,
        },
    };
    match args.json {
        true => out::print_json(&told)?,
        false => out::print(&shown(&told))?,
    }
    Ok(match told["ready"] == true {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Asks a server. One that does not let us ask is at least asked whether it is ready, which takes no token.
fn of_server(url: &str, args: &Status) -> anyhow::Result<Value> {
    let remote = Remote::new(url, args.place.token.clone())?;
    runtime()?.block_on(async {
        match remote.json("/v1/status", &[]).await {
            Ok(mut told) => {
                told["running"] = true.into();
                told["url"] = remote.origin().into();
                Ok(told)
            }
            Err(err) if err.is::<Refused>() => {
                let ready = remote.json("/readyz", &[]).await;
                Ok(json!({
                    "running": true,
                    "url": remote.origin(),
                    "ready": ready.is_ok(),
                    "reasons": ready.err().map(|err| vec![err.to_string()]).unwrap_or_default(),
                    "hidden": format!("{err:#}"),
                }))
            }
            Err(err) => Err(err),
        }
    })
}

/// Reads what the files of a directory say of a node that does not run.
fn of_files(data: PathBuf) -> anyhow::Result<Value> {
    let dir = data.display().to_string();
    let home = Home::existing(&data).map_err(|_| {
        anyhow::anyhow!(
            "no server runs on {dir}, and there is no log in it; start one with `cairn serve --data {dir}`"
        )
    })?;
    let log = SqliteReader::open(&home.log_path())?;
    let genesis = fitting::genesis(&log)?;
    Ok(json!({
        "running": false,
        "ready": false,
        "reasons": [format!("no server runs on {dir}; start one with `cairn serve --data {dir}`")],
        "owner": home.owner(),
        "log": {
            "origin": genesis.origin,
            "log": Block::encode(&genesis).cid().to_string(),
            "events": log.tip()?.map_or(0, |tip| tip.seq + 1),
            "bytes": log.size()?,
        },
    }))
}

/// Formats the document for people.
fn shown(told: &Value) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut lines = Vec::new();
    let mut line = |name: &str, said: String| lines.push(format!("{name:9}{said}").trim_end().to_owned());
    let standing = match (told["running"] == true, told["ready"] == true) {
        (true, true) => "ready",
        (true, false) => "not ready",
        (false, _) => "not running",
    };
    let at = told["url"].as_str().map_or(String::new(), |url| format!(", at {}", printable(url)));
    line("node", format!("{standing}{at}"));
    for reason in told["reasons"].as_array().into_iter().flatten() {
        line("", text(reason));
    }
    if told["owner"].is_string() {
        line("owner", text(&told["owner"]));
    }
    if told["hidden"].is_string() {
        line("", text(&told["hidden"]));
        return lines.join("\n");
    }
    if told["version"].is_string() {
        let up = told["uptime_s"].as_u64().unwrap_or_default();
        line("version", format!("{}, process {}, up {}", text(&told["version"]), told["process"], span(up)));
    }
    let log = &told["log"];
    let behind = log["events"].as_u64().zip(log["applied"].as_u64());
    let behind = behind.map_or(0, |(events, applied)| events.saturating_sub(applied));
    let behind = if behind > 0 { format!(", {behind} of them not folded yet") } else { String::new() };
    line(
        "log",
        format!("{}, {} events{behind}, {} bytes", text(&log["origin"]), log["events"], log["bytes"]),
    );
    if log["head"].is_u64() {
        line("head", format!("signed over {} events", log["head"]));
    }
    if told["calls"].is_u64() {
        line("calls", format!("{} running or waiting, {} sessions", told["calls"], told["sessions"]));
        for (name, key) in [("tasks", "tasks"), ("runs", "runs"), ("peers", "peers")] {
            line(name, counted(&told["work"][key]));
        }
    }
    let upstreams = told["upstreams"].as_array().map_or(&[][..], Vec::as_slice);
    if !upstreams.is_empty() {
        let mut table = Table::new(&["upstream", "", "tools", "why"]);
        for upstream in upstreams {
            table.row(vec![
                text(&upstream["name"]),
                if upstream["up"] == true { "up" } else { "away" }.to_owned(),
                upstream["tools"].to_string(),
                table::brief(upstream["why"].as_str().unwrap_or_default()),
            ]);
        }
        lines.push(table.render());
    }
    lines.join("\n")
}

/// Formats counts by status.
fn counted(counts: &Value) -> String {
    let some = counts.as_object().into_iter().flatten().map(|(status, n)| format!("{n} {status}"));
    match some.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".to_owned(),
        some => some,
    }
}

/// Formats seconds in the two largest units that say something.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}
