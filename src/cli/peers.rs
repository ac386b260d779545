//! `cairn peers`: finds, connects, shows and follows other nodes, with the tools that any caller has.
//!
//! Invariant: a server is asked nothing that another caller with the same token could not ask.

use std::{path::Path, process::ExitCode};

use serde_json::{Value, json};

use crate::{
    block::splice,
    cli::{
        Usage,
        args::{PeersCommand, ToolsQuery},
        client::{ask, show, text},
        existing,
        place::{Place, Reach},
        remote::Remote,
        runtime,
        source::Files,
        table::{self, Table},
    },
    follow::copy::Followed,
    query::View,
    tools::peers::{AskList, AskMetrics},
};

/// What a table shows for an unknown value.
const NOTHING: &str = "-";

pub fn run(command: PeersCommand) -> anyhow::Result<ExitCode> {
    match command {
        PeersCommand::List { status, capability, sort, limit, cursor, asked } => {
            let mut arguments = json!({"capability_filter": capability, "limit": limit});
            put(&mut arguments, "status_filter", status);
            put(&mut arguments, "sort_by", sort);
            put(&mut arguments, "cursor", cursor);
            either("peer_list", arguments, &asked, view_list, list)
        }
        PeersCommand::Discover { capability, max, timeout_ms, source, asked } => {
            let mut arguments = json!({"capability_filter": capability});
            put(&mut arguments, "max_peers", max);
            put(&mut arguments, "timeout_ms", timeout_ms);
            put(&mut arguments, "sources", (!source.is_empty()).then_some(source));
            answer("peer_discover", &arguments, &asked, discovered)
        }
        PeersCommand::Bootstrap { address, min, max, timeout_ms, asked } => {
            let mut arguments = json!({});
            put(&mut arguments, "bootstrap_nodes", (!address.is_empty()).then_some(address));
            put(&mut arguments, "min_connections", min);
            put(&mut arguments, "max_connections", max);
            put(&mut arguments, "timeout_ms", timeout_ms);
            let joined = asked_of_server("bootstrap_network", &arguments, &asked)?;
            let shown = show(&joined, &asked, bootstrapped)?;
            Ok(if joined["success"] == true { shown } else { ExitCode::FAILURE })
        }
        PeersCommand::Connect { peer, address, timeout_ms, retries, once, reason, asked } => {
            let mut arguments = json!({"peer_id": peer, "persist": !once});
            put(&mut arguments, "multiaddr", address);
            put(&mut arguments, "timeout_ms", timeout_ms);
            put(&mut arguments, "retry_count", retries);
            put(&mut arguments, "reason", reason);
            answer("peer_connect", &arguments, &asked, connected)
        }
        PeersCommand::Disconnect { peer, now, reason, asked } => {
            let arguments = json!({"peer_id": peer, "graceful": !now});
            about("peer_disconnect", arguments, reason, &asked, disconnected)
        }
        PeersCommand::Metrics { peer, history, hours, as_of_seq, asked } => {
            let mut arguments = json!({"peer_id": peer, "include_history": history});
            put(&mut arguments, "history_hours", hours);
            put(&mut arguments, "as_of_seq", as_of_seq);
            either("peer_metrics", arguments, &asked, view_metrics, metrics)
        }
        PeersCommand::Follow { list: true, asked, .. } => show(&kept(&asked.reach)?, &asked, followed),
        PeersCommand::Follow { peer, release, reason, asked, .. } => {
            let arguments = json!({"peer_id": peer, "release": release});
            about("peer_follow", arguments, reason, &asked, follows)
        }
        PeersCommand::Unfollow { peer, reason, asked } => {
            about("peer_unfollow", json!({"peer_id": peer}), reason, &asked, unfollowed)
        }
    }
}

/// Returns the followed logs: from the server, or from the files, whoever follows them.
fn kept(reach: &Reach) -> anyhow::Result<Value> {
    match reach.place()? {
        Place::Files(data) => {
            let logs = Followed::list(&existing(&data)?)?;
            let shown = logs.iter().map(Followed::shown).collect::<Result<Vec<_>, _>>()?;
            Ok(json!({"returned_count": shown.len(), "followed": shown}))
        }
        Place::Server(url) => {
            let remote = Remote::new(&url, reach.token.clone())?;
            runtime()?.block_on(remote.json("/v1/followed", &[]))
        }
    }
}

/// Asks a server's tool, or a data directory's files the same, and shows the answer.
fn either(
    tool: &str,
    arguments: Value,
    asked: &ToolsQuery,
    question: fn(&View, Value) -> anyhow::Result<Value>,
    told: fn(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    match asked.reach.place()? {
        Place::Files(data) => show(&in_files(&data, |view| question(view, arguments))?, asked, told),
        Place::Server(_) => answer(tool, &arguments, asked, told),
    }
}

/// Asks a question of a data directory's files, whether a server is running or not.
fn in_files(data: &Path, question: impl FnOnce(&View) -> anyhow::Result<Value>) -> anyhow::Result<Value> {
    let home = existing(data)?;
    question(&Files::open(home, true)?.view)
}

fn view_list(view: &View, arguments: Value) -> anyhow::Result<Value> {
    let asked: AskList = serde_json::from_value(arguments)?;
    Ok(asked.of(view, &[])?)
}

fn view_metrics(view: &View, arguments: Value) -> anyhow::Result<Value> {
    let asked: AskMetrics = serde_json::from_value(arguments)?;
    Ok(asked.of(view)?)
}

/// Asks a running server's tool and shows its answer.
fn answer(
    tool: &str,
    arguments: &Value,
    asked: &ToolsQuery,
    told: impl FnOnce(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    show(&asked_of_server(tool, arguments, asked)?, asked, told)
}

/// Does the same, with the reason for it.
fn about(
    tool: &str,
    mut arguments: Value,
    reason: Option<String>,
    asked: &ToolsQuery,
    told: impl FnOnce(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    put(&mut arguments, "reason", reason);
    answer(tool, &arguments, asked, told)
}

fn asked_of_server(tool: &str, arguments: &Value, asked: &ToolsQuery) -> anyhow::Result<Value> {
    if matches!(asked.reach.place()?, Place::Files(_)) {
        let message = "this needs a running server that takes part in the network: name it with --url instead of a data directory";
        return Err(Usage(message.to_owned()).into());
    }
    ask(&asked.reach, tool, &splice::raw(arguments.to_string()))
}

/// Sets an argument, if it was given; else the tool's default applies.
fn put(arguments: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        arguments[name] = value.into();
    }
}

/// Returns an address without the peer's id, which has a column of its own.
fn bare(address: &str) -> &str {
    address.rsplit_once("/p2p/").map_or(address, |(bare, _)| bare)
}

fn list(listed: &Value) -> String {
    let mut table =
        Table::new(&["peer", "status", "latency", "reliability", "last seen", "address", "offers"]);
    for peer in rows(&listed["peers"]) {
        let status = text(peer, "status");
        let held = if peer["quarantined"] == true { " (quarantined)" } else { "" };
        table.row(vec![
            text(peer, "peer_id").to_owned(),
            format!("{status}{held}"),
            peer["latency_ms"].as_f64().map_or(NOTHING.to_owned(), |ms| format!("{ms:.1} ms")),
            peer["reliability_score"].as_f64().map_or(NOTHING.to_owned(), |share| format!("{share:.2}")),
            peer["last_seen"].as_str().unwrap_or(NOTHING).to_owned(),
            bare(first(&peer["multiaddrs"])).to_owned(),
            rows(&peer["capabilities"]).len().to_string(),
        ]);
    }
    let more = match listed["next_cursor"].as_str() {
        Some(cursor) => format!("\n{} in all; --cursor {cursor} shows the next", listed["total_count"]),
        None => String::new(),
    };
    format!("{}{more}", table.render())
}

fn connected(made: &Value) -> String {
    let known = if made["reused"] == true { "  connected already" } else { "" };
    let (peer, address) = (text(made, "peer_id"), text(made, "multiaddr"));
    let line = format!("{peer}  {address}  {}", text(made, "transport"));
    table::printable(&format!("{line}  in {} ms{known}", made["connection_time_ms"]))
}

fn disconnected(parted: &Value) -> String {
    let was = if parted["was_connected"] == true { "disconnected" } else { "was not connected" };
    format!("{}  {was}", text(parted, "peer_id"))
}

fn follows(followed: &Value) -> String {
    let log = followed["log"].as_str().unwrap_or("its log is not known yet");
    let released = if followed["released"] == true { "  released" } else { "" };
    format!("{}  follows  {log}{released}", text(followed, "peer_id"))
}

fn unfollowed(left: &Value) -> String {
    let was = if left["was_following"] == true {
        "is not followed any more; what is kept of its log stays"
    } else {
        "was not followed"
    };
    format!("{}  {was}", text(left, "peer_id"))
}

fn followed(listed: &Value) -> String {
    let mut table = Table::new(&["log", "origin", "events", "signed", "status", "since", "peer", "error"]);
    for log in rows(&listed["followed"]) {
        let word = |key: &str| log[key].as_str().unwrap_or(NOTHING).to_owned();
        let since = log["since_ms"].as_u64().map(|ms| table::moment(ms.saturating_mul(1000)));
        table.row(vec![
            word("log"),
            word("origin"),
            log["size"].to_string(),
            or_nothing(&log["signed"]),
            word("status"),
            since.unwrap_or_else(|| NOTHING.to_owned()),
            word("peer"),
            word("error"),
        ]);
    }
    table.render()
}

fn discovered(found: &Value) -> String {
    let mut table = Table::new(&["peer", "source", "address", "offers"]);
    for peer in rows(&found["peers"]) {
        table.row(vec![
            text(peer, "peer_id").to_owned(),
            text(peer, "source").to_owned(),
            bare(first(&peer["multiaddrs"])).to_owned(),
            rows(&peer["capabilities"]).len().to_string(),
        ]);
    }
    let mut lines = vec![table.render()];
    for (name, came) in found["sources"].as_object().into_iter().flatten() {
        let error = came["error"].as_str().map_or(String::new(), |error| format!(": {error}"));
        lines.push(table::printable(&format!("{name} found {}{error}", came["found"])));
    }
    lines.join("\n")
}

fn bootstrapped(joined: &Value) -> String {
    let mut table = Table::new(&["address", "method", "outcome", "ms"]);
    for tried in rows(&joined["attempts"]) {
        table.row(vec![
            text(tried, "multiaddr").to_owned(),
            text(tried, "method").to_owned(),
            tried["error"].as_str().unwrap_or("connected").to_owned(),
            tried["duration_ms"].to_string(),
        ]);
    }
    let (connected, failed) = (&joined["connected_count"], &joined["failed_count"]);
    let ready = if joined["success"] == true { "joined" } else { "not joined" };
    format!("{}\n{ready}: {connected} connected, {failed} tries failed", table.render())
}

/// Formats every measure on a line of its own, and the history in rows.
fn metrics(shown: &Value) -> String {
    let mut lines = vec![text(shown, "peer_id").to_owned()];
    for part in ["connection_info", "current_metrics"] {
        for (name, value) in shown[part].as_object().into_iter().flatten() {
            let value = match value {
                Value::Null => NOTHING.to_owned(),
                Value::String(value) => value.clone(),
                Value::Object(_) if name == "latency_ms" => {
                    format!("p50 {}  p99 {}", or_nothing(&value["p50"]), or_nothing(&value["p99"]))
                }
                value => value.to_string(),
            };
            lines.push(table::printable(&format!("{name:20} {value}")));
        }
    }
    let mut table =
        Table::new(&["time", "p50 ms", "p99 ms", "sent", "received", "served", "requests", "failures"]);
    for point in rows(&shown["history"]) {
        table.row(vec![
            text(point, "time").to_owned(),
            or_nothing(&point["latency_ms"]["p50"]),
            or_nothing(&point["latency_ms"]["p99"]),
            point["bytes_sent"].to_string(),
            point["bytes_received"].to_string(),
            point["requests_served"].to_string(),
            point["requests_sent"].to_string(),
            point["failures"].to_string(),
        ]);
    }
    if !table.is_empty() {
        lines.push(table.render());
    }
    lines.join("\n")
}

fn or_nothing(value: &Value) -> String {
    if value.is_null() { NOTHING.to_owned() } else { value.to_string() }
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn first(list: &Value) -> &str {
    rows(list).first().and_then(Value::as_str).unwrap_or(NOTHING)
}
